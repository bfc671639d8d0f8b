// SPDX-License-Identifier: GPL-2.0

//! The users of a page, as its folio shows them: references, and an association with a file.
//!
//! All fields are read without a lock, as the C code does, and may change after the read.
//!
//! C header: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Read, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        addr_of,
        NonNull, //
    }, //
};
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// The number of pages in use; see
/// [`PagemapInner::count_used`](super::PagemapInner::count_used).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesInUse {
    /// Pages with a reference.
    pub referenced: u64,
    /// Pages without a reference that are in the page cache of a file.
    pub cached: u64,
}

/// A page that was in use when its folio was read, and the rest of the folio.
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

    /// Returns whether the folio has a reference: of a page table, a pipe or a DMA engine.
    /// Otherwise it is only associated with a file.
    pub(in crate::abstractions) fn is_referenced(&self) -> bool {
        self.references != 0
    }

    /// Waits for the last reference to be put, for at most `limit` milliseconds. Sleeps.
    pub(in crate::abstractions) fn wait_idle(&self, limit: Msecs) {
        // SAFETY: By the type invariant the page exists.
        unsafe {
            bindings::wait_dax_page_idle_timeout(self.page.as_ptr(), msecs_to_jiffies(limit))
        };
    }
}

/// The users of a page, as its folio shows them.
#[derive(Clone, Copy)]
pub(in crate::abstractions) struct FolioUse {
    pub(super) folio: *mut bindings::folio,
    pub(in crate::abstractions) references: u32,
    mapping: *mut bindings::address_space,
    /// Whether `folio->share` is not 0. If `mapping` is set, the field is the index of the page.
    share: bool,
}

impl FolioUse {
    /// Reads the current folio of a page.
    ///
    /// # Safety
    ///
    /// The page frame must have a `struct page` of a pgmap that stays during the call.
    pub(in crate::abstractions) unsafe fn of(pfn: c_ulong) -> Self {
        // SAFETY: By the safety requirements the page exists.
        unsafe { Self::of_page(bindings::pfn_to_page(pfn)) }
    }

    /// Returns the first folio of these page frames that is in use.
    ///
    /// All pages are read one by one: idle folios have one page each (`dax_folio_reset_order()`).
    ///
    /// # Safety
    ///
    /// The page frames must have `struct page`s of a pgmap that stays during the call. They must be
    /// in one chunk (`Exposure`), which is as large as a PMD maps, and so a part of one section of
    /// the memory map.
    pub(super) unsafe fn first_used(frames: Range<u64>) -> Option<Self> {
        // SAFETY: By the safety requirements the pages exist. Those of a section are an array.
        let first = unsafe { bindings::pfn_to_page(frames.start as c_ulong) };
        let count = frames.end.saturating_sub(frames.start) as usize;

        (0..count)
            // SAFETY: As above.
            .map(|index| unsafe { Self::of_page(first.wrapping_add(index)) })
            .find(|found| found.references != 0 || found.is_associated())
    }

    /// As [`Self::of`], with the page itself.
    ///
    /// # Safety
    ///
    /// As [`Self::of`].
    #[inline]
    unsafe fn of_page(page: *mut bindings::page) -> Self {
        // SAFETY: By the safety requirements the page exists. `page_folio` reads one word, and the
        // fields of the first page are read without a lock, as the C code does.
        unsafe {
            let folio = bindings::page_folio(page);
            let fields = addr_of!((*folio).__bindgen_anon_1.__bindgen_anon_1);

            Self {
                folio,
                references: bindings::folio_ref_count(folio).unsigned_abs(),
                mapping: addr_of!((*fields).mapping).read_volatile(),
                share: addr_of!((*fields).__bindgen_anon_2.share).read_volatile() != 0,
            }
        }
    }

    /// Returns whether the folio of a page has more references than page table entries that map it.
    ///
    /// The two counts are read one after the other, and the entries twice: of a page that is mapped
    /// or unmapped meanwhile, the lower number counts. A fault may make a larger folio of the page
    /// between two reads. Then the result may be wrong.
    ///
    /// # Safety
    ///
    /// As [`Self::of`].
    pub(in crate::abstractions) unsafe fn is_pinned(pfn: c_ulong) -> bool {
        // SAFETY: By the safety requirements the page exists, and so does the first page of what
        // was its folio. The function permits that this is a tail page by now.
        let mapped = |found: Self| unsafe { bindings::folio_mapcount_racy(found.folio) };
        // SAFETY: By the safety requirements.
        let found = || unsafe { Self::of(pfn) };

        let before = mapped(found());
        smp_mb(Read);
        let references = found().references;
        smp_mb(Read);
        let after = mapped(found());
        i64::from(references) > i64::from(before.min(after))
    }

    /// Returns whether the folio is associated with one file or with several
    /// (`dax_associate_entry()`).
    pub(super) fn is_associated(&self) -> bool {
        self.has_mapping() || self.share
    }

    /// Returns whether the folio is associated with exactly one file.
    pub(super) fn has_mapping(&self) -> bool {
        !self.mapping.is_null()
    }

    /// Returns whether the folio is associated with this file, or with several files
    /// (`dax_folio_is_shared()`).
    pub(in crate::abstractions) fn is_in(&self, mapping: *mut bindings::address_space) -> bool {
        if self.has_mapping() {
            core::ptr::eq(self.mapping, mapping)
        } else {
            self.share
        }
    }
}
