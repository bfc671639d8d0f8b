// SPDX-License-Identifier: GPL-2.0

//! A kdump kernel: it has little memory, and what the crashed kernel has left on the medium, such
//! as the struct pages of a namespace, is to be saved. The command line has the address of a crash
//! dump that does not exist.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::probe::BlockTest;
use super::{Suite, Test};
use crate::command::run_expecting_failure;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::infoblock::{FSDAX, Field, InfoBlock};
use crate::lab::{Lab, Skip, holder};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::sectors::{Buffer, expect_same, stamped};

pub const SUITE: Suite = Suite {
    name: "kdump",
    tests: &[
        Test::new("raw_has_no_struct_pages", raw),
        Test::new("fsdax_mem_has_no_struct_pages", |lab| {
            fsdax(lab, IN_RAM, 2 * MIB)
        }),
        Test::new("fsdax_dev_keeps_what_is_on_the_medium", |lab| {
            fsdax(lab, ON_MEDIUM, 16 * MIB)
        }),
        Test::new("no_info_block_is_written", new_block),
    ],
};

const MIB: u64 = 1 << 20;
/// The modes in an info block.
const IN_RAM: u64 = 1;
const ON_MEDIUM: u64 = 2;
/// The end of what is reserved for info blocks.
const RESERVED: u64 = 8 << 10;
const LEN: usize = MIB as usize;

/// The idle namespace of the NVDIMM, which has no label.
fn namespace(lab: &Lab) -> Result<Device> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem makes struct pages in a kdump kernel, too").into());
    }
    lab.region(0)?.set("read_only", "0")?;
    let namespace = lab.namespace(0)?;
    release(&namespace)?;
    Ok(namespace)
}

fn release(namespace: &Device) -> Result<()> {
    let bound = holder(namespace)?;
    if bound.driver().is_some() {
        bound.unbind()?;
    }
    if bound != *namespace {
        bound.give_up_namespace()?;
    }
    Ok(())
}

/// Checks that no memory has struct pages besides System RAM.
fn expect_no_pages(disk: &Disk) -> Result<()> {
    disk.expect("queue/dax", "0")?;
    let zones = fs::read_to_string("/proc/zoneinfo")?;
    let of_devices = zones.split("Node ").filter(|zone| {
        let name = zone.lines().next().unwrap_or_default();
        name.ends_with(" Device")
    });
    for zone in of_devices {
        let present = zone
            .lines()
            .find_map(|line| line.trim().strip_prefix("present"))
            .context("a zone without a size")?;
        ensure!(present.trim() == "0", "there are {present} pages");
    }
    Ok(())
}

/// Removes the info block, and binds the namespace as raw again.
fn clear(lab: &Lab, namespace: &Device) -> Result<()> {
    release(namespace)?;
    BlockTest::with_whole_range(lab, namespace, |disk| {
        let zeroes = Buffer::new(RESERVED as usize);
        Ok(disk.open(Access::Direct)?.write_all_at(&zeroes, 0)?)
    })?;
    namespace.bind(lab.driver)
}

fn raw(lab: &mut Lab) -> Result<()> {
    let namespace = namespace(lab)?;
    namespace.bind(lab.driver)?;
    let disk = Disk::named(namespace.disk_name()?);
    expect_no_pages(&disk)?;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 1), MIB)?;
    namespace.unbind()?;
    namespace.bind(lab.driver)?;
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, MIB)?;
    expect_same("the disk", &found, &stamped(LEN, 1))
}

/// Fills the range with a pattern, and checks that binding writes nothing before the data, and that
/// the disk is the data.
fn fsdax(lab: &mut Lab, mode: u64, data_at: u64) -> Result<()> {
    let namespace = namespace(lab)?;
    let mut block = InfoBlock::blank(FSDAX);
    for (field, value) in [
        (Field::MajorVersion, 1),
        (Field::MinorVersion, 2),
        (Field::DataOffset, data_at),
        (Field::Mode, mode),
        (Field::Align, 2 * MIB),
    ] {
        block.set(field, value);
    }
    block.seal();
    let before = stamped((data_at - RESERVED) as usize, 2);
    BlockTest::with_whole_range(lab, &namespace, |disk| {
        let file = disk.open(Access::Buffered)?;
        file.write_all_at(&before, RESERVED)?;
        file.write_all_at(&stamped(LEN, 3), data_at)?;
        block.write(&file)
    })?;

    let claimed = namespace.try_bind(lab.driver);
    errno::expect("binding the namespace", claimed, &[Errno::ENXIO])?;
    settle()?;
    let pfn = holder(&namespace)?;
    pfn.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(pfn.disk_name()?);
    expect_no_pages(&disk)?;
    let size = lab.region(0)?.get("size")?.parse::<u64>()?;
    ensure!(disk.bytes()? == size - data_at, "{} bytes", disk.bytes()?);
    // libnvdimm computes these from its copy of the info block.
    let expect_attributes = |pfn: &Device| -> Result<()> {
        let (start, bytes) = (pfn.resource()?, pfn.get("size")?.parse::<u64>()?);
        ensure!(
            bytes == size - data_at && start == namespace.resource()? + data_at,
            "{pfn} begins at {start:#x} and has {bytes} bytes"
        );
        Ok(())
    };
    expect_attributes(&pfn)?;
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("the disk", &found, &stamped(LEN, 3))?;

    // The same by hand. Such a device has no copy of its own before it is bound.
    release(&namespace)?;
    let by_hand = Device::named(lab.region(0)?.get("pfn_seed")?);
    by_hand.set("mode", if mode == ON_MEDIUM { "pmem" } else { "ram" })?;
    by_hand.set("uuid", "00000000-0000-0000-0000-000000000000")?;
    by_hand.set("namespace", namespace.name())?;
    by_hand.bind(lab.driver)?;
    expect_attributes(&by_hand)?;

    release(&namespace)?;
    BlockTest::with_whole_range(lab, &namespace, |disk| {
        let file = disk.open(Access::Buffered)?;
        let mut found = vec![0; before.len()];
        file.read_exact_at(&mut found, RESERVED)?;
        expect_same("what is before the data", &found, &before)
    })?;
    clear(lab, &namespace)
}

/// Creating a namespace fails, and the log says why.
fn new_block(lab: &mut Lab) -> Result<()> {
    let namespace = namespace(lab)?;
    let mut messages = Messages::from_now()?;
    run_expecting_failure(
        "ndctl",
        &[
            "create-namespace",
            "-f",
            "-e",
            namespace.name(),
            "-m",
            "fsdax",
        ],
    )?;
    messages.expect(&["a kdump kernel writes no info block"])?;
    release(&namespace)?;
    BlockTest::with_whole_range(lab, &namespace, |disk| {
        let mut found = vec![1; RESERVED as usize];
        disk.open(Access::Buffered)?.read_exact_at(&mut found, 0)?;
        ensure!(found.iter().all(|byte| *byte == 0), "it was written");
        Ok(())
    })?;
    clear(lab, &namespace)
}
