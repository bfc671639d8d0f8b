// SPDX-License-Identifier: GPL-2.0

//! Persistent memory in a device tree. The tree is the runner's `device_tree.dts`, with other
//! addresses on arm64; some of its nodes are invalid on purpose.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::platform::{Fixture, LIMIT, disk_in, expect_alias, only_for_pmem_rs, unbind_in_child};
use super::{Suite, Test};
use crate::arch::{MEMORY, UNUSED_MEMORY};
use crate::command::run;
use crate::disk::Disk;
use crate::errno;
use crate::injection::{ASYNC, Injection, Scope};
use crate::lab::{Lab, Skip};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::platform::{PlatformDevice, TREE_DRIVER};
use crate::process::expect_no_thread_stuck;
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "device_tree",
    tests: &[
        Test::new("nodes_become_regions", nodes_become_regions),
        Test::new("alias_names_the_module", alias_names_the_module),
        Test::new("wrong_nodes_are_refused", wrong_nodes),
        Test::new("wrong_range_of_a_node_is_left_out", wrong_range),
        Test::new(
            "region_that_cannot_be_made_is_left_out",
            region_cannot_be_made,
        )
        .within(240),
        Test::new("same_regions_as_with_of_pmem", same_regions_as_with_of_pmem),
        Test::new("unbind_in_use", goes_in_use),
        Test::new("volatile_memory_in_use", volatile_goes),
    ],
};

/// Runs on a kernel whose command line reserves what is System RAM in the other suite.
pub const RESERVED: Suite = Suite {
    name: "device_tree_reserved",
    tests: &[Test::new("reserved_range_is_used", reserved_range)],
};

/// The nodes, by their offsets in the memory that the kernel leaves unused: one with two ranges,
/// one with volatile memory, one with a valid and an invalid range, and one that is not aligned.
const PERSISTENT: u64 = 0;
const VOLATILE: u64 = 0x1800_0000;
const HALF_WRONG: u64 = 0x1a00_0000;
const NOT_ALIGNED: u64 = 0x1b00_0800;
/// The index of the region with volatile memory in the order of addresses.
const VOLATILE_REGION: u32 = 2;
/// The range in System RAM.
const IN_USE: u64 = MEMORY + 0x2000_0000;

/// The name of the device for a node.
fn name(node: u64) -> String {
    format!("{:x}.pmem", UNUSED_MEMORY + node)
}

/// How the log names a range.
fn shown(start: u64, len: u64) -> String {
    format!("[mem {start:#x}-{:#x}]", start + len - 1)
}

/// The devices of nodes without a valid range, and the messages about them.
fn wrong() -> [(String, String); 2] {
    let range = shown(UNUSED_MEMORY + NOT_ALIGNED, 0x1000);
    [
        (
            name(NOT_ALIGNED),
            format!("{range} is left out, nothing in it is aligned"),
        ),
        (
            "pmem-without-reg".to_owned(),
            "the node needs a `reg`".to_owned(),
        ),
    ]
}

fn device(lab: &Lab, node: u64) -> Result<PlatformDevice> {
    only_for_pmem_rs(lab)?;
    let device = PlatformDevice::named(name(node));
    device.expect_driver(Some(lab.driver.name()))?;
    Ok(device)
}

fn expect(device: &Device, attribute: &str, right: &str) -> Result<()> {
    let found = device.get(attribute)?;
    ensure!(
        found == right,
        "{device}: {attribute} is `{found}`, expected `{right}`"
    );
    Ok(())
}

fn nodes_become_regions(lab: &mut Lab) -> Result<()> {
    for (node, kind, domain, numa_node, ranges) in [
        (
            PERSISTENT,
            "nd_pmem",
            Some("memory_controller"),
            "0",
            &[(0, 0x1000_0000), (0x1000_0000, 0x800_0000)][..],
        ),
        (
            VOLATILE,
            "nd_volatile",
            None,
            "-1",
            &[(VOLATILE, 0x200_0000)],
        ),
    ] {
        let name = name(node);
        let ranges: Vec<(u64, u64)> = ranges
            .iter()
            .map(|(offset, len)| (UNUSED_MEMORY + offset, *len))
            .collect();
        let device = device(lab, node)?;
        let bus = device.bus()?;
        expect(&bus, "provider", &name)?;
        let node_of = |path| fs::canonicalize(path);
        let node_path = node_of(device.path("of_node"))?;
        ensure!(
            node_of(bus.path("of_node"))? == node_path,
            "{bus} is not for {node_path:?}"
        );
        let found = device.ranges()?;
        for region in device.regions()? {
            expect(&region, "devtype", kind)?;
            match domain {
                Some(domain) => expect(&region, "persistence_domain", domain)?,
                None => ensure!(
                    !region.path("persistence_domain").exists(),
                    "{region} is said to be persistent"
                ),
            }
            expect(&region, "numa_node", numa_node)?;
            ensure!(
                node_of(region.path("of_node"))? == node_path,
                "{region} is not for {node_path:?}"
            );
        }
        ensure!(
            found == ranges,
            "{name} has the regions {found:x?}, expected {ranges:x?}"
        );
    }
    for region in 0..=VOLATILE_REGION {
        let namespace = lab.namespace(region)?;
        namespace.expect_driver(Some(lab.driver))?;
        Disk::named(namespace.disk_name()?).expect("queue/dax", "1")?;
    }
    Ok(())
}

fn alias_names_the_module(lab: &mut Lab) -> Result<()> {
    for node in [PERSISTENT, VOLATILE] {
        expect_alias(lab, &device(lab, node)?.get("modalias")?)?;
    }
    Ok(())
}

/// The log has the reason for each, and a failed probe leaves nothing behind.
fn wrong_nodes(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let before = Device::all()?;
    for (name, why) in wrong() {
        let device = PlatformDevice::named(name.clone());
        device.expect_driver(None)?;
        let mut messages = Messages::from_now()?;
        let refused = device.try_bind(lab.driver.name());
        errno::expect("binding a wrong node", refused, &[Errno::ENXIO])?;
        let said = messages.expect(&[&why])?;
        println!("the kernel says: {said}");
        ensure!(said.contains(&name), "`{said}` does not name {name}");
        device.expect_driver(None)?;
        let after = Device::all()?;
        ensure!(before == after, "there were {before:?}, and are {after:?}");
    }
    Ok(())
}

/// The valid range has a region, and the log has the reason for the other one.
fn wrong_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab, HALF_WRONG)?;
    device.unbind()?;
    let mut messages = Messages::from_now()?;
    device.bind(lab.driver.name())?;
    let range = shown(IN_USE, 0x100_0000);
    let said = messages.expect(&[&format!("{range} is left out, it is used as System RAM")])?;
    println!("the kernel says: {said}");
    let remedy = format!(
        "take it out of the memory nodes (`no-map` does not), reserve it by \
         memmap=0x1000000${IN_USE:#x} on"
    );
    ensure!(said.contains(&remedy), "it does not say `{remedy}`");
    let found = device.ranges()?;
    ensure!(
        found == [(UNUSED_MEMORY + HALF_WRONG, 0x100_0000)],
        "{device} has the regions {found:x?}"
    );
    Ok(())
}

/// The kernel was booted with the `memmap=` that the log names for this range. A PC ignores
/// `/reserved-memory`.
fn reserved_range(lab: &mut Lab) -> Result<()> {
    let device = device(lab, HALF_WRONG)?;
    let found = device.ranges()?;
    ensure!(
        found
            == [
                (IN_USE, 0x100_0000),
                (UNUSED_MEMORY + HALF_WRONG, 0x100_0000)
            ],
        "{device} has the regions {found:x?}"
    );
    let fixture = Fixture::on(0, &disk_in(lab, 0)?)?;
    let mut reader = fixture.start_reader()?;
    unbind_in_child(lab, &device)?;
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    device.bind(lab.driver.name())?;
    fixture.expect_intact(&disk_in(lab, 0)?)?;
    expect_no_thread_stuck()
}

/// Regions have the same attributes with both drivers.
fn same_regions_as_with_of_pmem(lab: &mut Lab) -> Result<()> {
    for node in [PERSISTENT, VOLATILE] {
        let device = device(lab, node)?;
        let ours = device.description()?;
        // of_pmem would bind the invalid nodes too.
        for (name, _) in wrong() {
            PlatformDevice::named(name).set_override(Some(lab.driver.name()))?;
        }
        run("modprobe", &[TREE_DRIVER])?;
        device.unbind()?;
        device.bind(TREE_DRIVER)?;
        settle()?;
        ours.expect_same(&device.description()?)?;
        device.unbind()?;
        device.bind(lab.driver.name())?;
        run("rmmod", &[TREE_DRIVER])?;
    }
    Ok(())
}

fn goes_in_use(lab: &mut Lab) -> Result<()> {
    let device = device(lab, PERSISTENT)?;
    let fixture = Fixture::on(0, &disk_in(lab, 0)?)?;
    let mut reader = fixture.start_reader()?;
    unbind_in_child(lab, &device)?;
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    // The data in the memory of another node are still there.
    let other = lab.namespace(0)?;
    ensure!(
        other.resource()? == UNUSED_MEMORY + VOLATILE,
        "{other} is at {:#x}",
        other.resource()?
    );
    other.expect_driver(Some(lab.driver))?;
    device.bind(lab.driver.name())?;
    fixture.expect_intact(&disk_in(lab, 0)?)?;
    expect_no_thread_stuck()
}

fn volatile_goes(lab: &mut Lab) -> Result<()> {
    let device = device(lab, VOLATILE)?;
    let fixture = Fixture::on(VOLATILE_REGION, &disk_in(lab, VOLATILE_REGION)?)?;
    let mut reader = fixture.start_reader()?;
    unbind_in_child(lab, &device)?;
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    device.bind(lab.driver.name())?;
    // The power was never off.
    fixture.expect_intact(&disk_in(lab, VOLATILE_REGION)?)?;
    expect_no_thread_stuck()
}

/// The last allocations of a probe, which make the regions, and the first ones, which make the bus.
/// Each of them is made to fail. Of those between, one of `STRIDE` is.
const LAST: u32 = 32;
const FIRST: u32 = 24;
const STRIDE: usize = 8;
/// The number of allocations differs from probe to probe by less than this. An allocation from the
/// slab also allocates a page if no slab has a free object.
const SPREAD: u32 = 16;
/// How often the last allocations are made to fail until each region has been left out.
const PASSES: usize = 4;

/// Allocations of a probe fail, one at a time. If only the region of one range cannot be made, the
/// other one is there, and the log says which is not. If the bus cannot be made, the probe fails.
///
/// The regions are made last. So the last allocation is made to fail first.
fn region_cannot_be_made(lab: &mut Lab) -> Result<()> {
    let device = device(lab, PERSISTENT)?;
    if !Path::new("/sys/kernel/debug/failslab").exists() {
        return Err(Skip("this kernel cannot make allocations fail").into());
    }
    let driver = lab.driver.name();
    let all = device.ranges()?;
    ensure!(all.len() == 2, "{device} has {all:x?}");
    device.unbind()?;
    let injection = Injection::new(lab.driver, ASYNC)?;
    sysfs::write("/dev/kmsg", klog::NO_MEMORY_FROM_HERE)?;

    let (result, count) = injection.count(Scope::ThreadInDriver, || device.try_bind(driver))?;
    result.context("binding it while allocations are counted")?;
    settle()?;
    device.unbind()?;

    let count = count.context("allocations of a thread can be counted")?;
    let mut failures = 0;
    let mut seen = BTreeSet::new();
    let mut fail = |nth, seen: &mut BTreeSet<_>| -> Result<()> {
        let mut messages = Messages::from_now()?;
        let (result, _) = injection.fail(Scope::ThreadInDriver, nth, || device.try_bind(driver))?;
        settle()?;
        if result.is_err() {
            errno::expect("binding it", result, &[Errno::ENOMEM, Errno::ENODEV])?;
            failures += 1;
            return device.expect_driver(None);
        }
        let found = device.ranges()?;
        for (start, len) in &all {
            let said = format!("{} is left out", shown(*start, *len));
            if !found.contains(&(*start, *len)) {
                // libnvdimm adds the device of a region later, and logs a failure itself.
                messages.expect(&[&said, "nd_async_device_register: failed"])?;
            }
        }
        seen.insert(found);
        device.unbind()
    };
    let last = count.saturating_sub(LAST).max(FIRST);
    for _ in 0..PASSES {
        for nth in (last + 1..=count + SPREAD).rev() {
            fail(nth, &mut seen)?;
        }
        if seen.contains(&all[..1]) && seen.contains(&all[1..]) {
            break;
        }
    }
    for nth in (FIRST + 1..=last).step_by(STRIDE) {
        fail(nth, &mut seen)?;
    }
    for nth in 1..=FIRST {
        fail(nth, &mut seen)?;
    }
    device.bind(driver)?;
    for right in [&all[..1], &all[1..]] {
        ensure!(seen.contains(right), "{right:x?} was not seen: {seen:x?}");
    }
    ensure!(failures > 0, "no probe failed");
    Ok(())
}
