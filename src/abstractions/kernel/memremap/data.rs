// SPDX-License-Identifier: GPL-2.0

//! The data of a pgmap: slices to read and to write it, and the repair of pages that have failed.

use super::{
    failed_pages::PagemapOperations,
    pagemap::PagemapInner, //
};
use crate::abstractions::kernel::pmem_slice::{
    PmemSlice,
    WritableSlice, //
};
use core::ops::Range;
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

impl<T: PagemapOperations> PagemapInner<T> {
    /// Returns the size of the data in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.len
    }

    /// Returns the data. What is accessed must be [good](Self::none_failed).
    #[inline]
    fn slice(&self) -> PmemSlice<'_> {
        // SAFETY: By the type invariant the bytes are mapped for as long as `self` lives. The
        // callers check for failed pages.
        unsafe { PmemSlice::from_raw_parts(self.data, self.len) }
    }

    /// Returns all of the data, to be read, or [`None`] if any page has ever failed. Callable from
    /// any context.
    ///
    /// A page may fail between this check and the read, see [`PmemSlice`].
    #[inline]
    pub fn readable_all(&self) -> Option<PmemSlice<'_>> {
        if !self.none_failed() {
            return None;
        }
        Some(self.slice())
    }

    /// Returns the `len` bytes from `offset` on, to be read, or [`None`] if any of their pages has
    /// failed, or they are not all in the data. Callable where [`Self::first_failed`] is.
    ///
    /// A page may fail between this check and the read, see [`PmemSlice`].
    #[inline]
    pub fn readable(&self, offset: usize, len: usize) -> Option<PmemSlice<'_>> {
        let slice = self.slice().get(offset, len)?;
        if self.has_failed(offset, len) {
            return None;
        }
        Some(slice)
    }

    /// Returns all of the data, to be written to, or [`None`] if any page has ever failed. Callable
    /// from any context.
    ///
    /// A page may fail between this check and the write, see [`WritableSlice`].
    #[inline]
    pub fn writable_all(&self) -> Option<WritableSlice<'_>> {
        let slice = self.readable_all()?;

        // SAFETY: That was just checked: no page has failed.
        Some(unsafe { WritableSlice::new(slice) })
    }

    /// Returns the `len` bytes from `offset` on, to be written to, or [`None`] if any of their
    /// pages has failed, or they are not all in the data. Callable where [`Self::first_failed`] is.
    ///
    /// A page may fail between this check and the write, see [`WritableSlice`].
    #[inline]
    pub fn writable(&self, offset: usize, len: usize) -> Option<WritableSlice<'_>> {
        let slice = self.readable(offset, len)?;

        // SAFETY: That was just checked: no page of the slice has failed.
        Some(unsafe { WritableSlice::new(slice) })
    }

    /// Returns whether no page has ever failed. Callable from any context.
    ///
    /// x86 takes a page out of the mapping after it has reported the failure, and does not report
    /// when. So a page that failed and was repaired may still be taken out later, and once this has
    /// returned false, [`Self::first_failed`] must be called for each access.
    #[inline]
    pub fn none_failed(&self) -> bool {
        !self.any_failed.get()
    }

    /// Returns the offset of the first page of the `len` bytes from `offset` on that has failed and
    /// was not repaired since, or is missing in the linear mapping. If a run of failed pages begins
    /// before `offset`, it is the offset of the run.
    ///
    /// Not callable from NMI. With PREEMPT_RT, only callable where a `spinlock_t` may be taken: the
    /// list has a seqlock.
    #[cold]
    pub fn first_failed(&self, offset: usize, len: usize) -> Option<usize> {
        if self.none_failed() {
            return None;
        }
        // SAFETY: `self` is not freed while it is used.
        unsafe { self.failed.first(offset, len) }
    }

    /// Returns whether any page of the `len` bytes from `offset` on has failed. Callable where
    /// [`Self::first_failed`] is.
    #[inline]
    pub fn has_failed(&self, offset: usize, len: usize) -> bool {
        !self.none_failed() && self.first_failed(offset, len).is_some()
    }

    /// Clears the hwpoison mark of the pages that are wholly in the `len` bytes from `offset` on,
    /// and puts those that have failed back into the linear mapping. May sleep: a page that has
    /// just failed is put back once x86 has taken it out, or a second later.
    ///
    /// The poison of the medium itself must have been cleared before, or the next access raises
    /// another machine check.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if a page cannot be removed from the list of failed pages, which is full.
    /// [`EAGAIN`] if a page has failed meanwhile. [`EINVAL`] if the bytes are not all in the data.
    /// Or the error with which a page could not be mapped.
    pub fn unpoison(&self, offset: usize, len: usize) -> Result {
        let pages = self.whole_pages(offset, len)?;

        // SAFETY: The pages are in the data, and `self` is not freed while it is used.
        unsafe { self.failed.unpoison(pages) }
    }

    /// Records that the pages that are wholly in the `len` bytes from `offset` on have
    /// [failed](Self::has_failed), because they were not overwritten after [`Self::unpoison`].
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if the list of failed pages is full. [`EINVAL`] if the bytes are not all in the
    /// data.
    pub fn set_failed(&self, offset: usize, len: usize) -> Result {
        self.failed
            .add(&self.any_failed, self.whole_pages(offset, len)?)
    }

    /// Returns the pages that are wholly in the `len` bytes from `offset` on. Fails if the bytes
    /// are not all in the data.
    fn whole_pages(&self, offset: usize, len: usize) -> Result<Range<u64>> {
        let end = offset
            .checked_add(len)
            .filter(|end| *end <= self.len)
            .ok_or(EINVAL)?;

        Ok(offset.div_ceil(PAGE_SIZE) as u64..(end >> PAGE_SHIFT) as u64)
    }
}
