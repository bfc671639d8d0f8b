// SPDX-License-Identifier: GPL-2.0

//! The reproducers of `docs/kernel-bugs.md`. Each needs a guest of its own, because it crashes the
//! kernel; the runner knows the expected result. A test that passes has not triggered its bug.

use std::fs::{self, File};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Suite, Test, probe, region};
use crate::disk::Access;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::Child;

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
    ],
};

const LEN: usize = 1 << 20;
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
