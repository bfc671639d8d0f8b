// SPDX-License-Identifier: GPL-2.0

//! Many namespaces in one region.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::{Suite, Test};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::lab::{Lab, holder};
use crate::nd::Device;
use crate::ndctl::{self, LABELLED, Mode};
use crate::sectors::{Buffer, expect_same};

pub const SUITE: Suite = Suite {
    name: "namespaces",
    tests: &[Test::new("twelve_in_a_region", twelve).within(180)],
};

/// The region with much space.
const LARGE: u32 = 2;

/// Removes all namespaces of a region.
pub fn emptied(lab: &Lab, index: u32) -> Result<Device> {
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
