// SPDX-License-Identifier: GPL-2.0

//! Label areas with flipped bits and hostile values. Labels are parsed by libnvdimm, so the tests
//! check that the driver binds only ranges within the region, and that the former namespaces are
//! there with the right labels.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{cases, hostile, share};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::infoblock::{LABEL_SECTOR_SIZE, indexes_of, labels_of, seal_index, seal_label};
use crate::lab::{Lab, Prepared, holder};
use crate::mapping::PAGE;
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same};
use crate::sysfs;

const FILE: &str = "/tmp/labels";
const DIMM: &str = "nmem0";
const DIMM_DRIVER: &str = "/sys/bus/nd/drivers/nvdimm";
/// The size of the used start of the label area, with the index blocks and the labels in use.
const LEN: &str = "16384";
const MARK: usize = 1 << 20;

/// The fields of a label behind its uuid and its name.
const LABEL_FIELDS: &[Range<usize>] = &[
    80..84,   // flags
    84..86,   // how many labels the namespace has
    86..88,   // which of them this is
    88..96,   // of which set of NVDIMMs
    104..112, // where it starts
    112..120, // its size
    120..124, // its own place in the area
    124..125, // alignment
    128..144, // what the namespace is used as
];
/// The fields of an index block.
const INDEX_FIELDS: &[Range<usize>] = &[
    16..19, // flags
    19..20, // the size of labels
    20..24, // which of the two counts
    24..32, // where this one is
    32..40, // its size
    40..48, // where the other one is
    48..56, // where labels start
    56..60, // how many there are
    60..62, // version
    62..64,
    72..80, // which are free
];

/// The number of cases by result.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    no_namespace: u64,
    bound: u64,
    left_idle: u64,
}

pub fn fuzz(lab: &mut Lab) -> Result<()> {
    let Prepared {
        namespace, disk, ..
    } = lab.prepare(Mode::FsdaxMem)?;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(MARK, 9), 0)?;
    let uuid = namespace.get("uuid")?;
    run("ndctl", &["read-labels", "-s", LEN, "-o", FILE, DIMM])?;
    let good = fs::read(FILE)?;
    let mut tally = Tally::default();
    let time = share(lab);
    let all = cases(lab, "labels", time, |lab, random| {
        let (bad, what) = damage(&good, &uuid, random)?;
        exchange(lab, &bad).with_context(|| what.clone())?;
        // libnvdimm may refuse the NVDIMM or the region. It has no namespaces then.
        if start(lab).is_ok() {
            check_all(lab, &mut tally).with_context(|| what.clone())?;
        } else {
            tally.refused += 1;
            let disks = Disk::all("pmem")?;
            ensure!(disks.is_empty(), "{what}: refused, and there are {disks:?}");
        }

        exchange(lab, &good)?;
        start(lab)?;
        expect_as_before(lab, &uuid).with_context(|| format!("after {what}"))
    });
    if all.is_err() {
        // Other tests expect a namespace.
        exchange(lab, &good)?;
        start(lab)?;
    }
    let all = all?;
    println!("measured: {all} label areas: {tally:?}");
    Ok(())
}

/// Changes one or two places, and updates the checksums in most cases.
///
/// The sector size in a label is not changed: the kernel itself warns of invalid ones, see
/// `labels_make_the_kernel_warn` in docs/kernel-bugs.md. Suite `probe` has such a label.
fn damage(good: &[u8], uuid: &str, random: &mut ChaCha8Rng) -> Result<(Vec<u8>, String)> {
    let mut area = good.to_vec();
    let indexes = indexes_of(good)?;
    let labels = labels_of(good, uuid)?;
    let mut what = Vec::new();
    for _ in 0..random.random_range(1..=2) {
        let in_label = random.random();
        let (parts, fields): (&[Range<usize>], _) = if in_label {
            (&labels, LABEL_FIELDS)
        } else {
            (&indexes, INDEX_FIELDS)
        };
        let part = parts.choose(random).context("no labels")?.clone();
        let name = if in_label { "label" } else { "index" };
        let bytes = &mut area[part.clone()];
        if random.random_ratio(1, 4) {
            let bit = random.random_range(0..bytes.len() * 8);
            if in_label && LABEL_SECTOR_SIZE.contains(&(bit / 8)) {
                continue;
            }
            bytes[bit / 8] ^= 1 << (bit % 8);
            what.push(format!("{name} at {:#x}: bit {bit} changed", part.start));
        } else {
            let field = fields.choose(random).context("no fields")?.clone();
            let len = field.len().min(8);
            let mut right = [0; 8];
            right[..len].copy_from_slice(&bytes[field.clone()][..len]);
            let value = hostile(random, u64::from_le_bytes(right), 512 << 20);
            bytes[field.clone()][..len].copy_from_slice(&value.to_le_bytes()[..len]);
            what.push(format!("{name} at {:#x}: {field:?} {value:#x}", part.start));
        }
    }
    if random.random_ratio(4, 5) {
        for index in indexes {
            seal_index(&mut area[index]);
        }
        for label in labels {
            seal_label(&mut area[label]);
        }
        what.push("right checksums".to_owned());
    }
    Ok((area, what.join(", ")))
}

/// Writes another label area, and leaves the region disabled.
fn exchange(lab: &Lab, area: &[u8]) -> Result<()> {
    let region = lab.region(0)?;
    if region.driver().is_some() {
        region.try_unbind_region().context("disabling the region")?;
    }
    if Device::named(DIMM).driver().is_some() {
        sysfs::write(Path::new(DIMM_DRIVER).join("unbind"), DIMM)?;
    }
    fs::write(FILE, area)?;
    run("ndctl", &["write-labels", "-s", LEN, "-i", FILE, DIMM]).map(drop)
}

/// Makes libnvdimm read the label area and create its namespaces.
fn start(lab: &Lab) -> Result<()> {
    sysfs::write(Path::new(DIMM_DRIVER).join("bind"), DIMM)?;
    lab.region(0)?.enable_region()
}

/// Checks all namespaces, and reads both ends of each disk.
fn check_all(lab: &Lab, tally: &mut Tally) -> Result<()> {
    run("ndctl", &["list", "-RDNi"])?;
    let region = lab.region(0)?;
    let (start, size) = (region.resource()?, region.get("size")?.parse::<u64>()?);
    let disks = Disk::all("pmem")?;
    let namespaces = ndctl::list_all()?;
    for disk in &disks {
        tally.bound += 1;
        let bytes = disk.bytes()?;
        ensure!(
            bytes > 0 && bytes <= size,
            "{disk} has {bytes:#x} bytes, the region {size:#x}"
        );
        let file = disk.open(Access::Direct)?;
        for at in [0, bytes.saturating_sub(PAGE as u64)] {
            file.read_exact_at(&mut Buffer::of_pages(PAGE, 0), at)?;
        }
    }
    for namespace in &namespaces {
        let device = Device::named(namespace.dev.clone());
        if device.driver().is_none() && holder(&device)?.driver().is_none() {
            tally.left_idle += 1;
            continue;
        }
        let place = device.resource()?;
        let bytes: u64 = device.get("size")?.parse()?;
        ensure!(
            place >= start && place.saturating_add(bytes) <= start + size,
            "{device} is at {place:#x}, of {bytes:#x} bytes; the region is at {start:#x}"
        );
    }
    if namespaces.is_empty() {
        tally.no_namespace += 1;
    }
    Ok(())
}

fn expect_as_before(lab: &Lab, uuid: &str) -> Result<()> {
    settle()?;
    let namespace = lab.namespace(0)?;
    ensure!(namespace.get("uuid")? == uuid, "{namespace} is another one");
    let bound = holder(&namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(bound.disk_name()?);
    let mut found = Buffer::new(MARK);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written", &found, &Buffer::stamped(MARK, 9))
}
