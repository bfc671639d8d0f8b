// SPDX-License-Identifier: GPL-2.0

//! Bad sectors of a namespace whose struct pages are on the medium, before its data. Storing a
//! struct page there would be a machine check.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::Bench;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::injector::{Clear, Injector};
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same};
use crate::suites::namespaces::emptied;
use crate::suites::probe::expect_no_driver;

/// Where the struct pages begin in a namespace.
const START: u64 = 8 << 10;

/// They are cleared before the device gets its struct pages, in blocks of 4 KiB, up to the data and
/// not beyond.
pub fn cleared(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxDev)?;
    let start = bench.namespace.resource()? + START;
    let right = Buffer::stamped(64 << 10, 7);
    bench.disk.open(Access::Direct)?.write_all_at(&right, 0)?;
    bench.bound.unbind()?;
    bench.injector.inject(start + (64 << 10), 10 << 10)?;
    // A run that ends in the data, and begins in the middle of a page.
    bench.injector.inject(bench.start - 1536, 2560)?;

    bench.bound.bind(lab.driver)?;
    bench.expect_bad("0 2")?;
    let clears = [
        start + (64 << 10),
        start + (68 << 10),
        start + (72 << 10),
        bench.start - 4096,
    ]
    .map(|address| Clear { address, len: 4096 });
    let found = bench.injector.clears()?;
    ensure!(
        found == clears,
        "the provider was asked to clear {found:x?}, expected {clears:x?}"
    );
    let mut found = Buffer::new(right.len() - 1024);
    bench
        .disk
        .open(Access::Direct)?
        .read_exact_at(&mut found, 1024)?;
    expect_same("the data behind the bad sectors", &found, &right[1024..])
}

/// Also where the struct pages of a new device will be.
pub fn cleared_for_a_new_device(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::Raw)?;
    let address = bench.start + START + (512 << 10);
    bench.injector.inject(address, 512)?;
    bench.expect_bad(&format!("{} 1", (address - bench.start) / 512))?;

    ndctl::reconfigure(&bench.namespace, Mode::FsdaxDev)?;
    holder(&bench.namespace)?.expect_driver(Some(lab.driver))?;
    let clears = bench.injector.clears()?;
    ensure!(
        clears == [Clear { address, len: 4096 }],
        "the provider was asked to clear {clears:x?}"
    );
    Ok(())
}

/// A new device may replace an info block that another one has left, with the data elsewhere.
pub fn cleared_for_a_device_with_another_block(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let (region, namespace) = (lab.region(0)?, &bench.namespace);
    ensure!(
        bench.start - namespace.resource()? == 2 << 20,
        "the data begin at {:#x}",
        bench.start
    );
    bench.bound.unbind()?;
    bench.bound.give_up_namespace()?;
    let pfn = Device::named(region.get("pfn_seed")?);
    pfn.set("mode", "pmem")?;
    pfn.set("uuid", "5f0cf0a4-1d33-4ab2-9d3c-2f1f6e0d8a10")?;
    pfn.set("namespace", namespace.name())?;

    let address = namespace.resource()? + (4 << 20);
    bench.injector.inject(address, 512)?;
    bench.injector.set_limit(0)?;
    expect_not_cleared(lab, &pfn)?;
    bench.injector.set_limit(u64::MAX)?;
    pfn.bind(lab.driver)?;
    let data = pfn.resource()? - namespace.resource()?;
    ensure!(data == 10 << 20, "the data begin at {data:#x}");
    let cleared = bench.injector.clears()?.pop();
    ensure!(
        cleared == Some(Clear { address, len: 4096 }),
        "the provider was asked to clear {cleared:x?}"
    );
    Ok(())
}

/// A half-configured device changes nothing on the medium.
pub fn without_uuid(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::Raw)?;
    let (region, namespace) = (lab.region(0)?, &bench.namespace);
    bench.bound.unbind()?;
    bench.injector.inject(bench.start + (1 << 20), 512)?;
    let pfn = Device::named(region.get("pfn_seed")?);
    pfn.set("mode", "pmem")?;
    pfn.set("namespace", namespace.name())?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::ENODEV])?;

    pfn.give_up_namespace()?;
    namespace.bind(lab.driver)?;
    bench.expect_bad("2048 1")?;
    bench.expect_clears(&[])
}

fn expect_not_cleared(lab: &Lab, pfn: &Device) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    messages.expect(&["has its struct pages (map=dev), and the platform could not clear it"])?;
    pfn.expect_driver(None)?;
    // nd_pmem would never end.
    expect_no_driver(lab, pfn)
}

/// If the platform cannot clear them, the device is not bound.
pub fn not_cleared(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxDev)?;
    bench.bound.unbind()?;
    bench
        .injector
        .inject(bench.namespace.resource()? + START + (64 << 10), 512)?;
    bench.injector.set_limit(0)?;
    expect_not_cleared(lab, &bench.bound)?;
    bench.injector.set_limit(u64::MAX)?;
    bench.bound.bind(lab.driver)
}

/// Bad sectors of another namespace, which libnvdimm would take for those of the struct pages: the
/// device is not bound, and the other namespace keeps its contents.
///
/// Leaves bad sectors, which the firmware of QEMU cannot clear.
pub fn of_the_namespace_before(lab: &mut Lab) -> Result<()> {
    let injector = Injector::new()?;
    let region = lab.region(1)?;
    // Loading the provider again unbinds all regions.
    if region.driver().is_none() {
        region.enable_region()?;
    }
    let region = emptied(lab, 1)?;
    let align = region.get("align")?;
    region.set("align", "0x200000")?;
    let make = |size: &[&str]| -> Result<Device> {
        let namespace = Device::named(ndctl::create(&region, Mode::Raw, size)?.show()?.dev);
        namespace.expect_driver(Some(lab.driver))?;
        Ok(namespace)
    };
    let first = make(&["-s", "4M"])?;
    let second = make(&[])?;
    ensure!(
        second.resource()? == first.resource()? + (4 << 20),
        "{second} is not behind {first}"
    );
    let disk = Disk::named(first.disk_name()?);
    let right = Buffer::stamped(4 << 20, 5);
    disk.open(Access::Direct)?.write_all_at(&right, 0)?;
    // ndctl would want another alignment.
    second.unbind()?;
    let pfn = Device::named(region.get("pfn_seed")?);
    pfn.set("align", "0x200000")?;
    pfn.set("mode", "pmem")?;
    pfn.set("uuid", "5f0cf0a4-1d33-4ab2-9d3c-2f1f6e0d8a11")?;
    pfn.set("namespace", second.name())?;
    pfn.bind(lab.driver)?;
    // As the driver has computed it before libnvdimm did.
    let data = pfn.resource()? - second.resource()?;
    ensure!(data == 8 << 20, "the data begin at {data:#x}");
    pfn.unbind()?;

    // The page before the second namespace.
    let address = second.resource()? - 4096;
    injector.inject_elsewhere(&disk, address, 512)?;
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["which is elsewhere, for one in its struct pages"])?;
    ensure!(
        line.contains(&format!("{address:#x}")),
        "the log says only `{line}`"
    );

    expect_no_driver(lab, &pfn)?;

    let sector = (4 << 20) / 512 - 8;
    disk.expect("badblocks", &format!("{sector} 1"))?;
    let mut found = Buffer::new((4 << 20) - 4096);
    let file = disk.open(Access::Direct)?;
    file.read_exact_at(&mut found, 0)
        .context("reading before the bad sector")?;
    expect_same("the namespace before", &found, &right[..found.len()])?;
    let mut found = Buffer::new(4096 - 512);
    file.read_exact_at(&mut found, (4 << 20) - (4096 - 512))
        .context("reading behind the bad sector")?;
    let behind = &right[right.len() - found.len()..];
    expect_same("the page before the second namespace", &found, behind)?;

    // libnvdimm does not look there, and this firmware cannot clear it.
    injector.inject_elsewhere(&disk, second.resource()? + (6 << 20), 512)?;
    expect_not_cleared(lab, &pfn)?;
    region.set("align", &align)
}
