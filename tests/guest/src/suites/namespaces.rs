// SPDX-License-Identifier: GPL-2.0

//! Many namespaces in one region, and several programs that make and remove them.

use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, LABELLED, Mode};
use crate::process::{Child, expect_no_thread_stuck};
use crate::sectors::{Buffer, expect_same};

pub const SUITE: Suite = Suite {
    name: "namespaces",
    tests: &[
        Test::new("twelve_in_a_region", twelve).within(180),
        Test::new("several_programs", several_programs).within(180),
    ],
};

/// The region with much space.
const LARGE: u32 = 2;

/// Removes all namespaces of a region.
fn emptied(lab: &Lab, index: u32) -> Result<Device> {
    let region = lab.region(index)?;
    // At first the region has no labels, and ndctl makes some only when it reconfigures.
    if region.get("nstype")? != LABELLED {
        lab.prepare_in(index, Mode::Raw)?;
    }
    run(
        "ndctl",
        &["destroy-namespace", "-f", "-r", region.name(), "all"],
    )?;
    Ok(region)
}

/// A namespace of 64 MiB with its struct pages on the medium, and what is stored in it.
struct Filled {
    /// Its physical address. The name changes when the region is enabled again.
    start: u64,
    size: u64,
    tag: u64,
}

impl Filled {
    /// Two of them share a section of the kernel's memory model, whose size is 128 MiB. With small
    /// pages the data begin at a multiple of 4 KiB only.
    fn new(lab: &Lab, region: &Device, small_pages: bool, tag: u64) -> Result<Filled> {
        let align = if small_pages { "4k" } else { "2M" };
        let more = ["-s", "64M", "-a", align];
        let made = ndctl::create(region, Mode::FsdaxDev, &more)?.show()?;
        let namespace = Device::named(&made.dev);
        holder(&namespace)?.expect_driver(Some(lab.driver))?;
        let filled = Filled {
            start: namespace.resource()?,
            size: made.size,
            tag,
        };
        let disk = filled.disk()?.open(Access::Direct)?;
        for at in filled.places() {
            disk.write_all_at(&filled.contents(at), at)?;
        }
        Ok(filled)
    }

    fn namespace(&self) -> Result<Device> {
        let is_here = |device: &Device| device.resource().is_ok_and(|start| start == self.start);
        let mut all = Device::all_of("namespace")?.into_iter();
        all.find(is_here)
            .with_context(|| format!("no namespace starts at {:#x}", self.start))
    }

    fn disk(&self) -> Result<Disk> {
        Ok(Disk::named(holder(&self.namespace()?)?.disk_name()?))
    }

    /// The start, the middle and the end.
    fn places(&self) -> [u64; 3] {
        let last = self.size - (1 << 20);
        [0, last / 2 / 4096 * 4096, last]
    }

    fn contents(&self, at: u64) -> Buffer {
        Buffer::stamped(1 << 20, (self.tag << 16) + (at >> 12))
    }

    fn expect_intact(&self) -> Result<()> {
        let disk = self.disk()?.open(Access::Direct)?;
        for at in self.places() {
            let right = self.contents(at);
            let mut found = Buffer::new(right.len());
            disk.read_exact_at(&mut found, at)?;
            let what = format!("{:#x} bytes behind {:#x}", at, self.start);
            expect_same(&what, &found, &right)?;
        }
        Ok(())
    }

    fn destroy(self) -> Result<()> {
        let namespace = self.namespace()?;
        run("ndctl", &["destroy-namespace", "-f", namespace.name()]).map(drop)
    }
}

/// Every other namespace is destroyed and made anew. The others keep their contents.
fn twelve(lab: &mut Lab) -> Result<()> {
    let region = emptied(lab, LARGE)?;
    let mut all = Vec::new();
    for index in 0..12 {
        all.push(Filled::new(lab, &region, index % 4 < 2, index)?);
    }
    let free = region.get("available_size")?;
    let (mut kept, mut starts) = (Vec::new(), Vec::new());
    for (index, filled) in all.into_iter().enumerate() {
        if index % 2 == 0 {
            kept.push(filled);
        } else {
            starts.push(filled.start);
            filled.destroy()?;
        }
    }
    kept.iter().try_for_each(Filled::expect_intact)?;

    // What was aligned to 2 MiB before is now aligned to 4 KiB, and the reverse.
    for index in 0..6 {
        let filled = Filled::new(lab, &region, index % 2 == 0, 100 + index)?;
        let start = filled.start;
        ensure!(starts.contains(&start), "{start:#x} was not free");
        kept.push(filled);
    }
    ensure!(region.get("available_size")? == free, "the space differs");
    kept.iter().try_for_each(Filled::expect_intact)?;
    region.unbind()?;
    region.enable_region()?;
    kept.iter().try_for_each(Filled::expect_intact)
}

/// Makes and removes namespaces. Returns how often that succeeded: two programs may choose the same
/// device for a new namespace, and one of them fails.
fn make_and_remove(region: &Device, mode: Mode, rounds: usize) -> usize {
    let round = |_: &usize| {
        let made = ndctl::create(region, mode, &["-s", "64M"])?;
        run("ndctl", &["destroy-namespace", "-f", &made.dev])
    };
    (0..rounds)
        .filter(|number| match round(number) {
            Ok(_) => true,
            Err(error) => {
                println!("{error:#}");
                false
            }
        })
        .count()
}

/// Several `ndctl` at once make, remove and list namespaces, two of them in the same region.
fn several_programs(lab: &mut Lab) -> Result<()> {
    const ROUNDS: usize = 3;
    const LIMIT: Duration = Duration::from_secs(120);
    let empty = || [0, 1, LARGE].map(|index| emptied(lab, index));
    let regions = empty().into_iter().collect::<Result<Vec<_>>>()?;
    let free = || -> Result<Vec<String>> {
        let sizes = regions.iter().map(|region| region.get("available_size"));
        sizes.collect()
    };
    let before = free()?;
    let mut messages = Messages::from_now()?;
    let mut makers = Vec::new();
    for (index, mode, at_least) in [
        (0, Mode::FsdaxMem, ROUNDS),
        (1, Mode::FsdaxDev, ROUNDS),
        (2, Mode::FsdaxMem, 0),
        (2, Mode::FsdaxDev, 0),
    ] {
        let region = &regions[index];
        makers.push(Child::start(format!("{region} {mode:?}"), |link| {
            let good = make_and_remove(region, mode, ROUNDS);
            println!("{region} {mode:?}: {good} of {ROUNDS} rounds have succeeded");
            ensure!(good >= at_least, "only {good} have succeeded");
            link.say(&format!("good {good}"))
        })?);
    }
    let mut lister = Child::start("the lister", |link| {
        while !link.is_told_to_go()? {
            run("ndctl", &["list", "-RNi"])?;
            sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    let mut good = Vec::new();
    for maker in &mut makers {
        good.push(maker.hear_value("good ", LIMIT)?.parse::<usize>()?);
        maker.expect_done(LIMIT)?;
    }
    ensure!(good[2] + good[3] > 0, "all have failed in the same region");
    lister.go()?;
    lister.expect_done(LIMIT)?;
    expect_no_thread_stuck()?;
    // The driver is not why a program fails.
    let failed = |said: &&String| said.contains("probe with driver");
    let failed: Vec<_> = messages.so_far()?.iter().filter(failed).collect();
    ensure!(failed.is_empty(), "the kernel says {failed:#?}");

    // A program that failed may have left a namespace behind.
    empty().into_iter().collect::<Result<Vec<_>>>()?;
    ensure!(free()? == before, "the space differs");
    let made = ndctl::create(&regions[2], Mode::FsdaxMem, &["-s", "64M"])?;
    let disk = Disk::named(made.blockdev.context("no disk")?);
    disk.open(Access::Direct)?.sync_all()?;
    Ok(())
}
