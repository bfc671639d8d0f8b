// SPDX-License-Identifier: GPL-2.0

//! Copying to and from persistent memory.
//!
//! A store to persistent memory is durable only once it has left the CPU caches, so writes use the
//! cache-flushing copies. A load from a failed cell raises a machine check, so reads use the copies
//! that survive it where the CPU has them. Elsewhere such a load is an oops (on arm64) or a panic
//! (on x86 without fast strings, `X86_FEATURE_ERMS`), and only what is known to be bad can be
//! refused before it is read. [`RegionAccess::flush`] flushes the buffers between CPU and memory.
//!
//! C headers: [`include/linux/string.h`](srctree/include/linux/string.h) (`memcpy_flushcache`),
//! [`include/linux/uaccess.h`](srctree/include/linux/uaccess.h) (`copy_mc_to_kernel`),
//! [`include/linux/libnvdimm.h`](srctree/include/linux/libnvdimm.h) (`arch_invalidate_pmem`).
//!
//! [`RegionAccess::flush`]: crate::abstractions::nvdimm::RegionAccess::flush

use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::ENODATA;
use crate::abstractions::kernel::block::bio::{
    Segment,
    SegmentToFill, //
};
use crate::abstractions::kernel_ext::iov::IterSource;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// A part of a mapped range of persistent memory, borrowed for `'a`.
///
/// It has a length and operations, but no address: all accesses are copies by this module. Other
/// CPUs, user space and devices may access the same bytes at any time, so there is no way to make a
/// Rust reference to them either.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::bio::Bio;
/// use pmem_rs::abstractions::kernel::pmem_slice::PmemSlice;
///
/// /// Copies from the memory to a read request.
/// fn read(memory: PmemSlice<'_>, bio: &Bio) -> Result {
///     let mut offset = usize::try_from(bio.sector())?.checked_mul(512).ok_or(EIO)?;
///
///     for mut segment in bio.segments_to_fill().ok_or(EIO)? {
///         memory
///             .get(offset, segment.len())
///             .ok_or(EIO)?
///             .read_into(&mut segment)?;
///         offset = offset.checked_add(segment.len()).ok_or(EIO)?;
///     }
///     Ok(())
/// }
/// ```
///
/// The kernel takes a page that fails out of the linear mapping. So a pgmap makes one of these only
/// after it has checked for failed pages ([`PagemapInner::readable`]). A page may still fail after
/// that. A read of it then fails if the CPU has a copy that survives machine checks, and is an oops
/// otherwise, as in the C driver. [`Memremap::slice`] is not in the linear mapping, and needs no
/// check.
///
/// It cannot be written to; [`WritableSlice`] can:
///
/// ```compile_fail,E0599
/// use pmem_rs::abstractions::kernel::pmem_slice::PmemSlice;
///
/// fn wipe(memory: PmemSlice<'_>) {
///     memory.zero();
/// }
/// ```
///
/// # Invariants
///
/// For all of `'a`, the `len` bytes from `addr` on are mapped writable in the kernel, except pages
/// that have failed since the mapping checked. `addr + len` does not wrap.
///
/// [`Memremap::slice`]: crate::abstractions::kernel::memremap::Memremap::slice
/// [`PagemapInner::readable`]: crate::abstractions::kernel::memremap::PagemapInner::readable
#[derive(Clone, Copy)]
pub struct PmemSlice<'a> {
    addr: NonNull<u8>,
    len: usize,
    _mapping: PhantomData<&'a ()>,
}

impl<'a> PmemSlice<'a> {
    /// Makes a slice of the `len` bytes from `addr` on.
    ///
    /// # Safety
    ///
    /// For all of `'a`, the bytes must be mapped writable in the kernel, except pages that fail
    /// from now on, and `addr + len` must not wrap. The caller must check for failed pages before
    /// it gives the slice to others.
    #[inline]
    pub(in crate::abstractions) unsafe fn from_raw_parts(addr: NonNull<u8>, len: usize) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            addr,
            len,
            _mapping: PhantomData,
        }
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the slice has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the `len` bytes from `offset` on, or [`None`] if they are not all within the slice.
    #[inline]
    pub fn get(&self, offset: usize, len: usize) -> Option<PmemSlice<'a>> {
        if len > self.len.checked_sub(offset)? {
            return None;
        }

        // INVARIANT: `offset + len <= self.len`, so all bytes are bytes of `self`.
        Some(Self {
            // SAFETY: By the type invariant the slice is mapped and does not wrap, and `offset` is
            // at most its length.
            addr: unsafe { self.addr.add(offset) },
            len,
            _mapping: PhantomData,
        })
    }

    /// Returns the first `len` bytes and the rest, or [`None`] if there are fewer.
    #[inline]
    pub fn split_at(&self, len: usize) -> Option<(PmemSlice<'a>, PmemSlice<'a>)> {
        let rest = self.len.checked_sub(len)?;

        // INVARIANT: `len` is at most the length of the slice, so all bytes are bytes of `self`.
        let first = Self { len, ..*self };
        let rest = Self {
            // SAFETY: By the type invariant the slice is mapped and does not wrap, and `len` is at
            // most its length.
            addr: unsafe { self.addr.add(len) },
            len: rest,
            ..*self
        };
        Some((first, rest))
    }

    /// Copies to the memory of a read request, as many bytes as both have. Does not sleep.
    ///
    /// # Errors
    ///
    /// [`ENODATA`], which the block layer takes for a medium error, if the medium raised a machine
    /// check that the copy has survived. The segment then has an unspecified mix of old and new
    /// bytes.
    #[inline]
    pub fn read_into(&self, segment: &mut SegmentToFill<'_>) -> Result {
        let len = self.len.min(segment.len());

        // SAFETY: By the type invariants both sides have `len` bytes, and those of the segment are
        // writable. `copy_mc_to_kernel` is the copy for a source that may raise a machine check.
        let rest = unsafe {
            bindings::copy_mc_to_kernel(
                segment.as_mut_ptr().cast(),
                self.addr.as_ptr().cast(),
                len as c_uint,
            )
        };
        segment.flush_dcache();

        if rest != 0 {
            return Err(ENODATA);
        }
        Ok(())
    }

    /// Copies to `buffer`, as many bytes as both have. Does not sleep. Fails as
    /// [`Self::read_into`], and with [`EOVERFLOW`] if these are 4 GiB or more.
    pub fn read(&self, buffer: &mut [u8]) -> Result {
        let len = c_uint::try_from(self.len.min(buffer.len())).map_err(|_| EOVERFLOW)?;

        // SAFETY: By the type invariant the slice has `len` bytes, and so has the buffer.
        let rest = unsafe {
            bindings::copy_mc_to_kernel(buffer.as_mut_ptr().cast(), self.addr.as_ptr().cast(), len)
        };
        if rest != 0 {
            return Err(ENODATA);
        }
        Ok(())
    }
}

/// A part of a mapped range of persistent memory that can be written to, borrowed for `'a`.
///
/// The kernel takes a page that fails out of the linear mapping, and a store to it is an oops. So a
/// pgmap makes one of these only after it has checked for failed pages
/// ([`PagemapInner::writable`]). [`Memremap::writable`] is not in the linear mapping, and needs no
/// check.
///
/// A page may still fail between that check and the store, or while this is kept. The store is an
/// oops then, as it is in the C driver. No other memory is touched.
///
/// [`Memremap::writable`]: crate::abstractions::kernel::memremap::Memremap::writable
/// [`PagemapInner::writable`]: crate::abstractions::kernel::memremap::PagemapInner::writable
///
/// # Invariants
///
/// No page of the slice had failed when the mapping checked.
#[derive(Clone, Copy)]
pub struct WritableSlice<'a>(PmemSlice<'a>);

impl<'a> WritableSlice<'a> {
    /// Makes a slice writable.
    ///
    /// # Safety
    ///
    /// The mapping must have just checked that no page of the slice has failed.
    #[inline]
    pub(in crate::abstractions) unsafe fn new(slice: PmemSlice<'a>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(slice)
    }

    /// Returns the length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// Returns whether the slice has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.len == 0
    }

    /// Returns the `len` bytes from `offset` on, or [`None`] if they are not all within the slice.
    #[inline]
    pub fn get(&self, offset: usize, len: usize) -> Option<WritableSlice<'a>> {
        // INVARIANT: All pages of a part are pages of the whole.
        self.0.get(offset, len).map(Self)
    }

    /// Returns the first `len` bytes and the rest, or [`None`] if there are fewer.
    #[inline]
    pub fn split_at(&self, len: usize) -> Option<(WritableSlice<'a>, WritableSlice<'a>)> {
        let (first, rest) = self.0.split_at(len)?;

        // INVARIANT: All pages of a part are pages of the whole.
        Some((Self(first), Self(rest)))
    }

    /// Copies from the memory of a write request, as many bytes as both have, past the CPU caches.
    /// Does not sleep.
    ///
    /// The bytes are durable after the next flush of the region.
    #[inline]
    pub fn write_from(&self, segment: &Segment<'_>) {
        let len = self.len().min(segment.len());

        segment.flush_dcache();
        // SAFETY: By the type invariants of `PmemSlice` and of `Segment`, both sides have `len`
        // bytes.
        unsafe {
            bindings::memcpy_flushcache(self.0.addr.as_ptr().cast(), segment.as_ptr().cast(), len)
        };
    }

    /// Copies from `buffer`, as many bytes as both have, past the CPU caches. Does not sleep.
    ///
    /// The bytes are durable after the next flush of the region.
    pub fn write(&self, buffer: &[u8]) {
        let len = self.len().min(buffer.len());

        // SAFETY: By the type invariant of `PmemSlice`, `self` has `len` bytes, as has the buffer.
        unsafe {
            bindings::memcpy_flushcache(self.0.addr.as_ptr().cast(), buffer.as_ptr().cast(), len)
        };
    }

    /// Writes zeroes past the CPU caches. Does not sleep.
    ///
    /// The zeroes are durable after the next flush of the region.
    pub fn zero(&self) {
        let start = self.0.addr.as_ptr().addr();
        let head = (start.wrapping_neg() & (ZERO_ALIGN - 1)).min(self.len());
        let whole = self.len().saturating_sub(head) & !(ZERO_ALIGN - 1);

        let Some((head, rest)) = self.split_at(head) else {
            return;
        };
        let Some((body, tail)) = rest.split_at(whole) else {
            return;
        };
        head.zero_some();
        if !body.is_empty() {
            // SAFETY: By the type invariant of `PmemSlice`, `body` has this many bytes. `head` ends
            // at a multiple of the alignment.
            unsafe { zero_past_caches(body.0.addr.as_ptr(), body.len()) };
        }
        tail.zero_some();
    }

    /// Writes zeroes past the CPU caches, to fewer bytes than a page.
    fn zero_some(&self) {
        if self.is_empty() {
            return;
        }

        // SAFETY: The zero page always exists, and by the type invariant of `PmemSlice` there are
        // as many bytes as are written. They are fewer than the zero page has.
        unsafe {
            bindings::memcpy_flushcache(
                self.0.addr.as_ptr().cast(),
                bindings::zero_page_address(),
                self.len().min(PAGE_SIZE),
            )
        };
    }

    /// Copies from `source` past the CPU caches, and returns the number of bytes. May sleep if the
    /// source is user memory.
    pub fn write_from_iter(&self, source: &mut IterSource<'_>) -> usize {
        // SAFETY: By the type invariant of `PmemSlice`, `self` has `len` bytes; `source` is a valid
        // source by its own invariant.
        unsafe {
            bindings::copy_from_iter_flushcache(
                self.0.addr.as_ptr().cast(),
                self.len(),
                source.as_raw(),
            )
        }
    }

    /// Writes the bytes back from the CPU caches. Does not sleep.
    ///
    /// For bytes that were written by ordinary stores, for instance of user space. They are durable
    /// after the next flush of the region.
    pub fn write_back(&self) {
        // SAFETY: By the type invariants the bytes are mapped, and no page had failed when the
        // mapping checked.
        unsafe { bindings::arch_wb_cache_pmem(self.0.addr.as_ptr().cast(), self.len()) };
    }

    /// Invalidates the bytes in the CPU caches. Does not sleep.
    ///
    /// For use after poison was cleared, so that poisoned lines are not read from the caches.
    pub fn invalidate(&self) {
        // SAFETY: By the type invariants the bytes are mapped, and no page had failed when the
        // mapping checked. On arm64 changes that are only in the caches are lost, but no Rust
        // reference to the memory exists that could see that.
        unsafe { bindings::arch_invalidate_pmem(self.0.addr.as_ptr().cast(), self.len()) };
    }
}

/// The alignment of addresses and lengths that [`zero_past_caches`] needs.
const ZERO_ALIGN: usize = 128;

/// Writes zeroes past the CPU caches. The kernel has no such function for other modules.
///
/// # Safety
///
/// The bytes must be mapped, and no page of them may have failed. Address and length must be
/// multiples of [`ZERO_ALIGN`], and the length must not be 0.
// Its name is in `tests/guest/src/counter.rs`: it is counted as a copy.
#[inline(never)]
unsafe fn zero_past_caches(addr: *mut u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: By the safety requirements. The loop ends, since the length is a multiple of the
    // step. Non-temporal stores are ordered by the next flush of the region.
    unsafe {
        core::arch::asm!(
            "2:",
            "movnti [{addr}], {zero}",
            "movnti [{addr} + 8], {zero}",
            "movnti [{addr} + 16], {zero}",
            "movnti [{addr} + 24], {zero}",
            "movnti [{addr} + 32], {zero}",
            "movnti [{addr} + 40], {zero}",
            "movnti [{addr} + 48], {zero}",
            "movnti [{addr} + 56], {zero}",
            "movnti [{addr} + 64], {zero}",
            "movnti [{addr} + 72], {zero}",
            "movnti [{addr} + 80], {zero}",
            "movnti [{addr} + 88], {zero}",
            "movnti [{addr} + 96], {zero}",
            "movnti [{addr} + 104], {zero}",
            "movnti [{addr} + 112], {zero}",
            "movnti [{addr} + 120], {zero}",
            "add {addr}, 128",
            "cmp {addr}, {end}",
            "jne 2b",
            addr = inout(reg) addr => _,
            end = in(reg) addr.wrapping_add(len),
            zero = in(reg) 0_u64,
            options(nostack),
        )
    };

    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: By the safety requirements.
    unsafe {
        addr.write_bytes(0, len);
        bindings::arch_wb_cache_pmem(addr.cast(), len);
    }
}

/// Whether the cache-flushing copies flush on this architecture. Where they do not, writes are not
/// guaranteed to persist.
pub const HAS_FLUSHCACHE: bool = bindings::HAS_UACCESS_FLUSHCACHE;

#[kunit_tests(pmem_rs_pmem)]
mod tests {
    use super::*;

    /// Ordinary memory: the copies work on it too.
    fn memory(len: usize) -> Result<KVec<u8>> {
        Ok(KVec::from_elem(0xaa, len, GFP_KERNEL)?)
    }

    fn slice(memory: &mut KVec<u8>) -> WritableSlice<'_> {
        // SAFETY: The vector has the bytes, for as long as it is borrowed. They do not fail.
        unsafe {
            WritableSlice::new(PmemSlice::from_raw_parts(
                NonNull::new_unchecked(memory.as_mut_ptr()),
                memory.as_slice().len(),
            ))
        }
    }

    #[test]
    fn parts_are_within_the_whole() -> Result {
        let mut memory = memory(100)?;
        let whole = slice(&mut memory);

        assert_eq!(whole.get(40, 60).map(|part| part.len()), Some(60));
        assert_eq!(whole.get(100, 0).map(|part| part.len()), Some(0));
        assert!(whole.get(40, 61).is_none());
        assert!(whole.get(101, 0).is_none());
        assert!(whole.get(1, usize::MAX).is_none());
        Ok(())
    }

    #[test]
    fn a_slice_is_split_without_a_gap() -> Result {
        let mut memory = memory(100)?;
        let whole = slice(&mut memory);

        let (first, rest) = whole.split_at(30).ok_or(EINVAL)?;
        assert_eq!((first.len(), rest.len()), (30, 70));
        assert!(first.0.addr == whole.0.addr);
        assert!(rest.0.addr.as_ptr() == whole.0.addr.as_ptr().wrapping_add(30));
        assert!(whole.split_at(100).is_some_and(|(_, rest)| rest.is_empty()));
        assert!(whole.split_at(101).is_none());
        Ok(())
    }

    #[test]
    fn zero_writes_no_other_bytes() -> Result {
        for (start, len) in [
            (0, 0),
            (1, 3),
            (1, 2 * PAGE_SIZE + 5),
            (120, 200),
            (128, 127),
            (0, ZERO_ALIGN),
            (PAGE_SIZE, PAGE_SIZE),
            (200, 3 * PAGE_SIZE - 200),
        ] {
            let mut memory = memory(3 * PAGE_SIZE)?;

            slice(&mut memory).get(start, len).ok_or(EINVAL)?.zero();

            let expected = |index: usize| {
                if (start..start + len).contains(&index) {
                    0
                } else {
                    0xaa
                }
            };
            assert!(memory
                .iter()
                .enumerate()
                .all(|(index, byte)| *byte == expected(index)));
        }
        Ok(())
    }

    #[test]
    fn a_short_source_is_copied_in_full() -> Result {
        let mut memory = memory(64)?;
        let mut source = [0x55_u8; 16];
        let kvec = bindings::kvec {
            iov_base: source.as_mut_ptr().cast(),
            iov_len: source.len(),
        };
        let mut iter = bindings::iov_iter::default();

        // SAFETY: Iterator, vector and source live until the end of the test.
        let mut iter = unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_SOURCE, &kvec, 1, 16);
            IterSource::from_raw(&mut iter)
        };
        let part = slice(&mut memory).get(8, 32).ok_or(EINVAL)?;
        assert_eq!(part.write_from_iter(&mut iter), 16);

        assert!(memory
            .iter()
            .enumerate()
            .all(|(index, byte)| *byte == if (8..24).contains(&index) { 0x55 } else { 0xaa }));
        Ok(())
    }
}
