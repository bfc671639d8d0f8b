// SPDX-License-Identifier: GPL-2.0

//! Physical ranges of data.

use super::{
    failed_pages::PagemapOperations,
    pagemap::PagemapInner, //
};
use core::{
    marker::PhantomData,
    ops::Range, //
};
use kernel::io::PhysAddr;

/// A physical range of data that is mapped. There are no `struct page`s in it.
///
/// A mapping makes it, and is not freed while it exists. A driver cannot choose the addresses.
///
/// # Invariants
///
/// The bytes are part of the data of a mapping that lives for `'a`.
pub struct DataRange<'a> {
    range: Range<PhysAddr>,
    _mapping: PhantomData<&'a ()>,
}

impl<'a> DataRange<'a> {
    /// Creates the range of `len` bytes from `offset` on. [`None`] if they are not all in the data,
    /// which are the `size` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// The data must be those of a mapping that lives for `'a`.
    pub(super) unsafe fn new(
        start: PhysAddr,
        size: usize,
        offset: usize,
        len: usize,
    ) -> Option<Self> {
        if offset.checked_add(len)? > size {
            return None;
        }
        let start = start.checked_add(offset as u64)?;
        let end = start.checked_add(len as u64)?;

        // SAFETY: By the safety requirements, and the check above.
        Some(unsafe { Self::from_raw(start..end) })
    }

    /// Creates the range from addresses.
    ///
    /// # Safety
    ///
    /// The bytes must be part of the data of a mapping that lives for `'a`.
    pub(in crate::abstractions) unsafe fn from_raw(range: Range<PhysAddr>) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            range,
            _mapping: PhantomData,
        }
    }

    /// Returns the physical addresses.
    pub fn physical_range(&self) -> &Range<PhysAddr> {
        &self.range
    }
}

impl<T: PagemapOperations> PagemapInner<T> {
    /// Returns the physical range of the `len` bytes from `offset` on, or [`None`] if they are not
    /// all in the data.
    pub fn data_range(&self, offset: usize, len: usize) -> Option<DataRange<'_>> {
        // SAFETY: By the type invariant the data are mapped for as long as `self` lives.
        unsafe { DataRange::new(self.data_start(), self.size(), offset, len) }
    }
}
