// SPDX-License-Identifier: GPL-2.0

//! The memory of a block I/O request: arrays of `struct bio_vec`.
//!
//! The memory is accessible only while the request is borrowed. The memory of a write is read-only,
//! since it may be memory that must not change, such as the zero page.
//!
//! C header: [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::bvec_iter_offset;
use core::marker::PhantomData;
use kernel::page::{
    PAGE_SHIFT,
    PAGE_SIZE, //
};

/// An iterator over the physically contiguous segments of the memory of a request.
///
/// # Invariants
///
/// If `remaining` is not zero, `vecs` is an array that is valid for `'a`. It has `remaining` bytes
/// or more from byte `done` of entry `index` on.
pub struct Segments<'a> {
    vecs: *const bindings::bio_vec,
    index: usize,
    done: u32,
    remaining: u32,
    _bio: PhantomData<&'a bindings::bio>,
}

impl Segments<'_> {
    /// Creates an iterator over the memory from `iter` on.
    ///
    /// # Safety
    ///
    /// If `iter.bi_size` is not zero, `vecs` must be valid for the lifetime of the returned value.
    /// It must have `iter.bi_size` bytes from byte `iter.bi_offset` of entry `iter.bi_idx` on.
    #[inline]
    pub(in crate::abstractions) unsafe fn new(
        vecs: *const bindings::bio_vec,
        iter: &bindings::bvec_iter,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            vecs,
            index: iter.bi_idx as usize,
            done: bvec_iter_offset(iter),
            remaining: iter.bi_size,
            _bio: PhantomData,
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    #[inline]
    fn next(&mut self) -> Option<Segment<'a>> {
        if self.remaining == 0 {
            return None;
        }

        // SAFETY: By the type invariant the entry exists, since bytes remain.
        let vec = unsafe { &*self.vecs.add(self.index) };
        let len = vec.bv_len.saturating_sub(self.done).min(self.remaining);

        // INVARIANT: These bytes are within the entry.
        let segment = Segment {
            page: vec.bv_page,
            offset: vec.bv_offset.saturating_add(self.done) as usize,
            len: len as usize,
            _bio: PhantomData,
        };

        // INVARIANT: Either the entry is used up or nothing remains. Neither wraps: `len` is at
        // most `remaining`, and an array of `usize::MAX` entries does not fit in memory.
        self.remaining = self.remaining.wrapping_sub(len);
        self.index = self.index.wrapping_add(1);
        self.done = 0;

        Some(segment)
    }
}

/// An iterator over the physically contiguous segments of the memory of a read.
///
/// # Invariants
///
/// The request is a read.
pub struct SegmentsToFill<'a>(Segments<'a>);

impl<'a> SegmentsToFill<'a> {
    /// Makes the segments of a read writable.
    ///
    /// # Safety
    ///
    /// The request must be a read.
    #[inline]
    pub(in crate::abstractions) unsafe fn new(segments: Segments<'a>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(segments)
    }
}

impl<'a> Iterator for SegmentsToFill<'a> {
    type Item = SegmentToFill<'a>;

    #[inline]
    fn next(&mut self) -> Option<SegmentToFill<'a>> {
        // INVARIANT: By the type invariant the request is a read.
        self.0.next().map(SegmentToFill)
    }
}

/// A physically contiguous segment of the memory of a request.
///
/// It may be larger than a page (a multi-page bvec). The module does not build for kernels with
/// highmem, so the segment is also contiguous in the linear mapping of the kernel.
///
/// # Invariants
///
/// The `len` bytes from byte `offset` of `page` on belong to a request that does not end during
/// `'a`.
pub struct Segment<'a> {
    page: *mut bindings::page,
    offset: usize,
    len: usize,
    _bio: PhantomData<&'a bindings::bio>,
}

const _: () = assert!(
    !bindings::HAS_HIGHMEM,
    "the memory of a bio must be in the linear mapping"
);

impl Segment<'_> {
    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the segment has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the address of the first byte.
    #[inline]
    pub(in crate::abstractions) fn as_ptr(&self) -> *const u8 {
        // SAFETY: By the type invariant the page is valid, and without highmem it has an address.
        let page = unsafe { bindings::page_address(self.page) };

        page.cast::<u8>().wrapping_add(self.offset)
    }

    /// Tells the architecture that the kernel has written, or is about to read, pages that user
    /// space may have mapped (`flush_dcache_page()`). Does nothing on x86.
    #[inline]
    pub(in crate::abstractions) fn flush_dcache(&self) {
        if bindings::ARCH_IMPLEMENTS_FLUSH_DCACHE_PAGE == 0 {
            return;
        }

        let end = self.offset.saturating_add(self.len);
        let mut offset = self.offset & !(PAGE_SIZE.wrapping_sub(1));
        while offset < end {
            // SAFETY: By the type invariant the pages of the segment are valid, and they are
            // contiguous in the memory map.
            unsafe { bindings::flush_dcache_page(self.page.add(offset >> PAGE_SHIFT)) };
            offset = offset.saturating_add(PAGE_SIZE);
        }
    }
}

/// A physically contiguous segment of the memory of a read.
///
/// # Invariants
///
/// The request is a read, so its memory may be written.
pub struct SegmentToFill<'a>(Segment<'a>);

impl SegmentToFill<'_> {
    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the segment has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the address of the first byte.
    #[inline]
    pub(in crate::abstractions) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.0.as_ptr().cast_mut()
    }

    /// See [`Segment::flush_dcache`].
    #[inline]
    pub(in crate::abstractions) fn flush_dcache(&self) {
        self.0.flush_dcache();
    }
}
