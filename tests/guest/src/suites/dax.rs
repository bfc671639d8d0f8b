// SPDX-License-Identifier: GPL-2.0

//! File systems mounted with `-o dax`: mappings and system calls see the same data.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::resource::{UsageWho, getrusage};

use super::dax_layout::{
    hole_reads_zero, punched_hole_reads_zero, sigbus_past_the_end, truncated_tail_is_zero,
};
use super::dax_pages::{
    buffer_of_direct_io, direct_io_on_a_dax_file, pages_in_a_pipe, private_mapping_is_copied,
};
use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, PMD, Sharing, need_huge_pages};
use crate::ndctl::Mode;
use crate::sectors::{expect_same, stamped};
use crate::syscall::is_dax;
use crate::tracing::FaultTrace;

/// The same tests for each file system.
macro_rules! suite {
    ($name:literal, $fs:expr, [$($test:ident),* $(,)?]) => {
        Suite {
            name: $name,
            tests: &[$(Test::new(stringify!($test), |lab| $test(lab, $fs))),*],
        }
    };
}

macro_rules! dax_suite {
    ($name:literal, $fs:expr) => {
        suite!(
            $name,
            $fs,
            [
                mount_says_dax,
                no_dax_without_struct_pages,
                no_dax_with_smaller_blocks,
                mapping_and_calls_agree,
                map_sync_needs_dax,
                pmd_faults,
                pmd_faults_with_map_dev,
                msync_and_fsync,
                private_mapping_is_copied,
                direct_io_on_a_dax_file,
                buffer_of_direct_io,
                pages_in_a_pipe,
                copy_of_a_large_file,
                contents_survive_rebind,
                hole_reads_zero,
                punched_hole_reads_zero,
                truncated_tail_is_zero,
                sigbus_past_the_end,
            ]
        )
    };
}

pub const EXT4: Suite = dax_suite!("ext4", Ext4);
pub const XFS: Suite = dax_suite!("xfs", Xfs);

/// A new file system, mounted with DAX.
pub struct Bench {
    pub fs: FileSystem,
    pub prepared: Prepared,
    pub mount: Mount,
}

impl Bench {
    pub fn new(lab: &Lab, fs: FileSystem, mode: Mode) -> Result<Bench> {
        let prepared = lab.prepare(mode)?;
        fs.make(&prepared.disk.node_str())?;
        let mount = fs.mount(&prepared.disk.node_str(), "dax=always")?;
        mount.expect_option("dax=always")?;
        Ok(Bench {
            fs,
            prepared,
            mount,
        })
    }

    /// A new file, open for reading and writing.
    pub fn file(&self, name: &str) -> Result<File> {
        let path = self.mount.path(name);
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        ensure!(is_dax(&path)?, "{} is not a DAX file", path.display());
        Ok(file)
    }

    /// A new file with its space allocated.
    pub fn allocated(&self, name: &str, len: usize) -> Result<File> {
        let file = self.file(name)?;
        let mode = nix::fcntl::FallocateFlags::empty();
        nix::fcntl::fallocate(&file, mode, 0, i64::try_from(len)?)?;
        Ok(file)
    }

    /// Unmounts and checks the file system.
    pub fn finish(self) -> Result<()> {
        self.mount.unmount()?;
        self.fs.check(&self.prepared.disk.node_str())
    }
}

fn mount_says_dax(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    bench.file("file")?;
    let Bench {
        prepared, mount, ..
    } = bench;
    mount.unmount()?;
    // The short form has the same meaning.
    let mount = fs.mount(&prepared.disk.node_str(), "dax")?;
    ensure!(
        is_dax(&mount.path("file"))?,
        "mounted with `dax`, files are not DAX"
    );
    mount.unmount()?;
    let mount = fs.mount(&prepared.disk.node_str(), "dax=never")?;
    ensure!(
        !is_dax(&mount.path("file"))?,
        "mounted with `dax=never`, files are DAX"
    );
    mount.unmount()?;
    fs.check(&prepared.disk.node_str())
}

/// A raw namespace has no struct pages, so there is no DAX: ext4 refuses the option, xfs ignores
/// it.
fn no_dax_without_struct_pages(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let disk = lab.prepare(Mode::Raw)?.disk;
    fs.make(&disk.node_str())?;
    expect_no_dax(fs, &disk)
}

/// So it is if the blocks are smaller than a page, as those from a kernel with smaller pages.
fn no_dax_with_smaller_blocks(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    fs.make_of_blocks(PAGE / 4, &disk.node_str(), &[])?;
    expect_no_dax(fs, &disk)
}

/// The file system works otherwise.
fn expect_no_dax(fs: FileSystem, disk: &Disk) -> Result<()> {
    let node = disk.node_str();
    let mount = match (fs, fs.mount(&node, "dax=always")) {
        (FileSystem::Ext4, Err(_)) => fs.mount(&node, "defaults")?,
        (FileSystem::Xfs, Ok(mount)) => mount,
        (_, result) => bail!("mounting it with `dax=always`: {:?}", result.map(drop)),
    };
    let path = mount.path("file");
    fs::write(&path, stamped(PAGE, 1))?;
    ensure!(!is_dax(&path)?, "a DAX file on a disk without DAX");
    let file = Access::Buffered.open(&path)?;
    let result = Mapping::new(&file, PAGE, Sharing::Synchronous).map(drop);
    errno::expect(
        "MAP_SYNC on a disk without DAX",
        result,
        &[Errno::EOPNOTSUPP],
    )?;
    expect_same("the file", &fs::read(&path)?, &stamped(PAGE, 1))
}

fn mapping_and_calls_agree(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 4 << 20;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    let mut found = vec![0; LEN];

    file.write_all_at(&stamped(LEN, 1), 0)?;
    mapping.read(0, &mut found);
    expect_same(
        "written by a call, read through the mapping",
        &found,
        &stamped(LEN, 1),
    )?;

    mapping.write(0, &stamped(LEN, 2));
    file.read_exact_at(&mut found, 0)?;
    expect_same(
        "written through the mapping, read by a call",
        &found,
        &stamped(LEN, 2),
    )?;

    // Neither offsets nor lengths are multiples of a page or sector.
    for (tag, offset, len) in [(3, 1, 1), (4, 4095, 2), (5, 123_457, 8191), (6, LEN - 3, 3)] {
        let bytes = stamped(len, tag);
        file.write_all_at(&bytes, offset as u64)?;
        expect_same(
            "a piece written by a call",
            &mapping.to_vec(offset, len),
            &bytes,
        )?;
        let bytes = stamped(len, tag + 100);
        mapping.write(offset, &bytes);
        let mut found = vec![0; len];
        file.read_exact_at(&mut found, offset as u64)?;
        expect_same("a piece written through the mapping", &found, &bytes)?;
    }

    // A second mapping is the same memory.
    let second = Mapping::new(&file, LEN, Sharing::Shared)?;
    second.write(PAGE, &stamped(PAGE, 7));
    expect_same(
        "seen by the other mapping",
        &mapping.to_vec(PAGE, PAGE),
        &stamped(PAGE, 7),
    )?;
    drop((mapping, second, file));
    bench.finish()
}

fn map_sync_needs_dax(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", PMD)?;
    let mapping = Mapping::new(&file, PMD, Sharing::Synchronous)?;
    mapping.write(0, &stamped(PMD, 1));
    let mut found = vec![0; PMD];
    file.read_exact_at(&mut found, 0)?;
    expect_same(
        "written through a MAP_SYNC mapping",
        &found,
        &stamped(PMD, 1),
    )?;
    drop((mapping, file));

    let Bench {
        prepared, mount, ..
    } = bench;
    mount.unmount()?;
    let mount = fs.mount(&prepared.disk.node_str(), "dax=never")?;
    let file = Access::Buffered.open(&mount.path("file"))?;
    let result = Mapping::new(&file, PMD, Sharing::Synchronous).map(drop);
    errno::expect("MAP_SYNC with dax=never", result, &[Errno::EOPNOTSUPP])?;
    drop(file);
    mount.unmount()?;
    fs.check(&prepared.disk.node_str())
}

/// The number of page faults of this process.
fn faults() -> Result<i64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    // A fault for which the file system looks up or zeroes a block counts as a major one.
    Ok(usage.minor_page_faults() + usage.major_page_faults())
}

fn pmd_faults(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    need_huge_pages()?;
    expect_pmds(&Bench::new(lab, fs, Mode::FsdaxMem)?)
}

fn pmd_faults_with_map_dev(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    need_huge_pages()?;
    expect_pmds(&Bench::new(lab, fs, Mode::FsdaxDev)?)
}

/// Checks that a file takes one fault for each 2 MiB: the tracepoint reports PMDs, and the process
/// had no more faults than that.
fn expect_pmds(bench: &Bench) -> Result<()> {
    const UNITS: usize = 8;
    let large = touch_all(&bench.allocated("large", UNITS * PMD)?, UNITS * PMD)?;
    ensure!(
        large.pmds == UNITS && large.pages == 0,
        "{UNITS} PMDs would do: {large:?}"
    );
    // Meanwhile the process may touch another page of its own for the first time.
    ensure!(
        large.faults < 4 * UNITS as i64,
        "{UNITS} faults would do: {large:?}"
    );

    // A file that is shorter than a PMD is mapped by pages.
    let pages = PMD / PAGE / 2;
    let small = touch_all(&bench.allocated("small", PMD / 2)?, PMD / 2)?;
    ensure!(
        small.pmds == 0 && small.pages == pages,
        "no PMD fits, and still: {small:?}"
    );
    ensure!(
        small.faults >= pages as i64,
        "every page takes a fault: {small:?}"
    );
    Ok(())
}

/// The faults while a file was touched.
#[derive(Debug)]
struct Touched {
    pmds: usize,
    pages: usize,
    faults: i64,
}

/// Writes a byte to every page through a mapping, and checks them in the file.
fn touch_all(file: &File, len: usize) -> Result<Touched> {
    let mapping = Mapping::new(file, len, Sharing::Shared)?;
    let trace = FaultTrace::start()?;
    let before = faults()?;
    for page in (0..len).step_by(PAGE) {
        mapping.store(page, 0xa5);
    }
    let faults = faults()? - before;
    let (pmds, pages) = (trace.pmds_installed()?, trace.pages_installed()?);
    drop(trace);

    let mut found = vec![0; len];
    file.read_exact_at(&mut found, 0)?;
    for page in (0..len).step_by(PAGE) {
        ensure!(
            found[page] == 0xa5,
            "the byte at {page:#x} is {:#x}",
            found[page]
        );
    }
    Ok(Touched {
        pmds,
        pages,
        faults,
    })
}

fn msync_and_fsync(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 3 << 20;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 1));
    mapping.sync()?;
    mapping.write(LEN / 2, &stamped(PAGE, 2));
    file.sync_all()?;
    drop((mapping, file));

    let Bench {
        prepared, mount, ..
    } = bench;
    mount.unmount()?;
    let mount = fs.mount(&prepared.disk.node_str(), "dax=always")?;
    let mut right = stamped(LEN, 1);
    right[LEN / 2..LEN / 2 + PAGE].copy_from_slice(&stamped(PAGE, 2));
    expect_same(
        "after mounting again",
        &fs::read(mount.path("file"))?,
        &right,
    )?;
    mount.unmount()?;
    fs.check(&prepared.disk.node_str())
}

fn copy_of_a_large_file(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 48 << 20;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let right = stamped(LEN, 1);
    fs::write(bench.mount.path("original"), &right)?;
    fs::copy(bench.mount.path("original"), bench.mount.path("copy"))?;
    let copy = Access::Buffered.open(&bench.mount.path("copy"))?;
    let mapping = Mapping::new(&copy, LEN, Sharing::Shared)?;
    expect_same("the copy", &mapping.to_vec(0, LEN), &right)?;
    drop((mapping, copy));
    bench.finish()
}

fn contents_survive_rebind(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 4 << 20;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let Bench {
        prepared: Prepared { bound, disk, .. },
        mut mount,
        ..
    } = bench;
    for round in 1..=3 {
        let path = mount.path(&format!("file{round}"));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        file.set_len(LEN as u64)?;
        let mapping = Mapping::new(&file, LEN, Sharing::Synchronous)?;
        mapping.write(0, &stamped(LEN, round));
        mapping.sync()?;
        drop((mapping, file));
        mount.unmount()?;
        bound.unbind()?;
        bound.bind(lab.driver)?;
        mount = fs.mount(&disk.node_str(), "dax=always")?;
        for written in 1..=round {
            let found = fs::read(mount.path(&format!("file{written}")))?;
            expect_same(
                &format!("file {written} after rebind {round}"),
                &found,
                &stamped(LEN, written),
            )?;
        }
    }
    mount.unmount()?;
    fs.check(&disk.node_str())
}
