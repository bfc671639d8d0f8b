// SPDX-License-Identifier: GPL-2.0

//! Other programs: starting them, and saying what went wrong when they fail.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail, ensure};

/// Where the guest image keeps its programs. PID 1 starts with an empty environment.
pub const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// How many lines of a failed program's output are kept. Some programs print their whole manual.
const KEPT_LINES: usize = 12;

/// A command that finds the programs of the image.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command
        .env("PATH", PATH)
        .env("HOME", "/")
        .env("TERM", "dumb");
    command
}

/// Runs a program to its end and returns its output. An error contains the first lines of both
/// outputs.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let line = || format!("{program} {}", args.join(" "));
    let output = command(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start `{}`", line()))?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let said = stdout + &String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().take(KEPT_LINES).collect();
        bail!("`{}`: {}\n{}", line(), output.status, said.join("\n"));
    }
    Ok(stdout)
}

/// Runs a program that must fail, and returns what it printed.
pub fn run_expecting_failure(program: &str, args: &[&str]) -> Result<String> {
    let output = command(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start `{program}`"))?;
    if output.status.success() {
        bail!(
            "`{program} {}` succeeded, and should have failed",
            args.join(" ")
        );
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Checks how a program has ended whose device has gone: by SIGBUS, or with an error.
pub fn expect_failed(program: &str, status: ExitStatus) -> Result<()> {
    ensure!(
        !status.success() && matches!(status.signal(), None | Some(libc::SIGBUS)),
        "{program} ended with {status}, expected SIGBUS or an error"
    );
    Ok(())
}

/// Whether the guest image has a module of the kernel.
pub fn has_module(name: &str) -> bool {
    run("modinfo", &["-F", "name", name]).is_ok()
}
