// SPDX-License-Identifier: GPL-2.0

//! What keeps a disk from being suspended.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::ends::start_endless_write;
use super::{
    A_WHILE, Counter, LIMIT, STATE, build, end, expect_refused, expect_state, reset, resume,
    set_limit, suspend,
};
use crate::command::run_expecting_failure;
use crate::dm::Mapped;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::Lab;
use crate::lessee::{self, Lessee};
use crate::mapping::Sharing;
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::Child;
use crate::suites::platform::only_for_pmem_rs;
use crate::suites::revoke::{Fs, Under, User, set_writecache};

/// Pages in a pipe, after which the disk is as before.
pub fn pipe(lab: &mut Lab) -> Result<()> {
    pinned(lab, User::Pipe, Fs::Ext4)
}

/// Pages that a slow disk reads.
pub fn direct(lab: &mut Lab) -> Result<()> {
    pinned(lab, User::Direct, Fs::Xfs)
}

fn pinned(lab: &mut Lab, user: User, fs: Fs) -> Result<()> {
    let (fixture, bound) = build(lab, fs, Under::Whole)?;
    let counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    let mut pin = user.start(&fixture)?;
    let mut messages = Messages::from_now()?;
    expect_refused(&bound, "suspended", libc::EBUSY)?;
    let disk = bound.disk_name()?;
    println!("{}", messages.expect(&["is pinned (inode "])?);
    messages.expect(&[&format!(" of {disk})")])?;
    expect_state(&bound, "live")?;
    counter.expect_counting()?;

    pin.unpin()?;
    drop(pin);
    suspend(&bound)?;
    resume(&bound)?;
    counter.finish()?;
    end(fixture)
}

/// The limit ends the wait for a pin, too.
pub fn pinned_at_the_limit(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let mut pin = User::Pipe.start(&fixture)?;
    // Shorter than the time for which a pin is waited for.
    set_limit(Duration::from_millis(800))?;
    expect_refused(&bound, "suspended", libc::ETIMEDOUT)?;
    expect_state(&bound, "live")?;
    reset()?;
    pin.unpin()?;
    drop(pin);
    suspend(&bound)?;
    resume(&bound)?;
    end(fixture)
}

/// What could store without requests cannot claim the disk meanwhile.
pub fn newcomers(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let (bound, disk) = (&prepared.bound, &prepared.disk);
    let [holder, _] = Lessee::load()?;
    let over = Mapped::new("over", &format!("0 8192 linear {} 0", disk.node_str()))?;
    suspend(bound)?;
    let table = format!("0 8192 linear {} 8192", disk.node_str());
    let said = run_expecting_failure("dmsetup", &["create", "second", "--table", &table])?;
    ensure!(said.contains("busy"), "dmsetup says: {said}");
    holder.expect_refused(over.disk(), Errno::EBUSY)?;
    resume(bound)?;
    Mapped::new("second", &table)?.remove()?;
    holder.get(over.disk())?;
    let mut messages = Messages::from_now()?;
    expect_refused(bound, "suspended", libc::EBUSY)?;
    println!("{}", messages.expect(&["leased by the module lessee"])?);
    holder.put()?;
    over.remove()?;

    suspend(bound)?;
    holder.expect_refused(disk, Errno::EBUSY)?;
    // Programs can open it.
    let mut options = File::options();
    drop(
        options
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(disk.node())?,
    );
    resume(bound)?;
    holder.get(disk)?;
    holder.put()?;
    lessee::unload()
}

/// A file system that is mounted while another one is being frozen is not frozen.
pub fn mounted_meanwhile(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Linear)?;
    let node = format!("/dev/{}", bound.disk_name()?);
    let over = Mapped::new("second", &format!("0 65536 linear {node} 925696"))?;
    let second = over.disk().node_str();
    Ext4.make(&second)?;
    let mut writer = start_endless_write(&fixture)?;
    let mut suspending = Child::start("the suspending process", |_| {
        let result = bound.set(STATE, "suspended");
        ensure!(errno::is(&result, libc::EBUSY), "it gave {result:?}");
        Ok(())
    })?;
    sleep(A_WHILE);
    let mount = Ext4.mount(&second, "dax=always")?;
    ensure!(suspending.try_end()?.is_none(), "the freeze did not wait");
    let mut messages = Messages::from_now()?;
    writer.go()?;
    writer.expect_done(LIMIT)?;
    suspending.expect_done(LIMIT)?;
    let line = messages.expect(&["was mounted meanwhile"])?;
    ensure!(line.contains(over.disk().name()), "it says: {line}");
    std::fs::write(mount.path("file"), "written")?;
    suspend(&bound)?;
    resume(&bound)?;
    mount.unmount()?;
    over.remove()?;
    end(fixture)
}

/// A table that may keep an address.
pub fn keeper(lab: &mut Lab) -> Result<()> {
    set_writecache(true)?;
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Linear)?;
    let counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    let mut messages = Messages::from_now()?;
    expect_refused(&bound, "suspended", libc::EBUSY)?;
    println!("{}", messages.expect(&["may keep an address"])?);
    counter.expect_counting()?;
    set_writecache(false)?;
    suspend(&bound)?;
    resume(&bound)?;
    counter.finish()?;
    end(fixture)
}
