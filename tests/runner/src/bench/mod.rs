// SPDX-License-Identifier: GPL-2.0

//! Measures both drivers, side by side. The guest measures, and this collects the results.
//!
//! [`table`] and [`plot`] show them.

mod plot;
mod table;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use figures::text::line;
use figures::{COPIES, DRIVER, LINES, MARK, Row, Series, WITHOUT_COPIES, WRITTEN};

use crate::Setup;
use crate::boot::Bench;
use crate::compare::tests_of;
use crate::counting::{self, Counts};
use crate::ktap::{Event, event};
use crate::report::{Report, Subject};
use crate::suites::{self, Boot};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Time.
    Time,
    /// Executed instructions.
    Count,
}

/// The device of a host that can run guests on its CPUs.
const KVM: &str = "/dev/kvm";

const TIME: &str = "bench_time";
const COUNT: &str = "bench_count";
/// The first test of both suites.
const GET_READY: &str = "get_ready";

/// Runs the `bench` command: all cases, or those whose names contain one of `wanted`. Returns
/// whether all were measured. If nothing was left out, the results are also written to `docs`. With
/// KVM only times are measured: the plugin that counts needs an emulated CPU.
pub fn run(
    setup: &Setup,
    seed: u64,
    modes: &[Mode],
    kvm: bool,
    boots: u32,
    docs: &Path,
    wanted: &[String],
) -> Result<bool> {
    let start = Instant::now();
    let modes = if kvm { &[Mode::Time] } else { modes };
    if kvm {
        let device = File::options().read(true).write(true).open(KVM);
        device.with_context(|| format!("--kvm needs {KVM}, which cannot be opened"))?;
    }
    let mut bench = Bench::new(setup, "bench", seed)?;
    bench.kvm = kvm;
    println!(
        "nd_pmem and pmem_rs on {}, results in {}",
        bench.subject.release,
        bench.results.display()
    );
    let mut all = Vec::new();
    let mut failed = Vec::new();
    let times = select(modes, Mode::Time, wanted)?;
    let counts = select(modes, Mode::Count, wanted)?;
    ensure!(
        times.is_some() || counts.is_some(),
        "no case matches {wanted:?}"
    );
    if let Some(cases) = times {
        for boot in 0..boots {
            println!("\nboot {} of {boots} for times", boot + 1);
            bench.swapped = boot % 2 == 1;
            let report = time(&bench, &cases, &mut all)?;
            failed.extend(failures(&report));
        }
    }
    if let Some(cases) = counts {
        println!("\nboot for counts");
        bench.swapped = false;
        bench = bench.with_plugin(counting::PLUGIN)?;
        let report = count(&bench, &cases, &mut all)?;
        failed.extend(failures(&report));
    }

    let rows: Vec<Row> = all.iter().filter_map(Series::row).collect();
    let whole = wanted.is_empty() && modes.contains(&Mode::Time) && modes.contains(&Mode::Count);
    let mut folders = vec![bench.results.clone()];
    folders.extend((whole && failed.is_empty()).then(|| docs.to_owned()));
    for folder in &folders {
        keep(folder, &bench.subject, boots, &rows)?;
    }
    println!();
    for failure in &failed {
        println!("not measured: {failure}");
    }
    let places: Vec<String> = folders
        .iter()
        .map(|folder| folder.join("bench.md").display().to_string())
        .collect();
    println!(
        "It took {} minutes; see {}.",
        start.elapsed().as_secs().div_ceil(60),
        places.join(" and ")
    );
    Ok(failed.is_empty())
}

fn keep(folder: &Path, subject: &Subject, boots: u32, rows: &[Row]) -> Result<()> {
    fs::write(
        folder.join("bench.md"),
        table::markdown(subject, boots, rows),
    )?;
    serde_json::to_writer_pretty(File::create(folder.join("bench.json"))?, rows)?;
    plot::draw(&folder.join("bench.svg"), rows)
}

/// Returns the wanted tests of a mode's suite. An empty list means all, and `None` means that no
/// test is wanted.
fn select(modes: &[Mode], mode: Mode, wanted: &[String]) -> Result<Option<Vec<String>>> {
    if !modes.contains(&mode) {
        return Ok(None);
    }
    if wanted.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let mut cases = tests_of(match mode {
        Mode::Time => TIME,
        Mode::Count => COUNT,
    })?;
    cases
        .retain(|case| case != GET_READY && wanted.iter().any(|word| case.contains(word.as_str())));
    if cases.is_empty() {
        return Ok(None);
    }
    cases.push(GET_READY.to_owned());
    Ok(Some(cases))
}

/// Returns the failures of a boot.
fn failures(report: &Report) -> Vec<String> {
    let mut failures: Vec<String> = Vec::new();
    for failure in &report.failures {
        failures.push(format!(
            "{}: {}",
            failure.test,
            failure.diagnostics.join("\n    ")
        ));
    }
    failures.extend(report.troubles.iter().cloned());
    failures
}

fn time(bench: &Bench, cases: &[String], all: &mut Vec<Series>) -> Result<Report> {
    let boot = Boot::off(TIME);
    let backing = bench.results.join(boot.suite);
    let mut wrong = None;
    let report = bench.boot_some(&suites::TIMED_PAIR, &backing, &boot, cases, |said| {
        let Some(Event::Note(note)) = event(said) else {
            return;
        };
        let Some(result) = note.strip_prefix(MARK) else {
            return;
        };
        match serde_json::from_str::<Series>(result) {
            Ok(series) => {
                println!("{}", line(&series));
                figures::add(all, series);
            }
            Err(error) => wrong = Some(format!("the guest said `{result}`: {error}")),
        }
    })?;
    match wrong {
        Some(wrong) => anyhow::bail!(wrong),
        None => Ok(report),
    }
}

/// The guest's label of a count.
struct Label<'a> {
    case: &'a str,
    driver: &'a str,
    operations: f64,
}

impl Label<'_> {
    fn parse(label: &str) -> Result<Label<'_>> {
        let mut words = label.split(' ');
        let mut word = || words.next().with_context(|| format!("a label `{label}`"));
        Ok(Label {
            case: word()?,
            driver: word()?,
            operations: word()?.parse()?,
        })
    }
}

fn count(bench: &Bench, cases: &[String], all: &mut Vec<Series>) -> Result<Report> {
    let boot = Boot::off(COUNT);
    let dir: PathBuf = bench.results.join(boot.suite);
    let mut result = Ok(());
    let report = bench.boot_some(
        &suites::COUNTED_PAIR,
        &dir,
        &boot,
        cases,
        |said| match event(said) {
            Some(Event::Result { passed: true, name }) if name != GET_READY => {
                match counted(&dir, name) {
                    Ok(found) => {
                        for series in &found {
                            println!("{}", line(series));
                        }
                        all.extend(found);
                    }
                    Err(error) => result = Err(error),
                }
            }
            _ => {}
        },
    )?;
    result.map(|()| report)
}

/// The number of units of counts.
const UNITS: usize = 5;

/// Returns the counts of a case, for each operation.
fn counted(dir: &Path, case: &str) -> Result<[Series; UNITS]> {
    let units = [DRIVER, WITHOUT_COPIES, COPIES, LINES, WRITTEN];
    let mut found = units.map(|unit| Series::new(case, "count", unit));
    let all = Counts::read(dir)?;
    let of = |driver: &str| -> Result<Vec<[f64; UNITS]>> {
        let mut rounds = Vec::new();
        for counts in &all {
            let label = Label::parse(&counts.label)?;
            if label.case == case && label.driver == driver {
                rounds.push(
                    [
                        counts.driver,
                        counts.driver + counts.callees,
                        counts.copies,
                        counts.lines,
                        counts.written,
                    ]
                    .map(|number| number as f64 / label.operations),
                );
            }
        }
        ensure!(!rounds.is_empty(), "{case} of {driver} was not counted");
        Ok(rounds)
    };
    for (theirs, ours) in of("nd_pmem")?.iter().zip(of("pmem_rs")?) {
        for (index, series) in found.iter_mut().enumerate() {
            series.rounds.push([Some(theirs[index]), Some(ours[index])]);
        }
    }
    Ok(found)
}
