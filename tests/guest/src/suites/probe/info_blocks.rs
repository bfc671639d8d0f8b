// SPDX-License-Identifier: GPL-2.0

//! Info blocks that are refused, and valid ones of unusual layouts and versions.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::block_test::BlockTest;
use super::{find_mark, leave_mark};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::infoblock::Field;
use crate::lab::{Lab, holder};
use crate::leaks::Holdings;
use crate::mapping::{Mapping, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall;

const NOT_KNOWN: &str = "its version is not known";

const CHECKSUM: &str = "its checksum is wrong";

const FOREIGN: &str = "it belongs to another namespace";

const NO_ARENA: &str = "the parts of its arena cannot be where it says";

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
    btt.set("sector_size", "4096")?;
    btt.give_up_namespace()?;
    target.recover(lab)
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

/// An info block of another namespace or with impossible values is refused, and nothing stays
/// mapped.
pub fn bad_pfn_block(lab: &mut Lab, mode: Mode) -> Result<()> {
    let target = BlockTest::new(lab, mode)?;
    let good = &target.good;
    let small_pages = good.with(Field::Align, 4096);
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
        // The driver accepts these; libnvdimm refuses them.
        (
            "a misaligned start",
            small_pages.with(Field::StartPad, 4096),
            "libnvdimm does not accept it",
        ),
        (
            "a misaligned end",
            good.with(Field::EndTruncated, 4096),
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
                good.with(Field::Mode, 2),
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
        .with(Field::EndTruncated, END);
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
    let place = syscall::block_of_file(&file, 0)? * 4096;
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
