// SPDX-License-Identifier: GPL-2.0

//! Talks to the plugin that sees what is flushed (`tests/ordering`), on the machine that has it.
//!
//! The guest does not learn what the plugin has seen: the runner holds it against what is said here.

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

/// What must be true of a range, in which all lines were stored to since [`Watch::begin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Everything would survive a failure of power.
    Durable,
    /// Nothing is only in a cache, but it may be on its way from there.
    Flushed,
    /// Everything is on its way.
    Pending,
    /// Everything is only in a cache.
    Dirty,
    /// As [`Expect::Durable`], but it is enough if something was stored somewhere.
    Settled,
    /// Nothing was stored.
    Untouched,
}

impl Expect {
    /// The word that the runner knows it by.
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

/// Which fences make durable what is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fences {
    /// Whoever executes them.
    All,
    /// Those of the flush of a region, by libnvdimm or by the driver. There are others in the kernel, and some are always near; but for a
    /// region that has a buffer behind the CPU only its flush is enough.
    OfTheRegion,
}

/// The functions of libnvdimm that flush regions.
const FLUSHES: [&str; 2] = ["nvdimm_flush", "generic_nvdimm_flush"];
/// The barrier that the driver has in their place, if nothing else is to be flushed. nd_pmem has none.
const BARRIER: &str = "pmem_rs_helper_pmem_wmb";
/// Where is kept what [`flushes`] has found.
const KNOWN: &str = "/run/ordering";

/// The account that the plugin keeps of a region, until this is dropped.
pub struct Watch {
    test: &'static str,
    all: Range<u64>,
}

impl Watch {
    /// Has the plugin keep account of the first region, all of which is taken for durable now. `test` is the name
    /// of the test that does it.
    pub fn region(lab: &Lab, test: &'static str, fences: Fences) -> Result<Watch> {
        let region = lab.region(0)?;
        let start = region.resource()?;
        // Not while everything that it stores is looked at.
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

    /// What counts as stored begins here.
    pub fn begin(&self) {
        say("begin");
    }

    /// What must be true of a range of physical addresses now.
    pub fn expect_of(&self, expect: Expect, range: &Range<u64>, when: &str) {
        let (word, test, Range { start, end }) = (expect.word(), self.test, range);
        say(&format!("look {start:x} {end:x} {word} {test} {when}"));
    }

    /// What must be true of each of these.
    pub fn expect(&self, expect: Expect, ranges: &[Range<u64>], when: &str) {
        for range in ranges {
            self.expect_of(expect, range, when);
        }
    }

    /// What must be true of all of the region now.
    pub fn expect_of_all(&self, expect: Expect, when: &str) {
        self.expect_of(expect, &self.all, when);
    }
}

/// What the plugin is to be told about the code that flushes regions. To look that up takes a while, so it is kept for
/// the other tests, which are processes of their own.
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

/// Where in physical memory a part of a mapped file is, in as few ranges as possible. Its pages are faulted in for
/// reading, unless they are there.
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
