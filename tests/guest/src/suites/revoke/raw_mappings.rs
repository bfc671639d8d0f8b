// SPDX-License-Identifier: GPL-2.0

//! Mappings of the disk itself, or of a partition. They are of the page cache of the block device,
//! not of the memory of the device.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::Result;
use nix::sys::signal::Signal;

use super::fixture::{LEN, contents};
use super::users::{SIGNAL_LIMIT, read_for_ever, write_for_ever};
use super::{Fs, UNBIND_LIMIT};
use crate::disk::{Access, Disk};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::sectors::{Buffer, expect_same};

/// The number of partitions. The first one has room for a file system.
const PARTITIONS: u32 = 20;

fn table() -> String {
    let small = "size=16384\n".repeat(PARTITIONS as usize - 1);
    format!("label: gpt\nstart=4096, size=409600\n{small}")
}

/// Starts a process that reads the start of the disk through a mapping until that fails.
fn start_reader(disk: &Disk) -> Result<Child> {
    Child::start_ready(format!("the reader of {disk}"), |link| {
        let file = disk.open_read_only()?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, false)?;
        drop(file);
        read_for_ever(&mapping, link)
    })
}

/// As [`start_reader`], but stores the [`contents`] all the time.
fn start_writer(disk: &Disk) -> Result<Child> {
    Child::start_ready(format!("the writer of {disk}"), |link| {
        let file = disk.open(Access::Buffered)?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
        drop(file);
        mapping.write(0, &contents());
        write_for_ever(&mapping, link)
    })
}

/// Starts a process that writes by system calls until that fails. It has not mapped anything.
fn start_caller(disk: &Disk) -> Result<Child> {
    Child::start_ready(format!("the caller for {disk}"), |link| {
        let file = disk.open(Access::Buffered)?;
        let write = || file.write_all_at(&contents(), 0);
        write()?;
        link.say("ready")?;
        while write().is_ok() {}
        Ok(())
    })
}

/// Unbinds the device, and expects that the users get SIGBUS.
fn unbind(prepared: &Prepared, users: &mut [Child]) -> Result<()> {
    let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT)?;
    for user in users {
        user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    }
    expect_no_thread_stuck()
}

/// Expects that what the writer has stored before the unbind is on the medium.
fn expect_stored(disk: &Disk) -> Result<()> {
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was stored", &found, &contents())
}

/// Expects that the file system and its file are in order.
fn expect_intact(disk: &Disk) -> Result<()> {
    let node = disk.node_str();
    let mount = Fs::Ext4.mount(&node)?;
    expect_same("the file", &fs::read(mount.path("file"))?, &contents())?;
    mount.unmount()?;
    Fs::Ext4.check(&node)
}

/// The whole disk, in a mode without DAX and in one with it.
pub fn disk_is_mapped(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let prepared = lab.prepare(mode)?;
        let disk = &prepared.disk;
        let mut users = [start_writer(disk)?, start_reader(disk)?];
        unbind(&prepared, &mut users)?;
        prepared.bound.bind(lab.driver)?;
        expect_stored(disk)?;
    }
    Ok(())
}

/// The last partition, beside one that is mounted. The whole disk is mapped too.
pub fn partition_is_mapped(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    prepared.disk.cut(&table())?;
    let (first, last) = (
        prepared.disk.partition(1),
        prepared.disk.partition(PARTITIONS),
    );
    let mount = Fs::Ext4.make_and_mount(&first.node_str())?;
    fs::write(mount.path("file"), contents())?;
    let mut caller = start_caller(&last)?;
    let mut users = [
        start_writer(&last)?,
        start_reader(&last)?,
        start_reader(&prepared.disk)?,
    ];
    unbind(&prepared, &mut users)?;
    caller.expect_done(SIGNAL_LIMIT)?;
    mount.unmount()?;

    prepared.bound.bind(lab.driver)?;
    expect_stored(&last)?;
    expect_intact(&first)
}

/// A disk that is mounted. The file system keeps its buffers in the cache that is mapped.
pub fn mounted_disk_is_mapped(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let mount = Fs::Ext4.make_and_mount(&prepared.disk.node_str())?;
    fs::write(mount.path("file"), contents())?;
    unbind(&prepared, &mut [start_reader(&prepared.disk)?])?;
    mount.unmount()?;

    prepared.bound.bind(lab.driver)?;
    expect_intact(&prepared.disk)
}
