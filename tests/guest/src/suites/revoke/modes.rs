// SPDX-License-Identifier: GPL-2.0

//! Unbinding namespaces in modes that the matrix does not have.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use super::fixture::{LEN, contents};
use super::users::SIGNAL_LIMIT;
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT};
use crate::disk::{Access, Disk};
use crate::filesystem::FileSystem;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{Buffer, expect_same, stamped};

/// The struct pages are on the device itself, so they disappear with it.
pub fn pages_on_the_media(lab: &mut Lab) -> Result<()> {
    const PIPED: usize = 16 * PAGE;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let prepared = lab.prepare(Mode::FsdaxDev)?;
    let node = prepared.disk.node_str();
    let mount = Fs::Ext4.make_and_mount(&node)?;
    fs::write(mount.path("used"), contents())?;
    let mut user = Child::start_ready("the process with pages in a pipe", |link| {
        let file = Access::Buffered.open(&mount.path("used"))?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
        let (reader, writer) = nix::unistd::pipe()?;
        let given = mapping.give_to_pipe(0, PIPED, &writer)?;
        ensure!(given == PIPED, "{given} bytes were put into the pipe");
        drop((mapping, file));
        link.say("ready")?;
        link.wait()?;
        let mut found = vec![0; PIPED];
        File::from(reader).read_exact(&mut found)?;
        expect_same("what is in the pipe", &found, &contents()[..PIPED])
    })?;
    let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
    std::thread::sleep(2 * TIMEOUT);
    if unbind.try_end()?.is_some() {
        for line in retired::list()? {
            println!("retired: {line}");
        }
    }
    user.go()?;
    user.expect_done(SIGNAL_LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    mount.unmount()?;
    retired::await_none(FREE_LIMIT)?;
    prepared.bound.bind(lab.driver)?;
    let mount = Fs::Ext4.mount(&node)?;
    expect_same("the file", &fs::read(mount.path("used"))?, &contents())?;
    mount.unmount()?;
    expect_no_thread_stuck()
}

/// A raw namespace has no DAX, but it has readers and writers.
pub fn raw_disk(lab: &mut Lab) -> Result<()> {
    let prepared = lab.prepare(Mode::Raw)?;
    let mut users = [Access::Direct, Access::Buffered]
        .into_iter()
        .map(|access| {
            Child::start_ready(format!("the user of the disk ({access:?})"), |link| {
                let file = prepared.disk.open(access)?;
                let mut found = Buffer::new(1 << 20);
                let right = Buffer::stamped(1 << 20, access as u64);
                let place = access as u64 * (4 << 20);
                let mut round = || {
                    file.write_all_at(&right, place)?;
                    file.sync_data()?;
                    file.read_exact_at(&mut found, place)
                };
                round()?;
                link.say("ready")?;
                while round().is_ok() {}
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
    unbind.expect_done(UNBIND_LIMIT)?;
    for user in &mut users {
        user.expect_done(SIGNAL_LIMIT)?;
    }
    expect_no_thread_stuck()?;
    prepared.bound.bind(lab.driver)?;
    let mut found = Buffer::new(1 << 20);
    let disk = prepared.disk.open(Access::Direct)?;
    for access in [Access::Direct, Access::Buffered] {
        disk.read_exact_at(&mut found, access as u64 * (4 << 20))?;
        expect_same("the disk", &found, &stamped(1 << 20, access as u64))?;
    }
    Ok(())
}

/// The disk of a btt belongs to the btt driver, but its binding to this one. A file system on it is
/// in use while the device, or the region, is unbound.
pub fn sector_disk(lab: &mut Lab) -> Result<()> {
    for (fs, whole_region) in [
        (FileSystem::Ext4, false),
        (FileSystem::Ext4, true),
        (FileSystem::Xfs, false),
    ] {
        sector_disk_with(lab, fs, whole_region)
            .with_context(|| format!("{fs:?}, region: {whole_region}"))?;
    }
    Ok(())
}

fn sector_disk_with(lab: &Lab, fs: FileSystem, whole_region: bool) -> Result<()> {
    let prepared = lab.prepare(Mode::Sector)?;
    let node = prepared.disk.node_str();
    fs.make(&node)?;
    let mount = fs.mount(&node, "")?;
    let durable = mount.path("durable");
    fs::write(&durable, contents())?;
    File::open(&durable)?.sync_all()?;
    let mut users = [Access::Direct, Access::Buffered]
        .into_iter()
        .map(|access| {
            let path = mount.path(&format!("{access:?}"));
            let what = format!("the user of a file ({access:?})");
            Child::start_ready(what, move |link| {
                fs::write(&path, stamped(LEN, access as u64))?;
                let file = access.open(&path)?;
                // The btt driver takes segments of whole sectors, which have 4 KiB.
                let right = Buffer::of_pages(LEN, access as u64);
                let mut found = Buffer::of_pages(LEN, 0);
                let mut round = || {
                    file.write_all_at(&right, 0)?;
                    file.sync_data()?;
                    file.read_exact_at(&mut found, 0)
                };
                round()?;
                link.say("ready")?;
                while round().is_ok() {}
                Ok(())
            })
        })
        .collect::<Result<Vec<_>>>()?;

    let region = lab.region(0)?;
    let mut unbind = Child::start("the unbinding process", |_| {
        if whole_region {
            Ok(region.try_unbind_region()?)
        } else {
            prepared.bound.unbind()
        }
    })?;
    unbind.expect_done(UNBIND_LIMIT)?;
    for user in &mut users {
        user.expect_done(SIGNAL_LIMIT)?;
    }
    expect_no_thread_stuck()?;
    mount.unmount()?;
    if whole_region {
        region.enable_region()?;
    } else {
        prepared.bound.bind(lab.driver)?;
    }

    let node = Disk::named(lab.holder_in(0)?.disk_name()?).node_str();
    let mount = fs.mount(&node, "")?;
    expect_same("the file", &fs::read(mount.path("durable"))?, &contents())?;
    mount.unmount()?;
    fs.check(&node)
}
