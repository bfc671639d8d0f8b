// SPDX-License-Identifier: GPL-2.0

//! The command line, which comes from the kernel's for PID 1 and from PID 1 for tests.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::driver::Driver;
use crate::lab::{Lab, Skip};
use crate::{suites, tidy};

/// The exit code of a test that cannot be done here, as kselftest has it.
pub const SKIP_CODE: i32 = 4;
/// What stands before the reason for that.
pub const SKIP_MARK: &str = "skipped: ";
/// What stands before the reason why a test failed; the runner looks for it.
const FAILURE_MARK: &str = "failed: ";

#[derive(Parser)]
#[command(about = "Runs inside a test guest")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// As PID 1: run suites, up to the first that fails, and switch the machine off.
    Run {
        #[arg(value_delimiter = ',')]
        suites: Vec<String>,
        #[command(flatten)]
        args: TestArgs,
        /// Only these tests of them, separated by commas.
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// When done, wait for the power to be cut instead.
        #[arg(long)]
        hold: bool,
        /// When done, use the devices in many ways, and switch the machine off in the middle of that.
        #[arg(long, conflicts_with = "hold")]
        in_use: bool,
    },
    /// As PID 1: load the driver and start a shell on the console.
    Shell {
        #[arg(long)]
        driver: Driver,
    },
    /// Run one test.
    Test {
        suite: String,
        test: String,
        #[command(flatten)]
        args: TestArgs,
    },
    /// List the tests of a suite. This does not need a guest.
    List { suite: String },
    /// Put back in order what a test has left.
    Tidy,
}

/// What tests depend on.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// The driver under test.
    #[arg(long)]
    pub driver: Driver,
    /// Where random numbers start.
    #[arg(long)]
    pub seed: u64,
    /// How long tests go on that could go on for ever.
    #[arg(long, default_value_t = 30)]
    pub stress_seconds: u64,
    /// How many boots of the same campaign there were before.
    #[arg(long, default_value_t = 0)]
    pub round: u64,
    /// When both drivers are compared: the second NVDIMM belongs to the driver under test, not the first.
    #[arg(long)]
    pub swapped: bool,
}

impl TestArgs {
    /// How long tests go on that could go on for ever.
    pub fn stress(&self) -> Duration {
        Duration::from_secs(self.stress_seconds)
    }

    /// The words from which these arguments are parsed again.
    pub fn words(&self) -> Vec<String> {
        let mut words = [
            "--driver",
            self.driver.name(),
            "--seed",
            &self.seed.to_string(),
            "--stress-seconds",
            &self.stress_seconds.to_string(),
            "--round",
            &self.round.to_string(),
        ]
        .map(str::to_owned)
        .to_vec();
        words.extend(self.swapped.then(|| "--swapped".to_owned()));
        words
    }
}

/// Runs as a child of the supervisor.
pub fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match error.downcast_ref::<Skip>() {
            Some(reason) => {
                println!("{SKIP_MARK}{reason}");
                ExitCode::from(SKIP_CODE as u8)
            }
            None => {
                println!("{FAILURE_MARK}{error:?}");
                ExitCode::FAILURE
            }
        },
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Test { suite, test, args } => {
            let suite = suites::find(&suite)?;
            let stream = suite
                .tests
                .iter()
                .position(|candidate| candidate.name == test);
            let stream = stream.with_context(|| format!("{} has no test `{test}`", suite.name))?;
            let mut lab = Lab::new(&args, stream as u64);
            (suite.tests[stream].run)(&mut lab)
        }
        Command::List { suite } => {
            for test in suites::find(&suite)?.tests {
                println!("{}", test.name);
            }
            Ok(())
        }
        Command::Tidy => tidy::main(),
        Command::Run { .. } | Command::Shell { .. } => {
            anyhow::bail!("only PID 1 of a guest can do this")
        }
    }
}
