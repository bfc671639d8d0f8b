// SPDX-License-Identifier: GPL-2.0

//! Block devices.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::command::{command, run};
use crate::syscall;
use crate::sysfs;

/// How a disk or file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Through the page cache.
    Buffered,
    /// `O_DIRECT`.
    Direct,
}

impl Access {
    /// Opens a file that exists for reading and writing.
    pub fn open(self, path: &Path) -> Result<File> {
        let flags = if self == Access::Direct {
            libc::O_DIRECT
        } else {
            0
        };
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| format!("opening {} ({self:?})", path.display()))
    }
}

/// The arguments of modprobe for a disk in RAM, `/dev/nullb0`. Both kernels have the module.
pub const IN_MEMORY: [&str; 4] = ["null_blk", "nr_devices=1", "gb=1", "memory_backed=1"];

/// A disk or a partition of one, by its name in `/dev` and `/sys/class/block`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk(String);

impl Disk {
    /// Names a disk. It need not exist.
    pub fn named(name: impl Into<String>) -> Disk {
        Disk(name.into())
    }

    /// All disks whose name starts with `prefix`, without partitions.
    pub fn all(prefix: &str) -> Result<Vec<Disk>> {
        let names = sysfs::names("/sys/block")?;
        Ok(names
            .into_iter()
            .filter(|name| name.starts_with(prefix))
            .map(Disk)
            .collect())
    }

    /// The name, such as `pmem0`.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// A partition of this disk.
    pub fn partition(&self, number: u32) -> Disk {
        // A name that ends in a digit has a letter before the number of the partition.
        let between = if self.0.ends_with(|letter: char| letter.is_ascii_digit()) {
            "p"
        } else {
            ""
        };
        Disk(format!("{}{between}{number}", self.0))
    }

    /// Writes a partition table, given as input for `sfdisk`.
    pub fn cut(&self, table: &str) -> Result<()> {
        let mut sfdisk = command("sfdisk")
            .args(["--quiet", "--wipe", "always", "--no-tell-kernel"])
            .arg(self.node())
            .stdin(Stdio::piped())
            .spawn()
            .context("starting sfdisk")?;
        sfdisk
            .stdin
            .take()
            .context("sfdisk takes no input")?
            .write_all(table.as_bytes())?;
        let status = sfdisk.wait()?;
        ensure!(status.success(), "sfdisk: {status}");
        run("blockdev", &["--rereadpt", &self.node_str()]).map(drop)
    }

    /// The device node.
    pub fn node(&self) -> PathBuf {
        Path::new("/dev").join(&self.0)
    }

    /// The device node, as an argument for other programs.
    pub fn node_str(&self) -> String {
        format!("/dev/{}", self.0)
    }

    /// The path of a sysfs attribute.
    pub fn path(&self, attribute: &str) -> PathBuf {
        Path::new("/sys/class/block").join(&self.0).join(attribute)
    }

    /// Reads a sysfs attribute.
    pub fn get(&self, attribute: &str) -> Result<String> {
        sysfs::read(self.path(attribute))
    }

    /// Whether the disk exists in sysfs and in `/dev`.
    pub fn exists(&self) -> bool {
        self.path("").exists() && self.node().exists()
    }

    /// Opens the disk for reading and writing.
    pub fn open(&self, access: Access) -> Result<File> {
        access.open(&self.node())
    }

    /// Opens the disk for reading only.
    pub fn open_read_only(&self) -> Result<File> {
        File::open(self.node()).with_context(|| format!("opening {self} for reading"))
    }

    /// The size in bytes.
    pub fn bytes(&self) -> Result<u64> {
        Ok(syscall::block_device_bytes(&self.open_read_only()?)?)
    }

    /// The I/O statistics of the disk.
    pub fn statistics(&self) -> Result<Statistics> {
        self.get("stat")?.parse()
    }

    /// Checks an attribute.
    pub fn expect(&self, attribute: &str, value: &str) -> Result<()> {
        let found = self.get(attribute)?;
        ensure!(
            found == value,
            "{self}: {attribute} is `{found}`, expected `{value}`"
        );
        Ok(())
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The counters of `/sys/block/*/stat` that matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub reads: u64,
    pub sectors_read: u64,
    pub writes: u64,
    pub sectors_written: u64,
    pub in_flight: u64,
}

impl Statistics {
    /// The difference between `before` and this.
    pub fn since(self, before: Statistics) -> Statistics {
        Statistics {
            reads: self.reads - before.reads,
            sectors_read: self.sectors_read - before.sectors_read,
            writes: self.writes - before.writes,
            sectors_written: self.sectors_written - before.sectors_written,
            in_flight: self.in_flight,
        }
    }
}

impl FromStr for Statistics {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Statistics> {
        let fields = text
            .split_whitespace()
            .map(str::parse)
            .collect::<Result<Vec<u64>, _>>()?;
        let &[
            reads,
            _,
            sectors_read,
            _,
            writes,
            _,
            sectors_written,
            _,
            in_flight,
            ..,
        ] = fields.as_slice()
        else {
            anyhow::bail!("too few fields in `{text}`");
        };
        Ok(Statistics {
            reads,
            sectors_read,
            writes,
            sectors_written,
            in_flight,
        })
    }
}
