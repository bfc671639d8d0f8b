// SPDX-License-Identifier: GPL-2.0

//! What unbind costs beside things that have nothing to do with the device, and how its cost grows
//! with what is used.
//!
//! The suite `scale` counts what unbind looks at, and is small enough for each run. `scale_large`
//! has a million inodes and a file of 4 GiB, and compares times.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;

use super::bench::make_files;
use super::{Suite, Test};
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::ndctl::Mode::FsdaxMem;
use crate::process::Child;
use crate::retired;
use crate::stacked::Loop;
use crate::tracing::CallCount;

const MIB: usize = 1 << 20;

pub const SUITE: Suite = Suite {
    name: "scale",
    tests: &[
        Test::new("inodes_of_other_file_systems", |lab| {
            beside_inodes(lab, &SMALL)
        }),
        Test::new("pages_of_another_device", |lab| beside_pages(lab, &SMALL)),
        Test::new("inodes_while_a_table_is_above", inodes_while_stacked),
        Test::new("pins_that_go_one_by_one", pins_one_by_one),
        Test::new("scattered_pages", scattered),
    ],
};

/// Run by name only.
pub const LARGE_SUITE: Suite = Suite {
    name: "scale_large",
    tests: &[
        Test::new("sixteen_mib_mapped", sixteen_mib).within(120),
        Test::new("inodes_of_other_file_systems", |lab| {
            beside_inodes(lab, &LARGE)
        })
        .within(1800),
        Test::new("pages_of_another_device", |lab| beside_pages(lab, &LARGE)).within(1800),
    ],
};

/// What there is beside the device.
struct Beside {
    /// The number of inodes of each of four file systems.
    inodes: usize,
    /// The size of a file of another device, in pages of 4 KiB.
    mapped: usize,
    /// How often an unbind is timed, without it and with it.
    rounds: usize,
}

const SMALL: Beside = Beside {
    inodes: 4_000,
    mapped: 64 * MIB,
    rounds: 0,
};
const LARGE: Beside = Beside {
    inodes: 250_000,
    mapped: 4096 * MIB,
    rounds: ROUNDS,
};

/// The size of the file by which the device is exposed.
const EXPOSED: usize = 64 * MIB;
/// How often an unbind is timed.
const ROUNDS: usize = 5;
/// The number of calls that other threads may make meanwhile.
const FEW: usize = 10;

/// A device without users, of which [`EXPOSED`] bytes are exposed.
struct Idle {
    prepared: Prepared,
    node: String,
}

impl Idle {
    fn make(lab: &Lab) -> Result<Idle> {
        let prepared = lab.prepare_in(0, FsdaxMem)?;
        let node = prepared.disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        drop(Mapping::of_new_file(&mount.path("file"), EXPOSED)?);
        mount.unmount()?;
        Ok(Idle { prepared, node })
    }

    /// Maps the file, so that its memory is exposed again.
    fn expose(&self) -> Result<()> {
        let mount = Ext4.mount(&self.node, "dax=always")?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(mount.path("file"))?;
        let mapping = Mapping::new(&file, EXPOSED, Sharing::Shared)?;
        for offset in (0..EXPOSED).step_by(PMD) {
            mapping.load(offset);
        }
        drop((mapping, file));
        mount.unmount()
    }

    /// Unbinds the exposed device, and binds it again.
    fn unbind(&self, lab: &Lab) -> Result<Duration> {
        self.expose()?;
        let start = Instant::now();
        self.prepared.bound.unbind()?;
        let took = start.elapsed();
        self.prepared.bound.bind(lab.driver)?;
        Ok(took)
    }

    /// Returns the times of several unbinds, in order.
    fn times(&self, lab: &Lab, rounds: usize) -> Result<Vec<Duration>> {
        let mut times = (0..rounds)
            .map(|_| self.unbind(lab))
            .collect::<Result<Vec<_>>>()?;
        times.sort();
        Ok(times)
    }

    /// Returns how often these functions are called during an unbind.
    fn calls(&self, lab: &Lab, functions: &[&str]) -> Result<usize> {
        self.expose()?;
        let count = CallCount::of(functions)?;
        self.prepared.bound.unbind()?;
        let calls = count.so_far()?;
        drop(count);
        self.prepared.bound.bind(lab.driver)?;
        Ok(calls)
    }
}

/// Compares the medians of times without and with something, if there are any.
fn compare(what: &str, without: &[Duration], with: &[Duration]) -> Result<()> {
    let median = |times: &[Duration]| times.get(times.len() / 2).map(Duration::as_secs_f64);
    let (Some(before), Some(after)) = (median(without), median(with)) else {
        return Ok(());
    };
    let ratio = after / before;
    println!("measured: unbind took {without:?} without, {with:?} with {what}: {ratio:.3}");
    ensure!(ratio <= 1.1, "{ratio:.3} of the time");
    Ok(())
}

/// A file system that is not on persistent memory, with many inodes in memory.
struct Full {
    mount: Mount,
    // In this order they are removed.
    _mapped: Option<Mapped>,
    _below: Option<Loop>,
}

/// A directory in memory for the files behind loop devices.
const IMAGES: &str = "/images";
impl Full {
    fn on_loop(fs: FileSystem, name: &str, mapped: bool, inodes: usize) -> Result<Full> {
        let image = PathBuf::from(IMAGES).join(name);
        fs::create_dir_all(IMAGES)?;
        File::create(&image)?.set_len(2 << 30)?;
        let below = Loop::new(&image)?;
        let mapped = mapped
            .then(|| {
                let sectors = below.disk().bytes()? / 512;
                let node = below.disk().node_str();
                Mapped::new(name, &format!("0 {sectors} linear {node} 0"))
            })
            .transpose()?;
        let disk = mapped.as_ref().map_or(below.disk(), Mapped::disk);
        let node = disk.node_str();
        match fs {
            Ext4 => Ext4.make_with(
                &node,
                &["-N", "300000", "-O", "^has_journal,^metadata_csum"],
            )?,
            Xfs => Xfs.make(&node)?,
        }
        let mount = fs.mount(&node, "noatime")?;
        make_files(mount.point(), inodes)?;
        Ok(Full {
            mount,
            _mapped: mapped,
            _below: Some(below),
        })
    }

    fn tmpfs(inodes: usize) -> Result<Full> {
        let mount = Mount::new("tmpfs", "scale", "size=1G")?;
        make_files(mount.point(), inodes)?;
        Ok(Full {
            mount,
            _mapped: None,
            _below: None,
        })
    }

    fn all(inodes: usize) -> Result<Vec<Full>> {
        Ok(vec![
            Full::on_loop(Ext4, "plain", false, inodes)?,
            Full::on_loop(Ext4, "mapped", true, inodes)?,
            Full::on_loop(Xfs, "xfs", false, inodes)?,
            Full::tmpfs(inodes)?,
        ])
    }

    fn remove(self) -> Result<()> {
        self.mount.unmount()
    }
}

fn remove_images() -> Result<()> {
    fs::remove_dir_all(IMAGES).context("removing the images")
}

/// The walk takes a reference to one of so many inodes that it passes (`Walk::BATCH`).
const BATCH: usize = 1024;

/// Many inodes in file systems that have no DAX: none of them is looked at.
fn beside_inodes(lab: &mut Lab, beside: &Beside) -> Result<()> {
    let idle = Idle::make(lab)?;
    let without = idle.times(lab, beside.rounds)?;
    let started = Instant::now();
    let full = Full::all(beside.inodes)?;
    println!("the inodes took {:?}", started.elapsed());

    let passed = idle.calls(lab, &["igrab"])?;
    println!("measured: {passed} references to inodes were taken");
    let with = idle.times(lab, beside.rounds)?;
    compare("inodes", &without, &with)?;
    ensure!(passed < FEW, "inodes of other file systems were looked at");
    full.into_iter().try_for_each(Full::remove)?;
    remove_images()
}

/// How long the page faults may take.
const FAULTS_LIMIT: Duration = Duration::from_secs(900);

/// Maps `len` bytes of a file of another device in pages of 4 KiB.
fn mapped_elsewhere(lab: &Lab, len: usize) -> Result<(Mount, Child)> {
    let other = lab.prepare_in(1, FsdaxMem)?;
    let node = other.disk.node_str();
    Ext4.make(&node)?;
    // Blocks are allocated by PMDs, which is faster. The next mount has no entries of them.
    let mount = Ext4.mount(&node, "dax=always")?;
    let options = File::options().read(true).write(true).clone();
    let file = options.clone().create(true).open(mount.path("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, len as i64)?;
    let mapping = Mapping::new(&file, len, Sharing::Shared)?;
    (0..len)
        .step_by(PMD)
        .for_each(|offset| mapping.store(offset, 1));
    drop((mapping, file));
    mount.unmount()?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let file = options.open(mount.path("file"))?;
    let mut user = Child::start("the process that maps the other device", |link| {
        let mapping = Mapping::of_pages(&file, len, Sharing::Shared, true)?;
        for offset in (0..len).step_by(PAGE) {
            mapping.load(offset);
        }
        link.say("ready")?;
        link.wait()
    })?;
    user.hear("ready", FAULTS_LIMIT)?;
    Ok((mount, user))
}

/// A large file of another device: none of its pages is looked at.
fn beside_pages(lab: &mut Lab, beside: &Beside) -> Result<()> {
    let idle = Idle::make(lab)?;
    let without = idle.times(lab, beside.rounds)?;
    let (mount, mut user) = mapped_elsewhere(lab, beside.mapped)?;

    let passed = idle.calls(lab, &["get_dev_pagemap"])?;
    println!("measured: {passed} pages were looked up");
    let with = idle.times(lab, beside.rounds)?;
    compare("the other file", &without, &with)?;
    ensure!(passed < FEW, "pages of another device were looked at");
    user.go()?;
    user.expect_done(Duration::from_secs(30))?;
    mount.unmount()
}

/// A linear table above the device: inodes on disks that are not device-mapper's are not looked at.
fn inodes_while_stacked(lab: &mut Lab) -> Result<()> {
    let idle = Idle::make(lab)?;
    let full = Full::on_loop(Ext4, "plain", false, 4 * SMALL.inodes)?;
    idle.expose()?;
    let sectors = idle.prepared.disk.bytes()? / 512;
    let mapped = Mapped::new("above", &format!("0 {sectors} linear {} 0", idle.node))?;

    let count = CallCount::of(&["igrab"])?;
    idle.prepared.bound.unbind()?;
    let passed = count.so_far()?;
    drop(count);
    println!("measured: {passed} references to inodes were taken");
    ensure!(passed < FEW, "inodes on a loop device were looked at");
    mapped.remove()?;
    idle.prepared.bound.bind(lab.driver)?;
    full.remove()?;
    remove_images()
}

/// Puts a page of a file into a pipe, and closes the file.
fn pin(path: &Path) -> Result<[OwnedFd; 2]> {
    drop(Mapping::of_new_file(path, PAGE)?);
    let file = File::options().read(true).write(true).open(path)?;
    let mapping = Mapping::of_pages(&file, PAGE, Sharing::Shared, true)?;
    mapping.load(0);
    let (reader, writer) = nix::unistd::pipe()?;
    ensure!(mapping.give_to_pipe(0, PAGE, &writer)? == PAGE, "no page");
    Ok([reader, writer])
}

const PINS: usize = 4;
const STEP_LIMIT: Duration = Duration::from_secs(10);

/// Pinned pages of several files, released one after the other: the files are walked again only as
/// far as they were kept.
fn pins_one_by_one(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare_in(0, FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    make_files(mount.point(), 2 * BATCH)?;
    retired::set_timeout(lab.driver, Duration::from_millis(300))?;
    let mut user = Child::start_ready("the process with pages in pipes", |link| {
        let pipes = (0..PINS)
            .map(|number| pin(&mount.path(&format!("pinned{number}"))))
            .collect::<Result<Vec<_>>>()?;
        link.say("ready")?;
        for [reader, _writer] in pipes {
            link.wait()?;
            File::from(reader).read_exact(&mut [0; PAGE])?;
            link.say("released")?;
        }
        Ok(())
    })?;

    prepared.bound.unbind()?;
    retired::expect(1)?;
    let count = CallCount::of(&["iterate_supers_type"])?;
    for _ in 0..PINS {
        user.go()?;
        user.hear("released", STEP_LIMIT)?;
        // The worker waits in steps of a second.
        std::thread::sleep(Duration::from_millis(1500));
    }
    retired::await_none(STEP_LIMIT)?;
    let walks = count.so_far()?;
    drop(count);
    println!("measured: {walks} times the superblocks of a type were visited");
    user.expect_done(STEP_LIMIT)?;
    mount.unmount()?;
    prepared.bound.bind(lab.driver)?;
    retired::set_timeout(lab.driver, Duration::from_secs(10))?;
    ensure!(walks == 0, "the files were walked again");
    Ok(())
}

/// How many pages of the large device are used.
const SCATTERED: usize = 1000;
const DISTANCE: usize = 14 * MIB;

/// A device of 16 GiB of which a thousand pages are exposed: as many chunks of 2 MiB.
fn scattered(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare_in(2, FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make_with(&node, &["-N", "1000", "-O", "^has_journal"])?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let len = SCATTERED * DISTANCE;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("file"))?;
    fallocate(&file, FallocateFlags::empty(), 0, len as i64)?;
    let mapping = Mapping::of_pages(&file, len, Sharing::Shared, true)?;
    for offset in (0..len).step_by(DISTANCE) {
        mapping.store(offset, 1);
    }
    drop((mapping, file));
    mount.unmount()?;

    let chunks = prepared.bound.exposed()? / PMD;
    let start = Instant::now();
    prepared.bound.unbind()?;
    let took = start.elapsed();
    println!("measured: {chunks} chunks were exposed; unbind took {took:?}");
    ensure!(
        (SCATTERED..=SCATTERED + 2).contains(&chunks),
        "{chunks} chunks were exposed"
    );
    prepared.bound.bind(lab.driver)
}

const MAPPED: usize = 16 * MIB;
const MAPPED_LIMIT: Duration = Duration::from_millis(300);

/// Unbinds a device while a process has 16 MiB of it mapped in pages of 4 KiB.
fn unbind_mapped(lab: &Lab, above: bool) -> Result<Duration> {
    let prepared = lab.prepare_in(0, FsdaxMem)?;
    let below = prepared.disk.node_str();
    let sectors = prepared.disk.bytes()? / 512;
    let mapped = above
        .then(|| Mapped::new("above", &format!("0 {sectors} linear {below} 0")))
        .transpose()?;
    let node = mapped
        .as_ref()
        .map_or(below, |mapped| mapped.disk().node_str());
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    let mut user = Child::start_ready("the process with the mapping", |link| {
        let mapping = Mapping::of_new_file(&path, MAPPED)?;
        link.say("ready")?;
        link.wait()?;
        mapping.load(0);
        Ok(())
    })?;
    let start = Instant::now();
    prepared.bound.unbind()?;
    let took = start.elapsed();
    user.go()?;
    user.expect_signal(Signal::SIGBUS, Duration::from_secs(30))?;
    mount.unmount()?;
    if let Some(mapped) = mapped {
        mapped.remove()?;
    }
    prepared.bound.bind(lab.driver)?;
    Ok(took)
}

fn sixteen_mib(lab: &mut Lab) -> Result<()> {
    let mut times = [false, true].map(|_| Vec::new());
    for _ in 0..ROUNDS {
        for (above, times) in [false, true].into_iter().zip(&mut times) {
            times.push(unbind_mapped(lab, above)?);
        }
    }
    times.iter_mut().for_each(|times| times.sort());
    println!("measured: unbind of 16 MiB took {:?}", times[0]);
    println!("measured: below dm-linear it took {:?}", times[1]);
    let took = times[0][ROUNDS / 2];
    ensure!(took <= MAPPED_LIMIT, "it took {took:?}");
    Ok(())
}
