// SPDX-License-Identifier: GPL-2.0

//! File systems on several devices: one of these is unbound while a page on another one is pinned.
//! The file system is shut down with the device, and its files are evicted, which waits for pins.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::special::only_for_pmem_rs;
use super::{FREE_LIMIT, UNBIND_LIMIT};
use crate::command::run;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;
use crate::sectors::stamped;

const LEN: usize = 1 << 20;
/// How long the driver may take to see that a pin has ended.
const PUT_LIMIT: Duration = Duration::from_secs(5);

/// Puts a page of a file into a pipe, and closes the file.
fn pin(path: &Path) -> Result<[OwnedFd; 2]> {
    let file = File::options().read(true).write(true).open(path)?;
    let mapping = Mapping::of_pages(&file, PAGE, Sharing::Shared, true)?;
    mapping.load(0);
    let (reader, writer) = nix::unistd::pipe()?;
    ensure!(mapping.give_to_pipe(0, PAGE, &writer)? == PAGE, "no page");
    Ok([reader, writer])
}

/// Unbinds a device while a page of the file system, on another device, is in a pipe.
fn unbind(goes: &Prepared, stays: &Prepared, mount: Mount) -> Result<()> {
    let path = mount.path("file");
    fs::write(&path, stamped(LEN, 1))?;
    nix::unistd::sync();
    let mut user = Child::start_ready("the process with the pipe", |link| {
        let _pipe = pin(&path)?;
        link.say("ready")?;
        link.wait()
    })?;

    let mut unbinder = Child::start("the unbinding process", |_| goes.bound.unbind())?;
    unbinder.expect_done(UNBIND_LIMIT)?;
    retired::await_none(FREE_LIMIT)?;
    goes.bound.expect_driver(None)?;

    user.go()?;
    user.expect_done(PUT_LIMIT)?;
    mount.unmount()?;
    await_unused(&stays.disk.node())?;
    expect_no_thread_stuck()
}

/// Waits until a disk can be opened exclusively: its file system is gone.
fn await_unused(node: &Path) -> Result<()> {
    let deadline = Instant::now() + PUT_LIMIT;
    loop {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(node);
        match opened {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("opening {}", node.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// An xfs with a realtime volume: each of its devices is unbound while a page of the other one is
/// pinned.
pub fn realtime_and_data(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for inherit in ["rtinherit=1", "rtinherit=0"] {
        let realtime = lab.prepare_in(0, Mode::FsdaxMem)?;
        let data = lab.prepare_in(1, Mode::FsdaxMem)?;
        let (volume, node) = (realtime.disk.node_str(), data.disk.node_str());
        let options = format!("rtdev={volume},extsize=64k");
        Xfs.make_with(&node, &["-m", "reflink=0", "-d", inherit, "-r", &options])?;
        let mount = Xfs.mount(&node, &format!("dax=always,rtdev={volume}"))?;
        let (goes, stays) = match inherit {
            "rtinherit=1" => (&data, &realtime),
            _ => (&realtime, &data),
        };
        unbind(goes, stays, mount).with_context(|| format!("with {inherit}"))?;
        goes.bound.bind(lab.driver)?;
    }
    Ok(())
}

/// An ext4 whose journal is on the device, which needs no DAX for that.
pub fn journal(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let journal = lab.prepare_in(0, mode)?;
        let data = lab.prepare_in(1, Mode::FsdaxMem)?;
        let (below, node) = (journal.disk.node_str(), data.disk.node_str());
        run(
            "mkfs.ext4",
            &["-q", "-F", "-b", "4096", "-O", "journal_dev", &below],
        )?;
        let journal_at = format!("device={below}");
        Ext4.make_with(&node, &["-b", "4096", "-J", &journal_at])?;
        let mount = Ext4.mount(&node, "dax=always")?;
        unbind(&journal, &data, mount).with_context(|| format!("in mode {mode:?}"))?;
        journal.bound.bind(lab.driver)?;
    }
    Ok(())
}
