// SPDX-License-Identifier: GPL-2.0

//! Results in KTAP. The kernel's own parser counts. The runner follows the lines to show progress
//! and to keep the messages of failed tests.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::env::Env;

/// A test that failed, and why.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    pub test: String,
    pub diagnostics: Vec<String>,
}

/// The meaning of a line of the stream.
pub enum Event<'a> {
    /// A test starts.
    Running(&'a str),
    /// The running test has printed a message.
    Note(&'a str),
    /// A test is over.
    Result { passed: bool, name: &'a str },
}

/// Parses a line, if it belongs to a test and not to the suite.
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
    /// The test that has started and has not ended.
    pub running: Option<String>,
    pub found: Vec<Failure>,
}

impl Failures {
    /// Processes one line.
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

    /// Processes the end of the stream: a test that still runs has failed.
    pub fn end(&mut self) {
        if let Some(test) = self.running.take() {
            let mut diagnostics = std::mem::take(&mut self.notes);
            diagnostics.push("it did not end".to_owned());
            self.found.push(Failure { test, diagnostics });
        }
    }
}

/// The prefix of the line with the kernel's checkers.
const CHECKERS: &str = "# checkers: ";
/// The first line of a suite.
const SUBTEST: &str = "    # Subtest: ";
/// Returns the suite that begins with a line.
pub fn begun(line: &str) -> Option<&str> {
    line.strip_prefix(SUBTEST)
}

/// The prefix of a figure that is shown even if its test passes.
const MEASURED: &str = "measured: ";

/// The output of one suite, with its times.
pub struct Section {
    pub suite: String,
    pub failures: Failures,
    pub measured: Vec<String>,
    /// The tests that ended, and the seconds that each took.
    pub times: Vec<(String, f64)>,
    began: Instant,
    /// When the last line of a test arrived.
    last: Instant,
    /// When the running test began.
    test_began: Instant,
}

impl Section {
    fn new(suite: &str) -> Section {
        let now = Instant::now();
        Section {
            suite: suite.to_owned(),
            failures: Failures::default(),
            measured: Vec::new(),
            times: Vec::new(),
            began: now,
            last: now,
            test_began: now,
        }
    }

    /// How long the suite ran.
    pub fn seconds(&self) -> f64 {
        (self.last - self.began).as_secs_f64()
    }

    fn line(&mut self, line: &str) {
        self.last = Instant::now();
        match event(line) {
            Some(Event::Running(_)) => self.test_began = self.last,
            Some(Event::Note(note)) => {
                let figure = note.strip_prefix(MEASURED);
                self.measured.extend(figure.map(str::to_owned));
            }
            Some(Event::Result { name, .. }) => {
                let seconds = (self.last - self.test_began).as_secs_f64();
                self.times.push((name.to_owned(), seconds));
                self.test_began = self.last;
            }
            None => {}
        }
        self.failures.line(line);
    }
}

/// The output of a guest, by suite.
#[derive(Default)]
pub struct Stream {
    /// The checkers that the kernel has, as the guest listed them.
    pub checkers: Option<String>,
    sections: Vec<Section>,
}

impl Stream {
    /// Processes one line.
    pub fn line(&mut self, line: &str) {
        if let Some(suite) = begun(line) {
            self.sections.push(Section::new(suite));
        } else if let Some(section) = self.sections.last_mut() {
            section.line(line);
        } else if let Some(list) = line.strip_prefix(CHECKERS) {
            self.checkers = Some(list.to_owned());
        }
    }

    /// Returns the suites that began. If there is none, the first one has an empty output.
    pub fn sections(&mut self, first: &str) -> Vec<Section> {
        let mut sections = std::mem::take(&mut self.sections);
        if sections.is_empty() {
            sections.push(Section::new(first));
        }
        sections
    }
}

/// The counts of the parser.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub crashed: u64,
    pub skipped: u64,
    /// Mistakes in the stream itself, such as a missing plan.
    pub errors: u64,
}

/// The parts of the parser's report that are used.
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

/// The results of one suite.
#[derive(Default)]
pub struct Results {
    pub counts: Counts,
    /// The tests in order, and whether they passed.
    pub tests: Vec<(String, bool)>,
}

/// The results of one boot.
pub struct Parsed {
    /// Mistakes in the stream itself.
    pub errors: u64,
    groups: Vec<(String, Results)>,
}

impl Parsed {
    /// Returns the results of a stream of one suite that was cut off, which the parser rejects.
    pub fn of_failures(suite: &str, found: &[Failure]) -> Parsed {
        let counts = Counts {
            failed: found.len() as u64,
            ..Counts::default()
        };
        let tests = found.iter().map(|failure| (failure.test.clone(), false));
        let results = Results {
            counts,
            tests: tests.collect(),
        };
        Parsed {
            errors: 0,
            groups: vec![(suite.to_owned(), results)],
        }
    }

    /// Returns the number of format errors of the suites that ran. A missing suite is no error.
    pub fn errors_in_suites(&self) -> u64 {
        let counts = self.groups.iter().map(|(_, results)| results.counts);
        counts.map(|counts| counts.errors).sum()
    }

    /// Removes and returns the results of a suite. They are empty if the guest did not begin it.
    pub fn take(&mut self, suite: &str) -> Results {
        let group = self.groups.iter_mut().find(|(name, _)| name == suite);
        group.map_or_else(Results::default, |(_, results)| std::mem::take(results))
    }
}

/// Runs the kernel's parser on the stream, and keeps its report.
pub fn parse(env: &Env, stream: &Path, report: &Path) -> Result<Parsed> {
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
    // The exit status says whether all passed, and the report says that in more detail.
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
    let groups = top.sub_groups.into_iter().map(|group| {
        let tests = group.test_cases.into_iter();
        let tests = tests.map(|case| (case.name, case.status == "PASS"));
        let results = Results {
            counts: group.misc,
            tests: tests.collect(),
        };
        (group.name, results)
    });
    Ok(Parsed {
        errors: top.misc.errors,
        groups: groups.collect(),
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
        failures.end();
        let last = &failures.found[1];
        assert_eq!(last.test, "c");
        assert_eq!(last.diagnostics, ["silent", "it did not end"]);
    }

    #[test]
    fn each_suite_of_a_stream_has_a_section() {
        let mut stream = Stream::default();
        let lines = "KTAP version 1\n# checkers: KASAN\n1..2\n    KTAP version 1\n    # Subtest: s\n    1..1\n\
                     \x20   # running a (limit 60 s)\n    # measured: 3 s\n    ok 1 a\nok 1 s\n\
                     \x20   KTAP version 1\n    # Subtest: t\n    1..1\n    # running b (limit 60 s)\n";
        lines.lines().for_each(|line| stream.line(line));
        assert_eq!(stream.checkers.as_deref(), Some("KASAN"));
        let mut sections = stream.sections("s");
        assert_eq!(sections.len(), 2);
        assert_eq!(sections[0].measured, ["3 s"]);
        assert_eq!(sections[0].times[0].0, "a");
        assert_eq!(sections[1].suite, "t");
        sections[1].failures.end();
        assert_eq!(sections[1].failures.found[0].test, "b");
        assert_eq!(Stream::default().sections("s")[0].suite, "s");
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
