// SPDX-License-Identifier: GPL-2.0

//! The pages of a pgmap that have failed, and the operations that handle a failure.

use super::{
    failure::Failure,
    usage::FolioUse, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::badblocks::Badblocks;
use crate::abstractions::kernel_ext::sync::atomic::read_acquire;
use core::{
    ops::Range,
    ptr::addr_of, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The operations of a pgmap, implemented by the code that owns its
/// [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap).
///
/// They are called by `memory_failure()` in process context, with `mf_mutex` and a reference to the
/// pgmap held, and may sleep.
pub trait PagemapOperations: Send + Sync + 'static {
    /// Notifies the users of memory that it has failed, which
    /// [`dax::Handle`](crate::abstractions::kernel::dax::Handle::notify_failure) does.
    ///
    /// # Errors
    ///
    /// After [`EOPNOTSUPP`] the caller kills all processes that map the memory. After any other
    /// error the memory stays in the linear mapping.
    fn memory_failure(&self, failure: &Failure<'_>) -> Result;

    /// Records that the `len` bytes from `offset` bytes into the data on have
    /// [failed](super::PagemapInner::has_failed). Called after [`Self::memory_failure`], before the
    /// memory management takes the pages out of the linear mapping. Not called for a simulated
    /// failure.
    fn record_failure(&self, offset: u64, len: u64);

    /// Returns whether any of the `len` bytes from `offset` bytes into the data on is known to be
    /// bad, other than as a failed page. Callable from any context.
    fn is_bad(&self, offset: u64, len: u64) -> bool {
        let _ = (offset, len);
        false
    }

    /// Returns whether writes to the memory are refused. Callable from any context.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Takes note that the `len` bytes from `offset` bytes into the data on, which are about to be
    /// given to the DAX core, are in a chunk of 2 MiB that no translation has exposed before.
    ///
    /// Called with `dax_read_lock` held, and often with locks of a file system. Should not sleep.
    fn exposed(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

/// Whether any page was ever added to [`FailedPages`]. It is apart from the list, so that the pgmap
/// has it in the cache line that each request reads.
pub(super) struct HasFailed(Atomic<bool>);

impl HasFailed {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// ORDERING: what is read next is not older. So a page that is repaired meanwhile is not passed
    /// as good by a list of bad sectors that was read before.
    #[inline]
    pub(super) fn get(&self) -> bool {
        read_acquire(&self.0)
    }
}

/// The pages of a pgmap that have failed and were not repaired since.
///
/// Page numbers count from the start of the data.
///
/// # Invariants
///
/// `list` has each page that `memory_failure()` took out of the linear mapping and that was not put
/// back. It may have other pages. It is empty until the [`HasFailed`] of the same pgmap is set. The
/// data starts at page frame `first_pfn`.
#[pin_data]
pub(super) struct FailedPages {
    #[pin]
    list: Badblocks,
    first_pfn: u64,
}

impl FailedPages {
    /// Creates an empty list for data that starts at a page frame.
    pub(super) fn new(first_pfn: u64) -> impl PinInit<Self, Error> {
        // INVARIANT: No page has failed yet.
        try_pin_init!(Self {
            list <- Badblocks::new(),
            first_pfn,
        })
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Returns the offset of the first failed page of the `len` bytes from `offset` on. If a run of
    /// failed pages begins before `offset`, it is the offset of the run.
    pub(super) fn first(&self, offset: usize, len: usize) -> Option<usize> {
        if len == 0 {
            return None;
        }
        let first = offset >> PAGE_SHIFT;
        let end = offset.saturating_add(len).div_ceil(PAGE_SIZE);
        let run = self
            .list
            .check(first as u64, end.saturating_sub(first) as u64)?;

        Some((run.first as usize) << PAGE_SHIFT)
    }

    fn pfn(&self, page: u64) -> c_ulong {
        self.first_pfn.wrapping_add(page) as c_ulong
    }

    /// Clears the hwpoison mark of these pages, and puts those that had one or have failed back
    /// into the linear mapping. May sleep. Fails if a page cannot be removed from the full list.
    ///
    /// # Safety
    ///
    /// The pages must be in the data of a pgmap that is not freed.
    pub(super) unsafe fn unpoison(&self, pages: Range<u64>) -> Result {
        for page in pages {
            let has_failed = self.list.check(page, 1).is_some();
            let pfn = self.pfn(page);

            // SAFETY: By the safety requirements the page has a `struct page`, and so has its
            // folio.
            let was_marked = unsafe {
                // Whichever page of a folio fails, the first one is marked
                // (`mf_generic_kill_procs()`, `mf_dax_kill_procs()`).
                if has_failed {
                    let folio = bindings::page_folio(bindings::pfn_to_page(pfn));
                    let head =
                        bindings::page_to_pfn(addr_of!((*folio).__bindgen_anon_1.page).cast());
                    bindings::test_and_clear_pmem_poison(head);
                }
                bindings::test_and_clear_pmem_poison(pfn)
            };
            if has_failed || was_marked {
                // SAFETY: By the safety requirements.
                unsafe { self.map(page) }?;
            }
        }
        Ok(())
    }

    /// Adds pages that have failed, or that were put back and not repaired. Fails if the list is
    /// full. `has_failed` must be that of the same pgmap.
    pub(super) fn add(&self, has_failed: &HasFailed, pages: Range<u64>) -> Result {
        has_failed.0.store(true, Relaxed);
        self.list
            .add(pages.start, pages.end.saturating_sub(pages.start))
    }

    /// Puts all pages back into the linear mapping, failed as they are.
    ///
    /// # Safety
    ///
    /// The pgmap must not be freed, but be about to be, with no user left.
    pub(super) unsafe fn map_all(&self) {
        while let Some(run) = self.list.check(0, u64::MAX) {
            // The first page of a run can always be removed from the list.
            // SAFETY: By the safety requirements, and since only pages of the pgmap are listed.
            let _ = unsafe { self.map(run.first) };
        }
    }

    /// Puts a page back into the linear mapping.
    ///
    /// # Safety
    ///
    /// The page must be in the data of a pgmap that is not freed.
    unsafe fn map(&self, page: u64) -> Result {
        // SAFETY: By the safety requirements the page belongs into the linear mapping. If it is
        // there already, nothing changes.
        unsafe { bindings::clear_mce_nospec(self.pfn(page)) };
        self.list.clear(page, 1)
    }

    /// Handles a failure of whole pages from frame `pfn` on, for `memory_failure()`. Sleeps. Fails
    /// as [`PagemapOperations::memory_failure`], and with [`ENOSPC`] if the pages cannot be listed.
    ///
    /// `tell` has other users in the kernel told, and returns whether there are any. They handle
    /// the failure of a page that is associated with no file.
    ///
    /// A simulated failure (`MF_SW_SIMULATED`) is only passed on: the medium is good, and the pages
    /// stay in the linear mapping, because only handlers of machine checks take them out.
    ///
    /// # Safety
    ///
    /// The page frame must be the first one of `failure`. `self` and `has_failed` must be those of
    /// the pgmap.
    pub(super) unsafe fn handle<T: PagemapOperations>(
        &self,
        has_failed: &HasFailed,
        ops: &T,
        pfn: c_ulong,
        failure: &Failure<'_>,
        tell: impl FnOnce() -> bool,
    ) -> Result {
        if failure.is_simulated() {
            tell();
            return ops.memory_failure(failure);
        }
        let (offset, len) = (failure.offset(), failure.len());
        let (first, nr_pages) = (offset >> PAGE_SHIFT, len >> PAGE_SHIFT);

        // The caller takes the pages out of the linear mapping only if this does not fail
        // (`uc_decode_notifier()`). So they are listed first, and removed again if it does.
        let was_listed = self.list.check(first, nr_pages).is_some();
        let pages = first..first.saturating_add(nr_pages);
        let is_listed = was_listed || self.add(has_failed, pages).is_ok();

        let mut result = ops.memory_failure(failure);
        let is_told = tell();
        // A file system on another partition says that the page is not in it.
        if is_told && result == Err(ENXIO) {
            result = Err(EOPNOTSUPP);
        }
        // The memory management kills the users of a page that is associated with a file, and fails
        // otherwise (`mf_generic_kill_procs()`).
        // SAFETY: By the safety requirements.
        if result == Err(EOPNOTSUPP) && !unsafe { FolioUse::of(pfn) }.has_mapping() {
            result = if is_told { Ok(()) } else { Err(EBUSY) };
        }

        if result.is_ok() || result == Err(EOPNOTSUPP) {
            if !is_listed {
                // A page that is not listed has to stay mapped.
                return Err(ENOSPC);
            }
            ops.record_failure(offset, len);
        } else if !was_listed {
            // If they cannot be removed from the list, they are neither read nor written.
            let _ = self.list.clear(first, nr_pages);
        }
        result
    }
}
