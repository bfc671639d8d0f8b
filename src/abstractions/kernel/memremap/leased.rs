// SPDX-License-Identifier: GPL-2.0

//! The memory of a pgmap, as [leases](crate::abstractions::kernel::lease) use it.

use super::{
    failed_pages::PagemapOperations,
    pagemap::{
        PagemapInner,
        PagemapRef, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    lease::LeasedMemory,
    pmem_slice::{
        PmemSlice,
        WritableSlice, //
    }, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

impl<T: PagemapOperations> LeasedMemory for PagemapRef<T> {
    fn size(&self) -> usize {
        PagemapInner::size(self)
    }

    fn addr_of(&self, offset: usize) -> *mut u8 {
        self.page_states.addr(0).wrapping_add(offset)
    }

    fn page_of(&self, offset: usize) -> *mut bindings::page {
        let pgoff = offset >> PAGE_SHIFT;
        if self.page_states.nr_from(pgoff).is_none() {
            return core::ptr::null_mut();
        }

        // SAFETY: The page exists, so its frame has a `struct page`.
        unsafe { bindings::pfn_to_page(self.page_states.pfn(pgoff) as c_ulong) }
    }

    fn is_good(&self, offset: usize, len: usize) -> bool {
        // A failed page is known to the operations before it is repaired.
        !self.has_failed(offset, len) && !self.ops().is_bad(offset as u64, len as u64)
    }

    fn is_read_only(&self) -> bool {
        self.ops().is_read_only()
    }

    fn readable(&self, offset: usize, len: usize) -> Option<PmemSlice<'_>> {
        PagemapInner::readable(self, offset, len)
    }

    fn writable(&self, offset: usize, len: usize) -> Option<WritableSlice<'_>> {
        PagemapInner::writable(self, offset, len)
    }
}
