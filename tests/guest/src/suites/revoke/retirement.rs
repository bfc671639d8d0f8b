// SPDX-License-Identifier: GPL-2.0

//! Retired ranges: what waits for them, and what cannot use them.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::fixture::Fixture;
use super::special::{back_to_normal, only_for_pmem_rs};
use super::users::Running;
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, User, Way};
use crate::command::{run, run_expecting_failure};
use crate::errno;
use crate::lab::{Lab, Skip};
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};

/// How long an unloading may take after its last wait. It waits for RCU several times.
const UNLOAD_LIMIT: Duration = Duration::from_secs(30);

/// Unbinds a device with pages in a pipe.
fn retire(lab: &Lab, fs: Fs) -> Result<(Fixture<'_>, Running)> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let user = User::ClosedPipe.start(&fixture)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    for line in retired::expect(1)? {
        println!("retired: {line}");
    }
    Ok((fixture, user))
}

/// Unmount starts while the page is pinned, and may wait until it is unpinned.
pub fn umount_waits(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::XfsRmap] {
        let (mut fixture, mut user) = retire(lab, fs)?;
        let root = fixture.root()?;
        fixture.leave_mount();
        let mut umount = Child::start("the unmounting process", |_| {
            Ok(umount2(&root, MntFlags::empty())?)
        })?;
        std::thread::sleep(Duration::from_millis(500));
        user.unpin()?;
        user.expect_gone()?;
        umount.expect_done(FREE_LIMIT)?;
        back_to_normal(fixture, Way::Unbind)?;
    }
    Ok(())
}

/// The code that frees the range at last is in the module.
pub fn module_stays(lab: &mut Lab) -> Result<()> {
    let (fixture, mut user) = retire(lab, Fs::Ext4)?;
    let output = run_expecting_failure("rmmod", &[lab.driver.name()])?;
    ensure!(output.contains("in use"), "rmmod says `{output}`");
    user.unpin()?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)?;
    lab.driver.unload()?;
    lab.driver.load()
}

/// While the module is being unloaded, it cannot retire a range, and must not underflow its
/// reference count, of which the kernel would warn.
pub fn module_goes(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    // For some of these, time is over after the revocation and before the range is free.
    for limit in (10..=60).step_by(10) {
        let limit = Duration::from_millis(limit);
        // Threads that have translated an address are to be waited for.
        Fixture::build_with_timeout(lab, Fs::Ext4, Under::Whole, limit)?.remove_devices()?;
        lab.driver.unload()?;
        lab.driver.load()?;
    }
    retired::set_timeout(lab.driver, TIMEOUT)
}

/// The module is unloaded by force while a file system is mounted. Its exit revokes the files, and
/// waits until the file system is unmounted, which calls the module.
pub fn module_is_forced(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let driver = lab.driver;
    let mut fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    let user = User::Reader.start(&fixture)?;
    let mut messages = Messages::from_now()?;
    let mut unload = Child::start("the unloading process", |link| {
        match driver.unload_by_force() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => link.say("refused"),
            result => Ok(result?),
        }
    })?;
    while bound.driver().is_some() {
        if unload.try_end()?.is_some() {
            unload.hear("refused", Duration::ZERO)?;
            return Err(Skip("the kernel does not unload modules by force").into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    user.expect_gone()?;
    let waits = messages.expect_within(&["module exit waits: "], UNBIND_LIMIT)?;
    println!("kernel: {waits}");
    ensure!(unload.try_end()?.is_none(), "the exit has not waited");

    fixture.remove_devices()?;
    unload.expect_done(UNLOAD_LIMIT)?;
    driver.load()?;
    fixture.expect_intact()?;
    expect_no_thread_stuck()
}

pub fn retired_range_is_exclusive(lab: &mut Lab) -> Result<()> {
    let (fixture, mut user) = retire(lab, Fs::Ext4)?;
    let other = lab.driver.other();
    if !other.is_available()? {
        return Err(Skip("one of the two drivers is not in the image").into());
    }
    other.load()?;
    let bound = fixture.bound()?;
    for driver in [other, lab.driver] {
        let result = bound.try_bind(driver);
        errno::expect("binding a retired range", result, &[Errno::EBUSY])?;
    }
    user.unpin()?;
    user.expect_gone()?;
    retired::await_none(FREE_LIMIT)?;
    bound.bind(other)?;
    bound.unbind()?;
    other.unload()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Neither a new namespace at the same address nor the removal of the old one affects the pages.
pub fn destroyed(lab: &mut Lab) -> Result<()> {
    let (mut fixture, mut user) = retire(lab, Fs::Ext4)?;
    let (region, namespace) = (lab.region(0)?, lab.namespace(0)?);
    run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    run_expecting_failure(
        "ndctl",
        &[
            "create-namespace",
            "-r",
            "region0",
            "-m",
            "fsdax",
            "-M",
            "mem",
        ],
    )?;
    user.unpin()?;
    user.expect_gone()?;
    fixture.remove_devices()?;
    retired::await_none(FREE_LIMIT)?;
    // Cleans up what the failed attempt may have left.
    if let Ok(namespace) = lab.namespace(0) {
        run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    }
    let made = ndctl::create(&region, Mode::FsdaxMem, &[])?;
    ensure!(made.blockdev.is_some(), "{made:?} has no disk");
    expect_no_thread_stuck()
}

/// With a timeout of zero the driver waits without limit, and retires nothing.
pub fn without_timeout(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build_with_timeout(lab, Fs::Ext4, Under::Whole, Duration::ZERO)?;
    let user = User::ClosedPipe.start(&fixture)?;
    unbind_waits(&fixture.bound()?, user)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Unbinds a device, and checks that it waits until the user unpins its pages.
pub fn unbind_waits(bound: &Device, mut user: Running) -> Result<()> {
    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    std::thread::sleep(2 * TIMEOUT);
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    retired::expect(0)?;
    user.unpin()?;
    user.expect_gone()?;
    unbind.expect_done(UNBIND_LIMIT)
}
