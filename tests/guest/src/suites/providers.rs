// SPDX-License-Identifier: GPL-2.0

//! Regions on several NUMA nodes, namespaces of all modes in one of them, hotplug of an NVDIMM, and
//! users of the disk in the kernel.

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Suite, Test, kernel_users};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::host::Monitor;
use crate::lab::{Lab, Prepared, holder};
use crate::nd::{Device, disable_provider, enable_provider, settle};
use crate::ndctl::{self, Mode};
use crate::process::Child;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "providers",
    tests: &[
        Test::new("numa_node", numa_node),
        Test::new("loop_on_the_disk", kernel_users::loop_on_disk),
        Test::new("loop_on_a_dax_file", kernel_users::loop_on_dax_file),
        Test::new("raid0_on_two_disks", kernel_users::raid0),
        Test::new("raid1_on_two_disks", kernel_users::raid1),
        Test::new("stripe_with_dax", kernel_users::stripe_with_dax),
        Test::new("swap", kernel_users::swap).within(120),
        // From here on the second region is divided.
        Test::new("all_modes_in_one_region", all_modes).within(120),
        // From here on there is another region.
        Test::new("nvdimm_plugged_in_under_load", plugged_in),
        Test::new("swap_whose_disk_goes", kernel_users::swap_goes),
    ],
};

const LEN: usize = 8 << 20;
const SOON: Duration = Duration::from_secs(20);

/// The number of pages that a node's zone of device memory spans. It never shrinks.
fn device_pages(node: usize) -> Result<u64> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let is_zone = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words == ["Node", &format!("{node},"), "zone", "Device"]
    };
    let spanned = text
        .lines()
        .skip_while(|line| !is_zone(line))
        .find_map(|line| line.trim_start().strip_prefix("spanned"));
    let spanned = spanned.with_context(|| format!("node {node} has no zone for devices"))?;
    Ok(spanned.trim().parse()?)
}

fn free_kib(node: usize) -> Result<u64> {
    let path = format!("/sys/devices/system/node/node{node}/meminfo");
    let text = fs::read_to_string(path)?;
    let line = text.lines().find(|line| line.contains("MemFree:"));
    let words = line.context("no MemFree")?.split_whitespace();
    Ok(words.rev().nth(1).context("no number")?.parse()?)
}

/// The disk and the struct pages are on the node of the NVDIMM, and so is the memory for the struct
/// pages.
fn numa_node(lab: &mut Lab) -> Result<()> {
    for (region, node) in [(1, 1), (0, 0)] {
        let device = lab.region(region)?;
        let number = node.to_string();
        ensure!(
            device.get("numa_node")? == number,
            "{device} is on node {}",
            device.get("numa_node")?
        );
        lab.prepare_in(region, Mode::Raw)?;
        let before = free_kib(1)?;
        let Prepared {
            namespace,
            bound,
            disk,
        } = lab.prepare_in(region, Mode::FsdaxMem)?;
        let taken = before.saturating_sub(free_kib(1)?);
        for path in [bound.path("numa_node"), disk.path("device/numa_node")] {
            let found = sysfs::read(&path)?;
            ensure!(found == number, "{} is {found}", path.display());
        }
        // With the pages of the other NVDIMM there would be twice as many.
        let (pages, found) = (disk.bytes()? / 4096, device_pages(node)?);
        ensure!(
            (pages..2 * pages).contains(&found),
            "{namespace}, of node {node}, has {pages} pages; the zone of that node spans {found}"
        );
        // Nothing else uses the memory of node 1, which has no CPU.
        let right = pages * 64 / 1024;
        println!("{namespace}, of node {node}, took {taken} KiB from node 1 for {right} KiB");
        ensure!(
            (taken >= right * 3 / 4) == (node == 1),
            "{namespace}, of node {node}, took {taken} KiB from node 1 for {right} KiB"
        );
    }
    Ok(())
}

fn expect_contents(disk: &Disk, tag: u64) -> Result<()> {
    let mut found = Buffer::of_pages(LEN, 0);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same(&format!("what {disk} holds"), &found, &stamped(LEN, tag))
}

/// Each is unbound and bound without an effect on the others.
fn all_modes(lab: &mut Lab) -> Result<()> {
    let region = lab.region(1)?;
    run(
        "ndctl",
        &["destroy-namespace", "-f", "-r", region.name(), "all"],
    )?;
    let mut disks = Vec::new();
    for (tag, mode) in (1..).zip([Mode::FsdaxMem, Mode::FsdaxDev, Mode::Raw, Mode::Sector]) {
        let made = ndctl::create(&region, mode, &["-s", "64M"])?;
        let disk = Disk::named(made.blockdev.context("no disk")?);
        let bound = holder(&Device::named(made.dev))?;
        bound.expect_driver(Some(lab.driver))?;
        disk.open(Access::Direct)?
            .write_all_at(&Buffer::of_pages(LEN, tag), 0)?;
        disks.push((tag, disk, bound));
    }
    for (tag, _, bound) in &disks {
        bound.unbind()?;
        for (other, disk, _) in disks.iter().filter(|(other, ..)| other != tag) {
            expect_contents(disk, *other)?;
        }
        bound.bind(lab.driver)?;
    }
    disable_provider()?;
    enable_provider()?;
    // Names may have changed; the contents have not.
    let region = lab.region(1)?;
    let mut tags = Vec::new();
    for namespace in Device::all_of(&region.name().replace("region", "namespace"))? {
        if namespace.get("size")? == "0" {
            continue;
        }
        let bound = holder(&namespace)?;
        bound.expect_driver(Some(lab.driver))?;
        let disk = Disk::named(bound.disk_name()?);
        let found = (1..=4).find(|tag| expect_contents(&disk, *tag).is_ok());
        tags.push(found.with_context(|| format!("{disk} has lost what it held"))?);
    }
    tags.sort();
    ensure!(tags == [1, 2, 3, 4], "found again: {tags:?}");
    Ok(())
}

/// Hotplug of an NVDIMM under load adds a region. Its contents are intact after all regions were
/// removed and added again.
fn plugged_in(lab: &mut Lab) -> Result<()> {
    let used = lab.prepare_in(0, Mode::FsdaxMem)?.disk;
    let file = used.open(Access::Direct)?;
    let mut load = Child::start_ready("the load", |link| {
        let right = Buffer::of_pages(1 << 20, 7);
        let mut found = Buffer::of_pages(1 << 20, 0);
        link.say("ready")?;
        while !link.is_told_to_go()? {
            file.write_all_at(&right, 0)?;
            file.read_exact_at(&mut found, 0)?;
            expect_same("what was written", &found, &right)?;
        }
        Ok(())
    })?;
    let before = Device::all_of("region")?;
    let what = json!({
        "driver": "nvdimm", "id": "plugged", "memdev": "spare0", "label-size": 2 << 20,
    });
    Monitor::open()?.execute("device_add", what)?;
    let deadline = Instant::now() + SOON;
    let region = loop {
        let regions = Device::all_of("region")?;
        if let Some(region) = regions.into_iter().find(|region| !before.contains(region)) {
            break region;
        }
        ensure!(Instant::now() < deadline, "there is no new region");
        sleep(Duration::from_millis(50));
    };
    settle()?;
    let start = region.resource()?;
    let place = |lab: &Lab| -> Result<u32> {
        let mut places = 0..;
        Ok(loop {
            let place = places.next().context("too many regions")?;
            if lab.region(place)?.resource()? == start {
                break place;
            }
        })
    };
    let Prepared { disk, .. } = lab.prepare_in(place(lab)?, Mode::FsdaxMem)?;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::of_pages(LEN, 8), 0)?;
    expect_contents(&disk, 8)?;
    load.go()?;
    load.expect_done(SOON)?;
    drop(file);

    disable_provider()?;
    enable_provider()?;
    let bound = lab.holder_in(place(lab)?)?;
    bound.expect_driver(Some(lab.driver))?;
    expect_contents(&Disk::named(bound.disk_name()?), 8)
}
