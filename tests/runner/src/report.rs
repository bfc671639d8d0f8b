// SPDX-License-Identifier: GPL-2.0

//! The report of a boot, as a file and on the terminal.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::env::Env;
use crate::ktap::{Counts, Failure};
use crate::tool::sha256;

/// Identifies the tested kernel and module.
#[derive(Clone, Debug, Serialize)]
pub struct Subject {
    pub driver: &'static str,
    /// The commit of this project.
    pub commit: String,
    pub release: String,
    pub kernel_sha256: String,
    pub image_sha256: String,
    pub module_sha256: Option<String>,
    pub seed: u64,
}

impl Subject {
    /// Computes the checksums.
    pub fn of(env: &Env, driver: &'static str, image: &Path, seed: u64) -> Result<Subject> {
        let module = env
            .module
            .exists()
            .then(|| sha256(&env.module))
            .transpose()?;
        Ok(Subject {
            driver,
            commit: env.commit.clone(),
            release: env.release.clone(),
            kernel_sha256: sha256(&env.kernel)?,
            image_sha256: sha256(image)?,
            module_sha256: module,
            seed,
        })
    }
}

/// The duration and the load of a guest.
#[derive(Clone, Debug, Serialize)]
pub struct GuestTime {
    /// The number of suites that it ran.
    pub suites: usize,
    pub seconds: f64,
    /// The average number of busy CPUs of the host, for all guests together.
    pub cpu_seconds: f64,
}

/// The results of one suite in one boot.
#[derive(Debug, Serialize)]
pub struct Report {
    pub suite: &'static str,
    pub subject: Subject,
    /// How often the machine was booted: twice if the emulator failed (see `Bench::boot`).
    pub boots: u32,
    /// The duration. For the first suite of a boot it includes the guest's start and end.
    pub seconds: f64,
    /// Only with the first suite of a boot.
    pub guest: Option<GuestTime>,
    pub counts: Counts,
    /// The tests that ended, and the seconds that each took.
    pub times: Vec<(String, f64)>,
    pub failures: Vec<Failure>,
    /// Failures outside of tests: a guest that died or hung, or a complaint of the kernel.
    pub troubles: Vec<String>,
    /// The checkers that the kernel has, as the guest listed them.
    pub checkers: Option<String>,
    /// The figures that tests have measured.
    pub measured: Vec<String>,
    /// The command line of the machine.
    pub machine: Vec<String>,
    /// The tests in order, and whether they passed. The parser's report has them as well.
    #[serde(skip)]
    pub tests: Vec<(String, bool)>,
}

impl Report {
    /// How many tests passed.
    pub fn passed(&self) -> u64 {
        self.counts.passed
    }

    /// Returns how many tests failed. Failures outside of tests count as one.
    pub fn failed(&self) -> u64 {
        let trouble = u64::from(!self.troubles.is_empty());
        self.counts.failed + self.counts.crashed + trouble
    }

    /// Returns how many tests were skipped.
    pub fn skipped(&self) -> u64 {
        self.counts.skipped
    }

    /// Writes the report to a file.
    pub fn keep(&self, path: &Path) -> Result<()> {
        Ok(serde_json::to_writer_pretty(File::create(path)?, self)?)
    }

    /// Prints one line, and the details of failures.
    pub fn print(&self) {
        let Report {
            suite,
            seconds,
            boots,
            ..
        } = self;
        let mut line = format!("{suite:<28} {:>4} passed", self.passed());
        for (number, what) in [(self.failed(), "failed"), (self.skipped(), "skipped")] {
            if number > 0 {
                line += &format!(", {number} {what}");
            }
        }
        println!("{line:<64} {seconds:>6.1} s");
        if let Some(guest) = &self.guest {
            println!(
                "  a guest of {} suites, {:.1} s, {:.1} CPUs busy",
                guest.suites,
                guest.seconds,
                guest.cpu_seconds / guest.seconds
            );
        }
        if *boots > 1 {
            println!(
                "  booted {boots} times: a guest died before its init ran or stalled before the \
                 driver was loaded, or QEMU hung"
            );
        }
        for figure in &self.measured {
            println!("  {figure}");
        }
        for failure in &self.failures {
            println!("  not ok {suite}.{}", failure.test);
            for note in &failure.diagnostics {
                println!("    # {note}");
            }
        }
        for trouble in &self.troubles {
            println!("  error: {trouble}");
        }
    }
}

/// The sum of several boots.
#[derive(Default)]
pub struct Total {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Total {
    /// Adds a report.
    pub fn add(&mut self, report: &Report) {
        self.passed += report.passed();
        self.failed += report.failed();
        self.skipped += report.skipped();
    }

    /// Prints the duration and the last line.
    pub fn print(&self, time: Duration) {
        println!("guest tests took {:.0} s", time.as_secs_f64());
        println!("{}", self.line());
    }

    /// The last line of a run.
    pub fn line(&self) -> String {
        let skipped = if self.skipped > 0 {
            format!(", {} skipped", self.skipped)
        } else {
            String::new()
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}
