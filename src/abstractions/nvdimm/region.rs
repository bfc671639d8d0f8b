// SPDX-License-Identifier: GPL-2.0

//! Regions, whose properties are those of all namespaces in them.

use crate::abstractions::bindings;
use crate::abstractions::kernel::badblocks::{
    self,
    Badblocks, //
};
use crate::abstractions::nvdimm::placement::{
    is_within,
    Part, //
};
use core::{
    mem::offset_of,
    ops::Range, //
};
use kernel::{
    block::SECTOR_SIZE,
    io::PhysAddr,
    prelude::*,
    str::CString,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
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

    /// Returns whether a flush of the region is known to be only the write barrier in
    /// `nvdimm_flush()` (`drivers/nvdimm/region_devs.c`). False for a region without DIMMs.
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
    /// possible). Also true for a volatile region.
    pub fn is_synchronous(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::is_nvdimm_sync(self.as_raw()) }
    }

    /// Returns whether the provider may take the medium away while the system runs. virtio-pmem
    /// devices can be unplugged, and the addresses of CXL regions are decoded only while the region
    /// exists. The providers for NVDIMMs (ACPI), e820, device trees and ramdax cannot do that. The
    /// one for POWER hypervisors can, and is not supported: the module is built for x86-64 and
    /// arm64 only.
    pub fn is_removable(&self) -> bool {
        // SAFETY: By the type invariant the region is valid. The flag does not change.
        !self.is_synchronous() || unsafe { bindings::nd_region_is_cxl(self.as_raw()) }
    }

    /// Returns whether the region is read-only: its attribute `read_only` is 1. At first it is 1 if
    /// a DIMM of the region is unarmed (`NDD_UNARMED`).
    pub fn is_read_only(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::nd_region_is_read_only(self.as_raw()) }
    }

    /// Returns the physical range of the region.
    pub(super) fn range(&self) -> Range<PhysAddr> {
        // SAFETY: By the type invariant the region is valid. Its range does not change.
        let (start, size) = unsafe {
            (
                bindings::nd_region_start(self.as_raw()),
                bindings::nd_region_size(self.as_raw()),
            )
        };

        start..start.saturating_add(size)
    }

    /// Returns whether a namespace with this range is where it has to be: in the region, and, if
    /// its labels have a uuid, where each NVDIMM has allocated space to that uuid. May sleep. Takes
    /// the bus lock.
    ///
    /// libnvdimm creates namespaces of which this is not true (`nd_namespace_pmem_set_resource()`).
    pub(super) fn has_allocated(
        &self,
        namespace: &Range<PhysAddr>,
        uuid: Option<&[u8; 16]>,
    ) -> Result<bool> {
        let region = self.range();
        if !is_within(namespace, &region) {
            return Ok(false);
        }
        let Some(uuid) = uuid else {
            return Ok(true);
        };

        let owner = name_of_allocations(uuid)?;
        // SAFETY: By the type invariant the region is valid. The number does not change.
        let nvdimms = unsafe { bindings::nd_region_mappings(self.as_raw()) };
        let Some(part) = Part::of(namespace, region.start, nvdimms.into()) else {
            return Ok(false);
        };
        let _guard = BusLock::new(self);
        // SAFETY: The region has this many NVDIMMs, and the bus lock is held.
        Ok((0..nvdimms).all(|index| unsafe { self.is_allocated_on(index, &part, &owner) }))
    }

    /// Returns whether the labels of all NVDIMMs have a place for a claim class: those of version
    /// 1.1 have none. False if one of them was disabled since the region was bound. Sleeps.
    pub(super) fn labels_have_claim_class(&self) -> bool {
        // SAFETY: By the type invariant the region is valid. The number does not change.
        let nvdimms = unsafe { bindings::nd_region_mappings(self.as_raw()) };

        let _guard = BusLock::new(self);
        nvdimms > 0
            && (0..nvdimms).all(|index| {
                // SAFETY: The region has this many NVDIMMs. None is disabled with the bus lock
                // held.
                let size = unsafe { bindings::nd_region_label_size(self.as_raw(), index) };
                size as usize > offset_of!(bindings::nvdimm_efi_label, abstraction_guid)
            })
    }

    /// Returns whether a part is all that an NVDIMM has allocated to `owner`. True if the NVDIMM
    /// was disabled since the region was bound: nothing is known about it then.
    ///
    /// # Safety
    ///
    /// The region must have an NVDIMM with this index, and the bus lock must be held.
    unsafe fn is_allocated_on(&self, index: u16, part: &Part, owner: &CStr) -> bool {
        // SAFETY: By the safety requirements and the type invariant.
        let (start, root) = unsafe {
            (
                bindings::nd_region_mapping_start(self.as_raw(), index),
                bindings::nd_region_dpa(self.as_raw(), index),
            )
        };
        if root.is_null() {
            return true;
        }

        // SAFETY: `nd_region_dpa` returns a resource that the region keeps while it is bound. Its
        // children are added, removed and renamed with the bus lock held.
        let mut next = unsafe { (*root).child };
        let allocations = core::iter::from_fn(|| {
            // SAFETY: As above. A child is valid for as long as it is in the list.
            let child = unsafe { next.as_ref() }?;
            next = child.sibling;
            Some(child)
        });
        let owned = allocations.filter(|child| {
            // SAFETY: As above. `nvdimm_allocate_dpa()` gives each child a name.
            unsafe { bindings::strcmp(child.name, owner.as_char_ptr()) == 0 }
        });
        part.is_all_of(start, owned.map(|child| (child.start, child.end)))
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

/// Returns the name of what is allocated to a uuid on an NVDIMM (`nd_label_gen_id()`).
fn name_of_allocations(uuid: &[u8; 16]) -> Result<CString> {
    let uuid = u128::from_be_bytes(*uuid);
    // CAST: Only the lowest bits of each part are wanted.
    let [low, mid, high, clock] = [96, 80, 64, 48].map(|shift| (uuid >> shift) as u32);
    let node = uuid as u64 & 0xffff_ffff_ffff;

    CString::try_from_fmt(fmt!(
        "pmem-{low:08x}-{:04x}-{:04x}-{:04x}-{node:012x}",
        mid as u16,
        high as u16,
        clock as u16
    ))
}

/// Holds the lock of the bus of a region (`nvdimm_bus_lock()`). The lock of a device may be held
/// before.
///
/// # Invariants
///
/// The lock is held by the thread that has made this.
struct BusLock<'a>(&'a Region, NotThreadSafe);

impl<'a> BusLock<'a> {
    fn new(region: &'a Region) -> Self {
        // SAFETY: By the type invariant the region is valid, and so is on a bus.
        unsafe { bindings::nvdimm_bus_lock(bindings::nd_region_dev(region.as_raw())) };
        // INVARIANT: The lock was just taken.
        Self(region, NotThreadSafe)
    }
}

impl Drop for BusLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held by this thread.
        unsafe { bindings::nvdimm_bus_unlock(bindings::nd_region_dev(self.0.as_raw())) };
    }
}

#[kunit_tests(pmem_rs_nd_region)]
mod tests {
    use super::*;

    #[test]
    fn allocations_have_the_uuid_as_their_name() -> Result {
        let uuid = [
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54,
            0x32, 0x10,
        ];

        let name = name_of_allocations(&uuid)?;
        assert!(&*name == c"pmem-01234567-89ab-cdef-fedc-ba9876543210");
        Ok(())
    }
}
