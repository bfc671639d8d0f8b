// SPDX-License-Identifier: GPL-2.0

//! Pages of DAX files in other uses of the kernel: copy-on-write, as buffers of direct I/O, in a
//! pipe.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::sys::wait::WaitStatus;

use super::dax::Bench;
use crate::command::run;
use crate::disk::{self, Access, Disk};
use crate::filesystem::FileSystem;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::syscall::in_child;

/// Writes to a private mapping are visible to the process only, neither in the file nor in the
/// parent process.
pub fn private_mapping_is_copied(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 2 * PMD;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    file.write_all_at(&stamped(LEN, 1), 0)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Private)?;
    // Some pages are mapped before the fork, some are not.
    for page in (0..PMD).step_by(PAGE) {
        mapping.load(page);
    }
    let child = in_child(|| {
        mapping.write(0, &stamped(LEN, 2));
        let found = mapping.to_vec(0, LEN);
        expect_same("what the child wrote", &found, &stamped(LEN, 2)).unwrap();
    })?;
    ensure!(
        matches!(child, WaitStatus::Exited(_, 0)),
        "the child: {child:?}"
    );
    expect_same(
        "the parent's mapping",
        &mapping.to_vec(0, LEN),
        &stamped(LEN, 1),
    )?;

    mapping.write(PAGE, &stamped(PAGE, 3));
    let mut found = vec![0; LEN];
    file.read_exact_at(&mut found, 0)?;
    expect_same("the file", &found, &stamped(LEN, 1))?;
    expect_same(
        "the copied page",
        &mapping.to_vec(PAGE, PAGE),
        &stamped(PAGE, 3),
    )?;
    drop((mapping, file));
    bench.finish()
}

pub fn direct_io_on_a_dax_file(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 1 << 20;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let plain = bench.allocated("file", LEN)?;
    let direct = Access::Direct.open(&bench.mount.path("file"))?;
    let mapping = Mapping::new(&plain, LEN, Sharing::Shared)?;
    let right = Buffer::stamped(LEN, 1);
    direct.write_all_at(&right, 0)?;
    expect_same("seen through the mapping", &mapping.to_vec(0, LEN), &right)?;
    mapping.write(0, &stamped(LEN, 2));
    let mut found = Buffer::new(LEN);
    direct.read_exact_at(&mut found, 0)?;
    expect_same("read with O_DIRECT", &found, &stamped(LEN, 2))?;
    drop((mapping, plain, direct));
    bench.finish()
}

/// Another disk reads from and writes to the mapping, without a copy in between. A disk in RAM
/// stands for any disk: only the pages that it is handed matter.
pub fn buffer_of_direct_io(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 2 * PMD;
    run("modprobe", &disk::IN_MEMORY)?;
    let other = Disk::named("nullb0").open(Access::Direct)?;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;

    mapping.write(0, &stamped(LEN, 1));
    mapping.write_to(0, LEN, &other, 0)?;
    let mut found = Buffer::new(LEN);
    other.read_exact_at(&mut found, 0)?;
    expect_same("written from the mapping", &found, &stamped(LEN, 1))?;

    // Neither offset is a multiple of a page.
    other.write_all_at(&Buffer::stamped(LEN, 2), 0)?;
    mapping.read_from(1536, PMD + 512, &other, 512)?;
    let mut right = stamped(LEN, 1);
    right[1536..][..PMD + 512].copy_from_slice(&stamped(LEN, 2)[512..][..PMD + 512]);
    expect_same("read into the mapping", &mapping.to_vec(0, LEN), &right)?;
    file.sync_all()?;
    drop((mapping, file));
    expect_same("the file", &fs::read(bench.mount.path("file"))?, &right)?;
    bench.finish()
}

/// Pages that were put into a pipe can be read from it after the mapping was unmapped.
pub fn pages_in_a_pipe(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const LEN: usize = 8 * PAGE;
    let bench = Bench::new(lab, fs, Mode::FsdaxMem)?;
    let file = bench.allocated("file", LEN)?;
    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    mapping.write(0, &stamped(LEN, 1));
    let (reader, writer) = nix::unistd::pipe()?;
    let given = mapping.give_to_pipe(0, LEN, &writer)?;
    ensure!(given == LEN, "{given} bytes were put into the pipe");
    drop((mapping, file, writer));
    let mut found = Vec::new();
    File::from(reader).read_to_end(&mut found)?;
    expect_same("what came out of the pipe", &found, &stamped(LEN, 1))?;
    bench.finish()
}
