// SPDX-License-Identifier: GPL-2.0

//! Flushes that the host delays or fails.

use std::fs;
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use nix::errno::Errno;

use super::{HELD, LEN, SOON, expect_contents, mounted, prepare};
use crate::command::{run, run_expecting_failure};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::host::Disturbed;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::Child;
use crate::retired;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::platform::only_for_pmem_rs;
use crate::suites::suspend;
use crate::syscall::pwritev2;
use crate::sysfs;
use crate::tracing::CallCount;

const FUA_WRITES: u32 = 8;

/// The arguments of fio for durable writes of a page each: the flush is part of the request, as
/// asynchronous submission has no separate one.
fn fua(disk: &Disk) -> Vec<String> {
    [
        "--name=fua",
        "--ioengine=libaio",
        "--direct=1",
        "--sync=dsync",
        "--rw=write",
        "--bs=4k",
        &format!("--iodepth={FUA_WRITES}"),
        &format!("--number_ios={FUA_WRITES}"),
        &format!("--filename={}", disk.node_str()),
        "--size=1m",
        // As a thread, so that it can be killed.
        "--thread",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// One thread submits all writes before the first has ended, and they share flushes.
pub fn fua_writes(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    sysfs::write(disk.path("queue/iostats"), "1")?;
    let before = disk.statistics()?;
    let count = CallCount::of(&["nvdimm_flush"])?;
    let held = Disturbed::held()?;
    let mut fio = Child::start("fio", |_| {
        let args = fua(&disk);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("fio", &args).map(drop)
    })?;
    let deadline = Instant::now() + SOON;
    let written = || -> Result<u64> { Ok(disk.statistics()?.since(before).writes) };
    while written()? < u64::from(FUA_WRITES) {
        ensure!(
            Instant::now() < deadline && fio.try_end()?.is_none(),
            "{} of {FUA_WRITES} writes were submitted while the host flushes",
            written()?
        );
        sleep(Duration::from_millis(50));
    }
    sleep(HELD);
    ensure!(
        fio.try_end()?.is_none(),
        "the writes did not wait for the host"
    );
    held.end()?;
    fio.expect_done(SOON)?;
    let flushes = count.so_far()?;
    println!("{FUA_WRITES} writes shared {flushes} flushes");
    if lab.driver == Driver::PmemRs {
        ensure!(
            (1..=2).contains(&flushes),
            "{FUA_WRITES} writes made {flushes} flushes; what came during the first should share the next"
        );
    }
    Ok(())
}

/// The names of the threads that are in the driver.
fn threads_in_driver(lab: &Lab) -> Result<Vec<String>> {
    let module = format!("[{}]", lab.driver.name());
    let mut names = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        // It may have ended.
        let stack = fs::read_to_string(path.join("stack")).unwrap_or_default();
        if stack.contains(&module) {
            names.push(fs::read_to_string(path.join("comm"))?.trim().to_owned());
        }
    }
    Ok(names)
}

/// An ext4 on a disk, with an fsync whose flush the host holds.
struct HeldCommit {
    prepared: Prepared,
    mount: Mount,
    fsync: Child,
    held: Disturbed,
}

impl HeldCommit {
    /// The commit record of a journal is a write that has to follow a flush.
    fn new(lab: &Lab) -> Result<HeldCommit> {
        let prepared = prepare(lab, Mode::FsdaxMem)?;
        let disk = &prepared.disk;
        let node = disk.node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        let path = mount.path("file");
        sysfs::write(disk.path("queue/iostats"), "1")?;
        let held = Disturbed::held()?;
        let mut fsync = Child::start_ready("fsync", |link| {
            fs::write(&path, stamped(LEN, 3))?;
            link.say("ready")?;
            Ok(Access::Buffered.open(&path)?.sync_all()?)
        })?;
        let deadline = Instant::now() + SOON;
        while threads_in_driver(lab)?.is_empty() {
            ensure!(Instant::now() < deadline, "there is no flush");
            sleep(Duration::from_millis(50));
        }
        sleep(HELD);
        ensure!(fsync.try_end()?.is_none(), "fsync did not wait");
        Ok(HeldCommit {
            prepared,
            mount,
            fsync,
            held,
        })
    }
}

/// The submitter of a write that has to follow a flush does not wait in the driver, and the write
/// is executed after the flush.
pub fn write_after_a_flush(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let HeldCommit {
        prepared: Prepared { disk, .. },
        mount,
        mut fsync,
        held,
    } = HeldCommit::new(lab)?;
    let waiting = threads_in_driver(lab)?;
    println!("in the driver: {waiting:?}");
    ensure!(
        !waiting.is_empty() && waiting.iter().all(|name| name.starts_with("kworker")),
        "{waiting:?} wait for the host in the driver"
    );
    let before = disk.statistics()?;
    held.end()?;
    fsync.expect_done(SOON)?;
    let writes = disk.statistics()?.since(before).writes;
    ensure!(writes > 0, "the record was written before the flush");
    expect_same("the file", &fs::read(mount.path("file"))?, &stamped(LEN, 3))?;
    mount.unmount()?;
    Ext4.check(&disk.node_str())
}

/// The device is unbound while such a write waits. It keeps the memory until it is executed.
pub fn unbind_before_a_write(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let HeldCommit {
        prepared: Prepared { bound, disk, .. },
        mount,
        mut fsync,
        held,
    } = HeldCommit::new(lab)?;
    let mut unbind = Child::start("unbind", |_| bound.unbind())?;
    sleep(HELD);
    ensure!(unbind.try_end()?.is_none(), "unbind did not wait");
    held.end()?;
    unbind.expect_done(SOON)?;
    retired::expect(0)?;
    // The file system may have been shut down before.
    fsync.end(SOON)?;
    mount.unmount()?;
    bound.bind(lab.driver)?;
    let node = disk.node_str();
    Ext4.mount(&node, "dax=always")?.unmount()?;
    Ext4.check(&node)
}

/// The host does not flush: the limit ends the suspension of the disk. Then it flushes: a durable
/// write is held, and flushes are executed.
pub fn suspended(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let Prepared { bound, disk, .. } = prepare(lab, Mode::FsdaxMem)?;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(2 * PAGE, 1), 0)?;
    file.sync_all()?;
    let durable = |tag| {
        Child::start("the durable writer", |_| {
            write_durably(&disk, tag)?;
            Ok(())
        })
    };

    let held = Disturbed::held()?;
    let mut writer = durable(2)?;
    sleep(HELD);
    suspend::set_limit(HELD)?;
    let start = Instant::now();
    let mut suspending = Child::start("the suspending process", |_| {
        let result = bound.set(suspend::STATE, "suspended");
        ensure!(
            errno::is(&result, Errno::ETIMEDOUT as i32),
            "it gave {result:?}"
        );
        Ok(())
    })?;
    suspending.expect_done(SOON)?;
    println!("ended after {} ms", start.elapsed().as_millis());
    suspend::expect_state(&bound, "live")?;
    ensure!(writer.try_end()?.is_none(), "the host has flushed");
    held.end()?;
    writer.expect_done(SOON)?;
    suspend::reset()?;

    suspend::suspend(&bound)?;
    let mut writer = durable(3)?;
    writer.await_uninterruptible()?;
    file.sync_all()?;
    let mut found = Buffer::new(PAGE);
    file.read_exact_at(&mut found, 0)?;
    expect_same("what the disk has", &found, &stamped(PAGE, 2))?;
    ensure!(writer.try_end()?.is_none(), "the write was not held");
    suspend::resume(&bound)?;
    writer.expect_done(SOON)?;
    file.read_exact_at(&mut found, 0)?;
    expect_same("what was written", &found, &stamped(PAGE, 3))
}

/// How long each number of threads flushes.
const SHARED_FOR: Duration = Duration::from_millis(1500);

/// Calls `fsync` of the disk in several threads. Returns the number of calls a second, and the
/// number of calls for each flush of the region.
fn fsync_together(disk: &Disk, threads: u32) -> Result<(f64, f64)> {
    let file = disk.open(Access::Direct)?;
    let count = CallCount::of(&["nvdimm_flush"])?;
    let start = Instant::now();
    let calls = std::thread::scope(|scope| -> Result<u32> {
        let run = || -> io::Result<u32> {
            let mut calls = 0;
            while start.elapsed() < SHARED_FOR {
                file.sync_all()?;
                calls += 1;
            }
            Ok(calls)
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let mut calls = 0;
        for thread in threads {
            let done = thread
                .join()
                .map_err(|_| anyhow!("a thread has panicked"))?;
            calls += done?;
        }
        Ok(calls)
    })?;
    let rate = f64::from(calls) / start.elapsed().as_secs_f64();
    let flushes = count.so_far()?.max(1);
    Ok((rate, f64::from(calls) / flushes as f64))
}

/// Threads that flush at the same time share flushes: a thread joins the one that starts next. With
/// nd_pmem each thread has a flush of its own.
pub fn flushes_are_shared(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let Prepared { bound, disk, .. } = prepare(lab, Mode::Raw)?;
    let other = lab.driver.other();
    other.load()?;
    let slow = Disturbed::slow()?;
    for threads in [4, 16, 64] {
        bound.unbind()?;
        bound.bind(other)?;
        let (theirs, _) = fsync_together(&disk, threads)?;
        bound.unbind()?;
        bound.bind(lab.driver)?;
        let (ours, shared_by) = fsync_together(&disk, threads)?;
        println!(
            "measured: {threads} threads call fsync {:.1} times as often as with nd_pmem, and \
             {shared_by:.1} calls share a flush",
            ours / theirs
        );
        ensure!(
            shared_by >= 0.4 * f64::from(threads),
            "{shared_by} calls of {threads} threads share a flush"
        );
    }
    slow.end()?;
    bound.unbind()?;
    other.unload()?;
    bound.bind(lab.driver)
}

/// The message about a failed flush.
pub const FAILED: &str = "flush failed";

/// All requests for durability fail, the log has the failure once, and later requests succeed.
pub fn failed_flush(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(PAGE, 1), 0)?;
    let mut messages = Messages::from_now()?;
    let failing = Disturbed::failing()?;
    for _ in 0..3 {
        errno::expect("fsync", file.sync_all(), &[Errno::EIO])?;
        errno::expect("a durable write", write_durably(&disk, 2), &[Errno::EIO])?;
    }
    let args = fua(&disk);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = run_expecting_failure("fio", &args)?;
    ensure!(said.contains("Input/output error"), "fio says: {said}");
    // Writes without a flush are not affected.
    file.write_all_at(&Buffer::stamped(PAGE, 3), 0)?;

    failing.end()?;
    file.sync_all()?;
    write_durably(&disk, 4)?;
    let mut found = Buffer::new(PAGE);
    file.read_exact_at(&mut found, 0)?;
    expect_same("what was written last", &found, &stamped(PAGE, 4))?;
    if lab.driver == Driver::PmemRs {
        messages.expect(&["flushes succeed again"])?;
        let said: Vec<&String> = messages
            .so_far()?
            .iter()
            .filter(|message| message.contains(FAILED))
            .collect();
        ensure!(
            said.len() == 1 && said[0].contains("storage behind the device"),
            "the log should have it once, with what to do; it has {said:#?}"
        );
    }
    Ok(())
}

/// Without a journal, whose failure would shut down the whole file system.
pub fn failed_on_ext4(lab: &mut Lab) -> Result<()> {
    let (node, mount, file) = mounted(lab, Mode::FsdaxMem, &["-O", "^has_journal"])?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 2));

    let failing = Disturbed::failing()?;
    errno::expect("fsync", file.sync_all(), &[Errno::EIO])?;
    failing.end()?;
    mapping.write(0, &stamped(LEN, 3));
    file.sync_all()?;
    drop((mapping, file));
    expect_same("the file", &fs::read(mount.path("file"))?, &stamped(LEN, 3))?;
    mount.unmount()?;
    Ext4.check(&node)
}

/// Checks that `work` ends only after the host has flushed.
fn expect_blocked_by_host(what: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let held = Disturbed::held()?;
    let mut child = Child::start_ready(what, |link| {
        link.say("ready")?;
        work()
    })?;
    sleep(HELD);
    ensure!(
        child.try_end()?.is_none(),
        "{what} did not wait for the host"
    );
    held.end()?;
    child.expect_done(SOON)
}

pub fn fsync_waits(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let file = prepare(lab, mode)?.disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(PAGE, 1), 0)?;
        expect_blocked_by_host("fsync", || Ok(file.sync_all()?))?;
    }
    Ok(())
}

pub fn write_durably(disk: &Disk, tag: u64) -> io::Result<usize> {
    let file = disk
        .open(Access::Direct)
        .map_err(|error| io::Error::other(error.to_string()))?;
    let bytes = Buffer::stamped(PAGE, tag);
    pwritev2(&file, &[IoSlice::new(&bytes)], 0, libc::RWF_DSYNC)
}

pub fn durable_write_waits(lab: &mut Lab) -> Result<()> {
    let disk = prepare(lab, Mode::FsdaxMem)?.disk;
    expect_blocked_by_host("the write", || {
        write_durably(&disk, 2)?;
        Ok(())
    })
}

pub fn fsync_of_a_file_waits(lab: &mut Lab) -> Result<()> {
    let (node, mount, file) = mounted(lab, Mode::FsdaxMem, &[])?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 2));
    expect_blocked_by_host("fsync after a write through a mapping", || {
        Ok(file.sync_all()?)
    })?;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)
}

/// The last flush is also waited for.
pub fn unbind_waits(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = prepare(lab, Mode::FsdaxMem)?;
    disk.open(Access::Direct)?
        .write_all_at(&Buffer::stamped(LEN, 1), 0)?;
    expect_blocked_by_host("unbind", || bound.unbind())?;
    bound.bind(lab.driver)?;
    expect_contents(&disk, 1)
}
