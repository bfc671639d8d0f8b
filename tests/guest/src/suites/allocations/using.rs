// SPDX-License-Identifier: GPL-2.0

//! Devices in use, and reads of their attributes.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

use super::{Turn, Walk, small};
use crate::disk::Access;
use crate::filesystem::FileSystem::Ext4;
use crate::injection::Scope;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::Child;
use crate::sectors::{Buffer, expect_same, stamped};
use crate::sysfs;

const LEN: usize = 64 << 10;
/// The size of the file in pages: each fault uses another one.
const PAGES: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(30);

/// The errors of a read or write that lacks memory.
const IO_ERRORS: &[Errno] = &[Errno::ENOMEM, Errno::EIO, Errno::EAGAIN];

/// Reads, writes and flushes the disk. The driver allocates nothing for that.
pub fn block_io(lab: &mut Lab) -> Result<()> {
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let disk = small(lab, mode)?.disk;
        let file = disk.open(Access::Direct)?;
        let right = Buffer::stamped(LEN, 3);
        let mut walk = Walk::new(lab, "block I/O")?;
        walk.along(Scope::Thread, |failing| {
            if failing
                .call(IO_ERRORS, || file.write_all_at(&right, 4096))?
                .is_none()
            {
                file.write_all_at(&right, 4096)?;
            }
            Ok(())
        })?;
        walk.along(Scope::Thread, |failing| {
            let mut found = Buffer::new(LEN);
            if failing
                .call(IO_ERRORS, || file.read_exact_at(&mut found, 4096))?
                .is_none()
            {
                file.read_exact_at(&mut found, 4096)?;
            }
            expect_same("what was written", &found, &right)
        })?;
        walk.along(Scope::Thread, |failing| {
            failing.call(IO_ERRORS, || file.sync_all()).map(drop)
        })?;
        walk.expect_none(|| {
            file.write_all_at(&right, 4096)?;
            file.read_exact_at(&mut Buffer::new(LEN), 4096)?;
            file.sync_all()
        })?;
        drop(file);
        walk.end()?;
    }
    Ok(())
}

/// Maps files and touches their pages. A fault that lacks memory is repeated or raises a signal.
/// The driver allocates nothing for reads, writes and syncs of files.
pub fn dax(lab: &mut Lab) -> Result<()> {
    let prepared = small(lab, Mode::FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("used");
    fs::write(&path, stamped(PAGES * PAGE, 1))?;
    let right = stamped(PAGES * PAGE, 1);
    let mut walk = Walk::new(lab, "page faults")?;
    let mut page = 0;
    for write in [false, true] {
        for scope in [Scope::Thread, Scope::ThreadInDriver] {
            walk.along(scope, |failing| {
                // A page that was not touched before.
                page += 1;
                let place = page * PAGE;
                let file = Access::Buffered.open(&path)?;
                let mut user =
                    Child::start_ready("the process that accesses the memory", |link| {
                        let mapping =
                            Mapping::of_pages(&file, PAGES * PAGE, Sharing::Shared, true)?;
                        link.say("ready")?;
                        failing.during(|| {
                            if write {
                                mapping.store(place, right[place]);
                            } else {
                                mapping.load(place);
                            }
                        })?;
                        link.say(&match failing.turn {
                            Turn::Counted(count) => format!("turn {count}"),
                            turn => format!("turn {turn:?}"),
                        })
                    })?;
                let (turn, end) = match user.end(PATIENCE)? {
                    WaitStatus::Signaled(_, Signal::SIGBUS, _) => (Turn::Failed, "SIGBUS"),
                    WaitStatus::Exited(_, 0) => {
                        let turn = user.hear_value("turn ", PATIENCE)?;
                        let failed = if turn == "Failed" {
                            Turn::Failed
                        } else {
                            Turn::NotFailed
                        };
                        (turn.parse().map_or(failed, Turn::Counted), "well")
                    }
                    end => anyhow::bail!("the access ended with {end:?}"),
                };
                failing.turn = turn;
                failing.ended(end);
                let mut found = vec![0; PAGE];
                file.read_exact_at(&mut found, place as u64)?;
                expect_same("the page", &found, &right[place..][..PAGE])
            })?;
        }
    }
    let file = Access::Buffered.open(&path)?;
    let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
    walk.expect_none(|| {
        mapping.write(0, &right[..LEN]);
        file.write_all_at(&right[..LEN], 0)?;
        file.read_exact_at(&mut vec![0; LEN], 0)?;
        file.sync_all()
    })?;
    drop((mapping, file));
    walk.end()?;
    expect_same("the file", &fs::read(&path)?, &right)?;
    mount.unmount()?;
    Ext4.check(&node)
}

/// Reads all attributes of a device and the driver.
pub fn attributes(lab: &mut Lab) -> Result<()> {
    let prepared = small(lab, Mode::FsdaxMem)?;
    let name = lab.driver.name();
    let mut files = Vec::new();
    for dir in [
        prepared.disk.path(""),
        prepared.bound.path(""),
        PathBuf::from("/sys/kernel/debug").join(name),
        PathBuf::from("/sys/module").join(name),
        PathBuf::from("/sys/bus/nd/drivers").join(name),
    ] {
        find(&dir, &mut files)?;
    }
    ensure!(files.len() > 50, "too few readable files: {files:?}");
    let mut walk = Walk::new(lab, "attributes")?;
    for file in files {
        // Some attributes cannot be read at the moment, for other reasons.
        let Ok(right) = fs::read(&file) else { continue };
        walk.along(Scope::Thread, |failing| {
            let found = failing.during(|| fs::read(&file))?;
            failing.ended(if found.is_ok() { "well" } else { "error" });
            let found = match found {
                Err(_) if failing.has_failed() => fs::read(&file)?,
                found => found?,
            };
            ensure!(
                right.is_empty() || !found.is_empty(),
                "there is nothing in it any more"
            );
            Ok(())
        })
        .with_context(|| format!("reading {}", file.display()))?;
    }
    walk.end()
}

/// Finds the readable files below a directory, without following links.
fn find(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for name in sysfs::names(dir)? {
        let path = dir.join(name);
        let about = fs::symlink_metadata(&path)?;
        if about.is_dir() {
            find(&path, files)?;
        } else if about.is_file() && about.permissions().mode() & 0o400 != 0 {
            files.push(path);
        }
    }
    Ok(())
}
