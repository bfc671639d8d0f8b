// SPDX-License-Identifier: GPL-2.0

//! Real programs whose device is unbound while they run. All of them use one file system at the
//! same time. Each ends by SIGBUS or with an error, and what it had committed is there when the
//! device is bound again.

mod executable;
mod fio;
mod lmdb;
mod sqlite;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Suite, Test};
use crate::driver::Driver;
use crate::filesystem::FileSystem;
use crate::lab::{Lab, Prepared};
use crate::messages::Messages;
use crate::process::{Child, expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired;

pub const SUITE: Suite = Suite {
    name: "programs",
    tests: &[
        Test::new("on_ext4", |lab| on(lab, FileSystem::Ext4)).within(120),
        Test::new("on_xfs", |lab| on(lab, FileSystem::Xfs)).within(120),
    ],
};

/// A running program that uses files in a directory.
trait Program {
    /// After the unbind: checks that the program ends by SIGBUS or with an error.
    fn expect_ended(&mut self) -> Result<()>;

    /// After the device was bound again: checks what the program had committed in `dir`.
    fn expect_committed(&self, dir: &Path) -> Result<()>;
}

type Start = fn(&Path) -> Result<Box<dyn Program>>;

/// The programs, by their names in messages. The one that never waits starts last.
const PROGRAMS: [(&str, Start); 5] = [
    ("fio's mmap engine", |dir| fio::start(dir, "mmap")),
    ("fio's libpmem engine", |dir| fio::start(dir, "libpmem")),
    ("SQLite", sqlite::start),
    ("LMDB", lmdb::start),
    ("an executable and its library", executable::start),
];

/// Between two steps of a program, so that the start of the next one is not slow.
const PAUSE: Duration = Duration::from_millis(20);

/// How long the unbind may take, and then the end of a program.
const SOON: Duration = Duration::from_secs(20);

fn on(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.ready(0)?;
    let node = disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    let mut running = Vec::new();
    for (name, start) in PROGRAMS {
        let program = start(mount.point()).with_context(|| format!("starting {name}"))?;
        running.push((name, program));
    }

    let mut messages = Messages::from_now()?;
    Child::start("unbind", |_| bound.unbind())?.expect_done(SOON)?;
    for (name, program) in &mut running {
        program.expect_ended().with_context(|| name.to_string())?;
    }
    expect_no_process_stuck()?;
    if lab.driver == Driver::PmemRs {
        println!("kernel: {}", messages.expect(&["revoked:"])?);
        retired::expect(0)?;
    }
    mount.unmount()?;

    bound.bind(lab.driver)?;
    let mount = fs.mount(&node, "dax=always")?;
    for (name, program) in &running {
        program
            .expect_committed(mount.point())
            .with_context(|| name.to_string())?;
    }
    mount.unmount()?;
    fs.check(&node)?;
    expect_no_thread_stuck()
}
