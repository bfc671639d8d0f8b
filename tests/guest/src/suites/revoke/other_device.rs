// SPDX-License-Identifier: GPL-2.0

//! File systems on several devices: one of these is unbound while a page on another one is pinned.
//! The file system is shut down with the device, and its files are evicted, which waits for pins.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::fixture::need_erofs;
use super::indirect::erofs_on;
use super::special::only_for_pmem_rs;
use super::{FREE_LIMIT, UNBIND_LIMIT};
use crate::command::run;
use crate::errno;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::ndctl::Mode;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::{expect_same, stamped};
use crate::syscall::is_dax;

const LEN: usize = 1 << 20;
const HALVES: &str = "label: gpt\nstart=4096, size=400000\nstart=405504, size=400000\n";
/// How long the driver may take to see that a pin has ended.
const PUT_LIMIT: Duration = Duration::from_secs(5);

/// Puts a page of a file into a pipe, and closes the file.
fn pin(path: &Path) -> Result<[OwnedFd; 2]> {
    let mapping = Mapping::read_only(&File::open(path)?, PAGE, Sharing::Shared)?;
    mapping.load(0);
    let (reader, writer) = nix::unistd::pipe()?;
    ensure!(mapping.give_to_pipe(0, PAGE, &writer)? == PAGE, "no page");
    Ok([reader, writer])
}

/// Writes a file that is to be pinned.
fn write_file(mount: &Mount) -> Result<()> {
    fs::write(mount.path("file"), stamped(LEN, 1))?;
    nix::unistd::sync();
    Ok(())
}

/// Starts a process that has a page of a file in a pipe until the test goes on.
fn start_user(path: &Path) -> Result<Child> {
    Child::start_ready("the process with the pipe", |link| {
        let _pipe = pin(path)?;
        link.say("ready")?;
        link.wait()
    })
}

/// Unbinds a device while a page of the file system, on another device, is in a pipe.
fn unbind(goes: &Prepared, stays: &Prepared, mount: Mount) -> Result<()> {
    let path = mount.path("file");
    ensure!(is_dax(&path)?, "the file has no DAX");
    let mut user = start_user(&path)?;

    let mut unbinder = Child::start("the unbinding process", |_| goes.bound.unbind())?;
    unbinder.expect_done(UNBIND_LIMIT)?;
    retired::await_none(FREE_LIMIT)?;
    goes.bound.expect_driver(None)?;

    // The file is kept, and so is its file system.
    mount.unmount()?;
    let node = stays.disk.node();
    let result = open_alone(&node).map(drop);
    errno::expect("opening the other device", result, &[Errno::EBUSY])?;
    user.go()?;
    user.expect_done(PUT_LIMIT)?;
    await_unused(&node)?;
    expect_no_thread_stuck()
}

/// Opens a disk that nothing else has claimed.
fn open_alone(node: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(node)
}

/// Waits until a disk can be opened exclusively: its file system is gone.
fn await_unused(node: &Path) -> Result<()> {
    let deadline = Instant::now() + PUT_LIMIT;
    loop {
        match open_alone(node) {
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
        write_file(&mount)?;
        let (goes, stays) = match inherit {
            "rtinherit=1" => (&data, &realtime),
            _ => (&realtime, &data),
        };
        unbind(goes, stays, mount).with_context(|| format!("with {inherit}"))?;
        goes.bound.bind(lab.driver)?;
    }
    Ok(())
}

/// An ext4 whose journal is on the device, or on a partition of it, which needs no DAX for that.
pub fn journal(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for (mode, partitioned) in [
        (Mode::Raw, false),
        (Mode::FsdaxMem, false),
        (Mode::FsdaxMem, true),
    ] {
        let journal = lab.prepare_in(0, mode)?;
        let data = lab.prepare_in(1, Mode::FsdaxMem)?;
        let below = if partitioned {
            journal.disk.cut(HALVES)?;
            journal.disk.partition(2).node_str()
        } else {
            journal.disk.node_str()
        };
        let (node, block) = (data.disk.node_str(), PAGE.to_string());
        run(
            "mkfs.ext4",
            &["-q", "-F", "-b", &block, "-O", "journal_dev", &below],
        )?;
        Ext4.make_with(&node, &["-J", &format!("device={below}")])?;
        let mount = Ext4.mount(&node, "dax=always")?;
        write_file(&mount)?;
        unbind(&journal, &data, mount)
            .with_context(|| format!("in mode {mode:?}, on a partition: {partitioned}"))?;
        journal.bound.bind(lab.driver)?;
    }
    Ok(())
}

/// The main device of an erofs is unbound while a page on its further device is pinned.
pub fn erofs(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    need_erofs()?;
    let main = lab.prepare_in(0, Mode::FsdaxMem)?;
    let further = lab.prepare_in(1, Mode::FsdaxMem)?;
    let mount = erofs_on(&main, &further)?;
    unbind(&main, &further, mount)?;
    main.bound.bind(lab.driver)
}

/// A umount of a file system on the second device, which waits for a pin.
struct StuckUmount {
    user: Child,
    umount: Child,
}

impl StuckUmount {
    fn begin(lab: &Lab, file_system: FileSystem) -> Result<StuckUmount> {
        let node = lab.prepare_in(1, Mode::FsdaxMem)?.disk.node_str();
        file_system.make(&node)?;
        let mount = file_system.mount(&node, "dax=always")?;
        write_file(&mount)?;
        let user = start_user(&mount.path("file"))?;
        let point = mount.point().to_path_buf();
        mount.leave();
        let mut umount = Child::start("the unmounting process", |_| {
            Ok(umount2(&point, MntFlags::empty())?)
        })?;
        umount.await_uninterruptible()?;
        Ok(StuckUmount { user, umount })
    }

    /// Ends the pin. The umount has waited until now.
    fn end(mut self) -> Result<()> {
        ensure!(self.umount.try_end()?.is_none(), "the umount has ended");
        self.user.go()?;
        self.user.expect_done(PUT_LIMIT)?;
        self.umount.expect_done(PUT_LIMIT)
    }
}

/// A device that was never opened is unbound while the umount of a file system on another one waits
/// for a pin.
pub fn unused_beside_umount(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let unused = lab.prepare_in(0, Mode::Raw)?;
    let umount = StuckUmount::begin(lab, Xfs)?;
    let mut unbinder = Child::start("the unbinding process", |_| unused.bound.unbind())?;
    unbinder.expect_done(UNBIND_LIMIT)?;
    umount.end()?;
    unused.bound.bind(lab.driver)
}

/// A device with a mapped file is unbound while the umount of a file system of the same type on
/// another one waits for a pin. The same for a file system without DAX.
pub fn used_beside_umount(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for (file_system, mode, options) in [
        (Ext4, Mode::FsdaxMem, "dax=always"),
        (Xfs, Mode::FsdaxMem, "dax=always"),
        (Ext4, Mode::Raw, ""),
    ] {
        let used = lab.prepare_in(0, mode)?;
        let node = used.disk.node_str();
        file_system.make(&node)?;
        let mount = file_system.mount(&node, options)?;
        write_file(&mount)?;
        let path = mount.path("file");
        let mut user = Child::start_ready("the process with the mapping", |link| {
            let mapping = Mapping::read_only(&File::open(&path)?, PAGE, Sharing::Shared)?;
            mapping.load(0);
            link.say("ready")?;
            link.wait()?;
            mapping.load(0);
            Ok(())
        })?;

        let umount = StuckUmount::begin(lab, file_system)?;
        let mut unbinder = Child::start("the unbinding process", |_| used.bound.unbind())?;
        unbinder.expect_done(UNBIND_LIMIT)?;
        retired::await_none(FREE_LIMIT)?;
        user.go()?;
        match mode {
            Mode::Raw => user.expect_done(PUT_LIMIT)?,
            _ => user.expect_signal(Signal::SIGBUS, PUT_LIMIT)?,
        }
        mount.unmount()?;
        umount.end()?;
        used.bound.bind(lab.driver)?;
        let mount = file_system.mount(&node, options)?;
        expect_same("the file", &fs::read(mount.path("file"))?, &stamped(LEN, 1))?;
        mount.unmount()?;
        file_system.check(&node)?;
    }
    expect_no_thread_stuck()
}

/// A device has two file systems, each with a pin. When the pin of one has ended, its unmount is
/// completed, although the range is still in use.
pub fn pin_on_another_partition(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let pmem = lab.prepare_in(0, Mode::FsdaxMem)?;
    pmem.disk.cut(HALVES)?;
    let mounted = |number| -> Result<(Mount, [OwnedFd; 2])> {
        let node = pmem.disk.partition(number).node_str();
        Ext4.make(&node)?;
        let mount = Ext4.mount(&node, "dax=always")?;
        write_file(&mount)?;
        let pipe = pin(&mount.path("file"))?;
        Ok((mount, pipe))
    };
    let (low, of_low) = mounted(1)?;
    let (high, of_high) = mounted(2)?;
    let name = format!("{}", pmem.disk.partition(2));

    pmem.bound.unbind()?;
    retired::expect(1)?;
    low.unmount()?;
    high.unmount()?;
    let is_there = || Path::new("/sys/fs/ext4").join(&name).exists();
    ensure!(is_there(), "the file system with the pin is gone");
    drop(of_high);
    let deadline = Instant::now() + PUT_LIMIT;
    while is_there() {
        ensure!(Instant::now() < deadline, "{name} is still in use");
        std::thread::sleep(Duration::from_millis(50));
    }
    retired::expect(1)?;
    drop(of_low);
    retired::await_none(FREE_LIMIT)?;
    expect_no_thread_stuck()?;
    pmem.bound.bind(lab.driver)
}
