// SPDX-License-Identifier: GPL-2.0

//! Flushes. The emulated machine does not lose data that are not flushed, so this suite counts
//! calls: of libnvdimm's flush function, and of the barrier that pmem_rs uses instead for regions
//! without anything else to flush, such as QEMU's NVDIMMs. The suite `ordering` checks what these
//! flush.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::{Suite, Test};
use crate::disk::Access;
use crate::driver::Driver;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PMD, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, stamped};
use crate::syscall::pwritev2;
use crate::tracing::CallCount;

pub const SUITE: Suite = Suite {
    name: "flush",
    tests: &[
        Test::new("fsync_of_the_disk", fsync_of_the_disk),
        Test::new("fua_write", fua_write),
        Test::new("fsync_of_a_file_on_ext4", |lab| fsync_of_a_file(lab, Ext4)),
        Test::new("fsync_of_a_file_on_xfs", |lab| fsync_of_a_file(lab, Xfs)),
        Test::new("unbind", unbind),
        Test::new("removal_of_the_module", removal_of_the_module),
    ],
};

const FLUSH: &str = "nvdimm_flush";
const BARRIER: &str = "pmem_rs_helper_pmem_wmb";
const MODES: [Mode; 2] = [Mode::Raw, Mode::FsdaxMem];

/// Returns how often the device is flushed during `work`.
fn flushes(driver: Driver, work: impl FnOnce() -> Result<()>) -> Result<usize> {
    let count = CallCount::of(match driver {
        Driver::PmemRs => &[FLUSH, BARRIER],
        Driver::NdPmem => &[FLUSH],
    })?;
    work()?;
    count.so_far()
}

fn fsync_of_the_disk(lab: &mut Lab) -> Result<()> {
    for mode in MODES {
        let file = lab.prepare(mode)?.disk.open(Access::Direct)?;
        let bytes = Buffer::stamped(1 << 20, 1);
        let by_write = flushes(lab.driver, || Ok(file.write_all_at(&bytes, 0)?))?;
        ensure!(
            by_write == 0,
            "{mode:?}: a write that need not be durable made {by_write} flushes"
        );
        let by_sync = flushes(lab.driver, || Ok(file.sync_all()?))?;
        ensure!(by_sync > 0, "{mode:?}: fsync made no flush");
    }
    Ok(())
}

/// The system call that makes one write durable also flushes once more after the flush of the write
/// itself.
fn fua_write(lab: &mut Lab) -> Result<()> {
    for mode in MODES {
        let file = lab.prepare(mode)?.disk.open(Access::Direct)?;
        let bytes = Buffer::stamped(4096, 2);
        for (flags, right) in [(0, 0), (libc::RWF_DSYNC, 2)] {
            let count = flushes(lab.driver, || {
                let written = pwritev2(&file, &[IoSlice::new(&bytes)], 0, flags)?;
                ensure!(written == bytes.len(), "only {written} bytes were written");
                Ok(())
            })?;
            ensure!(
                count == right,
                "{mode:?}, flags {flags:#x}: {count} flushes, expected {right}"
            );
        }
    }
    Ok(())
}

/// Writes through a mapping are flushed by fsync, too.
fn fsync_of_a_file(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let node = lab.prepare(Mode::FsdaxMem)?.disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mount.path("file"))?;
    file.set_len(PMD as u64)?;
    let mapping = Mapping::new(&file, PMD, Sharing::Shared)?;
    for (tag, how) in [(1, "msync"), (2, "fsync")] {
        mapping.write(0, &stamped(PMD, tag));
        let count = flushes(lab.driver, || {
            let result = if how == "msync" {
                mapping.sync()
            } else {
                file.sync_all()
            };
            Ok(result?)
        })?;
        ensure!(count > 0, "{how} made no flush");
    }
    drop((mapping, file));
    mount.unmount()?;
    fs.check(&node)
}

fn unbind(lab: &mut Lab) -> Result<()> {
    for mode in MODES {
        let Prepared { bound, .. } = lab.prepare(mode)?;
        let count = flushes(lab.driver, || bound.unbind())?;
        ensure!(count > 0, "{mode:?}: unbind made no flush");
        bound.bind(lab.driver)?;
    }
    Ok(())
}

fn removal_of_the_module(lab: &mut Lab) -> Result<()> {
    lab.prepare(Mode::FsdaxMem)?;
    let count = flushes(lab.driver, || lab.driver.unload())?;
    ensure!(count > 0, "rmmod made no flush");
    lab.driver.load()
}
