// SPDX-License-Identifier: GPL-2.0

//! Tests that misbehave, so that the runner can check that this is detected. The runner knows the
//! expected result of each.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Suite, Test};
use crate::command::{command, run};
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Skip};
use crate::ndctl::Mode;
use crate::sysfs;

pub const FAULTS: Suite = Suite {
    name: "harness",
    tests: &[
        Test::new("passes", |_| Ok(())),
        Test::new("fails", |_| bail!("this is why")),
        Test::new("is_skipped", |_| Err(Skip("not here").into())),
        Test::new("panics", |_| panic!("in a test")),
        Test::new("dies_by_a_signal", dies_by_a_signal),
        Test::new("takes_too_long", takes_too_long).within(2),
        Test::new("makes_the_kernel_complain", makes_the_kernel_complain),
        Test::new("taints_the_kernel", taints_the_kernel),
        Test::new("leaves_a_process", leaves_a_process),
        Test::new("passes_after_all_that", |lab| {
            lab.prepare(Mode::Raw).map(drop)
        }),
        // The mount cannot be removed, so this test comes last.
        Test::new("leaves_a_busy_mount", leaves_a_busy_mount),
    ],
};

pub const PANIC: Suite = Suite {
    name: "harness_panic",
    tests: &[Test::new("crashes_the_kernel", crashes_the_kernel)],
};

fn dies_by_a_signal(_: &mut Lab) -> Result<()> {
    std::process::abort()
}

fn takes_too_long(_: &mut Lab) -> Result<()> {
    sleep(Duration::from_secs(3600));
    Ok(())
}

/// A line in `/dev/kmsg` is a kernel message like any other.
fn makes_the_kernel_complain(_: &mut Lab) -> Result<()> {
    sysfs::write("/dev/kmsg", "BUG: made up by a test\n")
}

/// Sets the taint flag of a warning.
fn taints_the_kernel(_: &mut Lab) -> Result<()> {
    sysfs::write("/proc/sys/kernel/tainted", "512")
}

/// The current directory of the process is in a mounted file system. If it can be unmounted, the
/// process has ended.
fn leaves_a_process(lab: &mut Lab) -> Result<()> {
    let node = lab.prepare(Mode::FsdaxMem)?.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "defaults")?;
    command("setsid")
        .args(["sleep", "3600"])
        .current_dir(mount.path(""))
        .spawn()?;
    mount.leave();
    Ok(())
}

/// A loop device keeps the file system in use.
fn leaves_a_busy_mount(lab: &mut Lab) -> Result<()> {
    let node = lab.prepare(Mode::FsdaxMem)?.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "defaults")?;
    let path = mount.path("file");
    std::fs::write(&path, vec![0; 1 << 20])?;
    run("losetup", &["/dev/loop0", &path.to_string_lossy()])?;
    mount.leave();
    Ok(())
}

fn crashes_the_kernel(_: &mut Lab) -> Result<()> {
    sysfs::write("/proc/sysrq-trigger", "c")
}
