// SPDX-License-Identifier: GPL-2.0

//! A device that is removed and added, with a file system on it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem;
use crate::injector::Injector;
use crate::lab::{Lab, holder};
use crate::mapping::PAGE;
use crate::nd::{Device, enable_all, settle};
use crate::ndctl::Mode;
use crate::pci::VirtioPmem;
use crate::process::Link;
use crate::sectors::{Buffer, expect_same, stamped};

/// The size of the file that is used.
pub const LEN: usize = 1 << 20;
/// The size of the part of the disk behind the file system.
pub const TAIL: u64 = 16 << 20;
/// The tag of each page in the second half of that part.
pub const TAIL_TAG: u64 = 5;
/// The errors of a file system whose disk is gone or read-only.
pub const GONE: &[Errno] = &[
    Errno::EIO,
    Errno::ENXIO,
    Errno::ENODEV,
    Errno::ENOENT,
    Errno::EROFS,
];
/// How long a concurrent operation may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The provider of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The module `injector`, whose media errors are injected.
    Injector,
    /// The firmware.
    Firmware,
    /// virtio-pmem.
    Virtio,
}

/// A region, which is identified by its address: its number changes whenever it is added.
pub struct Target {
    pub provider: Provider,
    address: u64,
    pub fs: FileSystem,
    pub point: PathBuf,
    /// The last number that is durable in the log.
    pub logged: u64,
}

impl Target {
    /// Makes the file system, on the region with this index in the order of addresses.
    pub fn make(lab: &Lab, index: u32, provider: Provider, fs: FileSystem) -> Result<Target> {
        let address = lab.region(index)?.resource()?;
        let disk = lab.prepare_in(index, Mode::FsdaxMem)?.disk;
        let target = Target {
            provider,
            address,
            fs,
            point: PathBuf::from(format!("/mnt/{index}")),
            logged: 0,
        };
        fs::create_dir_all(&target.point)?;
        let blocks = (disk.bytes()? - TAIL) / PAGE as u64;
        let node = disk.node_str();
        match fs {
            // The size comes after the node.
            FileSystem::Ext4 => {
                let layout = "stride=512,stripe_width=512,lazy_itable_init=0";
                let (page, blocks) = (PAGE.to_string(), blocks.to_string());
                let args = ["-q", "-F", "-b", &page, "-E", layout, &node, &blocks];
                crate::command::run("mkfs.ext4", &args)?;
            }
            FileSystem::Xfs => {
                let size = format!("size={}", blocks * PAGE as u64);
                fs.make_with(&node, &["-d", &size, "-m", "rmapbt=1,reflink=0"])?;
            }
        }
        let file = disk.open(Access::Direct)?;
        let page = Buffer::stamped(PAGE, TAIL_TAG);
        for at in (disk.bytes()? - TAIL / 2..disk.bytes()?).step_by(PAGE) {
            file.write_all_at(&page, at)?;
        }
        drop(file);
        target.mount()?;
        fs::write(target.path("used"), stamped(LEN, 1))?;
        fs::write(target.path("log"), [0; 8])?;
        fs::write(target.path("failing"), [1; PAGE])?;
        target.unmount_all()?;
        Ok(target)
    }

    pub fn name(&self) -> String {
        self.point.display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The region, if it exists.
    pub fn region(&self) -> Result<Device> {
        for region in Device::all_of("region")? {
            if region
                .resource()
                .is_ok_and(|address| address == self.address)
            {
                return Ok(region);
            }
        }
        bail!("no region is at {:#x}", self.address)
    }

    /// Takes the lock under which the region is bound and unbound. The kernel crashes if a region
    /// is unbound while its namespaces are being added (docs/kernel-bugs.md).
    pub fn lock_region(&self) -> Result<Flock<File>> {
        self.lock("region")
    }

    /// Takes the lock under which memory is made to fail and the module for that is unloaded. Such
    /// a failure would kill this process if it had that memory mapped.
    pub fn lock_failures(&self) -> Result<Flock<File>> {
        self.lock("failure")
    }

    /// Takes the device's lock of this name.
    fn lock(&self, what: &str) -> Result<Flock<File>> {
        lock(&format!("{what}-of{}", self.name().replace('/', "-")))
    }

    /// The device to which a driver is or can be bound.
    pub fn device(&self) -> Result<Device> {
        let region = self.region()?;
        let prefix = format!("{}.", region.name().replace("region", "namespace"));
        for namespace in Device::all_of(&prefix)? {
            if namespace.get("size")? != "0" {
                return holder(&namespace);
            }
        }
        bail!("{region} has no namespace")
    }

    pub fn disk(&self) -> Result<Disk> {
        Ok(Disk::named(self.device()?.disk_name()?))
    }

    /// Mounts the file system and returns the kernel's error unchanged. Returns `EBUSY` if there is
    /// still a file system of an earlier disk of this name: the kernel does not support two
    /// (docs/kernel-bugs.md).
    pub fn try_mount(&self) -> Result<io::Result<()>> {
        // No other process mounts it in between.
        let _lock = self.lock("mount")?;
        let disk = self.disk()?;
        let kind = Some(self.fs.name());
        let options = Some("dax=always");
        if self.is_known_as(&disk) {
            return Ok(Err(Errno::EBUSY.into()));
        }
        let result = mount(
            Some(&disk.node()),
            &self.point,
            kind,
            MsFlags::empty(),
            options,
        );
        Ok(result.map_err(io::Error::from))
    }

    /// Whether the kernel has a file system on a disk of this name, mounted or being shut down.
    fn is_known_as(&self, disk: &Disk) -> bool {
        let known = Path::new("/sys/fs").join(self.fs.name());
        let journal = format!("/proc/fs/jbd2/{}-8", disk.name());
        known.join(disk.name()).exists() || Path::new(&journal).exists()
    }

    /// Mounts the file system after its last user.
    pub fn mount(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_known_as(&self.disk()?) && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        self.try_mount()?
            .with_context(|| format!("mounting {}", self.name()))
    }

    /// Whether the mounted file system has lost its disk.
    pub fn is_dead(&self) -> bool {
        let read = fs::read(self.path("log"));
        read.is_err_and(|error| error.raw_os_error() == Some(Errno::EIO as i32))
    }

    pub fn try_unmount(&self) -> io::Result<()> {
        Ok(umount2(&self.point, MntFlags::empty())?)
    }

    /// Unmounts it as often as it is mounted.
    pub fn unmount_all(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match umount2(&self.point, MntFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EINVAL) => return Ok(()),
                // Its last user has just ended.
                Err(Errno::EBUSY) if Instant::now() < deadline => sleep(Duration::from_millis(50)),
                Err(error) => {
                    return Err(error).with_context(|| format!("unmounting {}", self.name()));
                }
            }
        }
    }

    /// Binds the device, whatever its state.
    pub fn bind(&self, lab: &Lab) -> Result<()> {
        self.region()?.set("read_only", "0")?;
        let device = self.device()?;
        // If the range was still in use when the namespace was added, no device has claimed it yet.
        // On virtio-pmem no device claims the namespace: it is bound itself.
        if device.driver().is_none() && device.name().starts_with("namespace") {
            if let Err(error) = device.try_bind(lab.driver) {
                errno::expect::<()>("binding the namespace", Err(error), &[Errno::ENXIO])?;
            }
            settle()?;
        }
        let device = self.device()?;
        if device.driver().is_none() {
            device.bind(lab.driver)?;
        }
        device.expect_driver(Some(lab.driver))
    }

    /// Writes increasing numbers durably until it is told to stop, and reports the last one that
    /// is.
    pub fn log(&self, mut number: u64, link: &mut Link) -> Result<()> {
        while !link.is_told_to_go()? {
            let next = number + 1;
            let written = Access::Buffered.open(&self.path("log")).and_then(|file| {
                file.write_all_at(&next.to_le_bytes(), 0)?;
                file.sync_all()?;
                Ok(())
            });
            match written {
                Ok(()) => number = next,
                Err(error) => {
                    ensure!(
                        errno::of(&error).is_some_and(|errno| GONE.contains(&errno)),
                        "logging failed with {error:?}, expected one of {GONE:?}"
                    );
                    sleep(Duration::from_millis(20));
                }
            }
        }
        link.say(&format!("logged {number}"))
    }

    /// Mounts the file system, and checks that all durable data are intact.
    pub fn expect_intact(&mut self) -> Result<()> {
        self.mount()?;
        expect_same(
            "the file that was used",
            &fs::read(self.path("used"))?,
            &stamped(LEN, 1),
        )?;
        let found = fs::read(self.path("log"))?;
        let found = <[u8; 8]>::try_from(&found[..]).context("the log is not a number")?;
        let found = u64::from_le_bytes(found);
        ensure!(
            found >= self.logged,
            "the log ends with {found}, and {} was acknowledged as durable",
            self.logged
        );
        self.logged = found;
        self.unmount_all()
    }

    /// Checks the file system by fsck.
    pub fn check(&self) -> Result<()> {
        self.fs.check(&self.disk()?.node_str())
    }
}

/// Takes the lock of this name.
pub fn lock(what: &str) -> Result<Flock<File>> {
    let file = File::create(format!("/tmp/{what}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("locking {what}"))
}

/// Adds providers, regions and the driver again.
pub fn bring_back(lab: &Lab) -> Result<()> {
    if !lab.driver.is_loaded() {
        lab.driver.load()?;
    }
    if !Injector::is_loaded() {
        Injector::new()?;
    }
    if VirtioPmem::all()?.is_empty() {
        VirtioPmem::rescan()?;
    }
    enable_all()?;
    settle()
}
