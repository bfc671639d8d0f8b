// SPDX-License-Identifier: GPL-2.0

//! What waits while a disk is suspended, and what does not.

use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{COUNTED, Counter, LIMIT, build, end, expect_state, resume, suspend};
use crate::disk::Access;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::{Mapping, PMD, Sharing, need_huge_pages};
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::platform::only_for_pmem_rs;
use crate::suites::revoke::{Fixture, Fs, Under};
use crate::syscall::{pwritev2, zero_out};
use crate::sysfs;

/// The size of a request.
const REQUEST: usize = 64 << 10;

/// A program that reads a file all the time, through a new mapping each time.
pub struct Reader(Child);

impl Reader {
    pub fn start(fixture: &Fixture<'_>) -> Result<Reader> {
        let file = fixture.open()?;
        Ok(Reader(Child::start_ready(
            "the reading program",
            move |link: &mut Link| {
                for count in 1_u64.. {
                    let mapping = Mapping::read_only(&file, COUNTED, Sharing::Shared)?;
                    let mapped = mapping.to_vec(0, COUNTED);
                    let mut called = vec![0; COUNTED];
                    file.read_exact_at(&mut called, 0)?;
                    expect_same("what was read", &mapped, &called)?;
                    link.say(if count == 1 { "ready" } else { "again" })?;
                    if link.is_told_to_go()? {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Ok(())
            },
        )?))
    }

    /// Checks that it reads.
    pub fn expect_reading(&mut self) -> Result<()> {
        let before = self.0.count_heard("again")?;
        let deadline = Instant::now() + LIMIT;
        while self.0.count_heard("again")? < before + 3 {
            ensure!(Instant::now() < deadline, "it does not read");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn finish(mut self) -> Result<()> {
        self.0.go()?;
        self.0.expect_done(LIMIT)
    }
}

/// Direct writes wait in the driver, and reads do not. A request that must not wait fails.
pub fn writes_are_held(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let prepared = lab.prepare(mode)?;
        let (bound, disk) = (&prepared.bound, &prepared.disk);
        let file = disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(3 * REQUEST, 1), 0)?;
        suspend(bound)?;

        let mut writers = Vec::new();
        for index in 0..2 {
            let writer = disk.open(Access::Direct)?;
            writers.push(Child::start("a writer", move |_| {
                Ok(writer.write_all_at(&Buffer::stamped(REQUEST, 2), index * REQUEST as u64)?)
            })?);
        }
        for writer in &mut writers {
            writer.await_uninterruptible()?;
        }
        let buffer = Buffer::of_pages(REQUEST, 9);
        let at = 2 * REQUEST as u64;
        let nowait = pwritev2(&file, &[IoSlice::new(&buffer)], at, libc::RWF_NOWAIT);
        errno::expect("a write that must not wait", nowait, &[Errno::EAGAIN])?;
        let mut found = Buffer::new(3 * REQUEST);
        file.read_exact_at(&mut found, 0)?;
        expect_same("what the disk has", &found, &stamped(3 * REQUEST, 1))?;

        resume(bound)?;
        for writer in &mut writers {
            writer.expect_done(LIMIT)?;
        }
        file.read_exact_at(&mut found, 0)?;
        for index in 0..2 {
            let part = &found[index * REQUEST..][..REQUEST];
            expect_same("what was written", part, &stamped(REQUEST, 2))?;
        }
        let rest = &stamped(3 * REQUEST, 1)[2 * REQUEST..];
        expect_same("what was not written", &found[2 * REQUEST..], rest)?;
    }
    Ok(())
}

/// How a program writes to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Direct,
    /// Each write is durable when it ends (`REQ_FUA`).
    Durable,
    /// `BLKZEROOUT`
    Zero,
    /// By the page cache of the disk, whose pages are then written back.
    Sync,
}

/// Each kind of write has come to the driver, and is held there. A request that was held is counted
/// in the statistics of the disk.
pub fn all_kinds(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let (bound, disk) = (&prepared.bound, &prepared.disk);
    let file = disk.open(Access::Direct)?;
    sysfs::write(disk.path("queue/iostats"), "1")?;
    for kind in [Kind::Direct, Kind::Durable, Kind::Zero, Kind::Sync] {
        file.write_all_at(&Buffer::stamped(REQUEST, 1), 0)?;
        suspend(bound)?;
        let before = disk.statistics()?;
        let access = match kind {
            Kind::Sync => Access::Buffered,
            _ => Access::Direct,
        };
        let writer = disk.open(access)?;
        let mut writer = Child::start(format!("a program ({kind:?})"), move |_| {
            match kind {
                Kind::Direct => writer.write_all_at(&Buffer::stamped(REQUEST, 2), 0)?,
                Kind::Durable => {
                    let buffer = Buffer::stamped(REQUEST, 2);
                    let slices = [IoSlice::new(&buffer)];
                    let written = pwritev2(&writer, &slices, 0, libc::RWF_DSYNC)?;
                    ensure!(written == REQUEST, "{written} bytes were written");
                }
                Kind::Zero => zero_out(&writer, 0, REQUEST as u64)?,
                Kind::Sync => {
                    writer.write_all_at(&stamped(REQUEST, 2), 0)?;
                    writer.sync_all()?;
                }
            }
            Ok(())
        })?;
        let deadline = Instant::now() + LIMIT;
        while disk.statistics()?.since(before).writes == 0 {
            ensure!(Instant::now() < deadline, "{kind:?}: no request has come");
            std::thread::sleep(Duration::from_millis(20));
        }
        writer.await_uninterruptible()?;
        let mut found = Buffer::new(REQUEST);
        // A direct read waits for dirty pages of the page cache.
        if kind != Kind::Sync {
            file.read_exact_at(&mut found, 0)?;
            expect_same("what the disk has", &found, &stamped(REQUEST, 1))?;
        }
        resume(bound)?;
        writer.expect_done(LIMIT)?;
        file.read_exact_at(&mut found, 0)?;
        let right = match kind {
            Kind::Zero => vec![0; REQUEST],
            _ => stamped(REQUEST, 2),
        };
        expect_same(&format!("what was written ({kind:?})"), &found, &right)?;
    }
    Ok(())
}

/// A read-only file system is read.
pub fn erofs(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Erofs, Under::Whole)?;
    let mut reader = Reader::start(&fixture)?;
    suspend(&bound)?;
    reader.expect_reading()?;
    resume(&bound)?;
    reader.finish()?;
    end(fixture)
}

/// Pages that are dirty in an inode that is not.
pub fn map_sync(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Xfs, Under::Whole)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Synchronous)?;
    for _ in 0..3 {
        counter.expect_counting()?;
        suspend(&bound)?;
        counter.expect_waiting()?;
        resume(&bound)?;
    }
    counter.expect_counting()?;
    counter.finish()?;
    end(fixture)
}

pub fn huge_pages(lab: &mut Lab) -> Result<()> {
    need_huge_pages()?;
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let path = fixture.root()?.join("large");
    std::fs::write(&path, stamped(PMD, 1))?;
    let file = Access::Buffered.open(&path)?;
    let mut writer = Child::start_ready("the writer", move |link: &mut Link| {
        let mapping = Mapping::new(&file, PMD, Sharing::Shared)?;
        mapping.store(0, 1);
        link.say("ready")?;
        link.wait()?;
        mapping.write(0, &stamped(PMD, 2));
        Ok(())
    })?;
    suspend(&bound)?;
    writer.go()?;
    writer.await_uninterruptible()?;
    let mut right = stamped(PMD, 1);
    right[0] = 1;
    expect_same("the file", &std::fs::read(&path)?, &right)?;
    resume(&bound)?;
    writer.expect_done(LIMIT)?;
    expect_same("the file", &std::fs::read(&path)?, &stamped(PMD, 2))?;
    expect_state(&bound, "live")?;
    end(fixture)
}
