// SPDX-License-Identifier: GPL-2.0

//! Allocations that fail: the fault injection of the debug kernel
//! (`Documentation/fault-injection/fault-injection.rst`, `lib/fault-inject.c`).
//!
//! Allocations are counted, so which one fails is deterministic. The allocations of one thread can
//! be counted (`fail-nth`). Those of all threads are counted separately by the slab and by the page
//! allocator, and only if the driver is among the callers.

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
/// The maximum stack depth that the kernel searches.
const DEPTH: u32 = 32;
/// The stack depth within which the driver is found if it allocates directly or through one or two
/// functions of the kernel. It includes the functions of the allocator.
const NEAR: u32 = 8;
const EVERYTHING: Addresses = (0, u64::MAX);
/// More allocations than any tested operation makes.
const MANY: u32 = 1 << 30;
/// An allocation of this size is not served from the heap of this process: it is mapped from the
/// kernel, and unmapped when it is freed.
const LOAD: usize = 1 << 20;
/// Functions of the kernel at consecutive addresses, in which no allocation is made to fail. The
/// kernel accepts only one such range. docs/kernel-bugs.md says what is wrong with them.
pub type Excepted = &'static [&'static str];
/// Creates page tables for the linear mapping, and `struct page`s.
pub const MEMORY_MAP: Excepted = &["add_pages", "arch_add_memory"];
/// Queues work for asynchronous execution.
pub const ASYNC: Excepted = &["async_schedule_node_domain"];
/// Receives what is written to an attribute, before any driver sees it.
pub const ORDER: Excepted = &["kernfs_fop_write_iter"];
/// The maximum length of a function.
const LONGEST: u64 = 64 << 10;

/// An allocator of the kernel that can be made to fail.
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

    /// Counts only allocations with one of these addresses among their first `depth` callers.
    fn require(self, (start, end): Addresses, depth: u32) -> Result<()> {
        self.set("stacktrace-depth", &depth.to_string())?;
        self.set("require-start", &start.to_string())?;
        self.set("require-end", &end.to_string())
    }
}

/// The allocations that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All allocations of the thread.
    Thread,
    /// Allocations of the thread with the driver among the callers.
    ThreadInDriver,
    /// Those of them that the driver makes directly or through one or two functions of the kernel.
    ThreadNearDriver,
    /// Allocations of any thread with the driver among the callers, in one of the allocators.
    Driver(Allocator),
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Thread => "of the thread",
            Scope::ThreadInDriver => "of the thread for the driver",
            Scope::ThreadNearDriver => "of the driver itself",
            Scope::Driver(Allocator::Slab) => "of the driver from the slab",
            Scope::Driver(Allocator::Pages) => "of pages of the driver",
        })
    }
}

/// The kernel's fault injection, set up.
pub struct Injection {
    /// The code of the driver.
    code: Addresses,
}

impl Injection {
    /// Sets up fault injection for every allocation that may fail, except in the `excepted`
    /// functions.
    pub fn new(driver: Driver, excepted: Excepted) -> Result<Injection> {
        end()?;
        let code = Code::of(driver, excepted)?;
        for allocator in Allocator::ALL {
            allocator.set("ignore-gfp-wait", "N")?;
            allocator.set("verbose", "0")?;
            allocator.set("reject-start", &code.excepted.0.to_string())?;
            allocator.set("reject-end", &code.excepted.1.to_string())?;
        }
        Allocator::Slab.set("cache-filter", "N")?;
        Allocator::Pages.set("ignore-gfp-highmem", "N")?;
        Allocator::Pages.set("min-order", "0")?;
        Ok(Injection { code: code.driver })
    }

    /// Runs `work` with the `nth` allocation failing. Returns the result of `work`, and whether
    /// there were `nth` allocations.
    pub fn fail<T>(&self, scope: Scope, nth: u32, work: impl FnOnce() -> T) -> Result<(T, bool)> {
        if let Scope::Driver(allocator) = scope {
            return self.fail_of_driver(allocator, nth, work);
        }
        let (result, left) = self.count_down(scope, nth, work)?;
        Ok((result, left == 0))
    }

    /// Runs `work`, and returns how many allocations it made, if that can be counted without making
    /// one fail.
    pub fn count<T>(&self, scope: Scope, work: impl FnOnce() -> T) -> Result<(T, Option<u32>)> {
        if let Scope::Driver(_) = scope {
            return Ok((work(), None));
        }
        let (result, left) = self.count_down(scope, MANY, work)?;
        Ok((result, Some(MANY - left)))
    }

    /// Runs `work` while every allocation from the slab fails in all threads, except near the
    /// excepted functions. Returns the result of `work`, and how many allocations failed.
    ///
    /// `work` must not need memory. No process can be started and no file opened meanwhile.
    pub fn fail_all<T>(&self, work: impl FnOnce() -> T) -> Result<(T, u32)> {
        let allocator = Allocator::Slab;
        allocator.require(EVERYTHING, NEAR)?;
        allocator.set("interval", "1")?;
        allocator.set("task-filter", "N")?;
        allocator.set("times", &MANY.to_string())?;
        let path = allocator.file("probability");
        let probability = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        let result = {
            let _failing = Everything::fails(&probability)?;
            work()
        };
        let left: u32 = sysfs::read(allocator.file("times"))?.parse()?;
        Ok((result, MANY - left))
    }

    /// Runs `work` while every allocation of pages fails that has the driver among its callers.
    /// Returns the result of `work`, and how many allocations failed.
    pub fn fail_pages_of_driver<T>(&self, work: impl FnOnce() -> T) -> Result<(T, u32)> {
        let allocator = Allocator::Pages;
        allocator.require(self.code, DEPTH)?;
        allocator.set("interval", "1")?;
        allocator.set("task-filter", "N")?;
        allocator.set("times", &MANY.to_string())?;
        allocator.set("probability", "100")?;
        let result = work();
        allocator.set("probability", "0")?;
        let left: u32 = sysfs::read(allocator.file("times"))?.parse()?;
        Ok((result, MANY - left))
    }

    /// One of `interval` allocations fails. The kernel counts them since the start of the machine,
    /// so this thread first advances the counter to a multiple of `nth`.
    fn fail_of_driver<T>(
        &self,
        allocator: Allocator,
        nth: u32,
        work: impl FnOnce() -> T,
    ) -> Result<(T, bool)> {
        allocator.require(EVERYTHING, DEPTH)?;
        allocator.set("interval", &nth.to_string())?;
        sysfs::write("/proc/self/make-it-fail", "1")?;
        allocator.set("task-filter", "Y")?;
        allocator.set("probability", "100")?;
        allocator.set("times", "1")?;
        // Reading the counter allocates memory too, and may fail.
        while !fs::read_to_string(allocator.file("times")).is_ok_and(|left| left.trim_end() == "0")
        {
            drop(black_box(vec![1_u8; LOAD]));
        }
        allocator.set("task-filter", "N")?;
        allocator.require(self.code, DEPTH)?;

        allocator.set("times", "1")?;
        let result = work();
        let failed = sysfs::read(allocator.file("times"))? == "0";
        allocator.set("probability", "0")?;
        Ok((result, failed))
    }

    /// Runs `work`, and returns after how many more allocations of this thread one would have
    /// failed; 0 if one has failed.
    fn count_down<T>(&self, scope: Scope, nth: u32, work: impl FnOnce() -> T) -> Result<(T, u32)> {
        let (code, depth) = match scope {
            Scope::Thread => (EVERYTHING, DEPTH),
            Scope::ThreadNearDriver => (self.code, NEAR),
            Scope::ThreadInDriver | Scope::Driver(_) => (self.code, DEPTH),
        };
        for allocator in Allocator::ALL {
            allocator.require(code, depth)?;
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

/// Makes all allocations fail until it is dropped. Its file is opened beforehand, because opening
/// it needs memory.
struct Everything<'a>(&'a File);

impl<'a> Everything<'a> {
    fn fails(mut probability: &'a File) -> Result<Everything<'a>> {
        probability.write_all(b"100")?;
        Ok(Everything(probability))
    }
}

impl Drop for Everything<'_> {
    fn drop(&mut self) {
        // If this fails, all later steps fail too.
        let _ = self.0.write_all(b"0");
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // What remains has no effect: its probability is zero.
        let _ = end();
    }
}

/// Ends all fault injection. Does nothing on a kernel without it.
pub fn end() -> Result<()> {
    for allocator in Allocator::ALL {
        if allocator.file("probability").exists() {
            allocator.set("probability", "0")?;
            allocator.set("times", "0")?;
            allocator.set("task-filter", "N")?;
        }
    }
    Ok(())
}

/// An address range of code in the kernel's memory.
type Addresses = (u64, u64);

/// The address ranges of the code that matters.
struct Code {
    excepted: Addresses,
    /// The code of the driver; empty if it is not loaded.
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

/// The end of the function that starts here, at most: the start of the next one. The kernel does
/// not record where functions end.
fn end_of(starts: &[u64], start: u64) -> u64 {
    let next = starts.partition_point(|address| *address <= start);
    let next = starts.get(next).copied();
    next.unwrap_or(u64::MAX).min(start.saturating_add(LONGEST))
}
