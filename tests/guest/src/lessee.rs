// SPDX-License-Identifier: GPL-2.0

//! The module `lessee`: holders of leases of disks.

use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::command::run;
use crate::disk::Disk;
use crate::errno;
use crate::sysfs;
use nix::errno::Errno;

const COMMAND: &str = "/sys/kernel/debug/lessee/command";
const STATE: &str = "/sys/kernel/debug/lessee/state";
const NAME: &str = "lessee";

/// What a holder does when it is told that the device goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It gives the lease back, after this time.
    Returns(Duration),
    /// It keeps the lease.
    Keeps,
}

/// What has happened to a holder since it has its lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub held: u64,
    pub size: u64,
    /// How often it was told that the device goes.
    pub told: u64,
    /// How often the callback has ended.
    pub answered: u64,
    /// How often it was told that memory has failed, and where the last time.
    pub failures: u64,
    pub failed_offset: u64,
    pub failed_len: u64,
    /// The number of the last page that it has written and flushed.
    pub flushed: u64,
}

/// A holder. The module has two.
#[derive(Clone, Copy)]
pub struct Lessee(usize);

impl Lessee {
    /// Loads the module, and returns its holders, which give their leases back when they are told.
    pub fn load() -> Result<[Lessee; 2]> {
        unload()?;
        run("modprobe", &[NAME])?;
        Ok([Lessee(0), Lessee(1)])
    }

    fn command(self, verb: &str, numbers: &[u64]) -> io::Result<()> {
        let mut words = format!("{verb} {}", self.0);
        for number in numbers {
            words.push_str(&format!(" {number}"));
        }
        sysfs::try_write(COMMAND, &words)
    }

    pub fn set_answer(self, answer: Answer) -> Result<()> {
        let (returns, delay) = match answer {
            Answer::Returns(delay) => (1, delay.as_millis() as u64),
            Answer::Keeps => (0, 0),
        };
        Ok(self.command("answer", &[returns, delay])?)
    }

    /// Sets whether the next lease has the callback for bad memory.
    pub fn set_handles_bad_memory(self, handles: bool) -> Result<()> {
        Ok(self.command("bad_memory", &[u64::from(handles)])?)
    }

    /// Takes a lease of a whole disk, and returns the kernel's error unchanged.
    pub fn try_get(self, disk: &Disk) -> io::Result<()> {
        self.try_get_part(disk, 0, 0)
    }

    /// Takes a lease of the `len` bytes from `offset` on, up to the end if `len` is 0.
    pub fn try_get_part(self, disk: &Disk, offset: u64, len: u64) -> io::Result<()> {
        let numbers = disk.get("dev").map_err(io::Error::other)?;
        let (major, minor) = numbers.split_once(':').unwrap_or_default();
        let number = |text: &str| text.parse().map_err(io::Error::other);
        self.command("get", &[number(major)?, number(minor)?, offset, len])
    }

    /// Takes a lease of a whole disk.
    pub fn get(self, disk: &Disk) -> Result<()> {
        self.try_get(disk)
            .with_context(|| format!("taking a lease of {disk}"))
    }

    /// Checks that a lease of a disk is refused.
    pub fn expect_refused(self, disk: &Disk, right: Errno) -> Result<()> {
        errno::expect(&format!("a lease of {disk}"), self.try_get(disk), &[right]).map(drop)
    }

    pub fn put(self) -> Result<()> {
        Ok(self.command("put", &[])?)
    }

    /// Writes pages until the lease is given back.
    pub fn write_until_told(self) -> io::Result<()> {
        self.command("write", &[])
    }

    /// Writes a number, and flushes it.
    pub fn store(self, offset: u64, value: u64) -> io::Result<()> {
        self.command("store", &[offset, value])
    }

    /// Compares a number.
    pub fn load_number(self, offset: u64, value: u64) -> io::Result<()> {
        self.command("load", &[offset, value])
    }

    /// Compares a number by the address of the lease.
    pub fn peek(self, offset: u64, value: u64) -> io::Result<()> {
        self.command("peek", &[offset, value])
    }

    pub fn state(self) -> Result<State> {
        let text = sysfs::read(STATE)?;
        let line = text.lines().nth(self.0).context("no such holder")?;
        let value = |name: &str| -> Result<u64> {
            let value = line
                .split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok(value
                .with_context(|| format!("no {name} in `{line}`"))?
                .parse()?)
        };
        Ok(State {
            held: value("held")?,
            size: value("size")?,
            told: value("told")?,
            answered: value("answered")?,
            failures: value("failures")?,
            failed_offset: value("failed_offset")?,
            failed_len: value("failed_len")?,
            flushed: value("flushed")?,
        })
    }

    /// Waits until the state is right.
    pub fn await_state(self, what: &str, is_right: impl Fn(&State) -> bool) -> Result<State> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let state = self.state()?;
            if is_right(&state) {
                return Ok(state);
            }
            ensure!(Instant::now() < deadline, "{what}: {state:?}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Checks that the holder was told once, and has given its lease back. Its callback may return
    /// a moment later.
    pub fn expect_returned(self) -> Result<()> {
        self.await_state("not returned", |state| {
            (state.told, state.answered, state.held) == (1, 1, 0)
        })
        .map(drop)
    }
}

/// Unloads the module, whose exit gives all leases back.
pub fn unload() -> Result<()> {
    if is_loaded() {
        run("rmmod", &[NAME])?;
    }
    Ok(())
}

pub fn is_loaded() -> bool {
    Path::new("/sys/module").join(NAME).exists()
}
