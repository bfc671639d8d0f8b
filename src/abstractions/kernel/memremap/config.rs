// SPDX-License-Identifier: GPL-2.0

//! The configuration of a pgmap.

use crate::abstractions::bindings;
use core::marker::PhantomData;
use kernel::{
    io::{
        PhysAddr,
        ResourceSize, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

/// The size of a `struct page` in bytes.
pub const PAGE_STRUCT_SIZE: usize = size_of::<bindings::page>();

/// Returns the alignment that a range needs to get `struct page`s, a power of two
/// (`memremap_compat_align()`).
pub fn compat_align() -> ResourceSize {
    // SAFETY: A constant of the architecture.
    unsafe { bindings::memremap_compat_align() as ResourceSize }
}

/// Returns the alignment that the start of a range needs to get `struct page`s, a power of two: a
/// page of `struct page`s begins there.
///
/// With pages of 16 KiB, 2 MiB have half a page of `struct page`s. The kernel maps and frees whole
/// pages of them, beginning with the one in which those of a range start. If that is in the middle
/// of a page, `vmemmap_populate_range()` may not reach the last ones, and `vmemmap_free()` takes
/// those of other memory away.
pub fn start_align() -> ResourceSize {
    const OF_WHOLE_PAGES: usize =
        (1 << (2 * PAGE_SHIFT as u32)) >> PAGE_STRUCT_SIZE.trailing_zeros();

    compat_align().max(OF_WHOLE_PAGES as ResourceSize)
}

/// Returns the size of a section of the memory model in bytes, if the kernel allocates the `struct
/// page`s of a part of a section on the medium, as it does those of a whole section. [`None`] on
/// x86, which allocates them in RAM (`vmemmap_populate()`).
pub fn memmap_section() -> Option<ResourceSize> {
    if cfg!(target_arch = "x86_64") {
        None
    } else {
        Some(1 << bindings::SECTION_SIZE_BITS)
    }
}

/// The configuration of a [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap): a physical
/// range, the location of its `struct page`s, and the offset of its data.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::memremap::PagemapConfig;
///
/// assert!(PagemapConfig::new(4 << 30, 1 << 30).is_ok());
/// assert!(PagemapConfig::new(4 << 30, 0).is_err());
/// assert!(PagemapConfig::new(4 << 30, u64::MAX).is_err());
/// ```
///
/// # Invariants
///
/// `start..start + len` does not wrap and is the only range of `pgmap`. All other fields of `pgmap`
/// are zero, except those that describe the memory for the `struct page`s. `data_offset` is less
/// than `len`, and no `struct page`s are stored in the pages from there on. If `pgmap` describes
/// memory in the range for them, `memmap_is_on_medium` is true. A pgmap that is made within `'a`
/// and has the reservation of the range may keep its `struct page`s there for as long as it exists.
pub struct PagemapConfig<'a> {
    pgmap: bindings::dev_pagemap,
    start: PhysAddr,
    len: ResourceSize,
    data_offset: ResourceSize,
    memmap_is_on_medium: bool,
    _area: PhantomData<&'a ()>,
}

impl PagemapConfig<'_> {
    /// Describes a range of `len` bytes from `start` on, all of which is data. Its `struct page`s
    /// are allocated in System RAM.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is empty or wraps.
    pub fn new(start: PhysAddr, len: ResourceSize) -> Result<Self> {
        let mut pgmap = bindings::dev_pagemap {
            nr_range: 1,
            ..Default::default()
        };
        let end = last(start, len)?;
        // SAFETY: With one range it is this member of the union that is used.
        unsafe { *pgmap.__bindgen_anon_1.range.as_mut() = bindings::range { start, end } };

        // INVARIANT: The range was just set, and does not wrap, since it has a last address.
        Ok(Self {
            pgmap,
            start,
            len,
            data_offset: 0,
            memmap_is_on_medium: false,
            _area: PhantomData,
        })
    }

    /// Takes over a structure that C code has filled in.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is not exactly one range, if it is empty or wraps, or if it has no data.
    ///
    /// # Safety
    ///
    /// `pgmap` must have been zeroed before. If it describes an altmap, this must be in the first
    /// `data_offset` bytes of the range, which must be free to be used for it until a pgmap that is
    /// made within `'a` is gone, if it has the reservation of the range.
    pub(in crate::abstractions) unsafe fn from_raw(
        pgmap: bindings::dev_pagemap,
        data_offset: ResourceSize,
    ) -> Result<Self> {
        if pgmap.nr_range != 1 {
            return Err(EINVAL);
        }

        // SAFETY: With one range it is this member of the union that is used.
        let range = unsafe { *pgmap.__bindgen_anon_1.range.as_ref() };
        let len = range
            .end
            .checked_sub(range.start)
            .and_then(|len| len.checked_add(1))
            .ok_or(EINVAL)?;
        last(range.start, len)?;
        if data_offset >= len {
            return Err(EINVAL);
        }

        // INVARIANT: By the checks above, and by the safety requirements.
        Ok(Self {
            memmap_is_on_medium: pgmap.flags & bindings::PGMAP_ALTMAP_VALID != 0,
            pgmap,
            start: range.start,
            len,
            data_offset,
            _area: PhantomData,
        })
    }

    /// Returns whether the `struct page`s are in the range itself (`vmem_altmap`).
    pub fn memmap_is_on_medium(&self) -> bool {
        self.memmap_is_on_medium
    }

    /// Says that the `struct page`s are in the range, where a test has no memory for them.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(in crate::abstractions) fn treated_as_on_medium(mut self) -> Self {
        self.memmap_is_on_medium = true;
        self
    }

    /// Returns `pgmap`, `start`, `len` and `data_offset`.
    pub(super) fn into_parts(
        self,
    ) -> (bindings::dev_pagemap, PhysAddr, ResourceSize, ResourceSize) {
        (self.pgmap, self.start, self.len, self.data_offset)
    }
}

/// Returns the last address of a range.
fn last(start: PhysAddr, len: ResourceSize) -> Result<PhysAddr> {
    len.checked_sub(1)
        .and_then(|rest| start.checked_add(rest))
        .ok_or(EINVAL)
}

#[kunit_tests(pmem_rs_memremap_config)]
mod tests {
    use super::*;

    #[test]
    fn a_range_must_not_be_empty_or_wrap() {
        assert!(PagemapConfig::new(0, 0).is_err());
        assert!(PagemapConfig::new(u64::MAX, 2).is_err());
        assert!(PagemapConfig::new(u64::MAX, 1).is_ok());
    }
}
