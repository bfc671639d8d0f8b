// SPDX-License-Identifier: GPL-2.0

//! LMDB, which reads through a mapping, and whose lock file is mapped too. A process loads batches
//! of keys, and another one is in the middle of a dump.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::thread::sleep;

use anyhow::{Context, Result, ensure};

use super::{PAUSE, Program, SOON};
use crate::command::{command, expect_failed, run};
use crate::process::{Child, await_mapping};

const ENVIRONMENT: &str = "lmdb";
const HEADER: &str = "VERSION=3\nformat=print\ntype=btree\nmapsize=16777216\nHEADER=END\n";
/// The number of keys in the first batch: more than a pipe has room for.
const FIRST: u64 = 1500;
/// The number of keys in each other batch.
const BATCH: u64 = 10;
/// The word before the number of loaded keys.
const LOADED: &str = "loaded ";

struct Lmdb {
    loads: Child,
    dump: Child,
    loaded: u64,
}

pub fn start(dir: &Path) -> Result<Box<dyn Program>> {
    let environment = dir.join(ENVIRONMENT);
    let status = load(&environment, 0..FIRST)?;
    ensure!(status.success(), "the first mdb_load ended with {status}");
    let dump = Child::start_ready("the process that runs mdb_dump", |link| {
        let mut dump = command("mdb_dump")
            .arg("-n")
            .arg(&environment)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting mdb_dump")?;
        let mut output = dump.stdout.take().context("mdb_dump says nothing")?;
        output.read_exact(&mut [0; 4096])?;
        await_mapping(dump.id(), &environment)?;
        link.say("ready")?;
        link.wait()?;
        output.read_to_end(&mut Vec::new())?;
        expect_failed("mdb_dump", dump.wait()?)
    })?;
    let loads = Child::start_ready("the process that runs mdb_load", |link| {
        for start in (FIRST..).step_by(BATCH as usize) {
            let status = load(&environment, start..start + BATCH)?;
            if !status.success() {
                return expect_failed("mdb_load", status);
            }
            link.say(&format!("{LOADED}{}", start + BATCH))?;
            if start == FIRST {
                link.say("ready")?;
            }
            sleep(PAUSE);
        }
        Ok(())
    })?;
    Ok(Box::new(Lmdb {
        loads,
        dump,
        loaded: 0,
    }))
}

/// Runs `mdb_load` for a batch of keys.
fn load(environment: &Path, keys: Range<u64>) -> Result<ExitStatus> {
    let mut child = command("mdb_load")
        .arg("-n")
        .arg(environment)
        .stdin(Stdio::piped())
        .spawn()
        .context("starting mdb_load")?;
    let mut text = HEADER.to_owned();
    for key in keys {
        text += &format!(" {}\n {}\n", self::key(key), value(key));
    }
    text += "DATA=END\n";
    let mut input = child.stdin.take().context("mdb_load takes no input")?;
    match input.write_all(text.as_bytes()) {
        // It has ended, and its status says why.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        result => result?,
    }
    drop(input);
    Ok(child.wait()?)
}

fn key(number: u64) -> String {
    format!("key{number:08}")
}

fn value(number: u64) -> String {
    format!("{number:0>200}")
}

impl Program for Lmdb {
    fn expect_ended(&mut self) -> Result<()> {
        self.loads.expect_done(SOON)?;
        self.loaded = self.loads.hear_value(LOADED, SOON)?.parse()?;
        println!("mdb_load has loaded {} keys", self.loaded);
        self.dump.go()?;
        self.dump.expect_done(SOON)
    }

    fn expect_committed(&self, dir: &Path) -> Result<()> {
        let environment = dir.join(ENVIRONMENT);
        let dump = run("mdb_dump", &["-n", "-p", &environment.to_string_lossy()])?;
        let mut lines = dump
            .lines()
            .skip_while(|line| *line != "HEADER=END")
            .skip(1);
        for number in 0..self.loaded {
            let found = [lines.next(), lines.next()].map(|line| line.map(str::trim_start));
            let right = [key(number), value(number)];
            ensure!(
                found == right.each_ref().map(|text| Some(text.as_str())),
                "of {} keys that were loaded, number {number} is {found:?}",
                self.loaded
            );
        }
        Ok(())
    }
}
