// SPDX-License-Identifier: GPL-2.0

//! Programs that the runner uses.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Runs a program to its end and returns its output. A failure contains its error messages.
pub fn run(command: &mut Command) -> Result<Output> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}\n{}", output.status, stderr.trim_end());
    }
    Ok(output)
}

/// The SHA-256 checksum of a file, in hexadecimal digits.
pub fn sha256(file: &Path) -> Result<String> {
    let output = run(Command::new("sha256sum").arg("--").arg(file))?;
    let text = String::from_utf8(output.stdout)?;
    let digits = text
        .split_whitespace()
        .next()
        .context("sha256sum said nothing")?;
    Ok(digits.trim_start_matches('\\').to_owned())
}
