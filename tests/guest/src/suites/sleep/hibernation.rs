// SPDX-License-Identifier: GPL-2.0

//! Hibernation, with the swap space on a virtio disk.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::load::write_disk_once;
use super::{
    POWER, Prepared, RAW, Suite, Test, clock, set, test_level, under_load, virtio_regions,
};
use crate::command::run;
use crate::errno;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::host::Disturbed;
use crate::lab::Lab;
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::sysfs;

/// The second boot, which goes on with the first.
pub const AFTER: Suite = Suite {
    name: "sleep_after_hibernation",
    tests: &[
        Test::step("processes_have_gone_on", processes_have_gone_on),
        // After this, the ports that switch this machine off do nothing, so PID 1 reboots.
        Test::step("s3", s3).within(120),
        Test::step("file_systems_are_in_order", file_systems_are_in_order).within(120),
    ],
};

const SWAP: &str = "/dev/vda";
/// Where PID 1 keeps what the processes have said after the resume.
const OUTCOME: &str = "/run/slept";
const GOOD: &str = "good";

/// Makes the swap space, unless it is there, and enables it.
fn enable_swap() -> Result<()> {
    run("modprobe", &["-a", "virtio_pci", "virtio_blk"])?;
    if !sysfs::read("/proc/swaps")?.contains(SWAP) {
        run("mkswap", &[SWAP])?;
        run("swapon", &[SWAP])?;
    }
    // As small as possible.
    set("image_size", "0")
}

/// The image is written, and read back at once.
pub fn read_back(lab: &mut Lab) -> Result<()> {
    enable_swap()?;
    set("disk", "test_resume")?;
    under_load(lab, || set("state", "disk"))
}

/// The memory map of a device is on its medium, where the kernel that resumes would overwrite it.
pub fn refused(lab: &mut Lab) -> Result<()> {
    let [_, bare] = virtio_regions(lab)?;
    let bound = lab.prepare_in(bare, Mode::FsdaxDev)?.bound;
    let mut messages = Messages::from_now()?;
    let refused = sysfs::try_write(format!("{POWER}/state"), "disk");
    errno::expect("hibernation", refused, &[Errno::EBUSY])?;
    let said = messages.expect(&["hibernation is refused"])?;
    ensure!(
        said.contains(bound.name()) && said.contains("Unmount and unbind it"),
        "the log says `{said}`"
    );
    // Other kinds of sleep keep the memory.
    test_level("devices", "mem")?;
    bound.unbind()?;
    test_level("freezer", "disk")?;
    bound.bind(lab.driver)?;
    lab.prepare_in(bare, Mode::FsdaxMem).map(drop)
}

/// Hibernates with the devices in use. Returns in the second boot.
pub fn hibernate(lab: &Lab) -> Result<()> {
    enable_swap()?;
    // PID 1 goes on with the second boot, whatever becomes of these processes.
    let prepared = Prepared::find(lab)?;
    let load = prepared.load()?;
    prepared.leave();
    set("disk", "shutdown")?;
    let slow = Disturbed::slow()?;
    set("state", "disk")?;
    slow.end()?;
    let outcome = match load.end() {
        Ok(()) => GOOD.to_owned(),
        Err(error) => format!("{error:?}"),
    };
    fs::write(OUTCOME, outcome).context("writing the outcome")
}

/// Resumes what the first boot has left. Returns only if that fails.
pub fn resume() -> Result<()> {
    run("modprobe", &["-a", "virtio_pci", "virtio_blk"])?;
    let number = sysfs::read("/sys/class/block/vda/dev")?;
    set("resume", &number)
}

fn processes_have_gone_on(_: &mut Lab) -> Result<()> {
    let outcome = fs::read_to_string(OUTCOME).context("the system was not resumed")?;
    ensure!(outcome == GOOD, "{outcome}");
    Ok(())
}

/// Sleeps until the alarm of the clock.
fn s3(lab: &mut Lab) -> Result<()> {
    const ALARM: &str = "/sys/class/rtc/rtc0/wakealarm";
    // Long enough that the alarm does not go off before the machine sleeps.
    const SECONDS: u64 = 20;
    let offered = sysfs::read(format!("{POWER}/mem_sleep"))?;
    ensure!(offered.contains("deep"), "the machine offers {offered}");
    set("mem_sleep", "deep")?;
    under_load(lab, || {
        let before = clock()?;
        sysfs::write(ALARM, "0")?;
        sysfs::write(ALARM, &format!("+{SECONDS}"))?;
        set("state", "mem")?;
        let slept = clock()?.saturating_sub(before);
        ensure!(slept >= SECONDS - 1, "it was back after {slept} s");
        Ok(())
    })
}

fn file_systems_are_in_order(lab: &mut Lab) -> Result<()> {
    let Prepared {
        bare,
        raw,
        xfs,
        ext4,
    } = Prepared::find(lab)?;
    // The devices can still be unbound, bound and used.
    for (mount, fs) in [(xfs, Xfs), (ext4, Ext4)] {
        let node = mount.node().to_owned();
        mount.unmount()?;
        fs.check(&node)?;
        fs.mount(&node, "dax=always").and_then(Mount::unmount)?;
    }
    let [_, with_bare] = virtio_regions(lab)?;
    for (region, disk) in [(with_bare, bare), (RAW, raw)] {
        let bound = lab.holder_in(region)?;
        bound.unbind()?;
        bound.bind(lab.driver)?;
        write_disk_once(&disk, 7)?;
    }
    Ok(())
}
