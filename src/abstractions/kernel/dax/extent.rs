// SPDX-License-Identifier: GPL-2.0

//! The result of a translation.

use crate::abstractions::kernel::memremap::Pages;
use core::marker::PhantomData;
use kernel::{
    page::PAGE_SHIFT,
    types::NotThreadSafe, //
};

/// The proof that this thread holds `dax_read_lock` for `'g`.
///
/// The lock is an SRCU read-side section that all DAX devices of the system share. Sleeping is
/// allowed inside, and `kill_dax()` of any device waits for it. All functions of the DAX core that
/// call [`Operations`](super::Operations) are called with the lock held, which is where this type
/// comes from.
///
/// # Invariants
///
/// The lock is held for `'g`.
#[derive(Clone, Copy)]
pub struct ReadLocked<'g>(PhantomData<(&'g (), NotThreadSafe)>);

impl ReadLocked<'_> {
    /// # Safety
    ///
    /// The lock must be held for the lifetime of the result.
    #[inline]
    pub(super) unsafe fn new() -> Self {
        // INVARIANT: By the safety requirements.
        Self(PhantomData)
    }
}

/// Pages of persistent memory that the DAX core may use while `dax_read_lock` is held.
///
/// The DAX device makes one for each translation, from its own memory. A driver can shorten it and
/// return it.
///
/// # Examples
///
/// An extent cannot be kept for longer than the lock is held:
///
/// ```compile_fail,E0521
/// use kernel::prelude::*;
/// use kernel::workqueue;
/// use pmem_rs::abstractions::kernel::dax::Extent;
///
/// fn keep(extent: Extent<'_>) -> Result {
///     workqueue::system().try_spawn(GFP_KERNEL, move || {
///         let _ = extent.nr_pages();
///     })?;
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// Page `pgoff`, and the `nr_pages` pages from there on, are pages of `pages`, which is borrowed
/// while the lock is held.
pub struct Extent<'g> {
    pages: &'g Pages,
    pgoff: usize,
    nr_pages: usize,
}

impl<'g> Extent<'g> {
    /// Returns all pages from `pgoff` on, or [`None`] if there are none.
    #[inline]
    pub(super) fn new(_locked: ReadLocked<'g>, pages: &'g Pages, pgoff: usize) -> Option<Self> {
        let nr_pages = pages.nr_from(pgoff)?;

        // INVARIANT: `nr_from` returns the number of pages that exist, at least one.
        Some(Self {
            pages,
            pgoff,
            nr_pages,
        })
    }

    /// Returns the first `nr_pages` pages, or all if there are fewer.
    pub fn truncate(self, nr_pages: usize) -> Self {
        // INVARIANT: The first page stays, and no page is added.
        Self {
            nr_pages: self.nr_pages.min(nr_pages),
            ..self
        }
    }

    /// Returns whether the pages may be accessed. Callable from any context.
    #[inline]
    pub(super) fn permits_access(&self) -> bool {
        self.pages.access.permits_access()
    }

    /// Exposes the first `nr_pages` pages, or all if there are fewer, and returns the first page
    /// frame number, if mappings are permitted. Page tables, page caches and pins may refer to
    /// exposed pages after the lock was released.
    ///
    /// If `nr_pages` is not positive, the first page is exposed.
    ///
    /// Calls `report` with the offset and the length of these pages in bytes if a chunk of theirs
    /// was not exposed before.
    #[inline]
    pub(super) fn expose(&self, nr_pages: isize, report: impl FnOnce(u64, u64)) -> Option<usize> {
        // SAFETY: By the type invariant page `pgoff` exists.
        if !unsafe { self.pages.are_exposed(self.pgoff, nr_pages) } {
            let nr_pages = usize::try_from(nr_pages).unwrap_or(0);
            Self::record(self.pages, self.pgoff, nr_pages.min(self.nr_pages), report);
        }
        if !self.pages.access.permits_mapping() {
            return None;
        }
        Some(self.pages.pfn(self.pgoff))
    }

    // It takes values, so that the usual case does not need the extent in memory.
    #[cold]
    #[inline(never)]
    fn record(pages: &Pages, pgoff: usize, nr_pages: usize, report: impl FnOnce(u64, u64)) {
        if pages.expose(pgoff, nr_pages) {
            let bytes = |pages: usize| (pages as u64) << PAGE_SHIFT;
            report(bytes(pgoff), bytes(nr_pages));
        }
    }

    #[inline]
    pub(super) fn addr(&self) -> *mut u8 {
        self.pages.addr(self.pgoff)
    }

    /// Returns the offset of the first page in the data.
    #[inline]
    pub fn pgoff(&self) -> usize {
        self.pgoff
    }

    /// Returns the number of pages.
    #[inline]
    pub fn nr_pages(&self) -> usize {
        self.nr_pages
    }
}
