// SPDX-License-Identifier: GPL-2.0

//! Partitions of a pmem disk.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{Suite, Test};
use crate::command::{run, run_expecting_failure};
use crate::disk::Access;
use crate::errno;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PMD, Sharing};
use crate::ndctl::Mode;
use crate::sectors::{Buffer, Model, expect_same, stamped};
use crate::syscall::{self, is_dax};
use crate::uevents::Uevents;

pub const SUITE: Suite = Suite {
    name: "partitions",
    tests: &[
        Test::new("ext4_with_dax_beside_block_io", |lab| {
            dax_beside_block_io(lab, Ext4)
        }),
        Test::new("xfs_with_dax_beside_block_io", |lab| {
            dax_beside_block_io(lab, Xfs)
        }),
        Test::new("partitions_come_back_after_rebind", come_back),
        Test::new("unaligned_partition_has_no_dax", unaligned),
        Test::new("region_becomes_read_only_while_in_use", read_only_in_use),
    ],
};

/// Two halves, each starting at a multiple of 2 MiB.
const ALIGNED: &str = "label: gpt\nstart=4096, size=800000\nstart=806912, size=200704\n";
/// A partition that starts within a page.
const UNALIGNED: &str = "label: gpt\nstart=4097, size=204800\n";

fn dax_beside_block_io(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    disk.cut(ALIGNED)?;
    let (first, second) = (disk.partition(1), disk.partition(2));
    ensure!(
        second.bytes()? == 200_704 * 512,
        "{second} has {} bytes",
        second.bytes()?
    );
    let file = second.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(4 << 20, 1), 0)?;
    let model = Model::of(&file, 0, 4 << 20)?;
    model.check("the second partition", 0, &stamped(4 << 20, 1))?;

    // xfs supports either reflink or a partition that is mounted with `dax=always`, not both.
    let without: &[&str] = match fs {
        Ext4 => &[],
        Xfs => &["-m", "reflink=0"],
    };
    fs.make_with(&first.node_str(), without)?;
    let mount = fs.mount(&first.node_str(), "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(PMD, 2))?;
    ensure!(is_dax(&path)?, "no DAX on an aligned partition");
    let open = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&open, PMD, Sharing::Synchronous)?;
    expect_same(
        "through the mapping",
        &mapping.to_vec(0, PMD),
        &stamped(PMD, 2),
    )?;
    mapping.write(0, &stamped(PMD, 3));
    drop((mapping, open));
    expect_same("through read", &std::fs::read(&path)?, &stamped(PMD, 3))?;
    mount.unmount()?;
    fs.check(&first.node_str())?;
    // Neither partition has changed the other's sectors.
    model.check_all(&file)
}

fn come_back(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    disk.cut(ALIGNED)?;
    let second = disk.partition(2);
    let right = Buffer::stamped(1 << 20, 4);
    second.open(Access::Direct)?.write_all_at(&right, 4096)?;
    for _ in 0..5 {
        bound.unbind()?;
        ensure!(!second.exists(), "{second} is there after unbind");
        bound.bind(lab.driver)?;
        ensure!(second.exists(), "{second} is not there after bind");
    }
    let mut found = Buffer::new(right.len());
    second
        .open(Access::Direct)?
        .read_exact_at(&mut found, 4096)?;
    expect_same("the second partition", &found, &right)
}

fn unaligned(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    disk.cut(UNALIGNED)?;
    let first = disk.partition(1);
    let right = Buffer::stamped(1 << 20, 5);
    let file = first.open(Access::Direct)?;
    file.write_all_at(&right, 512)?;
    let mut found = Buffer::new(right.len());
    file.read_exact_at(&mut found, 512)?;
    expect_same("the unaligned partition", &found, &right)?;
    // The partition's first sector is in the middle of a page of the disk.
    let mut found = Buffer::new(right.len());
    disk.open(Access::Direct)?
        .read_exact_at(&mut found, 4098 * 512)?;
    expect_same("the same sectors of the disk", &found, &right)?;
    drop(file);

    let node = first.node_str();
    Ext4.make(&node)?;
    std::fs::create_dir_all("/mnt/refused")?;
    run_expecting_failure(
        "mount",
        &["-t", "ext4", "-o", "dax=always", &node, "/mnt/refused"],
    )?;
    let mount = Ext4.mount(&node, "defaults")?;
    std::fs::write(mount.path("file"), &*right)?;
    ensure!(
        !is_dax(&mount.path("file"))?,
        "DAX on an unaligned partition"
    );
    mount.unmount()?;
    Ext4.check(&node)
}

/// The region becomes read-only and writable again while one partition is mounted, with a file
/// mapped, and the other one is open.
fn read_only_in_use(lab: &mut Lab) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(Mode::FsdaxMem)?;
    let region = lab.region(0)?;
    disk.cut(ALIGNED)?;
    let (first, second) = (disk.partition(1), disk.partition(2));
    let node = first.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(PMD, 6))?;
    let file = Access::Buffered.open(&path)?;
    file.sync_all()?;
    let mapping = Mapping::new(&file, PMD, Sharing::Shared)?;
    let open = second.open(Access::Direct)?;
    let right = Buffer::stamped(1 << 20, 7);
    open.write_all_at(&right, 0)?;

    for _ in 0..2 {
        let mut uevents = Uevents::from_now()?;
        region.set("read_only", "1")?;
        uevents.expect(&["DISK_RO=1", disk.name()])?;
        for part in [&disk, &first, &second] {
            ensure!(
                syscall::is_read_only(&part.open_read_only()?)?,
                "{part} can be written to"
            );
        }
        let written = open.write_at(&Buffer::stamped(4096, 8), 0);
        errno::expect("writing to the open partition", written, &[Errno::EPERM])?;
        // Reads still succeed.
        let mut found = Buffer::new(right.len());
        open.read_exact_at(&mut found, 0)?;
        expect_same("the open partition", &found, &right)?;
        expect_same("the mapping", &mapping.to_vec(0, PMD), &stamped(PMD, 6))?;
        expect_same("the file", &std::fs::read(&path)?, &stamped(PMD, 6))?;
        // The disk cannot be opened for writing.
        run_expecting_failure("mkfs.ext4", &["-q", "-F", &second.node_str()])?;
        region.set("read_only", "0")?;
        uevents.expect(&["DISK_RO=0", disk.name()])?;
        disk.expect("ro", "0")?;
        open.write_all_at(&right, 0)?;
        std::fs::write(mount.path("another"), b"written again")?;
    }
    drop((mapping, file, open));
    mount.unmount()?;
    Ext4.check(&node)?;

    // A file system that is mounted while the region is read-only is read-only, too.
    region.set("read_only", "1")?;
    bound.unbind()?;
    bound.bind(lab.driver)?;
    let mount = Ext4.mount(&node, "ro,dax=always")?;
    expect_same(
        "the file",
        &std::fs::read(mount.path("file"))?,
        &stamped(PMD, 6),
    )?;
    let point = mount.point().to_string_lossy().into_owned();
    run_expecting_failure("mount", &["-o", "remount,rw", &point])?;
    region.set("read_only", "0")?;
    run("mount", &["-o", "remount,rw", &point])?;
    std::fs::write(mount.path("file"), stamped(PMD, 9))?;
    mount.unmount()?;
    Ext4.check(&node)
}
