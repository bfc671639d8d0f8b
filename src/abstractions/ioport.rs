// SPDX-License-Identifier: GPL-2.0

//! Reservations in the physical address space.
//!
//! The kernel crate's `io::resource::Region` can only be requested from a `Resource` that a bus
//! device has; this one is for a range that is known by its numbers.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use super::bindings;
use core::ptr::addr_of_mut;
use kernel::{
    io::{
        PhysAddr,
        ResourceSize, //
    },
    prelude::*,
    str::CString, //
};

/// A reserved range of physical memory addresses, as `/proc/iomem` shows it.
///
/// It owns its name, so it may outlive whatever it was named after. It cannot overlap System RAM,
/// which is reserved from the start. The reservation is given up when this is dropped.
///
/// # Invariants
///
/// `iomem_resource` has a busy region of `len` bytes at `start`, which is ours and points to `name`.
pub struct MemRegion {
    start: PhysAddr,
    len: ResourceSize,
    _name: CString,
}

impl MemRegion {
    /// Reserves `len` bytes from `start` on.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if any part of the range is in use.
    pub fn request(start: PhysAddr, len: ResourceSize, name: CString) -> Result<Self> {
        // SAFETY: `iomem_resource` always exists. The region keeps a pointer to the name, whose
        // bytes are on the heap and live as long as the reservation does.
        let region = unsafe {
            bindings::__request_region(
                addr_of_mut!(bindings::iomem_resource),
                start,
                len,
                name.as_char_ptr(),
                0,
            )
        };
        if region.is_null() {
            return Err(EBUSY);
        }

        // INVARIANT: The region has just been requested.
        Ok(Self {
            start,
            len,
            _name: name,
        })
    }

    /// Returns the first address.
    pub fn start(&self) -> PhysAddr {
        self.start
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> ResourceSize {
        self.len
    }

    /// Returns whether the region has no bytes, which it never does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the `len` bytes from `start` on are all in the region.
    pub fn contains(&self, start: PhysAddr, len: ResourceSize) -> bool {
        start
            .checked_sub(self.start)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len)
    }
}

impl Drop for MemRegion {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the region is ours to release. The name is dropped after
        // this.
        unsafe {
            bindings::__release_region(addr_of_mut!(bindings::iomem_resource), self.start, self.len)
        };
    }
}
