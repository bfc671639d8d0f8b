// SPDX-License-Identifier: GPL-2.0

//! Results in KTAP. The kernel's own parser counts; the runner only follows the lines to show what
//! goes on and to keep what failed tests have said.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::env::Env;

/// A test that failed, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub test: String,
    pub diagnostics: Vec<String>,
}

/// What a line of the stream means to someone who follows it.
pub enum Event<'a> {
    /// A test starts.
    Running(&'a str),
    /// The running test says something.
    Note(&'a str),
    /// A test is over.
    Result { passed: bool, name: &'a str },
}

/// Understands a line, as far as it belongs to a test and not to the suite.
pub fn event(line: &str) -> Option<Event<'_>> {
    let line = line.strip_prefix("    ")?;
    if let Some(note) = line.strip_prefix("# ") {
        let running = note
            .strip_prefix("running ")
            .and_then(|rest| rest.split(' ').next());
        return match running {
            Some(test) => Some(Event::Running(test)),
            None if note.starts_with("Subtest: ") => None,
            None => Some(Event::Note(note)),
        };
    }
    let (passed, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (_, name) = rest.split_once(' ')?;
    let name = name.split(" # ").next().unwrap_or(name);
    Some(Event::Result { passed, name })
}

/// Collects failed tests from a stream.
#[derive(Default)]
pub struct Failures {
    notes: Vec<String>,
    /// The test that has started and is not over.
    pub running: Option<String>,
    pub found: Vec<Failure>,
}

impl Failures {
    /// Takes in one line.
    pub fn line(&mut self, line: &str) {
        match event(line) {
            Some(Event::Running(test)) => {
                self.notes.clear();
                self.running = Some(test.to_owned());
            }
            Some(Event::Note(note)) => self.notes.push(note.to_owned()),
            Some(Event::Result { passed, name }) => {
                let diagnostics = std::mem::take(&mut self.notes);
                self.running = None;
                if !passed {
                    self.found.push(Failure {
                        test: name.to_owned(),
                        diagnostics,
                    });
                }
            }
            None => {}
        }
    }

    /// The test that never ended, with what it said, once the stream is over.
    pub fn unfinished(&mut self) -> Option<Failure> {
        let test = self.running.take()?;
        let mut diagnostics = std::mem::take(&mut self.notes);
        diagnostics.push("it never ended".to_owned());
        Some(Failure { test, diagnostics })
    }
}

/// What the parser counted.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub crashed: u64,
    pub skipped: u64,
    /// Mistakes in the stream itself, such as a missing plan.
    pub errors: u64,
}

/// The parser's report, as far as it is used.
#[derive(Deserialize)]
struct Group {
    name: String,
    misc: Counts,
    #[serde(default)]
    sub_groups: Vec<Group>,
    #[serde(default)]
    test_cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    status: String,
}

/// The results of one boot.
pub struct Results {
    pub counts: Counts,
    /// The tests in order, and whether they passed.
    pub tests: Vec<(String, bool)>,
}

impl Results {
    /// Those of a stream that was cut off, which the parser would not understand.
    pub fn of_failures(found: &[Failure]) -> Results {
        let counts = Counts {
            failed: found.len() as u64,
            ..Counts::default()
        };
        let tests = found.iter().map(|failure| (failure.test.clone(), false));
        Results {
            counts,
            tests: tests.collect(),
        }
    }
}

/// Has the kernel's parser read the stream, and keeps its report.
pub fn parse(env: &Env, stream: &Path, report: &Path, suite: &str) -> Result<Results> {
    let parser = env.source.join("tools/testing/kunit/kunit.py");
    ensure!(
        parser.exists(),
        "the kernel source has no {}",
        parser.display()
    );
    if report.exists() {
        fs::remove_file(report)?;
    }
    let json = format!("--json={}", std::path::absolute(report)?.display());
    // Its exit status says if all passed, which the report does too, with more detail.
    let output = Command::new("python3")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(&parser)
        .args(["parse", "--summary", &json])
        .arg(std::path::absolute(stream)?)
        .output()
        .context("starting the KTAP parser")?;
    let text = fs::read_to_string(report).with_context(|| {
        format!(
            "the KTAP parser made no report:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    let top: Group = serde_json::from_str(&text).context("reading the parser's report")?;
    let tests = top.sub_groups.iter().filter(|group| group.name == suite);
    let tests = tests.flat_map(|group| &group.test_cases);
    let tests = tests
        .map(|case| (case.name.clone(), case.status == "PASS"))
        .collect();
    Ok(Results {
        counts: top.misc,
        tests,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_belong_to_the_test_that_runs() {
        let mut failures = Failures::default();
        let stream = "KTAP version 1\n1..1\n    KTAP version 1\n    # Subtest: s\n    1..3\n\
                      \x20   # running a (limit 60 s)\n    # fine\n    ok 1 a\n\
                      \x20   # running b (limit 60 s)\n    # broken\n    # badly\n    not ok 2 b\n\
                      \x20   # running c (limit 60 s)\n    # silent\n";
        stream.lines().for_each(|line| failures.line(line));
        assert_eq!(failures.found.len(), 1);
        assert_eq!(failures.found[0].test, "b");
        assert_eq!(failures.found[0].diagnostics, ["broken", "badly"]);
        let last = failures.unfinished().unwrap();
        assert_eq!(last.test, "c");
        assert_eq!(last.diagnostics, ["silent", "it never ended"]);
    }

    #[test]
    fn a_skipped_test_has_passed() {
        let Some(Event::Result { passed, name }) = event("    ok 4 switch # SKIP no module") else {
            panic!("not a result");
        };
        assert!(passed);
        assert_eq!(name, "switch");
    }
}
