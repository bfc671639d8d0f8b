// SPDX-License-Identifier: GPL-2.0

//! Processes that use the devices while the system goes to sleep and comes back.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::aio::{self, Request};
use crate::disk::Disk;
use crate::filesystem::Mount;
use crate::mapping::{Mapping, PAGE};
use crate::process::{Child, Link};
use crate::sectors::{Buffer, expect_same, stamped};

/// How many durable writes to a disk are in flight.
const DEPTH: usize = 16;
/// The size of each file.
const LEN: usize = 16 * PAGE;
/// How long a process may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// The processes. Each compares in the end what is there with what it has written last.
pub struct Load(Vec<Child>);

impl Load {
    /// Starts a process for each disk with durable asynchronous writes to it, and for each file
    /// system one that writes and calls fsync, and one that stores to a mapping and calls msync.
    pub fn start(disks: &[&Disk], mounts: &[&Mount]) -> Result<Load> {
        let mut children = Vec::new();
        for disk in disks {
            children.push(Child::start_ready(
                format!("the writer of {disk}"),
                |link| write_disk(disk, link),
            )?);
        }
        for mount in mounts {
            let (written, mapped) = (mount.path("by-write"), mount.path("by-store"));
            let of = mount.point().display();
            children.push(Child::start_ready(format!("the writer on {of}"), |link| {
                write_file(&written, link)
            })?);
            children.push(Child::start_ready(
                format!("the mapping on {of}"),
                |link| store(&mapped, link),
            )?);
        }
        Ok(Load(children))
    }

    /// Ends the processes. Fails if a request of any has failed, or if data are lost.
    pub fn end(mut self) -> Result<()> {
        for child in &mut self.0 {
            ensure!(
                child.try_end()?.is_none(),
                "it has ended before the sleep was over: {:?}",
                child.expect_done(LIMIT)
            );
            child.go()?;
        }
        self.0
            .iter_mut()
            .try_for_each(|child| child.expect_done(LIMIT))
    }
}

fn open_durably(disk: &Disk) -> Result<File> {
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(disk.node())?)
}

/// Writes durably with several requests at once, and returns what was written.
fn write_round(file: &File, round: u64) -> Result<Buffer> {
    let bytes = Buffer::stamped(DEPTH * PAGE, round);
    let mut requests: Vec<Request<'_>> = bytes
        .chunks(PAGE)
        .enumerate()
        .map(|(index, bytes)| Request::Write(bytes, (index * PAGE) as u64))
        .collect();
    let results = aio::run(file, &mut requests)?;
    ensure!(
        results.iter().all(|result| *result == PAGE as i64),
        "round {round}: {results:?}"
    );
    Ok(bytes)
}

/// Writes durably to the disk, and compares.
pub fn write_disk_once(disk: &Disk, round: u64) -> Result<()> {
    let file = open_durably(disk)?;
    let last = write_round(&file, round)?;
    expect_on_disk(&file, &last)
}

fn expect_on_disk(file: &File, last: &Buffer) -> Result<()> {
    let mut found = Buffer::new(last.len());
    file.read_exact_at(&mut found, 0)?;
    expect_same("the disk", &found, last)
}

fn write_disk(disk: &Disk, link: &mut Link) -> Result<()> {
    let file = open_durably(disk)?;
    let mut last = write_round(&file, 0)?;
    link.say("ready")?;
    for round in 1.. {
        last = write_round(&file, round)?;
        if link.is_told_to_go()? {
            break;
        }
    }
    expect_on_disk(&file, &last)
}

fn write_file(path: &PathBuf, link: &mut Link) -> Result<()> {
    let file = File::create(path)?;
    let mut last = Vec::new();
    for round in 0.. {
        last = stamped(LEN, round);
        file.write_all_at(&last, 0)?;
        file.sync_all()?;
        if round == 0 {
            link.say("ready")?;
        }
        if link.is_told_to_go()? {
            break;
        }
    }
    expect_same("the written file", &fs::read(path)?, &last)
}

fn store(path: &PathBuf, link: &mut Link) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let mapping = Mapping::of_new_file(path, LEN)?;
    let mut last = Vec::new();
    for round in 0.. {
        last = stamped(LEN, round);
        mapping.write(0, &last);
        mapping.sync()?;
        if round == 0 {
            link.say("ready")?;
        }
        if link.is_told_to_go()? {
            break;
        }
    }
    expect_same("the mapped file", &fs::read(path)?, &last)
}
