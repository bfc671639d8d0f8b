// SPDX-License-Identifier: GPL-2.0

//! Which driver gets a device: the list `except`, the order in which `ndctl` offers devices, and
//! the order in which the drivers were loaded.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::probe::BlockTest;
use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::coverage;
use crate::disk::Access;
use crate::driver::Driver;
use crate::errno;
use crate::lab::{Lab, Skip, holder};
use crate::messages::Messages;
use crate::nd::{Device, disable_provider, enable_provider, settle};
use crate::ndctl::Mode;
use crate::sectors::Buffer;
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "except",
    tests: &[
        Test::new("by_uuid_of_the_label", by_label),
        Test::new("by_uuid_of_the_info_block", by_info_block),
        Test::new("by_start_address", by_start),
        Test::new("ends_a_refusal", ends_refusal),
        Test::new("while_the_module_is_loaded", at_load),
        Test::new("wrong_entries_are_refused", wrong_entries),
        Test::new("list_can_be_written_as_it_reads", read_and_write),
        Test::new("ndctl_offers_namespaces_to_pmem_rs_first", ndctl_order),
        Test::new("driver_that_registered_first_binds", first_registered),
    ],
};

pub const ATTRIBUTE: &str = "/sys/bus/nd/drivers/pmem_rs/except";
/// A UUID that no device has.
const UNKNOWN: &str = "00000000-1111-2222-3333-444444444444";

/// Leaves no namespace to other drivers.
pub fn reset() -> Result<()> {
    if Path::new(ATTRIBUTE).exists() {
        sysfs::write(ATTRIBUTE, "\n")?;
    }
    Ok(())
}

fn both(lab: &Lab) -> Result<()> {
    if lab.driver != Driver::PmemRs {
        return Err(Skip("nd_pmem has no such list").into());
    }
    if !lab.driver.other().is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    Ok(())
}

pub fn try_set(list: &str) -> io::Result<()> {
    sysfs::try_write(ATTRIBUTE, list)
}

/// Checks that the list leaves the device that a namespace ends up with to nd_pmem, and that it is
/// bound as before without the list.
fn expect_left(lab: &Lab, namespace: &Device, entry: &str) -> Result<()> {
    let bound = holder(namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    let list = format!("{UNKNOWN}, {entry}");
    sysfs::write(ATTRIBUTE, &list)?;
    ensure!(sysfs::read(ATTRIBUTE)? == list, "the list is not shown");
    // A device that is bound stays bound.
    bound.expect_driver(Some(lab.driver))?;
    bound.unbind()?;
    let mut messages = Messages::from_now()?;
    let refused = bound.try_bind(lab.driver);
    errno::expect("binding it", refused, &[Errno::ENODEV])?;
    let line = format!("{bound}: left to other drivers");
    messages.expect(&[&line])?;

    let other = lab.driver.other();
    other.load()?;
    let taken = holder(namespace)?;
    taken.expect_driver(Some(other))?;
    // ndctl offers it to both.
    run("ndctl", &["disable-namespace", namespace.name()])?;
    run("ndctl", &["enable-namespace", namespace.name()])?;
    holder(namespace)?.expect_driver(Some(other))?;

    reset()?;
    other.unload()?;
    lab.driver.unload()?;
    lab.driver.load()?;
    holder(namespace)?.expect_driver(Some(lab.driver))
}

/// White space other than spaces separates entries as well.
fn read_and_write(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    sysfs::write(ATTRIBUTE, &format!("0x100000000\n0x200000000\t{UNKNOWN}\n"))?;
    let list = sysfs::read(ATTRIBUTE)?;
    ensure!(
        list == format!("0x100000000 0x200000000 {UNKNOWN}"),
        "the list is shown as `{list}`"
    );
    sysfs::write(ATTRIBUTE, &list)?;
    ensure!(sysfs::read(ATTRIBUTE)? == list, "the list has changed");
    reset()
}

fn by_label(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem, Mode::Sector] {
        let namespace = lab.prepare(mode)?.namespace;
        let uuid = namespace.get("uuid")?;
        expect_left(lab, &namespace, &uuid).with_context(|| format!("in mode {mode:?}"))?;
    }
    Ok(())
}

fn by_info_block(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    for mode in [Mode::FsdaxDev, Mode::Sector] {
        let prepared = lab.prepare(mode)?;
        let uuid = prepared.bound.get("uuid")?;
        expect_left(lab, &prepared.namespace, &uuid)
            .with_context(|| format!("in mode {mode:?}"))?;
    }
    Ok(())
}

fn by_start(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    let namespace = lab.prepare(Mode::FsdaxMem)?.namespace;
    let start = namespace.resource()?;
    expect_left(lab, &namespace, &format!("{start:#x}"))?;
    expect_left(lab, &namespace, &start.to_string())
}

/// A device that was refused is kept off other drivers until the list leaves it to them.
fn ends_refusal(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let (namespace, other) = (prepared.namespace, lab.driver.other());
    prepared.bound.unbind()?;
    prepared.bound.give_up_namespace()?;
    // The info block is lost, and the label says that there is one.
    BlockTest::with_whole_range(lab, &namespace, |disk| {
        let zeroes = Buffer::new(4096);
        Ok(disk.open(Access::Direct)?.write_all_at(&zeroes, 4096)?)
    })?;
    let refused = namespace.try_bind(lab.driver);
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;
    other.load()?;
    namespace.expect_driver(None)?;

    sysfs::write(ATTRIBUTE, &namespace.get("uuid")?)?;
    let left = namespace.try_bind(lab.driver);
    errno::expect("binding it", left, &[Errno::ENODEV])?;
    namespace.bind(other)?;
    namespace.unbind()?;
    other.unload()?;
    reset()?;
    lab.prepare(Mode::Raw).map(drop)
}

fn load_with(list: &str) -> Result<()> {
    let parameter = format!("except={list}");
    coverage::loading(|| run("modprobe", &["pmem_rs", &parameter]))?;
    settle()
}

/// Entries that match nothing are in the log. Other drivers may have the devices that match.
fn at_load(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let namespace = prepared.namespace;
    let [label, block] = [namespace.get("uuid")?, prepared.bound.get("uuid")?];
    let start = namespace.resource()?;
    let other = lab.driver.other();
    for bound_by_other in [false, true] {
        lab.driver.unload()?;
        if bound_by_other {
            other.load()?;
        }
        let mut messages = Messages::from_now()?;
        load_with(&format!("{label},{UNKNOWN},{block},0x1000,{start:#x}"))?;
        messages.expect(&[&format!("except: no device has the UUID {UNKNOWN}")])?;
        messages.expect(&["except: no namespace starts at 0x1000 so far"])?;
        let said = messages.so_far()?.iter();
        let said: Vec<_> = said.filter(|line| line.contains("except: no")).collect();
        ensure!(said.len() == 2, "the log says {said:#?}");
        holder(&namespace)?.expect_driver(bound_by_other.then_some(other))?;
    }
    other.unload()?;
    lab.driver.unload()?;
    lab.driver.load()?;
    ensure!(sysfs::read(ATTRIBUTE)?.is_empty(), "the list is not empty");
    holder(&namespace)?.expect_driver(Some(lab.driver))
}

fn wrong_entries(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    sysfs::write(ATTRIBUTE, UNKNOWN)?;
    let mut messages = Messages::from_now()?;
    let list = format!("0x1000,namespace0.0,{UNKNOWN}");
    errno::expect("writing it", try_set(&list), &[Errno::EINVAL])?;
    messages.expect(&["except: `namespace0.0` is neither a UUID nor an address"])?;
    ensure!(sysfs::read(ATTRIBUTE)? == UNKNOWN, "the list was replaced");

    lab.driver.unload()?;
    let mut messages = Messages::from_now()?;
    run_expecting_failure("modprobe", &["pmem_rs", "except=pmem0"])?;
    messages.expect(&["except: `pmem0` is neither a UUID nor an address"])?;
    lab.driver.load()
}

/// ndctl writes a namespace to the `bind` of all drivers in the order of the directory. kernfs
/// sorts it by a hash of the name: pmem_rs comes before nd_pmem. For a namespace with an info block
/// libnvdimm then makes another device, and the bus offers that one to the driver that was
/// registered first.
fn ndctl_order(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    let other = lab.driver.other();
    for (mode, other_is_first, right) in [
        (Mode::Raw, false, lab.driver),
        (Mode::Raw, true, lab.driver),
        (Mode::FsdaxMem, false, lab.driver),
        (Mode::FsdaxMem, true, other),
    ] {
        let namespace = lab.prepare(mode)?.namespace;
        lab.driver.unload()?;
        let first = if other_is_first { other } else { lab.driver };
        first.load()?;
        first.other().load()?;
        holder(&namespace)?.expect_driver(Some(first))?;
        run("ndctl", &["disable-namespace", namespace.name()])?;
        run("ndctl", &["enable-namespace", namespace.name()])?;
        holder(&namespace)?
            .expect_driver(Some(right))
            .with_context(|| format!("{mode:?}, loaded first: {first:?}"))?;
        other.unload()?;
        lab.driver.unload()?;
        lab.driver.load()?;
    }
    Ok(())
}

/// When a namespace appears, the bus offers it to the drivers in the order of their registration.
fn first_registered(lab: &mut Lab) -> Result<()> {
    both(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let start = prepared.namespace.resource()?;
    let other = lab.driver.other();
    for other_is_first in [false, true] {
        lab.driver.unload()?;
        let first = if other_is_first { other } else { lab.driver };
        first.load()?;
        first.other().load()?;
        disable_provider()?;
        enable_provider()?;
        let namespace = lab.namespace(0)?;
        ensure!(namespace.resource()? == start, "{namespace} is another one");
        holder(&namespace)?.expect_driver(Some(first))?;
        other.unload()?;
    }
    lab.driver.unload()?;
    lab.driver.load()
}
