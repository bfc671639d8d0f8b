// SPDX-License-Identifier: GPL-2.0

//! Requests that suite `block` does not have: on partitions and mapped devices that start within a
//! page, many in flight at once, from huge pages, with buffers and lengths that are not whole
//! sectors, and those that zero or discard. All results are checked against a model in memory.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{cases, share};
use crate::aio::{self, Request};
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::{Mapping, PMD, huge_page};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, SECTOR, expect_same};
use crate::syscall::{self, preadv2, pwritev2};

/// Two partitions that start within a page.
const PARTITIONS: &str = "label: gpt\nstart=4097, size=200001\nstart=210003, size=200001\n";
/// The mapped device: a part of the second partition, which also starts within a page.
const MAPPED: &str = "0 180001 linear /dev/pmem0p2 5";
/// The size of the part of a target that is used.
const WINDOW: usize = 4 << 20;
const LARGEST: usize = 1 << 20;
/// The maximum number of requests in flight.
const MOST_AT_ONCE: usize = 24;
/// The maximum number of buffers of one request.
const MOST_PIECES: usize = 64;
/// The size of the mapping with huge pages.
const HUGE: usize = 2 * PMD;
/// After this many cases the whole window is read again.
const CASES_PER_CHECK: u64 = 50;

/// One kind of request.
#[derive(Clone, Copy, Debug)]
enum Step {
    Scattered,
    AtOnce,
    HugePages,
    Misaligned,
    ZeroOut,
    Fallocate,
    Discard,
    ReadWithFlags,
}

const STEPS: &[Step] = &[
    Step::Scattered,
    Step::Scattered,
    Step::AtOnce,
    Step::AtOnce,
    Step::HugePages,
    Step::Misaligned,
    Step::ZeroOut,
    Step::Fallocate,
    Step::Discard,
    Step::ReadWithFlags,
];

/// A disk with any start sector, and the expected contents of a part of it.
struct Target {
    name: String,
    file: File,
    buffered: File,
    model: Model,
}

impl Target {
    fn new(disk: &Disk, random: &mut ChaCha8Rng) -> Result<Target> {
        let file = disk.open(Access::Direct)?;
        let last = disk.bytes()? - WINDOW as u64;
        // Sometimes the window is at the end of the disk.
        let start = match random.random_range(0..3) {
            0 => last,
            _ => random.random_range(0..=last / SECTOR as u64) * SECTOR as u64,
        };
        Ok(Target {
            name: disk.name().to_owned(),
            model: Model::of(&file, start, WINDOW)?,
            buffered: disk.open(Access::Buffered)?,
            file,
        })
    }
}

pub fn fuzz(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    disk.cut(PARTITIONS)?;
    let mapped = Mapped::new("odd", &MAPPED.replace("pmem0", disk.name()))?;
    let huge = Mapping::anonymous(HUGE + PMD)?;
    if huge_page() == Some(PMD) {
        huge.prefer_huge_pages()?;
    }
    let targets = [disk.partition(1), mapped.disk().clone()];
    let mut targets = targets
        .iter()
        .map(|disk| Target::new(disk, &mut lab.random))
        .collect::<Result<Vec<_>>>()?;
    let (mut number, mut tag) = (0, 0);
    let time = share(lab);
    let all = cases(lab, "requests", time, |_, random| {
        let which = random.random_range(0..targets.len());
        let target = &mut targets[which];
        let step = *STEPS.choose(random).context("no steps")?;
        tag += 1;
        let mut chance = Chance { random, tag };
        chance
            .step(step, target, &huge)
            .with_context(|| format!("{step:?} on {}", target.name))?;
        tag = chance.tag;
        number += 1;
        if number % CASES_PER_CHECK == 0 {
            targets
                .iter()
                .try_for_each(|target| target.model.check_all(&target.file))?;
        }
        Ok(())
    })?;
    targets
        .iter()
        .try_for_each(|target| target.model.check_all(&target.file))?;
    drop(targets);
    mapped.remove()?;
    println!("measured: {all} requests of odd shapes");
    Ok(())
}

/// The source of random numbers, and the number of the last write.
struct Chance<'a> {
    random: &'a mut ChaCha8Rng,
    tag: u64,
}

impl Chance<'_> {
    /// Random sizes from one sector to the maximum, with a uniform logarithm.
    fn size(&mut self, most: usize) -> usize {
        let largest = self.random.random_range(SECTOR.ilog2()..=most.ilog2());
        self.random.random_range(1..=(1 << largest) / SECTOR) * SECTOR
    }

    /// The offset for a request of this length.
    fn offset(&mut self, len: usize) -> usize {
        self.random.random_range(0..=(WINDOW - len) / SECTOR) * SECTOR
    }

    fn step(&mut self, step: Step, target: &mut Target, huge: &Mapping) -> Result<()> {
        let len = self.size(LARGEST);
        let offset = self.offset(len);
        let at = target.model.on_disk(offset);
        let file = &target.file;
        match step {
            Step::Scattered => self.scattered(target, offset, len),
            Step::AtOnce => self.at_once(target),
            Step::HugePages => {
                // The pages of the buffer and those of the disk do not coincide.
                let from = self.random.random_range(0..=(HUGE - len) / SECTOR) * SECTOR;
                if self.random.random() {
                    let bytes = Buffer::stamped(len, self.tag);
                    huge.write(from, &bytes);
                    huge.write_to(from, len, file, at as i64)?;
                    target.model.written(offset, &bytes);
                    return Ok(());
                }
                huge.read_from(from, len, file, at as i64)?;
                target
                    .model
                    .check("huge pages", offset, &huge.to_vec(from, len))
            }
            Step::Misaligned => self.misaligned(file, at, len),
            Step::ZeroOut => {
                syscall::zero_out(&target.buffered, at, len as u64)?;
                target.model.zeroed(offset, len);
                Ok(())
            }
            Step::Fallocate => {
                let zero = self.random.random();
                match syscall::fallocate(&target.buffered, zero, at, len as u64) {
                    Ok(()) => {
                        target.model.zeroed(offset, len);
                        Ok(())
                    }
                    // The disk can write zeros, but it cannot discard.
                    Err(error) if !zero && error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
                    Err(error) => Err(error).context(if zero { "zeroing" } else { "punching" }),
                }
            }
            Step::Discard => {
                let result = syscall::discard(&target.buffered, at, len as u64);
                errno::expect("discarding", result, &[Errno::EOPNOTSUPP]).map(drop)
            }
            Step::ReadWithFlags => {
                let flags = *[
                    libc::RWF_NOWAIT,
                    libc::RWF_HIPRI,
                    libc::RWF_NOWAIT | libc::RWF_HIPRI,
                ]
                .choose(self.random)
                .unwrap_or(&0);
                let mut found = Buffer::new(len);
                match preadv2(file, &mut [IoSliceMut::new(&mut found)], at, flags) {
                    Ok(read) => target
                        .model
                        .check("read with flags", offset, &found[..read]),
                    Err(error) => errno::expect::<()>(
                        "reading with flags",
                        Err(error),
                        &[Errno::EAGAIN, Errno::EOPNOTSUPP],
                    )
                    .map(drop),
                }
            }
        }
    }

    /// One request with many buffers, whose order in memory differs from the order on the disk.
    fn scattered(&mut self, target: &mut Target, offset: usize, len: usize) -> Result<()> {
        let sectors = len / SECTOR;
        let most = sectors.min(MOST_PIECES);
        let pieces = self.random.random_range(1..=most);
        let mut cuts: Vec<usize> = (1..pieces)
            .map(|_| self.random.random_range(0..=sectors) * SECTOR)
            .chain([0, len])
            .collect();
        cuts.sort_unstable();
        // Each segment has a buffer of its own. A segment may be empty.
        let mut buffers: Vec<Buffer> = cuts
            .windows(2)
            .map(|cut| Buffer::new(cut[1] - cut[0]))
            .collect();
        let at = target.model.on_disk(offset);
        if self.random.random() {
            let bytes = Buffer::stamped(len, self.tag);
            for (buffer, cut) in buffers.iter_mut().zip(cuts.windows(2)) {
                buffer.copy_from_slice(&bytes[cut[0]..cut[1]]);
            }
            let slices: Vec<IoSlice<'_>> =
                buffers.iter().map(|buffer| IoSlice::new(buffer)).collect();
            let flags = if self.random.random() {
                libc::RWF_DSYNC
            } else {
                0
            };
            let written = pwritev2(&target.file, &slices, at, flags)?;
            ensure!(written == len, "{written} of {len} bytes were written");
            target.model.written(offset, &bytes);
            return Ok(());
        }
        let mut slices: Vec<IoSliceMut<'_>> = buffers
            .iter_mut()
            .map(|buffer| IoSliceMut::new(buffer))
            .collect();
        let read = preadv2(&target.file, &mut slices, at, 0)?;
        ensure!(read == len, "{read} of {len} bytes were read");
        let found: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
        target.model.check("scattered", offset, &found)
    }

    /// Many requests in flight at once. Their sectors do not overlap, so the result is determined.
    fn at_once(&mut self, target: &mut Target) -> Result<()> {
        let count = self.random.random_range(2..=MOST_AT_ONCE);
        let room = WINDOW / count;
        let mut plans = Vec::new();
        for number in 0..count {
            let len = self.size(room).min(room / SECTOR * SECTOR);
            let start = self.random.random_range(0..=(room - len) / SECTOR) * SECTOR;
            let offset = (number * room).next_multiple_of(SECTOR) + start;
            let len = len.min(((number + 1) * room - offset) / SECTOR * SECTOR);
            let write: bool = self.random.random();
            let buffer = if write {
                Buffer::stamped(len, self.tag + number as u64)
            } else {
                Buffer::new(len)
            };
            plans.push((offset, write, buffer));
        }
        self.tag += count as u64;
        let mut requests: Vec<Request<'_>> = plans
            .iter_mut()
            .map(|(offset, write, buffer)| {
                let at = target.model.on_disk(*offset);
                if *write {
                    Request::Write(buffer, at)
                } else {
                    Request::Read(buffer, at)
                }
            })
            .collect();
        if self.random.random() {
            requests.push(Request::Sync);
        }
        let results = aio::run(&target.file, &mut requests)?;
        drop(requests);
        for ((offset, write, buffer), result) in plans.iter().zip(&results) {
            ensure!(
                *result == buffer.len() as i64,
                "{} bytes at {offset:#x}: {result}",
                buffer.len()
            );
            if *write {
                target.model.written(*offset, buffer);
            } else {
                target.model.check("one of many", *offset, buffer)?;
            }
        }
        ensure!(
            results.last().is_none_or(|last| *last >= 0),
            "syncing: {results:?}"
        );
        Ok(())
    }

    /// A length, an offset or an address that is not whole sectors: the request fails, and nothing
    /// is moved.
    fn misaligned(&mut self, file: &File, at: u64, len: usize) -> Result<()> {
        let odd = self.random.random_range(1..SECTOR);
        let (skip, at, len) = match self.random.random_range(0..3) {
            0 => (odd, at, len),
            1 => (0, at + odd as u64, len),
            _ => (0, at, len + odd),
        };
        let room = Buffer::stamped(len + 2 * SECTOR, self.tag);
        let bytes = &room[skip..skip + len];
        let result = if self.random.random() {
            file.write_at(bytes, at)
        } else {
            let mut room = Buffer::stamped(len + 2 * SECTOR, self.tag);
            let result = file.read_at(&mut room[skip..skip + len], at);
            expect_same("the buffer", &room, &Buffer::stamped(room.len(), self.tag))?;
            result
        };
        let what = format!(
            "{len} bytes at {at:#x}, {skip} into a sector, with {}",
            file.as_raw_fd()
        );
        errno::expect(&what, result, &[Errno::EINVAL]).map(drop)
    }
}
