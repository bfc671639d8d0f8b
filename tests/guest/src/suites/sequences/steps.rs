// SPDX-License-Identifier: GPL-2.0

//! The steps, and the errors that each may have because of concurrent steps.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::target::{GONE, LEN, Provider, TAIL, TAIL_TAG, Target, lock};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::driver::Driver;
use crate::errno;
use crate::injector::Injector;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::nd::{disable_provider, enable_provider, settle};
use crate::pci::VirtioPmem;
use crate::process::Child;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall::{freeze, thaw};
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

/// The errors of a step whose device does not exist or is in another state.
const ABSENT: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV];
/// The same for an attribute, whose device may be removed while it is read.
const NOT_READABLE: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV, Errno::EIO];
const LONGEST_PAUSE_MS: u64 = 300;
/// How long one access to memory may take while the kernel is busy.
const ACCESS_LIMIT: Duration = Duration::from_secs(120);

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

/// Checks the result of a step against the allowed errors, and returns it as a word.
fn allowed(result: io::Result<()>, right: &[Errno]) -> Result<String> {
    allowed_of(result.map_err(anyhow::Error::from), right)
}

fn allowed_of(result: Result<()>, right: &[Errno]) -> Result<String> {
    let Err(error) = result else {
        return Ok("done".to_owned());
    };
    match errno::of(&error) {
        Some(errno) if right.contains(&errno) => Ok(format!("{errno:?}")),
        _ => Err(error).with_context(|| format!("expected one of {right:?}")),
    }
}

/// Checks that an error means that the device was not found, which may happen while it is being
/// added.
fn absent(error: &anyhow::Error) -> Result<String> {
    match errno::of(error) {
        None => Ok("absent".to_owned()),
        Some(errno) if NOT_READABLE.contains(&errno) => Ok("absent".to_owned()),
        Some(errno) => bail!("looking for it ended with {errno:?}: {error:?}"),
    }
}

fn mount(target: &Target) -> Result<String> {
    if target.is_dead() {
        allowed(target.try_unmount(), &[Errno::EBUSY, Errno::EINVAL])?;
    }
    match target.try_mount() {
        Ok(result) => allowed(
            result,
            // The file system may be mounted or the disk held already, read-only, or just being
            // removed. xfs does not mount the same file system twice.
            &[&[Errno::EBUSY, Errno::EINVAL, Errno::EACCES], GONE].concat(),
        ),
        Err(error) => absent(&error),
    }
}

fn open(target: &Target) -> Result<File> {
    Access::Buffered.open(&target.path("used"))
}

/// Accesses memory in a child process, which exits or is killed by SIGBUS.
fn touch(target: &Target, sharing: Sharing, write: bool, pause: Duration) -> Result<String> {
    let file = match open(target) {
        Ok(file) => file,
        Err(error) => return allowed_of(Err(error), GONE),
    };
    let right = stamped(LEN, 1);
    let mut child = Child::start("the process that accesses the memory", |_| {
        let mapping = match Mapping::of_pages(&file, LEN, sharing, true) {
            Ok(mapping) => mapping,
            Err(error) => return allowed(Err(error), GONE).map(drop),
        };
        for round in 0..2 {
            for page in (0..LEN).step_by(PAGE) {
                if write {
                    mapping.store(page, right[page]);
                }
                ensure!(
                    mapping.load(page) == right[page],
                    "page {} is wrong",
                    page / PAGE
                );
            }
            if round == 0 {
                sleep(pause);
            }
        }
        Ok(())
    })?;
    match child.end(ACCESS_LIMIT)? {
        WaitStatus::Exited(_, 0) => Ok("done".to_owned()),
        WaitStatus::Signaled(_, Signal::SIGBUS, _) => Ok("SIGBUS".to_owned()),
        end => bail!("it ended with {end:?}"),
    }
}

fn pin(target: &Target, pause: Duration) -> Result<String> {
    let file = match open(target) {
        Ok(file) => file,
        Err(error) => return allowed_of(Err(error), GONE),
    };
    let mapping = match Mapping::of_pages(&file, PMD.min(LEN), Sharing::Shared, false) {
        Ok(mapping) => mapping,
        Err(error) => return allowed(Err(error), GONE),
    };
    let (reader, writer) = nix::unistd::pipe()?;
    let given = match mapping.give_to_pipe(0, 8 * PAGE, &writer) {
        Ok(given) => given,
        // The page is gone.
        Err(error) => return allowed(Err(error), &[Errno::EFAULT]),
    };
    drop((mapping, file));
    sleep(pause);
    let mut found = vec![0; given];
    File::from(reader).read_exact(&mut found)?;
    expect_same("what is in the pipe", &found, &stamped(LEN, 1)[..given])?;
    Ok("done".to_owned())
}

fn calls(target: &Target) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(target.path("used"))?;
    let right = stamped(LEN, 1);
    let mut found = vec![0; LEN];
    file.read_exact_at(&mut found, 0)?;
    if found != right {
        return Err(io::Error::other("the file holds something else"));
    }
    file.write_all_at(&right, 0)?;
    file.sync_all()
}

fn fail(target: &Target) -> Result<String> {
    if target.provider != Provider::Injector {
        return Ok("cannot fail".to_owned());
    }
    let _lock = target.lock_failures()?;
    let file = match File::options()
        .read(true)
        .write(true)
        .open(target.path("failing"))
    {
        Ok(file) => file,
        Err(error) => return allowed(Err(error), GONE),
    };
    if let Err(error) = file.write_all_at(&[1; PAGE], 0) {
        return allowed(Err(error), GONE);
    }
    let mapping = match Mapping::of_pages(&file, PAGE, Sharing::Shared, true) {
        Ok(mapping) => mapping,
        Err(error) => return allowed(Err(error), GONE),
    };
    // `mlock` stands for an access, which could end by a signal.
    if let Err(error) = mapping.lock() {
        return allowed(Err(error), &[Errno::ENOMEM, Errno::EAGAIN, Errno::EFAULT]);
    }
    let Ok(address) = mapping.physical(0) else {
        return Ok("unmapped meanwhile".to_owned());
    };
    // A process with a mapping would get a signal.
    drop(mapping);
    // The page has failed before, is just being freed, or is gone, perhaps with the provider.
    let right = [&[Errno::EHWPOISON, Errno::EBUSY, Errno::EIO], ABSENT].concat();
    allowed_of(Injector::attach().fail(address), &right)
}

fn frozen(target: &Target, pause: Duration) -> Result<String> {
    let dir = match File::open(&target.point) {
        Ok(dir) => dir,
        Err(error) => return allowed(Err(error), GONE),
    };
    // Another process has frozen it; nothing is mounted; or its disk is gone.
    let right = [&[Errno::EBUSY, Errno::EOPNOTSUPP, Errno::EINVAL], GONE].concat();
    let end = allowed(freeze(&dir), &right)?;
    if end == "done" {
        sleep(pause);
        // This may thaw a file system that is shut down.
        allowed(thaw(&dir), &[&[Errno::EINVAL], GONE].concat())?;
    }
    Ok(end)
}

fn mapped(target: &Target, pause: Duration) -> Result<String> {
    let disk = match target.disk() {
        Ok(disk) => disk,
        Err(error) => return absent(&error),
    };
    let name = format!("over-{}", std::process::id());
    let table = format!("0 8192 linear {} 0", disk.node_str());
    // dmsetup does not report an errno. The disk may be mounted, or gone.
    let Ok(over) = Mapped::new(&name, &table) else {
        return Ok("not made".to_owned());
    };
    let mut buffer = Buffer::new(PAGE);
    let read = over
        .disk()
        .open(Access::Direct)
        .and_then(|file| Ok(file.read_exact_at(&mut buffer, 0)?));
    sleep(pause);
    over.remove()?;
    allowed_of(read, GONE)
}

/// Binds the region again, and waits for its namespaces.
fn enable(target: &Target) -> Result<String> {
    let region = match target.region() {
        Ok(region) => region,
        Err(error) => return absent(&error),
    };
    let end = allowed(
        sysfs::try_write("/sys/bus/nd/drivers/nd_region/bind", region.name()),
        &[Errno::ENODEV, Errno::EBUSY, Errno::ENOENT, Errno::ENXIO],
    )?;
    settle()?;
    Ok(end)
}

/// Removes the provider, with whatever is mounted or mapped.
fn replug(target: &Target, pause: Duration) -> Result<String> {
    let region = match target.region() {
        Ok(region) => region,
        Err(error) => return absent(&error),
    };
    let right = [&[Errno::EBUSY], ABSENT].concat();
    let end = match target.provider {
        Provider::Virtio => {
            let virtio = VirtioPmem::all().unwrap_or_default();
            let Some(device) = virtio.iter().find(|device| device.region == region) else {
                return Ok("absent".to_owned());
            };
            let end = allowed_of(device.remove(), &right)?;
            sleep(pause);
            VirtioPmem::rescan().or_else(|error| absent(&error).map(drop))?;
            end
        }
        Provider::Firmware => {
            let end = allowed_of(disable_provider(), &right)?;
            sleep(pause);
            allowed_of(enable_provider(), &right)?;
            end
        }
        Provider::Injector => {
            // No file of the module may be open: an open debugfs file holds no reference.
            let _lock = target.lock_failures()?;
            // Bound regions hold a reference to it.
            allowed(region.try_unbind_region(), ABSENT)?;
            let end = unload(Injector::NAME)?;
            sleep(pause);
            if end == "done" {
                Injector::new()?;
            } else {
                return enable(target);
            }
            end
        }
    };
    settle()?;
    Ok(end)
}

/// Unloads a module, unless it is in use.
fn unload(module: &str) -> Result<String> {
    let name = CString::new(module)?;
    let removed = delete_module(&name, DeleteModuleFlags::O_NONBLOCK);
    // It is in use, or is being loaded or unloaded.
    let right = [Errno::EAGAIN, Errno::EBUSY, Errno::ENOENT];
    allowed(removed.map_err(io::Error::from), &right)
}

fn read_only(target: &Target, pause: Duration) -> Result<String> {
    let set = |value: &str| -> Result<String> {
        match target.region() {
            Ok(region) => allowed_of(
                region.set("read_only", value),
                &[&[Errno::EBUSY], ABSENT].concat(),
            ),
            Err(error) => absent(&error),
        }
    };
    let end = set("1")?;
    sleep(pause);
    set("0")?;
    Ok(end)
}
