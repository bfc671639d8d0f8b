// SPDX-License-Identifier: GPL-2.0

//! A shell and its C library, which are run from the file system.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::{Program, SOON};
use crate::arch::C_LIBRARY;
use crate::command::command;
use crate::process::{Child, await_mapping};

const SHELL: &str = "/usr/bin/dash";
/// Each round executes code of both files.
const WORK: &str = "echo ready; while :; do read -r line </proc/self/stat; done";

struct Executable(Child);

/// Returns the path of the copy.
fn copy_in(dir: &Path, original: &str) -> Result<PathBuf> {
    let name = Path::new(original).file_name().context("it has no name")?;
    Ok(dir.join(name))
}

/// The copy of the shell, as a command that loads the copy of the library.
fn shell(dir: &Path, script: &str) -> Result<Command> {
    let mut shell = command(copy_in(dir, SHELL)?);
    shell.env("LD_LIBRARY_PATH", dir).args(["-c", script]);
    Ok(shell)
}

pub fn start(dir: &Path) -> Result<Box<dyn Program>> {
    for original in [SHELL, C_LIBRARY] {
        let copy = copy_in(dir, original)?;
        fs::copy(original, &copy)?;
        File::open(&copy)?.sync_all()?;
    }
    let child = Child::start_ready("the process that runs the shell", |link| {
        let mut shell = shell(dir, WORK)?
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the shell")?;
        let output = shell.stdout.take().context("the shell says nothing")?;
        BufReader::new(output).read_line(&mut String::new())?;
        for original in [SHELL, C_LIBRARY] {
            await_mapping(shell.id(), &copy_in(dir, original)?)?;
        }
        link.say("ready")?;
        let status = shell.wait()?;
        ensure!(
            status.signal() == Some(libc::SIGBUS),
            "the shell ended with {status}, expected SIGBUS"
        );
        Ok(())
    })?;
    Ok(Box::new(Executable(child)))
}

impl Program for Executable {
    fn expect_ended(&mut self) -> Result<()> {
        self.0.expect_done(SOON)
    }

    fn expect_committed(&self, dir: &Path) -> Result<()> {
        for original in [SHELL, C_LIBRARY] {
            let same = fs::read(copy_in(dir, original)?)? == fs::read(original)?;
            ensure!(same, "the copy of {original} differs from it");
        }
        let output = shell(dir, "echo works")?.output()?;
        ensure!(
            output.status.success() && output.stdout == b"works\n",
            "the shell says {output:?}"
        );
        Ok(())
    }
}
