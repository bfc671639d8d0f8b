// SPDX-License-Identifier: GPL-2.0

//! The system sleeps and comes back while the devices are in use: all levels of `pm_test`, s2idle,
//! S3, and hibernation. virtio-pmem cannot flush while it is suspended.
//!
//! The alarm of the clock ends S3. It does not end s2idle, since QEMU's clock raises no SCI at its
//! alarm, and the kernel has no other interrupt of the clock enabled then. The power button raises
//! one, so the runner presses it.
//!
//! After the last step of the first boot PID 1 hibernates, with processes that go on. The second
//! boot resumes, so it continues the first.

mod hibernation;
mod load;

use std::io;
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::virtio::region_index;
use super::{Suite, Test};
use crate::command::{has_module, run};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::host::Disturbed;
use crate::lab::{Lab, Skip};
use crate::mapping::PAGE;
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::pci::VirtioPmem;
use crate::process::Child;
use crate::sectors::Buffer;
use crate::sysfs;
use crate::tracing::CallCount;
pub use hibernation::{AFTER, hibernate, resume};
use load::Load;

pub const SUITE: Suite = Suite {
    name: "sleep",
    tests: &[
        Test::step("prepare", prepare).within(120),
        Test::step("pm_test_devices_five_times", devices).within(120),
        Test::step("pm_test_other_levels", other_levels).within(120),
        Test::step("pm_test_s2idle", pm_test_s2idle),
        Test::step("fsync_that_takes_long", late_fsync),
        Test::step("flush_that_takes_long", late_flush),
        Test::step("flush_that_does_not_end", held_flush).within(120),
        Test::step("hibernation_image_is_read_back", hibernation::read_back).within(180),
        Test::step(
            "hibernation_with_struct_pages_on_medium",
            hibernation::refused,
        )
        .within(120),
    ],
};

/// Runs in a boot of its own. After s2idle the second CPU does not always come back from S3 here,
/// and after S3 the power button does nothing.
pub const IDLE: Suite = Suite {
    name: "sleep_idle",
    tests: &[
        Test::step("prepare", prepare).within(120),
        Test::step("s2idle", s2idle).within(120),
    ],
};

const POWER: &str = "/sys/power";

/// The indexes of the NVDIMMs' regions, in the order of addresses. The second NVDIMM is in mode
/// raw, without struct pages.
const NVDIMM: u32 = 0;
const RAW: u32 = 1;

/// Makes the file systems that all tests use, and leaves them mounted.
fn prepare(lab: &mut Lab) -> Result<()> {
    sysfs::write("/sys/module/suspend/parameters/pm_test_delay", "1")?;
    let [with_ext4, bare] = virtio_regions(lab)?;
    for (region, fs) in [(NVDIMM, Xfs), (with_ext4, Ext4)] {
        let node = lab.prepare_in(region, Mode::FsdaxMem)?.disk.node_str();
        fs.make(&node)?;
        fs.mount(&node, "dax=always")?.leave();
    }
    for (region, mode) in [(bare, Mode::FsdaxMem), (RAW, Mode::Raw)] {
        lab.prepare_in(region, mode)?;
    }
    Ok(())
}

/// The indexes of the regions of virtio-pmem: one with a file system, and one without.
fn virtio_regions(lab: &Lab) -> Result<[u32; 2]> {
    let devices = VirtioPmem::all()?;
    let regions: Vec<u32> = devices
        .iter()
        .map(|device| region_index(lab, device))
        .collect::<Result<_>>()?;
    regions
        .try_into()
        .map_err(|found| anyhow::anyhow!("not two virtio-pmem devices: {found:?}"))
}

/// What [`prepare`] has made.
struct Prepared {
    /// The disk of a virtio-pmem device without a file system.
    bare: Disk,
    /// The disk of the NVDIMM in mode raw.
    raw: Disk,
    xfs: Mount,
    ext4: Mount,
}

impl Prepared {
    fn find(lab: &Lab) -> Result<Prepared> {
        let [with_ext4, bare] = virtio_regions(lab)?;
        let disk =
            |region| Ok::<_, anyhow::Error>(Disk::named(lab.holder_in(region)?.disk_name()?));
        Ok(Prepared {
            bare: disk(bare)?,
            raw: disk(RAW)?,
            xfs: Mount::of(&disk(NVDIMM)?.node_str()),
            ext4: Mount::of(&disk(with_ext4)?.node_str()),
        })
    }

    fn load(&self) -> Result<Load> {
        Load::start(&[&self.bare, &self.raw], &[&self.xfs, &self.ext4])
    }

    /// Leaves the file systems mounted.
    fn leave(self) {
        self.xfs.leave();
        self.ext4.leave();
    }
}

/// Does something with the devices in use. No request may fail meanwhile.
fn under_load(lab: &Lab, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let prepared = Prepared::find(lab)?;
    let mut messages = Messages::from_now()?;
    let load = prepared.load()?;
    // Then the writes of the disks are in flight most of the time.
    let slow = Disturbed::slow()?;
    let result = work();
    slow.end()?;
    let ended = load.end();
    prepared.leave();
    result.and(ended)?;
    let failed: Vec<&String> = messages
        .so_far()?
        .iter()
        .filter(|message| message.contains("flush failed"))
        .collect();
    ensure!(failed.is_empty(), "the log has {failed:#?}");
    Ok(())
}

/// Writes to a file in `/sys/power`.
fn set(file: &str, value: &str) -> Result<()> {
    sysfs::write(format!("{POWER}/{file}"), value)
}

/// Goes to sleep as far as `level`, and comes back after a second.
fn test_level(level: &str, state: &str) -> Result<()> {
    set("pm_test", level)?;
    let result = set("state", state);
    set("pm_test", "none")?;
    result.with_context(|| format!("{state}, as far as {level}"))
}

fn devices(lab: &mut Lab) -> Result<()> {
    under_load(lab, || {
        (0..5).try_for_each(|_| test_level("devices", "mem"))
    })
}

fn other_levels(lab: &mut Lab) -> Result<()> {
    set("mem_sleep", "deep")?;
    under_load(lab, || {
        ["freezer", "platform", "processors", "core"]
            .into_iter()
            .try_for_each(|level| test_level(level, "mem"))
    })
}

fn pm_test_s2idle(lab: &mut Lab) -> Result<()> {
    set("mem_sleep", "s2idle")?;
    under_load(lab, || {
        ["devices", "platform"]
            .into_iter()
            .try_for_each(|level| test_level(level, "mem"))
    })
}

/// What the clock of the machine shows, in seconds. It goes on during a sleep.
fn clock() -> Result<u64> {
    Ok(sysfs::read("/sys/class/rtc/rtc0/since_epoch")?.parse()?)
}

/// Makes the kernel listen to the power button of the machine.
fn listen_to_the_power_button() -> Result<()> {
    if has_module("button") {
        run("modprobe", &["button"])?;
    }
    let event = sysfs::read("/sys/firmware/acpi/interrupts/ff_pwr_btn")?;
    if !event.split_whitespace().any(|word| word == "enabled") {
        return Err(Skip(
            "only the power button wakes this machine, and the kernel has no driver of it",
        )
        .into());
    }
    Ok(())
}

/// Sleeps until the runner presses the power button.
fn s2idle(lab: &mut Lab) -> Result<()> {
    // The runner waits longer, and the machine sleeps within the rest of that time.
    const SECONDS: u64 = 5;
    listen_to_the_power_button()?;
    set("mem_sleep", "s2idle")?;
    let interrupts = sysfs::read("/proc/interrupts")?;
    let sci = interrupts
        .lines()
        .find_map(|line| line.split_once(':').filter(|_| line.ends_with("acpi")))
        .context("the machine has no SCI")?
        .0
        .trim();
    under_load(lab, || {
        let before = clock()?;
        // The line that `guest.rs` of the runner waits for.
        println!("asleep until the power button is pressed");
        set("state", "mem")?;
        let slept = clock()?.saturating_sub(before);
        ensure!(slept >= SECONDS, "it was back after {slept} s");
        let by = sysfs::read(format!("{POWER}/pm_wakeup_irq"))?;
        ensure!(
            by == sci,
            "interrupt {by} has woken it, and {sci} is the SCI"
        );
        Ok(())
    })
}

/// Most of the time by which the host is late ([`Disturbed::late`]), and longer than a sleep takes
/// without it.
const LATE: Duration = Duration::from_secs(2);
/// How long a request may take once the host flushes again.
const SOON: Duration = Duration::from_secs(20);

/// While the host flushes, a thread in fsync cannot be frozen. The system sleeps after that.
fn late_fsync(lab: &mut Lab) -> Result<()> {
    let Prepared {
        bare, xfs, ext4, ..
    } = Prepared::find(lab)?;
    [xfs, ext4].into_iter().for_each(Mount::leave);
    let late = Disturbed::late()?;
    let mut fsync = Child::start_ready("fsync", |link| {
        let file = bare.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(PAGE, 1), 0)?;
        link.say("ready")?;
        Ok(file.sync_all()?)
    })?;
    fsync.await_uninterruptible()?;
    let slept = sleep_without_sync()?;
    late.end()?;
    slept.context("going to sleep")?;
    fsync.expect_done(SOON)
}

/// A thread in io_getevents is frozen while its writes wait for a flush.
fn start_writer(disk: &Disk) -> Result<Child> {
    let flushes = CallCount::of(&["nvdimm_flush"])?;
    let writer = Child::start("the writer of the disk", |_| load::write_disk_once(disk, 1))?;
    let deadline = Instant::now() + SOON;
    while flushes.so_far()? == 0 {
        ensure!(Instant::now() < deadline, "the disk is not flushed");
        sleep(Duration::from_millis(20));
    }
    Ok(writer)
}

/// Goes to sleep as far as the devices. File systems are not synced, which would wait for the host
/// as well.
fn sleep_without_sync() -> Result<io::Result<()>> {
    set("sync_on_suspend", "0")?;
    set("pm_test", "devices")?;
    let result = sysfs::try_write(format!("{POWER}/state"), "mem");
    set("pm_test", "none")?;
    set("sync_on_suspend", "1")?;
    Ok(result)
}

/// A flush is in progress when the device is suspended, and ends before.
fn late_flush(lab: &mut Lab) -> Result<()> {
    let Prepared {
        bare, xfs, ext4, ..
    } = Prepared::find(lab)?;
    [xfs, ext4].into_iter().for_each(Mount::leave);
    nix::unistd::sync();
    let late = Disturbed::late()?;
    let mut writer = start_writer(&bare)?;
    let start = Instant::now();
    let slept = sleep_without_sync()?;
    late.end()?;
    slept.context("going to sleep")?;
    let took = start.elapsed();
    ensure!(took > LATE, "it has waited for no flush: {took:?}");
    writer.expect_done(SOON)
}

/// If the device slept while the host does not end the flush, the writes would fail. So the system
/// stays awake.
fn held_flush(lab: &mut Lab) -> Result<()> {
    let Prepared {
        bare, xfs, ext4, ..
    } = Prepared::find(lab)?;
    [xfs, ext4].into_iter().for_each(Mount::leave);
    nix::unistd::sync();
    let held = Disturbed::held()?;
    let mut writer = start_writer(&bare)?;
    let mut messages = Messages::from_now()?;
    let refused = sleep_without_sync()?;
    ensure!(
        writer.try_end()?.is_none(),
        "the writer has ended, and the host has not flushed"
    );
    held.end()?;
    errno::expect("sleeping", refused, &[Errno::EBUSY])?;
    let said = messages.expect(&["the system stays awake"])?;
    ensure!(
        said.contains("has not flushed") && said.contains("try again"),
        "the log says `{said}`"
    );
    writer.expect_done(SOON)?;
    test_level("devices", "mem")
}
