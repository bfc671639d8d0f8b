// SPDX-License-Identifier: GPL-2.0

//! Unbinding a device while it is in use.
//!
//! A test is a cell of a matrix with four axes: the file system, what it is on, the user of a file,
//! and the way in which the device is removed. All cells do the same: they build the [`fixture`],
//! start the user, remove the device, check the user's end, unmount, add the device again, and
//! check that everything is intact.

mod address_space;
mod asynchronous;
mod blocked;
mod cells;
mod copying;
mod core_dump;
mod direct_io;
mod fixture;
mod holders;
mod indirect;
mod limits;
mod mappings;
mod modes;
mod names;
mod other_device;
mod own_files;
mod pass_through;
mod races;
mod raw_mappings;
mod refused;
mod reports;
mod retirement;
mod special;
mod stress;
mod users;
mod ways;
mod window;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

pub use cells::{EROFS, EXT4, EXT4_NO_JOURNAL, XFS, XFS_REFLINK, XFS_RMAP};
pub use core_dump::reset as reset_core_dumps;
pub use fixture::Fixture;
pub use holders::set_writecache;
pub use limits::{make_files, pin_files};
pub use special::SUITE as SPECIAL;
pub use special::back_to_normal;
pub use stress::SUITE as STRESS;
pub use window::SUITE as WINDOW;

use crate::driver::Driver;
use crate::errno;
use crate::lab::Lab;
use crate::mapping::need_huge_pages;
use crate::messages::Messages;
use crate::process::{expect_no_process_stuck, expect_no_thread_stuck};
use crate::retired;

/// The file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fs {
    Ext4,
    Ext4NoJournal,
    Xfs,
    /// With a reverse mapping tree, which finds the file of a block.
    XfsRmap,
    /// With that tree, and a file that shares its blocks with another one.
    XfsReflink,
    Erofs,
}

/// What the file system is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    Whole,
    Partition,
    Linear,
    /// Striped over two NVDIMMs, the first of which is removed.
    Stripe,
}

/// The user of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Reads continuously through a shared mapping.
    Reader,
    /// Writes continuously through a shared mapping.
    Writer,
    /// Has a private mapping and has written to half of its pages.
    Private,
    /// Has touched a shared mapping and sleeps.
    Idle,
    /// Has forked; both processes read.
    Fork,
    /// Has locked the mapping that it reads.
    Mlock,
    /// Reads or writes through PMD mappings.
    Pmd,
    /// Has put pages into a pipe.
    Pipe,
    /// Has put pages into a pipe, unmapped and closed the file.
    ClosedPipe,
    /// Writes the mapping to another, slow disk with `O_DIRECT`.
    Direct,
    /// Calls `read` and `write` continuously.
    Calls,
}

/// The way in which the device is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The pfn device is unbound.
    Unbind,
    /// The region is unbound.
    Region,
    /// The device of all NVDIMMs is unbound.
    Provider,
}

/// A cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub fs: Fs,
    pub under: Under,
    pub user: User,
    pub way: Way,
}

/// How long the unbind of a device without pinned pages may take, on a busy machine under
/// emulation.
pub const UNBIND_LIMIT: Duration = Duration::from_secs(5);
/// How long a range may stay busy after its last user.
pub const FREE_LIMIT: Duration = Duration::from_secs(5);

impl Cell {
    fn run(self, lab: &Lab) -> Result<()> {
        if self.user == User::Pmd {
            need_huge_pages()?;
        }
        let mut fixture = Fixture::build(lab, self.fs, self.under)?;
        let mut messages = Messages::from_now()?;
        let mut user = self.user.start(&fixture)?;

        let ranges = self.way.ranges(&fixture);
        let took = self.way.go(&fixture, self.limit())?;
        println!("gone after {} ms", took.as_millis());
        if !self.user.pins() && lab.driver == Driver::PmemRs && took < retired::TIMEOUT {
            // device-mapper does not keep a range busy either.
            retired::expect(0)?;
        }
        if self.user.pins() {
            if lab.driver == Driver::PmemRs {
                self.expect_retired(&fixture, ranges, took, &mut messages)?;
            }
            user.unpin()?;
        }
        user.expect_gone()?;
        expect_no_process_stuck()?;
        if self.user.maps() && lab.driver == Driver::PmemRs {
            println!("kernel: {}", messages.expect(&["revoked:"])?);
        }

        fixture.remove_devices()?;
        retired::await_none(FREE_LIMIT)?;
        self.way.come_back(&fixture)?;
        fixture.expect_intact()?;
        expect_no_thread_stuck()
    }

    /// How long the removal may take. The driver waits for pins until the timeout, for all ranges
    /// at once.
    fn limit(self) -> Duration {
        if self.user.pins() {
            UNBIND_LIMIT + retired::TIMEOUT
        } else {
            UNBIND_LIMIT
        }
    }

    /// Checks that unbind has waited for pins until the timeout, and has retired the range.
    fn expect_retired(
        self,
        fixture: &Fixture<'_>,
        ranges: u32,
        took: Duration,
        messages: &mut Messages,
    ) -> Result<()> {
        ensure!(
            took >= retired::TIMEOUT,
            "it did not wait for pinned pages, but returned after {took:?}"
        );
        for line in retired::expect(ranges as usize)? {
            println!("retired: {line}");
        }
        println!("kernel: {}", messages.expect(&["retired"])?);
        if self.way == Way::Unbind {
            let mut messages = Messages::from_now()?;
            let result = fixture.bound()?.try_bind(fixture.lab.driver);
            errno::expect("binding a retired range", result, &[Errno::EBUSY])?;
            let reason = messages.expect(&["retired", "in use", "EBUSY"]);
            println!("kernel: {}", reason.context("the bind failed")?);
        }
        Ok(())
    }
}
