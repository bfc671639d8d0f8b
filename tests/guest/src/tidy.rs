// SPDX-License-Identifier: GPL-2.0

//! Puts back in order what a test has left behind, so that the next one starts alike.
//!
//! It runs after every test, also after one that failed half-way or was killed. What cannot be put
//! back (a file system that does not unmount, say) is a failure of the test that left it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};

use crate::command::run;
use crate::driver::Driver;
use crate::init::driver_under_test;
use crate::nd::Device;

/// Does all of it.
pub fn main() -> Result<()> {
    unmount_all()?;
    if Path::new("/sys/module/dm_mod").exists() {
        run("dmsetup", &["remove_all", "--force"])?;
    }
    if Path::new("/sys/module/ramoops").exists() {
        run("rmmod", &["ramoops"])?;
    }
    for region in Device::all_of("region")? {
        region.set("read_only", "0")?;
    }
    for namespace in Device::all_of("namespace")? {
        namespace.set("force_raw", "0")?;
    }
    settle_drivers(driver_under_test()?)
}

fn unmount_all() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    // What was mounted last goes first.
    for line in mounts
        .lines()
        .rev()
        .filter(|line| line.starts_with("/dev/"))
    {
        let point = line
            .split(' ')
            .nth(1)
            .context("a line without a mount point")?;
        umount2(point, MntFlags::empty()).with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}

/// Gives every namespace back to the driver under test.
fn settle_drivers(driver: Driver) -> Result<()> {
    if driver.other().is_loaded() {
        driver.other().unload()?;
    }
    if !driver.is_loaded() {
        driver.load()?;
    }
    Ok(())
}
