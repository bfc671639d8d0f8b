// SPDX-License-Identifier: GPL-2.0

//! Reservations in the physical address space.
//!
//! The kernel crate's `io::resource::Region` can only be requested from a `Resource` that a bus
//! device has; this one is for a range that is known by its numbers.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use super::bindings;
use core::ptr::{
    addr_of_mut,
    NonNull, //
};
use kernel::{
    io::{
        PhysAddr,
        ResourceSize, //
    },
    prelude::*,
    str::CString,
    sync::SetOnce, //
};

/// A reserved range of physical memory addresses, as `/proc/iomem` shows it.
///
/// It owns its name, so it may outlive whatever it was named after. It cannot overlap System RAM,
/// which is reserved from the start. The reservation is given up when this is dropped.
///
/// # Examples
///
/// ```
/// use kernel::str::CString;
/// use pmem_rs::abstractions::ioport::MemRegion;
///
/// // No machine has as many addresses as there are numbers.
/// let name = CString::try_from_fmt(fmt!("{}.{}", "namespace0", 0))?;
/// assert!(MemRegion::request(1 << 62, 4096, name).is_err_and(|err| err == EBUSY));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `iomem_resource` has a busy region of `len` bytes at `start`, which is ours, is `region`, and points
/// to one of the names.
pub struct MemRegion {
    start: PhysAddr,
    len: ResourceSize,
    region: NonNull<bindings::resource>,
    name: CString,
    other_name: SetOnce<CString>,
}

// SAFETY: A region may be used and released by any thread.
unsafe impl Send for MemRegion {}

// SAFETY: As above; `rename` stores a pointer, atomically.
unsafe impl Sync for MemRegion {}

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

        // INVARIANT: The region has just been requested.
        Ok(Self {
            start,
            len,
            region: NonNull::new(region).ok_or(EBUSY)?,
            name,
            other_name: SetOnce::new(),
        })
    }

    /// Returns the name that the region was made with.
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Gives the region another name. Only the first call has an effect.
    pub fn rename(&self, name: CString) {
        if !self.other_name.populate(name) {
            return;
        }
        if let Some(name) = self.other_name.as_ref() {
            // SAFETY: By the type invariant the region is ours. Both names live as long as it does, so
            // readers may see either.
            unsafe {
                addr_of_mut!((*self.region.as_ptr()).name).write_volatile(name.as_char_ptr())
            };
        }
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

/// A range that nothing uses, for tests.
#[cfg(CONFIG_KUNIT = "y")]
pub(super) fn free_range(len: ResourceSize) -> Result<PhysAddr> {
    // SAFETY: `iomem_resource` always exists; the name is static.
    let region = kernel::error::from_err_ptr(unsafe {
        bindings::request_free_mem_region(
            addr_of_mut!(bindings::iomem_resource),
            len as c_ulong,
            c"pmem_rs test".as_char_ptr(),
        )
    })?;

    // SAFETY: The region is ours. It is given back at once, for a test to take it.
    unsafe {
        let start = (*region).start;
        // It may be larger than was asked for.
        let len = bindings::resource_size(region);
        bindings::__release_region(addr_of_mut!(bindings::iomem_resource), start, len);
        Ok(start)
    }
}

#[kunit_tests(pmem_rs_ioport)]
mod tests {
    use super::*;

    const LEN: ResourceSize = 4 << 20;

    fn request(start: PhysAddr, len: ResourceSize) -> Result<MemRegion> {
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)
    }

    #[test]
    fn a_range_has_one_owner_at_a_time() -> Result {
        let start = free_range(LEN)?;
        let region = request(start, LEN)?;

        assert!(request(start, LEN).is_err_and(|err| err == EBUSY));
        assert!(request(start + LEN - 1, 1).is_err_and(|err| err == EBUSY));
        drop(region);
        request(start, LEN)?;
        Ok(())
    }

    // On a PC there is RAM at 1 MiB.
    #[cfg(CONFIG_X86 = "y")]
    #[test]
    fn ram_cannot_be_reserved() {
        assert!(request(1 << 20, 1).is_err_and(|err| err == EBUSY));
    }

    #[test]
    fn a_region_contains_its_parts() -> Result {
        let start = free_range(LEN)?;
        let region = request(start, LEN)?;

        assert!(region.contains(start, LEN));
        assert!(region.contains(start + 4096, LEN - 4096));
        assert!(region.contains(start + LEN, 0));
        assert!(!region.contains(start, LEN + 1));
        assert!(!region.contains(start - 1, 1));
        assert!(!region.contains(start + 1, u64::MAX));
        Ok(())
    }
}
