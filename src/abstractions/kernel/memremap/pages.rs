// SPDX-License-Identifier: GPL-2.0

//! The pages of a pgmap: their addresses, their page frames, and which of them are in use.

use super::{
    access_state::AccessState,
    exposure::Exposure,
    usage::{
        FolioUse,
        PagesInUse,
        UsedPage, //
    }, //
};
use crate::abstractions::bindings;
use core::{
    ops::Range,
    ptr::{
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// The pages of a pgmap that translations return, the record of those that were returned, and the
/// state that each translation checks.
///
/// # Invariants
///
/// For as long as this lives, the `nr_pages` pages from `addr` on are mapped in the kernel, except
/// those that have failed, and have `struct page`s, from page frame `first_pfn` on. Neither the
/// last address nor the last page frame overflows. `exposure` is a record for all of these frames.
// What each translation reads is close together.
#[repr(C, align(64))]
pub(in crate::abstractions) struct Pages {
    addr: NonNull<u8>,
    first_pfn: usize,
    /// How many page frames of the first chunk of the record are before these.
    lead: usize,
    nr_pages: usize,
    pub(in crate::abstractions) access: AccessState,
    exposure: Exposure,
}

// SAFETY: Nothing here refers to a thread, and the memory at `addr` is not accessed.
unsafe impl Send for Pages {}

// SAFETY: The address is only read and computed with. Record and state are `Sync`.
unsafe impl Sync for Pages {}

impl Pages {
    /// # Safety
    ///
    /// See the type invariants.
    pub(super) unsafe fn new(
        addr: NonNull<u8>,
        first_pfn: usize,
        nr_pages: usize,
        exposure: Exposure,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            addr,
            first_pfn,
            lead: first_pfn.wrapping_sub(exposure.start()),
            nr_pages,
            exposure,
            access: AccessState::new(),
        }
    }

    /// Returns the number of pages from page `pgoff` on, or [`None`] if there are none.
    #[inline]
    pub(in crate::abstractions) fn nr_from(&self, pgoff: usize) -> Option<usize> {
        if pgoff >= self.nr_pages {
            return None;
        }
        // Does not wrap, by the check above.
        Some(self.nr_pages.wrapping_sub(pgoff))
    }

    /// Returns the page frame number of a page. The page must be exposed before the DAX core gets
    /// the number.
    #[inline]
    pub(in crate::abstractions) fn pfn(&self, pgoff: usize) -> usize {
        // Does not wrap if the page exists.
        self.first_pfn.wrapping_add(pgoff)
    }

    #[inline]
    pub(in crate::abstractions) fn addr(&self, pgoff: usize) -> *mut u8 {
        // Points into the mapping if the page exists.
        self.addr.as_ptr().wrapping_add(pgoff << PAGE_SHIFT)
    }

    pub(super) fn frames(&self) -> Range<u64> {
        let start = self.first_pfn as u64;

        start..start.saturating_add(self.nr_pages as u64)
    }

    /// Returns whether the `nr_pages` pages from page `pgoff` on are known to be exposed. Returns
    /// false if they are in more than one chunk of the record.
    ///
    /// # Safety
    ///
    /// Page `pgoff` must exist.
    #[inline]
    pub(in crate::abstractions) unsafe fn are_exposed(
        &self,
        pgoff: usize,
        nr_pages: isize,
    ) -> bool {
        // SAFETY: By the type invariant the record was made for all frames, and by the safety
        // requirements the page has one of them.
        unsafe { self.exposure.has(self.lead.wrapping_add(pgoff), nr_pages) }
    }

    /// Records that the `nr_pages` pages from page `pgoff` on are exposed; at least one. Returns
    /// whether a chunk of theirs was not exposed before.
    pub(in crate::abstractions) fn expose(&self, pgoff: usize, nr_pages: usize) -> bool {
        self.exposure.add(self.pfn(pgoff), nr_pages)
    }

    pub(super) fn any_exposed(&self) -> bool {
        self.exposure.next(self.first_pfn).is_some()
    }

    pub(super) fn exposed_bytes(&self) -> u64 {
        self.exposure.bytes()
    }

    /// Returns the next page frame from `from` on that may be exposed.
    fn next_exposed(&self, from: u64) -> Option<u64> {
        let pfn = self.exposure.next(usize::try_from(from).ok()?)? as u64;

        (pfn < self.frames().end).then_some(pfn)
    }

    /// Returns the page frames of the next chunk with exposed pages, from frame `from` on.
    pub(super) fn next_exposed_chunk(&self, from: u64) -> Option<Range<u64>> {
        let frames = self.frames();
        let first = self.next_exposed(from.max(frames.start))?;

        Some(first..Exposure::end_of_chunk(first).min(frames.end))
    }

    /// Returns whether a page has a reference or is in the page cache of a file. The result may
    /// change at any time.
    pub(super) fn is_used(&self, pfn: u64) -> bool {
        self.frames().contains(&pfn) && {
            // SAFETY: By the type invariant the frame has a `struct page`.
            let found = unsafe { FolioUse::of(pfn as c_ulong) };
            found.references != 0 || found.is_associated()
        }
    }

    /// Returns whether a page has more references than page table entries. The result may be wrong
    /// while the page is being mapped or unmapped.
    pub(super) fn is_pinned(&self, pfn: u64) -> bool {
        self.frames().contains(&pfn) && {
            // SAFETY: By the type invariant the frame has a `struct page`.
            unsafe { FolioUse::is_pinned(pfn as c_ulong) }
        }
    }

    /// Returns the first page from frame `from` on that is in use. Does not sleep. Takes time in
    /// proportion to the exposed pages. All translations must be refused: faults make and split
    /// folios.
    pub(super) fn first_used(&self, from: u64) -> Option<UsedPage<'_>> {
        let mut next = from;

        loop {
            let chunk = self.next_exposed_chunk(next)?;
            next = chunk.end;
            // SAFETY: By the type invariant these frames have `struct page`s. They are in one
            // chunk.
            let found = unsafe { FolioUse::first_used(chunk) };
            if let Some(found) = found {
                return self.used_page(found);
            }
        }
    }

    /// Returns the folio of a page of these.
    fn used_page(&self, found: FolioUse) -> Option<UsedPage<'_>> {
        // SAFETY: The DAX core makes a folio of pages that one translation has returned
        // (`dax_iomap_direct_access()`), so the folio is within the pages too. Its size is only
        // read, and is right as long as no folio is being made. The page is the first one of the
        // folio. `self`, and with it the pgmap, is borrowed for as long as the result lives.
        unsafe {
            let page = addr_of_mut!((*found.folio).__bindgen_anon_1.page);
            let first = bindings::page_to_pfn(page) as u64;
            let nr_pages = bindings::folio_nr_pages(found.folio) as u64;
            let frames = first..first.saturating_add(nr_pages.max(1));
            Some(UsedPage::new(NonNull::new(page)?, frames, found.references))
        }
    }

    /// As [`PagemapInner::count_used`](super::PagemapInner::count_used).
    pub(super) fn count_used(&self, pgoff: u64, limit: u64) -> (PagesInUse, Option<u64>) {
        let start = self.frames().start;
        let mut count = PagesInUse::default();
        let mut next = start.saturating_add(pgoff);

        for _ in 0..limit {
            let Some(pfn) = self.next_exposed(next) else {
                return (count, None);
            };
            // SAFETY: By the type invariant the frame has a `struct page`.
            let found = unsafe { FolioUse::of(pfn as c_ulong) };
            if found.references != 0 {
                count.referenced = count.referenced.saturating_add(1);
            } else if found.is_associated() {
                count.cached = count.cached.saturating_add(1);
            }
            next = pfn.saturating_add(1);
        }
        (count, Some(next.saturating_sub(start)))
    }
}
