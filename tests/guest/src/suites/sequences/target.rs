// SPDX-License-Identifier: GPL-2.0

//! A device that comes and goes, with a file system on it.

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

/// The file that is used.
pub const LEN: usize = 1 << 20;
/// What of the disk is not the file system's.
pub const TAIL: u64 = 16 << 20;
/// What each page of the second half of that holds.
pub const TAIL_TAG: u64 = 5;
/// What a user of a file system may be told once its disk has gone, or cannot be written to.
pub const GONE: &[Errno] = &[
    Errno::EIO,
    Errno::ENXIO,
    Errno::ENODEV,
    Errno::ENOENT,
    Errno::EROFS,
];
/// How long anything may take that is under way.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Who provides a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The module `injector`, whose memory goes bad on demand.
    Injector,
    /// The firmware.
    Firmware,
    /// virtio-pmem.
    Virtio,
}

/// A region, which is known by its address: its number is another one whenever it comes back.
pub struct Target {
    pub provider: Provider,
    address: u64,
    pub fs: FileSystem,
    pub point: PathBuf,
    /// The last number that is known to be durable in the log.
    pub logged: u64,
}

impl Target {
    /// Makes the file system, on the region that comes at this place in the order of addresses.
    pub fn make(lab: &Lab, place: u32, provider: Provider, fs: FileSystem) -> Result<Target> {
        let address = lab.region(place)?.resource()?;
        let disk = lab.prepare_in(place, Mode::FsdaxMem)?.disk;
        let target = Target {
            provider,
            address,
            fs,
            point: PathBuf::from(format!("/mnt/{place}")),
            logged: 0,
        };
        fs::create_dir_all(&target.point)?;
        let blocks = (disk.bytes()? - TAIL) / 4096;
        let node = disk.node_str();
        match fs {
            // The size comes after the node.
            FileSystem::Ext4 => {
                let layout = "stride=512,stripe_width=512,lazy_itable_init=0";
                let blocks = blocks.to_string();
                let args = ["-q", "-F", "-b", "4096", "-E", layout, &node, &blocks];
                crate::command::run("mkfs.ext4", &args)?;
            }
            FileSystem::Xfs => {
                let size = format!("size={}", blocks * 4096);
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
        target.let_go()?;
        Ok(target)
    }

    pub fn name(&self) -> String {
        self.point.display().to_string()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.point.join(name)
    }

    /// The region, if it is there.
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

    /// Waits until nobody else takes the region away or gives it back, and keeps them from that. libnvdimm does not
    /// bear it if a region goes while its namespaces are being added (docs/kernel-bugs.md).
    pub fn region_turn(&self) -> Result<Flock<File>> {
        self.turn("region")
    }

    /// Waits until nobody else lets memory fail, which would be this process's if it had that mapped, or unloads the
    /// module that does it.
    pub fn failure_turn(&self) -> Result<Flock<File>> {
        self.turn("failure")
    }

    /// Waits for one's turn to do this to the device.
    fn turn(&self, what: &str) -> Result<Flock<File>> {
        turn(&format!("{what}-of{}", self.name().replace('/', "-")))
    }

    /// What is bound, or can be.
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

    /// Mounts it, and leaves the error as the kernel gave it. `EBUSY` if a file system is still there that was
    /// on an earlier disk of this name: the kernel does not bear two (docs/kernel-bugs.md).
    pub fn try_mount(&self) -> Result<io::Result<()>> {
        // Nobody else mounts it in between.
        let _turn = self.turn("mount")?;
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

    /// Whether the kernel has a file system on a disk of this name, mounted or about to go.
    fn is_known_as(&self, disk: &Disk) -> bool {
        let known = Path::new("/sys/fs").join(self.fs.name());
        let journal = format!("/proc/fs/jbd2/{}-8", disk.name());
        known.join(disk.name()).exists() || Path::new(&journal).exists()
    }

    /// Mounts it when nobody has it any more.
    pub fn mount(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.is_known_as(&self.disk()?) && Instant::now() < deadline {
            sleep(Duration::from_millis(20));
        }
        self.try_mount()?
            .with_context(|| format!("mounting {}", self.name()))
    }

    /// Whether what is mounted has lost its disk.
    pub fn is_dead(&self) -> bool {
        let read = fs::read(self.path("log"));
        read.is_err_and(|error| error.raw_os_error() == Some(Errno::EIO as i32))
    }

    pub fn try_unmount(&self) -> io::Result<()> {
        Ok(umount2(&self.point, MntFlags::empty())?)
    }

    /// Unmounts it for as often as it is mounted.
    pub fn let_go(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match umount2(&self.point, MntFlags::empty()) {
                Ok(()) => {}
                Err(Errno::EINVAL) => return Ok(()),
                // Who has used it has only just ended.
                Err(Errno::EBUSY) if Instant::now() < deadline => sleep(Duration::from_millis(50)),
                Err(error) => {
                    return Err(error).with_context(|| format!("unmounting {}", self.name()));
                }
            }
        }
    }

    /// Has it bound, in whatever state it is.
    pub fn bind(&self, lab: &Lab) -> Result<()> {
        self.region()?.set("read_only", "0")?;
        let device = self.device()?;
        // If the range was still in use when the namespace was there again, nobody has claimed it yet. What belongs
        // to virtio-pmem is nobody's to claim, and is bound itself.
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

    /// Writes ever larger numbers durably until it is told to stop, and says which was the last that is.
    pub fn log(&self, mut number: u64, link: &mut Link) -> Result<()> {
        while !link.is_told()? {
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

    /// Mounts it, and looks whether it holds what is known to be durable.
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
        self.let_go()
    }

    /// Looks at the file system as a whole.
    pub fn check(&self) -> Result<()> {
        self.fs.check(&self.disk()?.node_str())
    }
}

/// Waits for one's turn to do this.
pub fn turn(what: &str) -> Result<Flock<File>> {
    let file = File::create(format!("/tmp/{what}"))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("waiting for one's turn: {what}"))
}

/// Brings back providers, regions and the driver.
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
