// SPDX-License-Identifier: GPL-2.0

//! Each allocation fails once.
//!
//! A test walks along a path through the driver: each time another allocation fails, until each has
//! failed or the time is over. The kernel must not warn, the caller must get an error or the full
//! result, and the next attempt must succeed. At the end of a walk the driver holds the same
//! resources as before.
//!
//! The kernel itself prints a stack trace when an allocation fails. That does not count as a
//! warning, see `tests/klog`.

mod binding;
mod going;
mod using;

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::{Suite, Test};
use crate::command::run;
use crate::disk::Disk;
use crate::injection::{Allocator, Excepted, Injection, MEMORY_MAP, Scope};
use crate::lab::{Lab, Prepared, holder};
use crate::leaks::Holdings;
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::sysfs;

/// The walks of every test run, and the other conditions under which unbind lacks memory.
pub const SUITE: Suite = Suite {
    name: "allocations",
    tests: &[
        path("probe_of_fsdax_mem", |lab| {
            binding::probe(lab, Mode::FsdaxMem)
        }),
        path("unbind_while_mapped", going::while_mapped),
        Test::new("unbind_without_memory", going::without_memory),
        Test::new(
            "many_files_without_memory",
            going::many_files_without_memory,
        ),
        Test::new("unbind_beside_a_busy_thread", going::beside_a_busy_thread),
    ],
};

/// The other walks, which take longer.
pub const MORE: Suite = Suite {
    name: "allocations_more",
    tests: &[
        path("probe_of_raw", |lab| binding::probe(lab, Mode::Raw)),
        path("probe_of_fsdax_dev", |lab| {
            binding::probe(lab, Mode::FsdaxDev)
        }),
        path("probe_of_sector", |lab| binding::probe(lab, Mode::Sector)),
        path("probe_of_new_fsdax_mem", |lab| {
            binding::probe_of_new(lab, "ram")
        }),
        path("probe_of_new_fsdax_dev", |lab| {
            binding::probe_of_new(lab, "pmem")
        }),
        path("claim_of_fsdax", |lab| binding::claim(lab, Mode::FsdaxMem)),
        path("claim_of_sector", |lab| binding::claim(lab, Mode::Sector)),
        path("block_io", using::block_io),
        path("dax", using::dax),
        path("attributes", using::attributes),
        path("unbind_while_idle", going::while_idle),
        path("module", binding::module),
    ],
};

/// A test that runs until each allocation has failed or its time is over.
const fn path(name: &'static str, run: fn(&mut Lab) -> Result<()>) -> Test {
    Test::new(name, run).within(120).or_as_long_as_asked()
}

/// The size of the namespaces. Most of the time of a bind or unbind is proportional to the number
/// of pages.
const SIZE: &str = "64M";

/// The errors of a call that lacks memory.
const NO_MEMORY: &[Errno] = &[Errno::ENOMEM];
/// The errors of a probe that lacks memory. The kernel's `request_mem_region` and `memremap` do not
/// say why they fail, so the range looks busy or absent; a disk that got no name is `EINVAL`.
const NOT_PROBED: &[Errno] = &[Errno::ENOMEM, Errno::EBUSY, Errno::ENXIO, Errno::EINVAL];

/// One path takes at most this part of the requested time. There are about as many long ones.
const SHARE: u32 = 8;
/// What each walk gets at least.
const LEAST: Duration = Duration::from_secs(4);

/// One path, and the results on it.
struct Walk {
    what: &'static str,
    injection: Injection,
    random: ChaCha8Rng,
    limit: Duration,
    messages: Messages,
    heard: usize,
    baseline: Holdings,
    failed: u64,
    /// The number of allocations that were counted, or that have all failed.
    known: u64,
    /// The number of attempts by result.
    ends: BTreeMap<String, u64>,
    began: Instant,
}

impl Walk {
    /// Starts a walk and records what the driver holds.
    fn new(lab: &Lab, what: &'static str) -> Result<Walk> {
        Walk::new_excepting(lab, what, MEMORY_MAP)
    }

    /// As [`Walk::new`], with other excepted functions than the memory map.
    fn new_excepting(lab: &Lab, what: &'static str, excepted: Excepted) -> Result<Walk> {
        let injection = Injection::new(lab.driver, excepted)?;
        let baseline = Holdings::now()?;
        let messages = Messages::from_now()?;
        sysfs::write("/dev/kmsg", klog::NO_MEMORY_FROM_HERE)?;
        Ok(Walk {
            what,
            injection,
            random: lab.random.clone(),
            limit: (lab.stress / SHARE).max(LEAST),
            messages,
            heard: 0,
            baseline,
            failed: 0,
            known: 0,
            ends: BTreeMap::new(),
            began: Instant::now(),
        })
    }

    /// Repeats the path. `step` gets a [`Failing`], which makes one allocation fail.
    ///
    /// Where the allocations can be counted, they fail in a random order, until each has failed or
    /// the time is over. The driver's own allocations all fail, and so do those that cannot be
    /// counted, one after the other.
    fn along(
        &mut self,
        scope: Scope,
        mut step: impl FnMut(&mut Failing<'_>) -> Result<()>,
    ) -> Result<()> {
        let Turn::Counted(count) = self.turn(scope, None, &mut step)? else {
            for nth in 1.. {
                if !matches!(self.turn(scope, Some(nth), &mut step)?, Turn::Failed) {
                    self.known += u64::from(nth - 1);
                    break;
                }
            }
            return Ok(());
        };
        self.known += u64::from(count);
        let mut places: Vec<u32> = (1..=count).collect();
        for place in (1..places.len()).rev() {
            places.swap(place, self.random.random_range(0..=place));
        }
        let deadline = Instant::now() + self.limit;
        for nth in places {
            self.turn(scope, Some(nth), &mut step)?;
            if scope != Scope::ThreadNearDriver && Instant::now() > deadline {
                break;
            }
        }
        Ok(())
    }

    /// Runs `work`, and checks that the driver allocates nothing for it.
    fn expect_none(&mut self, mut work: impl FnMut() -> io::Result<()>) -> Result<()> {
        for scope in [
            Scope::ThreadInDriver,
            Scope::Driver(Allocator::Slab),
            Scope::Driver(Allocator::Pages),
        ] {
            let turn = self.turn(scope, Some(1), &mut |failing| {
                Ok(failing.during(&mut work)??)
            })?;
            ensure!(turn == Turn::NotFailed, "there was an allocation {scope}");
        }
        Ok(())
    }

    /// Runs the path once.
    fn turn(
        &mut self,
        scope: Scope,
        nth: Option<u32>,
        step: &mut impl FnMut(&mut Failing<'_>) -> Result<()>,
    ) -> Result<Turn> {
        let mut failing = Failing {
            injection: &self.injection,
            scope,
            nth,
            turn: Turn::NotTried,
            ends: &mut self.ends,
        };
        let result = step(&mut failing);
        let turn = failing.turn;
        result
            .and_then(|()| self.expect_quiet())
            .with_context(|| match nth {
                Some(nth) => format!("{}: allocation {nth} {scope} fails", self.what),
                None => format!("{}: nothing fails", self.what),
            })?;
        ensure!(turn != Turn::NotTried, "nothing was tried");
        if turn == Turn::Failed {
            self.failed += 1;
        }
        Ok(turn)
    }

    /// Checks that the kernel has not warned since the last call.
    fn expect_quiet(&mut self) -> Result<()> {
        let said = self.messages.so_far()?;
        let trouble: Vec<&String> = klog::troubles(said, String::as_str)
            .filter(|(place, _)| *place >= self.heard)
            .map(|(_, message)| message)
            .collect();
        ensure!(trouble.is_empty(), "the kernel complains: {trouble:#?}");
        self.heard = said.len();
        Ok(())
    }

    /// Ends the walk, with the devices in the same state as at its start.
    fn end(self) -> Result<()> {
        println!(
            "measured: {}: {} of {} allocations failed, and it ended: {}; {} s",
            self.what,
            self.failed,
            self.known,
            self.ends
                .iter()
                .map(|(end, count)| format!("{end} {count}"))
                .collect::<Vec<_>>()
                .join(", "),
            self.began.elapsed().as_secs()
        );
        ensure!(self.failed > 0, "no allocation has failed");
        drop(self.injection);
        sysfs::write("/dev/kmsg", klog::NO_MEMORY_UNTIL_HERE)?;
        self.baseline.expect_unchanged()?;
        self.baseline.expect_no_objects_of(self.failed)
    }
}

/// What happened to the allocation that was to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    NotTried,
    /// None was to fail; the path has this number of allocations.
    Counted(u32),
    /// None was to fail, and they cannot be counted; or the path has fewer allocations.
    NotFailed,
    Failed,
}

/// Makes one allocation fail, once.
struct Failing<'a> {
    injection: &'a Injection,
    scope: Scope,
    /// The number of the allocation, or none.
    nth: Option<u32>,
    turn: Turn,
    ends: &'a mut BTreeMap<String, u64>,
}

impl Failing<'_> {
    /// Runs `work`, in which the allocation fails if it is reached.
    fn during<T>(&mut self, work: impl FnOnce() -> T) -> Result<T> {
        let (result, turn) = match self.nth {
            None => {
                let (result, count) = self.injection.count(self.scope, work)?;
                (result, count.map_or(Turn::NotFailed, Turn::Counted))
            }
            Some(nth) => {
                let (result, failed) = self.injection.fail(self.scope, nth, work)?;
                (
                    result,
                    if failed {
                        Turn::Failed
                    } else {
                        Turn::NotFailed
                    },
                )
            }
        };
        self.turn = turn;
        Ok(result)
    }

    fn has_failed(&self) -> bool {
        self.turn == Turn::Failed
    }

    /// Counts the result, if an allocation has failed.
    fn ended(&mut self, end: &str) {
        if self.has_failed() {
            *self.ends.entry(end.to_owned()).or_default() += 1;
        }
    }

    /// As [`Failing::during`], for a call that may fail with one of these errors, but only because
    /// of the failed allocation. Returns its result on success.
    fn call<T>(
        &mut self,
        right: &[Errno],
        work: impl FnOnce() -> io::Result<T>,
    ) -> Result<Option<T>> {
        let result = self.during(work)?;
        let errno = result.as_ref().err().map(|error| {
            let number = error.raw_os_error();
            Errno::from_raw(number.unwrap_or_default())
        });
        self.ended(&errno.map_or("well".to_owned(), |errno| format!("{errno:?}")));
        let error = match result {
            Ok(value) => return Ok(Some(value)),
            Err(error) => error,
        };
        ensure!(
            self.has_failed(),
            "no allocation has failed, and yet the call did: {error}"
        );
        ensure!(
            errno.is_some_and(|errno| right.contains(&errno)),
            "the call failed with `{error}`, expected one of {right:?}"
        );
        Ok(None)
    }
}

/// Replaces the namespace by a small one.
fn small(lab: &Lab, mode: Mode) -> Result<Prepared> {
    // Only a namespace with a label can have any size. This gives it one.
    ndctl::reconfigure(&lab.namespace(0)?, Mode::Raw)?;
    let old = lab.namespace(0)?;
    run("ndctl", &["destroy-namespace", "-f", old.name()])?;
    let mut more = vec!["-s", SIZE];
    if mode != Mode::Sector {
        more.extend(["-l", "512"]);
    }
    let made = ndctl::create(&lab.region(0)?, mode, &more)?;
    let namespace = Device::named(&made.dev);
    let disk = made
        .blockdev
        .with_context(|| format!("{namespace} has no disk"))?;
    let bound = holder(&namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    Ok(Prepared {
        namespace,
        bound,
        disk: Disk::named(disk),
    })
}
