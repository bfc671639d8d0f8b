// SPDX-License-Identifier: GPL-2.0

//! The description of a device for messages and debugfs.

use super::plain::teardown::User;
use crate::abstractions::kernel::{
    lease::LeaseHolders,
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
    pub namespace_range: Range<PhysAddr>,
    /// The state.
    pub stage: Stage,
    /// The pages in use.
    pub used: PagesInUse,
    /// How much of a bound device was exposed, in bytes.
    pub exposed: u64,
    /// The holders of leases.
    pub lease_holders: Option<LeaseHolders>,
}

/// The states of a device that messages distinguish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The device is bound.
    Bound,
    /// A step of the teardown. [`None`] until the worker begins.
    TearingDown(Option<TeardownStep>),
    /// The range may have a user.
    Draining(Option<User>),
    /// The range is being freed, or is free.
    Freeing,
}

/// The steps of a teardown before the worker waits for single users.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TeardownStep {
    /// The disk is resumed, if it is suspended.
    Resume,
    /// Translations to page frame numbers are refused, and files are unmapped.
    CloseToMappings,
    /// Leases are waited for.
    Leases,
    /// The disk is removed.
    RemoveDisk,
    /// Translations are refused.
    Close,
    /// The memory is revoked from files.
    Revoke,
    /// The region is flushed.
    Flush,
}

impl TeardownStep {
    /// Returns the name in the tracepoint.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Resume => c"resume",
            Self::CloseToMappings => c"close_to_mappings",
            Self::Leases => c"leases",
            Self::RemoveDisk => c"remove_disk",
            Self::Close => c"close",
            Self::Revoke => c"revoke",
            Self::Flush => c"flush",
        }
    }

    /// Returns what the step waits for if it takes long. Empty for what is named by other means.
    fn obstacle(self) -> &'static str {
        match self {
            Self::Resume => " (a file system that is being frozen or thawed)",
            Self::CloseToMappings => {
                " (a mount or unmount that does not end, or pins of more files than can be kept)"
            }
            Self::Leases => "",
            Self::Close => " (a work item that kills the DAX device)",
            Self::RemoveDisk => {
                " (a file system on the disk that does not shut down, a mount or unmount, or \
                 pins of more files than can be kept)"
            }
            Self::Revoke => " (files, of which one is locked, or a mount or unmount)",
            Self::Flush => " (a flush of the region that does not end)",
        }
    }
}

impl Description<'_> {
    /// Returns what to do about a range that is retired.
    pub fn remedy(&self) -> &'static str {
        match self.stage {
            Stage::Draining(None) | Stage::Freeing => "Wait until it ends",
            Stage::Draining(Some(_)) | Stage::TearingDown(_) | Stage::Bound => "End these users",
        }
    }
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            namespace_range,
            stage,
            used,
            exposed,
            lease_holders,
        } = self;
        f.write_fmt(fmt!(
            "{} [mem {:#x}-{:#x}], ",
            *name,
            namespace_range.start,
            namespace_range.end.saturating_sub(1)
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
            Stage::TearingDown(step) => step.map_or(" (a work item)", TeardownStep::obstacle),
            // A lease has a reference.
            Stage::Draining(Some(User::Reference)) if lease_holders.is_some() => "",
            Stage::Draining(Some(User::Reference)) => {
                " (a DAX read or write somewhere in the system, or a freeze or thaw, that hangs)"
            }
            Stage::Draining(Some(User::Keeper)) => " (a holder of the disk: device-mapper)",
            Stage::Draining(None) => " (the search for pages in use)",
            Stage::Draining(Some(User::Pin | User::PageCache)) => "",
            Stage::Freeing => " (the memory management, which is freeing it)",
        };
        f.write_str("used by")?;
        if used.referenced != 0 {
            write!(f, " (pins: {} pages)", used.referenced)?;
        }
        if used.cached != 0 {
            write!(f, " (page caches: {} pages)", used.cached)?;
        }
        if let Some(lease_holders) = lease_holders {
            f.write_fmt(fmt!(" (a lease of {})", lease_holders))?;
        }
        if used.referenced == 0 && used.cached == 0 && lease_holders.is_none() && state.is_empty() {
            return f.write_str(" (unknown)");
        }
        f.write_str(state)
    }
}
