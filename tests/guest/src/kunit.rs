// SPDX-License-Identifier: GPL-2.0

//! KUnit: the tests inside the module, which the kernel runs when the module is loaded, and those
//! of the kernel crate, which it runs when it boots. Their results are read from debugfs, and each
//! is reported as a test of this program's stream.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::ktap::{Ktap, Outcome};
use crate::suites::Suite;

/// All KUnit suites that leave nothing behind.
pub const SUITE: Suite = Suite {
    name: "kunit",
    tests: &[],
};
/// The suites of the kernel crate, in a kernel with the patches of `upstream/`.
pub const ABSTRACTIONS: Suite = Suite {
    name: "kunit_abstractions",
    tests: &[],
};
/// The suite that retires ranges until reboot.
pub const MISUSE: &str = "misuse";
/// The suite that forgets a registration.
pub const MISUSE_EXIT: &str = "misuse_exit";

/// The kernel's results, one folder for each suite. Suites of the kernel are there too.
const RESULTS: &str = "/sys/kernel/debug/kunit";
/// The prefix of the names of the module's suites.
pub const MODULE: &str = "pmem_rs_";
/// The prefix of the names of the kernel crate's suites.
const CRATE: &str = "rust_";

/// Lines that structure a suite's own stream. They would corrupt the stream that quotes them.
const FORM: &[&str] = &["KTAP version", "Subtest:", "speed:", "1.."];

/// The result of one test case, with its messages.
#[derive(Debug, PartialEq, Eq)]
pub struct Case {
    pub name: String,
    passed: bool,
    notes: Vec<String>,
}

impl Case {
    /// Reports the result.
    pub fn report(&self, ktap: &mut Ktap) -> Result<()> {
        ktap.note(&self.notes.join("\n"))?;
        let outcome = if self.passed {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        ktap.result(&self.name, &outcome)
    }
}

/// Returns the prefix of the KUnit suites that the kernel has run for a suite of this program.
pub fn prefix(suite: &Suite) -> Option<&'static str> {
    match suite.name {
        name if name == ABSTRACTIONS.name => Some(CRATE),
        name if [SUITE.name, MISUSE, MISUSE_EXIT].contains(&name) => Some(MODULE),
        _ => None,
    }
}

/// Returns the results of all test cases that have run of the KUnit suites with a prefix.
pub fn cases(prefix: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut suites = Vec::new();
    for entry in fs::read_dir(RESULTS).with_context(|| format!("reading {RESULTS}"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            suites.push(name);
        }
    }
    suites.sort();
    ensure!(!suites.is_empty(), "there are no KUnit suites {prefix}*");
    for suite in suites {
        let path = Path::new(RESULTS).join(&suite).join("results");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path:?}"))?;
        let found = cases_of(suite.strip_prefix(prefix).unwrap_or(&suite), &text);
        ensure!(!found.is_empty(), "{suite} has no results:\n{text}");
        cases.extend(found);
    }
    Ok(cases)
}

/// Parses the cases out of a suite's KTAP. Cases are indented by one level, the suite is not.
fn cases_of(suite: &str, text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut notes = Vec::new();
    for line in text.lines() {
        let Some(line) = line.strip_prefix("    ") else {
            continue;
        };
        let (passed, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => match line.strip_prefix("ok ") {
                Some(rest) => (true, rest),
                None => {
                    let note = line.trim_start_matches("# ");
                    if !FORM.iter().any(|form| note.starts_with(form)) && !note.contains(".speed:")
                    {
                        notes.push(note.to_owned());
                    }
                    continue;
                }
            },
        };
        let name = rest.split(' ').nth(1).unwrap_or(rest);
        cases.push(Case {
            name: format!("{suite}.{name}"),
            passed,
            notes: std::mem::take(&mut notes),
        });
    }
    cases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_have_their_messages() {
        let text = "KTAP version 1\n\n1..1\n    KTAP version 1\n    # Subtest: pmem_rs_x\n    1..2\n    \
                    ok 1 good\n    # bad: ASSERTION FAILED at x.rs:1\n    not ok 2 bad\n\
                    # pmem_rs_x: pass:1 fail:1 skip:0 total:2\nnot ok 1 pmem_rs_x\n";
        let cases = cases_of("x", text);
        assert_eq!(cases.len(), 2);
        assert_eq!(cases[0].name, "x.good");
        assert!(cases[0].passed);
        assert_eq!(cases[1].name, "x.bad");
        assert!(!cases[1].passed);
        assert_eq!(cases[1].notes, ["bad: ASSERTION FAILED at x.rs:1"]);
    }
}
