// SPDX-License-Identifier: GPL-2.0

//! What ends a suspension, or comes in between.

use std::fs::File;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use super::{
    A_WHILE, Counter, LIMIT, STATE, build, end, expect_refused, expect_state, reset, resume,
    set_limit, suspend,
};
use crate::command::{run, run_expecting_failure};
use crate::disk::Access;
use crate::errno;
use crate::injector::Watch;
use crate::lab::{Lab, Skip};
use crate::mapping::Sharing;
use crate::messages::Messages;
use crate::nd::Device;
use crate::process::{Child, Link};
use crate::retired;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::revoke::{Fixture, Fs, UNBIND_LIMIT, Under, Way, back_to_normal};
use crate::syscall::{freeze, thaw};
use crate::sysfs;
use crate::userfault::Absent;

/// It ends by itself, and what has waited continues.
pub fn limit(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    let mut messages = Messages::from_now()?;
    let limit = Duration::from_secs(4);
    set_limit(limit)?;
    let start = Instant::now();
    suspend(&bound)?;
    let mut watch = Watch::new(&bound.path(STATE))?;
    counter.expect_waiting()?;
    sleep((limit - A_WHILE).saturating_sub(start.elapsed()));
    watch.expect("live")?;
    let took = start.elapsed();
    ensure!(took >= limit, "it has ended after {took:?}");
    println!("{}", messages.expect(&["resumed by itself after"])?);
    expect_refused(&bound, "live", libc::EINVAL)?;
    counter.expect_counting()?;

    // The parameter applies to the current suspension.
    reset()?;
    suspend(&bound)?;
    set_limit(Duration::from_millis(1))?;
    sleep(A_WHILE);
    expect_state(&bound, "live")?;
    expect_refused(&bound, "suspended", libc::ETIMEDOUT)?;
    counter.expect_counting()?;
    reset()?;
    counter.finish()?;
    end(fixture)
}

/// A call of write that does not end until it is told to, which a freeze waits for.
pub fn start_endless_write(fixture: &Fixture<'_>) -> Result<Child> {
    let path = fixture.root()?.join("endless");
    Child::start_ready("the writer", move |link: &mut Link| {
        let file = File::create(path)?;
        let page = Absent::new()?;
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| page.write_to(&file));
            page.await_touch()?;
            link.say("ready")?;
            link.wait()?;
            page.serve()?;
            let written = writer.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
            println!("the write gave {written:?}");
            Ok(())
        })
    })
}

/// The freeze takes longer than the limit.
pub fn limit_of_freeze(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut writer = start_endless_write(&fixture)?;
    set_limit(Duration::from_secs(1))?;
    let mut suspending = Child::start("the suspending process", |_| {
        let result = bound.set(STATE, "suspended");
        ensure!(errno::is(&result, libc::ETIMEDOUT), "it gave {result:?}");
        Ok(())
    })?;
    sleep(Duration::from_secs(2));
    ensure!(suspending.try_end()?.is_none(), "the freeze did not wait");
    writer.go()?;
    writer.expect_done(LIMIT)?;
    suspending.expect_done(LIMIT)?;
    expect_state(&bound, "live")?;
    reset()?;
    suspend(&bound)?;
    resume(&bound)?;
    end(fixture)
}

/// A process that waits for the freeze can be killed, and nothing stays frozen.
pub fn killed(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Xfs, Under::Whole)?;
    let mut writer = start_endless_write(&fixture)?;
    let mut suspending = start_suspending(&bound)?;
    kill(suspending.pid(), Signal::SIGKILL)?;
    suspending.expect_signal(Signal::SIGKILL, LIMIT)?;
    expect_refused(&bound, "suspended", libc::EBUSY)?;
    writer.go()?;
    writer.expect_done(LIMIT)?;
    let deadline = Instant::now() + LIMIT;
    while let Err(error) = suspend(&bound) {
        ensure!(Instant::now() < deadline, "it is never live: {error:?}");
    }
    resume(&bound)?;
    end(fixture)
}

pub fn start_suspending(bound: &Device) -> Result<Child> {
    let mut suspending = Child::start("the suspending process", |_| bound.set(STATE, "suspended"))?;
    sleep(A_WHILE);
    ensure!(suspending.try_end()?.is_none(), "the freeze did not wait");
    Ok(suspending)
}

/// A process that waits in a store ends when the disk is resumed.
pub fn killed_user(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    suspend(&bound)?;
    counter.expect_waiting()?;
    kill(counter.child.pid(), Signal::SIGKILL)?;
    sleep(A_WHILE);
    ensure!(counter.child.try_end()?.is_none(), "it has ended already");
    resume(&bound)?;
    counter.child.expect_signal(Signal::SIGKILL, LIMIT)?;
    end(fixture)
}

/// The device goes while it is suspended. Writes that were held are executed before.
pub fn goes(lab: &mut Lab, fs: Fs, way: Way) -> Result<()> {
    let (fixture, bound) = build(lab, fs, Under::Partition)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    // The end of the disk is in no partition, and in none of its tables.
    let disk = crate::disk::Disk::named(bound.disk_name()?);
    let at = disk.bytes()? - (8 << 20);
    let raw = disk.open(Access::Direct)?;
    suspend(&bound)?;
    counter.expect_waiting()?;
    let mut held = Child::start("the held writer", |_| {
        use std::os::unix::fs::FileExt;
        Ok(raw.write_all_at(&Buffer::stamped(4096, 5), at)?)
    })?;
    held.await_uninterruptible()?;
    let mut messages = Messages::from_now()?;
    let took = way.go(&fixture, UNBIND_LIMIT)?;
    println!("gone after {} ms", took.as_millis());
    messages.expect(&["resumed, since the device is leaving"])?;
    held.expect_done(LIMIT)?;
    counter.child.expect_signal(Signal::SIGBUS, LIMIT)?;
    drop(raw);
    let lab = fixture.lab;
    back_to_normal(fixture, way)?;
    let again = lab.ready(0)?.disk.open(Access::Direct)?;
    let mut found = Buffer::new(4096);
    std::os::unix::fs::FileExt::read_exact_at(&again, &mut found, at)?;
    expect_same("what was held", &found, &stamped(4096, 5))
}

/// A file system that is never frozen does not keep the device.
pub fn unbind_while_it_freezes(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut writer = start_endless_write(&fixture)?;
    let mut suspending = start_suspending(&bound)?;
    let mut messages = Messages::from_now()?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + Duration::from_secs(15))?;
    println!("gone after {} ms", took.as_millis());
    messages.expect(&["is no longer waited for"])?;
    // Its write has failed with ENODEV.
    suspending.end(LIMIT)?;
    writer.go()?;
    writer.expect_done(LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// The time that an unbind waits for a freeze does not count for the users of the memory.
pub fn unbind_waits_twice(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    retired::set_timeout(fixture.lab.driver, Duration::from_secs(6))?;
    // A call of write is a user of the memory, too.
    let mut writer = start_endless_write(&fixture)?;
    let mut suspending = start_suspending(&bound)?;
    let mut messages = Messages::from_now()?;
    let start = Instant::now();
    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    let mut listed = String::new();
    while !messages
        .so_far()?
        .iter()
        .any(|line| line.contains("is no longer waited for"))
    {
        ensure!(start.elapsed() < 2 * LIMIT, "it waits for the freeze");
        sleep(Duration::from_millis(100));
        listed += &sysfs::read("/sys/kernel/debug/pmem_rs/devices")?;
    }
    ensure!(
        listed.contains("(a file system that is being frozen or thawed)"),
        "the list of devices does not say what is waited for: {listed}"
    );
    sleep(2 * A_WHILE);
    ensure!(unbind.try_end()?.is_none(), "it does not wait for the call");
    writer.go()?;
    writer.expect_done(LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    retired::expect(0)?;
    suspending.end(LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// A process that writes `live` before the disk is suspended has success, and the other one has
/// not.
pub fn resumed_early(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut writer = start_endless_write(&fixture)?;
    let mut suspending = Child::start("the suspending process", |_| {
        let result = bound.set(STATE, "suspended");
        ensure!(errno::is(&result, libc::ECANCELED), "it gave {result:?}");
        Ok(())
    })?;
    sleep(A_WHILE);
    ensure!(suspending.try_end()?.is_none(), "the freeze did not wait");
    let mut resuming = Child::start("the resuming process", |_| bound.set(STATE, "live"))?;
    sleep(A_WHILE);
    ensure!(resuming.try_end()?.is_none(), "resuming did not wait");
    writer.go()?;
    writer.expect_done(LIMIT)?;
    suspending.expect_done(LIMIT)?;
    resuming.expect_done(LIMIT)?;
    suspend(&bound)?;
    resume(&bound)?;
    end(fixture)
}

/// A program that thaws a file system, and freezes it again, does not make it writable before
/// resume. After that it is as if the program had done nothing.
pub fn thawed(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let (mut fixture, bound) = build(lab, fs, Under::Whole)?;
        let root = File::open(fixture.root()?)?;
        let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
        for is_frozen_again in [false, true] {
            suspend(&bound)?;
            counter.expect_waiting()?;
            Child::start("the thawing process", |_| Ok(thaw(&root)?))?.expect_done(LIMIT)?;
            counter.expect_waiting()?;
            if is_frozen_again {
                freeze(&root)?;
                counter.expect_waiting()?;
            } else {
                errno::expect("thawing again", thaw(&root), &[Errno::EINVAL])?;
            }
            resume(&bound)?;
            counter.expect_counting()?;
        }
        counter.finish()?;
        drop(root);
        // It can be mounted again.
        fixture.unmount()?;
        end(fixture)?;
    }
    Ok(())
}

/// An unmount is completed at resume. Nothing can be mounted before.
pub fn unmounted(lab: &mut Lab) -> Result<()> {
    for fs in [Fs::Ext4, Fs::Xfs] {
        let (mut fixture, bound) = build(lab, fs, Under::Whole)?;
        suspend(&bound)?;
        let node = format!("/dev/{}", bound.disk_name()?);
        fixture.unmount()?;
        resume(&bound)?;
        end(fixture)?;

        suspend(&bound)?;
        let kind = if fs == Fs::Xfs { "xfs" } else { "ext4" };
        let said = run_expecting_failure("mount", &["-t", kind, "-o", "ro", &node, "/mnt"])?;
        ensure!(said.contains("busy"), "mounting {node} gave: {said}");
        resume(&bound)?;
        run("mount", &["-t", kind, &node, "/mnt"])?;
        run("umount", &["/mnt"])?;
    }
    Ok(())
}

/// A file system that a program had frozen before stays frozen.
pub fn frozen_before(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let root = File::open(fixture.root()?)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    freeze(&root)?;
    suspend(&bound)?;
    counter.expect_waiting()?;
    resume(&bound)?;
    counter.expect_waiting()?;
    thaw(&root)?;
    counter.expect_counting()?;
    counter.finish()?;
    drop(root);
    end(fixture)
}

/// The system does not sleep while a disk is suspended.
pub fn system_sleep(lab: &mut Lab) -> Result<()> {
    if !Path::new("/sys/power/pm_test").exists() {
        return Err(Skip("the kernel has no pm_test").into());
    }
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    suspend(&bound)?;
    let mut messages = Messages::from_now()?;
    sysfs::write("/sys/power/pm_test", "freezer")?;
    let slept = sysfs::write("/sys/power/state", "freeze");
    ensure!(errno::is(&slept, libc::EBUSY), "it gave {slept:?}");
    println!("{}", messages.expect(&["the system stays awake"])?);
    expect_state(&bound, "suspended")?;
    resume(&bound)?;
    sysfs::write("/sys/module/suspend/parameters/pm_test_delay", "1").context("pm_test_delay")?;
    sysfs::write("/sys/power/state", "freeze")?;
    sysfs::write("/sys/power/pm_test", "none")?;
    suspend(&bound)?;
    resume(&bound)?;
    end(fixture)
}
