// SPDX-License-Identifier: GPL-2.0

//! Data that were reported as durable are intact after a power cut, and after power-off. There are
//! three boots on the same NVDIMMs; the runner cuts the power of the first.

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared, holder};
use crate::mapping::{Mapping, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall::pwritev2;

/// Nothing is unmounted or synced after these tests, so the machine is busy when the power is cut.
pub const WRITE: Suite = Suite {
    name: "persistence_write",
    tests: &[
        Test::step("ext4", |lab| write(lab, 0, Ext4)),
        Test::step("xfs", |lab| write(lab, 1, Xfs)),
        Test::step("raw", write_raw),
    ],
};

pub const AFTER_POWER_CUT: Suite = Suite {
    name: "persistence_after_power_cut",
    tests: &[
        Test::new("ext4", |lab| find_and_replace(lab, 0, Ext4)),
        Test::new("xfs", |lab| find_and_replace(lab, 1, Xfs)),
        Test::new("raw", find_and_replace_raw),
    ],
};

pub const AFTER_POWER_OFF: Suite = Suite {
    name: "persistence_after_power_off",
    tests: &[
        Test::new("ext4", |lab| find_again(lab, 0, Ext4)),
        Test::new("xfs", |lab| find_again(lab, 1, Xfs)),
        Test::new("raw", |lab| expect_raw(lab, 3)),
    ],
};

pub const LEN: usize = 4 << 20;
/// The index of the region that is used without a file system.
const RAW: u32 = 2;

fn write(lab: &mut Lab, region: u32, fs: FileSystem) -> Result<()> {
    let node = lab.prepare_in(region, Mode::FsdaxMem)?.disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    write_both_ways(&mount, 1)?;
    mount.leave();
    Ok(())
}

/// Writes one file by `write` and `fsync`, and one through a mapping that needs neither: a
/// `MAP_SYNC` page becomes writable only when the metadata of the file system are durable.
pub fn write_both_ways(mount: &Mount, tag: u64) -> Result<()> {
    let file = File::create(mount.path("written"))?;
    file.write_all_at(&stamped(LEN, tag), 0)?;
    file.sync_all()?;

    let path = mount.path("mapped");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(LEN as u64)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &stamped(LEN, tag + 1));
    mapping.flush_cpu_cache();
    Ok(())
}

pub fn expect_both(mount: &Mount, tag: u64) -> Result<()> {
    expect_same(
        "the written file",
        &fs::read(mount.path("written"))?,
        &stamped(LEN, tag),
    )?;
    expect_same(
        "the mapped file",
        &fs::read(mount.path("mapped"))?,
        &stamped(LEN, tag + 1),
    )
}

/// The disk that the first boot has made.
pub fn disk(lab: &Lab, region: u32) -> Result<Disk> {
    let bound = holder(&lab.namespace(region)?)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Disk::named(bound.disk_name()?))
}

fn find_and_replace(lab: &mut Lab, region: u32, fs: FileSystem) -> Result<()> {
    let node = disk(lab, region)?.node_str();
    let mount = fs.mount(&node, "dax=always")?;
    expect_both(&mount, 1)?;
    write_both_ways(&mount, 3)?;
    mount.unmount()?;
    fs.check(&node)
}

fn find_again(lab: &mut Lab, region: u32, fs: FileSystem) -> Result<()> {
    let node = disk(lab, region)?.node_str();
    fs.check(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    expect_both(&mount, 3)?;
    mount.unmount()
}

/// Writes one half with FUA, the other one with a flush at the end.
fn write_on(disk: &Disk, tag: u64) -> Result<()> {
    let file = disk.open(Access::Direct)?;
    let bytes = Buffer::stamped(LEN, tag);
    let (durably, plainly) = bytes.split_at(LEN / 2);
    let written = pwritev2(&file, &[IoSlice::new(durably)], 512, libc::RWF_DSYNC)?;
    ensure!(
        written == durably.len(),
        "only {written} bytes were written"
    );
    file.write_all_at(plainly, 512 + durably.len() as u64)?;
    Ok(file.sync_all()?)
}

fn write_raw(lab: &mut Lab) -> Result<()> {
    let Prepared { disk, .. } = lab.prepare_in(RAW, Mode::Raw)?;
    write_on(&disk, 1)
}

fn expect_raw(lab: &mut Lab, tag: u64) -> Result<()> {
    let mut found = Buffer::new(LEN);
    disk(lab, RAW)?
        .open(Access::Direct)?
        .read_exact_at(&mut found, 512)?;
    expect_same("the raw namespace", &found, &stamped(LEN, tag))
}

fn find_and_replace_raw(lab: &mut Lab) -> Result<()> {
    expect_raw(lab, 1)?;
    write_on(&disk(lab, RAW)?, 3)
}
