// SPDX-License-Identifier: GPL-2.0

//! Compares the stores, flushes and fences that the plugin (`tests/ordering`) has seen with the
//! guest's expectations.

use std::fmt;

use anyhow::{Context, Result};

use crate::boot::{Bench, numbers_and_text, seen};
use crate::report::Report;
use crate::selftest::Findings;
use crate::suites::{self, Boot, Power, Special};

/// The state of a range of memory at one time, as the plugin saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    /// The number of cache lines of the range.
    lines: u64,
    /// How many of them were stored to.
    written: u64,
    /// How many of them are dirty in a cache.
    dirty: u64,
    /// How many are flushed but not fenced.
    pending: u64,
    /// The expected state.
    expect: String,
    /// The test of the guest.
    test: String,
    /// The operation before.
    when: String,
}

impl Look {
    fn parse(line: &str) -> Result<Look> {
        let ([lines, written, dirty, pending], text) = numbers_and_text(line)?;
        let mut words = text.splitn(3, ' ');
        let mut word = || {
            let word = words
                .next()
                .with_context(|| format!("too few words: `{text}`"))?;
            Ok::<_, anyhow::Error>(word.to_owned())
        };
        Ok(Look {
            lines,
            written,
            dirty,
            pending,
            expect: word()?,
            test: word()?,
            when: word()?,
        })
    }

    /// Whether the state is the expected one. A range that was not stored to shows nothing.
    fn holds(&self) -> bool {
        let all_written = self.lines > 0 && self.written == self.lines;
        match self.expect.as_str() {
            "durable" => all_written && self.dirty == 0 && self.pending == 0,
            "flushed" => all_written && self.dirty == 0,
            "pending" => all_written && self.pending == self.lines,
            "dirty" => all_written && self.dirty == self.lines,
            "settled" => self.written > 0 && self.dirty == 0 && self.pending == 0,
            "untouched" => self.lines > 0 && self.written == 0,
            _ => false,
        }
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "not {} {}: of {} cache lines {} were stored to, {} are dirty, and {} are not fenced",
            self.expect, self.when, self.lines, self.written, self.dirty, self.pending
        )
    }
}

/// The only test of the second boot.
const KEXEC: &str = "kexec";

/// Boots guests that state what must be durable and when. A test has passed if the guest reports
/// that and all its expectations are met.
pub fn run(bench: &Bench, only: &[String]) -> Result<Report> {
    let bench = bench.with_plugin("ordering")?;
    let mut findings = Findings::default();
    let (mut reports, mut troubles) = (Vec::new(), Vec::new());
    let (mut looks, mut skipped) = (0, 0);
    for (machine, boot) in [
        (&suites::WATCHED, Boot::rebooted(Special::Ordering.name())),
        (&suites::WATCHED_KEXEC, Boot::kexec("ordering_kexec")),
    ] {
        let is_kexec = boot.end == Power::Kexec;
        let is_wanted = |test: &String| (test == KEXEC) == is_kexec;
        if !only.is_empty() && !only.iter().any(is_wanted) {
            continue;
        }
        let dir = bench.results.join(boot.suite);
        let mut report = bench.boot_some(machine, &dir, &boot, only, |_| {})?;
        // A test that the guest has skipped asks for nothing.
        skipped += report.skipped();
        if report.skipped() == 0 {
            looks += judge(&mut findings, &report, &seen(&dir, Look::parse)?);
        }
        troubles.append(&mut report.troubles);
        reports.push(report);
    }
    let mut judged = findings.report(Special::Ordering.name(), reports)?;
    judged.troubles = troubles;
    judged.counts.skipped = skipped;
    judged
        .measured
        .push(format!("looked {looks} times at what is durable"));
    Ok(judged)
}

/// Compares what a guest has reported with what the plugin has seen. Returns how often that looked.
fn judge(findings: &mut Findings, report: &Report, all: &[Look]) -> usize {
    for (test, passed) in &report.tests {
        let looks: Vec<&Look> = all.iter().filter(|look| look.test == *test).collect();
        let mut complaints: Vec<String> = report
            .failures
            .iter()
            .filter(|failure| failure.test == *test)
            .flat_map(|failure| failure.diagnostics.clone())
            .collect();
        let wrong = looks.iter().filter(|look| !look.holds());
        complaints.extend(wrong.map(|look| look.to_string()));
        if looks.is_empty() {
            complaints.push("the guest asked the plugin for nothing".to_owned());
        }
        findings.expect(test, *passed && complaints.is_empty(), complaints);
    }
    all.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(line: &str) -> bool {
        Look::parse(line).is_ok_and(|look| look.holds())
    }

    #[test]
    fn what_was_not_stored_to_is_not_durable() {
        assert!(holds("4\t4\t0\t0\tdurable test after a write"));
        assert!(!holds("4\t3\t0\t0\tdurable test after a write"));
        assert!(!holds("0\t0\t0\t0\tdurable test after a write"));
        assert!(!holds("4\t0\t0\t0\tsettled test in the end"));
    }

    #[test]
    fn nothing_may_be_left_in_a_cache_or_on_the_way() {
        for (line, durable, flushed) in [
            ("4\t4\t1\t0", false, false),
            ("4\t4\t0\t1", false, true),
            ("4\t4\t0\t0", true, true),
        ] {
            assert_eq!(holds(&format!("{line}\tdurable test when")), durable);
            assert_eq!(holds(&format!("{line}\tsettled test when")), durable);
            assert_eq!(holds(&format!("{line}\tflushed test when")), flushed);
        }
    }

    #[test]
    fn all_of_it_is_dirty_or_pending() {
        assert!(holds("4\t4\t4\t0\tdirty test when"));
        assert!(!holds("4\t4\t3\t1\tdirty test when"));
        assert!(holds("4\t4\t0\t4\tpending test when"));
        assert!(!holds("4\t4\t1\t3\tpending test when"));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(!holds("4\t4\t0\t0\tperfect test when"));
        for line in [
            "",
            "4\t4\t0",
            "4\t4\t0\t0\tdurable",
            "4\t4\tx\t0\tdurable test when",
        ] {
            assert!(Look::parse(line).is_err(), "{line}");
        }
    }
}
