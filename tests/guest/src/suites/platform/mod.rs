// SPDX-License-Identifier: GPL-2.0

//! Persistent memory without NVDIMMs, as a device on the platform bus: which driver binds, its
//! regions, and its removal while it is in use. The device is that of a PC, with two ranges that
//! `memmap=` on the command line makes persistent. Behind them are one that is too small and one
//! whose address is not aligned.

mod fixture;
mod removal;

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Skip};
use crate::leaks::{Holdings, reservation};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::Mode;
use crate::platform::{LEGACY, LEGACY_DRIVER, LEGACY_MODULE, PlatformDevice};
use crate::sectors::{Buffer, expect_same, stamped};
pub use fixture::Fixture;
use fixture::LEN;
pub use removal::unbind_in_child;
use removal::{concurrent_unbinds, goes_in_use, while_retired};

pub const SUITE: Suite = Suite {
    name: "platform",
    tests: &[
        Test::new("module_declares_the_devices", declares),
        Test::new("each_range_is_a_region", each_range_is_a_region),
        Test::new("small_range_is_left_out", small_range),
        Test::new("unaligned_range_is_used_inside", unaligned_range),
        Test::new("unaligned_range_with_data_is_left_out", unaligned_data),
        Test::new("unbind_and_bind", unbind_and_bind),
        Test::new(
            "driver_override_gives_it_to_nd_e820_and_back",
            override_driver,
        ),
        Test::new("first_loaded_driver_binds", first_loaded_driver_binds),
        Test::new("device_without_memory_is_refused", without_memory),
        Test::new("range_that_is_busy", busy_range),
        Test::new("module_is_removed_unless_in_use", module_goes),
        Test::new("unbind_while_raw_namespaces_are_in_use", |lab| {
            goes_in_use(lab, Mode::Raw)
        }),
        Test::new("unbind_while_fsdax_namespaces_are_in_use", |lab| {
            goes_in_use(lab, Mode::FsdaxDev)
        }),
        Test::new("concurrent_unbinds", concurrent_unbinds),
        Test::new("rebind_while_a_range_is_retired", while_retired),
    ],
};

/// A step that takes longer hangs.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The device, if the driver under test supports it.
fn device(lab: &Lab) -> Result<PlatformDevice> {
    only_for_pmem_rs(lab)?;
    let device = PlatformDevice::named(LEGACY);
    device.expect_driver(Some(lab.driver.name()))?;
    Ok(device)
}

pub fn only_for_pmem_rs(lab: &Lab) -> Result<()> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem is not a platform driver").into());
    }
    Ok(())
}

/// The uevent of such a device has an alias of the module.
fn declares(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    for alias in [
        device.get("modalias")?,
        "of:NpmemT(null)Cpmem-region".to_owned(),
        "of:NpmemT(null)Cpmem-region-v2".to_owned(),
    ] {
        expect_alias(lab, &alias)?;
    }
    Ok(())
}

pub fn expect_alias(lab: &Lab, alias: &str) -> Result<()> {
    let found = run("modprobe", &["-R", alias])?;
    let is_ours = |name| name == lab.driver.name();
    ensure!(
        found.split_whitespace().any(is_ours),
        "{alias} is for {found:?}"
    );
    Ok(())
}

/// The persistent ranges of the firmware, from `/proc/iomem`.
fn ranges() -> Result<Vec<(u64, u64)>> {
    let iomem = fs::read_to_string("/proc/iomem")?;
    iomem
        .lines()
        .filter_map(|line| line.strip_suffix(" : Persistent Memory (legacy)"))
        .map(|range| {
            let (start, last) = range.split_once('-').context("a range without an end")?;
            let [start, last] = [start, last].map(|text| u64::from_str_radix(text.trim(), 16));
            let (start, last) = (start?, last?);
            Ok((start, last + 1 - start))
        })
        .collect()
}

fn each_range_is_a_region(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    let modules = fs::read_to_string("/proc/modules")?;
    ensure!(
        !modules.contains(LEGACY_MODULE),
        "{LEGACY_MODULE} is loaded"
    );
    ensure!(
        device.bus()?.get("provider")? == "e820",
        "the provider is {}",
        device.bus()?.get("provider")?
    );
    let regions = device.ranges()?;
    let ranges = ranges()?;
    ensure!(ranges.len() == 4, "the ranges are {ranges:x?}");
    let right = [ranges[0], ranges[1], ALIGNED];
    ensure!(
        regions == right,
        "the ranges are {ranges:x?}, the regions {regions:x?}"
    );
    for index in 0..3 {
        let namespace = lab.namespace(index)?;
        namespace.expect_driver(Some(lab.driver))?;
        Disk::named(namespace.disk_name()?).expect("queue/dax", "1")?;
    }
    Ok(())
}

/// The address and the size of the unaligned range, of what is aligned in it, and the line about
/// it.
const UNALIGNED: (u64, u64) = (1705 << 20, 9 << 20);
const ALIGNED: (u64, u64) = (1706 << 20, 8 << 20);
const UNALIGNED_LINE: &str = "[mem 0x6a900000-0x6b1fffff] ";

/// Binds the device again, and returns the line with this text about a range.
fn said_at_bind(lab: &Lab, device: &PlatformDevice, text: &[&str]) -> Result<String> {
    device.unbind()?;
    let mut messages = Messages::from_now()?;
    device.bind(lab.driver.name())?;
    let said = messages.expect(text)?;
    println!("the kernel says: {said}");
    Ok(said)
}

/// The log has the reason, and the other ranges have regions.
fn small_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    said_at_bind(
        lab,
        &device,
        &["[mem 0x6a400000-0x6a4017ff] is left out, nothing in it is aligned"],
    )?;
    for index in 0..3 {
        lab.namespace(index)?.expect_driver(Some(lab.driver))?;
    }
    Ok(())
}

/// The aligned inside has a disk with DAX, and the log says what is left out.
fn unaligned_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    let said = said_at_bind(lab, &device, &[UNALIGNED_LINE])?;
    let right = format!(
        "the {:#x} bytes from {:#x} on are used",
        ALIGNED.1, ALIGNED.0
    );
    ensure!(said.contains(&right), "the log says only `{said}`");
    let disk = disk_in(lab, 2)?;
    disk.expect("queue/dax", "1")?;
    disk.expect("size", &(ALIGNED.1 / 512).to_string())
}

/// Overwrites idle physical memory.
fn overwrite(address: u64, bytes: &[u8]) -> Result<()> {
    let memory = fs::File::options()
        .write(true)
        .open("/dev/mem")
        .context("opening /dev/mem")?;
    memory
        .write_all_at(bytes, address)
        .context("writing to /dev/mem")
}

/// The start is not moved away from a file system, and the log has the right `memmap=`.
fn unaligned_data(lab: &mut Lab) -> Result<()> {
    const EXT4_MAGIC: u64 = 1024 + 56;
    let device = device(lab)?;
    let mark = |bytes: &[u8]| {
        device.unbind()?;
        overwrite(UNALIGNED.0 + EXT4_MAGIC, bytes)?;
        device.bind(lab.driver.name())
    };
    mark(&[0x53, 0xef])?;
    let said = said_at_bind(lab, &device, &[UNALIGNED_LINE])?;
    let regions = device.ranges()?;
    mark(&[0, 0])?;
    let right = format!("memmap={:#x}!{:#x}", ALIGNED.1, ALIGNED.0);
    for text in ["is left out", "ext4", &right] {
        ensure!(
            said.contains(text),
            "the log does not say `{text}`: `{said}`"
        );
    }
    ensure!(regions.len() == 2, "the regions were {regions:x?}");
    let regions = device.ranges()?;
    ensure!(regions.len() == 3, "the regions are {regions:x?}");
    Ok(())
}

/// Writes a mark to the first disk that any driver of the range can read.
fn leave_mark(lab: &Lab, tag: u64) -> Result<()> {
    let disk = lab.prepare(Mode::Raw)?.disk;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, tag), 0)?;
    Ok(())
}

fn expect_mark(lab: &Lab, tag: u64) -> Result<()> {
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written", &found, &stamped(LEN, tag))
}

fn expect_nothing_left() -> Result<()> {
    let left = Device::all()?;
    ensure!(left.is_empty(), "on the nd bus are still {left:?}");
    let disks = Disk::all("pmem")?;
    ensure!(disks.is_empty(), "there are still {disks:?}");
    Ok(())
}

fn unbind_and_bind(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 1)?;
    let description = device.description()?;
    // The first round fills caches that stay filled.
    device.unbind()?;
    device.bind(lab.driver.name())?;
    let before = Holdings::now()?;
    for _ in 0..10 {
        device.unbind()?;
        expect_nothing_left()?;
        device.bind(lab.driver.name())?;
        expect_mark(lab, 1)?;
    }
    before.expect_unchanged()?;
    description.expect_same(&device.description()?)
}

/// The regions have the same attributes with both drivers, except that `nd_e820` makes a region of
/// each range as it is.
fn override_driver(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 2)?;
    let unaligned = device.regions()?;
    let ours = device.description()?.without(&unaligned[2]);

    device.set_override(Some(LEGACY_DRIVER))?;
    device.expect_driver(Some(lab.driver.name()))?;
    device.unbind()?;
    let refused = device.try_bind(lab.driver.name());
    errno::expect(
        "binding in spite of the override",
        refused,
        &[Errno::ENODEV],
    )?;
    run("modprobe", &[LEGACY_MODULE])?;
    settle()?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    expect_mark(lab, 2)?;
    let theirs = device.regions()?;
    ensure!(theirs.len() == 4, "{LEGACY_DRIVER} has {theirs:?}");
    let both = device
        .description()?
        .without(&theirs[2])
        .without(&theirs[3]);
    ours.expect_same(&both)?;

    device.set_override(Some(lab.driver.name()))?;
    device.unbind()?;
    device.probe()?;
    device.expect_driver(Some(lab.driver.name()))?;
    expect_mark(lab, 2)?;
    device.set_override(None)?;
    run("rmmod", &[LEGACY_MODULE]).map(drop)
}

fn first_loaded_driver_binds(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 3)?;
    run("modprobe", &[LEGACY_MODULE])?;
    device.expect_driver(Some(lab.driver.name()))?;
    lab.driver.unload()?;
    device.expect_driver(None)?;

    run("rmmod", &[LEGACY_MODULE])?;
    run("modprobe", &[LEGACY_MODULE])?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    lab.driver.load()?;
    device.expect_driver(Some(LEGACY_DRIVER))?;
    expect_mark(lab, 3)?;
    device.unbind()?;
    run("rmmod", &[LEGACY_MODULE])?;
    device.bind(lab.driver.name())?;
    expect_mark(lab, 3)
}

/// `driver_override` makes the driver probe any device.
fn without_memory(lab: &mut Lab) -> Result<()> {
    device(lab)?;
    let other = PlatformDevice::all()?
        .into_iter()
        .find(|other| other.driver().is_none() && other.path("driver_override").exists())
        .context("all devices on the platform bus have a driver")?;
    other.set_override(Some(lab.driver.name()))?;
    let mut messages = Messages::from_now()?;
    let refused = other.try_bind(lab.driver.name());
    other.set_override(None)?;
    errno::expect("binding a device without memory", refused, &[Errno::ENXIO])?;
    let said = messages.expect(&["not a device with persistent memory"])?;
    ensure!(
        said.contains(&other.to_string()),
        "`{said}` does not name {other}"
    );
    other.expect_driver(None)
}

/// Another driver has reserved a part of one range: the other range is not affected.
fn busy_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 4)?;
    let start = lab.namespace(0)?.resource()?;
    device.unbind()?;
    let address = format!("mem_address={start:#x}");
    let layout = ["mem_size=0x200000", "record_size=0x20000", "ecc=0"];
    // Loading it overwrites the contents.
    run("modprobe", &[&["ramoops", &address][..], &layout].concat())?;

    let mut messages = Messages::from_now()?;
    device.bind(lab.driver.name())?;
    messages.expect(&["is in use. /proc/iomem names its user"])?;
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(None)?;
    lab.namespace(1)?.expect_driver(Some(lab.driver))?;
    run("rmmod", &["ramoops"])?;
    namespace.bind(lab.driver)?;
    leave_mark(lab, 5)?;
    expect_mark(lab, 5)
}

fn expect_module_in_use(lab: &Lab) -> Result<()> {
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    Ok(())
}

/// Regions hold no reference to the module, but users of their namespaces do.
fn module_goes(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    leave_mark(lab, 6)?;
    lab.driver.unload()?;
    lab.driver.load()?;
    let before = Holdings::now()?;
    for _ in 0..5 {
        lab.driver.unload()?;
        device.expect_driver(None)?;
        expect_nothing_left()?;
        let by = ranges()?
            .into_iter()
            .filter_map(|(start, _)| reservation(start).transpose())
            .collect::<Result<Vec<_>>>()?;
        ensure!(by.is_empty(), "still reserved: {by:?}");
        lab.driver.load()?;
        expect_mark(lab, 6)?;
    }
    before.expect_unchanged()?;

    let disk = Disk::named(lab.namespace(1)?.disk_name()?);
    let open = disk.open_read_only()?;
    expect_module_in_use(lab)?;
    drop(open);
    Ext4.make(&disk.node_str())?;
    let mount = Ext4.mount(&disk.node_str(), "dax=always")?;
    expect_module_in_use(lab)?;
    device.expect_driver(Some(lab.driver.name()))?;
    mount.unmount()?;
    lab.driver.unload()?;
    lab.driver.load()?;
    expect_mark(lab, 6)
}

/// The disk of a region, after its namespace was bound automatically.
pub fn disk_in(lab: &Lab, region: u32) -> Result<Disk> {
    let bound = lab.holder_in(region)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Disk::named(bound.disk_name()?))
}
