// SPDX-License-Identifier: GPL-2.0

//! Tests of the test framework: guests with every kind of failure that must be detected.
//!
//! Each expectation is a test, which fails if the failure in the guest is not reported.

use anyhow::{Context, Result};

use crate::boot::Bench;
use crate::ktap::{Counts, Failure};
use crate::report::Report;
use crate::suites::{self, Boot, Special};

/// The expected result of a test in the guest. A failure has a piece of its reason, or of one of
/// several reasons.
enum Verdict {
    Passes,
    Fails(&'static str),
    FailsByOneOf(&'static [&'static str]),
}

const FAULTS: &[(&str, Verdict)] = &[
    ("passes", Verdict::Passes),
    ("fails", Verdict::Fails("this is why")),
    ("is_skipped", Verdict::Passes),
    ("panics", Verdict::Fails("panicked at")),
    ("dies_by_a_signal", Verdict::Fails("killed by SIGABRT")),
    ("takes_too_long", Verdict::Fails("took too long")),
    (
        "makes_the_kernel_complain",
        Verdict::Fails("the kernel complains: BUG: made up"),
    ),
    (
        "taints_the_kernel",
        Verdict::Fails("the kernel became tainted: 512 (W)"),
    ),
    ("leaves_a_process", Verdict::Passes),
    ("passes_after_all_that", Verdict::Passes),
    ("leaves_a_busy_mount", Verdict::Fails("could not clean up")),
];

/// The complaints of a debug kernel about planted bugs.
const PLANTED: &[(&str, Verdict)] = &[
    (
        "lock_inversion",
        Verdict::Fails("possible circular locking"),
    ),
    // This bug shows only after the test.
    ("leak", Verdict::Passes),
    (
        "use_after_free",
        Verdict::Fails("KASAN: slab-use-after-free"),
    ),
    // With PREEMPT_RT a spinlock may sleep, but its owner is an RCU reader.
    (
        "sleep_in_atomic",
        Verdict::FailsByOneOf(&["while atomic", "at rcu_note_context_switch"]),
    ),
    ("overflow", Verdict::Fails("panicked at")),
    ("leaks_nothing", Verdict::Fails("unreferenced object")),
    // After its first report lockdep is off.
    (
        "checkers_are_on",
        Verdict::Fails("lockdep does not check locks"),
    ),
];

/// Expectations and whether they were met.
#[derive(Default)]
pub struct Findings {
    met: u64,
    failures: Vec<Failure>,
}

impl Findings {
    /// Compares the results of a boot with the expected ones.
    fn judge(&mut self, report: &Report, verdicts: &[(&str, Verdict)]) {
        for (test, verdict) in verdicts {
            let failure = report.failures.iter().find(|failure| failure.test == *test);
            let seen = failure
                .map(|failure| failure.diagnostics.clone())
                .unwrap_or_default();
            let met = match verdict {
                Verdict::Passes => failure.is_none(),
                Verdict::Fails(reason) => seen.iter().any(|note| note.contains(reason)),
                Verdict::FailsByOneOf(reasons) => seen
                    .iter()
                    .any(|note| reasons.iter().any(|reason| note.contains(reason))),
            };
            self.expect(test, met, seen);
        }
    }

    /// Checks that every failure is reported and counted, and nothing else.
    fn judge_faults(&mut self, faults: &Report) {
        self.judge(faults, FAULTS);
        let fails = FAULTS
            .iter()
            .filter(|(_, verdict)| !matches!(verdict, Verdict::Passes))
            .count();
        let counts = &faults.counts;
        let right = counts.failed == fails as u64 && counts.skipped == 1 && counts.errors == 0;
        self.expect("counts", right, vec![format!("{counts:?}")]);
        let noticed = faults
            .troubles
            .iter()
            .any(|trouble| trouble.contains("BUG: made up"));
        self.expect("console", noticed, faults.troubles.clone());
    }

    /// Checks that the report says that the guest died, and in which test.
    fn judge_panic(&mut self, panic: &Report) {
        let troubles = &panic.troubles;
        let noticed = ["Kernel panic", "the guest died"]
            .iter()
            .all(|what| troubles.iter().any(|trouble| trouble.contains(what)));
        let named = panic
            .failures
            .iter()
            .any(|failure| failure.test == "crashes_the_kernel");
        let met = noticed && named && panic.failed() > 0;
        self.expect("panic", met, troubles.clone());
    }

    /// Records an expectation. `seen` is shown if it was not met.
    pub fn expect(&mut self, test: &str, met: bool, seen: Vec<String>) {
        if met {
            self.met += 1;
        } else {
            self.failures.push(Failure {
                test: test.to_owned(),
                diagnostics: seen,
            });
        }
    }

    /// Makes a report in which every expectation is a test.
    pub fn report(self, suite: &'static str, boots: Vec<Report>) -> Result<Report> {
        let failed = self.failures.len() as u64;
        let seconds = boots.iter().map(|boot| boot.seconds).sum();
        let most_boots = boots.iter().map(|boot| boot.boots).max();
        let times = boots.iter().flat_map(|boot| boot.times.clone()).collect();
        let last = boots.into_iter().next_back().context("nothing was run")?;
        Ok(Report {
            suite,
            boots: most_boots.unwrap_or(1),
            seconds,
            times,
            guest: None,
            counts: Counts {
                passed: self.met,
                failed,
                ..Counts::default()
            },
            failures: self.failures,
            troubles: Vec::new(),
            ..last
        })
    }
}

/// Boots the guests.
///
/// A kernel with checkers is tested with planted bugs. The other expectations do not depend on the
/// kernel.
pub fn run(bench: &Bench) -> Result<Report> {
    let backing = bench.results.join("harness");
    let mut findings = Findings::default();
    let boot = |suite| bench.boot(&suites::ONE, &backing, &Boot::off(suite), |_| {});

    let boots = if bench.env.planted.is_some() {
        let planted = boot("planted")?;
        findings.judge(&planted, PLANTED);
        vec![planted]
    } else {
        let faults = boot("harness")?;
        findings.judge_faults(&faults);
        let panic = boot("harness_panic")?;
        findings.judge_panic(&panic);
        vec![faults, panic]
    };

    findings.report(Special::Selftest.name(), boots)
}
