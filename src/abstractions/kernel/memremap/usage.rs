// SPDX-License-Identifier: GPL-2.0

//! What uses a page, as far as its folio says: whether it has references, and whether a page cache
//! names it.
//!
//! What is said here is right for the moment of the look only. It is made with no lock, as the C
//! code does.
//!
//! C header: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h)

use crate::abstractions::kernel::memremap::bindings;
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        addr_of,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// A page that is in use, and the rest of its folio.
///
/// What it says may be outdated when it arrives, if translations can still begin.
///
/// # Invariants
///
/// `page` is the first page of a folio of a pgmap whose owner is borrowed for `'a`.
pub(in crate::abstractions) struct UsedPage<'a> {
    page: NonNull<bindings::page>,
    frames: Range<u64>,
    references: u32,
    _pages: PhantomData<&'a ()>,
}

impl UsedPage<'_> {
    /// # Safety
    ///
    /// See the type invariant.
    pub(super) unsafe fn new(
        page: NonNull<bindings::page>,
        frames: Range<u64>,
        references: u32,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            page,
            frames,
            references,
            _pages: PhantomData,
        }
    }

    /// Returns the page frames of the folio.
    pub(in crate::abstractions) fn frames(&self) -> Range<u64> {
        self.frames.clone()
    }

    /// Returns whether there is a reference: of a page table, a pipe, a DMA engine. Otherwise only
    /// the page cache of a file names the page.
    pub(in crate::abstractions) fn is_referenced(&self) -> bool {
        self.references != 0
    }

    /// Waits for the last reference to be put, for at most `limit` milliseconds. Sleeps.
    pub(in crate::abstractions) fn wait_idle(&self, limit: Msecs) {
        // SAFETY: By the type invariant the page is there.
        unsafe {
            bindings::wait_dax_page_idle_timeout(self.page.as_ptr(), msecs_to_jiffies(limit))
        };
    }
}

/// What the folio of a page says about what uses it.
#[derive(Clone, Copy)]
pub(in crate::abstractions) struct Use {
    pub(super) folio: *mut bindings::folio,
    pub(in crate::abstractions) references: u32,
    mapping: *mut bindings::address_space,
    /// `folio->share`, or the index in the mapping if there is one.
    share: bool,
}

impl Use {
    /// Looks at the folio that the page is in at the moment.
    ///
    /// # Safety
    ///
    /// The page frame must have a `struct page` of a pgmap, which does not go meanwhile.
    pub(in crate::abstractions) unsafe fn of(pfn: c_ulong) -> Self {
        // SAFETY: By the safety requirements the page is there. Whether it is in a folio of several
        // pages is a word that is read at once, and so are the fields of the first one, as the C
        // code does, without a lock.
        unsafe {
            let folio = bindings::page_folio(bindings::pfn_to_page(pfn));
            let fields = addr_of!((*folio).__bindgen_anon_1.__bindgen_anon_1);

            Self {
                folio,
                references: bindings::folio_ref_count(folio).unsigned_abs(),
                mapping: addr_of!((*fields).mapping).read_volatile(),
                share: addr_of!((*fields).__bindgen_anon_2.share).read_volatile() != 0,
            }
        }
    }

    /// Returns whether the page cache of a file names the page.
    pub(super) fn is_named(&self) -> bool {
        self.has_mapping() || self.share
    }

    /// Returns whether the page cache of one file names the page.
    pub(super) fn has_mapping(&self) -> bool {
        !self.mapping.is_null()
    }

    /// Returns whether the page cache that names the page is this one, or several do
    /// (`dax_folio_is_shared()`).
    pub(in crate::abstractions) fn is_of(&self, mapping: *mut bindings::address_space) -> bool {
        if self.has_mapping() {
            core::ptr::eq(self.mapping, mapping)
        } else {
            self.share
        }
    }
}

/// How many pages are in use; see [`PagemapInner::count_used`](super::PagemapInner::count_used).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesInUse {
    /// Pages that have a reference.
    pub referenced: u64,
    /// Pages that only the page cache of a file names.
    pub cached: u64,
}
