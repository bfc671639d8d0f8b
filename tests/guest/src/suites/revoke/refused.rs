// SPDX-License-Identifier: GPL-2.0

//! Uses of a DAX file that the kernel refuses, on which the driver relies: each would keep a page
//! or its contents without a reference that an unbind finds, or for an unlimited time. Without DAX
//! the same uses are allowed.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::fixture::Fixture;
use super::{Fs, Under};
use crate::command::run;
use crate::errno;
use crate::filesystem::Mount;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::syscall::{is_dax, swap_off, swap_on};
use crate::sysfs;
use crate::uring::Ring;

/// Buffers that are registered with io_uring, which pins them as RDMA and vfio do.
pub fn long_term_pins(lab: &mut Lab) -> Result<()> {
    let ring = match Ring::new() {
        Err(error) if [Some(libc::ENOSYS), Some(libc::EPERM)].contains(&error.raw_os_error()) => {
            return Err(Skip("io_uring is disabled").into());
        }
        ring => ring.context("making a ring")?,
    };
    for on in [Fs::Ext4, Fs::XfsRmap] {
        let mut fixture = Fixture::build(lab, on, Under::Whole)?;
        for sharing in [Sharing::Shared, Sharing::Private] {
            let mapping = fixture.map(sharing)?;
            // With a page table entry, and without one.
            mapping.load(0);
            for from in [0, PAGE] {
                let result = ring.register(&mapping, from, PAGE);
                errno::expect("registering a buffer", result, &[Errno::EOPNOTSUPP])?;
            }
        }
        fixture.remove_devices()?;
    }
    // No other reason than DAX.
    ring.register(&Mapping::anonymous(PAGE)?, 0, PAGE)
        .context("registering anonymous memory")
}

/// Calls `attempt` with a file that `make` has made: with DAX, where it must fail, and without DAX.
fn refused_with_dax(
    lab: &Lab,
    on: Fs,
    right: Errno,
    make: impl Fn(&Path) -> Result<()>,
    attempt: impl Fn(&Path) -> io::Result<()>,
) -> Result<()> {
    let mut fixture = Fixture::build(lab, on, Under::Whole)?;
    let file = fixture.root()?.join("attempted");
    make(&file)?;
    nix::unistd::sync();
    ensure!(is_dax(&file)?, "it is not a DAX file");
    errno::expect("with DAX", attempt(&file), &[right])?;
    fixture.unmount()?;

    let node = lab.ready(0)?.disk.node_str();
    let mount = Mount::new(on.kind(), &node, "dax=never")?;
    ensure!(!is_dax(&file)?, "it is a DAX file");
    attempt(&file).context("without DAX")?;
    mount.unmount()
}

/// The size of a swap file.
const SWAP: usize = 256 * PAGE;

/// A swap file: its pages would be read and written past the page cache.
pub fn swap_file(lab: &mut Lab, on: Fs) -> Result<()> {
    let make = |file: &Path| {
        fs::write(file, vec![0; SWAP])?;
        run("busybox", &["chmod", "600", &file.to_string_lossy()])?;
        run("busybox", &["mkswap", &file.to_string_lossy()]).map(drop)
    };
    refused_with_dax(lab, on, Errno::EINVAL, make, |file| {
        swap_on(file)?;
        swap_off(file)
    })
}

const TRACEFS: &str = "/sys/kernel/tracing";
const PROBE: &str = "pmem_rs/probed";

/// A probe in a program, removed when it is dropped.
struct Probe;

impl Probe {
    fn file() -> PathBuf {
        Path::new(TRACEFS).join("uprobe_events")
    }

    fn write(line: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).open(Probe::file())?;
        file.write_all(line.as_bytes())
    }

    fn enable(&self, value: &str) -> io::Result<()> {
        let file = Path::new(TRACEFS).join("events").join(PROBE).join("enable");
        sysfs::try_write(file, value)
    }

    /// Defines a probe at the start of the text. It is placed when it is enabled.
    fn new(program: &Path) -> io::Result<Probe> {
        Probe::write(&format!("p:{PROBE} {}:0x1000\n", program.display()))?;
        Ok(Probe)
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // A failure shows when the file system is unmounted.
        let _ = self.enable("0");
        let _ = Probe::write(&format!("-:{PROBE}\n"));
    }
}

/// A probe in a program: the kernel would read the program through the page cache.
pub fn uprobe(lab: &mut Lab, on: Fs) -> Result<()> {
    if !Probe::file().exists() {
        return Err(Skip("the kernel has no uprobes").into());
    }
    let make = |file: &Path| Ok(fs::copy("/bin/busybox", file).map(drop)?);
    refused_with_dax(lab, on, Errno::EIO, make, |file| {
        Probe::new(file)?.enable("1")
    })
}
