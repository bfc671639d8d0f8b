// SPDX-License-Identifier: GPL-2.0

//! The time to unbind a device while a process has a large part of it mapped.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;

use super::{Suite, Test};
use crate::filesystem::FileSystem::Ext4;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::Child;

pub const SUITE: Suite = Suite {
    name: "revoke_time",
    tests: &[Test::new("grows_with_what_is_mapped", grows).within(300)],
};

const SMALL: usize = 16 << 20;
const LARGE: usize = 1 << 30;
/// The allowed factor between the ratio of times and the ratio of sizes. Far more than what was
/// measured, and far less than if each page were searched for linearly.
const SLACK: u32 = 4;
/// How long the unbind of a device without mappings takes.
const CONSTANT: Duration = Duration::from_millis(300);

/// How long the page faults may take.
const FAULTS_LIMIT: Duration = Duration::from_secs(200);

fn grows(lab: &mut Lab) -> Result<()> {
    let small = unbind_with(lab, SMALL)?;
    let large = unbind_with(lab, LARGE)?;

    let factor = u32::try_from(LARGE / SMALL)?;
    ensure!(
        large < (small + CONSTANT) * factor * SLACK,
        "{LARGE} bytes took {large:?}, {SMALL} bytes {small:?}"
    );
    Ok(())
}

/// Maps `len` bytes of a file with pages of 4 KiB, writes to all of them, and measures unbind. The
/// process with the mapping gets a signal.
fn unbind_with(lab: &Lab, len: usize) -> Result<Duration> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    let mut user = Child::start("the process with the mapping", |link| {
        let mapping = Mapping::of_new_file(&path, len)?;
        link.say("ready")?;
        link.wait()?;
        mapping.load(0);
        Ok(())
    })?;
    user.hear("ready", FAULTS_LIMIT)?;

    let mut messages = Messages::from_now()?;
    let start = Instant::now();
    prepared.bound.unbind()?;
    let took = start.elapsed();
    let pages = len / PAGE;
    let message = messages.expect(&["revoked:", &format!("{pages} pages")])?;
    println!("{pages} pages of 4 KiB: unbind took {took:?} ({message})");

    user.go()?;
    user.expect_signal(Signal::SIGBUS, Duration::from_secs(30))?;
    mount.unmount()?;
    prepared.bound.bind(lab.driver)?;
    Ok(took)
}
