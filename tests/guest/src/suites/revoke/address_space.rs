// SPDX-License-Identifier: GPL-2.0

//! Threads that change their address space, or wait in it, while the device is unbound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};

use super::fixture::{Fixture, LEN};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, read_all};
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::errno;
use crate::lab::Lab;
use crate::mapping::{Advice, Mapping, Sharing};
use crate::process::{Child, Link};
use crate::retired::{self, TIMEOUT};

/// What a thread does with its mapping all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    /// Moves it to another address.
    Mremap,
    /// Makes it read-only, and writable again.
    Mprotect,
    /// Drops the page table entries, or asks for a reclaim of the pages.
    Madvise,
    /// Unmaps it and maps the file again.
    Mmap,
}

const CALLS: &[Call] = &[Call::Mremap, Call::Mprotect, Call::Madvise, Call::Mmap];
/// How often each of the threads does it at least, before the unbind.
const ROUNDS: usize = 3;

impl Call {
    /// Does it once.
    fn round(self, fixture: &Fixture<'_>, mapping: Mapping) -> Result<Mapping> {
        Ok(match self {
            Call::Mremap => mapping.moved()?,
            Call::Mprotect => {
                mapping.protect(false)?;
                mapping.protect(true)?;
                mapping
            }
            Call::Madvise => {
                for advice in [Advice::Cold, Advice::PageOut, Advice::DontNeed] {
                    mapping.advise(advice)?;
                }
                mapping
            }
            Call::Mmap => {
                drop(mapping);
                fixture.map(Sharing::Shared)?
            }
        })
    }

    /// Does it until a page of the mapping cannot be had any more, or the file cannot be mapped.
    fn for_ever(self, fixture: &Fixture<'_>, done: &AtomicUsize) -> Result<()> {
        let mut mapping = fixture.map(Sharing::Shared)?;
        loop {
            match mapping.advise(Advice::PopulateRead) {
                Ok(()) => {}
                populated => {
                    // The kernel's word for a SIGBUS.
                    errno::expect("populating", populated, &[Errno::EFAULT])?;
                    return Ok(());
                }
            }
            mapping = match self.round(fixture, mapping) {
                Ok(mapping) => mapping,
                Err(error) if self == Call::Mmap && errno::of(&error) == Some(Errno::EIO) => {
                    return Ok(());
                }
                Err(error) => return Err(error.context(format!("{self:?}"))),
            };
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One process with a thread for each call. Its mappings fail, one after the other.
fn call_for_ever(fixture: &Fixture<'_>, link: &mut Link) -> Result<()> {
    let idle = fixture.map(Sharing::Shared)?;
    read_all(&idle);
    let counts: Vec<AtomicUsize> = CALLS.iter().map(|_| AtomicUsize::new(0)).collect();
    thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = CALLS
            .iter()
            .zip(&counts)
            .map(|(call, count)| scope.spawn(|| call.for_ever(fixture, count)))
            .collect();
        while counts
            .iter()
            .any(|count| count.load(Ordering::Relaxed) < ROUNDS)
            && !threads.iter().any(|thread| thread.is_finished())
        {
            sleep(Duration::from_millis(10));
        }
        link.say("ready")?;
        for (call, thread) in CALLS.iter().zip(threads) {
            match thread.join() {
                Ok(result) => result?,
                Err(_) => bail!("the thread of {call:?} panicked"),
            }
        }
        Ok(())
    })?;
    println!("{CALLS:?} were done {counts:?} times");
    link.say("all have failed")?;
    read_all(&idle);
    Ok(())
}

/// The kernel changes the page tables while the driver revokes them.
pub fn calls(lab: &mut Lab, on: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, on, Under::Whole)?;
    let mut user = Child::start_ready("the process that changes its mappings", |link| {
        call_for_ever(&fixture, link)
    })?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    if took < TIMEOUT {
        retired::expect(0)?;
    }
    user.hear("all have failed", SIGNAL_LIMIT)?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// A thread waits for a futex that is in the file. Unbind does not wait for it, it cannot be woken
/// through the mapping any more, and it can be killed.
pub fn futex(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let mut sleeper = Child::start("the process that waits for a futex", |_| {
        let mapping = fixture.map(Sharing::Shared)?;
        let word = mapping.word(0);
        mapping.await_futex(0, word)?;
        Ok(())
    })?;
    sleeper.await_sleep_in("futex")?;
    let mut waker = Child::start_ready("the process that wakes", |link| {
        let mapping = fixture.map(Sharing::Shared)?;
        // A word for which no thread waits.
        let woken = mapping.wake_futex(LEN / 2)?;
        ensure!(woken == 0, "{woken} threads were woken");
        link.say("ready")?;
        link.wait()?;
        errno::expect("waking", mapping.wake_futex(0), &[Errno::EFAULT])?;
        Ok(())
    })?;

    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    if took < TIMEOUT {
        retired::expect(0)?;
    }
    waker.go()?;
    waker.expect_done(SIGNAL_LIMIT)?;
    ensure!(sleeper.try_end()?.is_none(), "the sleeper has ended");
    kill(sleeper.pid(), Signal::SIGKILL)?;
    sleeper.expect_signal(Signal::SIGKILL, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}
