// SPDX-License-Identifier: GPL-2.0

//! Power-off and reboot while an unbind waits for a user that does not go. In each boot, PID 1
//! starts the [`user`](start) and the unbind after the last test, and the machine has to go down.
//! The runner sees whether it does.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::reboot::RebootMode;
use nix::unistd::pipe;

use super::platform::only_for_pmem_rs;
use super::{Suite, Test, notice};
use crate::driver::Driver;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::lessee::{Answer, Lessee};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::Child;
use crate::retired::{self, TIMEOUT};

/// The `struct page`s are on the medium, and a module keeps a lease.
pub const LEASE_ON_MEDIUM: Suite = Suite {
    name: "down_with_lease_on_medium",
    tests: &[Test::step("prepare", |lab| prepare(lab, Mode::FsdaxDev))],
};

/// A module keeps a lease, and `revoke_timeout_ms` is 0.
pub const LEASE_WITHOUT_LIMIT: Suite = Suite {
    name: "down_with_lease_without_limit",
    tests: &[Test::step("prepare", |lab| prepare(lab, Mode::FsdaxMem))],
};

/// A pipe that the kernel does not empty has a page, and `revoke_timeout_ms` is 0.
pub const PIN_WITHOUT_LIMIT: Suite = Suite {
    name: "down_with_pin_without_limit",
    tests: &[Test::step("prepare", |lab| prepare(lab, Mode::FsdaxMem))],
};

/// A program has the disk open, and the notice is an hour.
pub const NOTICE: Suite = Suite {
    name: "down_during_notice",
    tests: &[Test::step("prepare", |lab| prepare(lab, Mode::FsdaxMem))],
};

/// After this time an unbind is still waiting.
const A_WHILE: Duration = Duration::from_millis(1500);

fn prepare(lab: &mut Lab, mode: Mode) -> Result<()> {
    only_for_pmem_rs(lab)?;
    lab.prepare(mode)?;
    Ok(())
}

/// What stays until the machine is down.
#[derive(Default)]
pub struct Users {
    unbind: Option<Child>,
    file: Option<File>,
    pipe: Option<(OwnedFd, OwnedFd)>,
    mount: Option<Mount>,
}

/// Starts the user of a suite and the unbind, and returns when that waits. Also returns how the
/// machine has to go down.
pub fn start(lab: &Lab, suite: &str) -> Result<(Users, RebootMode)> {
    let (mut users, mut mode) = (Users::default(), RebootMode::RB_POWER_OFF);
    if lab.driver != Driver::PmemRs {
        return Ok((users, mode));
    }
    let namespace = lab.namespace(0)?;
    let bound = lab.holder_in(0)?;
    let disk = crate::disk::Disk::named(bound.disk_name()?);
    let prepared = Prepared {
        namespace,
        bound,
        disk,
    };
    let mut messages = Messages::from_now()?;
    let disk = &prepared.disk;

    if suite == LEASE_ON_MEDIUM.name {
        retired::set_timeout(lab.driver, TIMEOUT)?;
        keep_lease(&prepared)?;
        users.unbind(&prepared)?;
        messages.expect(&["its lease is kept by the module lessee"])?;
    } else if suite == LEASE_WITHOUT_LIMIT.name {
        retired::set_timeout(lab.driver, Duration::ZERO)?;
        let lessee = keep_lease(&prepared)?;
        users.unbind(&prepared)?;
        lessee.await_state("not told", |state| state.answered == 1)?;
    } else if suite == PIN_WITHOUT_LIMIT.name {
        retired::set_timeout(lab.driver, Duration::ZERO)?;
        users.pin(&prepared)?;
        users.unbind(&prepared)?;
    } else if suite == NOTICE.name {
        mode = RebootMode::RB_AUTOBOOT;
        notice::set_notice(Duration::from_secs(3600))?;
        users.file = Some(disk.open_read_only()?);
        users.unbind(&prepared)?;
    }

    sleep(A_WHILE);
    let unbind = users.unbind.as_mut().context("nothing was unbound")?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    let is_removed = !disk.exists();
    let is_early = [LEASE_WITHOUT_LIMIT.name, NOTICE.name].contains(&suite);
    ensure!(is_removed != is_early, "the disk is removed: {is_removed}");
    Ok((users, mode))
}

fn keep_lease(prepared: &Prepared) -> Result<Lessee> {
    let [lessee, _] = Lessee::load()?;
    lessee.set_answer(Answer::Keeps)?;
    lessee.get(&prepared.disk)?;
    Ok(lessee)
}

impl Users {
    fn unbind(&mut self, prepared: &Prepared) -> Result<()> {
        let bound = prepared.bound.clone();
        self.unbind = Some(Child::start("the unbinding process", move |_| {
            bound.unbind()
        })?);
        Ok(())
    }

    /// Puts a page of a file into a pipe, and closes the file.
    fn pin(&mut self, prepared: &Prepared) -> Result<()> {
        let node = prepared.disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("file"))?;
        fallocate(&file, FallocateFlags::empty(), 0, PAGE as i64)?;
        let mapping = Mapping::new(&file, PAGE, Sharing::Shared)?;
        mapping.store(0, 1);
        let (reader, writer) = pipe()?;
        let given = mapping.give_to_pipe(0, PAGE, &writer)?;
        ensure!(given == PAGE, "{given} bytes were put into the pipe");
        self.pipe = Some((reader, writer));
        self.mount = Some(mount);
        Ok(())
    }
}
