// SPDX-License-Identifier: GPL-2.0

//! Unbinding a device that has the program that does it, or a file that is being deleted.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::fixture::{Fixture, contents};
use super::special::{back_to_normal, only_for_pmem_rs};
use super::users::SIGNAL_LIMIT;
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::process::Child;
use crate::retired::{self, TIMEOUT};

/// A program that is linked statically.
const PROGRAM: &str = "/bin/busybox";

/// A shell unbinds the device of its own text and of its working directory. The device goes, and
/// the shell gets SIGBUS when it returns from the kernel.
pub fn by_its_own_program(lab: &mut Lab, on: Fs) -> Result<()> {
    let driver = lab.driver;
    let fixture = Fixture::build(lab, on, Under::Whole)?;
    let bound = fixture.bound()?;
    let root = fixture.root()?;
    let program = root.join("busybox");
    fs::copy(PROGRAM, &program).with_context(|| format!("copying {PROGRAM}"))?;
    nix::unistd::sync();
    let unbind = format!("/sys/bus/nd/drivers/{}/unbind", driver.name());
    let order = format!("echo {} >{unbind}; echo it goes on", bound.name());

    let mut shell = Child::start("the shell", |_| {
        std::env::set_current_dir(&root)?;
        let error = Command::new(&program).args(["sh", "-c", &order]).exec();
        Err(error).context("executing the shell")
    })?;
    shell.expect_signal(Signal::SIGBUS, UNBIND_LIMIT)?;
    bound.expect_driver(None)?;
    back_to_normal(fixture, Way::Unbind)
}

/// A file was deleted, and the last process that has it open waits in `close()` for a pin.
pub fn deleted_file(lab: &mut Lab, on: Fs) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, on, Under::Whole)?;
    let path = fixture.root()?.join("deleted");
    fs::write(&path, contents())?;
    let mut user = Child::start_ready("the process with the pipe", |link| {
        let mapping = Mapping::read_only(&File::open(&path)?, PAGE, Sharing::Shared)?;
        mapping.load(0);
        let (_reader, writer) = nix::unistd::pipe()?;
        mapping.give_to_pipe(0, PAGE, &writer)?;
        drop(mapping);
        link.say("ready")?;
        link.wait()
    })?;
    let mut closer = Child::start("the process that closes the file", |_| {
        let file = File::open(&path)?;
        fs::remove_file(&path)?;
        drop(file);
        Ok(())
    })?;
    closer.await_uninterruptible()?;

    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    println!("retired: {:?}", retired::expect(1)?);
    user.go()?;
    user.expect_done(SIGNAL_LIMIT)?;
    closer.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}
