// SPDX-License-Identifier: GPL-2.0

//! The pages of a pgmap that have failed, and the operations that handle a failure.
//!
//! x86 takes a page out of the linear mapping after `memory_failure()` has returned
//! (`set_mce_nospec()`). Nothing says when, and a page may be repaired before. So there are two
//! checks:
//!
//! - A repair waits until the page is out of the linear mapping, or until a second has passed since
//!   the last failure: the page may stay in it.
//! - Once any page has failed, each access looks at the entries of the linear mapping too. A page
//!   that is taken out later than that counts as failed again, and is put back before the range is
//!   freed.
//!
//! Other architectures take no page out.

use super::{
    failure::Failure,
    usage::FolioUse, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::badblocks::Badblocks;
use crate::abstractions::kernel_ext::{
    sync::atomic::read_acquire,
    task::cond_resched,
    time::{
        sleep,
        Stopwatch, //
    }, //
};
use core::{
    ops::Range,
    ptr::addr_of, //
};
use kernel::{
    error::to_result,
    new_spinlock,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        SpinLock, //
    }, //
};

/// Whether the architecture takes failed pages out of the linear mapping.
const UNMAPS_FAILED_PAGES: bool = cfg!(target_arch = "x86_64");

/// The time, in milliseconds, within which the kernel is assumed to take a page out of the linear
/// mapping, after the failure was recorded. In between, the C code takes locks, sends signals, and
/// logs.
const UNMAPPED_WITHIN: u64 = 1000;

/// How many pages are looked up before other threads may run.
const LOOKED_UP_AT_ONCE: u64 = 1 << 15;

/// The operations of a pgmap, implemented by the code that owns its
/// [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap).
///
/// `memory_failure()` calls [`Self::memory_failure`] and [`Self::record_failure`] in process
/// context, with `mf_mutex` and a reference to the pgmap held. These two may sleep.
pub trait PagemapOperations: Send + Sync + 'static {
    /// Notifies the users of memory that it has failed, which
    /// [`dax::Handle`](crate::abstractions::kernel::dax::Handle::notify_failure) does.
    ///
    /// # Errors
    ///
    /// After [`EOPNOTSUPP`] the caller kills all processes that map the memory, if exactly one file
    /// has it. Otherwise the failure is handled only if other users in the kernel were notified.
    /// [`ENXIO`] is handled in the same way if they were. After any other error the memory stays in
    /// the linear mapping.
    fn memory_failure(&self, failure: &Failure<'_>) -> Result;

    /// Records that the `len` bytes from `offset` bytes into the data on have
    /// [failed](super::PagemapInner::has_failed). Called after [`Self::memory_failure`], before x86
    /// takes the pages out of the linear mapping. Not called for a simulated failure, nor for one
    /// that is not handled. After [`EOPNOTSUPP`] the memory management may still fail to handle it.
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

    /// Takes note that the `len` bytes from `offset` bytes into the data on are exposed now, and
    /// that a chunk of theirs was not exposed before. A chunk is as large as a PMD maps.
    ///
    /// Called with `dax_read_lock` held, and often with locks of a file system. Should not sleep.
    fn exposed(&self, offset: u64, len: u64) {
        let _ = (offset, len);
    }
}

/// Whether any page was ever added to [`FailedPages`]. It is apart from the list, so that the pgmap
/// has it in the cache line that each request reads.
pub(super) struct AnyFailed(Atomic<bool>);

impl AnyFailed {
    pub(super) const fn new() -> Self {
        Self(Atomic::new(false))
    }

    /// ORDERING: what is read next is not older. A check for bad memory reads the list of bad
    /// sectors next. A failed page is added to that list before it is repaired, so it is found in
    /// one of the two.
    #[inline]
    pub(super) fn get(&self) -> bool {
        read_acquire(&self.0)
    }
}

/// Finds the entry of the linear mapping that maps a page frame. Returns the number of pages that
/// the entry maps, or [`None`] if the page is missing in the linear mapping. Does not sleep.
///
/// # Safety
///
/// The frame must be in a range that was mapped and is not freed, so that the page tables stay.
/// Their entries may be split meanwhile.
#[cfg(target_arch = "x86_64")]
unsafe fn pages_of_entry(pfn: u64) -> Option<u64> {
    /// How many bits of a frame number each level of the page tables has.
    const BITS_OF_LEVEL: u32 = 9;

    let mut level: c_uint = bindings::pg_level_PG_LEVEL_4K;
    // SAFETY: Any number may be looked up. By the safety requirements the entry is not freed. A
    // volatile read is `READ_ONCE()`.
    let entry = unsafe {
        let addr = bindings::pfn_to_kaddr(pfn as c_ulong).addr();
        let entry = bindings::lookup_address(addr as c_ulong, &mut level);
        (!entry.is_null()).then(|| (&raw const (*entry).pte).read_volatile())
    }?;

    // Not `pte_present()`, which takes the bit of `PAGE_NONE` for present.
    if entry & (1 << bindings::_PAGE_BIT_PRESENT) == 0 {
        return None;
    }
    let bits = level
        .saturating_sub(bindings::pg_level_PG_LEVEL_4K)
        .saturating_mul(BITS_OF_LEVEL);
    Some(1_u64.checked_shl(bits).unwrap_or(1))
}

/// Only x86 takes pages that have failed out of the linear mapping.
///
/// # Safety
///
/// None. The function is unsafe because the one for x86 is.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn pages_of_entry(_pfn: u64) -> Option<u64> {
    Some(1)
}

/// The failures that were reported, except simulated ones.
#[derive(Default)]
struct Failures {
    /// How many.
    count: u64,
    /// When the last one was recorded.
    last: Option<Stopwatch>,
}

impl Failures {
    fn add(&mut self) {
        self.count = self.count.wrapping_add(1);
        self.last = Some(Stopwatch::start());
    }

    /// Returns for how many milliseconds from now on a page may yet be taken out of the linear
    /// mapping.
    fn rest(&self) -> u64 {
        match &self.last {
            Some(last) if UNMAPS_FAILED_PAGES => {
                UNMAPPED_WITHIN.saturating_sub(last.micros() / 1000)
            }
            _ => 0,
        }
    }
}

/// The pages of a pgmap that have failed and were not repaired since.
///
/// Page numbers count from the start of the data.
///
/// # Invariants
///
/// Each page that x86 has taken out of the linear mapping after a failure, or is going to, is in
/// `list`, or was put back by a repair that has waited for that. `list` may have other pages. It is
/// empty until the [`AnyFailed`] of the same pgmap is set. The data starts at page frame
/// `first_pfn`. `frames` are those of the pgmap.
#[pin_data]
pub(super) struct FailedPages {
    #[pin]
    list: Badblocks,
    /// A repaired page is removed from `list` under this lock, and only if no page has failed
    /// meanwhile.
    #[pin]
    failures: SpinLock<Failures>,
    first_pfn: u64,
    frames: Range<u64>,
}

impl FailedPages {
    /// Creates an empty list for a pgmap with these page frames, whose data starts at `first_pfn`.
    pub(super) fn new(frames: Range<u64>, first_pfn: u64) -> impl PinInit<Self, Error> {
        // INVARIANT: No page has failed yet.
        try_pin_init!(Self {
            list <- Badblocks::new(),
            failures <- new_spinlock!(Failures::default(), "pmem_rs::FailedPages::failures"),
            first_pfn,
            frames,
        })
    }

    /// Returns the offset of the first failed page of the `len` bytes from `offset` on: one that is
    /// listed, or is missing in the linear mapping. If a run of listed pages begins before
    /// `offset`, it is the offset of the run.
    ///
    /// # Safety
    ///
    /// The pgmap must not be freed.
    pub(super) unsafe fn first(&self, offset: usize, len: usize) -> Option<usize> {
        if len == 0 {
            return None;
        }
        let first = (offset >> PAGE_SHIFT) as u64;
        let end = offset.saturating_add(len).div_ceil(PAGE_SIZE) as u64;
        let listed = self
            .list
            .check(first, end.saturating_sub(first))
            .map(|run| run.first);
        // SAFETY: By the safety requirements.
        let missing = unsafe { self.first_missing(self.pfn(first)..self.pfn(end)) }
            .map(|pfn| pfn.wrapping_sub(self.first_pfn));
        let page = match (listed, missing) {
            (Some(listed), Some(missing)) => listed.min(missing),
            (listed, missing) => listed.or(missing)?,
        };

        Some((page as usize) << PAGE_SHIFT)
    }

    fn pfn(&self, page: u64) -> u64 {
        self.first_pfn.saturating_add(page)
    }

    /// Returns the first of these page frames that is missing in the linear mapping, as far as they
    /// are in the pgmap. Does not sleep.
    ///
    /// # Safety
    ///
    /// The pgmap must not be freed.
    unsafe fn first_missing(&self, frames: Range<u64>) -> Option<u64> {
        let end = frames.end.min(self.frames.end);
        let mut pfn = frames.start.max(self.frames.start);

        while UNMAPS_FAILED_PAGES && pfn < end {
            // SAFETY: By the safety requirements and the type invariant the frame is in the range
            // that was mapped.
            let Some(nr_pages) = (unsafe { pages_of_entry(pfn) }) else {
                return Some(pfn);
            };
            // The number is a power of two, and the first page is aligned to it.
            let in_entry = pfn & nr_pages.saturating_sub(1);
            let rest = nr_pages.saturating_sub(in_entry);
            pfn = pfn.saturating_add(rest.max(1));
        }
        None
    }

    /// Waits until `is_done`, or until no page that has failed so far is going to be taken out of
    /// the linear mapping. Returns the number of failures so far. Sleeps.
    fn wait_unmapped(&self, is_done: impl Fn() -> bool) -> u64 {
        let (count, rest) = {
            let failures = self.failures.lock();
            (failures.count, failures.rest())
        };
        let began = Stopwatch::start();

        while began.micros() / 1000 < rest && !is_done() {
            sleep(1);
        }
        count
    }

    /// Clears the hwpoison mark of these pages, and puts those that have failed back into the
    /// linear mapping. May sleep. Waits if a page that has failed is still in the linear mapping
    /// and the last failure was recorded less than a second ago.
    ///
    /// # Errors
    ///
    /// [`EAGAIN`] if any page has failed meanwhile, [`ENOSPC`] if a page cannot be removed from the
    /// full list, or the error with which a page could not be mapped. The page then counts as
    /// failed.
    ///
    /// # Safety
    ///
    /// The pages must be in the data of a pgmap that is not freed.
    pub(super) unsafe fn unpoison(&self, pages: Range<u64>) -> Result {
        for page in pages {
            let pfn = self.pfn(page);
            // SAFETY: By the safety requirements.
            let is_missing = || unsafe { self.first_missing(pfn..pfn.saturating_add(1)) }.is_some();
            let has_failed = self.list.check(page, 1).is_some() || is_missing();
            // Before the mark is cleared, since the memory management may not have set it yet.
            let count = has_failed.then(|| self.wait_unmapped(is_missing));

            // SAFETY: By the safety requirements the page has a `struct page`, and so has its
            // folio.
            unsafe {
                // Whichever page of a folio fails, the first one is marked
                // (`mf_generic_kill_procs()`, `mf_dax_kill_procs()`).
                if has_failed {
                    let folio = bindings::page_folio(bindings::pfn_to_page(pfn as c_ulong));
                    let head =
                        bindings::page_to_pfn(addr_of!((*folio).__bindgen_anon_1.page).cast());
                    bindings::test_and_clear_pmem_poison(head);
                }
                bindings::test_and_clear_pmem_poison(pfn as c_ulong);
            }
            if let Some(count) = count {
                // SAFETY: By the safety requirements the page belongs into the linear mapping. If
                // it is there already, nothing changes.
                to_result(unsafe { bindings::clear_mce_nospec(pfn as c_ulong) })?;
                self.unlist(page, count)?;
            }
        }
        Ok(())
    }

    /// Removes from the list a page that was put back, if there were `count` failures before and
    /// none since.
    fn unlist(&self, page: u64, count: u64) -> Result {
        let failures = self.failures.lock();

        if failures.count != count {
            return Err(EAGAIN);
        }
        // INVARIANT: The repair has waited for the failures that were recorded before it began, and
        // there is none since.
        self.list.clear(page, 1)
    }

    /// Adds pages that have failed, or that were put back and not repaired. Fails if the list is
    /// full. `any_failed` must be that of the same pgmap.
    pub(super) fn add(&self, any_failed: &AnyFailed, pages: Range<u64>) -> Result {
        any_failed.0.store(true, Relaxed);
        self.list
            .add(pages.start, pages.end.saturating_sub(pages.start))
    }

    /// Puts all pages of the pgmap back into the linear mapping, failed as they are. Sleeps: waits
    /// until a second has passed since the last failure.
    ///
    /// # Safety
    ///
    /// The pgmap must not be freed, but be about to be, with no user left.
    pub(super) unsafe fn map_all(&self) {
        if self.wait_unmapped(|| false) == 0 {
            return;
        }

        let mut next = self.frames.start;
        while next < self.frames.end {
            let end = next.saturating_add(LOOKED_UP_AT_ONCE).min(self.frames.end);
            // SAFETY: By the safety requirements.
            next = match unsafe { self.first_missing(next..end) } {
                Some(pfn) => {
                    // SAFETY: By the type invariant the page frame is one of the pgmap, so it
                    // belongs into the linear mapping.
                    if unsafe { bindings::clear_mce_nospec(pfn as c_ulong) } != 0 {
                        pr_warn!("page frame {pfn:#x} could not be mapped again\n");
                    }
                    pfn.saturating_add(1)
                }
                None => end,
            };
            cond_resched();
        }
    }

    /// Handles a failure of whole pages from frame `pfn` on, for `memory_failure()`. Sleeps. Fails
    /// as [`PagemapOperations::memory_failure`], with [`ENOSPC`] if the pages cannot be listed, and
    /// with [`EBUSY`] instead of [`EOPNOTSUPP`] if neither exactly one file nor another user has
    /// them.
    ///
    /// `notify_others` notifies other users in the kernel, and returns whether there are any. They
    /// handle the failure of a page that is associated with no file, or with several.
    ///
    /// A simulated failure (`MF_SW_SIMULATED`) is only passed on: the medium is good, and the pages
    /// stay in the linear mapping, because only handlers of machine checks take them out.
    ///
    /// # Safety
    ///
    /// The page frame must be the first one of `failure`. `self` and `any_failed` must be those of
    /// the pgmap.
    pub(super) unsafe fn handle<T: PagemapOperations>(
        &self,
        any_failed: &AnyFailed,
        ops: &T,
        pfn: c_ulong,
        failure: &Failure<'_>,
        notify_others: impl FnOnce() -> bool,
    ) -> Result {
        if failure.is_simulated() {
            notify_others();
            return ops.memory_failure(failure);
        }
        let (offset, len) = (failure.offset(), failure.len());
        let (first, nr_pages) = (offset >> PAGE_SHIFT, len >> PAGE_SHIFT);

        // The pages are taken out of the linear mapping only if `memory_failure()` succeeds
        // (`uc_decode_notifier()`). So they are listed first. They are removed from the list again
        // if the failure is not handled.
        let was_listed = self.list.check(first, nr_pages).is_some();
        let pages = first..first.saturating_add(nr_pages);
        let is_listed = was_listed || self.add(any_failed, pages.clone()).is_ok();

        let mut result = ops.memory_failure(failure);
        let is_notified = notify_others();
        // A file system on another partition says that the page is not in it.
        if is_notified && result == Err(ENXIO) {
            result = Err(EOPNOTSUPP);
        }
        // The memory management kills the users of a page that is associated with exactly one file,
        // and fails otherwise (`mf_generic_kill_procs()`).
        // SAFETY: By the safety requirements.
        if result == Err(EOPNOTSUPP) && !unsafe { FolioUse::of(pfn) }.has_mapping() {
            result = if is_notified { Ok(()) } else { Err(EBUSY) };
        }

        if result.is_ok() || result == Err(EOPNOTSUPP) {
            if !is_listed {
                // A page that is not listed has to stay mapped.
                return Err(ENOSPC);
            }
            ops.record_failure(offset, len);
            // From now on a repair waits for the caller. One that was faster has put the page back,
            // and the caller is going to take it out.
            let mut failures = self.failures.lock();
            failures.add();
            if !self.list.contains(first, nr_pages) {
                self.add(any_failed, pages).map_err(|_| ENOSPC)?;
            }
        } else if !was_listed {
            // If they cannot be removed from the list, they are neither read nor written.
            let _ = self.list.clear(first, nr_pages);
        }
        result
    }
}
