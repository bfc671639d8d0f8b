// SPDX-License-Identifier: GPL-2.0

//! DAX files whose extents change while they are mapped: the file system zeroes and frees blocks,
//! and the mapping follows.

use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::dax::Bench;
use crate::filesystem::FileSystem;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{expect_same, stamped};

/// A hole reads as zeros without taking space, and a write allocates it.
pub fn hole_reads_zero(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 4 * PMD;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    // The medium has old contents, which must not be visible.
    let old = bench.allocated("old", 16 * PMD)?;
    old.write_all_at(&stamped(16 * PMD, 1), 0)?;
    drop(old);
    std::fs::remove_file(bench.mount.path("old"))?;

    let file = bench.file("file")?;
    file.set_len(LEN as u64)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    expect_same("a hole", &mapping.to_vec(0, LEN), &vec![0; LEN])?;
    ensure!(
        file.metadata()?.blocks() == 0,
        "reading a hole has allocated blocks"
    );

    let mut right = vec![0; LEN];
    for (tag, at, len) in [(2, 0, 1), (3, PMD - 3, 6), (4, 2 * PMD + 100, 3 * PAGE)] {
        mapping.write(at, &stamped(len, tag));
        right[at..at + len].copy_from_slice(&stamped(len, tag));
    }
    expect_same("holes and data, mapped", &mapping.to_vec(0, LEN), &right)?;
    let mut found = vec![0; LEN];
    file.read_exact_at(&mut found, 0)?;
    expect_same("holes and data, read", &found, &right)?;
    drop((mapping, file));
    bench.finish()
}

/// A hole that is punched in a mapped file reads as zeros at once, to the byte.
pub fn punched_hole_reads_zero(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 4 * PMD;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 1));
    let mut right = stamped(LEN, 1);
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE;
    for (how, at, len) in [
        (punch, PAGE, PAGE),
        (punch, 100, 50),
        (punch, PMD - PAGE, 2 * PAGE),
        (zero, 3 * PMD + 7, PMD / 2),
    ] {
        fallocate(&file, how, i64::try_from(at)?, i64::try_from(len)?)?;
        right[at..at + len].fill(0);
        expect_same("the mapping", &mapping.to_vec(0, LEN), &right)?;
    }
    // The holes can be written again.
    mapping.write(PAGE, &stamped(PAGE, 2));
    right[PAGE..2 * PAGE].copy_from_slice(&stamped(PAGE, 2));
    let mut found = vec![0; LEN];
    file.read_exact_at(&mut found, 0)?;
    expect_same("the file", &found, &right)?;
    drop((mapping, file));
    bench.finish()
}

/// A file that was truncated and extended has zeros after the old end.
pub fn truncated_tail_is_zero(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 16 * PAGE;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.file("file")?;
    file.write_all_at(&stamped(LEN, 1), 0)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    let mut right = stamped(LEN, 1);
    for cut in [LEN - 1, 9 * PAGE + 513, 4 * PAGE, 5] {
        file.set_len(cut as u64)?;
        file.set_len(LEN as u64)?;
        right[cut..].fill(0);
        expect_same(&format!("cut at {cut}"), &mapping.to_vec(0, LEN), &right)?;
    }
    drop((mapping, file));
    bench.finish()
}

/// An access to a page of a mapping behind the end of the file raises SIGBUS.
pub fn sigbus_past_the_end(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 4 * PMD;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 1));
    let cut = PMD + 3 * PAGE;
    file.set_len(cut as u64)?;
    for (offset, alive) in [
        (0, true),
        (cut - 1, true),
        (cut, false),
        (2 * PMD, false),
        (LEN - 1, false),
    ] {
        let end = mapping.load_in_child(offset)?;
        let right = match end {
            WaitStatus::Exited(_, 0) => alive,
            WaitStatus::Signaled(_, Signal::SIGBUS, _) => !alive,
            _ => false,
        };
        ensure!(
            right,
            "reading at {offset:#x} of {cut:#x} bytes ended with {end:?}"
        );
    }
    expect_same(
        "what is left",
        &mapping.to_vec(0, cut),
        &stamped(LEN, 1)[..cut],
    )?;
    drop((mapping, file));
    bench.finish()
}
