// SPDX-License-Identifier: GPL-2.0

//! The steps, and what each may fail with because others do theirs.

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

use super::target::{GONE, LEN, Provider, TAIL, TAIL_TAG, Target, turn};
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

/// What one process does at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Maps the file, reads or writes pages of it, and sleeps.
    Touch,
    /// As that, with a private mapping.
    TouchPrivate,
    /// Puts pages of the file into a pipe, and takes them out later.
    Pin,
    /// Reads and writes the file, and syncs it.
    Calls,
    /// Reads and writes the end of the disk with `O_DIRECT`.
    Direct,
    /// Asks for attributes, and for what the driver lists.
    Ask,
    /// Mounts it, perhaps once more, or in place of what has lost its disk.
    Mount,
    /// Unmounts it.
    Unmount,
    /// Freezes the file system for a moment.
    Freeze,
    /// Makes a device-mapper table of the disk for a moment.
    Map,
    /// Unbinds the device.
    Unbind,
    /// Binds it.
    Bind,
    /// Takes away the region.
    DisableRegion,
    /// Gives it back.
    EnableRegion,
    /// Takes away the provider of a device with all that is on it, and gives it back.
    Replug,
    /// Makes the region read-only for a moment.
    ReadOnly,
    /// A sector of the end of the disk is found bad, by the provider if it can find such a thing.
    Badblock,
    /// A page of another file fails under the CPU, if the provider can have that, and is healed the next time.
    Fail,
    /// Unmounts everything, unloads the driver, if nobody uses it then, and loads it.
    Reload,
}

use Step::*;

/// What those do who use the devices. Where a step comes more than once, it is done more often.
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
/// What those do who own them.
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

/// What the end of a step may be if the device is not there, or not so.
const ABSENT: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV];
/// The same of an attribute: a device that goes while one reads.
const NOT_READABLE: &[Errno] = &[Errno::ENOENT, Errno::ENXIO, Errno::ENODEV, Errno::EIO];
const LONGEST_PAUSE_MS: u64 = 300;
/// How long one access to memory may take, with the kernel at work for everybody else.
const ACCESS_LIMIT: Duration = Duration::from_secs(120);

/// A process that does steps.
pub struct Worker<'a> {
    pub driver: Driver,
    pub targets: &'a [Target],
    pub random: ChaCha8Rng,
    /// Where it writes what it does.
    pub diary: PathBuf,
}

impl Worker<'_> {
    /// Does so many steps of a choice.
    pub fn work(mut self, choice: &[Step], count: u32) -> Result<()> {
        let mut diary = OpenOptions::new().append(true).open(&self.diary)?;
        let start = Instant::now();
        for _ in 0..count {
            let step = choice[self.random.random_range(0..choice.len())];
            let target = &self.targets[self.random.random_range(0..self.targets.len())];
            let at = start.elapsed().as_millis();
            write!(diary, "{at:>7} ms {step:?} {}: ", target.name())?;
            // Whatever the step draws, the next one is the same.
            let random = ChaCha8Rng::from_rng(&mut self.random);
            let end = Acting {
                driver: self.driver,
                targets: self.targets,
                random,
            }
            .step(step, target)
            .with_context(|| format!("{step:?} of {}", target.name()));
            match &end {
                Ok(end) => writeln!(diary, "{end}")?,
                Err(error) => writeln!(diary, "{error:?}")?,
            }
            end?;
        }
        Ok(())
    }
}

/// A process that does one step.
struct Acting<'a> {
    driver: Driver,
    targets: &'a [Target],
    random: ChaCha8Rng,
}

impl Acting<'_> {
    fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(0..LONGEST_PAUSE_MS))
    }

    /// Does a step, and says how it ended.
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
                // It is bound, in use, retired, claimed by its pfn device, or its region is gone.
                &[Errno::ENODEV, Errno::EBUSY, Errno::ENXIO, Errno::ENOENT],
            ),
            DisableRegion => {
                let _turn = target.region_turn()?;
                match target.region() {
                    Ok(region) => allowed(region.try_unbind_region(), ABSENT),
                    Err(error) => absent(&error),
                }
            }
            EnableRegion => {
                let _turn = target.region_turn()?;
                enable(target)
            }
            Replug => {
                let _turn = target.region_turn()?;
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

    /// A page of the end of the disk, which is not the file system's; nothing if the disk is not there.
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
                // What has gone has no bytes any more.
                ensure!(len == 0 || len == PAGE, "{len} bytes were read");
                expect_same(
                    "the end of the disk",
                    &buffer,
                    &Buffer::stamped(PAGE, TAIL_TAG),
                )?;
            }
            Ok(())
        };
        // A sector may be bad, the disk read-only, or without any room because it has gone.
        let right = [
            &[Errno::ENODATA, Errno::EPERM, Errno::EACCES, Errno::ENOSPC],
            GONE,
        ]
        .concat();
        allowed_of(work(), &right)
    }

    fn badblock(&mut self, target: &Target) -> Result<String> {
        // Both of one device: another one's data begin elsewhere.
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
        let _turn = target.failure_turn()?;
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
        // Some can only be written to.
        let right = [&[Errno::EACCES], NOT_READABLE].concat();
        allowed(fs::read(path).map(drop), &right)
    }

    fn reload(&self) -> Result<String> {
        // modprobe does not wait for a module that is being unloaded.
        let _turn = turn("reload")?;
        for target in self.targets {
            allowed(target.try_unmount(), &[Errno::EBUSY, Errno::EINVAL])?;
        }
        let end = unload(self.driver.name())?;
        run("modprobe", &[self.driver.name()])?;
        settle()?;
        Ok(end)
    }
}

/// Checks the end of a step, and says in a word what it was.
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

/// The device could not be found. That is right if it is on its way, which other mistakes are not.
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
            // It may be mounted or held already, be read-only, or go just then. xfs does not mount what it
            // has mounted already.
            &[&[Errno::EBUSY, Errno::EINVAL, Errno::EACCES], GONE].concat(),
        ),
        Err(error) => absent(&error),
    }
}

fn open(target: &Target) -> Result<File> {
    Access::Buffered.open(&target.path("used"))
}

/// Accesses memory in a process of its own, which ends by itself or by SIGBUS.
fn touch(target: &Target, sharing: Sharing, write: bool, pause: Duration) -> Result<String> {
    let file = match open(target) {
        Ok(file) => file,
        Err(error) => return allowed_of(Err(error), GONE),
    };
    let right = stamped(LEN, 1);
    let mut child = Child::start("who touches memory", |_| {
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
        // There is no page any more.
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
    let _turn = target.failure_turn()?;
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
    // Instead of an access, which could end by a signal.
    if let Err(error) = mapping.lock() {
        return allowed(Err(error), &[Errno::ENOMEM, Errno::EAGAIN, Errno::EFAULT]);
    }
    let Ok(address) = mapping.physical(0) else {
        return Ok("unmapped meanwhile".to_owned());
    };
    // Who maps it would be told by a signal.
    drop(mapping);
    // It has failed before, is let go of just then, or has gone, and the provider perhaps as well.
    let right = [&[Errno::EHWPOISON, Errno::EBUSY, Errno::EIO], ABSENT].concat();
    allowed_of(Injector::attach().fail(address), &right)
}

fn frozen(target: &Target, pause: Duration) -> Result<String> {
    let dir = match File::open(&target.point) {
        Ok(dir) => dir,
        Err(error) => return allowed(Err(error), GONE),
    };
    // Somebody else has frozen it; nothing is mounted; its disk is gone.
    let right = [&[Errno::EBUSY, Errno::EOPNOTSUPP, Errno::EINVAL], GONE].concat();
    let end = allowed(freeze(&dir), &right)?;
    if end == "done" {
        sleep(pause);
        // A file system that is shut down may be thawed by that.
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
    // dmsetup tells no errno. The disk may be mounted, or gone.
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

/// Gives the region its namespaces back, and waits for them.
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

/// Takes the provider away, with whatever is mounted or mapped.
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
            // A file of its may not be open, since that does not keep it.
            let _turn = target.failure_turn()?;
            // What is bound keeps it.
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

/// Unloads a module, if nobody uses it.
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
