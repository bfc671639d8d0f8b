// SPDX-License-Identifier: GPL-2.0

//! What keeps a disk from being suspended.

use anyhow::Result;

use super::{Counter, build, end, expect_refused, expect_state, resume, suspend};
use crate::lab::Lab;
use crate::mapping::Sharing;
use crate::messages::Messages;
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
