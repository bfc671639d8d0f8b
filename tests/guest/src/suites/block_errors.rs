// SPDX-License-Identifier: GPL-2.0

//! Requests that a disk must fail, and read-only disks.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::platform::only_for_pmem_rs;
use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Prepared};
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, SECTOR, expect_same, stamped};
use crate::syscall;

pub const SUITE: Suite = Suite {
    name: "block_errors",
    tests: &[
        Test::new("unaligned_direct_requests", unaligned),
        Test::new("requests_past_the_end", past_the_end),
        Test::new("discard_is_not_supported", discard),
        Test::new("zeroing_a_range", zero_out),
        Test::new("read_only_disk", read_only_disk),
        Test::new("read_only_region", read_only_region),
        Test::new("read_only_region_at_probe", read_only_region_at_probe),
        Test::new("file_system_on_read_only_region", file_system),
        Test::new("set_writable_on_read_only_region", set_writable),
        Test::new("set_read_only_is_kept", set_read_only_is_kept),
    ],
};

/// One partition, aligned for DAX.
const PARTITION: &str = "label: gpt\nstart=16M, size=64M\n";

fn unaligned(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        let file = disk.open(Access::Direct)?;
        let before = Model::of(&file, 0, 64 << 10)?;
        let mut bytes = Buffer::stamped(8192, 3);
        for (what, at, range) in [
            ("offset", 100, 0..4096),
            ("offset and length", 511, 0..513),
            ("length", 0, 0..1000),
            ("length of one byte", 0, 0..1),
            ("memory", 0, 1..4097),
        ] {
            let result = file.write_at(&bytes[range.clone()], at);
            errno::expect(
                &format!("writing with unaligned {what}"),
                result,
                &[Errno::EINVAL],
            )?;
            let result = file.read_at(&mut bytes[range], at);
            errno::expect(
                &format!("reading with unaligned {what}"),
                result,
                &[Errno::EINVAL],
            )?;
        }
        before.check_all(&file)?;
    }
    Ok(())
}

fn past_the_end(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        let end = disk.bytes()?;
        for access in [Access::Direct, Access::Buffered] {
            let file = disk.open(access)?;
            let mut bytes = Buffer::stamped(4096, 9);
            for at in [end, end + SECTOR as u64, end * 4] {
                let result = file.write_at(&bytes, at);
                errno::expect(
                    &format!("writing at {at:#x} ({access:?})"),
                    result,
                    &[Errno::ENOSPC],
                )?;
                ensure!(
                    file.read_at(&mut bytes, at)? == 0,
                    "read something at {at:#x} ({access:?})"
                );
            }
            // A request that begins before the end of the disk is truncated there.
            let bytes = Buffer::stamped(4096, 10);
            let last = end - SECTOR as u64;
            ensure!(
                file.write_at(&bytes, last)? == SECTOR,
                "written past the end ({access:?})"
            );
            file.sync_all()?;
            let mut found = Buffer::new(4096);
            ensure!(
                file.read_at(&mut found, last)? == SECTOR,
                "read past the end ({access:?})"
            );
            expect_same("the last sector", &found[..SECTOR], &bytes[..SECTOR])?;
        }
    }
    Ok(())
}

fn discard(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    let right = Buffer::stamped(64 << 10, 21);
    file.write_all_at(&right, 0)?;
    let result = syscall::discard(&file, 0, right.len() as u64);
    errno::expect("BLKDISCARD", result, &[Errno::EOPNOTSUPP])?;
    let mut found = Buffer::new(right.len());
    file.read_exact_at(&mut found, 0)?;
    expect_same("what was not discarded", &found, &right)
}

fn zero_out(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        let file = disk.open(Access::Direct)?;
        let right = Buffer::stamped(4 << 20, 22);
        file.write_all_at(&right, 0)?;
        let mut model = Model::of(&file, 0, right.len())?;
        for (start, len) in [
            (0, SECTOR),
            (4096 + SECTOR, 3 * SECTOR),
            (1 << 20, (2 << 20) - SECTOR),
        ] {
            syscall::zero_out(&file, start as u64, len as u64)?;
            model.zeroed(start, len);
        }
        model.check_all(&file)?;
        let result = syscall::zero_out(&file, 100, SECTOR as u64);
        errno::expect("BLKZEROOUT at an odd place", result, &[Errno::EINVAL])?;
        let result = syscall::zero_out(&file, disk.bytes()?, SECTOR as u64);
        errno::expect("BLKZEROOUT past the end", result, &[Errno::EINVAL])?;
    }
    Ok(())
}

/// Checks that the disk is read-only, and that a write fails without effect, whether the file was
/// opened before or after the change.
fn expect_write_refused(disk: &Disk, opened_before: &File) -> Result<()> {
    disk.expect("ro", "1")?;
    let mut before = Buffer::new(4096);
    opened_before.read_exact_at(&mut before, 0)?;
    for file in [
        opened_before,
        &disk.open(Access::Direct)?,
        &disk.open(Access::Buffered)?,
    ] {
        let result = file.write_at(&Buffer::stamped(4096, 30), 0);
        errno::expect("writing to a read-only disk", result, &[Errno::EPERM])?;
        let result = syscall::zero_out(file, 0, 4096);
        let right = [Errno::EPERM, Errno::EBADF, Errno::EACCES];
        errno::expect("zeroing a read-only disk", result, &right)?;
    }
    let mut after = Buffer::new(4096);
    opened_before.read_exact_at(&mut after, 0)?;
    expect_same("the read-only disk", &after, &before)
}

fn read_only_disk(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let file = disk.open(Access::Direct)?;
    let right = Buffer::stamped(4096, 31);
    file.write_all_at(&right, 0)?;
    syscall::set_read_only(&file, true)?;
    let refused = expect_write_refused(&disk, &file);
    syscall::set_read_only(&file, false)?;
    refused?;
    disk.expect("ro", "0")?;
    file.write_all_at(&right, 0)?;
    Ok(())
}

/// The driver is notified when the region becomes read-only, and when it becomes writable again.
fn read_only_region(lab: &mut Lab) -> Result<()> {
    let region = Device::named("region0");
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = lab.prepare(mode)?.disk;
        let file = disk.open(Access::Direct)?;
        region.set("read_only", "1")?;
        let refused = expect_write_refused(&disk, &file);
        region.set("read_only", "0")?;
        refused?;
        disk.expect("ro", "0")?;
        file.write_all_at(&Buffer::stamped(4096, 32), 0)?;
    }
    Ok(())
}

/// What a mounted file system writes is refused, and what was durable before is there afterwards.
/// nd_pmem writes it. xfs is not tried: it prints a stack when its log fails.
fn file_system(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let region = lab.region(0)?;
    let node = lab.prepare(Mode::FsdaxMem)?.disk.node_str();
    let right = stamped(1 << 20, 3);
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("durable");
    fs::write(&path, &right)?;
    File::open(&path)?.sync_all()?;
    nix::unistd::syncfs(File::open(&path)?)?;

    region.set("read_only", "1")?;
    let result = File::create(mount.path("new")).and_then(|file| {
        file.write_all_at(&right, 0)?;
        file.sync_all()
    });
    let errors = [Errno::EIO, Errno::EROFS, Errno::EPERM];
    errno::expect("making a file durable", result, &errors)?;
    mount.unmount()?;
    region.set("read_only", "0")?;

    let mount = Ext4.mount(&node, "dax=always")?;
    expect_same("the file", &fs::read(mount.path("durable"))?, &right)?;
    mount.unmount()?;
    Ext4.check(&node)
}

fn read_only_region_at_probe(lab: &mut Lab) -> Result<()> {
    let region = Device::named("region0");
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let right = Buffer::stamped(4096, 33);
    disk.open(Access::Direct)?.write_all_at(&right, 0)?;
    bound.unbind()?;
    region.set("read_only", "1")?;
    bound.bind(lab.driver)?;
    disk.expect("ro", "1")?;
    expect_write_refused(&disk, &disk.open(Access::Direct)?)?;
    let mut found = Buffer::new(4096);
    disk.open_read_only()?.read_exact_at(&mut found, 0)?;
    expect_same("the read-only disk", &found, &right)?;
    region.set("read_only", "0")?;
    disk.expect("ro", "0")
}

/// While its region is read-only, a disk that was read-only before cannot be made writable, and
/// neither can its partitions.
fn set_writable(lab: &mut Lab) -> Result<()> {
    let region = Device::named("region0");
    for mode in [Mode::Raw, Mode::FsdaxMem, Mode::Sector] {
        let disk = lab.prepare(mode)?.disk;
        disk.cut(PARTITION)?;
        let file = disk.open(Access::Direct)?;
        let partition = disk.partition(1).open(Access::Direct)?;
        for opened in [&file, &partition] {
            syscall::set_read_only(opened, true)?;
        }
        region.set("read_only", "1")?;
        for opened in [&file, &partition] {
            let result = syscall::set_read_only(opened, false);
            if mode == Mode::Sector {
                // The disk is that of another driver.
                result?;
            } else {
                errno::expect("making it writable", result, &[Errno::EROFS])?;
            }
            ensure!(syscall::is_read_only(opened)?, "it is writable");
            let result = opened.write_at(&Buffer::of_pages(4096, 34), 0);
            errno::expect("writing to it", result, &[Errno::EPERM])?;
            syscall::set_read_only(opened, true)?;
        }
        region.set("read_only", "0")?;
        for opened in [&file, &partition] {
            syscall::set_read_only(opened, false)?;
        }
        partition.write_all_at(&Buffer::of_pages(4096, 35), 0)?;
    }
    Ok(())
}

/// A disk or partition that a program has set read-only stays so when the region becomes writable.
fn set_read_only_is_kept(lab: &mut Lab) -> Result<()> {
    let region = Device::named("region0");
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    disk.cut(PARTITION)?;
    for chosen in [disk.clone(), disk.partition(1)] {
        let file = chosen.open(Access::Direct)?;
        for set_before in [true, false] {
            if set_before {
                syscall::set_read_only(&file, true)?;
            }
            region.set("read_only", "1")?;
            if !set_before {
                syscall::set_read_only(&file, true)?;
            }
            region.set("read_only", "0")?;
            ensure!(syscall::is_read_only(&file)?, "{chosen} is writable");
            syscall::set_read_only(&file, false)?;
            file.write_all_at(&Buffer::stamped(4096, 36), 0)?;
        }
    }
    Ok(())
}
