// SPDX-License-Identifier: GPL-2.0

//! KTAP, as `Documentation/dev-tools/ktap.rst` of the kernel describes it.
//!
//! One suite is one subtest group. The stream has a serial port to itself.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    Skipped(String),
}

/// Writes suites.
pub struct Ktap {
    out: File,
    /// The number of the suite.
    suite: usize,
    /// How many of its tests are over.
    done: usize,
    /// Whether one of them has failed.
    failed: bool,
}

impl Ktap {
    /// Opens a serial port and makes it carry bytes as they are.
    pub fn open(port: &Path) -> Result<Ktap> {
        let out = OpenOptions::new()
            .read(true)
            .write(true)
            .open(port)
            .with_context(|| format!("opening {}", port.display()))?;
        let mut settings = tcgetattr(&out)?;
        cfmakeraw(&mut settings);
        tcsetattr(&out, SetArg::TCSANOW, &settings)?;
        Ok(Ktap {
            out,
            suite: 0,
            done: 0,
            failed: false,
        })
    }

    fn line(&mut self, line: &str) -> Result<()> {
        self.out
            .write_all(format!("{line}\n").as_bytes())
            .context("writing KTAP")
    }

    /// Says that the guest is up. What follows is a result, whatever it is.
    pub fn start(&mut self, suites: usize, facts: &str) -> Result<()> {
        self.line("KTAP version 1")?;
        self.line(&format!("# {facts}"))?;
        self.line(&format!("1..{suites}"))
    }

    /// Opens the group of a suite.
    pub fn begin(&mut self, suite: &str, tests: usize) -> Result<()> {
        self.suite += 1;
        self.done = 0;
        self.failed = false;
        self.line("    KTAP version 1")?;
        self.line(&format!("    # Subtest: {suite}"))?;
        self.line(&format!("    1..{tests}"))
    }

    /// Says something about the test that runs.
    pub fn note(&mut self, text: &str) -> Result<()> {
        text.lines()
            .try_for_each(|line| self.line(&format!("    # {line}")))
    }

    /// Closes a test.
    pub fn result(&mut self, name: &str, outcome: &Outcome) -> Result<()> {
        self.done += 1;
        let number = self.done;
        match outcome {
            Outcome::Passed => self.line(&format!("    ok {number} {name}")),
            Outcome::Skipped(reason) => {
                self.line(&format!("    ok {number} {name} # SKIP {reason}"))
            }
            Outcome::Failed => {
                self.failed = true;
                self.line(&format!("    not ok {number} {name}"))
            }
        }
    }

    /// Closes the group. Returns whether all of its tests have passed.
    pub fn end(&mut self, suite: &str) -> Result<bool> {
        let verdict = if self.failed { "not ok" } else { "ok" };
        let number = self.suite;
        self.line(&format!("{verdict} {number} {suite}"))?;
        Ok(!self.failed)
    }

    /// Says something to the runner outside of any test.
    pub fn remark(&mut self, text: &str) -> Result<()> {
        self.line(&format!("# {text}"))
    }
}
