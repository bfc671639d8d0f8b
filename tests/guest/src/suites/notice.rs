// SPDX-License-Identifier: GPL-2.0

//! What user space is told before a device is unbound, and the time that it is given.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};

use super::platform::only_for_pmem_rs;
use super::revoke::{Fixture, Fs, UNBIND_LIMIT, Under, User, Way, back_to_normal};
use super::{Suite, Test};
use crate::command::run;
use crate::injector::Watch;
use crate::lab::Lab;
use crate::mapping::Sharing;
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sysfs;
use crate::tracing::Events;
use crate::uevents::Uevents;

pub const SUITE: Suite = Suite {
    name: "notice",
    tests: &[
        Test::new("told_before_anything_is_revoked", told),
        Test::new("program_leaves_in_time", leaves),
        Test::new("no_longer_than_the_notice", no_longer),
        Test::new("openers_come_and_go", openers),
        Test::new("nothing_has_it_open", unused),
        Test::new("ndctl_list_meanwhile", list),
        Test::new("notice_is_writable", writable),
        Test::new("killed_writer", killed),
        Test::new("region_does_not_wait", |lab| physical(lab, Way::Region)),
        Test::new("provider_does_not_wait", |lab| physical(lab, Way::Provider)),
        Test::new("region_goes_during_the_notice", region_goes),
        Test::new("raw_disk", raw),
        Test::new("sector_disk_has_no_state", sector),
    ],
};

/// A notice that no test waits for.
const LONG: Duration = Duration::from_secs(45);
/// After this time an unbind is still waiting.
const A_WHILE: Duration = Duration::from_millis(1500);
pub const PARAMETER: &str = "/sys/module/pmem_rs/parameters/revoke_notice_ms";

/// Sets how long an unbind waits for users.
pub fn set_notice(notice: Duration) -> Result<()> {
    sysfs::write(PARAMETER, &notice.as_millis().to_string())
}

/// Undoes [`set_notice`].
pub fn reset() -> Result<()> {
    if Path::new(PARAMETER).exists() {
        set_notice(Duration::ZERO)?;
    }
    Ok(())
}

fn build(lab: &Lab, notice: Duration) -> Result<(Fixture<'_>, Device)> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    ensure!(bound.get("pmem_rs/state")? == "live", "{bound} is not live");
    set_notice(notice)?;
    Ok((fixture, bound))
}

/// Starts a process that unbinds a device, and waits until the device is leaving.
fn start_unbind(bound: &Device) -> Result<Child> {
    let mut watch = Watch::new(&bound.path("pmem_rs/state"))?;
    let unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    watch.expect("leaving")?;
    Ok(unbind)
}

/// The value of a variable of an event.
fn value<'a>(event: &'a str, name: &str) -> Option<&'a str> {
    event
        .split(' ')
        .find_map(|variable| variable.strip_prefix(name)?.strip_prefix('='))
}

/// The time since boot in milliseconds. The guest does not sleep, so it is the monotonic clock.
fn uptime_ms() -> Result<u64> {
    let text = sysfs::read("/proc/uptime")?;
    let seconds: f64 = text.split(' ').next().unwrap_or_default().parse()?;
    Ok((seconds * 1000.0) as u64)
}

fn told(lab: &mut Lab) -> Result<()> {
    let notice = Duration::from_secs(1);
    let (fixture, bound) = build(lab, notice)?;
    let user = User::Reader.start(&fixture)?;
    let disk = bound.disk_name()?;
    let linked = format!("/sys/block/{disk}/device/pmem_rs/state");
    ensure!(sysfs::read(&linked)? == "live", "{linked} is not live");
    let mut uevents = Uevents::from_now()?;
    let now = uptime_ms()?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT + notice)?;
    user.expect_gone()?;

    let device = format!("PMEM_RS_DEVICE={}", bound.name());
    for of in ["SUBSYSTEM=nd", &format!("DEVNAME={disk}")] {
        let event = uevents.expect(&["ACTION=change", of, "PMEM_RS_STATE=leaving", &device])?;
        println!("uevent: {event}");
        ensure!(
            value(&event, "PMEM_RS_NOTICE_MS") == Some("1000"),
            "{event}"
        );
        ensure!(
            value(&event, "PMEM_RS_REVOKE_TIMEOUT_MS") == Some("1500"),
            "{event}"
        );
        let deadline: u64 = value(&event, "PMEM_RS_DEADLINE_MS")
            .unwrap_or_default()
            .parse()?;
        let given = deadline.saturating_sub(now);
        ensure!(
            (1000..3000).contains(&given),
            "the deadline is {given} ms after {now}"
        );
    }
    let all = uevents.so_far()?;
    let first = |piece: &str| all.iter().position(|event| event.contains(piece));
    let (leaving, revoked) = (first("PMEM_RS_STATE=leaving"), first("PMEM_RS_REVOKED="));
    ensure!(
        leaving < revoked,
        "the events were {leaving:?} and {revoked:?}"
    );
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

/// A program that polls the state unmaps and unmounts, and nothing has to be revoked.
fn leaves(lab: &mut Lab) -> Result<()> {
    let (mut fixture, bound) = build(lab, LONG)?;
    let root = fixture.root()?;
    let mut program = Child::start_ready("the program", |link: &mut Link| {
        let mapping = fixture.map(Sharing::Shared)?;
        mapping.load(0);
        let mut watch = Watch::new(&bound.path("pmem_rs/state"))?;
        link.say("ready")?;
        link.wait()?;
        watch.expect("leaving")?;
        mapping.load(0);
        drop(mapping);
        Ok(umount2(&root, MntFlags::empty())?)
    })?;
    fixture.leave_mount();
    let mut messages = Messages::from_now()?;
    let start = Instant::now();
    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    program.go()?;
    program.expect_done(UNBIND_LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    println!("it took {} ms", start.elapsed().as_millis());
    let revoked = messages
        .so_far()?
        .iter()
        .any(|line| line.contains("revoked:"));
    ensure!(!revoked, "pages were revoked");
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

/// The device works until the time has passed, and is unbound then.
fn no_longer(lab: &mut Lab) -> Result<()> {
    let notice = Duration::from_secs(2);
    let (fixture, bound) = build(lab, notice)?;
    let user = User::Reader.start(&fixture)?;
    let start = Instant::now();
    let mut unbind = start_unbind(&bound)?;
    sleep(notice / 2);
    let again = User::Idle.start(&fixture)?;
    fs::write(fixture.root()?.join("new"), "during the notice")?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    unbind.expect_done(notice + UNBIND_LIMIT)?;
    let took = start.elapsed();
    println!("it took {} ms", took.as_millis());
    ensure!(took >= notice, "unbind has waited for {took:?} only");
    user.expect_gone()?;
    again.expect_gone()?;
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Opens and closes the disk until it is gone.
fn open_all_the_time(node: &str) -> Result<Child> {
    Child::start_ready("the opener", |link: &mut Link| {
        run("blkid", &["-p", node])?;
        link.say("ready")?;
        while run("blkid", &["-p", node]).is_ok() {
            sleep(Duration::from_millis(20));
        }
        Ok(())
    })
}

/// Openers that come and go neither restart the wait, nor prolong it.
fn openers(lab: &mut Lab) -> Result<()> {
    let notice = Duration::from_secs(3);
    let (mut fixture, bound) = build(lab, notice)?;
    let node = format!("/dev/{}", bound.disk_name()?);
    let mut opener = open_all_the_time(&node)?;
    let start = Instant::now();
    Way::Unbind.go(&fixture, UNBIND_LIMIT + notice)?;
    let took = start.elapsed();
    ensure!(
        took >= notice,
        "with a mount unbind has waited for {took:?} only"
    );
    opener.expect_done(UNBIND_LIMIT)?;
    fixture.remove_devices()?;
    bound.bind(lab.driver)?;

    // Without a mount there are moments at which nothing has it open.
    set_notice(LONG)?;
    let mut opener = open_all_the_time(&node)?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    opener.expect_done(UNBIND_LIMIT)?;
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

fn unused(lab: &mut Lab) -> Result<()> {
    let (mut fixture, bound) = build(lab, LONG)?;
    fixture.remove_devices()?;
    bound.unbind()?;
    bound.bind(lab.driver)?;
    // A module whose disk is open cannot be unloaded, so nothing is waited for.
    lab.driver.unload()?;
    lab.driver.load()?;
    reset()?;
    bound.unbind()?;
    back_to_normal(fixture, Way::Unbind)
}

/// `ndctl` reads attributes that need the device lock, so it may wait until the device is unbound.
/// It does not delay that. What a script needs can be read meanwhile.
fn list(lab: &mut Lab) -> Result<()> {
    let notice = Duration::from_secs(4);
    let (fixture, bound) = build(lab, notice)?;
    let mut unbind = start_unbind(&bound)?;
    let mut list = Child::start("ndctl", |_| {
        println!("{}", run("ndctl", &["list", "-RNi"])?);
        Ok(())
    })?;
    let mut script = Child::start("the script", |_| {
        for file in ["pmem_rs/state", "pmem_rs/status", "uevent"] {
            println!("{file}: {}", bound.get(file)?);
        }
        println!("disk: {}", bound.disk_name()?);
        Ok(())
    })?;
    script.expect_done(notice)?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    unbind.expect_done(notice + UNBIND_LIMIT)?;
    list.expect_done(UNBIND_LIMIT)?;
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

fn writable(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, LONG)?;
    let mut unbind = start_unbind(&bound)?;
    sleep(A_WHILE);
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    reset()?;
    unbind.expect_done(UNBIND_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

fn killed(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, LONG)?;
    let user = User::Reader.start(&fixture)?;
    let mut unbind = start_unbind(&bound)?;
    sleep(A_WHILE);
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    kill(unbind.pid(), Signal::SIGKILL)?;
    unbind.expect_signal(Signal::SIGKILL, UNBIND_LIMIT)?;
    bound.expect_driver(None)?;
    user.expect_gone()?;
    reset()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Users are told all the same.
fn physical(lab: &mut Lab, way: Way) -> Result<()> {
    let (fixture, bound) = build(lab, LONG)?;
    let user = User::Reader.start(&fixture)?;
    let mut uevents = Uevents::from_now()?;
    way.go(&fixture, UNBIND_LIMIT)?;
    let device = format!("PMEM_RS_DEVICE={}", bound.name());
    let event = uevents.expect(&["SUBSYSTEM=nd", "PMEM_RS_STATE=leaving", &device])?;
    ensure!(
        value(&event, "PMEM_RS_NOTICE_MS") == Some("0"),
        "it promises time: {event}"
    );
    user.expect_gone()?;
    reset()?;
    back_to_normal(fixture, way)
}

fn region_goes(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, LONG)?;
    let user = User::Reader.start(&fixture)?;
    let events = Events::start()?;
    let mut unbind = start_unbind(&bound)?;
    Way::Region.go(&fixture, UNBIND_LIMIT)?;
    // It may find that the device has no driver any more.
    unbind.end(UNBIND_LIMIT)?;
    user.expect_gone()?;
    let told = events.so_far("pmem_leaving")?;
    ensure!(told.len() == 1, "it was told {told:?}");
    drop(events);
    reset()?;
    back_to_normal(fixture, Way::Region)
}

fn raw(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let prepared = lab.prepare(Mode::Raw)?;
    set_notice(LONG)?;
    // The unbinding process must not have it open.
    let mut opener = Child::start_ready("the opener", |link: &mut Link| {
        let _file = fs::File::open(prepared.disk.node())?;
        link.say("ready")?;
        link.wait()
    })?;
    let mut unbind = start_unbind(&prepared.bound)?;
    sleep(A_WHILE);
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    opener.go()?;
    opener.expect_done(UNBIND_LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    reset()?;
    prepared.bound.bind(lab.driver)
}

fn sector(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let prepared = lab.prepare(Mode::Sector)?;
    let state = prepared.bound.path("pmem_rs/state");
    ensure!(!state.exists(), "{} exists", state.display());
    Ok(())
}
