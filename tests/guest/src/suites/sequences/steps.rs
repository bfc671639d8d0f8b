// SPDX-License-Identifier: GPL-2.0

//! The steps, and the errors that each may have because of concurrent steps.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::operations::{
    calls, enable, fail, frozen, leased, mapped, mount, pin, read_only, replug, suspended, touch,
    unload,
};
use super::outcome::{ABSENT, NOT_READABLE, absent, allowed, allowed_of};
use super::target::{GONE, Provider, TAIL, TAIL_TAG, Target, lock};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::injector::Injector;
use crate::mapping::{PAGE, Sharing};
use crate::nd::settle;
use crate::sectors::{Buffer, expect_same};
use crate::suites::notice;
use crate::sysfs;

/// One operation of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Map the file, read or write pages of it, and sleep.
    Touch,
    /// The same with a private mapping.
    TouchPrivate,
    /// Put pages of the file into a pipe, and read them out later.
    Pin,
    /// Read, write and sync the file.
    Calls,
    /// Read and write the end of the disk with `O_DIRECT`.
    Direct,
    /// Read attributes and the driver's debugfs files.
    Ask,
    /// Mount the file system: again, or after an unmount if its disk is gone.
    Mount,
    /// Unmount the file system.
    Unmount,
    /// Freeze the file system for a moment.
    Freeze,
    /// Create a device-mapper table on the disk for a moment.
    Map,
    /// Take a lease of a part of the disk behind the file system for a moment.
    Lease,
    /// Suspend the disk for a moment.
    Suspend,
    /// Change how long an unbind waits for the users of the device, or end that wait.
    Notice,
    /// Unbind the device.
    Unbind,
    /// Bind the device.
    Bind,
    /// Unbind the region.
    DisableRegion,
    /// Bind the region.
    EnableRegion,
    /// Remove the provider of a device with all its devices, and add it again.
    Replug,
    /// Make the region read-only for a moment.
    ReadOnly,
    /// Report a bad sector at the end of the disk, if the provider supports that.
    Badblock,
    /// Report a hardware memory error in a page of another file, if the provider supports that, and
    /// clear it the next time.
    Fail,
    /// Unmount everything, unload the driver if it is not in use, and load it.
    Reload,
}

use Step::*;

/// The steps of the users of devices. A step that is listed several times is more frequent.
pub const OF_USERS: &[Step] = &[
    Touch,
    Touch,
    Touch,
    TouchPrivate,
    Pin,
    Pin,
    Calls,
    Calls,
    Direct,
    Direct,
    Ask,
    Mount,
    Mount,
    Mount,
    Freeze,
];
/// The steps of the owners of devices.
pub const OF_OWNERS: &[Step] = &[
    Notice,
    Suspend,
    Suspend,
    Lease,
    Lease,
    Unbind,
    Bind,
    Bind,
    DisableRegion,
    EnableRegion,
    Replug,
    ReadOnly,
    Badblock,
    Fail,
    Fail,
    Reload,
    Mount,
    Mount,
    Mount,
    Mount,
    Mount,
    Unmount,
    Map,
    Ask,
];

const LONGEST_PAUSE_MS: u64 = 300;

/// A process that runs steps.
pub struct Worker<'a> {
    pub driver: Driver,
    pub targets: &'a [Target],
    pub random: ChaCha8Rng,
    /// The file with its log.
    pub step_log: PathBuf,
}

impl Worker<'_> {
    /// Runs `count` random steps of `choice`.
    pub fn work(mut self, choice: &[Step], count: u32) -> Result<()> {
        let mut step_log = OpenOptions::new().append(true).open(&self.step_log)?;
        let start = Instant::now();
        for _ in 0..count {
            let step = choice[self.random.random_range(0..choice.len())];
            let target = &self.targets[self.random.random_range(0..self.targets.len())];
            let at = start.elapsed().as_millis();
            write!(step_log, "{at:>7} ms {step:?} {}: ", target.name())?;
            // However many random numbers the step draws, the next one is the same.
            let random = ChaCha8Rng::from_rng(&mut self.random);
            let end = Acting {
                driver: self.driver,
                targets: self.targets,
                random,
            }
            .step(step, target)
            .with_context(|| format!("{step:?} of {}", target.name()));
            match &end {
                Ok(end) => writeln!(step_log, "{end}")?,
                Err(error) => writeln!(step_log, "{error:?}")?,
            }
            end?;
        }
        Ok(())
    }
}

/// The execution of one step.
struct Acting<'a> {
    driver: Driver,
    targets: &'a [Target],
    random: ChaCha8Rng,
}

impl Acting<'_> {
    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(0..LONGEST_PAUSE_MS))
    }

    /// Runs a step, and returns its result.
    fn step(&mut self, step: Step, target: &Target) -> Result<String> {
        let pause = self.pause();
        match step {
            Touch => touch(target, Sharing::Shared, self.random.random(), pause),
            TouchPrivate => touch(target, Sharing::Private, true, pause),
            Pin => pin(target, pause),
            Calls => allowed(calls(target), GONE),
            Direct => self.direct(target),
            Ask => self.ask(target),
            Mount => mount(target),
            Unmount => allowed(target.try_unmount(), &[Errno::EBUSY, Errno::EINVAL]),
            Freeze => frozen(target, pause),
            Map => mapped(target, pause),
            Lease => leased(target, pause),
            Suspend => suspended(target, pause),
            Notice => {
                let notice = if self.random.random() {
                    pause
                } else {
                    Duration::ZERO
                };
                allowed_of(notice::set_notice(notice), ABSENT)
            }
            Unbind => self.order(target, "unbind", &[Errno::ENODEV, Errno::ENOENT]),
            Bind => self.order(
                target,
                "bind",
                // The device is bound, in use, retired or claimed by its pfn device, or its region
                // is gone.
                &[Errno::ENODEV, Errno::EBUSY, Errno::ENXIO, Errno::ENOENT],
            ),
            DisableRegion => {
                let _lock = target.lock_region()?;
                match target.region() {
                    Ok(region) => allowed(region.try_unbind_region(), ABSENT),
                    Err(error) => absent(&error),
                }
            }
            EnableRegion => {
                let _lock = target.lock_region()?;
                enable(target)
            }
            Replug => {
                let _lock = target.lock_region()?;
                replug(target, pause)
            }
            ReadOnly => read_only(target, pause),
            Badblock => self.badblock(target),
            Fail => fail(target),
            Reload => self.reload(),
        }
    }

    fn order(&self, target: &Target, what: &str, right: &[Errno]) -> Result<String> {
        let device = match target.device() {
            Ok(device) => device,
            Err(error) => return absent(&error),
        };
        let order = Path::new("/sys/bus/nd/drivers")
            .join(self.driver.name())
            .join(what);
        allowed(sysfs::try_write(order, device.name()), right)
    }

    /// The offset of a page at the end of the disk, which is not part of the file system; none if
    /// the disk does not exist.
    fn in_tail(&mut self, disk: &Disk) -> Option<u64> {
        let pages = TAIL / 2 / PAGE as u64;
        let page = self.random.random_range(0..pages);
        let sectors: u64 = disk.get("size").ok()?.parse().ok()?;
        let start = (sectors * 512).checked_sub(TAIL / 2)?;
        Some(start + page * PAGE as u64)
    }

    fn direct(&mut self, target: &Target) -> Result<String> {
        let write = self.random.random();
        let disk = match target.disk() {
            Ok(disk) => disk,
            Err(error) => return absent(&error),
        };
        let Some(at) = self.in_tail(&disk) else {
            return Ok("absent".to_owned());
        };
        let work = || -> Result<()> {
            let file = disk.open(Access::Direct)?;
            let mut buffer = Buffer::stamped(PAGE, TAIL_TAG);
            if write {
                file.write_all_at(&buffer, at)?;
                file.sync_all()?;
            } else {
                let len = file.read_at(&mut buffer, at)?;
                // A removed disk reads as empty.
                ensure!(len == 0 || len == PAGE, "{len} bytes were read");
                expect_same(
                    "the end of the disk",
                    &buffer,
                    &Buffer::stamped(PAGE, TAIL_TAG),
                )?;
            }
            Ok(())
        };
        // The sector may be bad, the disk read-only, or its size zero because it was removed.
        let right = [
            &[Errno::ENODATA, Errno::EPERM, Errno::EACCES, Errno::ENOSPC],
            GONE,
        ]
        .concat();
        allowed_of(work(), &right)
    }

    fn badblock(&mut self, target: &Target) -> Result<String> {
        // Both of the same device: another device's data begin at another offset.
        let found = target
            .device()
            .and_then(|device| Ok((Disk::named(device.disk_name()?), device)));
        let (disk, device) = match found {
            Ok(found) => found,
            Err(error) => return absent(&error),
        };
        let Some(at) = self.in_tail(&disk) else {
            return Ok("absent".to_owned());
        };
        if target.provider != Provider::Injector {
            let order = format!("{} 1", at / 512);
            return allowed(sysfs::try_write(disk.path("badblocks"), &order), ABSENT);
        }
        let _lock = target.lock_failures()?;
        let start = match device.resource() {
            Ok(start) => start,
            Err(error) => return absent(&error),
        };
        allowed_of(Injector::attach().inject(start + at, 512), NOT_READABLE)
    }

    fn ask(&mut self, target: &Target) -> Result<String> {
        let driver = self.driver.name();
        let mut paths = vec![
            PathBuf::from(format!("/sys/kernel/debug/{driver}/devices")),
            PathBuf::from(format!("/sys/kernel/debug/{driver}/retired")),
            PathBuf::from("/proc/iomem"),
        ];
        if let Ok(device) = target.device() {
            for name in sysfs::names(device.path("")).unwrap_or_default() {
                paths.push(device.path(&name));
            }
            paths.push(device.path("pmem_rs/state"));
        }
        if let Ok(disk) = target.disk() {
            for name in [
                "badblocks",
                "stat",
                "size",
                "queue/dax",
                "dax/write_cache",
                "ro",
                "inflight",
            ] {
                paths.push(disk.path(name));
            }
        }
        let path = &paths[self.random.random_range(0..paths.len())];
        if !path.is_file() {
            return Ok("nothing to read".to_owned());
        }
        // Some attributes are write-only.
        let right = [&[Errno::EACCES], NOT_READABLE].concat();
        allowed(fs::read(path).map(drop), &right)
    }

    fn reload(&self) -> Result<String> {
        // modprobe does not wait for a module that is being unloaded.
        let _lock = lock("reload")?;
        for target in self.targets {
            allowed(target.try_unmount(), &[Errno::EBUSY, Errno::EINVAL])?;
        }
        let end = unload(self.driver.name())?;
        run("modprobe", &[self.driver.name()])?;
        settle()?;
        Ok(end)
    }
}
