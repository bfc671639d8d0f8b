// SPDX-License-Identifier: GPL-2.0

//! Device-mapper devices on top of pmem disks.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::block::expect_no_wait;
use super::platform::only_for_pmem_rs;
use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::errno;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, PMD, Sharing, need_huge_pages};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, expect_same, stamped};
use crate::stacked::Loop;
use crate::syscall::{self, is_dax};
use crate::tracing::FaultTrace;

pub const SUITE: Suite = Suite {
    name: "dm",
    tests: &[
        Test::new("ext4_with_dax_on_linear", |lab| dax_on_linear(lab, Ext4)),
        Test::new("xfs_with_dax_on_linear", |lab| dax_on_linear(lab, Xfs)),
        Test::new("linear_over_two_disks", linear_over_two),
        Test::new("ext4_pmds_on_stripe", |lab| pmds_on_stripe(lab, Ext4)),
        Test::new("xfs_pmds_on_stripe", |lab| pmds_on_stripe(lab, Xfs)),
        Test::new("linear_over_raw_has_no_dax", linear_over_raw),
        Test::new("nowait", nowait),
        Test::new("writers_in_the_kernel_are_refused", read_only_below),
        Test::new("mappings_are_taken_away_once", mappings_below).within(120),
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

/// The chunks are as large as a PMD, so every fault of a file maps a PMD, on both disks.
fn pmds_on_stripe(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 8 * PMD;
    const CHUNK: u64 = (PMD / 512) as u64;
    need_huge_pages()?;
    let disks = [lab.ready(0)?.disk, lab.ready(1)?.disk];
    let [low, high] = disks.each_ref().map(Disk::node_str);
    let length = 2 * (sectors(&disks[0])?.min(sectors(&disks[1])?) / CHUNK * CHUNK);
    let over = Mapped::new(
        NAME,
        &format!("0 {length} striped 2 {CHUNK} {low} 0 {high} 0"),
    )?;
    let node = over.disk().node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, LEN as i64)?;

    let access: [fn(&Mapping, usize); 2] = [
        |mapping, at| mapping.store(at, 1),
        |mapping, at| assert_eq!(mapping.load(at), 1),
    ];
    for access in access {
        let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
        let trace = FaultTrace::start()?;
        (0..LEN).step_by(PAGE).for_each(|at| access(&mapping, at));
        let (pmds, pages) = (trace.pmds_installed()?, trace.pages_installed()?);
        ensure!(
            (pmds, pages) == (LEN / PMD, 0),
            "{pmds} PMDs and {pages} pages were mapped"
        );
        let mut regions = [0, 0];
        for start in (0..LEN).step_by(PMD) {
            let physical = mapping.physical(start)?;
            let second = lab.region(1)?.resource()?;
            regions[usize::from(physical >= second)] += 1;
        }
        ensure!(regions == [4, 4], "PMDs of each disk: {regions:?}");
    }
    drop(file);
    mount.unmount()?;
    fs.check(&node)?;
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

/// Requests with `RWF_NOWAIT` pass dm-linear and dm-stripe.
fn nowait(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let first = lab.prepare_in(0, Mode::FsdaxMem)?.disk;
    let second = lab.prepare_in(1, Mode::Raw)?.disk;
    let (low, high) = (first.node_str(), second.node_str());
    let half = 64 << 11;
    for table in [
        format!("0 {half} linear {low} 8192\n{half} {half} linear {high} 4096"),
        format!("0 {} striped 2 256 {low} 0 {high} 0", 2 * half),
    ] {
        let over = Mapped::new(NAME, &table)?;
        let file = over.disk().open(Access::Direct)?;
        for at in [0, half * 512 + 4096] {
            expect_no_wait(&file, at).with_context(|| table.clone())?;
        }
        drop(file);
        over.remove()?;
    }
    Ok(())
}

/// The region becomes read-only below a linear device and a loop device, which do not become
/// read-only themselves: what they write is refused, until the region is writable again.
fn read_only_below(lab: &mut Lab) -> Result<()> {
    let region = lab.region(0)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let below = lab.prepare(mode)?.disk;
        let table = format!("0 {} linear {} 0", sectors(&below)?, below.node_str());
        let over = Mapped::new(NAME, &table)?;
        let looped = Loop::new(&below.node())?;
        let right = Buffer::stamped(1 << 20, 4);
        let writers = [
            over.disk().open(Access::Direct)?,
            looped.disk().open(Access::Direct)?,
        ];
        for file in &writers {
            file.write_all_at(&right, 0)?;
        }

        let mut messages = Messages::from_now()?;
        region.set("read_only", "1")?;
        for file in &writers {
            for _ in 0..100 {
                let result = file.write_at(&Buffer::stamped(4096, 5), 4096);
                errno::expect("writing", result, &[Errno::EIO, Errno::EPERM])?;
            }
            // An empty write that only flushes is no change.
            file.sync_all()?;
            let result = syscall::zero_out(file, 4096, 4096);
            errno::expect("zeroing", result, &[Errno::EIO, Errno::EPERM])?;
            let mut found = Buffer::new(right.len());
            file.read_exact_at(&mut found, 0)?;
            expect_same("what is there", &found, &right)?;
        }
        let line = "write refused: the region is read-only";
        messages.expect(&[line])?;
        let said = messages.so_far()?.iter();
        let count = said.filter(|said| said.contains(line)).count();
        ensure!(count < 50, "{count} messages in a moment");

        region.set("read_only", "0")?;
        for file in &writers {
            file.write_all_at(&right, 0)?;
        }
        drop(writers);
        looped.detach()?;
        over.remove()?;
    }
    Ok(())
}

/// When the region becomes read-only, mappings are taken away once. They come back with the next
/// access, and stores of `write(2)` and of mappings are not refused, because the driver is not
/// asked whether it is one.
fn mappings_below(lab: &mut Lab) -> Result<()> {
    let region = lab.region(0)?;
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let node = disk.node_str();
    Ext4.make_with(&node, &["-O", "^has_journal"])?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(PMD, 1))?;
    let file = Access::Buffered.open(&path)?;
    file.sync_all()?;
    let mapping = Mapping::of_pages(&file, PMD, Sharing::Shared, true)?;
    mapping.store(0, mapping.load(0));
    mapping.physical(0)?;

    region.set("read_only", "1")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while mapping.physical(0).is_ok() {
        ensure!(Instant::now() < deadline, "the page is still mapped");
        sleep(Duration::from_millis(10));
    }
    // Mappings of a read-only region that was read-only before are not taken away again.
    mapping.store(0, 7);
    region.set("read_only", "1")?;
    sleep(Duration::from_millis(500));
    mapping.physical(0)?;
    file.write_all_at(&[8; 512], 4096)?;
    region.set("read_only", "0")?;
    mapping.physical(0)?;

    let mut right = stamped(PMD, 1);
    right[0] = 7;
    right[4096..4096 + 512].fill(8);
    expect_same("through the mapping", &mapping.to_vec(0, PMD), &right)?;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)
}
