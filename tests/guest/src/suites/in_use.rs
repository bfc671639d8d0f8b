// SPDX-License-Identifier: GPL-2.0

//! Power-off while file systems are mounted and their files are mapped, pinned and written to, and
//! while a range is retired. There are two boots on the same NVDIMMs. In the first, PID 1 starts
//! the [`users`](start) after the last test and powers off at once; the runner checks the console.
//! The second checks the durable data.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::unistd::pipe;

use super::persistence::{LEN, disk, expect_both, write_both_ways};
use super::{Suite, Test};
use crate::disk::Access;
use crate::driver::Driver;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::Child;
use crate::retired::{self, TIMEOUT};

pub const POWER_OFF: Suite = Suite {
    name: "in_use_power_off",
    tests: &[
        Test::step("to_be_retired", |lab| {
            retired::set_timeout(lab.driver, TIMEOUT)?;
            write(lab, RETIRED, Ext4)
        }),
        Test::step("ext4", |lab| write(lab, 0, Ext4)),
        Test::step("xfs", |lab| write(lab, 1, Xfs)),
    ],
};

pub const AFTER_POWER_OFF: Suite = Suite {
    name: "in_use_after_power_off",
    tests: &[
        Test::new("ext4", |lab| find(lab, 0, Ext4)),
        Test::new("xfs", |lab| find(lab, 1, Xfs)),
        Test::new("retired", |lab| find(lab, RETIRED, Ext4)),
    ],
};

/// The index of the region that is unbound before power-off while a pipe has pages of it.
const RETIRED: u32 = 2;

/// How many bytes of a file are in a pipe.
const PIPED: usize = 8 * PAGE;

fn write(lab: &mut Lab, region: u32, fs: FileSystem) -> Result<()> {
    let node = lab.prepare_in(region, Mode::FsdaxMem)?.disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    write_both_ways(&mount, 1)?;
    fs::write(mount.path("busy"), vec![0; LEN])?;
    mount.leave();
    Ok(())
}

fn find(lab: &mut Lab, region: u32, fs: FileSystem) -> Result<()> {
    let node = disk(lab, region)?.node_str();
    let mount = fs.mount(&node, "dax=always")?;
    expect_both(&mount, 1)?;
    mount.unmount()?;
    fs.check(&node)
}

/// The users of the devices during power-off.
pub struct Users {
    processes: Vec<Child>,
    mappings: Vec<Mapping>,
    pipes: Vec<[OwnedFd; 2]>,
}

/// Starts the users, in child processes and in this one, and returns when all are running.
pub fn start(lab: &Lab) -> Result<Users> {
    let mut users = Users {
        processes: Vec::new(),
        mappings: Vec::new(),
        pipes: Vec::new(),
    };
    for region in [0, 1] {
        users.use_mount(&Mount::of(&disk(lab, region)?.node_str()))?;
    }
    if lab.driver == Driver::PmemRs {
        let mount = Mount::of(&disk(lab, RETIRED)?.node_str());
        drop(users.pin(&mount)?);
        mount.leave();
        lab.holder_in(RETIRED)?.unbind()?;
        retired::expect(1)?;
    }
    Ok(users)
}

impl Users {
    /// This process maps and pins the file. Other processes read it, write to it through a mapping,
    /// and write to it durably with system calls.
    fn use_mount(&mut self, mount: &Mount) -> Result<()> {
        let mapping = self.pin(mount)?;
        self.mappings.push(mapping);
        let readers = Child::start_ready("the reader", |link| {
            let mapping = map(mount)?;
            link.say("ready")?;
            for page in (0..LEN).step_by(PAGE).cycle() {
                mapping.load(page);
            }
            Ok(())
        })?;
        let writer = Child::start_ready("the writer", |link| {
            let mapping = map(mount)?;
            link.say("ready")?;
            for (round, page) in (0..LEN).step_by(PAGE).cycle().enumerate() {
                mapping.store(page, round as u8);
            }
            Ok(())
        })?;
        let caller = Child::start_ready("the process that calls fsync", |link| {
            let file = File::create(mount.path("log"))?;
            link.say("ready")?;
            for round in 0_u64.. {
                file.write_all_at(&round.to_le_bytes(), round * 8 % LEN as u64)?;
                file.sync_all()?;
            }
            Ok(())
        })?;
        self.processes.extend([readers, writer, caller]);
        Ok(())
    }

    /// Puts pages of the file into a pipe, and returns the mapping of these pages.
    fn pin(&mut self, mount: &Mount) -> Result<Mapping> {
        let mapping = map(mount)?;
        let (reader, writer) = pipe()?;
        let given = mapping.give_to_pipe(0, PIPED, &writer)?;
        ensure!(given == PIPED, "{given} bytes were put into the pipe");
        self.pipes.push([reader, writer]);
        Ok(mapping)
    }
}

fn map(mount: &Mount) -> Result<Mapping> {
    let file = Access::Buffered.open(&mount.path("busy"))?;
    Ok(Mapping::of_pages(&file, LEN, Sharing::Shared, true)?)
}
