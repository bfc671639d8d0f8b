// SPDX-License-Identifier: GPL-2.0

//! Data that must be durable are flushed from the caches and fenced before completion is reported.
//!
//! The tests do the work, and declare when the data must be durable; a plugin of the emulator
//! records the state, and the runner compares. The machine has one CPU, so nothing else runs
//! between the end of a system call and the check.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use anyhow::{Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use super::dax::Bench;
use super::{Suite, Test};
use crate::disk::Access;
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::kexec;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Flush, Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::ordering::Expect::{Dirty, Durable, Flushed, Pending, Settled, Untouched};
use crate::ordering::{Fences, Watch, physical};
use crate::sectors::{Buffer, SECTOR, stamped};
use crate::syscall::{pwritev2, zero_out};

pub const SUITE: Suite = Suite {
    name: "ordering",
    tests: &[
        Test::new("the_plugin", the_plugin),
        Test::new("raw", |lab| requests(lab, Mode::Raw, "raw")),
        Test::new("fsdax", |lab| requests(lab, Mode::FsdaxMem, "fsdax")),
        Test::new("sector", sector),
        Test::new("ext4", |lab| files(lab, Ext4, "ext4")),
        Test::new("xfs", |lab| files(lab, Xfs, "xfs")),
        Test::new("unbind", unbind),
        Test::new("unbind_below_dm", unbind_below_dm),
        // PID 1 reboots after it.
        Test::step("reboot", reboot),
    ],
};

/// The tests of a second boot.
pub const KEXEC: Suite = Suite {
    name: "ordering_kexec",
    tests: &[
        // PID 1 starts the other kernel after it.
        Test::step("kexec", kexec).within(120),
    ],
};

/// Calibrates the plugin with stores of this process: it must tell the states apart.
fn the_plugin(lab: &mut Lab) -> Result<()> {
    const LEN: usize = 2 * PAGE;
    let bench = Bench::new(lab, Ext4, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &stamped(LEN, 1));
    file.sync_all()?;
    let places = physical(&mapping, 0..LEN)?;
    let watch = Watch::region(lab, "the_plugin", Fences::All)?;

    watch.expect(Untouched, &places, "before anything was stored");
    for (flush, then) in [
        (Flush::Clwb, Pending),
        (Flush::Clflushopt, Pending),
        (Flush::Clflush, Durable),
    ] {
        watch.begin();
        mapping.write(0, &stamped(LEN, 2));
        watch.expect(Dirty, &places, &format!("before {flush:?}"));
        mapping.flush_lines(0..LEN, flush);
        watch.expect(then, &places, &format!("after {flush:?}"));
        mapping.fence();
        watch.expect(Durable, &places, &format!("after {flush:?} and a fence"));
    }
    watch.begin();
    mapping.write_past_caches(0x55);
    watch.expect(Pending, &places, "after stores past the caches");
    mapping.fence();
    watch.expect(Durable, &places, "after such stores and a fence");
    Ok(())
}

/// Requests to the disk, at offsets that are multiples of a sector but not of a page.
fn requests(lab: &mut Lab, mode: Mode, test: &'static str) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(mode)?;
    let start = bound.resource()?;
    let place = |at: usize, len: usize| start + at as u64..start + (at + len) as u64;
    let watch = Watch::region(lab, test, Fences::OfTheRegion)?;
    let direct = disk.open(Access::Direct)?;

    for (tag, at, len) in [
        (1, SECTOR, SECTOR),
        (2, 3 * SECTOR, 5 * PAGE),
        (3, PAGE, 1 << 20),
    ] {
        let bytes = Buffer::stamped(len, tag);
        watch.begin();
        direct.write_all_at(&bytes, at as u64)?;
        watch.expect_of(
            Flushed,
            &place(at, len),
            &format!("after a write of {len} bytes"),
        );
        direct.sync_all()?;
        let when = format!("after a write of {len} bytes and fsync");
        watch.expect_of(Durable, &place(at, len), &when);

        watch.begin();
        let written = pwritev2(&direct, &[IoSlice::new(&bytes)], at as u64, libc::RWF_DSYNC)?;
        ensure!(written == len, "only {written} bytes were written");
        let when = format!("after a write of {len} bytes with RWF_DSYNC");
        watch.expect_of(Durable, &place(at, len), &when);
    }

    let durably = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT | libc::O_DSYNC)
        .open(disk.node())?;
    watch.begin();
    durably.write_all_at(&Buffer::stamped(PAGE, 4), SECTOR as u64)?;
    watch.expect_of(Durable, &place(SECTOR, PAGE), "after a write with O_DSYNC");

    const LEN: usize = 256 << 10;
    watch.begin();
    zero_out(&direct, SECTOR as u64, LEN as u64)?;
    watch.expect_of(Flushed, &place(SECTOR, LEN), "after BLKZEROOUT");
    direct.sync_all()?;
    watch.expect_of(Durable, &place(SECTOR, LEN), "after BLKZEROOUT and fsync");

    let buffered = disk.open(Access::Buffered)?;
    watch.begin();
    buffered.write_all_at(&stamped(LEN, 5), 0)?;
    buffered.sync_data()?;
    watch.expect_of(
        Durable,
        &place(0, LEN),
        "after a buffered write and fdatasync",
    );
    watch.expect_of_all(Settled, "in the end");
    Ok(())
}

/// Only btt knows the location of a sector, so the whole namespace is checked.
fn sector(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::Sector)?.disk;
    let file = disk.open(Access::Direct)?;
    let watch = Watch::region(lab, "sector", Fences::OfTheRegion)?;
    file.write_all_at(&Buffer::of_pages(64 << 10, 1), 0)?;
    file.sync_all()?;
    watch.expect_of_all(Settled, "after a write and fsync");
    Ok(())
}

/// Files on a file system with DAX.
fn files(lab: &mut Lab, fs: FileSystem, test: &'static str) -> Result<()> {
    const LEN: usize = 64 << 10;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let synchronous = bench.allocated("synchronous", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    let watch = Watch::region(lab, test, Fences::OfTheRegion)?;
    // A range that is overwritten keeps its location.
    file.write_all_at(&stamped(LEN, 1), 0)?;
    let place = |part: Range<usize>| physical(&mapping, part);
    watch.expect(Flushed, &place(0..LEN)?, "after a write to new blocks");
    file.sync_all()?;
    watch.expect(
        Durable,
        &place(0..LEN)?,
        "after a write to new blocks and fsync",
    );
    watch.expect_of_all(Settled, "after fsync");

    for (tag, part) in [(2, 0..LEN), (3, 13..13 + 2), (4, 777..LEN - 3)] {
        let places = place(part.clone())?;
        let bytes = stamped(part.len(), tag);
        watch.begin();
        file.write_all_at(&bytes, part.start as u64)?;
        watch.expect(Flushed, &places, &format!("after a write of {part:?}"));
        file.sync_data()?;
        let when = format!("after a write of {part:?} and fdatasync");
        watch.expect(Durable, &places, &when);
        watch.begin();
        pwritev2(
            &file,
            &[IoSlice::new(&bytes)],
            part.start as u64,
            libc::RWF_DSYNC,
        )?;
        let when = format!("after a write of {part:?} with RWF_DSYNC");
        watch.expect(Durable, &places, &when);
    }

    let places = place(0..LEN)?;
    watch.begin();
    mapping.write(0, &stamped(LEN, 5));
    watch.expect(Dirty, &places, "after stores");
    mapping.sync()?;
    watch.expect(Durable, &places, "after stores and msync");
    watch.begin();
    mapping.write(0, &stamped(LEN, 6));
    file.sync_all()?;
    watch.expect(Durable, &places, "after stores and fsync");

    zeroes(&watch, &file, &mapping, LEN)?;
    drop((mapping, file));

    // A program that flushes the CPU cache itself.
    watch.count(Fences::All)?;
    let mapping = Mapping::new(&synchronous, LEN, Sharing::Synchronous)?;
    watch.begin();
    mapping.write(0, &stamped(LEN, 7));
    let places = physical(&mapping, 0..LEN)?;
    watch.expect(Dirty, &places, "after stores with MAP_SYNC");
    mapping.flush_lines(0..LEN, Flush::Clwb);
    mapping.fence();
    watch.expect(
        Durable,
        &places,
        "after stores with MAP_SYNC, flushes and a fence",
    );

    drop((mapping, synchronous));
    let Bench { mount, .. } = bench;
    watch.count(Fences::OfTheRegion)?;
    mount.unmount()?;
    watch.expect_of_all(Settled, "after umount");
    Ok(())
}

/// The ranges that the file system zeroes: the ends of a range, and the last page of a file.
fn zeroes(watch: &Watch, file: &File, mapping: &Mapping, len: usize) -> Result<()> {
    const AT: usize = 100;
    const HOLE: usize = 2 * PAGE;
    let ends = [
        physical(mapping, AT..PAGE)?,
        physical(mapping, HOLE..HOLE + AT)?,
    ]
    .concat();
    watch.begin();
    let how = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    fallocate(file, how, AT as i64, HOLE as i64)?;
    file.sync_all()?;
    watch.expect(Durable, &ends, "after FALLOC_FL_ZERO_RANGE and fsync");

    let tail = len - PAGE + AT;
    let places = physical(mapping, tail..len)?;
    watch.begin();
    file.set_len(tail as u64)?;
    file.sync_all()?;
    watch.expect(Durable, &places, "after a file was cut off, and fsync");
    Ok(())
}

const USED: usize = 256 << 10;

/// Stores through a mapping that were not synced before unbind.
fn unbind(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Ext4, Mode::FsdaxMem)?;
    let file = bench.allocated("file", USED)?;
    let watch = Watch::region(lab, "unbind", Fences::OfTheRegion)?;
    unbind_used(&watch, &bench.prepared, &file)
}

/// A file system on device-mapper is not notified of the removal of its disk, and syncs nothing.
fn unbind_below_dm(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let sectors = prepared.disk.bytes()? / SECTOR as u64;
    let mapped = Mapped::new(
        "below",
        &format!("0 {sectors} linear {} 0", prepared.disk.node_str()),
    )?;
    let node = mapped.disk().node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, USED as i64)?;
    let watch = Watch::region(lab, "unbind_below_dm", Fences::OfTheRegion)?;
    unbind_used(&watch, &prepared, &file)
}

/// Stores that were not synced before `reboot(2)`.
fn reboot(lab: &mut Lab) -> Result<()> {
    leave_dirty(lab, "reboot")
}

/// Stores that were not synced before `reboot(2)` with `LINUX_REBOOT_CMD_KEXEC`. The kernel that is
/// started has no driver of the device, so what it finds does not change any more.
fn kexec(lab: &mut Lab) -> Result<()> {
    kexec::load()?;
    leave_dirty(lab, "kexec")
}

/// Leaves stores through a mapping that only the end of this kernel makes durable.
fn leave_dirty(lab: &mut Lab, test: &'static str) -> Result<()> {
    let bench = Bench::new(lab, Ext4, Mode::FsdaxMem)?;
    let file = bench.allocated("file", USED)?;
    let mapping = Mapping::new(&file, USED, Sharing::Shared)?;
    file.sync_all()?;
    let watch = Watch::region(lab, test, Fences::OfTheRegion)?;
    mapping.write(0, &stamped(USED, 1));
    let places = physical(&mapping, 0..USED)?;
    watch.expect(Dirty, &places, "after stores");
    watch.expect_finally(Durable, &places, &format!("after stores and {test}"));
    let Bench { mount, .. } = bench;
    mount.leave();
    Ok(())
}

fn unbind_used(watch: &Watch, prepared: &Prepared, file: &File) -> Result<()> {
    let mapping = Mapping::new(file, USED, Sharing::Shared)?;
    file.sync_all()?;
    watch.begin();
    mapping.write(0, &stamped(USED, 1));
    let places = physical(&mapping, 0..USED)?;
    watch.expect(Dirty, &places, "after stores");
    prepared.bound.unbind()?;
    watch.expect(Durable, &places, "after stores and unbind");
    watch.expect_of_all(Settled, "after unbind");
    Ok(())
}
