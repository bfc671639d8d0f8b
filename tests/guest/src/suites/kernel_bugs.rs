// SPDX-License-Identifier: GPL-2.0

//! The reproducers of `docs/kernel-bugs.md`. Each needs a guest of its own, because it crashes the
//! kernel; the runner knows the expected result. A test that passes has not triggered its bug.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Suite, Test, probe, region};
use crate::command::run;
use crate::disk::Access;
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::injector::Injector;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, PMD, Sharing, need_huge_pages};
use crate::ndctl::{self, Mode};
use crate::process::Child;
use crate::syscall::{
    clone_file, page_cache_statistics, start_of_file, swap_extents, swap_with_boot_loader,
};

pub const SUITE: Suite = Suite {
    name: "kernel_bugs",
    tests: &[
        Test::new("memory_map_is_freed_under_mappings", unmap_after_unbind),
        Test::new("entries_outlive_the_memory_map", umount_after_unbind),
        Test::new("xfs_hangs_with_rmap", unbind_under_xfs),
        Test::new("labels_make_the_kernel_warn", |lab| {
            probe::ask_for_odd_sectors(lab).map(drop)
        })
        .within(120),
        Test::new("name_of_a_disk_that_is_gone", mount_again),
        Test::new("namespace_comes_after_its_region_went", region_goes).within(120),
        Test::new("cachestat_reads_dax_entries", read_statistics),
        Test::new("dax_device_stays_for_a_second_holder", hold_twice).within(120),
        Test::new("write_to_a_shared_page_that_is_mapped", write_to_shared),
        Test::new("page_takes_the_place_of_a_shared_pmd", store_to_shared),
        Test::new("extents_are_swapped_under_a_mapping", swap_mapped),
        Test::new("boot_loader_is_swapped_under_a_mapping", swap_boot_loader),
        Test::new("file_is_closed_after_its_module_went", close_late),
        Test::new("copy_of_a_shared_block_is_too_long", copy_too_much).within(120),
    ],
};

const LEN: usize = 1 << 20;
/// 390 and 98 MiB, each from a multiple of 2 MiB.
const TWO_PARTITIONS: &str = "label: gpt\nstart=4096, size=800000\nstart=806912, size=200704\n";
/// How long unbind may take.
const UNBIND_LIMIT: Duration = Duration::from_secs(15);

fn mounted(lab: &Lab, fs: FileSystem, more: &[&str]) -> Result<(Prepared, Mount)> {
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let node = prepared.disk.node_str();
    fs.make_with(&node, more)?;
    let mount = fs.mount(&node, "dax=always")?;
    fs::write(mount.path("file"), vec![1; LEN])?;
    Ok((prepared, mount))
}

fn open(mount: &Mount) -> Result<File> {
    Access::Buffered.open(&mount.path("file"))
}

fn map_and_read(file: &File) -> Result<Mapping> {
    let mapping = Mapping::of_pages(file, LEN, Sharing::Shared, true)?;
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
    Ok(mapping)
}

fn unbind(prepared: &Prepared) -> Result<()> {
    let mut process = Child::start("unbind", |_| prepared.bound.unbind())?;
    process.expect_done(UNBIND_LIMIT)
}

fn unmap_after_unbind(lab: &mut Lab) -> Result<()> {
    let (prepared, mount) = mounted(lab, Ext4, &[])?;
    let mapping = map_and_read(&open(&mount)?)?;
    unbind(&prepared)?;
    println!("unbound; unmapping");
    drop(mapping);
    println!("unmapped; unmounting");
    mount.unmount()
}

/// The file stays open; otherwise its inode would be evicted during unbind.
fn umount_after_unbind(lab: &mut Lab) -> Result<()> {
    let (prepared, mount) = mounted(lab, Ext4, &[])?;
    let file = open(&mount)?;
    drop(map_and_read(&file)?);
    unbind(&prepared)?;
    println!("unbound; closing and unmounting");
    drop(file);
    mount.unmount()
}

/// A process that has the file mapped gets a signal, and nothing else happens.
fn unbind_under_xfs(lab: &mut Lab) -> Result<()> {
    let (prepared, mount) = mounted(lab, Xfs, &["-m", "rmapbt=1"])?;
    let user = Child::start_ready("the process with the mapping", |link| {
        let _mapping = map_and_read(&open(&mount)?)?;
        link.say("ready")?;
        link.wait()
    })?;
    println!("unbinding");
    unbind(&prepared)?;
    drop(user);
    mount.unmount()
}

/// The file system of the old disk is still mounted.
fn mount_again(lab: &mut Lab) -> Result<()> {
    let (prepared, old) = mounted(lab, Ext4, &[])?;
    unbind(&prepared)?;
    prepared.bound.bind(lab.driver)?;
    Ext4.mount(&prepared.disk.node_str(), "dax=always")?
        .unmount()?;
    old.unmount()
}

/// One of the namespaces of a region outlives its binding.
fn region_goes(lab: &mut Lab) -> Result<()> {
    let left = region::outlive(&lab.region(0)?)?;
    ensure!(left.is_none(), "{left:?} came after the region had gone");
    Ok(())
}

/// The entries of a DAX file are taken for those of reclaimed pages.
fn read_statistics(lab: &mut Lab) -> Result<()> {
    let (_prepared, mount) = mounted(lab, Ext4, &[])?;
    let file = open(&mount)?;
    let mapping = map_and_read(&file)?;
    println!("reading the statistics");
    let statistics = page_cache_statistics(&file)?;
    ensure!(statistics == [0; 5], "found pages: {statistics:?}");
    drop((mapping, file));
    mount.unmount()
}

/// The log of an xfs is on another partition, so that the file system asks for the DAX device of
/// the disk twice. The number of a DAX device is free again when the device is, and the next one
/// gets the lowest free number. Character devices show it.
fn hold_twice(lab: &mut Lab) -> Result<()> {
    ensure!(Mode::Devdax.is_supported(), "the kernel has no device_dax");
    let namespace = lab.namespace(0)?;
    let number = |namespace| -> Result<String> {
        ndctl::reconfigure(namespace, Mode::Devdax)?;
        Ok(fs::read_to_string("/sys/bus/dax/devices/dax0.0/dev")?)
    };
    let before = number(&namespace)?;
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    disk.cut(TWO_PARTITIONS)?;
    let (data, log) = (disk.partition(1), disk.partition(2));
    let log = format!("logdev={}", log.node_str());
    Xfs.make_with(&data.node_str(), &["-l", &log])?;
    Xfs.mount(&data.node_str(), &log)?.unmount()?;
    let after = number(&namespace)?;
    ensure!(
        before == after,
        "the old DAX device still exists: its number was {before}, and the new one has {after}"
    );
    Ok(())
}

/// Makes another file share all blocks of an open one.
fn share(mount: &Mount, file: &File) -> Result<()> {
    Ok(clone_file(file, &File::create(mount.path("copy"))?)?)
}

/// `write` copies the block, and deletes the entry of the old one before it unmaps it.
fn write_to_shared(lab: &mut Lab) -> Result<()> {
    let (_prepared, mount) = mounted(lab, Xfs, &[])?;
    let file = open(&mount)?;
    share(&mount, &file)?;
    let mapping = map_and_read(&file)?;
    println!("writing");
    file.write_all_at(&[2], 0)?;
    drop((mapping, file));
    mount.unmount()
}

/// `write` first copies all of a shared extent to the first chunk of the new one, however long that
/// chunk is. It goes on in memory that belongs to something else.
fn copy_too_much(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk.node_str();
    let (start, half, chunk) = (4096, 160_u64 << 11, 128);
    let (len, second) = (2 * half, start + half);
    let table = format!("0 {len} striped 2 {chunk} {disk} {start} {disk} {second}");
    let over = Mapped::new("over", &table)?;
    let node = over.disk().node_str();
    // Where the file system stores nothing, these bytes stay.
    let all = over.disk().open(Access::Buffered)?;
    let free = vec![0xaa; LEN];
    for offset in (0..len << 9).step_by(LEN) {
        all.write_all_at(&free, offset)?;
    }
    all.sync_all()?;
    Xfs.make_with(&node, &["-K"])?;
    let mount = Xfs.mount(&node, "dax=always")?;
    fs::write(mount.path("file"), vec![1; LEN])?;
    let file = open(&mount)?;
    share(&mount, &file)?;
    let copy = Access::Buffered.open(&mount.path("copy"))?;
    copy.write_all_at(&vec![2; LEN], 0)?;
    copy.sync_all()?;
    let [old, new] = [&file, &copy].map(start_of_file);
    let (old, behind) = (old?, new? + LEN as u64);
    drop((file, copy));
    mount.unmount()?;

    ensure!(
        old.abs_diff(behind) >= LEN as u64,
        "the blocks that were shared come right behind the new ones"
    );
    run("blockdev", &["--flushbufs", &node])?;
    let mut found = vec![0; LEN];
    all.read_exact_at(&mut found, behind)?;
    let strays = found.iter().filter(|byte| **byte == 1).count();
    drop(all);
    over.remove()?;
    ensure!(
        strays == 0,
        "{strays} bytes behind the new blocks were overwritten with those of the old ones"
    );
    Ok(())
}

/// A store by a mapping without PMDs replaces an entry of 2 MiB by one of a page. When the inode is
/// evicted, it still counts the other pages.
fn store_to_shared(lab: &mut Lab) -> Result<()> {
    need_huge_pages()?;
    let (_prepared, mount) = mounted(lab, Xfs, &[])?;
    let path = mount.path("file");
    fs::write(&path, vec![1; PMD])?;
    let file = open(&mount)?;
    share(&mount, &file)?;
    let whole = Mapping::new(&file, PMD, Sharing::Shared)?;
    whole.load(0);
    let pages = Mapping::of_pages(&file, PMD, Sharing::Shared, true)?;
    println!("storing");
    pages.store(0, 2);
    drop((whole, pages, file));
    println!("removing");
    fs::remove_file(path)?;
    mount.unmount()
}

/// Neither file system breaks layouts before it deletes entries. xfs does so before it looks at the
/// argument, which it refuses here.
fn swap_mapped(lab: &mut Lab) -> Result<()> {
    let (_prepared, mount) = mounted(lab, Xfs, &[])?;
    let file = open(&mount)?;
    let mapping = map_and_read(&file)?;
    fs::write(mount.path("other"), vec![2; LEN])?;
    let other = Access::Buffered.open(&mount.path("other"))?;
    println!("swapping");
    println!("swapped: {:?}", swap_extents(&file, &other));
    drop((mapping, file, other));
    mount.unmount()
}

fn swap_boot_loader(lab: &mut Lab) -> Result<()> {
    let (_prepared, mount) = mounted(lab, Ext4, &[])?;
    let file = open(&mount)?;
    let mapping = map_and_read(&file)?;
    println!("swapping");
    println!("swapped: {:?}", swap_with_boot_loader(&file));
    drop((mapping, file));
    mount.unmount()
}

/// A file that a module made by the debugfs of the kernel crate is closed after the module was
/// unloaded. With the bug mended, the module cannot be unloaded before.
fn close_late(_: &mut Lab) -> Result<()> {
    let injector = Injector::new()?;
    let file = injector.open_file()?;
    let unloaded = injector.unload();
    println!("unloading: {unloaded:?}; closing the file");
    drop(file);
    unloaded.or_else(|_| injector.unload())
}
