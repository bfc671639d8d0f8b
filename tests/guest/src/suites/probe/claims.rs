// SPDX-License-Identifier: GPL-2.0

//! Ranges and namespaces that are in use otherwise, and claims that are invalid.

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{find_mark, leave_mark};
use crate::command::run;
use crate::disk::Disk;
use crate::errno;
use crate::lab::{Lab, Prepared, Skip};
use crate::leaks::{Holdings, reservation};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::Mode;

/// Another driver has reserved a part of the range. It is ramoops, the kernel's driver for logs in
/// memory, which takes any physical address.
pub fn busy_range(lab: &mut Lab, offset: u64) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.ready(0)?;
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

/// A namespace that a pfn device has claimed cannot be bound directly.
pub fn claimed_namespace(lab: &mut Lab) -> Result<()> {
    let Prepared {
        namespace,
        bound,
        disk,
    } = lab.ready(0)?;
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

    // Conversely: while a raw namespace is bound, a pfn device that claims it cannot be bound.
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

/// Makes the seed claim the idle namespace, by the same steps as ndctl.
pub fn claim(namespace: &Device, settings: &[(&str, &str)]) -> Result<Device> {
    let seed = seed()?;
    for (attribute, value) in settings {
        seed.set(attribute, value)?;
    }
    seed.set("namespace", namespace.name())?;
    Ok(seed)
}

pub const UUID: &str = "5a3b1c9e-0d7f-4a63-9a57-0c2f6c1d8e42";

/// The size of a page that a PUD maps.
const GIB: &str = "1073741824";

pub fn unsatisfiable_alignment(lab: &mut Lab) -> Result<()> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    namespace.unbind()?;
    let before = Holdings::now()?;
    let pfn = claim(&namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let alignments = pfn.get("supported_alignments")?;
    if !alignments.split(' ').any(|alignment| alignment == GIB) {
        return Err(Skip("this kernel maps no persistent memory by pages of 1 GiB").into());
    }
    pfn.set("align", GIB)?;
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

pub fn pfn_without_uuid(lab: &mut Lab) -> Result<()> {
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
