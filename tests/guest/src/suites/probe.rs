// SPDX-License-Identifier: GPL-2.0

//! Devices that a driver must refuse, with an error and a word of explanation, and take once what
//! was wrong is put right.

use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::infoblock::{Field, InfoBlock};
use crate::lab::{Lab, Prepared, holder};
use crate::leaks::{Holdings, reservation};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};

pub const SUITE: Suite = Suite {
    name: "probe",
    tests: &[
        Test::new("busy_start_of_range", |lab| busy_range(lab, 0)),
        Test::new("busy_middle_of_range", |lab| busy_range(lab, 64 << 20)),
        Test::new("claimed_namespace", claimed_namespace),
        Test::new("unsatisfiable_alignment", unsatisfiable_alignment),
        Test::new("pfn_without_uuid", pfn_without_uuid),
        Test::new("damaged_info_block_means_raw", damaged_info_block),
        Test::new("unusable_info_block_is_refused", unusable_info_block),
    ],
};

/// Writes a megabyte that later steps find again.
fn leave_mark(disk: &Disk) -> Result<()> {
    Ok(disk
        .open(Access::Direct)?
        .write_all_at(&Buffer::stamped(1 << 20, 77), 4096)?)
}

fn find_mark(disk: &Disk) -> Result<()> {
    let mut found = Buffer::new(1 << 20);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 4096)?;
    expect_same(
        "what was written at first",
        &found,
        &Buffer::stamped(1 << 20, 77),
    )
}

/// Someone else has reserved a part of the range. The part is ramoops', the kernel's own driver for
/// logs in memory, which takes any physical address that it is given.
fn busy_range(lab: &mut Lab, offset: u64) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.prepare(Mode::FsdaxMem)?;
    let start = namespace.resource()? + offset;
    bound.unbind()?;
    let idle = Holdings::now()?;
    let address = format!("mem_address={start:#x}");
    run(
        "modprobe",
        &[
            "ramoops",
            &address,
            "mem_size=0x200000",
            "record_size=0x20000",
            "ecc=0",
        ],
    )?;
    let holder = reservation(start)?;
    ensure!(holder.is_some(), "ramoops has not reserved {start:#x}");

    for _ in 0..3 {
        let mut messages = Messages::from_now()?;
        let result = bound.try_bind(lab.driver);
        errno::expect("binding while a part is busy", result, &[Errno::EBUSY])?;
        let said = messages.expect(&["could not reserve", "is in use"])?;
        println!("the kernel says: {said}");
        bound.expect_driver(None)?;
        ensure!(!disk.exists(), "{disk} is there");
    }
    run("rmmod", &["ramoops"])?;
    idle.expect_unchanged()?;
    bound.bind(lab.driver)?;
    leave_mark(&disk)?;
    find_mark(&disk)
}

/// A namespace that a pfn device has claimed is not for sale twice.
fn claimed_namespace(lab: &mut Lab) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.prepare(Mode::FsdaxMem)?;
    leave_mark(&disk)?;
    for _ in 0..3 {
        let result = namespace.try_bind(lab.driver);
        errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    }
    find_mark(&disk)?;
    bound.unbind()?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    bound.bind(lab.driver)?;
    find_mark(&disk)?;

    // And the other way round: while one is in use as it is, a pfn device that claims it is idle.
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    let pfn = claim(&namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let result = pfn.try_bind(lab.driver);
    errno::expect(
        "binding a claim on a namespace in use",
        result,
        &[Errno::EBUSY],
    )?;
    namespace.expect_driver(Some(lab.driver))?;
    pfn.give_up_namespace()
}

/// The pfn device that the region keeps for the next fsdax namespace.
fn seed() -> Result<Device> {
    Ok(Device::named(Device::named("region0").get("pfn_seed")?))
}

/// Claims the idle namespace for the seed, as ndctl does step by step.
fn claim(namespace: &Device, settings: &[(&str, &str)]) -> Result<Device> {
    let seed = seed()?;
    for (attribute, value) in settings {
        seed.set(attribute, value)?;
    }
    seed.set("namespace", namespace.name())?;
    Ok(seed)
}

const UUID: &str = "5a3b1c9e-0d7f-4a63-9a57-0c2f6c1d8e42";

fn unsatisfiable_alignment(lab: &mut Lab) -> Result<()> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    namespace.unbind()?;
    let before = Holdings::now()?;
    let settings = [("mode", "ram"), ("align", "1073741824"), ("uuid", UUID)];
    let pfn = claim(&namespace, &settings)?;
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("aligning 512 MiB to 1 GiB", result, &[Errno::ENXIO])?;
    messages.expect(&["unable to satisfy requested alignment"])?;
    pfn.expect_driver(None)?;
    before.expect_unchanged()?;

    pfn.set("align", "2097152")?;
    pfn.bind(lab.driver)?;
    let disk = Disk::named(pfn.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)
}

fn pfn_without_uuid(lab: &mut Lab) -> Result<()> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    namespace.unbind()?;
    let pfn = claim(&namespace, &[("mode", "ram")])?;
    let result = pfn.try_bind(lab.driver);
    errno::expect(
        "binding a pfn device without uuid",
        result,
        &[Errno::ENODEV],
    )?;
    pfn.set("uuid", UUID)?;
    pfn.bind(lab.driver)
}

/// An fsdax namespace whose info block can be exchanged.
pub struct Patient {
    pub namespace: Device,
    pub good: InfoBlock,
}

impl Patient {
    /// Makes the namespace and leaves it unclaimed.
    pub fn new(lab: &Lab, mode: Mode) -> Result<Patient> {
        let Prepared {
            namespace,
            bound,
            disk,
        } = lab.prepare(mode)?;
        leave_mark(&disk)?;
        bound.unbind()?;
        bound.give_up_namespace()?;
        let good = Self::with_whole_range(lab, &namespace, |disk| {
            InfoBlock::read(&disk.open(Access::Buffered)?)
        })?;
        ensure!(
            good.with(Field::Mode, good.get(Field::Mode)) == good,
            "our checksum is wrong"
        );
        Ok(Patient { namespace, good })
    }

    fn with_whole_range<T>(
        lab: &Lab,
        namespace: &Device,
        work: impl FnOnce(&Disk) -> Result<T>,
    ) -> Result<T> {
        namespace.set("force_raw", "1")?;
        namespace.bind(lab.driver)?;
        let result = work(&Disk::named(namespace.disk_name()?));
        namespace.unbind()?;
        namespace.set("force_raw", "0")?;
        result
    }

    /// Puts another info block in place and lets the driver look at the namespace again.
    pub fn probe_with(&self, lab: &Lab, block: &InfoBlock) -> Result<io::Result<()>> {
        Self::with_whole_range(lab, &self.namespace, |disk| {
            block.write(&disk.open(Access::Buffered)?)
        })?;
        let result = self.namespace.try_bind(lab.driver);
        settle()?;
        Ok(result)
    }

    /// Puts the good one back: the namespace is an fsdax one again, with its contents.
    fn recover(&self, lab: &Lab) -> Result<()> {
        let result = self.probe_with(lab, &self.good)?;
        // The namespace itself is left for the pfn device that was made for it.
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        let pfn = holder(&self.namespace)?;
        ensure!(
            pfn.name().starts_with("pfn"),
            "{} is held by {pfn}",
            self.namespace
        );
        pfn.expect_driver(Some(lab.driver))?;
        find_mark(&Disk::named(pfn.disk_name()?))?;
        pfn.unbind()?;
        pfn.give_up_namespace()
    }
}

/// What is not an info block of this namespace is taken for data.
fn damaged_info_block(lab: &mut Lab) -> Result<()> {
    let patient = Patient::new(lab, Mode::FsdaxMem)?;
    let good = &patient.good;
    for (what, block) in [
        ("a wrong checksum", good.with_wrong_checksum()),
        (
            "the uuid of another namespace",
            good.with(Field::ParentUuid, 12345),
        ),
        ("an unknown mode", good.with(Field::Mode, 7)),
    ] {
        println!("info block with {what}");
        patient.probe_with(lab, &block)??;
        patient.namespace.expect_driver(Some(lab.driver))?;
        let disk = Disk::named(patient.namespace.disk_name()?);
        disk.expect("queue/dax", "0")?;
        let size: u64 = patient.namespace.get("size")?.parse()?;
        ensure!(
            disk.bytes()? == size,
            "{disk} has {} bytes of {size}",
            disk.bytes()?
        );
        patient.namespace.unbind()?;
        patient.recover(lab)?;
    }
    Ok(())
}

/// A sound info block that asks for what cannot be is refused, and nothing is mapped by halves.
fn unusable_info_block(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::FsdaxMem, Mode::FsdaxDev] {
        let patient = Patient::new(lab, mode)?;
        let good = &patient.good;
        let small_pages = good.with(Field::Align, 4096);
        let mut cases = vec![
            (
                "data that start within a page",
                good.with(Field::DataOffset, 0x20_1200),
                "bad offset",
            ),
            (
                "data behind the end",
                good.with(Field::DataOffset, 1 << 40),
                "exceeds capacity",
            ),
            (
                "a misaligned start",
                small_pages.with(Field::StartPad, 4096),
                "start misaligned",
            ),
            (
                "a misaligned end",
                good.with(Field::EndTruncated, 4096),
                "end misaligned",
            ),
        ];
        if mode == Mode::FsdaxDev {
            let block = good.with(Field::PageStructSize, 32);
            cases.push((
                "struct pages that are too small",
                block,
                "struct page size mismatch",
            ));
        }
        let before = Holdings::now()?;
        for (what, block, message) in cases {
            println!("{mode:?}: info block with {what}");
            let mut messages = Messages::from_now()?;
            let result = patient.probe_with(lab, &block)?;
            errno::expect(what, result, &[Errno::EOPNOTSUPP])?;
            messages.expect(&[message])?;
            patient.namespace.expect_driver(None)?;
            ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");
            patient.recover(lab)?;
        }
        before.expect_unchanged()?;
    }
    Ok(())
}
