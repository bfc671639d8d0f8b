// SPDX-License-Identifier: GPL-2.0

//! Regions, whose properties are those of all namespaces in them.

use crate::abstractions::bindings;
use crate::abstractions::kernel::badblocks::{
    self,
    Badblocks, //
};
use core::ops::Range;
use kernel::{
    block::SECTOR_SIZE,
    io::PhysAddr,
    types::Opaque, //
};

/// A region that is bound to its driver.
///
/// # Invariants
///
/// A reference to this is a pointer to a valid `struct nd_region`, which stays bound for the
/// lifetime of the reference.
#[repr(transparent)]
pub struct Region(Opaque<bindings::nd_region>);

impl Region {
    /// Creates a reference from a pointer.
    ///
    /// # Safety
    ///
    /// The region must be valid and bound for `'a`.
    pub(super) unsafe fn from_raw<'a>(region: *mut bindings::nd_region) -> &'a Self {
        // SAFETY: By the safety requirements; the wrapper is transparent.
        unsafe { &*region.cast() }
    }

    fn as_raw(&self) -> *mut bindings::nd_region {
        self.0.get()
    }

    /// Returns whether writes need a flush of the region to be durable. [`None`] if that is
    /// unknown.
    pub fn has_flush(&self) -> Option<bool> {
        // The C function examines the DIMMs first, and a virtio region has none.
        if !self.is_synchronous() {
            return Some(true);
        }

        // SAFETY: By the type invariant the region is valid.
        match unsafe { bindings::nvdimm_has_flush(self.as_raw()) } {
            0 => Some(false),
            1.. => Some(true),
            _ => None,
        }
    }

    /// Returns whether a flush of the region is only the write barrier in `nvdimm_flush()`
    /// (`drivers/nvdimm/region_devs.c`).
    ///
    /// On such a platform the stores that have left the CPU are durable (ADR).
    pub(super) fn is_flushed_by_barrier(&self) -> bool {
        !self.flush_may_sleep() && self.has_flush() == Some(false)
    }

    /// Returns whether a flush of the region calls its provider, which may sleep. The flush of
    /// other regions does not sleep (`generic_nvdimm_flush()`).
    pub(super) fn flush_may_sleep(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::nd_region_has_flush_function(self.as_raw()) }
    }

    /// Returns whether there are CPU caches between a store and the persistent memory.
    pub fn has_cache(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::nvdimm_has_cache(self.as_raw()) != 0 }
    }

    /// Returns whether writes are durable once the CPU caches were flushed (`MAP_SYNC` is
    /// possible).
    pub fn is_synchronous(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::is_nvdimm_sync(self.as_raw()) }
    }

    /// Returns whether the region is read-only: its attribute `read_only` is 1, or its DIMMs cannot
    /// be written to.
    pub fn is_read_only(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::nd_region_is_read_only(self.as_raw()) }
    }

    /// Returns the physical address of the first bad sector that the region itself has listed,
    /// among the `sectors` ones from sector `first` of the region on.
    pub(super) fn first_bad(&self, first: u64, sectors: u64) -> Option<PhysAddr> {
        // SAFETY: By the type invariant the region is valid and bound. Its driver has initialised
        // the list before it added the devices in it.
        let (start, bad) = unsafe {
            (
                bindings::nd_region_start(self.as_raw()),
                badblocks::check(bindings::nd_region_badblocks(self.as_raw()), first, sectors),
            )
        };
        let sector = bad?.first.max(first);

        Some(start.saturating_add(sector.saturating_mul(u64::from(SECTOR_SIZE))))
    }

    /// Adds the bad ranges in a physical range to badblocks, which count from its start. May sleep.
    /// Takes the bus lock.
    pub fn populate_badblocks(&self, badblocks: &Badblocks, range: &Range<PhysAddr>) {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return;
        };
        let range = bindings::range {
            start: range.start,
            end: last,
        };

        // SAFETY: By the type invariants the region and the badblocks are valid. The range is only
        // read.
        unsafe {
            bindings::nvdimm_badblocks_populate(self.as_raw(), badblocks.as_raw().as_ptr(), &range)
        };
    }
}
