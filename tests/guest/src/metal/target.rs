// SPDX-License-Identifier: GPL-2.0

//! The namespaces that the user has named, and the checks that they can be measured without harm.
//! The checks change nothing. Each one that fails says in a line what to do.

use std::fmt;
use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::unistd::geteuid;

use crate::disk::Disk;
use crate::driver::Driver;
use crate::lab::holder;
use crate::nd::Device;
use crate::sysfs;

/// A namespace as it was found.
pub struct Target {
    namespace: Device,
    /// The device that has the driver: the namespace, or what claims it.
    pub bound: Device,
    pub driver: Driver,
    disk: Disk,
    bytes: u64,
}

/// How long a file system may take to go after its last process.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much of a device must be empty.
const START: usize = 1 << 20;
/// The cases have files of 256 MiB.
const LEAST_MIB: u64 = 384;
/// The value of `mode` for a namespace that has a disk with DAX.
const FSDAX: &str = "memory";
const EXAMPLE: &str = "make bench-metal NAMESPACES=\"namespace0.0 namespace1.0\"";

/// Checks the namespaces with these names.
pub fn check(names: &str, overwrite: bool) -> Result<[Target; 2]> {
    ensure!(
        geteuid().is_root(),
        "root rights are needed to bind drivers: sudo {EXAMPLE}"
    );
    let names: Vec<&str> = names.split_whitespace().collect();
    let &[first, second] = names.as_slice() else {
        bail!("two namespaces are needed, `ndctl list -N` shows them: {EXAMPLE}");
    };
    ensure!(
        first != second,
        "two different namespaces are needed: {EXAMPLE}"
    );
    let targets = [Target::find(first)?, Target::find(second)?];
    for target in &targets {
        target.check_idle()?;
        ensure!(
            overwrite || !target.has_data()?,
            "{} has data in its first MiB: if all its data may be lost, add OVERWRITE=yes",
            target.title()
        );
    }
    let [first, second] = &targets;
    ensure!(
        first.bytes == second.bytes,
        "{} has {} bytes and {} has {}: namespaces of the same size and mode are needed",
        first.title(),
        first.bytes,
        second.title(),
        second.bytes
    );
    ensure!(
        first.bytes >> 20 >= LEAST_MIB,
        "{} has {} MiB: namespaces of at least {LEAST_MIB} MiB are needed",
        first.title(),
        first.bytes >> 20
    );
    Ok(targets)
}

impl Target {
    fn find(name: &str) -> Result<Target> {
        let namespace = Device::named(name);
        ensure!(
            name.starts_with("namespace") && namespace.path("").exists(),
            "there is no {name}: `ndctl list -N` shows the namespaces"
        );
        let bound = holder(&namespace)?;
        let drivers = [Driver::NdPmem, Driver::PmemRs];
        let driver = bound
            .driver()
            .and_then(|bound| drivers.into_iter().find(|driver| driver.name() == bound))
            .with_context(|| {
                format!(
                    "{name} is bound to neither nd_pmem nor pmem_rs: ndctl enable-namespace {name}"
                )
            })?;
        let mode = namespace.get("mode")?;
        ensure!(
            mode == FSDAX,
            "{name} is in the mode `{mode}`, not fsdax: `ndctl create-namespace -f -e {name} -m \
             fsdax` changes that, and deletes its data"
        );
        let disk = Disk::named(bound.disk_name()?);
        ensure!(
            disk.get("ro")? == "0",
            "{name} is read-only: write 0 to `read_only` of its region"
        );
        let bytes = disk.bytes()?;
        Ok(Target {
            namespace,
            bound,
            driver,
            disk,
            bytes,
        })
    }

    /// The name of the namespace.
    pub fn name(&self) -> &str {
        self.namespace.name()
    }

    fn title(&self) -> String {
        format!("{} ({})", self.namespace, self.disk.node_str())
    }

    /// Checks that the disk and its partitions are not in use.
    fn check_idle(&self) -> Result<()> {
        let mut options = fs::File::options();
        options.read(true).custom_flags(libc::O_EXCL);
        let title = self.title();
        match options.open(self.disk.node()) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {
                let holders = sysfs::names(self.disk.path("holders"))?;
                if let Some(point) = self.mount_point()? {
                    bail!("{title} is mounted: umount {point}");
                }
                ensure!(
                    holders.is_empty(),
                    "{title} has the holders {}: remove them",
                    holders.join(" ")
                );
                bail!("{title} is in use, as swap or by its partitions: end that")
            }
            Err(error) => Err(error).with_context(|| format!("opening {title}")),
        }
    }

    /// Waits until the disk is not in use.
    pub fn await_idle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.check_idle() {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(50)),
                result => return result,
            }
        }
    }

    fn mount_point(&self) -> Result<Option<String>> {
        let number = self.disk.get("dev")?;
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mut mounts = mounts.lines().map(|line| line.split(' '));
        Ok(mounts.find_map(|mut words| {
            let fits = words.nth(2)? == number;
            let point = words.nth(1)?;
            fits.then(|| point.to_owned())
        }))
    }

    fn has_data(&self) -> Result<bool> {
        let mut start = vec![0; START];
        let mut disk = self.disk.open_read_only()?;
        disk.read_exact(&mut start)
            .with_context(|| format!("reading {}", self.title()))?;
        Ok(start.iter().any(|&byte| byte != 0))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} has {} MiB and was bound to {}.",
            self.namespace,
            self.bytes >> 20,
            self.driver.name()
        )
    }
}
