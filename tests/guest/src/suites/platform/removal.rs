// SPDX-License-Identifier: GPL-2.0

//! Unbinding the device while it is in use.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN};
use super::{LIMIT, device, disk_in, expect_module_in_use, expect_nothing_left};
use crate::disk::Access;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::platform::PlatformDevice;
use crate::process::{Child, Link, expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{expect_same, stamped};

/// Unbinds a device from the driver under test, in a child process, because that may never return.
pub fn unbind_in_child(lab: &Lab, device: &PlatformDevice) -> Result<()> {
    let began = Instant::now();
    Child::start("the process that unbinds the device", |_| {
        Ok(device.try_unbind(lab.driver.name())?)
    })?
    .expect_done(LIMIT)?;
    println!("it went after {:?}", began.elapsed());
    device.expect_driver(None)
}

pub fn goes_in_use(lab: &mut Lab, mode: Mode) -> Result<()> {
    let device = device(lab)?;
    let fixtures = [Fixture::build(lab, 0, mode)?, Fixture::build(lab, 1, mode)?];
    let mut reader = fixtures[0].start_reader()?;
    let mut caller = fixtures[1].start_caller()?;
    unbind_in_child(lab, &device)?;
    expect_nothing_left()?;
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    caller.expect_done(LIMIT)?;
    expect_no_process_stuck()?;

    retired::expect(0)?;
    device.bind(lab.driver.name())?;
    for (region, fixture) in (0..).zip(fixtures) {
        fixture.expect_intact(&disk_in(lab, region)?)?;
    }
    expect_no_thread_stuck()
}

/// Accepts that a concurrent unbind has removed the device already.
fn or_gone(result: io::Result<()>) -> Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => Ok(()),
        result => Ok(result?),
    }
}

pub fn concurrent_unbinds(lab: &mut Lab) -> Result<()> {
    let device = device(lab)?;
    let fixture = Fixture::build(lab, 0, Mode::FsdaxDev)?;
    let mut reader = fixture.start_reader()?;
    let region = lab.region(0)?;
    let bound = lab.holder_in(0)?;
    let unbind = || or_gone(device.try_unbind(lab.driver.name()));
    let mut all = [
        Child::start("the first unbinding process", |_| unbind())?,
        Child::start("the second unbinding process", |_| unbind())?,
        Child::start("the process that unbinds the region", |_| {
            or_gone(region.try_unbind_region())
        })?,
        Child::start("the process that unbinds the disk", |_| {
            or_gone(bound.try_unbind(lab.driver))
        })?,
    ];
    for process in &mut all {
        process.expect_done(LIMIT)?;
    }
    reader.expect_signal(Signal::SIGBUS, LIMIT)?;
    device.expect_driver(None)?;
    expect_nothing_left()?;
    device.bind(lab.driver.name())?;
    fixture.expect_intact(&disk_in(lab, 0)?)?;
    expect_no_thread_stuck()
}

/// A page of the first range is pinned, so unbind retires that range. The device can be bound again
/// meanwhile, without that range.
pub fn while_retired(lab: &mut Lab) -> Result<()> {
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let device = device(lab)?;
    let fixtures = [
        Fixture::build(lab, 0, Mode::Raw)?,
        Fixture::build(lab, 1, Mode::Raw)?,
    ];
    let path = fixtures[0].mount.path("file");
    let mut pinner =
        Child::start_ready("the process with pages in a pipe", |link| pin(&path, link))?;
    unbind_in_child(lab, &device)?;
    expect_nothing_left()?;
    let list = retired::expect(1)?;
    println!("retired: {list:?}");

    for _ in 0..2 {
        let mut messages = Messages::from_now()?;
        device.bind(lab.driver.name())?;
        messages.expect(&["it was retired, and is still in use"])?;
        let namespace = lab.namespace(0)?;
        namespace.expect_driver(None)?;
        let refused = namespace.try_bind(lab.driver);
        errno::expect("binding the retired range", refused, &[Errno::EBUSY])?;
        disk_in(lab, 1)?;
        device.unbind()?;
        retired::expect(1)?;
    }
    device.bind(lab.driver.name())?;
    expect_module_in_use(lab)?;

    pinner.go()?;
    pinner.expect_done(LIMIT)?;
    retired::await_none(LIMIT)?;
    lab.namespace(0)?.bind(lab.driver)?;
    for (region, fixture) in (0..).zip(fixtures) {
        fixture.expect_intact(&disk_in(lab, region)?)?;
    }
    device.unbind()?;
    device.bind(lab.driver.name())?;
    disk_in(lab, 0)?;
    lab.driver.unload()?;
    lab.driver.load()?;
    expect_no_thread_stuck()
}

fn pin(path: &Path, link: &mut Link) -> Result<()> {
    use std::io::Read;
    const PIPED: usize = 4 * PAGE;

    let file = Access::Buffered.open(path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    let before = mapping.to_vec(0, PIPED);
    let (reader, writer) = nix::unistd::pipe()?;
    let given = mapping.give_to_pipe(0, PIPED, &writer)?;
    ensure!(given == PIPED, "{given} bytes were put into the pipe");
    drop((mapping, file));
    link.say("ready")?;
    link.wait()?;
    let mut found = vec![0; PIPED];
    fs::File::from(reader).read_exact(&mut found)?;
    expect_same("what is in the pipe", &found, &before)?;
    if before != stamped(LEN, 0)[..PIPED] {
        bail!("the file does not hold what was written to it");
    }
    Ok(())
}
