// SPDX-License-Identifier: GPL-2.0

//! The operations of the steps.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, delete_module};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::outcome::{ABSENT, absent, allowed, allowed_of};
use super::target::{GONE, LEN, Provider, TAIL, Target, lock};
use crate::disk::Access;
use crate::dm::Mapped;
use crate::injector::Injector;
use crate::lessee::{self, Lessee};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::nd::{disable_provider, enable_provider, settle};
use crate::pci::VirtioPmem;
use crate::process::Child;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::suspend;
use crate::syscall::{freeze, thaw};
use crate::sysfs;

/// The number that is stored through a lease.
const STORED: u64 = 0x1122_3344_5566_7788;
/// How long one access to memory may take while the kernel is busy.
const ACCESS_LIMIT: Duration = Duration::from_secs(120);

pub fn mount(target: &Target) -> Result<String> {
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

pub fn open(target: &Target) -> Result<File> {
    Access::Buffered.open(&target.path("used"))
}

/// Accesses memory in a child process, which exits or is killed by SIGBUS.
pub fn touch(target: &Target, sharing: Sharing, write: bool, pause: Duration) -> Result<String> {
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

pub fn pin(target: &Target, pause: Duration) -> Result<String> {
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

pub fn calls(target: &Target) -> io::Result<()> {
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

pub fn fail(target: &Target) -> Result<String> {
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

pub fn frozen(target: &Target, pause: Duration) -> Result<String> {
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

pub fn mapped(target: &Target, pause: Duration) -> Result<String> {
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

/// Takes a lease, writes and reads a number through it, and gives it back, unless it was told to
/// before.
pub fn leased(target: &Target, pause: Duration) -> Result<String> {
    // The module of the holder keeps the driver loaded.
    let _lock = lock("reload")?;
    let disk = match target.disk() {
        Ok(disk) => disk,
        Err(error) => return absent(&error),
    };
    let [holder, _] = Lessee::load()?;
    let end = (|| {
        let Some(start) = disk.bytes()?.checked_sub(TAIL) else {
            return Ok("absent".to_owned());
        };
        // The disk may be mounted, read-only, suspended, leaving or gone.
        let right = [
            &[
                Errno::EBUSY,
                Errno::EOPNOTSUPP,
                Errno::EACCES,
                Errno::EINVAL,
            ],
            GONE,
        ]
        .concat();
        let end = allowed(holder.try_get_part(&disk, start, TAIL / 2), &right)?;
        if end != "done" {
            return Ok(end);
        }
        // The lease was given back, because the device leaves.
        let right = [&[Errno::EACCES], GONE].concat();
        let stored = allowed(holder.store(0, STORED), &right)?;
        sleep(pause);
        if stored == "done" {
            allowed(holder.load_number(0, STORED), &right)?;
            allowed(holder.peek(0, STORED), &right)?;
        }
        Ok(stored)
    })();
    lessee::unload()?;
    match end {
        Ok(end) => Ok(end),
        Err(error) => allowed_of(Err(error), ABSENT),
    }
}

/// Suspends the disk.
pub fn suspended(target: &Target, pause: Duration) -> Result<String> {
    let device = match target.device() {
        Ok(device) => device,
        Err(error) => return absent(&error),
    };
    let state = device.path(suspend::STATE);
    // A page is pinned, another process has suspended or resumed it, or it took too long; a file
    // system is shut down.
    let right = [
        &[
            Errno::EBUSY,
            Errno::ETIMEDOUT,
            Errno::ECANCELED,
            Errno::EINVAL,
        ],
        GONE,
    ]
    .concat();
    let end = allowed(sysfs::try_write(&state, "suspended"), &right)?;
    if end != "done" {
        return Ok(end);
    }
    sleep(pause);
    // Another process has resumed it or thawed its file system, or the device leaves.
    allowed(sysfs::try_write(&state, "live"), &right)
}

/// Binds the region again, and waits for its namespaces.
pub fn enable(target: &Target) -> Result<String> {
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
pub fn replug(target: &Target, pause: Duration) -> Result<String> {
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
pub fn unload(module: &str) -> Result<String> {
    let name = CString::new(module)?;
    let removed = delete_module(&name, DeleteModuleFlags::O_NONBLOCK);
    // It is in use, or is being loaded or unloaded.
    let right = [Errno::EAGAIN, Errno::EBUSY, Errno::ENOENT];
    allowed(removed.map_err(io::Error::from), &right)
}

pub fn read_only(target: &Target, pause: Duration) -> Result<String> {
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
