// SPDX-License-Identifier: GPL-2.0

//! Runs suites, one guest at a time.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::device_tree::{self, DeviceTree};
use crate::env::Env;
use crate::guest::{End, Guest, Limits};
use crate::ktap::{self, Event, Failures, Results};
use crate::machine::{Machine, Plugin, Serial, Software};
use crate::report::{Report, Subject, Total};
use crate::suites::{self, Boot, Power, Special};
use crate::{Setup, counting, crash, image, ordering, selftest};

/// How many lines of the console are shown of a guest that died or hung.
const CONSOLE_TAIL: usize = 40;
/// How many complaints of the kernel are shown.
const COMPLAINTS: usize = 10;

/// What the guest lists the kernel's checkers with.
const CHECKERS: &str = "# checkers: ";

/// What stands before a figure that people should see even if its test passes.
const MEASURED: &str = "measured: ";

/// Reads a line that consists of four numbers and a text, with tabs between them.
pub fn numbers_and_text(line: &str) -> Result<([u64; 4], &str)> {
    let wrong = || format!("not four numbers and a text: `{line}`");
    let mut fields = line.splitn(5, '\t');
    let mut numbers = [0; 4];
    for number in &mut numbers {
        *number = fields
            .next()
            .with_context(wrong)?
            .parse()
            .with_context(wrong)?;
    }
    Ok((numbers, fields.next().with_context(wrong)?))
}

/// Everything that is the same for all boots of a run.
#[derive(Clone)]
pub struct Bench {
    pub env: Env,
    pub image: PathBuf,
    pub results: PathBuf,
    pub subject: Subject,
    /// More words for the kernel.
    pub kernel_words: &'static str,
    /// How long guests are given.
    pub limits: Limits,
    /// How long tests go on that could go on for ever, if not as long as the guest thinks.
    pub stress_seconds: Option<u64>,
    /// How many boots of the same campaign there were before.
    pub round: u64,
    /// The library of the plugin of QEMU that watches guests, if that is wanted.
    pub plugin: Option<PathBuf>,
    /// Whether the second NVDIMM belongs to the driver under test, where both drivers are compared.
    pub swapped: bool,
}

/// The file of a boot that the plugin writes.
const SEEN: &str = "plugin.tsv";

/// Reads the lines that the plugin wrote in a boot.
pub fn seen<T>(dir: &Path, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let path = dir.join(SEEN);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines().map(parse).collect()
}

impl Bench {
    /// Prepares the image, in a folder of its own for each command.
    pub fn new(setup: &Setup, command: &str, seed: u64) -> Result<Bench> {
        let env = Env::read(&setup.env)?;
        fs::create_dir_all(&setup.results)?;
        let results = fs::canonicalize(&setup.results)?;
        let image = image::build(
            &env,
            setup.driver,
            &results.join(format!("{command}-image")),
        )?;
        let subject = Subject::of(&env, setup.driver.name(), &image, seed)?;
        let limits = Limits::of(env.patience());
        Ok(Bench {
            env,
            kernel_words: "",
            limits,
            image,
            results,
            subject,
            stress_seconds: None,
            round: 0,
            plugin: None,
            swapped: false,
        })
    }

    /// The same with a plugin, which is built together with this program.
    pub fn with_plugin(&self, name: &str) -> Result<Bench> {
        let library = std::env::current_exe()?.with_file_name(format!("lib{name}.so"));
        ensure!(library.exists(), "{} is not built", library.display());
        Ok(Bench {
            plugin: Some(library),
            ..self.clone()
        })
    }

    /// The same for a later boot of a campaign.
    pub fn in_round(&self, round: u64) -> Bench {
        Bench {
            round,
            ..self.clone()
        }
    }

    /// Boots once, and again if the guest dies before its init runs: the emulator itself is known to
    /// fail then (once in about a hundred boots). Whatever happens after that is a result.
    pub fn boot(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        on_line: impl FnMut(&str),
    ) -> Result<Report> {
        self.boot_some(machine, backing, boot, &[], on_line)
    }

    /// As [`Bench::boot`], and runs only some of the tests.
    pub fn boot_some(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        only: &[String],
        mut on_line: impl FnMut(&str),
    ) -> Result<Report> {
        let dir = self.results.join(boot.suite);
        fs::create_dir_all(&dir)?;
        let start = Instant::now();
        let mut boots = 0;
        loop {
            boots += 1;
            let (end, mut report) =
                self.boot_once(machine, backing, boot, only, &dir, &mut on_line)?;
            if end == End::DiedBooting && boots == 1 {
                for file in ["console.log", "ktap.log"] {
                    fs::rename(dir.join(file), dir.join(format!("died-booting-{file}")))?;
                }
                continue;
            }
            report.boots = boots;
            report.seconds = start.elapsed().as_secs_f64();
            report.keep(&dir.join("results.json"))?;
            return Ok(report);
        }
    }

    fn boot_once(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        only: &[String],
        dir: &Path,
        on_line: &mut impl FnMut(&str),
    ) -> Result<(End, Report)> {
        let [console, stream] = ["console.log", "ktap.log"].map(|name| dir.join(name));
        for log in [&console, &stream] {
            fs::write(log, "")?;
        }
        let (seed, round) = (self.subject.seed.to_string(), self.round.to_string());
        let mut words = vec![
            "run",
            boot.suite,
            "--driver",
            self.subject.driver,
            "--seed",
            &seed,
            "--round",
            &round,
        ];
        let mut cut = None;
        match boot.end {
            Power::Off => {}
            Power::InUse => words.push("--in-use"),
            Power::Cut => words.push("--hold"),
            Power::Lost(when) => cut = Some(when),
        }
        let stress = self.stress_seconds.map(|seconds| seconds.to_string());
        if let Some(stress) = &stress {
            words.extend(["--stress-seconds", stress]);
        }
        let only = only.join(",");
        if !only.is_empty() {
            words.extend(["--only", &only]);
        }
        if self.swapped {
            words.push("--swapped");
        }
        let words: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let plugin = self.plugin.clone().map(|library| Plugin {
            library,
            out: dir.join(SEEN),
        });
        let kernel_words = [
            self.env.kernel_words(),
            self.kernel_words,
            boot.kernel_words(),
        ]
        .join(" ");
        let tree = machine
            .device_tree
            .map(|source| DeviceTree::make(&self.env, source, dir))
            .transpose()?;
        let software = Software {
            kernel: tree.as_ref().map_or(&self.env.kernel, |tree| &tree.kernel),
            image: &self.image,
            loaded: tree
                .as_ref()
                .map(|tree| (tree.list.as_path(), device_tree::ADDRESS)),
            kernel_words: &kernel_words,
            words: &words,
            plugin: plugin.as_ref(),
        };
        let ports = [Serial::File(&console), Serial::File(&stream)];
        let command = machine.command(&software, backing, ports)?;
        let line = command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();

        let mut failures = Failures::default();
        let mut checkers = None;
        let mut measured = Vec::new();
        let guest = Guest::start(command, &console, &stream, self.limits, cut)?;
        let end = guest.follow(|line| {
            failures.line(line);
            if let Some(list) = line.strip_prefix(CHECKERS) {
                checkers = Some(list.to_owned());
            }
            if let Some(Event::Note(note)) = ktap::event(line) {
                measured.extend(note.strip_prefix(MEASURED).map(str::to_owned));
            }
            on_line(line);
        })?;
        let results = if cut.is_some() {
            // Its test has been interrupted; what counts is whether it has failed before that.
            Results::of_failures(&failures.found)
        } else {
            let unfinished = failures.unfinished();
            failures.found.extend(unfinished);
            ktap::parse(&self.env, &stream, &dir.join("ktap.json"), boot.suite)?
        };
        let mut troubles = complaints(&console)?;
        match &end {
            End::Orderly => {}
            End::Hung(reason) => {
                troubles.push(format!("{reason} and was ended{}", tail(&console)?))
            }
            End::Died => troubles.push(format!("the guest died{}", tail(&console)?)),
            End::DiedBooting => {
                troubles.push(format!("the guest did not come up{}", tail(&console)?))
            }
        }
        if end == End::Orderly && results.counts.errors > 0 {
            troubles.push(format!(
                "the results have {} mistakes in their form",
                results.counts.errors
            ));
        }
        if end == End::Orderly && cut.is_none() && results.tests.is_empty() {
            troubles.push("the guest ran no tests".to_owned());
        }
        let report = Report {
            suite: boot.suite,
            subject: self.subject.clone(),
            boots: 1,
            seconds: 0.0,
            counts: results.counts,
            failures: failures.found,
            troubles,
            machine: line,
            checkers,
            measured,
            tests: results.tests,
        };
        Ok((end, report))
    }
}

/// What the kernel complained about on the console.
fn complaints(console: &Path) -> Result<Vec<String>> {
    let text = read(console)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(klog::troubles(&lines, |line| line)
        .take(COMPLAINTS)
        .map(|(_, line)| format!("kernel: {}", line.trim()))
        .collect())
}

fn tail(console: &Path) -> Result<String> {
    let text = read(console)?;
    if text.trim().is_empty() {
        return Ok(" without a word on its console".to_owned());
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let shown = lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n    | ");
    Ok(format!(
        "; its console, {}, ends with\n    | {shown}",
        console.display()
    ))
}

fn read(console: &Path) -> Result<String> {
    let bytes = fs::read(console).with_context(|| format!("reading {}", console.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The `check` command. Returns whether all was well.
pub fn run(
    setup: &Setup,
    seed: u64,
    stress_seconds: Option<u64>,
    names: &[String],
    only: &[String],
) -> Result<bool> {
    let start = Instant::now();
    let mut bench = Bench::new(setup, "check", seed)?;
    bench.stress_seconds = stress_seconds;
    bench.limits.total += Duration::from_secs(stress_seconds.unwrap_or_default());
    let selection = suites::select(names, bench.env.planted.is_some())?;
    println!(
        "guest tests of {} on {}, seed {seed}, results in {}",
        bench.subject.driver,
        bench.subject.release,
        bench.results.display(),
    );
    let mut total = Total::default();
    let mut checkers = None;
    let mut take = |report: Report| {
        // All guests should have the same ones.
        if report.checkers != checkers {
            checkers = report.checkers.clone();
            println!("checkers: {}", checkers.as_deref().unwrap_or("none"));
        }
        report.print();
        total.add(&report);
    };
    for special in selection.specials {
        take(match special {
            Special::Selftest => selftest::run(&bench)?,
            Special::Counting => counting::run(&bench)?,
            Special::Ordering => ordering::run(&bench, only)?,
            Special::Crash => crash::run(&bench)?,
        });
    }
    for suite in selection.suites {
        let backing = bench.results.join(suite.name);
        suite.machine.create_backing(&backing)?;
        for boot in suite.boots {
            take(bench.boot_some(&suite.machine, &backing, boot, only, |_| {})?);
        }
        suite.machine.remove_backing(&backing)?;
    }
    total.print(start.elapsed());
    Ok(total.failed == 0)
}
