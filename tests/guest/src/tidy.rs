// SPDX-License-Identifier: GPL-2.0

//! Undoes what a test has left behind, so that each test starts from the same state.
//!
//! It runs after every test, also after one that failed or was killed. What cannot be undone, such
//! as a file system that does not unmount, is a failure of the test that left it.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};

use crate::command::run;
use crate::disk::Disk;
use crate::driver::Driver;
use crate::init::driver_under_test;
use crate::injection;
use crate::lessee;
use crate::nd::{Device, enable_all};
use crate::platform::{self, PlatformDevice};
use crate::retired;
use crate::stacked::{detach_loops, stop_arrays};
use crate::suites::{except, notice, revoke, suspend};

/// How long a step is retried: processes that used the resources have just been killed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs all steps. A failed step does not prevent the next ones.
pub fn main() -> Result<()> {
    let steps: [fn() -> Result<()>; 12] = [
        injection::end,
        || patiently(lessee::unload),
        || patiently(unmount_all),
        || patiently(remove_mapped_devices),
        end_swap,
        detach_loops,
        || patiently(stop_arrays),
        || retired::await_none(PATIENCE),
        enable_all,
        reset_attributes,
        || settle_drivers(driver_under_test()?),
        || give_back_platform_devices(driver_under_test()?),
    ];
    let mut result = Ok(());
    for step in steps {
        result = result.and(step());
    }
    result
}

/// Retries a step until it succeeds or time is over.
fn patiently(step: fn() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match step() {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(100)),
            result => return result,
        }
    }
}

fn unmount_all() -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    // The latest mount is unmounted first.
    for line in mounts.lines().rev() {
        let point = line
            .split(' ')
            .nth(1)
            .context("a line without a mount point")?;
        // An overlay or a client of NFS is not on a disk.
        if !line.starts_with("/dev/") && !point.starts_with("/mnt/") {
            continue;
        }
        umount2(point, MntFlags::empty()).with_context(|| format!("unmounting {point}"))?;
    }
    Ok(())
}

fn remove_mapped_devices() -> Result<()> {
    if !Path::new("/sys/module/dm_mod").exists() {
        return Ok(());
    }
    run("dmsetup", &["remove_all", "--force"])?;
    let left = Disk::all("dm-")?;
    ensure!(left.is_empty(), "{left:?} cannot be removed");
    Ok(())
}

/// A disk that no longer exists cannot be a swap device.
fn end_swap() -> Result<()> {
    let swaps = fs::read_to_string("/proc/swaps")?;
    for line in swaps.lines().skip(1) {
        let node = line.split_whitespace().next().unwrap_or_default();
        if Path::new(node).exists() {
            run("busybox", &["swapoff", node])?;
        }
    }
    Ok(())
}

fn reset_attributes() -> Result<()> {
    except::reset()?;
    notice::reset()?;
    suspend::reset()?;
    revoke::reset_core_dumps()?;
    retired::reset_timeout()?;
    if Path::new("/sys/module/ramoops").exists() {
        run("rmmod", &["ramoops"])?;
    }
    for region in Device::all_of("region")? {
        region.set("read_only", "0")?;
    }
    for namespace in Device::all_of("namespace")? {
        namespace.set("force_raw", "0")?;
    }
    Ok(())
}

/// Binds every namespace to the driver under test.
fn settle_drivers(driver: Driver) -> Result<()> {
    if driver.other().is_loaded() {
        driver.other().unload()?;
    }
    if !driver.is_loaded() {
        driver.load()?;
    }
    Ok(())
}

/// Binds platform devices for persistent memory to the driver under test, if it has a driver for
/// them.
fn give_back_platform_devices(driver: Driver) -> Result<()> {
    if driver != Driver::PmemRs {
        return Ok(());
    }
    let devices = PlatformDevice::all_with_memory()?;
    for device in &devices {
        if device.driver().is_some_and(|other| other != driver.name()) {
            device.unbind()?;
        }
    }
    for module in platform::IN_TREE_MODULES {
        if Path::new("/sys/module").join(module).exists() {
            run("rmmod", &[module])?;
        }
    }
    for device in &devices {
        device.set_override(None)?;
        if device.driver().is_none() {
            device.probe()?;
        }
    }
    Ok(())
}
