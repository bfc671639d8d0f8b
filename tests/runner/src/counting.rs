// SPDX-License-Identifier: GPL-2.0

//! Counts of instructions, as the plugin (`tests/counter`) writes them, and a test of the plugin.

use std::path::Path;

use anyhow::Result;

use crate::boot::{Bench, numbers_and_text, seen};
use crate::report::Report;
use crate::selftest::Findings;
use crate::suites::{self, Boot, Special};

/// The counts under one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    pub label: String,
    /// Calls of the driver.
    pub calls: u64,
    /// Instructions in the driver.
    pub driver: u64,
    /// Instructions in code that the driver called, without copies.
    pub callees: u64,
    /// Instructions in copies.
    pub copies: u64,
    /// Cache lines of data that the driver accesses, counted in each call.
    pub lines: u64,
    /// Those of them that it stores to.
    pub written: u64,
}

impl Counts {
    /// Reads the counts of a boot, in order.
    pub fn read(dir: &Path) -> Result<Vec<Counts>> {
        seen(dir, Counts::parse)
    }

    fn parse(line: &str) -> Result<Counts> {
        let ([calls, driver, callees, copies, lines, written], label) = numbers_and_text(line)?;
        Ok(Counts {
            label: label.to_owned(),
            calls,
            driver,
            callees,
            copies,
            lines,
            written,
        })
    }
}

/// The name of the plugin.
pub const PLUGIN: &str = "counter";

/// The counts of the known code in the guest (`tests/guest/src/counter.rs`): a driver of five
/// instructions that loads from one cache line, stores to another one, and calls a loop of
/// 2 + 2·1000 and a copy of three.
fn known(counts: &Counts) -> bool {
    let instructions = (counts.calls, counts.driver, counts.callees, counts.copies);
    instructions == (1, 5, 2 + 2 * 1000, 3) && (counts.lines, counts.written) == (2, 1)
}

/// Boots a guest with code whose counts are known.
pub fn run(bench: &Bench) -> Result<Report> {
    let bench = bench.with_plugin(PLUGIN)?;
    let boot = Boot::off(Special::Counting.name());
    let dir = bench.results.join(boot.suite);
    let report = bench.boot(&suites::COUNTED_PAIR, &dir, &boot, |_| {})?;
    let all = Counts::read(&dir)?;
    let of = |label: &str| -> Vec<&Counts> {
        all.iter().filter(|counts| counts.label == label).collect()
    };

    let mut findings = Findings::default();
    for (test, passed) in &report.tests {
        findings.expect(test, *passed, report.troubles.clone());
    }
    let known_code = of("known");
    let right = known_code.len() == 2 && known_code.iter().all(|counts| known(counts));
    let seen = |counts: &[&Counts]| vec![format!("{counts:?}")];
    findings.expect("known_code_is_counted_right", right, seen(&known_code));
    for driver in ["nd_pmem", "pmem_rs"] {
        let reads = of(driver);
        let same = match reads[..] {
            [first, second] => first.calls > 0 && first.driver > 0 && first == second,
            _ => false,
        };
        findings.expect(
            &format!("{driver}_is_counted_the_same_twice"),
            same,
            seen(&reads),
        );
    }
    findings.report(Special::Counting.name(), vec![report])
}
