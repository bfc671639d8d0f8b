// SPDX-License-Identifier: GPL-2.0

//! Suspending a disk while it is in use.

mod ends;
mod moment;
mod obstacles;
mod writers;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::platform::only_for_pmem_rs;
use super::revoke::{Fixture, Fs, Under};
use super::{Suite, Test};
use crate::injector::Watch;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::nd::Device;
use crate::process::{Child, Link};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "suspend",
    tests: &[
        Test::new("state_is_polled", state),
        Test::new("writes_are_held", writers::writes_are_held),
        Test::new("all_kinds_of_writes_are_held", writers::all_kinds),
        Test::new("stores_wait_ext4", |lab| {
            stores(lab, Fs::Ext4, Under::Whole)
        })
        .within(120),
        Test::new("stores_wait_xfs", |lab| stores(lab, Fs::Xfs, Under::Whole)).within(120),
        Test::new("stores_wait_xfs_reflink", |lab| {
            stores(lab, Fs::XfsReflink, Under::Whole)
        })
        .within(120),
        Test::new("stores_wait_partition", |lab| {
            stores(lab, Fs::Ext4, Under::Partition)
        })
        .within(120),
        Test::new("stores_wait_dm_linear", |lab| {
            stores(lab, Fs::Xfs, Under::Linear)
        })
        .within(120),
        Test::new("readers_go_on_erofs", writers::erofs),
        Test::new("map_sync_stores_wait_xfs", writers::map_sync),
        Test::new("huge_pages", writers::huge_pages),
        Test::new("a_pin_is_named", obstacles::pipe),
        Test::new("direct_io_is_named", obstacles::direct),
        Test::new("a_keeper_is_named", obstacles::keeper),
        Test::new("a_pin_until_the_limit", obstacles::pinned_at_the_limit),
        Test::new("new_holders_are_refused", obstacles::newcomers),
        Test::new("mounted_while_it_freezes", obstacles::mounted_meanwhile),
        Test::new("the_limit_ends_it", ends::limit),
        Test::new("the_limit_ends_a_freeze", ends::limit_of_freeze),
        Test::new("killed_while_it_freezes", ends::killed),
        Test::new("a_killed_writer_ends_at_resume", ends::killed_user),
        Test::new("unbind", |lab| {
            ends::goes(lab, Fs::Ext4, super::revoke::Way::Unbind)
        }),
        Test::new("unbind_xfs", |lab| {
            ends::goes(lab, Fs::XfsRmap, super::revoke::Way::Unbind)
        }),
        Test::new("region_goes", |lab| {
            ends::goes(lab, Fs::Ext4, super::revoke::Way::Region)
        }),
        Test::new("provider_goes", |lab| {
            ends::goes(lab, Fs::Xfs, super::revoke::Way::Provider)
        }),
        Test::new("unbind_while_it_freezes", ends::unbind_while_it_freezes),
        Test::new("unbind_waits_for_users_after_it", ends::unbind_waits_twice),
        Test::new("resumed_while_it_freezes", ends::resumed_early),
        Test::new("thawed_by_another_program", ends::thawed),
        Test::new("unmounted_meanwhile", ends::unmounted),
        Test::new("frozen_before", ends::frozen_before),
        Test::new("the_system_stays_awake", ends::system_sleep),
        Test::new("a_freeze_alone_is_no_moment", moment::freeze_alone),
        Test::new("a_copy_is_one_moment", moment::suspended)
            .within(120)
            .or_as_long_as_asked(),
    ],
};

/// The attribute of a device that suspends and resumes it.
pub const STATE: &str = "pmem_rs/state";
const PARAMETER: &str = "/sys/module/pmem_rs/parameters/suspend_limit_ms";
/// How long it takes to suspend or resume a disk, on a busy machine under emulation.
const LIMIT: Duration = Duration::from_secs(10);
/// A moment in which a program that does not wait has done something.
const A_WHILE: Duration = Duration::from_millis(700);
/// The size of the file in which a program counts.
const COUNTED: usize = 16 * PAGE;

pub fn set_limit(limit: Duration) -> Result<()> {
    sysfs::write(PARAMETER, &limit.as_millis().to_string())
}

/// Undoes [`set_limit`].
pub fn reset() -> Result<()> {
    if Path::new(PARAMETER).exists() {
        set_limit(Duration::from_secs(30))?;
    }
    for device in Device::all()? {
        if device.get(STATE).is_ok_and(|state| state == "suspended") {
            // The limit may end it at this moment.
            let _ = device.set(STATE, "live");
        }
    }
    Ok(())
}

fn build(lab: &Lab, fs: Fs, under: Under) -> Result<(Fixture<'_>, Device)> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, fs, under)?;
    let bound = fixture.bound()?;
    expect_state(&bound, "live")?;
    Ok((fixture, bound))
}

pub fn expect_state(bound: &Device, state: &str) -> Result<()> {
    let found = bound.get(STATE)?;
    ensure!(found == state, "{bound} is {found}, expected {state}");
    Ok(())
}

/// Suspends a disk in another process, since it may hang.
pub fn suspend(bound: &Device) -> Result<()> {
    let start = Instant::now();
    Child::start("the suspending process", |_| bound.set(STATE, "suspended"))?
        .expect_done(LIMIT)?;
    println!("suspended after {} ms", start.elapsed().as_millis());
    expect_state(bound, "suspended")
}

pub fn resume(bound: &Device) -> Result<()> {
    Child::start("the resuming process", |_| bound.set(STATE, "live"))?.expect_done(LIMIT)?;
    expect_state(bound, "live")
}

/// Checks that the state cannot be set.
fn expect_refused(bound: &Device, state: &str, errno: i32) -> Result<()> {
    let result = sysfs::try_write(bound.path(STATE), state);
    let found = result.as_ref().err().and_then(io::Error::raw_os_error);
    ensure!(
        found == Some(errno),
        "writing {state} gave {result:?}, expected error {errno}"
    );
    Ok(())
}

fn state(lab: &mut Lab) -> Result<()> {
    let (fixture, bound) = build(lab, Fs::Ext4, Under::Whole)?;
    let linked = format!("/sys/block/{}/device/{STATE}", bound.disk_name()?);
    let mut watch = Watch::new(&bound.path(STATE))?;
    suspend(&bound)?;
    watch.expect("suspended")?;
    ensure!(sysfs::read(&linked)? == "suspended", "{linked} differs");
    expect_refused(&bound, "suspended", libc::EBUSY)?;
    sysfs::write(&linked, "live")?;
    watch.expect("live")?;
    expect_refused(&bound, "live", libc::EINVAL)?;
    expect_refused(&bound, "leaving", libc::EINVAL)?;
    expect_refused(&bound, "0", libc::EINVAL)?;
    for _ in 0..20 {
        suspend(&bound)?;
        resume(&bound)?;
    }
    end(fixture)
}

/// Checks that everything is intact after the devices above were removed and made again.
fn end(mut fixture: Fixture<'_>) -> Result<()> {
    fixture.remove_devices()?;
    fixture.expect_intact()
}

/// A program that stores a growing number to a mapping of a file of its own, in each page.
struct Counter {
    child: Child,
    path: PathBuf,
}

impl Counter {
    fn start(root: &Path, sharing: Sharing) -> Result<Counter> {
        let path = root.join("counted");
        std::fs::write(&path, vec![0; COUNTED])?;
        File::open(&path)?.sync_all()?;
        let file = File::options().read(true).write(true).open(&path)?;
        let child = Child::start_ready("the counting program", move |link: &mut Link| {
            let mapping = Mapping::of_pages(&file, COUNTED, sharing, true)?;
            for count in 1_u64.. {
                for page in (0..COUNTED).step_by(PAGE) {
                    mapping.write(page, &count.to_le_bytes());
                }
                if count == 1 {
                    link.say("ready")?;
                }
                if count % 64 == 0 && link.is_told_to_go()? {
                    break;
                }
            }
            Ok(())
        })?;
        Ok(Counter { child, path })
    }

    /// The number in the file, read through a mapping, which is a DAX read.
    fn count(&self) -> Result<u64> {
        let file = File::open(&self.path)?;
        let mapping = Mapping::read_only(&file, COUNTED, Sharing::Shared)?;
        let mut count = [0; 8];
        mapping.read(0, &mut count);
        // The last page cannot be ahead of the first one.
        let mut called = [0; 8];
        file.read_exact_at(&mut called, 0)?;
        ensure!(
            u64::from_le_bytes(called) >= u64::from_le_bytes(count),
            "read has found an older number than the mapping"
        );
        Ok(u64::from_le_bytes(count))
    }

    fn expect_waiting(&mut self) -> Result<()> {
        self.child.await_uninterruptible()?;
        let before = self.count()?;
        sleep(A_WHILE);
        let after = self.count()?;
        ensure!(before == after, "it has counted from {before} to {after}");
        Ok(())
    }

    fn expect_counting(&self) -> Result<()> {
        let before = self.count()?;
        let deadline = Instant::now() + LIMIT;
        while self.count()? == before {
            ensure!(Instant::now() < deadline, "it does not count");
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.child.go()?;
        self.child.expect_done(LIMIT)
    }
}

/// A program stores to a mapping before, waits meanwhile, and continues afterwards. Another one
/// reads all the time.
fn stores(lab: &mut Lab, fs: Fs, under: Under) -> Result<()> {
    let (fixture, bound) = build(lab, fs, under)?;
    let mut counter = Counter::start(&fixture.root()?, Sharing::Shared)?;
    let mut reader = writers::Reader::start(&fixture)?;
    for _ in 0..3 {
        counter.expect_counting()?;
        suspend(&bound)?;
        counter.expect_waiting()?;
        reader.expect_reading()?;
        resume(&bound)?;
    }
    counter.expect_counting()?;
    counter.finish()?;
    reader.finish()?;
    end(fixture)
}
