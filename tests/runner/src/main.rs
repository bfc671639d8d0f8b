// SPDX-License-Identifier: GPL-2.0

//! Boots test guests under QEMU, follows them and collects their results.
//!
//! - [`mod@env`] says which kernel, module and image to use; [`image`] adds the module and the test
//!   program to the image.
//! - [`machine`] describes and starts a machine, [`guest`] follows one until it ends, [`boot`] does both.
//! - [`ktap`] reads results, [`report`] keeps them.
//! - [`counting`] has instructions counted, [`ordering`] has it watched what is flushed; [`crash`] kills guests while
//!   they write, [`ledger`] knows what they owe.
//! - [`suites`] lists what can be run; [`check`], [`mod@bench`], [`compare`], [`coverage`], [`demo`] and [`shell`] are
//!   the commands.

#![forbid(unsafe_code)]

mod bench;
mod boot;
mod check;
mod compare;
mod counting;
mod coverage;
mod crash;
mod demo;
mod device_tree;
mod env;
mod guest;
mod image;
mod ktap;
mod ledger;
mod machine;
mod ordering;
mod report;
mod selftest;
mod shell;
mod suites;
mod tool;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

#[derive(Parser)]
#[command(about = "Boots test guests and collects their results")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run guest tests: all suites, or those that are named.
    Check {
        #[command(flatten)]
        setup: Setup,
        /// Where random numbers start; without it every run is another one.
        #[arg(long)]
        seed: Option<u64>,
        /// Only these tests of the suites, separated by commas.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// How long tests go on that could go on for ever.
        #[arg(long)]
        stress_seconds: Option<u64>,
        /// How many guests run side by side.
        #[arg(long, default_value_t = 1)]
        guests: usize,
        suites: Vec<String>,
    },
    /// Show that a file system with DAX works on the driver, step by step.
    Demo {
        #[command(flatten)]
        setup: Setup,
    },
    /// Take devices away with both drivers, and make a table of what holds: all cells, or those whose names
    /// contain one of these words.
    Compare {
        #[command(flatten)]
        setup: Setup,
        cells: Vec<String>,
    },
    /// See whether the kernel still has the bugs that this driver lives with.
    KernelBugs {
        #[command(flatten)]
        setup: Setup,
    },
    /// Measure what both drivers cost, side by side: all cases, or those whose names contain one of these words.
    Bench {
        #[command(flatten)]
        setup: Setup,
        /// What to measure; without it both.
        #[arg(long, value_enum, value_delimiter = ',', default_values = ["time", "count"])]
        mode: Vec<bench::Mode>,
        /// In how many guests times are measured. In each second one the drivers have changed places.
        #[arg(long, default_value_t = 2)]
        boots: u32,
        /// Where results go as well if all cases were measured.
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
        cases: Vec<String>,
    },
    /// See which lines of the driver the guest tests reach: all suites, or those that are named.
    Coverage {
        #[command(flatten)]
        setup: Setup,
        /// Where random numbers start.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where the result goes as well if all suites were run.
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
        suites: Vec<String>,
    },
    /// Start a guest with the driver loaded and a prompt.
    Shell {
        #[command(flatten)]
        setup: Setup,
    },
}

/// What all commands need to know.
#[derive(Args, Clone)]
struct Setup {
    /// The file that says what has been built (KEY=value lines).
    #[arg(long)]
    env: PathBuf,
    /// Where results are kept.
    #[arg(long, default_value = "build/results")]
    results: PathBuf,
    /// The driver that gets the devices.
    #[arg(long, default_value = "pmem_rs")]
    driver: Driver,
}

/// The two drivers that a guest can be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Driver {
    /// The one this project is about.
    PmemRs,
    /// The in-tree driver, by which the tests themselves are judged.
    NdPmem,
}

impl Driver {
    /// The name of the module.
    fn name(self) -> &'static str {
        match self {
            Driver::PmemRs => "pmem_rs",
            Driver::NdPmem => "nd_pmem",
        }
    }

    /// The module that must keep its hands off.
    fn other(self) -> Driver {
        match self {
            Driver::PmemRs => Driver::NdPmem,
            Driver::NdPmem => Driver::PmemRs,
        }
    }
}

/// A seed that differs from run to run, short enough to be typed.
fn random_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::from(now.subsec_nanos()) % 1_000_000
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether all was well.
fn run(command: Command) -> Result<bool> {
    match command {
        Command::Check {
            setup,
            seed,
            only,
            stress_seconds,
            guests,
            suites,
        } => {
            let seed = seed.unwrap_or_else(random_seed);
            check::run(&setup, seed, stress_seconds, &suites, &only, guests)
        }
        Command::Demo { setup } => demo::run(&setup, random_seed()),
        Command::Compare { setup, cells } => compare::run(&setup, random_seed(), &cells),
        Command::Bench {
            setup,
            mode,
            boots,
            docs,
            cases,
        } => bench::run(&setup, random_seed(), &mode, boots, &docs, &cases),
        Command::Coverage {
            setup,
            seed,
            docs,
            suites,
        } => coverage::run(&setup, seed, &docs, &suites),
        Command::KernelBugs { setup } => compare::bugs(&setup, random_seed()),
        Command::Shell { setup } => shell::run(&setup),
    }
}
