// SPDX-License-Identifier: GPL-2.0

//! How long unbind may take: as long as `revoke_timeout_ms` says at the moment, until the unbinding
//! thread is killed, once for all devices of a region, and independent of concurrent reads of
//! debugfs.

use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use super::fixture::{Fixture, contents};
use super::special::{back_to_normal, only_for_pmem_rs};
use super::users::{Running, SIGNAL_LIMIT};
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, User, Way};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::filesystem::Mount;
use crate::lab::{Lab, holder};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::expect_same;
use crate::tracing::Events;

/// How long a new timeout or a signal may take to have an effect: a second, and the delay of the
/// emulator.
const EFFECT: Duration = Duration::from_millis(1500);

/// A process that unbinds a device with a pinned page, and waits.
struct Waiting<'a> {
    fixture: Fixture<'a>,
    bound: Device,
    user: Running,
    unbind: Child,
}

impl<'a> Waiting<'a> {
    fn start(lab: &'a Lab, timeout: Duration) -> Result<Waiting<'a>> {
        let fixture = Fixture::build_with_timeout(lab, Fs::Ext4, Under::Whole, timeout)?;
        let user = User::ClosedPipe.start(&fixture)?;
        let bound = fixture.bound()?;
        let unbind = Child::start("the unbinding process", |_| bound.unbind())?;
        Ok(Waiting {
            fixture,
            bound,
            user,
            unbind,
        })
    }

    /// Checks that it still waits after this time.
    fn expect_waits(&mut self, time: Duration) -> Result<()> {
        sleep(time);
        ensure!(self.unbind.try_end()?.is_none(), "unbind has not waited");
        retired::expect(0).map(drop)
    }

    /// Changes the timeout from another process.
    fn set_timeout(&self, timeout: Duration) -> Result<()> {
        let driver = self.fixture.lab.driver;
        let mut writer = Child::start("the process that sets the timeout", |_| {
            retired::set_timeout(driver, timeout)
        })?;
        writer.expect_done(SIGNAL_LIMIT)
    }

    /// Ends the test: the range is retired until the page is unpinned.
    fn end(mut self) -> Result<()> {
        self.bound.expect_driver(None)?;
        for line in retired::expect(1)? {
            println!("retired: {line}");
        }
        self.user.unpin()?;
        self.user.expect_gone()?;
        back_to_normal(self.fixture, Way::Unbind)
    }
}

/// The timeout can be raised and lowered while an unbind waits.
pub fn timeout_is_writable(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let mut waiting = Waiting::start(lab, Duration::ZERO)?;
    waiting.expect_waits(2 * TIMEOUT)?;
    waiting.set_timeout(Duration::from_millis(500))?;
    waiting.unbind.expect_done(EFFECT)?;
    waiting.end()?;

    let long = 4 * TIMEOUT;
    let mut waiting = Waiting::start(lab, long)?;
    waiting.expect_waits(TIMEOUT)?;
    waiting.set_timeout(2 * long)?;
    waiting.expect_waits(long)?;
    waiting.set_timeout(TIMEOUT)?;
    waiting.unbind.expect_done(EFFECT)?;
    waiting.end()
}

/// The unbinding thread can be killed, and the device is unbound all the same.
pub fn killed_writer(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for timeout in [Duration::ZERO, Duration::from_secs(60)] {
        let mut waiting = Waiting::start(lab, timeout)?;
        waiting.expect_waits(TIMEOUT)?;
        kill(waiting.unbind.pid(), Signal::SIGKILL)?;
        waiting.unbind.expect_signal(Signal::SIGKILL, EFFECT)?;
        waiting.end()?;
    }
    Ok(())
}

/// The number of namespaces that fill the region.
const NAMESPACES: usize = 8;
const NAMESPACE_SIZE: &str = "64M";
/// How many bytes of a file of each namespace are in a pipe.
const PIPED: usize = 4 * PAGE;

/// Divides a region with one namespace into many, and returns their disks.
fn split(lab: &Lab, region: &Device) -> Result<Vec<Disk>> {
    // This gives the namespace a label, without which it cannot have any size.
    ndctl::reconfigure(&lab.namespace(0)?, Mode::Raw)?;
    destroy(region)?;
    (0..NAMESPACES)
        .map(|_| {
            let more = ["-s", NAMESPACE_SIZE, "-l", "512"];
            let made = ndctl::create(region, Mode::FsdaxMem, &more)?;
            let disk = made
                .blockdev
                .with_context(|| format!("{} has no disk", made.dev))?;
            Ok(Disk::named(disk))
        })
        .collect()
}

fn namespaces(region: &Device) -> Result<Vec<Device>> {
    let prefix = format!("{}.", region.name().replace("region", "namespace"));
    let mut all = Device::all_of(&prefix)?;
    all.retain(|namespace| namespace.get("size").is_ok_and(|size| size != "0"));
    Ok(all)
}

fn destroy(region: &Device) -> Result<()> {
    for namespace in namespaces(region)? {
        run("ndctl", &["destroy-namespace", "-f", namespace.name()])?;
    }
    Ok(())
}

/// Puts pages of a file into a pipe, and closes the file.
fn pin(mount: &Mount) -> Result<[OwnedFd; 2]> {
    let file = Access::Buffered.open(&mount.path("used"))?;
    let mapping = Mapping::of_pages(&file, PIPED, Sharing::Shared, true)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let given = mapping.give_to_pipe(0, PIPED, &writer)?;
    ensure!(given == PIPED, "{given} bytes were put into the pipe");
    Ok([reader, writer])
}

fn pin_all(mounts: &[Mount], link: &mut Link) -> Result<()> {
    let pipes = mounts.iter().map(pin).collect::<Result<Vec<_>>>()?;
    link.say("ready")?;
    link.wait()?;
    for [reader, _writer] in pipes {
        let mut found = vec![0; PIPED];
        File::from(reader).read_exact(&mut found)?;
        expect_same("what is in a pipe", &found, &contents()[..PIPED])?;
    }
    Ok(())
}

/// A region is unbound, and with it many devices that are all in use: their timeouts run
/// concurrently.
pub fn eight_namespaces(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let region = lab.region(0)?;
    let disks = split(lab, &region)?;
    let mounts = disks
        .iter()
        .map(|disk| {
            let mount = Fs::Ext4.make_and_mount(&disk.node_str())?;
            fs::write(mount.path("used"), &contents()[..PIPED])?;
            Ok(mount)
        })
        .collect::<Result<Vec<_>>>()?;
    let mut user = Child::start_ready("the process with pages in pipes", |link| {
        pin_all(&mounts, link)
    })?;

    let start = Instant::now();
    let mut unbind = Child::start("the process that unbinds the region", |_| region.unbind())?;
    unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    let took = start.elapsed();
    println!(
        "measured: {NAMESPACES} namespaces with pinned pages went in {} ms, with a timeout of {} ms",
        took.as_millis(),
        TIMEOUT.as_millis()
    );
    ensure!(took >= TIMEOUT, "it did not wait for pinned pages");
    for line in retired::expect(NAMESPACES)? {
        println!("retired: {line}");
    }

    user.go()?;
    user.expect_done(SIGNAL_LIMIT)?;
    for mount in mounts {
        mount.unmount()?;
    }
    retired::await_none(FREE_LIMIT)?;
    region.enable_region()?;
    let back = namespaces(&region)?;
    ensure!(back.len() == NAMESPACES, "only {back:?} came back");
    for namespace in &back {
        let bound = holder(namespace)?;
        bound.expect_driver(Some(lab.driver))?;
        let mount = Fs::Ext4.mount(&Disk::named(bound.disk_name()?).node_str())?;
        let found = fs::read(mount.path("used"))?;
        expect_same("the file", &found, &contents()[..PIPED])?;
        mount.unmount()?;
    }
    destroy(&region)?;
    ndctl::create(&region, Mode::FsdaxMem, &[])?;
    expect_no_thread_stuck()
}

/// The number of files with pinned pages: more than the driver has slots for at first (`NR_SLOTS`
/// in `src/abstractions/kernel/fs/inode_pool.rs`).
const FILES: usize = 1200;
/// How many pages a pipe has room for.
const PAGES_OF_PIPE: usize = 16;
/// How long a process may take to read its pipes, on a busy machine under emulation.
const READ_LIMIT: Duration = Duration::from_secs(20);

/// Makes so many files for [`pin_files`].
pub fn make_files(root: &Path, count: usize) -> Result<()> {
    let contents = &contents()[..PAGE];
    (0..count).try_for_each(|number| Ok(fs::write(root.join(format!("many{number}")), contents)?))
}

/// Puts a page of each file into a pipe, and closes the files.
pub fn pin_files(root: &Path, files: Range<usize>, link: &mut Link) -> Result<()> {
    let mut pipes = Vec::new();
    for first in files.clone().step_by(PAGES_OF_PIPE) {
        let (reader, writer) = nix::unistd::pipe()?;
        for number in first..files.end.min(first + PAGES_OF_PIPE) {
            let file = Access::Buffered.open(&root.join(format!("many{number}")))?;
            let mapping = Mapping::of_pages(&file, PAGE, Sharing::Shared, true)?;
            let given = mapping.give_to_pipe(0, PAGE, &writer)?;
            ensure!(given == PAGE, "{given} bytes were put into the pipe");
        }
        pipes.push(reader);
    }
    link.say("ready")?;
    link.wait()?;
    let contents = contents();
    for reader in pipes {
        let mut reader = File::from(reader);
        let mut found = vec![0; PAGE];
        while reader.read(&mut found)? != 0 {
            expect_same("what is in a pipe", &found, &contents[..PAGE])?;
        }
    }
    Ok(())
}

/// Very many closed files have pinned pages. Unbind does not wait for them longer than for one.
pub fn many_files(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let bound = fixture.bound()?;
    let root = fixture.root()?.to_owned();
    make_files(&root, FILES)?;
    let mut user = Child::start_ready("the process with the pipes", |link| {
        pin_files(&root, 0..FILES, link)
    })?;

    let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    println!("retired: {:?}", retired::expect(1)?);
    user.go()?;
    user.expect_done(READ_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// The size of a file whose pages were all exposed, so that counting them takes a while.
const LARGE: usize = 64 << 20;
/// The CPU that the readers share with a process of high priority.
const CROWDED: &str = "2";
const POLITE: &str = "19";
const RUDE: &str = "-10";
/// How long a reader may have a reference to the memory.
const READER_LIMIT: Duration = Duration::from_millis(300);
/// For how long they share it before unbind.
const CROWD: Duration = Duration::from_secs(1);

/// Moves the current process to that CPU.
fn crowd(nice: &str) -> Result<()> {
    let pid = std::process::id().to_string();
    run("busybox", &["taskset", "-p", CROWDED, &pid])?;
    run("busybox", &["renice", "-n", nice, "-p", &pid])?;
    Ok(())
}

/// Reads one of the driver's debugfs files until it is told to stop.
fn read_list(name: &str, link: &mut Link) -> Result<()> {
    let path = format!("/sys/kernel/debug/pmem_rs/{name}");
    crowd(POLITE)?;
    let start = Instant::now();
    fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    println!("one read of {name} took {:?}", start.elapsed());
    link.say("ready")?;
    while !link.is_told_to_go()? {
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    }
    Ok(())
}

/// debugfs can be read at any time. Readers that are stopped anywhere do not delay unbind.
pub fn readers_of_debugfs(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(fixture.root()?.join("large"))?;
    file.set_len(LARGE as u64)?;
    let large = Mapping::of_pages(&file, LARGE, Sharing::Shared, true)?;
    for page in (0..LARGE).step_by(PAGE) {
        large.store(page, 1);
    }
    drop((large, file));
    let user = User::Reader.start(&fixture)?;

    let mut readers = ["devices", "devices", "retired"]
        .into_iter()
        .map(|name| {
            Child::start_ready(format!("the reader of {name}"), |link| {
                read_list(name, link)
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut rude = Child::start_ready("the process of high priority", |link| {
        crowd(RUDE)?;
        link.say("ready")?;
        while !link.is_told_to_go()? {
            std::hint::black_box((0..1 << 20).sum::<u64>());
        }
        Ok(())
    })?;
    sleep(CROWD);
    let events = Events::start()?;
    // The kernel waits for all threads too, when it removes a disk: they are given time.
    let took = Way::Unbind.go(&fixture, 4 * UNBIND_LIMIT);
    for event in ["pmem_step", "pmem_wait"] {
        for record in events.so_far(event)? {
            println!("{event}: {}", record.fields);
        }
    }
    println!("gone after {} ms", took?.as_millis());
    // It may be retired while it is freed: RCU waits for all threads that get no CPU, whatever they
    // do.
    for line in retired::list()? {
        println!("retired: {line}");
    }
    for wait in events.so_far("pmem_wait")? {
        let limit = READER_LIMIT.as_micros();
        ensure!(
            u128::from(wait.number("duration_us")?) < limit,
            "it has waited: {}",
            wait.fields
        );
    }
    user.expect_gone()?;
    rude.go()?;
    rude.expect_done(SIGNAL_LIMIT)?;
    for reader in &mut readers {
        reader.go()?;
        reader.expect_done(SIGNAL_LIMIT)?;
    }
    back_to_normal(fixture, Way::Unbind)
}
