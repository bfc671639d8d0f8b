// SPDX-License-Identifier: GPL-2.0

//! Block I/O with all sizes and interfaces, checked against a model in memory.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use libc::RWF_NOWAIT;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::platform::only_for_pmem_rs;
use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::PAGE;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, SECTOR, expect_same};
use crate::syscall::{preadv2, pwritev2, zero_out};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "block",
    tests: &[
        Test::new("direct_raw", |lab| {
            random(lab, Mode::Raw, &[Access::Direct])
        }),
        Test::new("direct_fsdax_mem", |lab| {
            random(lab, Mode::FsdaxMem, &[Access::Direct])
        }),
        Test::new("direct_fsdax_dev", |lab| {
            random(lab, Mode::FsdaxDev, &[Access::Direct])
        }),
        Test::new("buffered_raw", |lab| {
            random(lab, Mode::Raw, &[Access::Buffered])
        }),
        Test::new("buffered_fsdax_mem", |lab| {
            random(lab, Mode::FsdaxMem, &[Access::Buffered])
        }),
        Test::new("direct_and_buffered_mixed", |lab| {
            random(lab, Mode::FsdaxMem, BOTH)
        }),
        Test::new("every_size_at_every_offset_in_a_page", sizes_and_offsets),
        Test::new("four_threads", four_threads),
        Test::new("nowait", nowait),
        Test::new("zeroes_are_few_requests", zeroes),
        Test::new("statistics_count_sectors", statistics),
    ],
};

const BOTH: &[Access] = &[Access::Direct, Access::Buffered];
/// The size of the part that a test uses at either end of the disk.
const WINDOW: usize = 24 << 20;
/// How many bytes a test with random requests moves.
const VOLUME: usize = 96 << 20;
const LARGEST: usize = 4 << 20;
/// The maximum number of buffers of one system call (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// One kind of read or write.
#[derive(Clone, Copy, Debug)]
enum Step {
    Read,
    ReadVectored,
    Write,
    WriteVectored,
    /// `RWF_DSYNC`: a write with FUA.
    WriteDurably,
    /// A write followed by `fsync`: a flush.
    WriteAndFlush,
}

const STEPS: &[Step] = &[
    Step::Read,
    Step::ReadVectored,
    Step::Write,
    Step::WriteVectored,
    Step::WriteDurably,
    Step::WriteAndFlush,
];

/// Accesses one part of a disk, and has a model of its contents.
struct Worker {
    files: Vec<(Access, File)>,
    model: Model,
    random: ChaCha8Rng,
    tag: u64,
}

impl Worker {
    fn new(
        disk: &Disk,
        accesses: &[Access],
        start: u64,
        len: usize,
        random: ChaCha8Rng,
    ) -> Result<Worker> {
        let files = accesses
            .iter()
            .map(|&access| Ok((access, disk.open(access)?)))
            .collect::<Result<Vec<_>>>()?;
        let model = Model::of(&disk.open(Access::Direct)?, start, len)?;
        Ok(Worker {
            files,
            model,
            random,
            tag: 0,
        })
    }

    /// Random sizes from one sector to the maximum, with a uniform logarithm.
    fn size(&mut self) -> usize {
        let largest = self.random.random_range(SECTOR.ilog2()..=LARGEST.ilog2());
        self.random.random_range(1..=(1 << largest) / SECTOR) * SECTOR
    }

    fn step(&mut self) -> Result<usize> {
        let len = self.size().min(self.model.len());
        let offset = self
            .random
            .random_range(0..=(self.model.len() - len) / SECTOR)
            * SECTOR;
        let step = *STEPS.choose(&mut self.random).context("no steps")?;
        let which = self.random.random_range(0..self.files.len());
        let (access, file) = (self.files[which].0, self.files[which].1.try_clone()?);
        let what = format!("{step:?} ({access:?}) of {len} bytes");
        let at = self.model.on_disk(offset);
        match step {
            Step::Read => {
                let mut buffer = Buffer::new(len);
                file.read_exact_at(&mut buffer, at).context(what.clone())?;
                self.model.check(&what, offset, &buffer)?;
            }
            Step::ReadVectored => {
                let mut buffer = Buffer::new(len);
                self.read_vectored(&file, &mut buffer, at)
                    .context(what.clone())?;
                self.model.check(&what, offset, &buffer)?;
            }
            _ => {
                self.tag += 1;
                let buffer = Buffer::stamped(len, self.tag);
                self.write(step, &file, &buffer, at).context(what)?;
                self.model.written(offset, &buffer);
            }
        }
        Ok(len)
    }

    fn write(&mut self, step: Step, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        match step {
            Step::WriteVectored => self.write_vectored(file, bytes, at),
            Step::WriteDurably => {
                let written = pwritev2(file, &[IoSlice::new(bytes)], at, libc::RWF_DSYNC)?;
                complete(written, bytes.len())
            }
            Step::WriteAndFlush => {
                file.write_all_at(bytes, at)?;
                file.sync_all()
            }
            _ => file.write_all_at(bytes, at),
        }
    }

    /// Cuts a request into segments of whole sectors, most of them small.
    fn cuts(&mut self, len: usize) -> Vec<usize> {
        let mut pieces = Vec::new();
        let mut left = len;
        while left > 0 && pieces.len() < MOST_PIECES - 1 {
            let piece = (self.random.random_range(1..=9) * SECTOR).min(left);
            pieces.push(piece);
            left -= piece;
        }
        if left > 0 {
            pieces.push(left);
        }
        pieces
    }

    fn read_vectored(&mut self, file: &File, bytes: &mut [u8], at: u64) -> io::Result<()> {
        let len = bytes.len();
        let mut rest = bytes;
        let mut slices = Vec::new();
        for piece in self.cuts(len) {
            let (head, tail) = rest.split_at_mut(piece);
            slices.push(IoSliceMut::new(head));
            rest = tail;
        }
        complete(preadv2(file, &mut slices, at, 0)?, len)
    }

    fn write_vectored(&mut self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        let mut rest = bytes;
        let mut slices = Vec::new();
        for piece in self.cuts(bytes.len()) {
            let (head, tail) = rest.split_at(piece);
            slices.push(IoSlice::new(head));
            rest = tail;
        }
        complete(pwritev2(file, &slices, at, 0)?, bytes.len())
    }

    fn finish(self) -> Result<()> {
        for (_, file) in &self.files {
            file.sync_all()?;
            self.model.check_all(file)?;
        }
        Ok(())
    }
}

fn complete(done: usize, wanted: usize) -> io::Result<()> {
    if done == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "only {done} of {wanted} bytes were moved"
    )))
}

/// Random requests at the start and at the end of the disk.
fn random(lab: &mut Lab, mode: Mode, accesses: &[Access]) -> Result<()> {
    let disk = lab.prepare(mode)?.disk;
    for start in [0, disk.bytes()? - WINDOW as u64] {
        let random = ChaCha8Rng::from_rng(&mut lab.random);
        let mut worker = Worker::new(&disk, accesses, start, WINDOW, random)?;
        let mut moved = 0;
        while moved < VOLUME / 2 {
            moved += worker.step()?;
        }
        worker.finish()?;
    }
    Ok(())
}

/// Requests of up to three pages that start at every sector of a page.
fn sizes_and_offsets(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    let mut model = Model::of(&file, 0, 8 * PAGE)?;
    let mut tag = 0;
    for offset in (0..PAGE).step_by(SECTOR) {
        for len in (SECTOR..=3 * PAGE).step_by(SECTOR) {
            tag += 1;
            let bytes = Buffer::stamped(len, tag);
            file.write_all_at(&bytes, model.on_disk(PAGE + offset))?;
            model.written(PAGE + offset, &bytes);
            let mut found = Buffer::new(len);
            file.read_exact_at(&mut found, model.on_disk(PAGE + offset))?;
            model.check(&format!("{len} bytes"), PAGE + offset, &found)?;
        }
        // The bytes around the requests have not changed.
        model.check_all(&file)?;
    }
    Ok(())
}

fn four_threads(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let len = WINDOW / 4;
    let mut workers = Vec::new();
    for index in 0..4 {
        let random = ChaCha8Rng::from_rng(&mut lab.random);
        workers.push(Worker::new(
            &disk,
            &[Access::Direct],
            (index * len) as u64,
            len,
            random,
        )?);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|mut worker| {
                scope.spawn(move || -> Result<()> {
                    let mut moved = 0;
                    while moved < VOLUME / 8 {
                        moved += worker.step()?;
                    }
                    worker.finish()
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(_) => anyhow::bail!("a thread panicked"),
            })
    })?;
    let in_flight = disk.statistics()?.in_flight;
    ensure!(in_flight == 0, "{in_flight} requests are still under way");
    Ok(())
}

/// A request with `RWF_NOWAIT` is completed at once. nd_pmem does not have that.
fn nowait(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        disk.cut("label: gpt\nstart=16M, size=64M\n")?;
        for disk in [&disk, &disk.partition(1)] {
            let file = disk.open(Access::Direct)?;
            if lab.driver == Driver::PmemRs {
                expect_no_wait(&file, 8 << 20).with_context(|| format!("{mode:?}, {disk}"))?;
            } else {
                let refused = pwritev2(&file, &[IoSlice::new(&Buffer::new(4096))], 0, RWF_NOWAIT);
                errno::expect("RWF_NOWAIT", refused, &[Errno::EOPNOTSUPP])?;
            }
        }
    }
    Ok(())
}

/// Checks that writes and reads with `RWF_NOWAIT`, also of durable data, do all at once.
pub fn expect_no_wait(file: &File, at: u64) -> Result<()> {
    for (len, flags) in [(SECTOR, 0), (64 << 10, 0), (4096, libc::RWF_DSYNC)] {
        let right = Buffer::stamped(len, at + len as u64);
        let flags = flags | RWF_NOWAIT;
        let written = pwritev2(file, &[IoSlice::new(&right)], at, flags)?;
        let mut found = Buffer::new(len);
        let read = preadv2(file, &mut [IoSliceMut::new(&mut found)], at, flags)?;
        ensure!(
            written == len && read == len,
            "{written} bytes were written and {read} read of {len}"
        );
        expect_same("what was read without waiting", &found, &right)?;
    }
    Ok(())
}

/// A range is zeroed by one request for each 64 MiB, without other changes. nd_pmem gets the zeroes
/// as data.
fn zeroes(lab: &mut Lab) -> Result<()> {
    const AT: u64 = (3 << 20) + 512;
    const LEN: u64 = (130 << 20) + 1024;
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        sysfs::write(disk.path("queue/iostats"), "1")?;
        disk.expect("queue/write_zeroes_max_bytes", "67108864")?;
        let file = disk.open(Access::Direct)?;
        let all = usize::try_from(AT + LEN + 4096)?;
        let right = Buffer::stamped(all, 8);
        file.write_all_at(&right, 0)?;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for zero in [
            &(|| Ok(zero_out(&file, AT, LEN)?)) as &dyn Fn() -> Result<()>,
            &|| Ok(fallocate(&file, punch, AT.try_into()?, LEN.try_into()?)?),
        ] {
            let before = disk.statistics()?;
            zero()?;
            let done = disk.statistics()?.since(before);
            ensure!(
                done.writes == 3 && done.sectors_written == LEN / 512,
                "{LEN} bytes were zeroed: {done:?}"
            );
            let mut found = Buffer::new(all);
            file.read_exact_at(&mut found, 0)?;
            let (start, end) = (AT as usize, (AT + LEN) as usize);
            expect_same("before them", &found[..start], &right[..start])?;
            ensure!(
                found[start..end].iter().all(|&byte| byte == 0),
                "not all is zero"
            );
            expect_same("after them", &found[end..], &right[end..])?;
            file.write_all_at(&right, 0)?;
        }
    }
    Ok(())
}

/// The statistics change by exactly what was done, and not at all while they are off.
fn statistics(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    sysfs::write(disk.path("queue/iostats"), "0")?;
    let before = disk.statistics()?;
    file.write_all_at(&Buffer::stamped(4096, 1), 0)?;
    let done = disk.statistics()?.since(before);
    ensure!(done.writes == 0, "counting is off, and still: {done:?}");

    sysfs::write(disk.path("queue/iostats"), "1")?;
    for sectors in [1, 7, 8, 100, 2048] {
        let mut bytes = Buffer::stamped(sectors * SECTOR, sectors as u64);

        let before = disk.statistics()?;
        file.write_all_at(&bytes, 0)?;
        let done = disk.statistics()?.since(before);
        ensure!(
            done.sectors_written == sectors as u64,
            "{sectors} sectors written: {done:?}"
        );
        ensure!(
            done.writes >= 1 && done.reads == 0 && done.in_flight == 0,
            "a write: {done:?}"
        );

        let before = disk.statistics()?;
        file.read_exact_at(&mut bytes, 0)?;
        let done = disk.statistics()?.since(before);
        ensure!(
            done.sectors_read == sectors as u64,
            "{sectors} sectors read: {done:?}"
        );
        ensure!(
            done.reads >= 1 && done.writes == 0 && done.in_flight == 0,
            "a read: {done:?}"
        );
    }
    Ok(())
}
