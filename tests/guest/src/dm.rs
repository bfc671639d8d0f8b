// SPDX-License-Identifier: GPL-2.0

//! Device-mapper devices.

use anyhow::{Result, ensure};

use crate::command::run;
use crate::disk::Disk;

/// A mapped device, removed when it is dropped.
#[derive(Debug)]
pub struct Mapped {
    name: String,
    disk: Disk,
}

impl Mapped {
    /// Makes the device. The guest has no udev, so it is used under its kernel name.
    pub fn new(name: &str, table: &str) -> Result<Mapped> {
        run("dmsetup", &["create", name, "--table", table])?;
        let columns = ["info", "-c", "--noheadings", "-o", "blkdevname", name];
        let disk = run("dmsetup", &columns)?.trim().to_owned();
        ensure!(disk.starts_with("dm-"), "{name} is the disk `{disk}`");
        Ok(Mapped {
            name: name.to_owned(),
            disk: Disk::named(disk),
        })
    }

    /// The block device.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Suspends the device: requests wait until [`Mapped::resume`].
    pub fn suspend(&self) -> Result<()> {
        run(
            "dmsetup",
            &["suspend", "--noflush", "--nolockfs", &self.name],
        )
        .map(drop)
    }

    /// Resumes the device. Requests that were waiting go first.
    pub fn resume(&self) -> Result<()> {
        run("dmsetup", &["resume", &self.name]).map(drop)
    }

    /// Replaces the table.
    pub fn replace(&self, table: &str) -> Result<()> {
        run("dmsetup", &["load", &self.name, "--table", table])?;
        run("dmsetup", &["suspend", &self.name])?;
        self.resume()
    }

    /// Removes the device. Unlike `drop`, this reports a failure.
    pub fn remove(self) -> Result<()> {
        // A file system with pinned pages is shut down only a moment after the last unpin.
        run("dmsetup", &["remove", "--retry", &self.name])?;
        ensure!(!self.disk.exists(), "{} is still there", self.disk);
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // A failed test may leave its device behind. If it cannot be removed, the cleanup after the
        // test reports that. Waiting requests would prevent the removal.
        let _ = self.resume();
        let _ = run("dmsetup", &["remove", "--retry", &self.name]);
    }
}
