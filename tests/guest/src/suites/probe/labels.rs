// SPDX-License-Identifier: GPL-2.0

//! Labels that contradict the info block, or have invalid values.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::{find_mark, find_mark_at, kept_off, leave_mark};
use crate::command::run;
use crate::disk::Disk;
use crate::errno;
use crate::infoblock::{
    LABEL_CLAIM_CLASS, LABEL_PLACE, LABEL_SECTOR_SIZE, LABEL_SET, LABEL_SIZE, add_label, labels_of,
    set_in_labels,
};
use crate::lab::{Lab, Prepared, holder};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};
use crate::suites::except;
use crate::suites::namespaces::emptied;
use crate::suites::platform::only_for_pmem_rs;
use crate::sysfs;

/// Labels can be wiped while the info blocks of their namespaces stay. A namespace whose new label
/// says that it is raw is raw.
pub fn outlived_its_label(lab: &mut Lab) -> Result<()> {
    lab.ready(0)?;
    while_disabled(&lab.region(0)?, || {
        run("ndctl", &["init-labels", "-f", "-V", "1.2", DIMM]).map(drop)
    })?;
    let mut messages = Messages::from_now()?;
    ndctl::create(&lab.region(0)?, Mode::Raw, &[])?;
    messages.expect(&["there is an info block of another namespace"])?;
    let namespace = lab.namespace(0)?;
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    leave_mark(&disk)?;
    find_mark(&disk)
}

pub const DIMM: &str = "nmem0";
const DIMM_DRIVER: &str = "/sys/bus/nd/drivers/nvdimm";

/// Label areas as ndctl reads and writes them.
const AREA: &str = "/tmp/labels";
/// The used start of the label area.
const LEN: &str = "16384";

fn read_labels() -> Result<Vec<u8>> {
    run("ndctl", &["read-labels", "-s", LEN, "-o", AREA, DIMM])?;
    Ok(fs::read(AREA)?)
}

fn write_labels(lab: &Lab, area: &[u8]) -> Result<()> {
    fs::write(AREA, area)?;
    while_disabled(&lab.region(0)?, || {
        run("ndctl", &["write-labels", "-s", LEN, "-i", AREA, DIMM]).map(drop)
    })
}

/// Where the first of two namespaces begins in its region, and the second, which is right behind
/// it.
const PLACE: u64 = 16 << 20;
const PLACE_OF_MOVED: u64 = PLACE + (128 << 20);

fn namespace_of(uuid: &str) -> Result<Device> {
    let has_it = |device: &Device| device.get("uuid").is_ok_and(|found| found == uuid);
    let mut all = Device::all_of("namespace")?.into_iter();
    all.find(has_it)
        .with_context(|| format!("there is no namespace {uuid}"))
}

/// A namespace has two labels. The first one is of another set of NVDIMMs, and libnvdimm takes the
/// size from there. The second one is smaller, and the namespace begins where that does, so that it
/// covers another namespace. It is refused, and the other one keeps its data. Without labels the
/// region can be used again.
pub fn over_another(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let region = emptied(lab, 0)?;
    let uuid_of_new = || -> Result<String> {
        let made = ndctl::create(&region, Mode::Raw, &["-s", "128M"])?;
        Device::named(made.dev).get("uuid")
    };
    let (covered, moved) = (uuid_of_new()?, uuid_of_new()?);
    let mut area = read_labels()?;
    let number = |value: u64| value.to_le_bytes();
    set_in_labels(&mut area, &covered, LABEL_PLACE, &number(PLACE))?;
    set_in_labels(&mut area, &moved, LABEL_PLACE, &number(PLACE_OF_MOVED))?;
    let mut messages = Messages::from_now()?;
    write_labels(lab, &area)?;
    for (uuid, offset) in [(&covered, PLACE), (&moved, PLACE_OF_MOVED)] {
        let namespace = namespace_of(uuid)?;
        namespace.expect_driver(Some(lab.driver))?;
        let start = namespace.resource()?;
        ensure!(
            start == region.resource()? + offset,
            "{namespace} is at {start:#x}"
        );
    }
    let refused = |line: &String| line.contains("contradict");
    ensure!(!messages.so_far()?.iter().any(refused), "one was refused");

    let first = labels_of(&area, &moved)?.remove(0);
    let mut second = area[first].to_vec();
    set_in_labels(&mut area, &moved, LABEL_SET, &number(12345))?;
    second[LABEL_PLACE].copy_from_slice(&number(0));
    second[LABEL_SIZE].copy_from_slice(&number(PLACE));
    add_label(&mut area, &second)?;
    write_labels(lab, &area)?;
    let (covered, moved) = (namespace_of(&covered)?, namespace_of(&moved)?);
    let place = moved.resource()?;
    ensure!(
        place == region.resource()?,
        "{moved} is at {place:#x}, and does not cover {covered}"
    );
    covered.expect_driver(Some(lab.driver))?;
    leave_mark(&Disk::named(covered.disk_name()?))?;
    covered.unbind()?;
    let result = moved.try_bind(lab.driver);
    errno::expect("binding it over another one", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["the labels contradict each other"])?;
    ensure!(
        [moved.name(), except::ATTRIBUTE, "ndctl zero-labels"]
            .iter()
            .all(|piece| line.contains(piece)),
        "the log says only `{line}`"
    );
    kept_off::expect_no_driver(lab, &moved)?;
    read_with_other(lab, &moved, &covered)?;
    covered.bind(lab.driver)?;
    find_mark(&Disk::named(covered.disk_name()?))?;
    covered.unbind()?;

    while_disabled(&lab.region(0)?, || {
        run("ndctl", &["zero-labels", DIMM]).map(drop)
    })?;
    ndctl::create(&lab.region(0)?, Mode::Raw, &[])?;
    lab.holder_in(0)?.expect_driver(Some(lab.driver))
}

/// Follows the remedy for a namespace that is over another one: leaves it to the other driver.
fn read_with_other(lab: &Lab, moved: &Device, covered: &Device) -> Result<()> {
    let other = lab.driver.other();
    if !other.is_available()? {
        return Ok(());
    }
    other.load()?;
    covered.expect_driver(Some(other))?;
    covered.unbind()?;
    sysfs::write(except::ATTRIBUTE, &moved.get("uuid")?)?;
    let left = moved.try_bind(lab.driver);
    errno::expect("binding a device of the list", left, &[Errno::ENODEV])?;
    moved.bind(other)?;
    find_mark_at(&Disk::named(moved.disk_name()?), PLACE)?;
    moved.unbind()?;
    except::reset()?;
    other.unload()
}

/// Runs `work` while the region and its NVDIMM are disabled, so that it can write labels.
pub fn while_disabled(region: &Device, work: impl FnOnce() -> Result<()>) -> Result<()> {
    region.try_unbind_region()?;
    sysfs::write(format!("{DIMM_DRIVER}/unbind"), DIMM)?;
    work()?;
    sysfs::write(format!("{DIMM_DRIVER}/bind"), DIMM)?;
    region.enable_region()
}

/// Changes a field in the label of a raw namespace, and returns its uuid. The namespace exists
/// again when this returns.
fn rewrite_label(lab: &Lab, field: Range<usize>, value: &[u8]) -> Result<String> {
    let Prepared { namespace, .. } = lab.prepare(Mode::Raw)?;
    let uuid = namespace.get("uuid")?;
    let mut area = read_labels()?;
    set_in_labels(&mut area, &uuid, field, value)?;
    write_labels(lab, &area)?;
    Ok(uuid)
}

/// Sets the sector size in the label of a raw namespace to 520 bytes, and returns its uuid.
pub fn ask_for_odd_sectors(lab: &Lab) -> Result<String> {
    rewrite_label(lab, LABEL_SECTOR_SIZE, &520_u64.to_le_bytes())
}

/// Sets the claim class in the label of a raw namespace to one that libnvdimm does not know.
pub fn set_unknown_class(lab: &Lab) -> Result<Device> {
    rewrite_label(lab, LABEL_CLAIM_CLASS, &[0x77; 16])?;
    lab.namespace(0)
}

/// Label and info block name two modes. The namespace is refused, and the remedy names neither.
/// nd_pmem takes it for raw.
pub fn other_mode(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let Prepared {
        namespace, bound, ..
    } = lab.prepare(Mode::FsdaxMem)?;
    bound.unbind()?;
    bound.give_up_namespace()?;
    namespace.set("holder_class", "dax")?;
    let mut messages = Messages::from_now()?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["the info block for mode fsdax"])?;
    let remedy = format!("`ndctl create-namespace -f -e {}`", namespace.name());
    for piece in [
        "the label says that the namespace has another mode",
        &remedy,
    ] {
        ensure!(line.contains(piece), "the log says only `{line}`");
    }

    // If the block is right, the label can follow it.
    namespace.set("holder_class", "pfn")?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding what is claimed", result, &[Errno::ENXIO])?;
    settle()?;
    holder(&namespace)?.expect_driver(Some(lab.driver))
}

/// A label can have an unsupported sector size.
pub fn odd_sector_size(lab: &mut Lab) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let uuid = ask_for_odd_sectors(lab)?;
    let line = messages.expect(&["the label asks for sectors of 520 bytes"])?;
    ensure!(
        line.contains("--sector-size=512"),
        "the log says only `{line}`"
    );
    let namespace = lab.namespace(0)?;
    ensure!(namespace.get("uuid")? == uuid, "{namespace} is another one");
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    disk.expect("queue/logical_block_size", "512")?;
    leave_mark(&disk)?;
    find_mark(&disk)?;

    // The remedy in the message works.
    run(
        "ndctl",
        &[
            "create-namespace",
            "-f",
            "-e",
            namespace.name(),
            "--sector-size=512",
        ],
    )?;
    let bound = lab.holder_in(0)?;
    bound.unbind()?;
    let mut messages = Messages::from_now()?;
    bound.bind(lab.driver)?;
    let warned = messages
        .so_far()?
        .iter()
        .any(|message| message.contains("asks for sectors"));
    ensure!(!warned, "the label still asks for them");
    Ok(())
}
