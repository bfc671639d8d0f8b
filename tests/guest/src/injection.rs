// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail: the fault injection of the debug kernel
//! (`Documentation/fault-injection/fault-injection.rst`, `lib/fault-inject.c`).
//!
//! Which allocation fails is a matter of counting, not of chance. A thread can have its own allocations
//! counted (`fail-nth`). Those of all threads are counted by each of the two places that can make them fail,
//! the slab and the page allocator, and those only that have the driver among their callers.

use std::fmt;
use std::fs::{self, File};
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::driver::Driver;
use crate::sysfs;

const DEBUGFS: &str = "/sys/kernel/debug";
/// The most callers that the kernel looks at.
const DEPTH: u32 = 32;
/// So many callers are found between an allocation that the driver makes, itself or by calling one or two functions
/// of the kernel, and the driver; the allocator's own functions included.
const NEAR: u32 = 8;
const EVERYTHING: Addresses = (0, u64::MAX);
/// More allocations than there are in anything that is tried.
const MANY: u32 = 1 << 30;
/// So many bytes are not in the heap of this process: they come from the kernel, and go back to it.
const LOAD: usize = 1 << 20;
/// Functions of the kernel, one behind the other, in which nothing is made to fail. The kernel looks for one such
/// place only; docs/kernel-bugs.md says what is wrong with them.
pub type Excepted = &'static [&'static str];
/// What makes page tables for the linear mapping, and `struct page`s.
pub const MEMORY_MAP: Excepted = &["add_pages", "arch_add_memory"];
/// What does later what cannot be done at once.
pub const ASYNC: Excepted = &["async_schedule_node_domain"];
/// What takes an order that is written to an attribute, before anybody sees it.
pub const ORDER: Excepted = &["kernfs_fop_write_iter"];
/// No function is longer.
const LONGEST: u64 = 64 << 10;

/// A place in the kernel that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocator {
    Slab,
    Pages,
}

impl Allocator {
    pub const ALL: [Allocator; 2] = [Allocator::Slab, Allocator::Pages];

    fn file(self, name: &str) -> PathBuf {
        let dir = match self {
            Allocator::Slab => "failslab",
            Allocator::Pages => "fail_page_alloc",
        };
        Path::new(DEBUGFS).join(dir).join(name)
    }

    fn set(self, name: &str, value: &str) -> Result<()> {
        sysfs::write(self.file(name), value)
    }

    /// Only allocations count that have one of these addresses among so many of their callers.
    fn require(self, (start, end): Addresses, depth: u32) -> Result<()> {
        self.set("stacktrace-depth", &depth.to_string())?;
        self.set("require-start", &start.to_string())?;
        self.set("require-end", &end.to_string())
    }
}

/// Whose allocations are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// All that the thread makes.
    Thread,
    /// Those that the thread makes for the driver.
    ThreadInDriver,
    /// Those of them that the driver makes itself, or nearly so.
    ThreadNearDriver,
    /// Those that any thread makes for the driver, in one of the allocators.
    Driver(Allocator),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Whose::Thread => "of the thread",
            Whose::ThreadInDriver => "of the thread for the driver",
            Whose::ThreadNearDriver => "of the driver itself",
            Whose::Driver(Allocator::Slab) => "of the driver from the slab",
            Whose::Driver(Allocator::Pages) => "of pages of the driver",
        })
    }
}

/// The kernel's fault injection, ready to be used.
pub struct Injection {
    /// The code of the driver.
    code: Addresses,
}

impl Injection {
    /// Every allocation can be made to fail that may, and is not excepted.
    pub fn new(driver: Driver, excepted: Excepted) -> Result<Injection> {
        end()?;
        let code = Code::of(driver, excepted)?;
        for place in Allocator::ALL {
            place.set("ignore-gfp-wait", "N")?;
            place.set("verbose", "0")?;
            place.set("reject-start", &code.excepted.0.to_string())?;
            place.set("reject-end", &code.excepted.1.to_string())?;
        }
        Allocator::Slab.set("cache-filter", "N")?;
        Allocator::Pages.set("ignore-gfp-highmem", "N")?;
        Allocator::Pages.set("min-order", "0")?;
        Ok(Injection { code: code.driver })
    }

    /// Does `work`, in which the `nth` allocation fails. Returns what came of it, and whether there were so many.
    pub fn fail<T>(&self, whose: Whose, nth: u32, work: impl FnOnce() -> T) -> Result<(T, bool)> {
        if let Whose::Driver(place) = whose {
            return self.fail_of_driver(place, nth, work);
        }
        let (result, left) = self.count_down(whose, nth, work)?;
        Ok((result, left == 0))
    }

    /// Does `work`, and returns how many allocations there were in it, if that can be told without one failing.
    pub fn count<T>(&self, whose: Whose, work: impl FnOnce() -> T) -> Result<(T, Option<u32>)> {
        if let Whose::Driver(_) = whose {
            return Ok((work(), None));
        }
        let (result, left) = self.count_down(whose, MANY, work)?;
        Ok((result, Some(MANY - left)))
    }

    /// Does `work`, while every allocation from the slab fails, whoever makes it, but for those that are made
    /// near the excepted functions. Returns what came of it, and how many have failed.
    ///
    /// `work` must need no memory, and nobody can start a process or open a file meanwhile.
    pub fn fail_all<T>(&self, work: impl FnOnce() -> T) -> Result<(T, u32)> {
        let place = Allocator::Slab;
        place.require(EVERYTHING, NEAR)?;
        place.set("interval", "1")?;
        place.set("task-filter", "N")?;
        place.set("times", &MANY.to_string())?;
        let path = place.file("probability");
        let probability = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let result = {
            let _failing = Everything::fails(&probability)?;
            work()
        };
        let left: u32 = sysfs::read(place.file("times"))?.parse()?;
        Ok((result, MANY - left))
    }

    /// One of `interval` allocations fails, as the kernel has counted them since it was started. So the counter
    /// is brought to a multiple of `nth` first, by this thread.
    fn fail_of_driver<T>(
        &self,
        place: Allocator,
        nth: u32,
        work: impl FnOnce() -> T,
    ) -> Result<(T, bool)> {
        place.require(EVERYTHING, DEPTH)?;
        place.set("interval", &nth.to_string())?;
        sysfs::write("/proc/self/make-it-fail", "1")?;
        place.set("task-filter", "Y")?;
        place.set("probability", "100")?;
        place.set("times", "1")?;
        // To ask whether one has failed takes memory, and may fail.
        while !fs::read_to_string(place.file("times")).is_ok_and(|left| left.trim_end() == "0") {
            drop(black_box(vec![1_u8; LOAD]));
        }
        place.set("task-filter", "N")?;
        place.require(self.code, DEPTH)?;

        place.set("times", "1")?;
        let result = work();
        let failed = sysfs::read(place.file("times"))? == "0";
        place.set("probability", "0")?;
        Ok((result, failed))
    }

    /// Does `work`, and returns how many more allocations of this thread there would have to be until one fails; 0 if
    /// one has.
    fn count_down<T>(&self, whose: Whose, nth: u32, work: impl FnOnce() -> T) -> Result<(T, u32)> {
        let (code, depth) = match whose {
            Whose::Thread => (EVERYTHING, DEPTH),
            Whose::ThreadNearDriver => (self.code, NEAR),
            Whose::ThreadInDriver | Whose::Driver(_) => (self.code, DEPTH),
        };
        for place in Allocator::ALL {
            place.require(code, depth)?;
        }
        let counter = File::options()
            .read(true)
            .write(true)
            .open("/proc/thread-self/fail-nth")
            .context("opening fail-nth")?;
        counter.write_all_at(nth.to_string().as_bytes(), 0)?;
        let result = work();
        let mut left = [0; 24];
        let len = counter.read_at(&mut left, 0)?;
        counter.write_all_at(b"0", 0)?;
        let left = String::from_utf8_lossy(&left[..len]);
        let left = left.trim_end().parse();
        Ok((result, left.context("fail-nth is not a number")?))
    }
}

/// Makes allocations fail until it is dropped. Its file is open already, for that needs memory.
struct Everything<'a>(&'a File);

impl<'a> Everything<'a> {
    fn fails(mut probability: &'a File) -> Result<Everything<'a>> {
        probability.write_all(b"100")?;
        Ok(Everything(probability))
    }
}

impl Drop for Everything<'_> {
    fn drop(&mut self) {
        // If this fails, so does everything after it.
        let _ = self.0.write_all(b"0");
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // What remains then does no harm: it has no probability.
        let _ = end();
    }
}

/// From now on no allocation fails, whatever was asked for before. Nothing to do where none can be made to.
pub fn end() -> Result<()> {
    for place in Allocator::ALL {
        if place.file("probability").exists() {
            place.set("probability", "0")?;
            place.set("times", "0")?;
            place.set("task-filter", "N")?;
        }
    }
    Ok(())
}

/// Where some code is in the kernel's memory.
type Addresses = (u64, u64);

/// Where code is.
struct Code {
    excepted: Addresses,
    /// The code of the driver; nothing if it is not loaded.
    driver: Addresses,
}

impl Code {
    fn of(driver: Driver, functions: Excepted) -> Result<Code> {
        let text = fs::read_to_string("/proc/kallsyms").context("reading /proc/kallsyms")?;
        let module = format!("[{}]", driver.name());
        let (mut starts, mut excepted, mut own) = (Vec::new(), Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(address), Some("t" | "T"), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let address = u64::from_str_radix(address, 16)?;
            starts.push(address);
            match words.next() {
                None if functions.contains(&name) => excepted.push(address),
                Some(found) if found == module => own.push(address),
                _ => {}
            }
        }
        starts.sort_unstable();
        excepted.sort_unstable();
        own.sort_unstable();

        let (Some(&first), Some(&last)) = (excepted.first(), excepted.last()) else {
            bail!("the kernel does not have {functions:?}");
        };
        let is_between = |start: &&u64| (first..=last).contains(*start);
        ensure!(
            first != 0
                && excepted.len() == functions.len()
                && starts.iter().filter(is_between).count() == functions.len(),
            "{functions:?} are not one behind the other: {excepted:#x?}"
        );
        let excepted = (first, end_of(&starts, last));
        let driver = match (own.first(), own.last()) {
            (Some(first), Some(last)) => (*first, end_of(&starts, *last)),
            _ => (0, 0),
        };
        Ok(Code { excepted, driver })
    }
}

/// Where a function ends, at the latest, that starts here: at the next one. Nobody says where they end.
fn end_of(starts: &[u64], start: u64) -> u64 {
    let next = starts.partition_point(|address| *address <= start);
    let next = starts.get(next).copied();
    next.unwrap_or(u64::MAX).min(start.saturating_add(LONGEST))
}
