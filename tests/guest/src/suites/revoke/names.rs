// SPDX-License-Identifier: GPL-2.0

//! A disk comes back while a file system of the disk that had its name is still mounted.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::Fs;
use super::fixture::contents;
use crate::disk::{Access, Disk};
use crate::filesystem::Mount;
use crate::lab::Lab;
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::sectors::expect_same;

/// 390 and 98 MiB. The second one is too small for xfs.
const TWO: &str = "label: gpt\nstart=4096, size=800000\nstart=806912, size=200704\n";

/// A mount of the new disk is refused until the old one is unmounted. Other uses are not, nor is a
/// mount of another partition.
pub fn name_is_taken(lab: &mut Lab, fs: Fs) -> Result<()> {
    let whole = lab.prepare(Mode::FsdaxMem)?;
    let old = mounted(&whole.disk, fs)?;
    whole.bound.unbind()?;
    whole.bound.bind(lab.driver)?;
    expect_refused(&whole.disk, fs)?;
    expect_back(&whole.disk, fs, old)?;

    whole.disk.cut(TWO)?;
    let (first, second) = (whole.disk.partition(1), whole.disk.partition(2));
    mounted(&second, Fs::Ext4)?.unmount()?;
    let old = mounted(&first, fs)?;
    whole.bound.unbind()?;
    whole.bound.bind(lab.driver)?;
    Fs::Ext4.mount(&second.node_str())?.unmount()?;
    expect_refused(&first, fs)?;
    expect_back(&first, fs, old)
}

fn mounted(disk: &Disk, fs: Fs) -> Result<Mount> {
    let mount = fs.make_and_mount(&disk.node_str())?;
    fs::write(mount.path("file"), contents())?;
    Ok(mount)
}

fn expect_refused(disk: &Disk, fs: Fs) -> Result<()> {
    let point = "/mnt/refused";
    fs::create_dir_all(point)?;
    let mut messages = Messages::from_now()?;
    let node = disk.node();
    let mounted = mount(
        Some(&node),
        point,
        Some(fs.kind()),
        MsFlags::empty(),
        None::<&str>,
    );
    ensure!(
        mounted == Err(Errno::EBUSY),
        "mounting {disk} ended with {mounted:?}"
    );
    let line = format!("{disk}: not mounted: a file system of the removed disk {disk}");
    messages.expect(&[&line])?;

    // A program may claim the disk, as mkfs does.
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_EXCL)
        .open(&node)?;
    disk.open(Access::Direct)?;
    Ok(())
}

fn expect_back(disk: &Disk, fs: Fs, old: Mount) -> Result<()> {
    old.unmount()?;
    let mount = fs.mount(&disk.node_str())?;
    expect_same("the file", &fs::read(mount.path("file"))?, &contents())?;
    mount.unmount()?;
    fs.check(&disk.node_str())
}
