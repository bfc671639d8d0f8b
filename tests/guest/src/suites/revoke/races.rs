// SPDX-License-Identifier: GPL-2.0

//! Unbinding concurrently with other unbinds, `fsync`, writes, `mkfs` and `MAP_SYNC` faults.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, read_all};
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, User, Way};
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;

pub fn two_at_once(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let bound = fixture.bound()?;
    let mut both = [
        "the first unbinding process",
        "the second unbinding process",
    ]
    .into_iter()
    .map(|name| {
        Child::start(name, |_| match bound.try_unbind(lab.driver) {
            // A later unbind finds it done, or the device gone.
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(error.into()),
        })
    })
    .collect::<Result<Vec<_>>>()?;
    for process in &mut both {
        process.expect_done(UNBIND_LIMIT)?;
    }
    bound.expect_driver(None)?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Unbind)
}

pub fn region_and_device(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let user = User::Reader.start(&fixture)?;
    let bound = fixture.bound()?;
    let mut device = Child::start("the process that unbinds the device", |_| {
        match bound.try_unbind(lab.driver) {
            Ok(()) => Ok(()),
            // The region was removed first.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENOENT)) => {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    })?;
    Way::Region.go(&fixture, UNBIND_LIMIT)?;
    device.expect_done(UNBIND_LIMIT)?;
    user.expect_gone()?;
    back_to_normal(fixture, Way::Region)
}

pub fn fsync_loop(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let mut user = Child::start_ready("the process that calls fsync", |link| {
        let file = fixture.open()?;
        let contents = contents();
        for (round, from) in (0..LEN).step_by(PAGE).cycle().enumerate() {
            let result = file
                .write_all_at(&contents[from..][..PAGE], from as u64)
                .and_then(|()| file.sync_all());
            if let Err(error) = result {
                let errno = error.raw_os_error().map(Errno::from_raw);
                let right = [Errno::EIO, Errno::ENXIO, Errno::EROFS];
                ensure!(
                    errno.is_some_and(|errno| right.contains(&errno)),
                    "it failed with `{error}`"
                );
                return Ok(());
            }
            if round == 10 {
                link.say("ready")?;
            }
        }
        Ok(())
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// The number of threads of [`writers_go_on`].
const WRITERS: usize = 4;

/// Several threads write to one file, whatever the result, while the device is unbound and after
/// that. On device-mapper the file system does not shut down, so each write takes the lock of the
/// file before it fails.
pub fn writers_go_on(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::Xfs, Under::Linear)?;
    let mut user = Child::start_ready("the process that writes", |link| {
        let file = fixture.open()?;
        let contents = contents();
        // The pages get into the page cache.
        read_all(&fixture.map(Sharing::Shared)?);
        let (ends, failed) = (AtomicBool::new(false), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..WRITERS {
                scope.spawn(|| {
                    while !ends.load(Ordering::Relaxed) {
                        if file.write_all_at(&contents[..PAGE], 0).is_err() {
                            failed.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let told = link.say("ready").and_then(|()| link.wait());
            ends.store(true, Ordering::Relaxed);
            told
        })?;
        let failed = failed.into_inner();
        println!("{failed} writes have failed");
        ensure!(failed > WRITERS, "the writers have not gone on");
        Ok(())
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    retired::expect(0)?;
    user.go()?;
    user.expect_done(SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// `mkfs` has the disk open exclusively, without being a file system.
pub fn mkfs_running(lab: &mut Lab) -> Result<()> {
    let prepared = lab.ready(0)?;
    let node = prepared.disk.node_str();
    for delay in [0, 20, 60, 120] {
        let mut mkfs = Child::start_ready("mkfs", |link| {
            link.say("ready")?;
            // It may finish before the disk is removed.
            let output = crate::command::command("mkfs.ext4")
                .args([
                    "-q",
                    "-F",
                    "-b",
                    &PAGE.to_string(),
                    "-E",
                    "lazy_itable_init=0",
                    &node,
                ])
                .output()?;
            println!("mkfs: {}", output.status);
            Ok(())
        })?;
        std::thread::sleep(Duration::from_millis(delay));
        let mut unbind = Child::start("the unbinding process", |_| prepared.bound.unbind())?;
        unbind.expect_done(UNBIND_LIMIT)?;
        mkfs.expect_done(SIGNAL_LIMIT)?;
        retired::await_none(FREE_LIMIT)?;
        prepared.bound.bind(lab.driver)?;
    }
    expect_no_thread_stuck()?;
    Fs::Ext4.make_and_mount(&node)?.unmount()
}

/// Every fault makes the file system allocate a block and write its journal.
pub fn map_sync_faults(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let path = fixture.root()?.join("sparse");
    let mut user = Child::start_ready("the process that faults with MAP_SYNC", |link| {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        file.set_len(LEN as u64)?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Synchronous, true)?;
        let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for (round, page) in (0..LEN).step_by(PAGE).cycle().enumerate() {
            mapping.store(page, 1);
            if let Err(error) = fallocate(&file, punch, page as i64, PAGE as i64) {
                ensure!(
                    matches!(error, Errno::EIO | Errno::ENXIO | Errno::EROFS),
                    "it failed with {error}"
                );
                break;
            }
            if round == 10 {
                link.say("ready")?;
            }
        }
        // The file system has shut down; the pages are unmapped a moment later.
        for page in (0..LEN).step_by(PAGE).cycle() {
            mapping.store(page, 1);
        }
        Ok(())
    })?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}
