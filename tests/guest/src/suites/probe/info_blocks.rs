// SPDX-License-Identifier: GPL-2.0

//! Info blocks that are refused, and valid ones of unusual layouts and versions.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::block_test::BlockTest;
use super::{find_mark, leave_mark};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::infoblock::{Field, InfoBlock};
use crate::lab::{Lab, Prepared, holder};
use crate::leaks::Holdings;
use crate::mapping::{Mapping, PAGE, PMD, Sharing, huge_page};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::namespaces::emptied;
use crate::syscall;

const NOT_KNOWN: &str = "its version is not known";

const CHECKSUM: &str = "its checksum is wrong";

const FOREIGN: &str = "it belongs to another namespace";

pub const NO_ARENA: &str = "the parts of its arena cannot be where it says";

pub const FURTHER: &str = "one of its further arenas is damaged";

const METADATA: &str = "its sectors have metadata";

const LOG: &str = "the log of an arena names blocks that the arena does not have";

const NO_PAGE_OF_STRUCTS: &str = "its range does not start where a page of struct pages does";

const NO_PLACE: &str = "the data cannot be where it says";

pub fn bad_sector_block(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::Sector)?;
    let good = &target.good;
    for (what, block, why) in [
        ("a wrong checksum", good.with_wrong_checksum(), CHECKSUM),
        (
            "another namespace",
            good.with(Field::ParentUuid, 12345),
            FOREIGN,
        ),
        (
            "a later version",
            good.with(Field::MajorVersion, 3),
            NOT_KNOWN,
        ),
        // libnvdimm would accept these, and compute addresses from them.
        (
            "a log behind the end",
            good.with(Field::ArenaLog, u64::MAX - 0xfff),
            NO_ARENA,
        ),
        (
            "a map behind the end",
            good.with(Field::ArenaMap, 1 << 40),
            NO_ARENA,
        ),
        (
            "more spare blocks than memory",
            good.with(Field::SpareBlocks, u32::MAX.into()),
            NO_ARENA,
        ),
        (
            "a next arena that is itself",
            good.with(Field::NextArena, u64::MAX - 0xfff),
            NO_ARENA,
        ),
        (
            "sectors of 100 bytes",
            good.with(Field::SectorSize, 100),
            "of a size that does not exist",
        ),
        // The block layer would overwrite memory with the metadata of large requests.
        (
            "sectors with metadata",
            good.with(Field::SectorSize, 4104)
                .with(Field::BlockSize, 4352),
            METADATA,
        ),
    ] {
        target.expect_refused(lab, what, &block, why)?;
    }

    // The btt driver would write large sectors into blocks for small ones, and lose data.
    let btt = target.bind_with(lab, good)?;
    btt.unbind()?;
    btt.set("sector_size", "512")?;
    let mut messages = Messages::from_now()?;
    let result = btt.try_bind(lab.driver);
    errno::expect("binding with other sectors", result, &[Errno::EOPNOTSUPP])?;
    messages.expect(&["the info block for mode", "not of the sector_size"])?;
    btt.set("sector_size", "520")?;
    let result = btt.try_bind(lab.driver);
    errno::expect("binding with metadata", result, &[Errno::EOPNOTSUPP])?;
    let said = messages.expect(&[METADATA])?;
    ensure!(said.contains("-m sector -l 4096"), "it says `{said}`");
    btt.set("sector_size", "4096")?;
    btt.give_up_namespace()?;
    target.recover(lab)
}

/// A log that leads out of its arena is refused, before the btt driver follows it.
pub fn bad_log(lab: &mut Lab) -> Result<()> {
    const LOG_GROUP: usize = 64;
    let target = BlockTest::new(lab, Mode::Sector)?;
    let good = &target.good;
    let sectors = u32::try_from(good.get(Field::Sectors))?;
    let blocks = u32::try_from(good.get(Field::Blocks))?;
    for (what, entry) in [
        ("a sector behind the namespace", [u32::MAX, 0, 1, 1]),
        ("a sector behind the map", [sectors, 0, 1, 1]),
        ("a free block behind the arena", [0, blocks, blocks, 1]),
        (
            "a bad block behind the namespace",
            [0, (1 << 30) | 0x3fff_ffff, 0, 1],
        ),
        ("a new block behind the arena", [0, 0, blocks, 1]),
    ] {
        println!("a log with {what}");
        // The only entry of a lane is the one that the btt driver follows.
        let mut group: Vec<u8> = entry.into_iter().flat_map(u32::to_le_bytes).collect();
        group.resize(LOG_GROUP, 0);
        let former = BlockTest::with_whole_range(lab, &target.namespace, |disk| {
            let file = disk.open(Access::Buffered)?;
            let place = good.part(Field::ArenaLog);
            let mut former = [0; LOG_GROUP];
            file.read_exact_at(&mut former, place)?;
            file.write_all_at(&group, place)?;
            file.sync_all()?;
            Ok(former)
        })?;
        let mut messages = Messages::from_now()?;
        let result = target.probe_with(lab, good)?;
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        let said = messages.expect(&["the info block for mode"])?;
        ensure!(said.contains(LOG), "the log says `{said}`, and not {LOG}");
        let btt = holder(&target.namespace)?;
        btt.expect_driver(None)?;
        ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");

        btt.give_up_namespace()?;
        BlockTest::with_whole_range(lab, &target.namespace, |disk| {
            let file = disk.open(Access::Buffered)?;
            file.write_all_at(&former, good.part(Field::ArenaLog))?;
            Ok(file.sync_all()?)
        })?;
        target.recover(lab)?;
    }
    Ok(())
}

/// The btt driver needs a spare block for each lane of the region, and refuses an arena with fewer.
/// The log has the remedy, which works.
pub fn too_few_spare_blocks(lab: &mut Lab) -> Result<()> {
    const FEWER: u64 = 2;
    let target = BlockTest::new(lab, Mode::Sector)?;
    let namespace = target.namespace.name();
    let few = target.good.with(Field::SpareBlocks, FEWER);
    let before = Holdings::now()?;
    let mut messages = Messages::from_now()?;
    let result = target.probe_with(lab, &few)?;
    errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
    messages.expect(&[&format!("nfree {FEWER} smaller than lane count")])?;
    let command = format!("create-namespace -f -e {namespace} -m sector");
    let said = messages.expect(&["cannot be set up"])?;
    println!("the kernel says: {said}");
    ensure!(said.contains(&command), "it does not say `{command}`");
    let btt = holder(&target.namespace)?;
    btt.expect_driver(None)?;
    ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");

    btt.give_up_namespace()?;
    before.expect_unchanged()?;
    target.recover(lab)?;
    let result = target.probe_with(lab, &few)?;
    errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
    run("ndctl", &command.split(' ').collect::<Vec<_>>())?;
    let btt = holder(&target.namespace)?;
    btt.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(btt.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)
}

/// A namespace of two sections of 128 MiB and a half. On arm64 with pages of 4 KiB the struct pages
/// of the half are on the medium too, behind those of the sections, and libnvdimm leaves no room.
pub fn part_of_a_section(lab: &mut Lab) -> Result<()> {
    const MIB: u64 = 1 << 20;
    let region = emptied(lab, 0)?;
    let start = region.resource()?;
    ensure!(start % (128 * MIB) == 0, "{start:#x} is in a section");
    let lacks_room = cfg!(target_arch = "aarch64") && PAGE == 4096;
    let why = "it has too little room for the struct pages";
    if lacks_room {
        follow_remedy(lab, &region, why)?;
    }
    let made = ndctl::create(&region, Mode::FsdaxMem, &["-s", "320M"])?;
    let namespace = Device::named(&made.dev);
    let prepared = Prepared {
        bound: holder(&namespace)?,
        disk: Disk::named(made.blockdev.context("no disk")?),
        namespace,
    };
    let target = BlockTest::of(lab, prepared, Mode::FsdaxMem)?;
    let data_at = |offset| {
        let block = target.good.with(Field::Mode, 2);
        block.with(Field::DataOffset, offset)
    };
    let as_libnvdimm = data_at(6 * MIB);
    if lacks_room {
        target.expect_refused(lab, "too little room", &as_libnvdimm, why)?;
    } else {
        bind_and_use(lab, &target, &as_libnvdimm)?;
    }
    bind_and_use(lab, &target, &data_at(8 * MIB))?;
    emptied(lab, 0)?;
    ndctl::create(&region, Mode::Raw, &[]).map(drop)
}

/// A new device with too little room is refused before its info block is written. The log has the
/// remedy, which works.
fn follow_remedy(lab: &Lab, region: &Device, why: &str) -> Result<()> {
    let raw = ndctl::create(region, Mode::Raw, &["-s", "320M"])?;
    let disk = Disk::named(raw.blockdev.context("no disk")?);
    let file = disk.open(Access::Buffered)?;
    file.write_all_at(&[0; 8192], 0)?;
    file.sync_all()?;
    drop(file);

    let mut messages = Messages::from_now()?;
    // A new namespace would be deleted when this fails.
    let change = ["create-namespace", "-f", "-e", &raw.dev, "-m", "fsdax"];
    run_expecting_failure("ndctl", &change)?;
    let said = messages.expect(&[why])?;
    println!("the kernel says: {said}");
    let command = said
        .split('`')
        .find_map(|words| words.strip_prefix("ndctl "))
        .context("it has no command")?;
    ensure!(command.ends_with("-m fsdax -M mem"), "it has `{command}`");
    let arguments: Vec<&str> = command.split(' ').collect();
    let namespace = Device::named(*arguments.get(3).context("it names no namespace")?);

    let pfn = holder(&namespace)?;
    pfn.expect_driver(None)?;
    if pfn != namespace {
        pfn.give_up_namespace()?;
    }
    let written = BlockTest::with_whole_range(lab, &namespace, |disk| {
        Ok(InfoBlock::read(&disk.open(Access::Buffered)?, Mode::FsdaxDev).is_ok())
    })?;
    ensure!(!written, "the info block was written");

    run("ndctl", &arguments)?;
    let pfn = lab.holder_in(0)?;
    pfn.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(pfn.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)?;
    emptied(lab, 0).map(drop)
}

/// Binds a pfn device with this block, and writes to its disk.
fn bind_and_use(lab: &Lab, target: &BlockTest, block: &InfoBlock) -> Result<()> {
    let bound = target.bind_with(lab, block)?;
    let disk = Disk::named(bound.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)?;
    bound.unbind()?;
    bound.give_up_namespace()
}

/// An info block of another namespace or with impossible values is refused, and nothing stays
/// mapped.
pub fn bad_pfn_block(lab: &mut Lab, mode: Mode) -> Result<()> {
    let target = BlockTest::new(lab, mode)?;
    let good = &target.good;
    let small_pages = good.with(Field::Align, PAGE as u64);
    let mut cases = vec![
        (
            "data behind the end",
            good.with(Field::DataOffset, 1 << 40),
            NO_PLACE,
        ),
        // libnvdimm computes the remaining size, and misses the underflow.
        (
            "more padding than there is",
            good.with(Field::StartPad, 1 << 30),
            NO_PLACE,
        ),
        (
            "a misaligned start",
            small_pages.with(Field::StartPad, PAGE as u64),
            NO_PAGE_OF_STRUCTS,
        ),
        // The driver accepts this; libnvdimm refuses it.
        (
            "a misaligned end",
            good.with(Field::EndTruncated, PAGE as u64),
            "libnvdimm does not accept it",
        ),
    ];
    match mode {
        Mode::FsdaxDev => {
            let large = "its struct pages are for larger pages";
            let small = "too little room for the struct pages";
            cases.extend([
                ("larger pages", good.with(Field::PageSize, 65536), large),
                (
                    "small struct pages",
                    good.with(Field::PageStructSize, 32),
                    small,
                ),
                // libnvdimm would compute an alignment of zero.
                (
                    "no data offset, and no alignment",
                    good.with(Field::MinorVersion, 1).with(Field::DataOffset, 0),
                    NO_PLACE,
                ),
            ]);
        }
        _ => cases.extend([
            ("a wrong checksum", good.with_wrong_checksum(), CHECKSUM),
            (
                "another namespace",
                good.with(Field::ParentUuid, 12345),
                FOREIGN,
            ),
            (
                "a later version",
                good.with(Field::MajorVersion, 2),
                NOT_KNOWN,
            ),
            (
                "an unknown mode",
                good.with(Field::Mode, 7),
                "where the struct pages are",
            ),
            (
                "data within a page",
                good.with(Field::DataOffset, 0x20_1200),
                NO_PLACE,
            ),
            // The kernel would warn, and leave the range partly mapped.
            (
                "struct pages where there is no room",
                small_pages
                    .with(Field::Mode, 2)
                    .with(Field::DataOffset, 2 << 20),
                "too little room for the struct pages",
            ),
            (
                "an alignment that is none",
                good.with(Field::Align, 3),
                "the data are not aligned as it says",
            ),
        ]),
    }
    let before = Holdings::now()?;
    for (what, block, why) in cases {
        target.expect_refused(lab, what, &block, why)?;
    }
    before.expect_unchanged()
}

/// Padding of 2 MiB at both ends of a namespace within one section of the memory map.
///
/// With pages of 16 KiB, 2 MiB have half a page of struct pages, and the kernel would leave some of
/// them unmapped: docs/kernel-bugs.md.
pub fn odd_padding(lab: &mut Lab) -> Result<()> {
    const PAD: u64 = 2 << 20;
    let region = lab.region(0)?;
    // The region gets labels with the first namespace that is created.
    let whole = lab.prepare(Mode::FsdaxMem)?.namespace;
    run("ndctl", &["destroy-namespace", "-f", whole.name()])?;
    let made = ndctl::create(&region, Mode::FsdaxMem, &["-s", "64M", "-l", "512"])?.show()?;
    let namespace = Device::named(made.dev);
    let prepared = Prepared {
        bound: holder(&namespace)?,
        namespace: namespace.clone(),
        disk: Disk::named(made.blockdev.context("no disk")?),
    };
    let target = BlockTest::of(lab, prepared, Mode::FsdaxMem)?;
    let data = target.good.get(Field::DataOffset);
    let block = target
        .good
        .with(Field::StartPad, PAD)
        .with(Field::EndTruncated, PAD)
        .with(Field::Align, PAGE as u64);
    if PAGE == 4096 {
        let bound = target.bind_with(lab, &block)?;
        let bytes = Disk::named(bound.disk_name()?).bytes()?;
        let size: u64 = target.namespace.get("size")?.parse()?;
        ensure!(bytes == size - data - 2 * PAD, "the disk has {bytes} bytes");
        bound.unbind()?;
        bound.give_up_namespace()?;
        target.recover(lab)?;
    } else {
        let why = NO_PAGE_OF_STRUCTS;
        target.expect_refused(lab, "padding of 2 MiB", &block, why)?;
    }
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    ndctl::create(&region, Mode::Raw, &["-l", "512"]).map(drop)
}

/// Returns the block that a kernel with pages of this size writes to a new namespace.
fn written_with(page: u64, pmd: u64, mode: Mode, target: &BlockTest) -> Result<InfoBlock> {
    const SUBSECTION: u64 = 2 << 20;
    const STRUCT_PAGE: u64 = 64;
    const BEFORE: u64 = 8 << 10;
    let start = target.namespace.resource()?;
    let size: u64 = target.namespace.get("size")?.parse()?;
    let align = pmd.max(SUBSECTION);
    let memmap = match mode {
        Mode::FsdaxDev => (size - BEFORE) / page * STRUCT_PAGE,
        _ => 0,
    };
    let data = (start + BEFORE + memmap).next_multiple_of(align) - start;
    let beyond = (start + size) % align;
    Ok(target
        .good
        .with(Field::PageSize, page)
        .with(Field::Align, pmd)
        .with(Field::DataOffset, data)
        .with(Field::EndTruncated, beyond)
        .with(Field::Pages, (size - data - beyond) / page))
}

/// A namespace from a kernel with pages of another size has the same contents here, unless its
/// medium has struct pages for fewer pages than this kernel has.
pub fn other_pages(lab: &mut Lab, mode: Mode) -> Result<()> {
    let target = BlockTest::new(lab, mode)?;
    // A block that is refused comes first, since what was written at first is looked for then.
    for (page, pmd) in [(16 << 10, 32 << 20), (4 << 10, 2 << 20)] {
        let block = written_with(page, pmd, mode, &target)?;
        if page == PAGE as u64 && huge_page() == Some(pmd as usize) {
            ensure!(block == target.good, "this kernel writes another block");
        }
        if mode == Mode::FsdaxDev && page > PAGE as u64 {
            let what = format!("pages of {page}");
            target.expect_refused(lab, &what, &block, "struct pages are for larger pages")?;
            continue;
        }
        let data = block.get(Field::DataOffset);
        let right = Buffer::of_pages(1 << 20, page);
        BlockTest::with_whole_range(lab, &target.namespace, |disk| {
            Ok(disk.open(Access::Direct)?.write_all_at(&right, data)?)
        })?;
        let bound = target.bind_with(lab, &block)?;
        let disk = Disk::named(bound.disk_name()?);
        disk.expect("queue/dax", "1")?;
        let bytes = disk.bytes()?;
        ensure!(
            bytes == block.get(Field::Pages) * page,
            "{disk} has {bytes} bytes"
        );
        let mut found = Buffer::of_pages(right.len(), 0);
        disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
        expect_same(&format!("with pages of {page}"), &found, &right)?;
        bound.unbind()?;
        bound.give_up_namespace()?;
    }
    Ok(())
}

/// Padding at the start and at the end is not part of the disk; data and mappings are at the right
/// addresses. ndctl no longer makes such namespaces.
pub fn padding(lab: &mut Lab, mode: Mode) -> Result<()> {
    const START: u64 = 4 << 20;
    const END: u64 = 6 << 20;
    const LEN: usize = 2 << 20;
    let target = BlockTest::new(lab, mode)?;
    let block = target
        .good
        .with(Field::StartPad, START)
        .with(Field::EndTruncated, END)
        .with(Field::Align, PMD as u64);
    let data = START + target.good.get(Field::DataOffset);
    let size: u64 = target.namespace.get("size")?.parse()?;
    let before = Holdings::now()?;

    let bound = target.bind_with(lab, &block)?;
    let disk = Disk::named(bound.disk_name()?);
    let bytes = disk.bytes()?;
    ensure!(
        bytes == size - data - END,
        "{disk} has {bytes} bytes of {size}"
    );
    ensure!(
        bound.get("size")? == bytes.to_string(),
        "{bound} has another size"
    );
    let start = target.namespace.resource()?;
    ensure!(
        bound.resource()? == start + data,
        "{bound} is at {:#x}",
        bound.resource()?
    );
    let node = disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, vec![0; LEN])?;
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
    mapping.write(0, &stamped(LEN, 1));
    let place = syscall::block_of_file(&file, 0)? * PAGE as u64;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)?;
    let last = bytes - LEN as u64;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 2), last)?;
    // The other driver reads the same by requests; its mappings of such namespaces are wrong.
    let other = lab.driver.other();
    if other.is_available()? {
        other.load()?;
        bound.unbind()?;
        bound.bind(other)?;
        let mut found = Buffer::new(LEN);
        let file = disk.open(Access::Direct)?;
        for (at, tag) in [(place, 1), (last, 2)] {
            file.read_exact_at(&mut found, at)?;
            expect_same("through the other driver", &found, &stamped(LEN, tag))?;
        }
        drop(file);
        bound.unbind()?;
        other.unload()?;
        bound.bind(lab.driver)?;
    }
    bound.unbind()?;
    bound.give_up_namespace()?;
    BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        let mut found = Buffer::new(LEN);
        let file = disk.open(Access::Direct)?;
        for (at, tag) in [(place, 1), (last, 2)] {
            file.read_exact_at(&mut found, data + at)?;
            expect_same("in the namespace", &found, &stamped(LEN, tag))?;
        }
        Ok(())
    })?;
    before.expect_unchanged()
}

/// Versions before 1.4 lack some fields, whose bytes are ignored.
pub fn older_versions(lab: &mut Lab) -> Result<()> {
    let sizes = [(Field::PageSize, 0), (Field::PageStructSize, 0)];
    let pads = [(Field::StartPad, 123), (Field::EndTruncated, 456)];
    for (mode, minor, wrong) in [(Mode::FsdaxDev, 3, sizes), (Mode::FsdaxMem, 0, pads)] {
        println!("version 1.{minor}");
        let target = BlockTest::new(lab, mode)?;
        let mut block = target.good.with(Field::MinorVersion, minor);
        for (field, value) in wrong {
            block = block.with(field, value);
        }
        let bound = target.bind_with(lab, &block)?;
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()?;
    }
    Ok(())
}
