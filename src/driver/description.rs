// SPDX-License-Identifier: GPL-2.0

//! The description of a device for messages and debugfs.

use super::plain::teardown::User;
use crate::abstractions::kernel::{
    lease::Holders,
    memremap::PagesInUse, //
};
use core::ops::Range;
use kernel::{
    fmt,
    io::PhysAddr,
    prelude::*, //
};

/// The state of a device and the users of its range, as a line of text.
///
/// The text is formatted twice, first for its length. So it depends only on the fields.
pub struct Description<'a> {
    /// The name of the device.
    pub name: &'a CStr,
    /// The physical range of the namespace.
    pub phys: Range<PhysAddr>,
    /// The state.
    pub stage: Stage,
    /// The pages in use.
    pub used: PagesInUse,
    /// How much of a bound device was exposed, in bytes.
    pub exposed: u64,
    /// The holders of leases.
    pub holders: Option<Holders>,
}

/// The states of a device that messages distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The device is bound.
    Bound,
    /// The disk is being removed.
    RemovingDisk,
    /// The memory is being revoked from files.
    Revoking,
    /// The range may have a user.
    Draining(Option<User>),
    /// The range is being freed.
    Freeing,
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            phys,
            stage,
            used,
            exposed,
            holders,
        } = self;
        f.write_fmt(fmt!(
            "{} [mem {:#x}-{:#x}], ",
            *name,
            phys.start,
            phys.end.saturating_sub(1)
        ))?;

        let state = match stage {
            Stage::Bound => {
                return f.write_fmt(fmt!(
                    "exposed: {} KiB, in use: {} pages, in page caches only: {} pages",
                    exposed >> 10,
                    used.referenced,
                    used.cached
                ));
            }
            Stage::RemovingDisk if holders.is_some() => "",
            Stage::RemovingDisk => " (a file system on the disk that does not shut down)",
            Stage::Revoking => " (files, of which one is locked)",
            // A lease has a reference.
            Stage::Draining(Some(User::Reference)) if holders.is_some() => "",
            Stage::Draining(Some(User::Reference)) => {
                " (a DAX read or write that hangs somewhere in the system)"
            }
            Stage::Draining(Some(User::Keeper)) => " (a holder of the disk: device-mapper)",
            Stage::Draining(_) => "",
            Stage::Freeing => " (the memory management, which is freeing it)",
        };
        f.write_str("used by")?;
        if used.referenced != 0 {
            write!(f, " (pins: {} pages)", used.referenced)?;
        }
        if used.cached != 0 {
            write!(f, " (page caches: {} pages)", used.cached)?;
        }
        if let Some(holders) = holders {
            f.write_fmt(fmt!(" (a lease of {})", holders))?;
        }
        if used.referenced == 0 && used.cached == 0 && holders.is_none() && state.is_empty() {
            return f.write_str(" (unknown)");
        }
        f.write_str(state)
    }
}
