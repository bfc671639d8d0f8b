// SPDX-License-Identifier: GPL-2.0

//! Talks to the plugin that watches stores and flushes (`tests/ordering`), on the machine that has
//! it.
//!
//! The guest does not see the results: the runner compares what the plugin has seen with what is
//! expected here.

use std::fmt::Write as _;
use std::fs;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;

use crate::kallsyms::{code_of, symbols};
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE};
use crate::plugin;

fn say(line: &str) {
    plugin::say("ordering", line);
}

/// What must be true of a range in which all lines were stored to since [`Watch::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// All lines would survive a power failure.
    Durable,
    /// No line is only in a cache, but it may not be durable yet.
    Flushed,
    /// All lines are flushed, but not yet durable.
    Pending,
    /// All lines are only in a cache.
    Dirty,
    /// As [`Expect::Durable`], but it is enough if some line was stored to.
    Settled,
    /// Nothing was stored.
    Untouched,
}

impl Expect {
    /// The word for the runner.
    fn word(self) -> &'static str {
        match self {
            Expect::Durable => "durable",
            Expect::Flushed => "flushed",
            Expect::Pending => "pending",
            Expect::Dirty => "dirty",
            Expect::Settled => "settled",
            Expect::Untouched => "untouched",
        }
    }
}

/// Which fences make flushed lines durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fences {
    /// All fences.
    All,
    /// The fences in the flush of a region, by libnvdimm or by the driver. The kernel executes
    /// other fences often, but for a region with a buffer behind the CPU only its flush counts.
    OfTheRegion,
}

/// The functions of libnvdimm that flush regions.
const FLUSHES: [&str; 2] = ["nvdimm_flush", "generic_nvdimm_flush"];
/// The barrier that the driver executes if there is nothing else to flush. nd_pmem has none.
const BARRIER: &str = "pmem_rs_helper_pmem_wmb";
/// The file in which the result of [`flushes`] is stored.
const KNOWN: &str = "/run/ordering";

/// Makes the plugin watch a region until this is dropped.
pub struct Watch {
    test: &'static str,
    all: Range<u64>,
}

impl Watch {
    /// Makes the plugin watch the first region, all of which counts as durable now. `test` is the
    /// name of the test.
    pub fn region(lab: &Lab, test: &'static str, fences: Fences) -> Result<Watch> {
        let region = lab.region(0)?;
        let start = region.resource()?;
        // Done first, because all stores are watched later.
        flushes()?;
        let all = start..start + region.get("size")?.parse::<u64>()?;
        say(&format!("watch {:x} {:x}", all.start, all.end));
        let watch = Watch { test, all };
        watch.count(fences)?;
        Ok(watch)
    }

    /// Says which fences count from here on.
    pub fn count(&self, fences: Fences) -> Result<()> {
        say("fences");
        if fences == Fences::OfTheRegion {
            flushes()?.lines().for_each(say);
        }
        Ok(())
    }

    /// Stores count from here on.
    pub fn begin(&self) {
        say("begin");
    }

    /// What must be true of a range of physical addresses now.
    pub fn expect_of(&self, expect: Expect, range: &Range<u64>, when: &str) {
        let (word, test, Range { start, end }) = (expect.word(), self.test, range);
        say(&format!("look {start:x} {end:x} {word} {test} {when}"));
    }

    /// What must be true of several ranges when the machine is off. It is watched until then.
    pub fn expect_finally(self, expect: Expect, ranges: &[Range<u64>], when: &str) {
        let (word, test) = (expect.word(), self.test);
        for Range { start, end } in ranges {
            say(&format!("finally {start:x} {end:x} {word} {test} {when}"));
        }
        std::mem::forget(self);
    }

    /// As [`Watch::expect_of`], for several ranges.
    pub fn expect(&self, expect: Expect, ranges: &[Range<u64>], when: &str) {
        for range in ranges {
            self.expect_of(expect, range, when);
        }
    }

    /// As [`Watch::expect_of`], for all of the region.
    pub fn expect_of_all(&self, expect: Expect, when: &str) {
        self.expect_of(expect, &self.all, when);
    }
}

/// The lines for the plugin about the code that flushes regions. Looking that up takes a while, so
/// the result is stored for the other tests, which are processes of their own.
fn flushes() -> Result<String> {
    let known = Path::new(KNOWN);
    if !known.exists() {
        let symbols = symbols()?;
        let mut orders = String::new();
        let barrier = symbols.iter().any(|symbol| symbol.name == BARRIER);
        for function in FLUSHES.into_iter().chain(barrier.then_some(BARRIER)) {
            let Range { start, end } = code_of(&symbols, function)?;
            writeln!(orders, "fences {start:x} {end:x}")?;
        }
        fs::write(known, orders)?;
    }
    Ok(fs::read_to_string(known)?)
}

impl Drop for Watch {
    fn drop(&mut self) {
        say("rest");
    }
}

/// The physical address ranges of a part of a mapped file, as few as possible. Pages that are not
/// mapped yet are faulted in for reading.
pub fn physical(mapping: &Mapping, part: Range<usize>) -> Result<Vec<Range<u64>>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let mut offset = part.start;
    while offset < part.end {
        let end = (offset / PAGE + 1) * PAGE;
        let len = end.min(part.end) - offset;
        mapping.load(offset);
        let start = mapping.physical(offset)?;
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end += len as u64,
            _ => ranges.push(start..start + len as u64),
        }
        offset += len;
    }
    Ok(ranges)
}
