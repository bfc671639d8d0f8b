// SPDX-License-Identifier: GPL-2.0

//! Devices go. That cannot be refused, so it has to succeed whatever fails.

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::binding::{give, order};
use super::{Failing, NO_MEMORY, Walk, small};
use crate::disk::Access;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::injection::{Allocator, Whose};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::Child;
use crate::retired;
use crate::sectors::{expect_same, stamped};

/// Those for whom the allocations are counted. The kernel cannot refuse to unbind once the driver is asked.
const EVERYBODY: [Whose; 3] = [
    Whose::Thread,
    Whose::Driver(Allocator::Slab),
    Whose::Driver(Allocator::Pages),
];
const DRIVER: [Whose; 2] = [
    Whose::Driver(Allocator::Slab),
    Whose::Driver(Allocator::Pages),
];

const LEN: usize = 1 << 20;
/// How long the driver waits for pages that are pinned.
const TIMEOUT: Duration = Duration::from_millis(100);
/// How long it may take to hear of something.
const PATIENCE: Duration = Duration::from_secs(30);

/// Unbinds while an allocation fails.
fn unbind(lab: &Lab, prepared: &Prepared, failing: &mut Failing<'_>) -> Result<()> {
    let order = order(lab, "unbind")?;
    let bound = &prepared.bound;
    match failing.call(NO_MEMORY, || give(&order, bound))? {
        Some(()) => {}
        None => {
            ensure!(
                failing.whose == Whose::Thread,
                "the driver was asked, and did not go"
            );
            // The order did not get as far as to the driver.
            bound.expect_driver(Some(lab.driver))?;
            give(&order, bound)?;
        }
    }
    bound.expect_driver(None)?;
    ensure!(!prepared.disk.exists(), "{} is there", prepared.disk);
    Ok(())
}

pub fn while_idle(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::FsdaxMem, Mode::FsdaxDev, Mode::Raw, Mode::Sector] {
        let prepared = small(lab, mode)?;
        let mut walk = Walk::new(lab, "unbind")?;
        for whose in EVERYBODY {
            walk.along(whose, |failing| {
                unbind(lab, &prepared, failing)?;
                prepared.bound.bind(lab.driver)
            })?;
        }
        walk.end()?;
    }
    Ok(())
}

/// Makes a file system with a file.
fn make(lab: &Lab) -> Result<Prepared> {
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let prepared = small(lab, Mode::FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make(&node)?;
    let mount = mount(&prepared)?;
    fs::write(mount.path("used"), stamped(LEN, 1))?;
    mount.unmount()?;
    Ok(prepared)
}

fn mount(prepared: &Prepared) -> Result<Mount> {
    Ext4.mount(&prepared.disk.node_str(), "dax=always")
}

fn map(mount: &Mount) -> Result<Mapping> {
    let file = Access::Buffered.open(&mount.path("used"))?;
    Ok(Mapping::of_pages(&file, LEN, Sharing::Shared, true)?)
}

fn touch(mapping: &Mapping) {
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
}

/// What is there after all of it.
fn expect_intact(prepared: &Prepared) -> Result<()> {
    let mount = mount(prepared)?;
    expect_same("the file", &fs::read(mount.path("used"))?, &stamped(LEN, 1))?;
    mount.unmount()?;
    Ext4.check(&prepared.disk.node_str())
}

pub fn while_mapped(lab: &mut Lab) -> Result<()> {
    let prepared = make(lab)?;
    let mut walk = Walk::new(lab, "unbind of mapped memory")?;
    for whose in DRIVER {
        walk.along(whose, |failing| {
            let mount = mount(&prepared)?;
            let mut user = Child::start_ready("who has it mapped", |link| {
                let mapping = map(&mount)?;
                mapping.store(0, mapping.load(0));
                touch(&mapping);
                link.say("ready")?;
                link.wait()?;
                touch(&mapping);
                Ok(())
            })?;
            unbind(lab, &prepared, failing)?;
            user.go()?;
            user.expect_signal(Signal::SIGBUS, PATIENCE)?;
            mount.unmount()?;
            retired::await_none(PATIENCE)?;
            prepared.bound.bind(lab.driver)
        })?;
    }
    walk.end()?;
    expect_intact(&prepared)
}
