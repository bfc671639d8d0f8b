// SPDX-License-Identifier: GPL-2.0

//! Bad pages of files that are accessed with DAX.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::{Bench, expect_bad_page, open};
use crate::command::run;
use crate::disk;
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::FileSystem::{self, Xfs};
use crate::injector::Watch;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{SECTOR, expect_same, stamped};
use crate::syscall;
use crate::tracing::CallCount;

const LEN: usize = 16 * PAGE;

/// A page of a file goes bad: only reads of this page fail. A write to the whole page clears it in
/// place; a write to a part does not.
pub fn bad_page(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const BAD: usize = 5;
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let node = bench.disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, 1))?;
    let file = open(&path)?;
    file.sync_all()?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    expect_same("at first", &mapping.to_vec(0, LEN), &stamped(LEN, 1))?;
    let address = mapping.physical(BAD * PAGE)?;
    drop(mapping);

    let mut watch = Watch::new(&bench.disk.path("badblocks"))?;
    bench.injector.inject(address + 512, 256)?;
    let sector = (address - bench.start) / SECTOR as u64 + 1;
    watch.expect(&format!("{sector} 1"))?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    expect_bad_page(&file, &mapping, BAD, &stamped(LEN, 1))?;

    // The DAX core has only this error for a write without progress.
    let at = (BAD * PAGE) as u64;
    let result = file.write_at(&[1; 512], at + 512);
    errno::expect("writing a part of the page", result, &[Errno::EFAULT])?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let result = fallocate(&file, punch, at as i64 + 512, 512).map_err(std::io::Error::from);
    let right = [Errno::EIO, Errno::EHWPOISON];
    errno::expect("zeroing a part of the page", result, &right)?;
    bench.injector.set_limit(0)?;
    let result = file.write_at(&stamped(PAGE, 2), at);
    errno::expect("writing what cannot be cleared", result, &[Errno::EFAULT])?;
    watch.expect_not_notified()?;
    bench.expect_bad(&format!("{sector} 1"))?;
    bench.injector.set_limit(u64::MAX)?;
    while_read_only(lab, || {
        let result = file.write_at(&stamped(PAGE, 2), at);
        errno::expect("repairing it", result, &[Errno::EFAULT])?;
        bench.expect_bad(&format!("{sector} 1"))
    })?;

    // Three pages, the second of which is bad.
    file.write_all_at(&stamped(3 * PAGE, 3), at - PAGE as u64)?;
    watch.expect("")?;
    let page = (address - bench.start) / SECTOR as u64;
    bench.expect_clears(&[(page, 8), (page, 8)])?;
    let mut right = stamped(LEN, 1);
    right[(BAD - 1) * PAGE..][..3 * PAGE].copy_from_slice(&stamped(3 * PAGE, 3));
    expect_same("through read", &fs::read(&path)?, &right)?;
    expect_same("through the mapping", &mapping.to_vec(0, LEN), &right)?;
    ensure!(
        mapping.physical(BAD * PAGE)? == address,
        "the page is somewhere else"
    );
    drop((mapping, file));
    mount.unmount()?;
    fs.check(&node)
}

/// Calls `f` while the region is read-only. Only pmem_rs refuses what the kernel writes then.
fn while_read_only(lab: &Lab, f: impl FnOnce() -> Result<()>) -> Result<()> {
    if lab.driver == Driver::PmemRs {
        let region = lab.region(0)?;
        region.set("read_only", "1")?;
        f()?;
        region.set("read_only", "0")?;
    }
    Ok(())
}

/// A hole within an extent of xfs's realtime volume is zeroed in place, page by page: that clears
/// errors, too.
pub fn zeroing_in_place(lab: &mut Lab) -> Result<()> {
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    run("modprobe", &disk::IN_MEMORY)?;
    let data = "/dev/nullb0";
    let realtime = bench.disk.node_str();
    let volume = format!("rtdev={realtime},extsize=64k");
    Xfs.make_with(
        data,
        &["-m", "reflink=0", "-d", "rtinherit=1", "-r", &volume],
    )?;
    let mount = Xfs.mount(data, &format!("dax=always,rtdev={realtime}"))?;
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, 4))?;
    let file = open(&path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, false)?;
    mapping.load(3 * PAGE);
    let address = mapping.physical(3 * PAGE)?;
    bench.injector.inject(address, 512)?;
    let sector = (address - bench.start) / SECTOR as u64;

    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (at, len) = (2 * PAGE as i64, 3 * PAGE as i64);
    bench.injector.set_limit(0)?;
    let result = fallocate(&file, punch, at, len).map_err(std::io::Error::from);
    errno::expect("zeroing what cannot be cleared", result, &[Errno::EIO])?;
    bench.expect_bad(&format!("{sector} 1"))?;

    bench.injector.set_limit(u64::MAX)?;
    while_read_only(lab, || {
        let result = fallocate(&file, punch, at, len).map_err(std::io::Error::from);
        errno::expect("zeroing it", result, &[Errno::EROFS])?;
        expect_same(
            "what is left",
            &mapping.to_vec(5 * PAGE, PAGE),
            &stamped(LEN, 4)[5 * PAGE..][..PAGE],
        )
    })?;
    let calls = CallCount::of(&["dax_zero_page_range"])?;
    fallocate(&file, punch, at, len)?;
    let calls = calls.so_far()?;
    ensure!(calls == 3, "the driver was asked to zero {calls} pages");
    bench.expect_bad("")?;
    bench.expect_clears(&[(sector, 8), (sector, 8)])?;
    let mut right = stamped(LEN, 4);
    right[2 * PAGE..5 * PAGE].fill(0);
    expect_same("through the mapping", &mapping.to_vec(0, LEN), &right)?;
    drop((mapping, file));
    expect_same("through read", &fs::read(&path)?, &right)?;
    mount.unmount()
}

/// xfs keeps a long value of an extended attribute in blocks of its own. If one of them is bad,
/// reading the value is an I/O error; it must not seem that there is no such attribute.
pub fn remote_xattr(lab: &mut Lab) -> Result<()> {
    const NAME: &CStr = c"user.long";
    const SIZE: usize = 16 << 10;
    let bench = Bench::new(lab, Mode::FsdaxMem)?;
    let node = bench.disk.node_str();
    Xfs.make(&node)?;
    let mount = Xfs.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, "")?;
    let file = open(&path)?;
    syscall::set_xattr(&file, NAME, &stamped(SIZE, 1))?;
    // `0: [0..47]: 96..143`, in sectors
    let map = run("xfs_io", &["-r", "-c", "bmap -a", &path.to_string_lossy()])?;
    let last = map.trim_end().rsplit("..").next().context("no map")?;
    let last: u64 = last.parse().with_context(|| map.clone())?;
    drop(file);
    // The value must be read from the disk again.
    mount.unmount()?;
    bench.inject(last, 1)?;
    bench.expect_bad(&format!("{last} 1"))?;

    let mount = Xfs.mount(&node, "dax=always")?;
    let file = open(&path)?;
    let result = syscall::xattr(&file, NAME);
    errno::expect("reading the value", result, &[Errno::EIO])?;
    let result = syscall::xattr(&file, c"user.none");
    errno::expect("reading what is not there", result, &[Errno::ENODATA])?;
    syscall::set_xattr(&file, NAME, &stamped(SIZE, 2))?;
    let found = syscall::xattr(&file, NAME)?;
    expect_same("another value", &found, &stamped(SIZE, 2))?;
    drop(file);
    mount.unmount()?;
    Xfs.check(&node)
}
