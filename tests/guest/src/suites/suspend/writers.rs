// SPDX-License-Identifier: GPL-2.0

//! What waits while a disk is suspended, and what does not.

use std::io::IoSlice;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{COUNTED, Counter, LIMIT, build, end, expect_state, resume, suspend};
use crate::disk::Access;
use crate::lab::Lab;
use crate::mapping::{Mapping, PMD, Sharing, need_huge_pages};
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::suites::platform::only_for_pmem_rs;
use crate::suites::revoke::{Fixture, Fs, Under};
use crate::syscall::{pwritev2, zero_out};

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

/// Block requests that write wait, and those that read do not. A request that must not wait fails.
pub fn writes_are_held(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let prepared = lab.prepare(mode)?;
        let (bound, disk) = (&prepared.bound, &prepared.disk);
        let file = disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::stamped(4 * REQUEST, 1), 0)?;
        suspend(bound)?;

        let mut writers = Vec::new();
        for index in 0..2 {
            let writer = disk.open(Access::Direct)?;
            writers.push(Child::start("a writer", move |_| {
                Ok(writer.write_all_at(&Buffer::stamped(REQUEST, 2), index * REQUEST as u64)?)
            })?);
        }
        let zeroer = disk.open(Access::Direct)?;
        writers.push(Child::start("the zeroing program", move |_| {
            Ok(zero_out(&zeroer, 2 * REQUEST as u64, REQUEST as u64)?)
        })?);
        let buffered = disk.open(Access::Buffered)?;
        writers.push(Child::start("the syncing program", move |_| {
            buffered.write_all_at(&stamped(REQUEST, 3), 3 * REQUEST as u64)?;
            Ok(buffered.sync_all()?)
        })?);
        for writer in &mut writers {
            writer.await_uninterruptible()?;
        }
        let direct = disk.open(Access::Direct)?;
        let buffer = Buffer::of_pages(REQUEST, 9);
        let nowait = pwritev2(&direct, &[IoSlice::new(&buffer)], 0, libc::RWF_NOWAIT);
        ensure!(
            nowait.as_ref().err().and_then(std::io::Error::raw_os_error) == Some(libc::EAGAIN),
            "a write that must not wait gave {nowait:?}"
        );
        let mut found = Buffer::new(4 * REQUEST);
        file.read_exact_at(&mut found, 0)?;
        expect_same("what the disk has", &found, &stamped(4 * REQUEST, 1))?;

        resume(bound)?;
        for writer in &mut writers {
            writer.expect_done(LIMIT)?;
        }
        file.read_exact_at(&mut found, 0)?;
        for index in 0..2 {
            let part = &found[index * REQUEST..][..REQUEST];
            expect_same("what was written", part, &stamped(REQUEST, 2))?;
        }
        let zeroed = &found[2 * REQUEST..][..REQUEST];
        expect_same("what was zeroed", zeroed, &vec![0; REQUEST])?;
        let synced = &found[3 * REQUEST..];
        expect_same("what was synced", synced, &stamped(REQUEST, 3))?;
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
