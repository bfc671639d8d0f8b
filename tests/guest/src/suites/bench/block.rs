// SPDX-License-Identifier: GPL-2.0

//! Requests to the disk, with direct I/O.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::Value;

use super::measure::{Case, Work, report};
use super::pair::{Pair, Side};
use crate::command::run;
use crate::counter::IO_URING;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::lab::{Lab, Skip};
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::syscall::zero_out;
use crate::sysfs;

/// The part of the disk that is used.
const SPAN: u64 = 256 << 20;

/// The operation of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    /// A write that is durable when it returns (`O_DSYNC`).
    DurableWrite,
}

/// The order of offsets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Sequential,
    Random,
}

/// The memory of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// Pages that are not physically adjacent, as in a long-running program. A request has one
    /// segment for each page.
    Pages,
    /// One huge page: a request has one segment.
    Huge,
}

struct Requests {
    disk: File,
    memory: Mapping,
    operation: Operation,
    order: Order,
    len: usize,
    /// The number of requests so far.
    done: u64,
}

impl Requests {
    fn offset(&self) -> u64 {
        let places = SPAN / self.len as u64;
        let place = match self.order {
            Order::Sequential => self.done % places,
            // Multiplication by an odd number visits every offset of a power of two.
            Order::Random => self.done.wrapping_mul(0x9e37_79b9_7f4a_7c15) % places,
        };
        place * self.len as u64
    }
}

impl Work for Requests {
    fn run(&mut self, operations: u32) -> Result<()> {
        for _ in 0..operations {
            let offset = self.offset().try_into()?;
            match self.operation {
                Operation::Read => self.memory.read_from(0, self.len, &self.disk, offset),
                _ => self.memory.write_to(0, self.len, &self.disk, offset),
            }?;
            self.done += 1;
        }
        Ok(())
    }
}

/// Writes to the whole part of the disk that is used.
pub fn touch(side: &Side) -> Result<()> {
    let mut work = requests(
        side,
        Operation::Write,
        Order::Sequential,
        PMD / 2,
        Memory::Huge,
    )?;
    work.run(u32::try_from(SPAN / (PMD as u64 / 2))?)
}

/// The number of reserved huge pages.
pub const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

/// Allocates a buffer for requests.
fn memory(kind: Memory, len: usize) -> Result<Mapping> {
    match kind {
        Memory::Pages => {
            let pages = len.div_ceil(PAGE);
            let file = File::from(memfd_create("buffer", MFdFlags::empty())?);
            file.set_len((pages * PAGE) as u64)?;
            let mapping = Mapping::of_pages(&file, pages * PAGE, Sharing::Shared, true)?;
            // The kernel hands out consecutive pages, so they are touched in another order.
            for page in 0..pages {
                mapping.store(page * 37 % pages * PAGE, 1);
            }
            Ok(mapping)
        }
        Memory::Huge => {
            if sysfs::read(HUGE_PAGES)?.parse::<u64>()? < 4 {
                sysfs::write(HUGE_PAGES, "4")?;
            }
            let file = File::from(memfd_create("buffer", MFdFlags::MFD_HUGETLB)?);
            file.set_len(PMD as u64)?;
            let mapping = Mapping::new(&file, PMD, Sharing::Shared)?;
            mapping.store(0, 1);
            Ok(mapping)
        }
    }
}

fn requests_to(
    disk: &Disk,
    operation: Operation,
    order: Order,
    len: usize,
    kind: Memory,
) -> Result<Box<dyn Work>> {
    let mut options = File::options();
    let durable = match operation {
        Operation::DurableWrite => libc::O_DSYNC,
        _ => 0,
    };
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_DIRECT | durable);
    let disk = options.read(true).write(true).open(disk.node())?;
    Ok(Box::new(Requests {
        disk,
        memory: memory(kind, len)?,
        operation,
        order,
        len,
        done: 0,
    }))
}

/// Synchronous requests, by `pread` and `pwrite`.
pub fn requests(
    side: &Side,
    operation: Operation,
    order: Order,
    len: usize,
    kind: Memory,
) -> Result<Box<dyn Work>> {
    requests_to(&side.disk, operation, order, len, kind)
}

/// The offset of the bad block. No case uses it, nor do metadata of ext4.
const BAD: u64 = 832 << 20;

/// Adds a bad block to the list of the disk, as a user can.
pub fn add_bad_block(side: &Side) -> Result<()> {
    let sector = BAD >> 9;
    sysfs::write(side.disk.path("badblocks"), &format!("{sector} 8"))
}

/// The module null_blk, and its arguments.
pub const NULL: &str = "null_blk";
const NULL_DISKS: [&str; 5] = [NULL, "nr_devices=2", "gb=1", "memory_backed=0", "irqmode=0"];

/// Requests that move nothing: each side has a disk of null_blk.
pub const NULL_REQUESTS: Case = Case {
    module: Some(NULL),
    ..Case::many(|side| {
        load_null()?;
        let disk = Disk::named(match side.driver {
            Driver::NdPmem => "nullb0",
            Driver::PmemRs => "nullb1",
        });
        requests_to(
            &disk,
            Operation::Read,
            Order::Sequential,
            PAGE,
            Memory::Pages,
        )
    })
};

/// Loads null_blk unless it is loaded.
pub fn load_null() -> Result<()> {
    run("modprobe", &NULL_DISKS).map(drop)
}

struct Flushes(File);

impl Work for Flushes {
    fn run(&mut self, operations: u32) -> Result<()> {
        Ok((0..operations).try_for_each(|_| self.0.sync_all())?)
    }
}

/// `fsync` of the disk, with nothing to write.
pub fn flushes(side: &Side) -> Result<Box<dyn Work>> {
    Ok(Box::new(Flushes(side.disk.open(Access::Direct)?)))
}

struct Zeroes(File);

impl Work for Zeroes {
    fn run(&mut self, operations: u32) -> Result<()> {
        Ok((0..operations).try_for_each(|_| zero_out(&self.0, 0, ZEROED))?)
    }
}

/// How many bytes are zeroed by one operation.
const ZEROED: u64 = 16 << 20;

/// Zeroes 16 MiB as `blkdiscard --zeroout` does.
pub fn zeroes(side: &Side) -> Result<Box<dyn Work>> {
    Ok(Box::new(Zeroes(side.disk.open(Access::Direct)?)))
}

struct Mkfs(Disk);

impl Work for Mkfs {
    fn run(&mut self, operations: u32) -> Result<()> {
        let node = self.0.node_str();
        (0..operations).try_for_each(|_| {
            run(
                "mkfs.ext4",
                &["-q", "-F", "-b", "4096", "-E", "nodiscard", &node],
            )
            .map(drop)
        })
    }
}

/// Runs `mkfs.ext4`.
pub fn mkfs(side: &Side) -> Result<Box<dyn Work>> {
    Ok(Box::new(Mkfs(side.disk.clone())))
}

/// The file that says whether the second CPU is on.
const SECOND_CPU: &str = "/sys/devices/system/cpu/cpu1/online";

/// Calls `work` with one CPU. So the threads of io_uring cannot work beside the submitter.
pub fn on_one_cpu<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    if sysfs::read("/sys/devices/system/cpu/online")? != "0-1" {
        return Err(Skip("it needs a machine with two CPUs, one of which it turns off").into());
    }
    sysfs::write(SECOND_CPU, "0")?;
    let result = work();
    sysfs::write(SECOND_CPU, "1")?;
    result
}

/// Random requests of 4 KiB, which fio submits by io_uring.
struct Job {
    node: String,
    rw: &'static str,
    depth: u32,
}

impl Work for Job {
    fn run(&mut self, operations: u32) -> Result<()> {
        run(
            "fio",
            &[
                "--name=job",
                "--ioengine=io_uring",
                "--direct=1",
                "--thread",
                "--bs=4k",
                "--norandommap",
                "--randrepeat=1",
                &format!("--size={SPAN}"),
                &format!("--filename={}", self.node),
                &format!("--rw={}", self.rw),
                &format!("--iodepth={}", self.depth),
                &format!("--number_ios={operations}"),
            ],
        )
        .map(drop)
    }
}

/// Requests of fio with so many in flight.
pub fn fio_job(side: &Side, rw: &'static str, depth: u32) -> Result<Box<dyn Work>> {
    Ok(Box::new(Job {
        node: side.disk.node_str(),
        rw,
        depth,
    }))
}

/// A case that counts the instructions of whole requests of io_uring: of the system call, of the
/// threads that it gives requests to, and of what both call.
pub const fn uring_requests(setup: fn(&Side) -> Result<Box<dyn Work>>) -> Case {
    Case {
        module: Some(IO_URING),
        ..Case::exactly(1000, setup)
    }
}

/// Requests of fio by io_uring: `threads` threads, each with `depth` requests in flight.
pub fn fio(lab: &Lab, name: &str, depth: u32, threads: u32, rw: &str, size: &str) -> Result<()> {
    let pair = Pair::ready(lab)?;
    // One process runs all rounds, one job after the other.
    let mut jobs = format!(
        "[global]\nioengine=io_uring\ndirect=1\nthread\ntime_based\nruntime=300ms\nsize={SPAN}\nnorandommap\n\
         randrepeat=1\ngtod_reduce=1\ngroup_reporting\niodepth={depth}\nnumjobs={threads}\nrw={rw}\nbs={size}\n"
    );
    let rounds = super::measure::ROUNDS;
    for round in 0..rounds {
        let mut sides = pair.sides();
        if !super::measure::goes_first(round) {
            sides.reverse();
        }
        for side in sides {
            let (driver, node) = (side.driver.name(), side.disk.node_str());
            jobs += &format!("[{driver}]\nstonewall\nnew_group\nfilename={node}\n");
        }
    }
    let file = "/tmp/jobs.fio";
    File::create(file)?.write_all(jobs.as_bytes())?;
    let text = run("fio", &["--output-format=json", file])?;
    let json = text
        .find('{')
        .map(|start| &text[start..])
        .context("fio reported nothing")?;
    let result: Value = serde_json::from_str(json).with_context(|| format!("fio said: {text}"))?;
    let direction = if rw.contains("read") { "read" } else { "write" };
    let of = |driver: Driver| -> Result<Vec<f64>> {
        let jobs = result["jobs"].as_array().context("fio reported no jobs")?;
        let jobs = jobs.iter().filter(|job| job["jobname"] == driver.name());
        jobs.map(|job| {
            ensure!(job["error"] == 0, "fio's job failed: {}", job["error"]);
            let rate = job[direction]["iops"].as_f64().context("no rate")?;
            ensure!(rate > 0.0, "fio has done nothing");
            let requests = job[direction]["total_ios"].as_f64().context("no count")?;
            let switches = job["ctx"].as_f64().context("no context switches")? / requests;
            println!(
                "{}: {switches:.4} context switches a request",
                driver.name()
            );
            Ok(1e9 / rate)
        })
        .collect()
    };
    let (theirs, ours) = (of(Driver::NdPmem)?, of(Driver::PmemRs)?);
    ensure!(
        theirs.len() == rounds && ours.len() == rounds,
        "fio reported {} and {} rounds, not {rounds}",
        theirs.len(),
        ours.len()
    );
    let rounds: Vec<_> = theirs
        .into_iter()
        .zip(ours)
        .map(|(theirs, ours)| [Some(theirs), Some(ours)])
        .collect();
    report(name, "time", "ns", rounds)
}
