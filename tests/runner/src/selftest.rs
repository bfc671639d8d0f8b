// SPDX-License-Identifier: GPL-2.0

//! Tests of the tests: guests that misbehave in every way that is to be noticed.
//!
//! A suite that passes says little if it would pass anyway. Here each expectation is a test, and it
//! fails if the misbehaviour goes unnoticed.

use anyhow::Result;

use crate::check::Bench;
use crate::ktap::{Counts, Failure};
use crate::report::Report;
use crate::suites::{self, Boot};

/// How a misbehaving test must end: passed, skipped, or failed with a word about the reason.
enum Verdict {
    Passes,
    Fails(&'static str),
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

/// What a debug kernel must say of planted bugs.
const PLANTED: &[(&str, Verdict)] = &[
    (
        "lock_inversion",
        Verdict::Fails("possible circular locking"),
    ),
    // That shows only when all is over.
    ("leak", Verdict::Passes),
    (
        "use_after_free",
        Verdict::Fails("KASAN: slab-use-after-free"),
    ),
    ("sleep_in_atomic", Verdict::Fails("while atomic")),
    ("overflow", Verdict::Fails("panicked at")),
    ("leaks_nothing", Verdict::Fails("unreferenced object")),
    // After a report there is no relying on lockdep any more.
    (
        "checkers_are_on",
        Verdict::Fails("lockdep does not check locks"),
    ),
];

/// Expectations and whether they were met.
#[derive(Default)]
struct Findings {
    met: u64,
    failures: Vec<Failure>,
}

impl Findings {
    /// Holds what a boot brought against what it must bring.
    fn judge(&mut self, report: &Report, verdicts: &[(&str, Verdict)]) {
        for (test, verdict) in verdicts {
            let failure = report.failures.iter().find(|failure| failure.test == *test);
            let seen = failure
                .map(|failure| failure.diagnostics.clone())
                .unwrap_or_default();
            let met = match verdict {
                Verdict::Passes => failure.is_none(),
                Verdict::Fails(reason) => seen.iter().any(|note| note.contains(reason)),
            };
            self.expect(test, met, seen);
        }
    }

    fn expect(&mut self, test: &str, met: bool, seen: Vec<String>) {
        if met {
            self.met += 1;
        } else {
            self.failures.push(Failure {
                test: test.to_owned(),
                diagnostics: seen,
            });
        }
    }
}

/// Boots the misbehaving guests, and returns a report in which every expectation is a test.
pub fn run(bench: &Bench) -> Result<Report> {
    let backing = bench.results.join("harness");
    let mut findings = Findings::default();

    let faults = bench.boot(&suites::ONE, &backing, &Boot::off("harness"), |_| {})?;
    findings.judge(&faults, FAULTS);
    let fails = FAULTS
        .iter()
        .filter(|(_, verdict)| matches!(verdict, Verdict::Fails(_)))
        .count();
    let counts = faults.counts;
    let right = counts.failed == fails as u64 && counts.skipped == 1 && counts.errors == 0;
    let unexpected = faults
        .failures
        .iter()
        .filter(|failure| !FAULTS.iter().any(|(test, _)| *test == failure.test))
        .flat_map(|failure| {
            [failure.test.clone()]
                .into_iter()
                .chain(failure.diagnostics.clone())
        });
    let seen = [format!("{counts:?}")]
        .into_iter()
        .chain(unexpected)
        .collect();
    findings.expect("counts", right, seen);
    let noticed = faults
        .troubles
        .iter()
        .any(|trouble| trouble.contains("BUG: made up"));
    findings.expect("console", noticed, faults.troubles);

    let panic = bench.boot(&suites::ONE, &backing, &Boot::off("harness_panic"), |_| {})?;
    let troubles = &panic.troubles;
    let noticed = ["Kernel panic", "the guest died"]
        .iter()
        .all(|what| troubles.iter().any(|trouble| trouble.contains(what)));
    let named = panic
        .failures
        .iter()
        .any(|failure| failure.test == "crashes_the_kernel");
    findings.expect(
        "panic",
        noticed && named && panic.failed() > 0,
        troubles.clone(),
    );

    if bench.env.planted.is_some() {
        let planted = bench.boot(&suites::ONE, &backing, &Boot::off("planted"), |_| {})?;
        findings.judge(&planted, PLANTED);
    }

    let failed = findings.failures.len() as u64;
    let report = Report {
        suite: suites::SELFTEST,
        boots: faults.boots.max(panic.boots),
        seconds: faults.seconds + panic.seconds,
        counts: Counts {
            passed: findings.met,
            failed,
            ..Counts::default()
        },
        failures: findings.failures,
        troubles: Vec::new(),
        ..panic
    };
    Ok(report)
}
