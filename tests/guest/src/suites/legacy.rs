// SPDX-License-Identifier: GPL-2.0

//! Memory that the firmware (here: `memmap=` on the command line) reports as persistent without an
//! NVDIMM. Its raw namespace has struct pages. No provider tracks its bad sectors, so clearing one
//! always succeeds.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::media::expect_bad_page;
use super::{Suite, Test};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Prepared, holder};
use crate::leaks::Holdings;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, Model, SECTOR, expect_same, stamped};
use crate::{syscall, sysfs};

pub const SUITE: Suite = Suite {
    name: "legacy",
    tests: &[
        Test::new("raw_namespace_has_dax", raw_has_dax),
        Test::new("unbind_and_bind", unbind_and_bind).within(120),
        Test::new("ext4_with_dax", ext4_with_dax),
        Test::new("bad_sector_is_cleared_by_writing", clear_by_writing),
        Test::new("bad_page_of_a_dax_file", bad_page_of_a_dax_file),
        Test::new("region_align", region_align).within(120),
        // These change the namespace, so they come last.
        Test::new("fsdax_mem", |lab| ext4_on_fsdax(lab, Mode::FsdaxMem)),
        Test::new("fsdax_dev", |lab| ext4_on_fsdax(lab, Mode::FsdaxDev)),
    ],
};

/// The namespace as the firmware reports it.
fn as_found(lab: &Lab) -> Result<(Device, Disk)> {
    let namespace = lab.namespace(0)?;
    ensure!(
        namespace.get("nstype")? == "4",
        "{namespace} is of type {}",
        namespace.get("nstype")?
    );
    namespace.expect_driver(Some(lab.driver))?;
    let disk = Disk::named(namespace.disk_name()?);
    Ok((namespace, disk))
}

fn raw_has_dax(lab: &mut Lab) -> Result<()> {
    let (namespace, disk) = as_found(lab)?;
    disk.expect("queue/dax", "1")?;
    disk.expect("queue/fua", "0")?;
    ensure!(
        namespace.get("mode")? == "memory",
        "its mode is {}",
        namespace.get("mode")?
    );
    let size: u64 = namespace.get("size")?.parse()?;
    ensure!(disk.bytes()? == size, "{} bytes of {size}", disk.bytes()?);
    let file = disk.open(Access::Direct)?;
    let right = Buffer::stamped(4 << 20, 1);
    for at in [0, size - right.len() as u64] {
        file.write_all_at(&right, at)?;
        let mut found = Buffer::new(right.len());
        file.read_exact_at(&mut found, at)?;
        expect_same("what was written", &found, &right)?;
    }
    Ok(())
}

fn unbind_and_bind(lab: &mut Lab) -> Result<()> {
    let (namespace, disk) = as_found(lab)?;
    let right = Buffer::stamped(1 << 20, 2);
    disk.open(Access::Direct)?.write_all_at(&right, 0)?;
    namespace.unbind()?;
    namespace.bind(lab.driver)?;
    let before = Holdings::now()?;
    for _ in 0..20 {
        namespace.unbind()?;
        ensure!(!disk.exists(), "{disk} is there after unbind");
        namespace.bind(lab.driver)?;
    }
    before.expect_unchanged()?;
    let mut found = Buffer::new(right.len());
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written before", &found, &right)
}

fn use_with_dax(disk: &Disk) -> Result<()> {
    let node = disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(PMD, 3))?;
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::new(&file, PMD, Sharing::Synchronous)?;
    expect_same(
        "through the mapping",
        &mapping.to_vec(0, PMD),
        &stamped(PMD, 3),
    )?;
    mapping.write(0, &stamped(PMD, 4));
    drop((mapping, file));
    expect_same("through read", &std::fs::read(&path)?, &stamped(PMD, 4))?;
    mount.unmount()?;
    Ext4.check(&node)
}

fn ext4_with_dax(lab: &mut Lab) -> Result<()> {
    use_with_dax(&as_found(lab)?.1)
}

fn ext4_on_fsdax(lab: &mut Lab, mode: Mode) -> Result<()> {
    let Prepared { bound, disk, .. } = lab.prepare(mode)?;
    disk.expect("queue/dax", "1")?;
    use_with_dax(&disk)?;
    bound.unbind()?;
    bound.bind(lab.driver)
}

/// The size of the second region is no multiple of the alignment that its namespaces have at first.
/// With one of 2 MiB all of it is used, and it stays so with the former value.
fn region_align(lab: &mut Lab) -> Result<()> {
    const SIZE: u64 = 34 << 20;
    let region = lab.region(1)?;
    let namespace = lab.namespace(1)?;
    let size = region.get("size")?;
    ensure!(size == SIZE.to_string(), "{region} has {size} bytes");
    let first = region.get("align")?;
    ensure!(first == "0x1000000", "its alignment is {first}");
    for mode in [Mode::FsdaxMem, Mode::FsdaxDev] {
        region.set("align", "0x200000")?;
        let made = ndctl::reconfigure_with(&namespace, mode, &[])?.show()?;
        // The struct pages on the medium are in the first 2 MiB. Those in RAM need no info block.
        let meta = if mode == Mode::FsdaxDev { PMD } else { 0 };
        ensure!(made.size == SIZE - meta as u64, "ndctl made {made:?}");
        let bound = holder(&namespace)?;
        let disk = Disk::named(made.blockdev.context("no disk")?);
        ensure!(disk.bytes()? == made.size, "{} bytes", disk.bytes()?);
        use_with_dax(&disk)?;
        let mark = Buffer::stamped(1 << 20, 8);
        let end = made.size - mark.len() as u64;
        disk.open(Access::Direct)?.write_all_at(&mark, end)?;

        bound.unbind()?;
        region.set("align", &first)?;
        bound.bind(lab.driver)?;
        let mut found = Buffer::new(mark.len());
        disk.open(Access::Direct)?.read_exact_at(&mut found, end)?;
        expect_same("the end of the disk", &found, &mark)?;
    }
    Ok(())
}

fn note_bad(disk: &Disk, sector: u64, count: u64) -> Result<()> {
    sysfs::write(disk.path("badblocks"), &format!("{sector} {count}\n"))
}

fn clear_by_writing(lab: &mut Lab) -> Result<()> {
    let (_, disk) = as_found(lab)?;
    let file = disk.open(Access::Direct)?;
    file.write_all_at(&Buffer::stamped(1 << 20, 5), 0)?;
    let mut model = Model::of(&file, 0, 1 << 20)?;
    note_bad(&disk, 100, 3)?;

    let mut buffer = Buffer::new(64 << 10);
    let result = file.read_at(&mut buffer, 96 * SECTOR as u64);
    errno::expect("reading across bad sectors", result, &[Errno::ENODATA])?;
    file.read_exact_at(&mut buffer[..4 * SECTOR], 96 * SECTOR as u64)?;
    model.check("before the bad sectors", 96 * SECTOR, &buffer[..4 * SECTOR])?;

    // A write to one of them clears that one; a write to all clears all.
    for (sector, count, left) in [(100, 1, "101 2"), (98, 16, "")] {
        let bytes = Buffer::stamped(count * SECTOR, 6);
        file.write_all_at(&bytes, (sector * SECTOR) as u64)?;
        model.written(sector * SECTOR, &bytes);
        disk.expect("badblocks", left)?;
    }
    model.check_all(&file)
}

/// A page of a file goes bad: reads and mappings of it fail, its neighbours are fine, and a write
/// to the whole page clears it.
fn bad_page_of_a_dax_file(lab: &mut Lab) -> Result<()> {
    const LEN: usize = 8 * PAGE;
    let (_, disk) = as_found(lab)?;
    let node = disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    std::fs::write(&path, stamped(LEN, 7))?;
    let file = File::options().read(true).write(true).open(&path)?;
    file.sync_all()?;
    let block = syscall::block_of_file(&file, 3)?;
    note_bad(&disk, block * 8, 8)?;

    let mapping = Mapping::new(&file, LEN, Sharing::Shared)?;
    expect_bad_page(&file, &mapping, 3, &stamped(LEN, 7))?;

    file.write_all_at(&stamped(PAGE, 8), 3 * PAGE as u64)?;
    disk.expect("badblocks", "")?;
    let mut right = stamped(LEN, 7);
    right[3 * PAGE..4 * PAGE].copy_from_slice(&stamped(PAGE, 8));
    expect_same("the cleared file", &std::fs::read(&path)?, &right)?;
    expect_same("the cleared mapping", &mapping.to_vec(0, LEN), &right)?;
    drop((mapping, file));
    mount.unmount()?;
    Ext4.check(&node)
}
