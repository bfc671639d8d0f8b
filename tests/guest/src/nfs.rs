// SPDX-License-Identifier: GPL-2.0

//! An NFS server of this guest, and its client.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::command::{command, run};
use crate::filesystem::Mount;
use crate::sysfs;

const CONTROL: &str = "/proc/fs/nfsd";
const ADDRESS: &str = "127.0.0.1";
const PORT: &str = "2049";
/// How long the daemon may take until it answers the kernel.
const LIMIT: Duration = Duration::from_secs(10);
/// The transports that the programs may use, in the form of `/etc/netconfig`.
const NETWORKS: &str = "tcp tpi_cots_ord v inet tcp - -\n";

/// A server that exports one directory with NFS 4.2, stopped when it is dropped.
pub struct Server {
    dir: PathBuf,
    /// The daemon that tells the kernel what is exported.
    daemon: Child,
}

impl Server {
    /// Starts the server.
    pub fn start(dir: &Path) -> Result<Server> {
        run("busybox", &["ifconfig", "lo", "up"])?;
        run("modprobe", &["-a", "nfsd", "nfsv4"])?;
        if !Path::new(CONTROL).join("threads").exists() {
            run("mount", &["-t", "nfsd", "nfsd", CONTROL])?;
        }
        fs::create_dir_all("/var/lib/nfs")?;
        for name in ["etab", "rmtab"] {
            fs::write(Path::new("/var/lib/nfs").join(name), "")?;
        }
        // At first a server only serves clients from before, for this time in seconds. The least
        // is 10.
        for name in ["nfsv4leasetime", "nfsv4gracetime"] {
            sysfs::write(Path::new(CONTROL).join(name), "10")?;
        }
        fs::write("/etc/netconfig", NETWORKS)?;
        fs::write("/etc/exports", "")?;
        let daemon = command("rpc.mountd")
            .args(["--foreground", "--no-nfs-version", "3", "--no-udp"])
            .stdin(Stdio::null())
            .spawn()
            .context("starting rpc.mountd")?;
        let server = Server {
            dir: dir.to_owned(),
            daemon,
        };
        let options = "rw,no_root_squash,no_subtree_check,insecure,fsid=0";
        run("exportfs", &["-o", options, &server.export()])?;
        let arguments = ["--no-nfs-version", "3", "--no-udp", "--port", PORT, "2"];
        run("rpc.nfsd", &arguments)?;
        Ok(server)
    }

    fn export(&self) -> String {
        format!("{ADDRESS}:{}", self.dir.display())
    }

    /// Mounts what is exported.
    pub fn mount(&self) -> Result<Mount> {
        let options = format!(
            "vers=4.2,port={PORT},soft,timeo=50,retrans=1,addr={ADDRESS},clientaddr={ADDRESS}"
        );
        let deadline = Instant::now() + LIMIT;
        loop {
            // At first rpc.mountd may not answer the kernel yet, which then refuses.
            match Mount::new("nfs4", &format!("{ADDRESS}:/"), &options) {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(500)),
                result => return result,
            }
        }
    }

    /// Stops the server. Unlike `drop`, this reports a failure.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        let stopped = run("rpc.nfsd", &["0"])
            .and_then(|_| run("exportfs", &["-u", &self.export()]))
            .and_then(|_| run("exportfs", &["-f"]));
        self.daemon.kill()?;
        self.daemon.wait()?;
        stopped.map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` this only fails.
        let _ = self.end();
    }
}
