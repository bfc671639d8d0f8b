// SPDX-License-Identifier: GPL-2.0

//! Bind and unbind of a device, and the memory it takes while it is bound.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::measure::{Work, report};
use super::pair::{Pair, Side};
use crate::disk::Disk;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PMD, Sharing};
use crate::process::Child;
use crate::stacked::Loop;
use crate::sysfs;

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Bind,
    Unbind,
}

struct Rebind {
    side: Side,
    step: Step,
}

impl Rebind {
    fn is_bound(&self) -> bool {
        self.side.bound.driver().is_some()
    }

    fn set_bound(&self, bound: bool) -> Result<()> {
        match (bound, self.is_bound()) {
            (true, false) => self.side.bound.bind(self.side.driver),
            (false, true) => self.side.bound.unbind(),
            _ => Ok(()),
        }
    }
}

impl Work for Rebind {
    fn prepare(&mut self) -> Result<()> {
        self.set_bound(self.step == Step::Unbind)
    }

    fn run(&mut self, _: u32) -> Result<()> {
        self.set_bound(self.step == Step::Bind)
    }
}

/// Binds or unbinds an idle device of `mib` MiB, by sysfs.
pub fn rebind(side: &Side, step: Step, mib: u64) -> Result<Box<dyn Work>> {
    rebind_whole(&side.resized(mib)?, step)
}

/// Binds or unbinds an idle device as it is.
pub fn rebind_whole(side: &Side, step: Step) -> Result<Box<dyn Work>> {
    let side = side.clone();
    Ok(Box::new(Rebind { side, step }))
}

/// What there is beside a device that is unbound.
#[derive(Clone, Copy)]
pub enum Beside {
    Nothing,
    /// So many inodes of an ext4 on a loop device.
    Inodes(usize),
    /// A file of the other device, of so many MiB, mapped in pages of 4 KiB.
    Mapped(usize),
}

/// What keeps the things beside the device. The fields are dropped in this order.
struct Kept {
    user: Option<Child>,
    _mount: Option<Mount>,
    _below: Option<Loop>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(user) = &mut self.user {
            // If it does not end, the file system cannot be unmounted, and the next case fails.
            let _ = user.go();
            let _ = user.expect_done(Duration::from_secs(30));
        }
    }
}

impl Beside {
    fn make(self, disk: &Disk) -> Result<Kept> {
        match self {
            Beside::Nothing => Ok(Kept {
                user: None,
                _mount: None,
                _below: None,
            }),
            Beside::Inodes(count) => {
                let image = PathBuf::from("/tmp/inodes");
                File::create(&image)?.set_len(512 << 20)?;
                let below = Loop::new(&image)?;
                let node = below.disk().node_str();
                Ext4.make_with(&node, &["-O", "^has_journal,^metadata_csum"])?;
                let mount = Ext4.mount(&node, "noatime")?;
                make_files(mount.point(), count)?;
                Ok(Kept {
                    user: None,
                    _mount: Some(mount),
                    _below: Some(below),
                })
            }
            Beside::Mapped(mib) => {
                let disks = Disk::all("pmem")?;
                let other = disks.iter().find(|other| *other != disk);
                let node = other.context("there is one pmem disk only")?.node_str();
                Ext4.make(&node)?;
                let mount = Ext4.mount(&node, "dax=always")?;
                let path = mount.path("file");
                let mut user = Child::start("the process with the mapping", |link| {
                    let _mapping = Mapping::of_new_file(&path, mib << 20)?;
                    link.say("ready")?;
                    link.wait()
                })?;
                user.hear("ready", FAULTS_LIMIT)?;
                Ok(Kept {
                    user: Some(user),
                    _mount: Some(mount),
                    _below: None,
                })
            }
        }
    }
}

/// Makes empty files.
pub fn make_files(root: &Path, count: usize) -> Result<()> {
    const IN_DIRECTORY: usize = 10_000;
    for first in (0..count).step_by(IN_DIRECTORY) {
        let directory = root.join(format!("d{first}"));
        fs::create_dir(&directory)?;
        for number in first..count.min(first + IN_DIRECTORY) {
            let path = directory.join(number.to_string());
            mknod(&path, SFlag::S_IFREG, Mode::S_IRUSR, 0)?;
        }
    }
    Ok(())
}

/// The unbinding of a device of which a part was exposed, and that is idle.
struct UnbindExposed {
    rebind: Rebind,
    len: usize,
    _kept: Kept,
}

impl Work for UnbindExposed {
    fn prepare(&mut self) -> Result<()> {
        self.rebind.prepare()?;
        let mount = Ext4.mount(&self.rebind.side.disk.node_str(), "dax=always")?;
        let path = mount.path("file");
        let file = File::options().read(true).write(true).open(path)?;
        let mapping = Mapping::new(&file, self.len, Sharing::Shared)?;
        for offset in (0..self.len).step_by(PMD) {
            mapping.load(offset);
        }
        drop((mapping, file));
        mount.unmount()
    }

    fn run(&mut self, operations: u32) -> Result<()> {
        self.rebind.run(operations)
    }
}

impl Drop for UnbindExposed {
    fn drop(&mut self) {
        // If it fails, the next case says so.
        let _ = self.rebind.set_bound(true);
    }
}

/// Unbinds an idle device of which `mib` MiB were exposed, beside something else.
pub fn unbind_exposed(side: &Side, mib: usize, beside: Beside) -> Result<Box<dyn Work>> {
    let node = side.disk.node_str();
    let len = mib << 20;
    let mut rebind = Rebind {
        side: side.clone(),
        step: Step::Unbind,
    };
    rebind.prepare()?;
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    drop(Mapping::of_new_file(&mount.path("file"), len)?);
    mount.unmount()?;
    Ok(Box::new(UnbindExposed {
        rebind,
        len,
        _kept: beside.make(&side.disk)?,
    }))
}

/// How long the page faults may take.
const FAULTS_LIMIT: Duration = Duration::from_secs(200);
/// The number of rounds in one boot.
const ROUNDS: usize = 2;

/// Unbinds while a process has `mib` MiB of a file mapped by pages of 4 KiB. The in-tree driver
/// does not survive that.
pub fn unbind_mapped(lab: &Lab, name: &str, mib: usize) -> Result<()> {
    let len = mib << 20;
    let side = Pair::ready(lab)?.pmem_rs;
    let node = side.disk.node_str();
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        let path = mount.path("file");
        let mut user = Child::start("the process with the mapping", |link| {
            let _mapping = Mapping::of_new_file(&path, len)?;
            link.say("ready")?;
            link.wait()
        })?;
        user.hear("ready", FAULTS_LIMIT)?;
        let start = Instant::now();
        side.bound.unbind()?;
        rounds.push([None, Some(start.elapsed().as_nanos() as f64)]);
        user.go()?;
        user.expect_done(Duration::from_secs(30))?;
        mount.unmount()?;
        side.bound.bind(side.driver)?;
    }
    report(name, "time", "ns", rounds)
}

/// The memory that the kernel accounts for separately: not the struct pages, which depend on the
/// device only.
fn memory() -> Result<f64> {
    // The first round keeps recently used objects.
    for _ in 0..2 {
        sysfs::write("/proc/sys/vm/drop_caches", "3")?;
    }
    for cache in sysfs::names("/sys/kernel/slab")? {
        sysfs::write(format!("/sys/kernel/slab/{cache}/shrink"), "1")?;
    }
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next());
        Ok(number.with_context(|| format!("no {name}"))?.parse()?)
    };
    Ok(field("Slab:")? + field("VmallocUsed:")? + field("Percpu:")?)
}

/// How much more memory is in use while a device is bound: slab caches, vmalloc and per-CPU memory.
pub fn memory_of_a_device(lab: &Lab, name: &str) -> Result<()> {
    if lab.namespaces.is_some() {
        return Err(Skip("other programs allocate meanwhile").into());
    }
    let pair = Pair::ready(lab)?;
    let taken = |side: &Side| -> Result<Option<f64>> {
        side.bound.unbind()?;
        let before = memory()?;
        side.bound.bind(side.driver)?;
        Ok(Some(memory()? - before))
    };
    // The first bind allocates things that stay.
    for side in pair.sides() {
        taken(side)?;
    }
    let [theirs, ours] = pair.sides();
    let rounds = (0..super::measure::ROUNDS)
        .map(|_| Ok([taken(theirs)?, taken(ours)?]))
        .collect::<Result<Vec<_>>>()?;
    report(name, "count", "KiB", rounds)
}
