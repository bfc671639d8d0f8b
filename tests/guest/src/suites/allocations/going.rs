// SPDX-License-Identifier: GPL-2.0

//! Unbinding of devices. It cannot be refused, so it must succeed whatever fails.

use std::fs::{self, File};
use std::io::Read;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::binding::{give, order};
use super::{Failing, NO_MEMORY, Walk, small};
use crate::command::run;
use crate::disk::Access;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::injection::{Allocator, Injection, ORDER, Scope};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::retired;
use crate::sectors::{expect_same, stamped};
use crate::suites::revoke::{make_files, pin_files};
use crate::sysfs;

/// The allocations that are made to fail. The kernel cannot refuse to unbind once the driver is
/// called.
const SCOPES: [Scope; 3] = [
    Scope::Thread,
    Scope::Driver(Allocator::Slab),
    Scope::Driver(Allocator::Pages),
];
const DRIVER_SCOPES: [Scope; 2] = [
    Scope::Driver(Allocator::Slab),
    Scope::Driver(Allocator::Pages),
];

const LEN: usize = 1 << 20;
/// How long the driver waits for pinned pages.
const TIMEOUT: Duration = Duration::from_millis(100);
/// How long a process may take to report.
const PATIENCE: Duration = Duration::from_secs(30);

/// Unbinds while an allocation fails.
fn unbind(lab: &Lab, prepared: &Prepared, failing: &mut Failing<'_>) -> Result<()> {
    let order = order(lab, "unbind")?;
    let bound = &prepared.bound;
    match failing.call(NO_MEMORY, || give(&order, bound))? {
        Some(()) => {}
        None => {
            ensure!(
                failing.scope == Scope::Thread,
                "the driver was asked, and did not go"
            );
            // The write failed before it reached the driver.
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
        for scope in SCOPES {
            walk.along(scope, |failing| {
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

/// Checks the file after all unbinds.
fn expect_intact(prepared: &Prepared) -> Result<()> {
    let mount = mount(prepared)?;
    expect_same("the file", &fs::read(mount.path("used"))?, &stamped(LEN, 1))?;
    mount.unmount()?;
    Ext4.check(&prepared.disk.node_str())
}

pub fn while_mapped(lab: &mut Lab) -> Result<()> {
    let prepared = make(lab)?;
    let mut walk = Walk::new(lab, "unbind of mapped memory")?;
    for scope in DRIVER_SCOPES {
        walk.along(scope, |failing| {
            let mount = mount(&prepared)?;
            let mut user = Child::start_ready("the process with the mapping", |link| {
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

/// How long unbind may take beyond its timeout: a second, and the cost of the emulator and the
/// checkers. It is less than the kernel's limit for hung tasks.
const SLACK: Duration = Duration::from_secs(15);

/// What uses pages of the device while it is unbound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum PageUser {
    /// A mapping.
    Mapping,
    /// A pipe.
    Pipe,
}

impl PageUser {
    fn work(self, mount: &Mount, link: &mut Link) -> Result<()> {
        let mapping = map(mount)?;
        touch(&mapping);
        if self == PageUser::Mapping {
            link.say("ready")?;
            link.wait()?;
            touch(&mapping);
            return Ok(());
        }
        let (reader, writer) = nix::unistd::pipe()?;
        let given = mapping.give_to_pipe(0, PAGE, &writer)?;
        ensure!(given == PAGE, "{given} bytes were put into the pipe");
        drop(mapping);
        link.say("ready")?;
        link.wait()?;
        let mut found = vec![0; PAGE];
        File::from(reader).read_exact(&mut found)?;
        expect_same("what is in the pipe", &found, &stamped(LEN, 1)[..PAGE])
    }

    /// Checks how the user ends once the device is gone.
    fn expect_gone(self, mut user: Child) -> Result<()> {
        user.go()?;
        match self {
            PageUser::Mapping => user.expect_signal(Signal::SIGBUS, PATIENCE),
            PageUser::Pipe => user.expect_done(PATIENCE),
        }
    }
}

/// The number of files with pinned pages: more than the driver has slots for, and the number of
/// those that are released first.
const FILES: usize = 600;
const FIRST: usize = 200;

/// Unbinds a device with more pinned files than it has slots for, while it gets no memory for more.
/// It waits, says so, and goes on when there are enough.
pub fn many_files_without_memory(lab: &mut Lab) -> Result<()> {
    let prepared = make(lab)?;
    let bound = &prepared.bound;
    let mount = mount(&prepared)?;
    let root = mount.path("");
    make_files(&root, FILES)?;
    let mut first = Child::start_ready("the process that unpins first", |link| {
        pin_files(&root, 0..FIRST, link)
    })?;
    let mut others = Child::start_ready("the process that unpins last", |link| {
        pin_files(&root, FIRST..FILES, link)
    })?;

    let injection = Injection::new(lab.driver, ORDER)?;
    let mut messages = Messages::from_now()?;
    let mut unbind = Child::start_ready("the unbinding process", |link| {
        link.say("ready")?;
        link.wait()?;
        bound.unbind()
    })?;
    let (waited, failed) = injection.fail_pages_of_driver(|| -> Result<()> {
        unbind.go()?;
        println!("kernel: {}", messages.expect(&["waiting for pins"])?);
        ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
        first.go()?;
        first.expect_done(PATIENCE)?;
        unbind.expect_done(TIMEOUT + SLACK)
    })?;
    drop(injection);
    waited?;
    ensure!(failed > 0, "no allocation has failed");
    println!("retired: {:?}", retired::expect(1)?);
    others.go()?;
    others.expect_done(PATIENCE)?;
    mount.unmount()?;
    retired::await_none(PATIENCE)?;
    bound.bind(lab.driver)?;
    expect_intact(&prepared)
}

/// Unbinds a device while every allocation from the slab fails in the whole system.
pub fn without_memory(lab: &mut Lab) -> Result<()> {
    let prepared = make(lab)?;
    let bound = &prepared.bound;
    let injection = Injection::new(lab.driver, ORDER)?;
    for page_user in [PageUser::Mapping, PageUser::Pipe] {
        let mount = mount(&prepared)?;
        let user = Child::start_ready("the process that uses pages", |link| {
            page_user.work(&mount, link)
        })?;
        let order = order(lab, "unbind")?;
        let mut unbind = Child::start_ready("the unbinding process", |link| {
            link.say("ready")?;
            link.wait()?;
            Ok(give(&order, bound)?)
        })?;
        sysfs::write("/dev/kmsg", klog::NO_MEMORY_FROM_HERE)?;
        let start = Instant::now();
        let (end, failed) = injection.fail_all(|| {
            unbind.go()?;
            unbind.expect_done(TIMEOUT + SLACK)
        })?;
        sysfs::write("/dev/kmsg", klog::NO_MEMORY_UNTIL_HERE)?;
        end?;
        println!(
            "measured: unbind took {} ms, with a timeout of {} ms, while {failed} allocations failed, all that there were",
            start.elapsed().as_millis(),
            TIMEOUT.as_millis()
        );
        ensure!(failed > 0, "no allocation has failed");
        bound.expect_driver(None)?;
        if page_user == PageUser::Pipe {
            println!("retired: {:?}", retired::expect(1)?);
        }
        page_user.expect_gone(user)?;
        mount.unmount()?;
        retired::await_none(PATIENCE)?;
        bound.bind(lab.driver)?;
    }
    drop(injection);
    expect_intact(&prepared)
}

/// A kernel thread that never schedules voluntarily: `synchronize_rcu_tasks` does not return while
/// it exists.
struct Busy(());

impl Busy {
    const NAME: &str = "planted";

    fn start() -> Result<Busy> {
        run("modprobe", &[Busy::NAME, "bug=6"])?;
        Ok(Busy(()))
    }

    fn stop(self) -> Result<()> {
        std::mem::forget(self);
        run("rmmod", &[Busy::NAME]).map(drop)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // A failed test must not leave it behind.
        let _ = run("rmmod", &[Busy::NAME]);
    }
}

/// A range whose release takes too long is retired, as one that is in use.
pub fn beside_a_busy_thread(lab: &mut Lab) -> Result<()> {
    let prepared = make(lab)?;
    let bound = &prepared.bound;
    let mount = mount(&prepared)?;
    let user = Child::start_ready("the process with the mapping", |link| {
        PageUser::Mapping.work(&mount, link)
    })?;
    let busy = Busy::start()?;
    let mut messages = Messages::from_now()?;
    let start = Instant::now();
    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    unbind.expect_done(TIMEOUT + SLACK)?;
    println!(
        "measured: unbind took {} ms, with a timeout of {} ms, beside a thread that never schedules",
        start.elapsed().as_millis(),
        TIMEOUT.as_millis()
    );
    println!("kernel: {}", messages.expect(&["retired"])?);
    let freeing = "the memory management, which is freeing it";
    // When the time is over, unbind may still be waiting for something else.
    let deadline = Instant::now() + SLACK;
    while !retired::expect(1)?
        .iter()
        .any(|line| line.contains(freeing))
    {
        ensure!(
            Instant::now() < deadline,
            "it is not being freed: {:?}",
            retired::list()?
        );
        std::thread::sleep(TIMEOUT);
    }
    PageUser::Mapping.expect_gone(user)?;
    mount.unmount()?;
    retired::expect(1)?;
    busy.stop().context("ending the busy thread")?;
    retired::await_none(PATIENCE)?;
    bound.bind(lab.driver)?;
    expect_intact(&prepared)
}
