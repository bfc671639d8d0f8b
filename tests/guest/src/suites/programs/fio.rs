// SPDX-License-Identifier: GPL-2.0

//! fio, with an engine that maps files: it has written a file with checksums, and then writes to
//! another one for ever.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result};

use super::{Program, SOON};
use crate::command::{command, expect_failed, run};
use crate::process::{Child, await_mapping};

struct Fio {
    engine: &'static str,
    load: Child,
}

/// The arguments for a job on a file. The job is a thread, so that it ends with its process.
fn job(file: &Path, engine: &str, more: &[&str]) -> Vec<String> {
    let common = [
        "--name=job".to_owned(),
        format!("--filename={}", file.display()),
        format!("--ioengine={engine}"),
        "--bs=4k".to_owned(),
        "--thread".to_owned(),
    ];
    let more = more.iter().map(|&argument| argument.to_owned());
    common.into_iter().chain(more).collect()
}

/// Runs a job on the file with checksums to its end.
fn run_job(dir: &Path, of: &str, engine: &str, more: &[&str]) -> Result<()> {
    let common = ["--rw=write", "--size=1m", "--verify=crc32c"];
    let file = dir.join(format!("{of}-checked"));
    let arguments = job(&file, engine, &[&common, more].concat());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run("fio", &arguments).map(drop)
}

pub fn start(dir: &Path, engine: &'static str) -> Result<Box<dyn Program>> {
    run_job(dir, engine, engine, &["--do_verify=0", "--end_fsync=1"])?;
    let endless = [
        "--rw=randwrite",
        "--size=4m",
        "--time_based",
        "--runtime=120",
        "--rate_iops=200",
    ];
    let file = dir.join(format!("{engine}-load"));
    let arguments = job(&file, engine, &endless);
    let load = Child::start_ready(format!("the process that runs fio ({engine})"), |link| {
        let mut fio = command("fio")
            .args(&arguments)
            .stdout(Stdio::null())
            .spawn()
            .context("starting fio")?;
        await_mapping(fio.id(), &file)?;
        link.say("ready")?;
        expect_failed("fio", fio.wait()?)
    })?;
    Ok(Box::new(Fio { engine, load }))
}

impl Program for Fio {
    fn expect_ended(&mut self) -> Result<()> {
        self.load.expect_done(SOON)
    }

    fn expect_committed(&self, dir: &Path) -> Result<()> {
        // The engine libpmem would write the file again.
        run_job(dir, self.engine, "psync", &["--verify_only"])
    }
}
