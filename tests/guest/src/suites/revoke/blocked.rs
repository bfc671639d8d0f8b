// SPDX-License-Identifier: GPL-2.0

//! Unbinding while users are blocked in the kernel: in a frozen file system or in a copy.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::SIGNAL_LIMIT;
use super::{Fs, UNBIND_LIMIT, Under, User, Way};
use crate::driver::Driver;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::process::{Child, Link};
use crate::retired::{self, TIMEOUT};
use crate::sectors::expect_same;
use crate::syscall::{freeze, thaw};
use crate::userfault::Absent;

/// A writer waits in its fault until the file system is thawed, and holds all the locks of a fault.
/// This must not delay unbind.
pub fn frozen(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let reader = User::Reader.start(&fixture)?;
    let mut writer = Child::start_ready("the writer", |link| {
        let mapping = fixture.map(Sharing::Shared)?;
        let contents = contents();
        link.say("ready")?;
        for page in (0..LEN).step_by(PAGE).cycle() {
            mapping.store(page, contents[page]);
        }
        Ok(())
    })?;
    let root = File::open(fixture.root()?)?;
    freeze(&root)?;
    writer.await_uninterruptible()?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    reader.expect_gone()?;
    match thaw(&root) {
        // xfs thaws when its DAX device fails.
        Err(error) if fs == Fs::XfsRmap && error.raw_os_error() == Some(libc::EINVAL) => {}
        result => result.context("thawing the file system")?,
    }
    drop(root);
    writer.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Reads a DAX file into memory that is not present. The kernel stops where it copies: inside of
/// `dax_read_lock`, which the driver must wait for before it frees anything.
fn read_into_absent(file: &File, link: &mut Link) -> Result<()> {
    let page = Absent::new()?;
    let read = std::thread::scope(|scope| -> Result<_> {
        let reader = scope.spawn(|| page.fill_from(file));
        page.await_touch()?;
        link.say("ready")?;
        link.wait()?;
        page.serve()?;
        reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))
    })?;
    // The read may succeed or fail; but it must not return other data.
    match read {
        Ok(read) => {
            ensure!(read == PAGE, "it read {read} bytes");
            expect_same("what was read", &page.to_vec(), &contents()[..PAGE])?;
        }
        Err(error) => println!("the read failed: {error}"),
    }
    link.say("released")
}

pub fn stuck_in_a_copy(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let mut messages = Messages::from_now()?;
    let mut user = Child::start_ready("the process with a blocked read", |link| {
        read_into_absent(&fixture.open()?, link)
    })?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    if lab.driver == Driver::PmemRs {
        for line in retired::expect(1)? {
            println!("retired: {line}");
        }
        println!("kernel: {}", messages.expect(&["retired"])?);
    }
    user.go()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// Writes to a DAX file from memory that is not present. The kernel stops where it copies, and
/// holds the inode lock too.
fn write_from_absent(file: &File, link: &mut Link) -> Result<()> {
    let page = Absent::new()?;
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| page.write_to(file));
        page.await_touch()?;
        link.say("ready")?;
        link.wait()?;
        page.serve()?;
        let written = writer
            .join()
            .map_err(|_| anyhow::anyhow!("the writer panicked"))?;
        println!("the write: {written:?}");
        Ok(())
    })?;
    link.say("released")
}

pub fn write_stuck_in_a_copy(lab: &mut Lab, on: Fs) -> Result<()> {
    let is_pmem_rs = lab.driver == Driver::PmemRs;
    let fixture = Fixture::build(lab, on, Under::Whole)?;
    let other = fixture.root()?.join("written");
    fs::write(&other, contents())?;
    let reader = User::Reader.start(&fixture)?;
    let mut user = Child::start_ready("the process with a blocked write", |link| {
        let file = File::options().write(true).open(&other)?;
        let mapping = Mapping::read_only(&File::open(&other)?, PAGE, Sharing::Shared)?;
        mapping.load(0);
        write_from_absent(&file, link)
    })?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    reader.expect_gone()?;
    if is_pmem_rs {
        println!("retired: {:?}", retired::expect(1)?);
    }
    user.go()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// All DAX devices share one `dax_read_lock`.
pub fn stuck_elsewhere(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let node = lab.ready(1)?.disk.node_str();
    let other = Fs::Ext4.make_and_mount(&node)?;
    fs::write(other.path("file"), contents())?;
    let mut user = Child::start_ready("the process with a blocked read", |link| {
        read_into_absent(&File::open(other.path("file"))?, link)
    })?;
    let reader = User::Reader.start(&fixture)?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    reader.expect_gone()?;
    user.go()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    other.unmount()?;
    back_to_normal(fixture, Way::Unbind)
}
