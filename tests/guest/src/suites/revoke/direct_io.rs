// SPDX-License-Identifier: GPL-2.0

//! Direct I/O of another disk from and to the pages of a mapping. The cells of the user `direct`
//! cover a disk that is slow to write.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, Slow, read_all};
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::command::run;
use crate::disk::{self, Access, Disk};
use crate::driver::Driver;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::Sharing;
use crate::process::Child;
use crate::retired::{self, TIMEOUT};
use crate::sectors::Buffer;

/// A RAM disk with the contents of the file.
fn other_disk() -> Result<Disk> {
    run("modprobe", &disk::IN_MEMORY)?;
    let disk = Disk::named("nullb0");
    let mut bytes = Buffer::of_pages(LEN, 0);
    bytes.copy_from_slice(&contents());
    disk.open(Access::Direct)?.write_all_at(&bytes, 0)?;
    Ok(disk)
}

/// The disk reads into the pages after they were revoked. Unbind waits for it until the timeout,
/// and what was read is in the file when the device is back.
pub fn read_into_pages(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let file = fixture.open()?;
    file.write_all_at(&vec![0; LEN], 0)?;
    file.sync_all()?;
    drop(file);
    other_disk()?;
    let slow = Slow::new()?;
    let mut user = Child::start_ready("the reader of the disk", |link| {
        let mapping = fixture.map(Sharing::Shared)?;
        let disk = slow.disk().open(Access::Direct)?;
        read_all(&mapping);
        link.say("ready")?;
        mapping.read_from(0, LEN, &disk, 0)?;
        link.say("released")?;
        read_all(&mapping);
        Ok(())
    })?;
    user.await_uninterruptible()?;

    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    if lab.driver == Driver::PmemRs {
        ensure!(took >= TIMEOUT, "it returned after {took:?}");
        retired::expect(1)?;
    }
    slow.resume()?;
    user.hear("released", SIGNAL_LIMIT)?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    slow.expect_written()?;
    back_to_normal(fixture, Way::Unbind)
}

/// Requests of the disk are short, so unbind waits for them, and the next one fails.
pub fn io_all_the_time(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let disk = other_disk()?;
    let mut user = Child::start_ready("the process with direct I/O", |link| {
        let mapping = fixture.map_large()?;
        let disk = disk.open(Access::Direct)?;
        let round = || {
            mapping.write_to(0, LEN, &disk, 0)?;
            mapping.read_from(0, LEN, &disk, 0)
        };
        round().context("the first round")?;
        link.say("ready")?;
        let error = loop {
            if let Err(error) = round() {
                break error;
            }
        };
        // A part of the request may have succeeded.
        if error.raw_os_error().is_some() {
            errno::expect("direct I/O", Err::<(), _>(error), &[Errno::EFAULT])?;
        }
        link.say("refused")?;
        read_all(&mapping);
        Ok(())
    })?;

    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    retired::expect(0)?;
    user.hear("refused", SIGNAL_LIMIT)?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}
