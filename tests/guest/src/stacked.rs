// SPDX-License-Identifier: GPL-2.0

//! Stacked block devices, except device-mapper: loop devices and md arrays.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::run;
use crate::disk::Disk;
use crate::sysfs;

/// A loop device, detached when it is dropped.
pub struct Loop(Disk);

impl Loop {
    /// Makes a loop device of a file or of another disk. It uses direct I/O.
    pub fn new(below: &Path) -> Result<Loop> {
        let below = below.to_string_lossy();
        let node = run("losetup", &["--find", "--show", "--direct-io=on", &below])?;
        Ok(Loop(Disk::named(node.trim().trim_start_matches("/dev/"))))
    }

    /// The block device.
    pub fn disk(&self) -> &Disk {
        &self.0
    }

    /// Detaches the loop device. Unlike `drop`, this reports a failure.
    pub fn detach(self) -> Result<()> {
        run("losetup", &["--detach", &self.0.node_str()])?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        // A failed test may leave it behind. If it cannot be detached, the cleanup after the test
        // reports that.
        let _ = run("losetup", &["--detach", &self.0.node_str()]);
    }
}

/// Detaches all loop devices.
pub fn detach_loops() -> Result<()> {
    let attached = |disk: &Disk| disk.path("loop/backing_file").exists();
    if !Disk::all("loop")?.iter().any(attached) {
        return Ok(());
    }
    run("losetup", &["--detach-all"]).map(drop)
}

/// The RAID level of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Striped.
    Raid0,
    /// Mirrored.
    Raid1,
}

impl Level {
    /// The name of the level, and of the module that implements it.
    pub fn name(self) -> &'static str {
        match self {
            Level::Raid0 => "raid0",
            Level::Raid1 => "raid1",
        }
    }
}

/// An array of md without metadata, stopped when it is dropped.
pub struct Array(Disk);

/// The parameter that creates an array of the given name.
const NEW: &str = "/sys/module/md_mod/parameters/new_array";
const NAME: &str = "md0";

impl Array {
    /// Makes an array of disks of the same size.
    pub fn new(level: Level, disks: &[&Disk]) -> Result<Array> {
        run("modprobe", &[level.name()])?;
        sysfs::write(NEW, NAME)?;
        let array = Array(Disk::named(NAME));
        let kib = (disks[0].bytes()? >> 10).to_string();
        array.set("metadata_version", "none")?;
        array.set("level", level.name())?;
        array.set("raid_disks", &disks.len().to_string())?;
        match level {
            Level::Raid0 => array.set("chunk_size", "65536")?,
            Level::Raid1 => {
                array.set("component_size", &kib)?;
                // The disks count as synchronised from the start.
                array.set("resync_start", "none")?;
            }
        }
        for (slot, disk) in disks.iter().enumerate() {
            array.set("new_dev", &disk.get("dev")?)?;
            let member = format!("dev-{disk}");
            array.set(&format!("{member}/size"), &kib)?;
            array.set(&format!("{member}/slot"), &slot.to_string())?;
        }
        array.set("array_state", "active")?;
        ensure!(array.0.bytes()? > 0, "{} has no size", array.0);
        Ok(array)
    }

    fn path(attribute: &str) -> PathBuf {
        Path::new("/sys/block")
            .join(NAME)
            .join("md")
            .join(attribute)
    }

    fn set(&self, attribute: &str, value: &str) -> Result<()> {
        sysfs::write(Array::path(attribute), value)
    }

    /// The block device.
    pub fn disk(&self) -> &Disk {
        &self.0
    }

    /// The state of a member, as md reports it.
    pub fn state_of(&self, member: &str) -> Result<String> {
        sysfs::read(Array::path(&format!("dev-{member}/state")))
    }

    /// Stops the array. Unlike `drop`, this reports a failure.
    pub fn stop(self) -> Result<()> {
        std::mem::forget(self);
        stop_arrays()
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // A failed test may leave it behind. If it cannot be stopped, the cleanup after the test
        // reports that.
        let _ = stop_arrays();
    }
}

/// Stops the array, if there is one.
pub fn stop_arrays() -> Result<()> {
    let state = Array::path("array_state");
    if !state.exists() || sysfs::read(&state)? == "clear" {
        return Ok(());
    }
    sysfs::write(state, "clear").context("stopping the array")
}
