// SPDX-License-Identifier: GPL-2.0

//! A file system on the device, and processes that use it.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::Result;
use nix::errno::Errno;

use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sectors::{expect_same, stamped};

/// The size of the file that is used during the removal.
pub const LEN: usize = PMD;

/// A file system with DAX and a file.
pub struct Fixture {
    region: u32,
    pub mount: Mount,
}

impl Fixture {
    /// Makes the file system on an existing disk.
    pub fn on(region: u32, disk: &Disk) -> Result<Fixture> {
        let node = disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        fs::write(mount.path("file"), stamped(LEN, region.into()))?;
        run("sync", &["-f", &mount.path("file").to_string_lossy()])?;
        Ok(Fixture { region, mount })
    }

    pub fn build(lab: &Lab, region: u32, mode: Mode) -> Result<Fixture> {
        let Prepared { disk, .. } = lab.prepare_in(region, mode)?;
        Fixture::on(region, &disk)
    }

    /// After the device was bound again: checks that the contents are intact.
    pub fn expect_intact(self, disk: &Disk) -> Result<()> {
        self.mount.unmount()?;
        let node = disk.node_str();
        let mount = Ext4.mount(&node, "dax=always")?;
        let found = fs::read(mount.path("file"))?;
        expect_same("the file", &found, &stamped(LEN, self.region.into()))?;
        mount.unmount()?;
        Ext4.check(&node)
    }

    /// Starts a process that reads the file through a mapping until it gets a signal.
    pub fn start_reader(&self) -> Result<Child> {
        let path = self.mount.path("file");
        Child::start_ready("the reader", |link| read_for_ever(&path, link))
    }

    /// Starts a process that reads and writes with system calls until one fails.
    pub fn start_caller(&self) -> Result<Child> {
        let path = self.mount.path("file");
        let bytes = stamped(LEN, self.region.into());
        Child::start_ready("the caller", |link| call_until_error(&path, &bytes, link))
    }
}

pub fn read_for_ever(path: &Path, link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    let read_all = || {
        for page in (0..LEN).step_by(PAGE) {
            mapping.load(page);
        }
    };
    read_all();
    link.say("ready")?;
    loop {
        read_all();
    }
}

pub fn call_until_error(path: &Path, bytes: &[u8], link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(path)?;
    let round = |buffer: &mut [u8]| -> io::Result<()> {
        file.write_all_at(bytes, 0)?;
        file.sync_data()?;
        file.read_exact_at(buffer, 0)
    };
    let mut buffer = vec![0; bytes.len()];
    round(&mut buffer)?;
    link.say("ready")?;
    loop {
        let result = round(&mut buffer);
        if result.is_err() {
            // A file system that could not write its journal is read-only.
            let right = [Errno::EIO, Errno::ENXIO, Errno::ENODEV, Errno::EROFS];
            errno::expect("calls when the device has gone", result, &right)?;
            return errno::expect(
                "reading after that",
                file.read_exact_at(&mut buffer, 0),
                &right,
            )
            .map(drop);
        }
    }
}
