// SPDX-License-Identifier: GPL-2.0

//! A machine whose power is cut in the middle of writes, repeatedly.
//!
//! Writers tell the host which writes are durable, until the runner kills the guest at a random
//! time. The next boot recovers, reports everything on the medium to the host, and goes on writing.
//! The host has both reports and compares them.

mod block;
mod port;
mod writer;

use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::block::{BLOCK, Content, Slot};
use self::port::Port;
use self::writer::{Home, LEN, Way, Writer};
use super::{Suite, Test};
use crate::disk::Disk;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, holder};
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::syscall::is_dax;

/// The first boot of a campaign.
pub const FIRST: Suite = Suite {
    name: "crash_first",
    tests: &[Test::step("makes_and_writes", first).within(LIMIT)],
};

/// The boots between the first and the last.
pub const AGAIN: Suite = Suite {
    name: "crash_again",
    tests: &[Test::step("checks_and_writes", again).within(LIMIT)],
};

/// The last boot, which is not killed.
pub const LAST: Suite = Suite {
    name: "crash_last",
    tests: &[Test::new("checks", last).within(LIMIT)],
};

/// Longer than any boot takes.
const LIMIT: u64 = 300;
/// How long a writer may take to end after it was told to, or after its device was removed.
const WRITERS_LIMIT: Duration = Duration::from_secs(40);
/// How long a range may stay busy after its last user.
const FREE_LIMIT: Duration = Duration::from_secs(5);
/// How long writers run before their device is removed, at most.
const MOST_WORK_MS: u64 = 600;
/// In one of this many boots a device is removed and added again before the writers go on.
const UNBIND_EVERY: u64 = 3;

/// Two partitions, each of which starts at a multiple of 2 MiB.
const PARTITIONS: &str = "label: gpt\nstart=4096, size=524288\nstart=528384, size=409600\n";
/// The offset of the first writer's blocks on a disk.
const ON_DISK: u64 = 64 << 20;

/// What is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum VolumeKind {
    /// An ext4 with DAX, on a partition.
    Ext4,
    /// An ext4 without DAX, on another partition of the same disk.
    Cached,
    /// An xfs with DAX.
    Xfs,
    /// A raw namespace, as a disk.
    Raw,
    /// A namespace with a btt, as a disk.
    Sector,
}

const PLACES: &[VolumeKind] = &[
    VolumeKind::Ext4,
    VolumeKind::Cached,
    VolumeKind::Xfs,
    VolumeKind::Raw,
    VolumeKind::Sector,
];

const WRITERS: &[(VolumeKind, Way)] = &[
    (VolumeKind::Ext4, Way::Fsync),
    (VolumeKind::Ext4, Way::Fdatasync),
    (VolumeKind::Ext4, Way::Dsync),
    (VolumeKind::Ext4, Way::Msync),
    (VolumeKind::Ext4, Way::MapSync),
    (VolumeKind::Ext4, Way::Rename),
    (VolumeKind::Xfs, Way::Fsync),
    (VolumeKind::Xfs, Way::Fdatasync),
    (VolumeKind::Xfs, Way::Dsync),
    (VolumeKind::Xfs, Way::Msync),
    (VolumeKind::Xfs, Way::MapSync),
    (VolumeKind::Xfs, Way::Rename),
    (VolumeKind::Cached, Way::Fsync),
    (VolumeKind::Cached, Way::Dsync),
    (VolumeKind::Cached, Way::DirectDsync),
    (VolumeKind::Cached, Way::Msync),
    // If the host believed this one, its other verdicts would mean nothing.
    (VolumeKind::Cached, Way::Lie),
    (VolumeKind::Raw, Way::Fsync),
    (VolumeKind::Raw, Way::DirectDsync),
    (VolumeKind::Raw, Way::DirectFdatasync),
    (VolumeKind::Sector, Way::DirectDsync),
    (VolumeKind::Sector, Way::DirectFdatasync),
];

/// What the host expects of a writer: that blocks may be torn while they are written, that they are
/// never torn, or that it lies.
fn duty(kind: VolumeKind, way: Way) -> &'static str {
    match (kind, way) {
        (_, Way::Lie) => "lies",
        // After a rename there is the whole old file or the whole new one.
        (VolumeKind::Sector, _) | (_, Way::Rename) => "whole",
        _ => "torn",
    }
}

impl VolumeKind {
    fn region(self) -> u32 {
        match self {
            VolumeKind::Ext4 | VolumeKind::Cached => 0,
            VolumeKind::Xfs => 1,
            VolumeKind::Raw => 2,
            VolumeKind::Sector => 3,
        }
    }

    /// The file system, and its mount options.
    fn file_system(self) -> Option<(FileSystem, &'static str)> {
        match self {
            VolumeKind::Ext4 => Some((Ext4, "dax=always")),
            VolumeKind::Cached => Some((Ext4, "dax=never")),
            VolumeKind::Xfs => Some((Xfs, "dax=always")),
            VolumeKind::Raw | VolumeKind::Sector => None,
        }
    }
}

/// A volume of this machine.
struct Volume {
    kind: VolumeKind,
    bound: Device,
    node: String,
}

/// A volume that can be written to.
struct Open<'a> {
    volume: &'a Volume,
    mount: Option<Mount>,
}

impl Volume {
    /// Finds what the first boot has made.
    fn find(lab: &Lab, kind: VolumeKind) -> Result<Volume> {
        let bound = holder(&lab.namespace(kind.region())?)?;
        bound.expect_driver(Some(lab.driver))?;
        let disk = Disk::named(bound.disk_name()?);
        let disk = match kind {
            VolumeKind::Ext4 => disk.partition(1),
            VolumeKind::Cached => disk.partition(2),
            _ => disk,
        };
        let node = disk.node_str();
        Ok(Volume { kind, bound, node })
    }

    fn find_all(lab: &Lab) -> Result<Vec<Volume>> {
        let volumes = PLACES.iter().map(|&kind| Volume::find(lab, kind));
        volumes.collect()
    }

    fn open(&self) -> Result<Open<'_>> {
        let mount = match self.kind.file_system() {
            Some((fs, options)) => Some(fs.mount(&self.node, options)?),
            None => None,
        };
        Ok(Open {
            volume: self,
            mount,
        })
    }
}

impl Open<'_> {
    /// The writers of the volume, by number.
    fn writers(&self) -> impl Iterator<Item = (usize, Way)> {
        let kind = self.volume.kind;
        let all = WRITERS.iter().enumerate();
        all.filter_map(move |(id, &(home, way))| (home == kind).then_some((id, way)))
    }

    /// The location of a writer's blocks.
    fn home(&self, id: usize, way: Way) -> Home {
        match &self.mount {
            Some(mount) if way == Way::Rename => Home::Directory(mount.path(&name_of(id))),
            Some(mount) => Home::File {
                path: mount.path(&name_of(id)),
                start: 0,
            },
            None => Home::File {
                path: Path::new(&self.volume.node).to_owned(),
                start: ON_DISK + (id * LEN) as u64,
            },
        }
    }

    /// Makes the empty files of all writers.
    fn make_files(&self) -> Result<()> {
        if self.mount.is_none() {
            return Ok(());
        }
        for (id, way) in self.writers() {
            let home = self.home(id, way);
            home.make()?;
            if let Home::File { path, .. } = home {
                let dax = is_dax(&path)?;
                ensure!(
                    dax == (self.volume.kind != VolumeKind::Cached),
                    "{}: DAX is {dax}",
                    path.display()
                );
            }
        }
        Ok(())
    }

    fn close(self) -> Result<()> {
        self.mount.map_or(Ok(()), Mount::unmount)
    }
}

fn name_of(id: usize) -> String {
    let (kind, way) = WRITERS[id];
    format!("{kind:?}_{way:?}").to_lowercase()
}

/// One boot of a campaign.
struct Boot<'a> {
    lab: &'a mut Lab,
    port: Port,
    /// The last write of each writer that is on the medium.
    last: Vec<u32>,
}

fn first(lab: &mut Lab) -> Result<()> {
    let disk = lab
        .prepare_in(VolumeKind::Ext4.region(), Mode::FsdaxMem)?
        .disk;
    disk.cut(PARTITIONS)?;
    lab.prepare_in(VolumeKind::Xfs.region(), Mode::FsdaxMem)?;
    lab.prepare_in(VolumeKind::Raw.region(), Mode::Raw)?;
    lab.prepare_in(VolumeKind::Sector.region(), Mode::Sector)?;
    let volumes = Volume::find_all(lab)?;
    for volume in &volumes {
        if let Some((fs, _)) = volume.kind.file_system() {
            fs.make(&volume.node)?;
        }
        let open = volume.open()?;
        open.make_files()?;
        open.close()?;
    }
    let mut boot = Boot::new(lab)?;
    boot.check(&volumes)?;
    boot.write_for_ever(&volumes)
}

fn again(lab: &mut Lab) -> Result<()> {
    let volumes = Volume::find_all(lab)?;
    let round = lab.round;
    let mut boot = Boot::new(lab)?;
    boot.check(&volumes)?;
    boot.start_one_anew(&volumes, round)?;
    if round % UNBIND_EVERY == UNBIND_EVERY - 1 {
        boot.remove_one(&volumes)?;
        boot.check(&volumes)?;
    }
    boot.write_for_ever(&volumes)
}

fn last(lab: &mut Lab) -> Result<()> {
    let volumes = Volume::find_all(lab)?;
    Boot::new(lab)?.check(&volumes)
}

impl Boot<'_> {
    fn new(lab: &mut Lab) -> Result<Boot<'_>> {
        let mut port = Port::open()?;
        for (id, &(kind, way)) in WRITERS.iter().enumerate() {
            port.writer(id, &name_of(id), duty(kind, way))?;
        }
        Ok(Boot {
            lab,
            port,
            last: vec![0; WRITERS.len()],
        })
    }

    /// Reports everything on the medium to the host after the file systems have recovered, and
    /// checks these.
    fn check(&mut self, volumes: &[Volume]) -> Result<()> {
        self.port.checking()?;
        for volume in volumes {
            let open = volume.open()?;
            for (id, way) in open.writers() {
                self.last[id] = self.last[id].max(self.report(id, &open.home(id, way))?);
            }
            open.close()?;
        }
        self.port.checked()?;
        for volume in volumes {
            if let Some((fs, _)) = volume.kind.file_system() {
                fs.check(&volume.node)?;
            }
        }
        Ok(())
    }

    /// Reports the blocks of a writer to the host, and returns its last write that is on the
    /// medium.
    fn report(&mut self, id: usize, home: &Home) -> Result<u32> {
        let bytes = home
            .read()
            .with_context(|| format!("reading what {} has written", name_of(id)))?;
        let mut last = 0;
        for (block, bytes) in (0..).zip(bytes.chunks_exact(BLOCK)) {
            let slot = Slot {
                seed: self.lab.seed,
                writer: id as u32,
                block,
            };
            match slot.classify(bytes) {
                Content::Written { newest: 0, .. } => {}
                Content::Written { oldest, newest } => {
                    self.port.found(id, block, oldest, newest)?;
                    last = last.max(newest);
                }
                Content::Damaged { at } => self.port.damaged(id, block, at)?,
            }
        }
        Ok(last)
    }

    /// Makes one writer start from an empty file, so that space is allocated again.
    fn start_one_anew(&mut self, volumes: &[Volume], round: u64) -> Result<()> {
        let id = (round % WRITERS.len() as u64) as usize;
        let (kind, way) = WRITERS[id];
        let volume = volumes.iter().find(|volume| volume.kind == kind);
        let open = volume.context("a volume that does not exist")?.open()?;
        if open.mount.is_some() {
            self.port.forget(id)?;
            let home = open.home(id, way);
            home.remove()?;
            home.make()?;
        }
        open.close()
    }

    fn start_writers(&mut self, open: &[Open<'_>]) -> Result<Vec<(VolumeKind, Way, Child)>> {
        let mut children = Vec::new();
        for open in open {
            for (id, way) in open.writers() {
                let writer = Writer {
                    id,
                    seed: self.lab.seed,
                    way,
                    home: open.home(id, way),
                    last: self.last[id],
                    random: ChaCha8Rng::from_rng(&mut self.lab.random),
                };
                let child = Child::start_ready(name_of(id), |link| writer.work(link))?;
                children.push((open.volume.kind, way, child));
            }
        }
        Ok(children)
    }

    /// Removes a device while writers run, and adds it again.
    fn remove_one(&mut self, volumes: &[Volume]) -> Result<()> {
        let victim = volumes.choose(&mut self.lab.random).context("no volumes")?;
        let open = volumes
            .iter()
            .map(Volume::open)
            .collect::<Result<Vec<_>>>()?;
        let children = self.start_writers(&open)?;
        let work = self.lab.random.random_range(0..MOST_WORK_MS);
        sleep(Duration::from_millis(work));

        victim.bound.unbind()?;
        println!("{} is gone after {work} ms", victim.bound);
        for (kind, way, mut child) in children {
            if kind.region() != victim.kind.region() {
                child.go()?;
                child.hear("stopped", WRITERS_LIMIT)?;
                child.expect_done(WRITERS_LIMIT)?;
                continue;
            }
            let end = child.end(WRITERS_LIMIT)?;
            let right = match end {
                WaitStatus::Exited(_, code) => code == 0,
                WaitStatus::Signaled(_, signal, _) => way.maps() && signal == Signal::SIGBUS,
                _ => false,
            };
            ensure!(
                right,
                "{kind:?} {way:?} ended with {end:?} when its device was gone"
            );
        }
        for open in open {
            open.close()?;
        }
        retired::await_none(FREE_LIMIT)?;
        expect_no_thread_stuck()?;
        victim.bound.bind(self.lab.driver)
    }

    /// Writes until the power is cut.
    fn write_for_ever(&mut self, volumes: &[Volume]) -> Result<()> {
        let open = volumes
            .iter()
            .map(Volume::open)
            .collect::<Result<Vec<_>>>()?;
        let mut children = self.start_writers(&open)?;
        self.port.at_work()?;
        loop {
            for (kind, way, child) in &mut children {
                if let Some(end) = child.try_end()? {
                    bail!("{kind:?} {way:?} ended with {end:?}");
                }
            }
            sleep(Duration::from_millis(50));
        }
    }
}
