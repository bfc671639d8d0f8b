// SPDX-License-Identifier: GPL-2.0

//! `make bench-metal`: measures both drivers on the machine that this program is started on, with
//! the cases of the suite `bench_time`.
//!
//! - [`target`] checks the namespaces that the user has named, before anything is changed.
//! - [`machine`] changes the machine, and changes it back.
//! - [`case`] runs a case in a process of its own.

mod case;
mod machine;
mod target;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use figures::text::{line, tables};
use figures::{MARK, Row, Series};

pub use self::case::enclose;
use self::case::{End, Interrupts};
use self::machine::Former;
use self::target::Target;
use crate::cli::TestArgs;
use crate::driver::Driver;
use crate::suites::Suite;
use crate::suites::bench::cpu::Counters;
use crate::suites::bench::{TIME, WHOLE};
use crate::sysfs;

/// The arguments of `metal`.
#[derive(Args)]
pub struct MetalArgs {
    /// The two namespaces, separated by a blank. Their data are lost.
    #[arg(long, default_value = "")]
    namespaces: String,
    /// `yes` if data at the start of the namespaces may be overwritten.
    #[arg(long, default_value = "")]
    overwrite: String,
    /// The module, in case that it is not loaded.
    #[arg(long)]
    module: PathBuf,
    /// The folder for results.
    #[arg(long)]
    results: PathBuf,
    /// Only the cases whose names contain one of these words.
    cases: Vec<String>,
}

/// The code that shells use for a program that SIGINT has ended.
const INTERRUPTED: u8 = 130;

/// Runs the command.
pub fn main(args: &MetalArgs) -> ExitCode {
    match run(args) {
        Ok(Outcome::Measured) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::FAILURE,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            eprintln!("bench-metal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Measured,
    /// Some cases have failed, or the machine was not restored.
    Incomplete,
    Interrupted,
}

fn run(args: &MetalArgs) -> Result<Outcome> {
    let targets = target::check(&args.namespaces, args.overwrite == "yes")?;
    machine::check_module(&args.module)?;
    let cases = select(&args.cases)?;
    fs::create_dir_all(&args.results)
        .with_context(|| format!("making {}", args.results.display()))?;
    let interrupts = Interrupts::block()?;
    for target in &targets {
        println!("{target}");
    }
    if let Some(reason) = Counters::reason_for_none() {
        println!("This CPU gives no counters ({reason}), so only times are measured.");
    }

    let former = Former::record()?;
    let mut all = Vec::new();
    let outcome =
        machine::load(&args.module).and_then(|()| measure(&targets, &cases, &interrupts, &mut all));
    let restored = former.restore(&targets);
    let outcome = outcome?;
    if outcome != Outcome::Interrupted {
        keep(&args.results, &targets, &all)?;
    }
    Ok(if restored {
        outcome
    } else {
        Outcome::Incomplete
    })
}

/// The first case, which is always run.
const GET_READY: &str = "get_ready";

/// The wanted cases, each with its suite.
fn select(words: &[String]) -> Result<Vec<(&'static Suite, &'static str)>> {
    let wanted = |name: &str| {
        words.is_empty() || name == GET_READY || words.iter().any(|word| name.contains(word))
    };
    let cases: Vec<_> = [&TIME, &WHOLE]
        .into_iter()
        .flat_map(|suite| suite.tests.iter().map(move |test| (suite, test.name)))
        .filter(|(_, name)| wanted(name))
        .collect();
    ensure!(cases.len() > 1, "no case matches {words:?}");
    Ok(cases)
}

/// Runs all cases twice. The second time the drivers have swapped namespaces.
fn measure(
    targets: &[Target; 2],
    cases: &[(&Suite, &str)],
    interrupts: &Interrupts,
    all: &mut Vec<Series>,
) -> Result<Outcome> {
    let mut outcome = Outcome::Measured;
    for swapped in [false, true] {
        let args = TestArgs {
            driver: Driver::PmemRs,
            seed: 1,
            stress_seconds: 0,
            round: 0,
            swapped,
            namespaces: targets
                .each_ref()
                .map(|target| target.name().to_owned())
                .into(),
        };
        let [ours, theirs] = [usize::from(swapped), usize::from(!swapped)];
        println!(
            "\npmem_rs has {}, nd_pmem has {}\n{:<36} {:>12} {:>12} {:>7}",
            targets[ours].name(),
            targets[theirs].name(),
            "",
            "nd_pmem",
            "pmem_rs",
            "ratio"
        );
        for (suite, name) in cases {
            let mut words = vec!["test".to_owned()];
            words.extend(args.words());
            words.extend([suite.name, name].map(str::to_owned));
            let (end, said) = case::run(&words, interrupts)?;
            match end {
                End::Done => {}
                End::Skipped(reason) => println!("{name:<36} left out: {reason}"),
                End::Failed(last) => {
                    println!("{name:<36} not measured:\n    {}", last.join("\n    "));
                    outcome = Outcome::Incomplete;
                    // Its mounts go after the process.
                    targets.iter().try_for_each(Target::await_idle)?;
                }
                End::Interrupted => {
                    println!("interrupted");
                    return Ok(Outcome::Interrupted);
                }
            }
            for result in said.iter().filter_map(|line| line.strip_prefix(MARK)) {
                let series = serde_json::from_str(result)?;
                println!("{}", line(&series));
                figures::add(all, series);
            }
        }
    }
    Ok(outcome)
}

/// Prints the tables and writes the results to the folder.
fn keep(folder: &Path, targets: &[Target; 2], all: &[Series]) -> Result<()> {
    let rows: Vec<Row> = all.iter().filter_map(Series::row).collect();
    let text = format!(
        "# What the drivers cost on this machine\n\nLinux {} on {}.\n\n{}\n{}\n\n{}",
        sysfs::read("/proc/sys/kernel/osrelease")?,
        machine::processor()?,
        targets[0],
        targets[1],
        tables(&rows)
    );
    println!("\n{}", text.trim_end());
    fs::write(folder.join("bench.md"), &text)?;
    serde_json::to_writer_pretty(File::create(folder.join("bench.json"))?, &rows)?;
    println!("\nThe results are in {}.", folder.display());
    Ok(())
}
