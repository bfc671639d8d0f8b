// SPDX-License-Identifier: GPL-2.0

//! Core dumps of processes with a mapping, of which the mapping is a part.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::signal::{Signal, raise};
use nix::sys::stat::Mode;
use nix::sys::wait::WaitStatus;
use nix::unistd::mkfifo;

use super::fixture::{Fixture, LEN, contents};
use super::special::{back_to_normal, only_for_pmem_rs};
use super::users::read_all;
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::lab::{Lab, Skip};
use crate::mapping::{PAGE, Sharing};
use crate::process::Child;
use crate::retired::{self, TIMEOUT};
use crate::sysfs;

const PATTERN: &str = "/proc/sys/kernel/core_pattern";
/// The pattern of a kernel that has just started.
const DEFAULT_PATTERN: &str = "core";
/// Private and shared DAX mappings.
const DAX: &str = "0x180";
/// How long a dump may take under emulation.
const DUMP_LIMIT: Duration = Duration::from_secs(20);

const DUMP: &str = "/tmp/dump";
/// The program that receives a dump waits until something is written here.
const GATE: &str = "/tmp/gate";
const RECEIVER: &str = "/tmp/receiver";

/// Sets where dumps go.
fn set_pattern(pattern: &str) -> Result<()> {
    if !Path::new(PATTERN).exists() {
        return Err(Skip("the kernel has no core dumps").into());
    }
    sysfs::write(PATTERN, pattern)
}

/// Undoes what these tests change.
pub fn reset() -> Result<()> {
    if Path::new(PATTERN).exists() {
        sysfs::write(PATTERN, DEFAULT_PATTERN)?;
    }
    Ok(())
}

/// Lets the DAX mappings of this process be dumped.
fn be_dumped() -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, RLIM_INFINITY, RLIM_INFINITY)?;
    sysfs::write("/proc/self/coredump_filter", DAX)
}

/// Waits until a process has ended by this signal and was dumped.
fn expect_dumped(process: &mut Child, signal: Signal) -> Result<()> {
    let end = process.end(DUMP_LIMIT)?;
    ensure!(
        matches!(end, WaitStatus::Signaled(_, by, true) if by == signal),
        "{end:?} without a dump"
    );
    Ok(())
}

/// Whether a page of the file is in the dump.
fn has_page(dump: &[u8]) -> bool {
    let contents = contents();
    let page = &contents[LEN - PAGE..];
    dump.chunks(PAGE).any(|chunk| chunk == page)
}

/// The process gets SIGBUS, whose dump reads what is left of the mapping: no page of the device.
/// Before the unbind, all pages are in a dump.
pub fn after_the_unbind(lab: &mut Lab) -> Result<()> {
    set_pattern(DUMP)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    for is_unbound in [false, true] {
        let mut process = Child::start_ready("the process that is dumped", |link| {
            be_dumped()?;
            let mapping = fixture.map(Sharing::Shared)?;
            let private = fixture.map(Sharing::Private)?;
            read_all(&mapping);
            private.store(0, 1);
            link.say("ready")?;
            link.wait()?;
            if is_unbound {
                read_all(&mapping);
            } else {
                raise(Signal::SIGABRT)?;
            }
            Ok(())
        })?;
        if is_unbound {
            Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
        }
        process.go()?;
        let signal = if is_unbound {
            Signal::SIGBUS
        } else {
            Signal::SIGABRT
        };
        expect_dumped(&mut process, signal)?;
        let dump = fs::read(DUMP).context("reading the dump")?;
        println!("the dump has {} bytes", dump.len());
        ensure!(
            has_page(&dump) != is_unbound,
            "a page of the device is in the dump: {is_unbound}"
        );
        fs::remove_file(DUMP)?;
    }
    back_to_normal(fixture, Way::Unbind)
}

/// The device is unbound while its pages are dumped to a program that does not read. The page that
/// is being dumped is pinned.
pub fn during_the_dump(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    set_pattern(&format!("|/bin/busybox sh {RECEIVER}"))?;
    let receive = format!("read word <{GATE}\nexec cat >{DUMP}\n");
    fs::write(RECEIVER, receive)?;
    mkfifo(GATE, Mode::S_IRWXU)?;
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let mut process = Child::start_ready("the process that is dumped", |link| {
        be_dumped()?;
        let mapping = fixture.map(Sharing::Shared)?;
        read_all(&mapping);
        link.say("ready")?;
        raise(Signal::SIGABRT)?;
        Ok(())
    })?;
    process.await_sleep_in("pipe_write")?;

    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    println!("gone after {} ms", took.as_millis());
    println!("retired: {:?}", retired::expect(1)?);
    fs::write(GATE, "go\n")?;
    expect_dumped(&mut process, Signal::SIGABRT)?;
    for file in [RECEIVER, GATE, DUMP] {
        fs::remove_file(file)?;
    }
    back_to_normal(fixture, Way::Unbind)
}
