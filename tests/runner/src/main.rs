// SPDX-License-Identifier: GPL-2.0

//! Boots test guests under QEMU, follows them and collects their results.
//!
//! - [`mod@env`] says which kernel, module and image to use; [`image`] adds the module and the test
//!   program to the image.
//! - [`machine`] describes and starts a machine, [`guest`] follows one until it ends, [`boot`] does
//!   both. [`arch`] has what depends on the architecture.
//! - [`ktap`] reads results, [`report`] keeps them.
//! - [`counting`] counts instructions, and [`ordering`] watches flushes. [`crash`] kills guests
//!   while they write, and [`ledger`] checks the acknowledged writes.
//! - [`suites`] lists what can be run, and [`needs`] where. [`check`], [`mod@bench`], [`compare`],
//!   [`coverage`], [`demo`] and [`shell`] are the commands.

#![forbid(unsafe_code)]

mod arch;
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
mod needs;
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
        /// The seed of random numbers. Without it each run has a new one.
        #[arg(long)]
        seed: Option<u64>,
        /// Only these tests of the suites, separated by commas.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// The duration in seconds of tests without an end of their own.
        #[arg(long)]
        stress_seconds: Option<u64>,
        /// How many guests run in parallel.
        #[arg(long, default_value_t = 1)]
        guests: usize,
        suites: Vec<String>,
    },
    /// Show that a file system with DAX works on the driver, step by step.
    Demo {
        #[command(flatten)]
        setup: Setup,
    },
    /// Remove devices in use with both drivers, and make a table of the results: all cells, or
    /// those whose names contain one of these words.
    Compare {
        #[command(flatten)]
        setup: Setup,
        /// The second folder for the table if all cells were run.
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
        cells: Vec<String>,
    },
    /// Check whether the kernel still has the bugs that docs/kernel-bugs.md describes.
    KernelBugs {
        #[command(flatten)]
        setup: Setup,
    },
    /// Measure what both drivers cost, side by side: all cases, or those whose names contain one of
    /// these words.
    Bench {
        #[command(flatten)]
        setup: Setup,
        /// What to measure. Without it both.
        #[arg(long, value_enum, value_delimiter = ',', default_values = ["time", "count"])]
        mode: Vec<bench::Mode>,
        /// The number of guests in which times are measured. In every second one the drivers swap
        /// NVDIMMs.
        #[arg(long, default_value_t = 2)]
        boots: u32,
        /// Run guests on the CPUs of this machine. Then only times are measured.
        #[arg(long)]
        kvm: bool,
        /// The second folder for results if all cases were measured.
        #[arg(long, default_value = "docs")]
        docs: PathBuf,
        cases: Vec<String>,
    },
    /// See which lines of the driver the guest tests reach: all suites, or those that are named.
    Coverage {
        #[command(flatten)]
        setup: Setup,
        /// The seed of random numbers.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        suites: Vec<String>,
    },
    /// Start a guest with the driver loaded and a prompt.
    Shell {
        #[command(flatten)]
        setup: Setup,
    },
}

/// The arguments that all commands have.
#[derive(Args, Clone)]
struct Setup {
    /// The file that describes the build (KEY=value lines).
    #[arg(long)]
    env: PathBuf,
    /// The folder for results.
    #[arg(long, default_value = "build/results")]
    results: PathBuf,
    /// The driver that is bound to the devices.
    #[arg(long, default_value = "pmem_rs")]
    driver: Driver,
}

/// The two drivers that a guest can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Driver {
    /// The driver of this project.
    PmemRs,
    /// The in-tree driver, which shows what the tests themselves are worth.
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

    /// Returns the module that must not be loaded.
    fn other(self) -> Driver {
        match self {
            Driver::PmemRs => Driver::NdPmem,
            Driver::NdPmem => Driver::PmemRs,
        }
    }
}

/// Returns a seed that differs from run to run and is short enough to be typed.
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

/// Runs the command. Returns whether it succeeded.
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
        Command::Compare { setup, docs, cells } => {
            compare::run(&setup, random_seed(), &docs, &cells)
        }
        Command::Bench {
            setup,
            mode,
            boots,
            kvm,
            docs,
            cases,
        } => bench::run(&setup, random_seed(), &mode, kvm, boots, &docs, &cases),
        Command::Coverage {
            setup,
            seed,
            suites,
        } => coverage::run(&setup, seed, &suites),
        Command::KernelBugs { setup } => compare::bugs(&setup, random_seed()),
        Command::Shell { setup } => shell::run(&setup),
    }
}
