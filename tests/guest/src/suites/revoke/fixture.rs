// SPDX-License-Identifier: GPL-2.0

//! The stack of devices under test: a file system with DAX on a pmem disk, or on another device on
//! top of one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::syncfs;

use super::{Fs, Under};
use crate::command::run;
use crate::disk::Disk;
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::nd::Device;
use crate::retired::{self, TIMEOUT};
use crate::sectors::{expect_same, stamped};
use crate::syscall::{clone_file, is_dax};

/// The size of the file that is used during removal: two PMDs, so that in a stripe set it is on
/// both disks.
pub const LEN: usize = 2 * PMD;
/// The size of a file that is not accessed meanwhile.
const KEPT_LEN: usize = 1 << 20;

const USED_TAG: u64 = 1;
const KEPT_TAG: u64 = 2;

/// Where devices on top of a disk start: at a PMD. The last sectors belong to the partition table.
const START: u64 = 4096;
/// The size of these devices in sectors. Small enough for any namespace, large enough for xfs.
const SECTORS: u64 = 900_000;
const SECTORS_OF_STRIPE: u64 = 4096 * 100;

/// Skips a test on a kernel whose pages are larger than the blocks of `mkfs.erofs`.
pub fn need_erofs() -> Result<()> {
    if PAGE > 4096 {
        return Err(Skip("mkfs.erofs makes blocks of at most 4 KiB, which have no DAX").into());
    }
    Ok(())
}

impl Fs {
    /// The name that `mount -t` takes.
    pub fn kind(self) -> &'static str {
        match self {
            Fs::Ext4 | Fs::Ext4NoJournal => "ext4",
            Fs::Xfs | Fs::XfsRmap | Fs::XfsReflink => "xfs",
            Fs::Erofs => "erofs",
        }
    }

    /// Whether files can be written to.
    pub fn is_writable(self) -> bool {
        self != Fs::Erofs
    }

    /// Makes the file system. Files of erofs are made at the same time.
    fn make(self, node: &str) -> Result<()> {
        match self {
            Fs::Ext4 => Ext4.make_with(node, &[]),
            Fs::Ext4NoJournal => Ext4.make_with(node, &["-O", "^has_journal"]),
            Fs::Xfs => Xfs.make_with(node, &["-m", "rmapbt=0,reflink=0"]),
            Fs::XfsRmap => Xfs.make_with(node, &["-m", "rmapbt=1,reflink=0"]),
            Fs::XfsReflink => Xfs.make_with(node, &["-m", "rmapbt=1,reflink=1"]),
            Fs::Erofs => {
                need_erofs()?;
                let tree = Path::new("/tmp/tree");
                fs::create_dir_all(tree)?;
                write_files(tree)?;
                // Inline data have no DAX; other data are aligned for PMDs.
                let layout = ["--quiet", "-E", "noinline_data", "--dsunit=512"];
                run("mkfs.erofs", &[&layout[..], &[node, "/tmp/tree"]].concat()).map(drop)
            }
        }
    }

    /// Makes the file system and mounts it. It is empty, unless it is erofs.
    pub fn make_and_mount(self, node: &str) -> Result<Mount> {
        self.make(node)?;
        self.mount(node)
    }

    /// Mounts the file system with DAX.
    pub fn mount(self, node: &str) -> Result<Mount> {
        let options = if self.is_writable() {
            "dax=always"
        } else {
            "ro,dax=always"
        };
        Mount::new(self.kind(), node, options)
    }

    /// Checks an unmounted file system, without changing it.
    pub fn check(self, node: &str) -> Result<()> {
        match self {
            Fs::Ext4 | Fs::Ext4NoJournal => Ext4.check(node),
            Fs::Xfs | Fs::XfsRmap | Fs::XfsReflink => Xfs.check(node),
            Fs::Erofs => run("fsck.erofs", &[node]).map(drop),
        }
    }
}

impl Under {
    /// The number of regions that it needs.
    fn regions(self) -> u32 {
        if self == Under::Stripe { 2 } else { 1 }
    }
}

pub fn write_files(dir: &Path) -> Result<()> {
    fs::write(dir.join("kept"), stamped(KEPT_LEN, KEPT_TAG))?;
    fs::write(dir.join("used"), stamped(LEN, USED_TAG))?;
    Ok(())
}

/// A mounted file system with two durable files.
pub struct Fixture<'a> {
    pub lab: &'a Lab,
    pub fs: Fs,
    pub under: Under,
    /// The device of the file system, and the devices below.
    disk: Disk,
    over: Option<Mapped>,
    mount: Option<Mount>,
    /// The reservations at the start, for comparison at the end.
    iomem: String,
}

impl<'a> Fixture<'a> {
    /// Builds the whole stack.
    pub fn build(lab: &'a Lab, fs: Fs, under: Under) -> Result<Fixture<'a>> {
        Fixture::build_with_timeout(lab, fs, under, TIMEOUT)
    }

    /// As [`Fixture::build`], with this timeout of the driver for pinned pages.
    pub fn build_with_timeout(
        lab: &'a Lab,
        fs: Fs,
        under: Under,
        timeout: Duration,
    ) -> Result<Fixture<'a>> {
        retired::set_timeout(lab.driver, timeout)?;
        for region in 0..under.regions() {
            // Earlier fixtures may have left superblocks and partitions.
            let disk = lab.ready(region)?.disk;
            run("wipefs", &["-q", "-a", "-f", &disk.node_str()])?;
            run("blockdev", &["--rereadpt", &disk.node_str()])?;
        }
        let disk = lab.ready(0)?.disk;
        if under == Under::Partition {
            disk.cut(&format!("label: gpt\nstart={START}, size={SECTORS}\n"))?;
        }
        let mut fixture = Fixture {
            lab,
            fs,
            under,
            disk,
            over: None,
            mount: None,
            iomem: iomem()?,
        };
        fixture.stack()?;
        let node = fixture.disk.node_str();
        let mount = fs.make_and_mount(&node)?;
        if fs.is_writable() {
            write_files(&mount.path(""))?;
            if fs == Fs::XfsReflink {
                // The file under test shares all of its blocks with another one.
                fs::rename(mount.path("used"), mount.path("original"))?;
                let original = File::open(mount.path("original"))?;
                clone_file(&original, &File::create(mount.path("used"))?)
                    .context("sharing the blocks of a file")?;
            }
            syncfs(File::open(mount.path(""))?)?;
        }
        let used = mount.path("used");
        ensure!(is_dax(&used)?, "{} is not a DAX file", used.display());
        fixture.mount = Some(mount);
        Ok(fixture)
    }

    /// Finds the device for the file system, and makes it if it is a mapped one.
    fn stack(&mut self) -> Result<()> {
        let below = self.lab.ready(0)?.disk;
        let node = below.node_str();
        let table = match self.under {
            Under::Whole => {
                self.disk = below;
                return Ok(());
            }
            Under::Partition => {
                self.disk = below.partition(1);
                return Ok(());
            }
            Under::Linear => format!("0 {SECTORS} linear {node} {START}"),
            Under::Stripe => {
                let second = self.lab.ready(1)?.disk.node_str();
                let len = 2 * SECTORS_OF_STRIPE;
                format!("0 {len} striped 2 4096 {node} {START} {second} {START}")
            }
        };
        let over = Mapped::new("over", &table)?;
        self.disk = over.disk().clone();
        self.over = Some(over);
        Ok(())
    }

    /// The device in the first region to which the driver is bound, or was bound.
    pub fn bound(&self) -> Result<Device> {
        self.lab.holder_in(0)
    }

    /// The number of regions that it uses.
    pub fn regions(&self) -> u32 {
        self.under.regions()
    }

    /// The mount point.
    pub fn root(&self) -> Result<PathBuf> {
        self.path("")
    }

    /// Leaves the unmount to the caller.
    pub fn leave_mount(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.leave();
        }
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        let mount = self.mount.as_ref().context("nothing is mounted")?;
        Ok(mount.path(name))
    }

    /// Opens the file under test, for writing too if the file system is writable.
    pub fn open(&self) -> Result<File> {
        self.open_file("used")
    }

    fn open_file(&self, name: &str) -> Result<File> {
        let path = self.path(name)?;
        File::options()
            .read(true)
            .write(self.fs.is_writable())
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// Maps the file by PTEs.
    pub fn map(&self, sharing: Sharing) -> Result<Mapping> {
        let writable = self.fs.is_writable() || sharing == Sharing::Private;
        Ok(Mapping::of_pages(&self.open()?, LEN, sharing, writable)?)
    }

    /// Maps the file by PMDs.
    pub fn map_large(&self) -> Result<Mapping> {
        let file = self.open()?;
        Ok(if self.fs.is_writable() {
            Mapping::new(&file, LEN, Sharing::Shared)?
        } else {
            Mapping::read_only(&file, LEN, Sharing::Shared)?
        })
    }

    /// Maps the other file that shares the blocks, if there is one.
    pub fn map_original(&self) -> Result<Option<Mapping>> {
        if self.fs != Fs::XfsReflink {
            return Ok(None);
        }
        let file = self.open_file("original")?;
        Ok(Some(Mapping::of_pages(&file, LEN, Sharing::Shared, true)?))
    }

    /// Unmounts, but keeps the devices on top.
    pub fn unmount(&mut self) -> Result<()> {
        self.mount.take().map_or(Ok(()), Mount::unmount)
    }

    /// Unmounts, and removes the devices on top.
    pub fn remove_devices(&mut self) -> Result<()> {
        self.unmount()?;
        if let Some(over) = self.over.take() {
            over.remove()?;
        }
        Ok(())
    }

    /// After the device was added again: checks that everything is intact.
    pub fn expect_intact(mut self) -> Result<()> {
        self.stack()?;
        let node = self.disk.node_str();
        // The first mount replays the journal.
        let mount = self
            .fs
            .mount(&node)
            .context("mounting again after the device came back")?;
        let mut files = vec![("kept", KEPT_LEN, KEPT_TAG), ("used", LEN, USED_TAG)];
        if self.fs == Fs::XfsReflink {
            files.push(("original", LEN, USED_TAG));
        }
        for (name, len, tag) in files {
            let found = fs::read(mount.path(name))?;
            expect_same(&format!("the file `{name}`"), &found, &stamped(len, tag))?;
        }
        self.mount = Some(mount);
        let fs = self.fs;
        self.mount.take().context("not mounted")?.unmount()?;
        fs.check(&node)?;
        self.remove_devices()?;
        let iomem = iomem()?;
        ensure!(
            iomem == self.iomem,
            "/proc/iomem was\n{}and is\n{iomem}",
            self.iomem
        );
        Ok(())
    }
}

/// The contents of the file.
pub fn contents() -> Vec<u8> {
    stamped(LEN, USED_TAG)
}

/// The reservations, without the numbers of namespaces, which may change.
fn iomem() -> Result<String> {
    let text = fs::read_to_string("/proc/iomem").context("reading /proc/iomem")?;
    let lines = text
        .lines()
        .map(|line| match line.split_once(" : namespace") {
            Some((range, number)) => {
                let rest = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
                format!("{range} : namespace{rest}\n")
            }
            None => format!("{line}\n"),
        });
    Ok(lines.collect())
}
