// SPDX-License-Identifier: GPL-2.0

//! Device-mapper devices on top of pmem disks.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::lab::Lab;
use crate::mapping::{Mapping, PMD, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, expect_same, stamped};
use crate::syscall::is_dax;

pub const SUITE: Suite = Suite {
    name: "dm",
    tests: &[
        Test::new("ext4_with_dax_on_linear", |lab| dax_on_linear(lab, Ext4)),
        Test::new("xfs_with_dax_on_linear", |lab| dax_on_linear(lab, Xfs)),
        Test::new("linear_over_two_disks", linear_over_two),
        Test::new("linear_over_raw_has_no_dax", linear_over_raw),
    ],
};

const NAME: &str = "over";

fn sectors(disk: &Disk) -> Result<u64> {
    Ok(disk.bytes()? / 512)
}

fn check_dax(fs: FileSystem, disk: &Disk) -> Result<()> {
    const LEN: usize = 4 * PMD;
    disk.expect("queue/dax", "1")?;
    let node = disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(LEN, 1))?;
    ensure!(is_dax(&path)?, "no DAX on {disk}");
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    expect_same(
        "through the mapping",
        &mapping.to_vec(0, LEN),
        &stamped(LEN, 1),
    )?;
    mapping.write(0, &stamped(LEN, 2));
    drop((mapping, file));
    expect_same("through read", &std::fs::read(&path)?, &stamped(LEN, 2))?;
    mount.unmount()?;
    fs.check(&node)
}

fn dax_on_linear(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let below = &prepared.disk;
    let length = sectors(below)? - 4096;
    let over = Mapped::new(
        NAME,
        &format!("0 {length} linear {} 4096", below.node_str()),
    )?;
    check_dax(fs, over.disk())?;
    over.remove()?;
    prepared.bound.unbind()?;
    prepared.bound.bind(lab.driver)
}

/// The border between the disks is in the middle of the file.
fn linear_over_two(lab: &mut Lab) -> Result<()> {
    let first = lab.prepare_in(0, Mode::FsdaxMem)?.disk;
    let second = lab.prepare_in(1, Mode::FsdaxMem)?.disk;
    let half = 128 << 11;
    let (low, high) = (first.node_str(), second.node_str());
    let over = Mapped::new(
        NAME,
        &format!("0 {half} linear {low} 8192\n{half} {half} linear {high} 4096"),
    )?;
    let file = over.disk().open(Access::Direct)?;
    let border = half * 512 - (1 << 20);
    let right = Buffer::stamped(2 << 20, 3);
    file.write_all_at(&right, border)?;
    let mut found = Buffer::new(1 << 20);
    second
        .open(Access::Direct)?
        .read_exact_at(&mut found, 4096 * 512)?;
    expect_same("the second disk", &found, &right[1 << 20..])?;
    Model::of(&file, border, 2 << 20)?.check("across the border", 0, &right)?;
    drop(file);
    check_dax(Ext4, over.disk())?;
    over.remove()
}

fn linear_over_raw(lab: &mut Lab) -> Result<()> {
    let below = lab.prepare(Mode::Raw)?.disk;
    let over = Mapped::new(
        NAME,
        &format!("0 {} linear {} 0", sectors(&below)?, below.node_str()),
    )?;
    over.disk().expect("queue/dax", "0")?;
    let right = Buffer::stamped(1 << 20, 4);
    over.disk()
        .open(Access::Direct)?
        .write_all_at(&right, 512)?;
    let mut found = Buffer::new(1 << 20);
    below.open(Access::Direct)?.read_exact_at(&mut found, 512)?;
    expect_same("the disk below", &found, &right)?;
    over.remove()
}
