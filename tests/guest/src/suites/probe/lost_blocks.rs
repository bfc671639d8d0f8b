// SPDX-License-Identifier: GPL-2.0

//! Namespaces whose label says that there is an info block, and that have none.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::block_test::BlockTest;
use super::labels::set_unknown_class;
use super::{find_mark, leave_mark};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::errno;
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::nd::{Device, disable_provider, enable_provider};
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same};

/// The bytes before the data of any mode. An info block is in one of both pages.
const HEAD: usize = 8192;
/// An offset in the data of any mode.
const DATA_AT: u64 = 64 << 20;

/// The claim class of a mode.
fn class_of(mode: Mode) -> &'static str {
    match mode {
        Mode::Raw => "",
        Mode::FsdaxMem | Mode::FsdaxDev => "pfn",
        Mode::Sector => "btt",
        Mode::Devdax => "dax",
    }
}

fn name_of(mode: Mode) -> &'static str {
    match mode {
        Mode::Raw => "raw",
        Mode::FsdaxMem | Mode::FsdaxDev => "fsdax",
        Mode::Sector => "sector",
        Mode::Devdax => "devdax",
    }
}

/// Makes the namespace in a mode, and zeroes its info block. It is idle afterwards.
pub fn lose_block(lab: &Lab, mode: Mode) -> Result<Device> {
    let namespace = lab.namespace(0)?;
    ndctl::reconfigure(&namespace, mode)?;
    if mode != Mode::Devdax {
        leave_mark(&Disk::named(holder(&namespace)?.disk_name()?))?;
    }
    erase_block(lab, &namespace)?;
    Ok(namespace)
}

/// Zeroes the info block of a namespace in use, if it has one. It is idle afterwards.
fn erase_block(lab: &Lab, namespace: &Device) -> Result<()> {
    let bound = holder(namespace)?;
    bound.unbind()?;
    if bound == *namespace {
        return Ok(());
    }
    bound.give_up_namespace()?;
    BlockTest::with_whole_range(lab, namespace, |disk| {
        Ok(disk
            .open(Access::Direct)?
            .write_all_at(&Buffer::new(HEAD), 0)?)
    })
}

/// Checks that the namespace is refused with one line, which has the remedies.
fn expect_refused(lab: &Lab, namespace: &Device, mode: Option<Mode>) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it without a block", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["the info block for mode"])?;
    let name = namespace.name();
    let create = format!("ndctl create-namespace -f -e {name}");
    let create = match mode {
        Some(mode) => format!("`{create} -m {}`", name_of(mode)),
        None => format!("`{create}`"),
    };
    let named = mode.map_or("(unknown)", name_of);
    let start = format!("the info block for mode {named} is missing");
    let mut rest = line.as_str();
    // The lasting remedy is the first one.
    for piece in [start.as_str(), "holder_class", "force_raw", &create] {
        let Some((_, after)) = rest.split_once(piece) else {
            anyhow::bail!("the log says `{line}`, and not {piece} at the right place");
        };
        rest = after;
    }
    expect_idle(namespace)
}

fn expect_idle(namespace: &Device) -> Result<()> {
    namespace.expect_driver(None)?;
    ensure!(holder(namespace)? == *namespace, "{namespace} is claimed");
    let disks = Disk::all("pmem")?;
    ensure!(disks.is_empty(), "there are {disks:?}");
    Ok(())
}

fn reload_provider(lab: &Lab) -> Result<Device> {
    disable_provider()?;
    enable_provider()?;
    lab.namespace(0)
}

/// The namespace is raw from now on if its claim class is deleted, and nothing else changes.
fn make_raw(lab: &Lab, namespace: &Device) -> Result<()> {
    namespace.set("holder_class", "\n")?;
    for _ in 0..2 {
        namespace.bind(lab.driver)?;
        Disk::named(namespace.disk_name()?).bytes()?;
        namespace.unbind()?;
    }
    let namespace = reload_provider(lab)?;
    namespace.expect_driver(Some(lab.driver))?;
    let class = namespace.get("holder_class")?;
    ensure!(class.is_empty(), "its claim class is {class}");
    Ok(())
}

fn data(disk: &Disk) -> Result<Buffer> {
    let mut found = Buffer::new(1 << 20);
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, DATA_AT)?;
    Ok(found)
}

pub fn lost_block(lab: &mut Lab, mode: Mode) -> Result<()> {
    let namespace = lose_block(lab, mode)?;
    let class = namespace.get("holder_class")?;
    ensure!(class == class_of(mode), "{mode:?} has the class {class}");
    let before = BlockTest::with_whole_range(lab, &namespace, data)?;
    expect_refused(lab, &namespace, Some(mode))?;
    expect_refused(lab, &namespace, Some(mode))?;
    let namespace = reload_provider(lab)?;
    expect_idle(&namespace)?;
    expect_refused(lab, &namespace, Some(mode))?;

    make_raw(lab, &namespace)?;
    let namespace = lab.namespace(0)?;
    let disk = Disk::named(namespace.disk_name()?);
    expect_same("the data", &data(&disk)?, &before)
}

/// The last remedy in the log keeps the data of an fsdax namespace, as it says.
pub fn recreate_lost(lab: &mut Lab, mode: Mode, map: &str) -> Result<()> {
    let namespace = lose_block(lab, mode)?;
    expect_refused(lab, &namespace, Some(mode))?;
    let name = namespace.name();
    let create = [
        "create-namespace",
        "-f",
        "-e",
        name,
        "-m",
        "fsdax",
        "-M",
        map,
    ];
    run("ndctl", &create)?;
    let bound = holder(&namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    find_mark(&Disk::named(bound.disk_name()?))
}

/// ndctl sets the claim class before the info block exists, and may be killed in between. All that
/// it does with such a namespace works.
pub fn interrupted_creation(lab: &mut Lab) -> Result<()> {
    lab.prepare(Mode::Raw)?;
    for (class, mode, next) in [
        ("pfn", Mode::FsdaxMem, Mode::Raw),
        ("pfn", Mode::FsdaxMem, Mode::Sector),
        ("btt", Mode::Sector, Mode::FsdaxDev),
        ("btt", Mode::Sector, Mode::Devdax),
        ("dax", Mode::Devdax, Mode::FsdaxMem),
    ] {
        println!("{class}, then {next:?}");
        let namespace = interrupted(lab, class, mode)?;
        let listed = ndctl::show(&namespace)?;
        ensure!(
            listed.state.as_deref() == Some("disabled"),
            "ndctl lists {listed:?}"
        );
        let made = ndctl::reconfigure(&namespace, next)?;
        ensure!(made.mode == name_of(next), "ndctl made {made:?}");
    }
    let namespace = interrupted(lab, "pfn", Mode::FsdaxMem)?;
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    let made = ndctl::create(&lab.region(0)?, Mode::Raw, &[])?;
    Device::named(made.dev).expect_driver(Some(lab.driver))
}

/// Makes a namespace whose creation was interrupted, and that is refused.
fn interrupted(lab: &Lab, class: &str, mode: Mode) -> Result<Device> {
    let namespace = lab.namespace(0)?;
    erase_block(lab, &namespace)?;
    namespace.set("holder_class", class)?;
    expect_refused(lab, &namespace, Some(mode))?;
    Ok(namespace)
}

pub fn unknown_class(lab: &mut Lab) -> Result<()> {
    let namespace = set_unknown_class(lab)?;
    let class = namespace.get("holder_class")?;
    ensure!(class == "<unknown>", "its claim class is {class}");
    expect_idle(&namespace)?;
    expect_refused(lab, &namespace, None)?;
    make_raw(lab, &namespace)
}
