// SPDX-License-Identifier: GPL-2.0

//! The command line. PID 1 is given it by the kernel, a test by PID 1.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::driver::Driver;
use crate::lab::{Lab, Skip};
use crate::metal::{self, MetalArgs};
use crate::nd::Device;
use crate::{suites, tidy};

/// The exit code of a skipped test, as in kselftest.
pub const SKIP_CODE: i32 = 4;
/// Precedes the reason for a skip.
pub const SKIP_MARK: &str = "skipped: ";
/// Precedes the reason of a failure. The runner looks for it.
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
        /// When done, wait until the runner cuts the power.
        #[arg(long)]
        hold: bool,
        /// When done, use the devices in many ways and switch the machine off meanwhile.
        #[arg(long, conflicts_with = "hold")]
        in_use: bool,
        /// When done, unbind a device in use and let the machine go down meanwhile.
        #[arg(long, conflicts_with_all = ["hold", "in_use"])]
        unbinding: bool,
        /// When done, hibernate, and go on with the next suite once the machine is started again.
        #[arg(long, conflicts_with_all = ["hold", "in_use", "unbinding"])]
        hibernate: bool,
        /// When done, reboot at once, without a sync.
        #[arg(long, conflicts_with_all = ["hold", "in_use", "unbinding", "hibernate"])]
        reboot: bool,
        /// When done, start the kernel that a test has loaded at once, without a sync.
        #[arg(long, conflicts_with_all = ["hold", "in_use", "unbinding", "hibernate", "reboot"])]
        kexec: bool,
        /// Resume a system that has hibernated, instead of all else.
        #[arg(long)]
        resume: bool,
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
    /// Measure both drivers on this machine, which is not a guest.
    Metal(MetalArgs),
    /// Undo what a test has left behind.
    Tidy,
}

/// What tests depend on.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// The driver under test.
    #[arg(long)]
    pub driver: Driver,
    /// The seed of all random numbers.
    #[arg(long)]
    pub seed: u64,
    /// How many seconds a stress test runs.
    #[arg(long, default_value_t = 10)]
    pub stress_seconds: u64,
    /// How many boots of the same campaign there were before.
    #[arg(long, default_value_t = 0)]
    pub round: u64,
    /// When both drivers are compared: the driver under test is bound to the second NVDIMM.
    #[arg(long)]
    pub swapped: bool,
    /// The two namespaces for both drivers, on a machine that is not a guest.
    #[arg(long, num_args = 2)]
    pub namespaces: Vec<String>,
}

impl TestArgs {
    /// How long a stress test runs.
    pub fn stress(&self) -> Duration {
        Duration::from_secs(self.stress_seconds)
    }

    /// The two namespaces, if they are named.
    pub fn namespaces(&self) -> Option<[Device; 2]> {
        let devices: Vec<Device> = self.namespaces.iter().map(Device::named).collect();
        devices.try_into().ok()
    }

    /// The words that parse to these arguments.
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
        if !self.namespaces.is_empty() {
            words.push("--namespaces".to_owned());
            words.extend(self.namespaces.iter().cloned());
        }
        words
    }
}

/// Runs as a child of the supervisor.
pub fn main() -> ExitCode {
    let command = Cli::parse().command;
    if let Command::Metal(args) = command {
        return metal::main(&args);
    }
    match run(command) {
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
            if args.namespaces().is_some() {
                metal::enclose()?;
            }
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
        Command::Run { .. } | Command::Shell { .. } | Command::Metal(_) => {
            anyhow::bail!("only PID 1 of a guest can do this")
        }
    }
}
