// SPDX-License-Identifier: GPL-2.0

//! Bad sectors of the disk.

use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libc::RWF_NOWAIT;
use nix::errno::Errno;

use super::{Bench, open};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::infoblock::Field;
use crate::injector::{Injector, Watch};
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, Model, SECTOR, expect_same};
use crate::suites::block::expect_no_wait;
use crate::suites::platform::only_for_pmem_rs;
use crate::suites::probe::{BlockTest, labels};
use crate::syscall::{self, preadv2, pwritev2};
use crate::sysfs;

const MEDIUM_ERROR: &[Errno] = &[Errno::ENODATA];

/// badblocks is filled when the disk appears, and counts from the first sector of the data.
pub fn known_before_probe(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem, Mode::FsdaxDev] {
        let bench = Bench::new(lab, mode)?;
        bench.bound.unbind()?;
        // In raw mode, an info block would be at the start.
        bench.inject(100, 3)?;
        // A bad part of a sector makes the sector bad.
        bench.injector.inject(bench.address(200) + 256, 256)?;
        bench.bound.bind(lab.driver)?;
        bench.expect_bad("100 3\n200 1")?;
        let file = bench.disk.open(Access::Direct)?;
        let result = file.read_at(&mut Buffer::new(SECTOR), 102 * SECTOR as u64);
        errno::expect("reading a bad sector", result, MEDIUM_ERROR)?;
        bench.expect_clears(&[])?;
    }
    Ok(())
}

/// A namespace whose info block cannot be read may have one. So there is no disk, which would look
/// empty, and on which the first write would overwrite the info block.
pub fn bad_info_block(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let (pfn, namespace) = (&bench.bound, &bench.namespace);
    let right = Buffer::stamped(64 << 10, 9);
    bench
        .disk
        .open(Access::Direct)?
        .write_all_at(&right, 1 << 20)?;
    let data = bench.start - namespace.resource()?;
    pfn.unbind()?;
    bench.injector.inject(namespace.resource()? + 4096, 512)?;
    let expect_refused = |device: &Device| -> Result<String> {
        let mut messages = Messages::from_now()?;
        let result = device.try_bind(lab.driver);
        errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
        let line = messages.expect(&["the medium is bad where the info block"])?;
        for piece in ["write 1 to its force_raw", "ndctl create-namespace -f -e"] {
            ensure!(line.contains(piece), "the log says `{line}`, not {piece}");
        }
        device.expect_driver(None)?;
        ensure!(!bench.disk.exists(), "there is a disk");
        Ok(line)
    };

    let line = expect_refused(pfn)?;
    ensure!(
        line.contains("write an empty line to the attribute `namespace`"),
        "the log says only `{line}`"
    );
    pfn.give_up_namespace()?;
    expect_refused(namespace)?;
    bench.expect_clears(&[])?;

    // The remedy in the message works.
    namespace.set("force_raw", "1")?;
    namespace.bind(lab.driver)?;
    let disk = Disk::named(namespace.disk_name()?);
    disk.expect("badblocks", "8 1")?;
    let mut found = Buffer::new(right.len());
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, data + (1 << 20))?;
    expect_same("what the namespace holds", &found, &right)?;
    namespace.unbind()?;
    namespace.set("force_raw", "0")?;
    expect_refused(namespace)?;
    namespace.set("force_raw", "1")?;
    namespace.bind(lab.driver)?;
    // ndctl reads bad sectors as zeros, and would not overwrite them.
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::new(8 << 10), 0)?;
    disk.expect("badblocks", "")?;
    let name = namespace.name();
    run(
        "ndctl",
        &["create-namespace", "-f", "-e", name, "-m", "fsdax"],
    )?;
    let bound = lab.holder_in(0)?;
    bound.expect_driver(Some(lab.driver))?;
    ensure!(bound.name().starts_with("pfn"), "{bound} is not fsdax");
    Ok(())
}

/// A label of version 1.1 cannot record a mode. So a namespace with such a label whose info block
/// cannot be read is refused, as one without a label. A label of version 1.2 says that a namespace
/// is raw.
///
/// Leaves a bad sector at the start of the region, which the firmware of QEMU cannot clear.
pub fn bad_info_block_with_label(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let injector = Injector::new()?;
    let region = lab.region(1)?;
    if region.driver().is_none() {
        region.enable_region()?;
    }
    let relabel = |version| {
        labels::while_disabled(&region, || {
            run("ndctl", &["init-labels", "-f", "-V", version, labels::DIMM]).map(drop)
        })
    };
    let make = |mode| -> Result<Device> {
        Ok(Device::named(
            ndctl::create(&region, mode, &[])?.show()?.dev,
        ))
    };
    relabel("1.1")?;
    let namespace = make(Mode::FsdaxMem)?;
    let pfn = holder(&namespace)?;
    let disk = Disk::named(pfn.disk_name()?);
    injector.inject_elsewhere(&disk, namespace.resource()? + 4096, 512)?;
    // libnvdimm keeps the mode that ndctl has set until it reads the label again.
    let mut messages = Messages::from_now()?;
    region.try_unbind_region()?;
    region.enable_region()?;
    messages.expect(&["the medium is bad where the info block"])?;
    let namespace = lab.namespace(1)?;
    namespace.expect_driver(None)?;
    ensure!(!disk.exists(), "there is a disk");
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;

    relabel("1.2")?;
    let mut messages = Messages::from_now()?;
    let namespace = make(Mode::Raw)?;
    messages.expect(&["the label says that there is none"])?;
    namespace.expect_driver(Some(lab.driver))
}

/// The padding at the start and at the end is not part of the disk, bad or not.
pub fn padded_namespace(lab: &mut Lab) -> Result<()> {
    const PAD: u64 = 2 << 20;
    const TRUNCATED: u64 = 4 << 20;
    let injector = Injector::new()?;
    let target = BlockTest::new(lab, Mode::FsdaxMem)?;
    let block = target
        .good
        .with(Field::StartPad, PAD)
        .with(Field::EndTruncated, TRUNCATED);
    let result = target.probe_with(lab, &block)?;
    errno::expect("binding the namespace", result, &[Errno::ENXIO])?;

    let bound = lab.holder_in(0)?;
    let disk = Disk::named(bound.disk_name()?);
    let namespace = &target.namespace;
    let size: u64 = namespace.get("size")?.parse()?;
    let start = namespace.resource()? + PAD + block.get(Field::DataOffset);
    let end = namespace.resource()? + size - TRUNCATED;
    ensure!(
        disk.bytes()? == end - start,
        "{disk} has {} bytes",
        disk.bytes()?
    );
    let last = (end - start) / SECTOR as u64 - 1;
    let right = format!("0 1\n5 1\n{last} 1");

    // While the device is bound, and before it is bound.
    injector.inject(start - 512, 1024)?;
    injector.inject(start + 5 * 512, 512)?;
    injector.inject(end - 512, 2048)?;
    disk.expect("badblocks", &right)?;
    bound.unbind()?;
    bound.bind(lab.driver)?;
    disk.expect("badblocks", &right)?;

    let file = disk.open(Access::Direct)?;
    for (sector, address) in [(0, start), (5, start + 5 * 512), (last, end - 512)] {
        file.write_all_at(&Buffer::stamped(SECTOR, sector), sector * SECTOR as u64)?;
        let found = injector.clears()?.pop();
        ensure!(
            found.is_some_and(|clear| clear.address == address && clear.len == 512),
            "sector {sector} is at {address:#x}, but {found:x?} was cleared"
        );
    }
    disk.expect("badblocks", "")
}

/// A poller of badblocks is notified when sectors become bad and when they are cleared; so is
/// `ndctl`.
pub fn pollers_are_woken(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let mut watch = Watch::new(&bench.disk.path("badblocks"))?;
        watch.expect_not_notified()?;
        bench.inject(64, 8)?;
        watch.expect("64 8")?;
        watch.expect_not_notified()?;

        let said = run("ndctl", &["list", "-M", "-n", bench.namespace.name()])?;
        let said: serde_json::Value = serde_json::from_str(&said)?;
        let listed = &said[0]["badblocks"][0];
        ensure!(
            said[0]["badblock_count"] == 8 && listed["offset"] == 64 && listed["length"] == 8,
            "ndctl lists {said}"
        );

        let file = bench.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(4 * SECTOR, 1), 64 * SECTOR as u64)?;
        watch.expect("68 4")?;
        // A write to good sectors does not notify.
        file.write_all_at(&Buffer::stamped(4 * SECTOR, 1), 64 * SECTOR as u64)?;
        watch.expect_not_notified()?;
    }
    Ok(())
}

/// Sectors that a user adds to the list are bad at once, each time, and no others.
pub fn added_by_user(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let file = bench.disk.open(Access::Direct)?;
        let last = bench.disk.bytes()? / SECTOR as u64 - 1;
        let read = |sector: u64| {
            let result = file.read_exact_at(&mut Buffer::new(SECTOR), sector * SECTOR as u64);
            match result {
                Err(error) => error.raw_os_error() == Some(Errno::ENODATA as i32),
                Ok(()) => false,
            }
        };
        let mut bad = Vec::new();
        for added in [5000, 70, 100_000, 71, last, 0] {
            ensure!(!read(added), "sector {added} is bad already");
            sysfs::write(bench.disk.path("badblocks"), &format!("{added} 1"))?;
            bad.push(added);
            for sector in [
                added,
                0,
                1,
                69,
                70,
                71,
                72,
                4999,
                5000,
                5001,
                60_000,
                100_000,
                last - 1,
            ] {
                ensure!(
                    read(sector) == bad.contains(&sector),
                    "sector {sector} was read wrongly when {bad:?} were bad"
                );
            }
        }
    }
    Ok(())
}

/// A request that must not wait does not repair bad memory, and writes nothing. A read says that
/// the medium is bad. Good sectors beside it are as always.
pub fn nowait(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let file = bench.disk.open(Access::Direct)?;
        let right = Buffer::stamped(8192, 2);
        file.write_all_at(&right, 0)?;
        bench.inject(15, 1)?;

        let new = Buffer::stamped(8192, 3);
        let write = |flags| pwritev2(&file, &[IoSlice::new(&new)], 0, flags);
        errno::expect("writing", write(RWF_NOWAIT), &[Errno::EAGAIN])?;
        bench.expect_bad("15 1")?;
        bench.expect_clears(&[])?;
        let mut found = Buffer::new(15 * SECTOR);
        let read = preadv2(&file, &mut [IoSliceMut::new(&mut found)], 0, RWF_NOWAIT)?;
        ensure!(read == found.len(), "{read} bytes were read");
        expect_same("the good sectors", &found, &right[..15 * SECTOR])?;
        let mut bad = Buffer::new(SECTOR);
        let at = 15 * SECTOR as u64;
        let read = preadv2(&file, &mut [IoSliceMut::new(&mut bad)], at, RWF_NOWAIT);
        errno::expect("reading", read, &[Errno::ENODATA])?;
        expect_no_wait(&file, 16 * SECTOR as u64)?;

        ensure!(write(0)? == new.len(), "not all was written");
        bench.expect_bad("")?;
        let mut found = Buffer::new(new.len());
        file.read_exact_at(&mut found, 0)?;
        expect_same("what was written at last", &found, &new)?;
    }
    Ok(())
}

/// Zeroes repair bad memory, all of it in one request.
pub fn zeroes_repair(lab: &mut Lab) -> Result<()> {
    const LEN: usize = 2 << 20;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let file = bench.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(LEN, 2), 0)?;
        // In the first MiB, across its end, and after what is zeroed.
        bench.inject(9, 1)?;
        bench.inject(2047, 2)?;
        bench.inject(4000, 3)?;

        bench.injector.set_limit(0)?;
        let result = syscall::zero_out(&file, 0, 1 << 20);
        errno::expect("zeroing what cannot be cleared", result, MEDIUM_ERROR)?;
        bench.expect_bad("9 1\n2047 2\n4000 3")?;
        bench.injector.set_limit(u64::MAX)?;
        syscall::zero_out(&file, 4096, (2 << 20) - 128 * 512 - 4096)?;
        bench.expect_bad("4000 3")?;
        let mut found = Buffer::new(LEN - 128 * 512 - 4096);
        file.read_exact_at(&mut found, 4096)?;
        ensure!(found.iter().all(|&byte| byte == 0), "not all is zero");
    }
    Ok(())
}

/// Reading a bad sector is a medium error, which differs from other errors.
pub fn only_bad_sectors_fail(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let file = bench.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(64 << 10, 2), 0)?;
        let model = Model::of(&file, 0, 64 << 10)?;
        bench.inject(33, 2)?;

        for (sector, count, good) in [
            (0, 33, true),
            (32, 2, false),
            (33, 1, false),
            (34, 1, false),
            (0, 128, false),
            (35, 64, true),
        ] {
            let mut found = Buffer::new(count * SECTOR);
            let result = file.read_at(&mut found, (sector * SECTOR) as u64);
            let what = format!("reading {count} sectors from {sector} on");
            if good {
                ensure!(result? == count * SECTOR, "{what}: too few bytes");
                model.check(&what, sector * SECTOR, &found)?;
            } else {
                errno::expect(&what, result, MEDIUM_ERROR)?;
            }
        }
        // The page cache reports a single kind of error.
        let cached = bench.disk.open(Access::Buffered)?;
        let result = cached.read_at(&mut [0; SECTOR], 33 * SECTOR as u64);
        errno::expect("reading through the page cache", result, &[Errno::EIO])?;
        bench.expect_clears(&[])?;
    }
    Ok(())
}

/// A write clears the pages that it writes, and no others.
pub fn writing_clears_just_that(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let region = lab.region(0)?;
        let file = bench.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(64 << 10, 3), 0)?;
        let mut model = Model::of(&file, 0, 64 << 10)?;
        let mut write = |sector: usize, count: usize| -> Result<()> {
            let bytes = Buffer::stamped(count * SECTOR, sector as u64);
            file.write_all_at(&bytes, (sector * SECTOR) as u64)?;
            model.written(sector * SECTOR, &bytes);
            Ok(())
        };
        bench.inject(17, 3)?;
        bench.inject(38, 4)?;

        // One sector of three.
        write(18, 1)?;
        bench.expect_bad("17 1\n19 1\n38 4")?;
        bench.expect_clears(&[(18, 1)])?;
        // Next to the bad ones.
        write(20, 18)?;
        bench.expect_bad("17 1\n19 1\n38 4")?;
        // Three pages and two halves. Three of the pages have bad sectors.
        write(12, 32)?;
        bench.expect_bad("")?;
        bench.expect_clears(&[(18, 1), (16, 8), (32, 8), (40, 4)])?;
        let left = region.get("badblocks")?;
        ensure!(left.is_empty(), "{region} still has {left}");
        model.check_all(&file)?;

        // The sectors stay good after a rebind.
        drop(file);
        bench.bound.unbind()?;
        bench.bound.bind(lab.driver)?;
        bench.expect_bad("")?;
    }
    Ok(())
}

/// A provider that refuses to clear: the write fails, nothing is written, and the sectors stay bad.
pub fn clear_is_refused(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let bench = Bench::new(lab, mode)?;
        let file = bench.disk.open(Access::Direct)?;
        let before = Model::of(&file, 0, 8 << 10)?;
        bench.inject(9, 1)?;
        bench.injector.set_limit(0)?;
        let mut watch = Watch::new(&bench.disk.path("badblocks"))?;

        let result = file.write_at(&Buffer::stamped(8 << 10, 4), 0);
        errno::expect("writing what cannot be cleared", result, MEDIUM_ERROR)?;
        bench.expect_bad("9 1")?;
        watch.expect_not_notified()?;
        let mut good = Buffer::new(9 * SECTOR);
        file.read_exact_at(&mut good, 0)?;
        before.check("the sectors before", 0, &good)?;
        let result = file.read_at(&mut Buffer::new(SECTOR), 9 * SECTOR as u64);
        errno::expect("reading it", result, MEDIUM_ERROR)?;

        bench.injector.set_limit(u64::MAX)?;
        let right = Buffer::stamped(8 << 10, 5);
        file.write_all_at(&right, 0)?;
        watch.expect("")?;
        let mut found = Buffer::new(8 << 10);
        file.read_exact_at(&mut found, 0)?;
        expect_same("after all", &found, &right)?;
    }
    Ok(())
}

/// A provider that clears a part: as if it had refused. The contents of the cleared part are
/// undefined, so it stays in badblocks.
pub fn clear_is_incomplete(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let file = bench.disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(64 << 10, 6), 0)?;
    bench.inject(16, 16)?;
    bench.injector.set_limit(1024)?;

    let result = file.write_at(&Buffer::stamped(8 << 10, 7), 16 * SECTOR as u64);
    errno::expect("writing what is partly cleared", result, MEDIUM_ERROR)?;
    bench.expect_bad("16 16")?;
    bench.expect_clears(&[(16, 8)])?;
    for sector in [16, 18, 31] {
        let result = file.read_at(&mut Buffer::new(SECTOR), sector * SECTOR as u64);
        errno::expect("reading what was bad", result, MEDIUM_ERROR)?;
    }

    bench.injector.set_limit(u64::MAX)?;
    file.write_all_at(&Buffer::stamped(8 << 10, 8), 16 * SECTOR as u64)?;
    bench.expect_bad("")?;
    let mut found = Buffer::new(8 << 10);
    file.read_exact_at(&mut found, 16 * SECTOR as u64)?;
    expect_same("after all", &found, &Buffer::stamped(8 << 10, 8))
}

/// The btt driver is notified of bad sectors, and that its region has become read-only. Writes
/// clear the sectors.
pub fn sector_mode(lab: &mut Lab) -> Result<()> {
    let injector = Injector::new()?;
    let target = BlockTest::new(lab, Mode::Sector)?;
    let btt = target.bind_with(lab, &target.good)?;
    let disk = Disk::named(btt.disk_name()?);
    let region = lab.region(0)?;

    for read_only in ["1", "0"] {
        region.set("read_only", read_only)?;
        disk.expect("ro", read_only)?;
    }

    let file = disk.open(Access::Direct)?;
    // The sectors have the size of a page, and each must be in one buffer.
    let right = Buffer::of_pages(64 << 10, 11);
    let at = 1 << 20;
    file.write_all_at(&right, at)?;
    // The arena is behind the first page of a namespace without label. All of its data are bad,
    // because any block can be anywhere.
    let arena = target.namespace.resource()? + 4096;
    let (data, map) = (
        target.good.get(Field::ArenaData),
        target.good.get(Field::ArenaMap),
    );
    injector.inject(arena + data, map - data)?;
    let mut found = Buffer::of_pages(right.len(), 0);
    let result = file.read_at(&mut found, at);
    errno::expect("reading what is bad", result, &[Errno::EIO])?;

    let right = Buffer::of_pages(64 << 10, 12);
    file.write_all_at(&right, at)?;
    file.read_exact_at(&mut found, at)?;
    expect_same("what was written since", &found, &right)?;
    ensure!(!injector.clears()?.is_empty(), "no error was cleared");
    Ok(())
}

/// Errors can also be cleared by a command to the bus. The disk is not notified: it fails reads of
/// these sectors until it is bound again or they are written.
pub fn cleared_by_command(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    bench.inject(40, 2)?;
    let buses = Device::all_of("ndbus")?;
    let bus = buses
        .iter()
        .find(|bus| bus.get("provider").is_ok_and(|name| name == "injector"))
        .context("the provider has no bus")?;
    let control = Path::new("/dev").join(bus.name().replace("ndbus", "ndctl"));
    let control = open(&control)?;
    let cleared = syscall::clear_error(&control, bench.address(40), 2 * SECTOR as u64)?;
    ensure!(cleared == 2 * SECTOR as u64, "cleared {cleared} bytes");
    bench.expect_clears(&[(40, 2)])?;

    let region = lab.region(0)?;
    let left = region.get("badblocks")?;
    ensure!(left.is_empty(), "{region} still has {left}");
    bench.expect_bad("40 2")?;
    bench.bound.unbind()?;
    bench.bound.bind(lab.driver)?;
    bench.expect_bad("")
}
