// SPDX-License-Identifier: GPL-2.0

//! Block I/O requests of bio-based disks.
//!
//! A driver owns a request from its submission until the driver ends it.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::abstractions::bindings;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::prelude::*;

pub use crate::abstractions::kernel::block::{
    bvec::{
        Segment,
        SegmentToFill,
        Segments,
        SegmentsToFill, //
    },
    status::Status, //
};

/// The operation of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Reads data from the device.
    Read,
    /// Writes data to the device. Without data it is a flush.
    Write,
    /// Writes zeroes to the device. The request has a length, and no memory.
    WriteZeroes,
    /// Any other operation.
    Other,
}

/// A request that a driver owns.
///
/// Dropping a request ends it with [`Status::IOERR`], so its submitter never waits forever.
///
/// # Examples
///
/// Requests without data succeed. Others are not supported:
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::bio::{
///     Bio,
///     Operation,
///     Status, //
/// };
///
/// fn serve(bio: Bio) {
///     let status = match bio.operation() {
///         Operation::Read | Operation::Write if bio.is_empty() => Status::OK,
///         _ => Status::NOTSUPP,
///     };
///
///     // A request that is dropped ends with an I/O error.
///     bio.end(status);
/// }
/// ```
///
/// # Invariants
///
/// `self.0` is a valid `struct bio` that was submitted to a disk and has not ended. Nothing
/// else uses it, except requests that are chained to it (`bio_chain()`): when one ends, that may
/// change its status and its count of them.
pub struct Bio(NonNull<bindings::bio>);

// SAFETY: A `struct bio` may be used and ended by any thread.
unsafe impl Send for Bio {}

impl Bio {
    /// Takes ownership of a request.
    ///
    /// # Safety
    ///
    /// `bio` must have been submitted to a disk, must not have ended, and must not be used by
    /// the caller after this.
    #[inline]
    pub(in crate::abstractions) unsafe fn from_raw(bio: NonNull<bindings::bio>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(bio)
    }

    /// Gives up ownership of the request without ending it.
    #[inline]
    pub(in crate::abstractions) fn into_raw(self) -> NonNull<bindings::bio> {
        ManuallyDrop::new(self).0
    }

    /// Returns a copyable reference to the request.
    #[inline]
    pub fn borrow(&self) -> BioRef<'_> {
        // INVARIANT: By the type invariant, for as long as `self` is borrowed.
        BioRef(self.0, PhantomData)
    }

    /// As [`BioRef::operation`].
    #[inline]
    pub fn operation(&self) -> Operation {
        self.borrow().operation()
    }

    /// As [`BioRef::is_preflush`].
    #[inline]
    pub fn is_preflush(&self) -> bool {
        self.borrow().is_preflush()
    }

    /// As [`BioRef::is_fua`].
    #[inline]
    pub fn is_fua(&self) -> bool {
        self.borrow().is_fua()
    }

    /// As [`BioRef::is_nowait`].
    #[inline]
    pub fn is_nowait(&self) -> bool {
        self.borrow().is_nowait()
    }

    /// As [`BioRef::sector`].
    #[inline]
    pub fn sector(&self) -> u64 {
        self.borrow().sector()
    }

    /// As [`BioRef::len`].
    #[inline]
    pub fn len(&self) -> usize {
        self.borrow().len()
    }

    /// As [`BioRef::is_empty`].
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.borrow().is_empty()
    }

    /// As [`BioRef::segments`].
    #[inline]
    pub fn segments(&self) -> Option<Segments<'_>> {
        self.borrow().segments()
    }

    /// As [`BioRef::segments_to_fill`].
    #[inline]
    pub fn segments_to_fill(&self) -> Option<SegmentsToFill<'_>> {
        self.borrow().segments_to_fill()
    }

    /// Starts the accounting of the request (`bio_start_io_acct()`).
    ///
    /// Returns [`None`] if the queue keeps no I/O statistics.
    #[inline]
    pub fn start_accounting(&self) -> Option<Accounting<'_>> {
        // SAFETY: By the type invariant the request was submitted to a disk. The disk and its queue
        // outlive the request. sysfs may change the features concurrently, hence the volatile read.
        let features = unsafe {
            let queue = (*(*(*self.0.as_ptr()).bi_bdev).bd_disk).queue;
            (&raw const (*queue).limits.features).read_volatile()
        };
        if features & bindings::BLK_FEAT_IO_STAT == 0 {
            return None;
        }

        // SAFETY: By the type invariant the request is valid.
        let start = unsafe { bindings::bio_start_io_acct(self.0.as_ptr()) };

        // INVARIANT: `start` was just returned for this request.
        Some(Accounting {
            bio: self.borrow(),
            start,
        })
    }

    /// Ends the request (`bio_endio()`).
    ///
    /// Calls the completion of the submitter, unless other requests that are chained to this one
    /// have not ended yet. In an atomic context the completion may be deferred to a work item
    /// (`BIO_COMPLETE_IN_TASK`).
    #[inline]
    pub fn end(self, status: Status) {
        let bio = self.into_raw().as_ptr();

        // Success must not overwrite the status of a chained bio.
        if status != Status::OK {
            // SAFETY: By the type invariant the request was owned by `self`.
            unsafe { (*bio).bi_status = status.0 };
        }

        // SAFETY: By the type invariant the request was owned by `self`. It is not used after this.
        unsafe { bindings::bio_endio(bio) };
    }
}

/// A reference to a request, passed by value.
///
/// A function that is not inlined should take this, and not a reference to a [`Bio`]: then the
/// caller can keep its `Bio` in a register.
///
/// # Invariants
///
/// For `'a` the request is valid, and is not ended.
#[derive(Clone, Copy)]
pub struct BioRef<'a>(NonNull<bindings::bio>, PhantomData<&'a Bio>);

impl<'a> BioRef<'a> {
    /// Returns the operation and the flags.
    #[inline]
    fn opf(self) -> u32 {
        // SAFETY: By the type invariant the request is valid. Other CPUs may change other fields,
        // such as the count of chained bios, so this makes no reference to the whole structure.
        unsafe { (*self.0.as_ptr()).bi_opf }
    }

    /// Returns the current position on the disk and in memory.
    #[inline]
    fn iter(self) -> bindings::bvec_iter {
        // SAFETY: By the type invariant the request is valid. Only this field is read, since other
        // CPUs may change other fields.
        unsafe { (*self.0.as_ptr()).bi_iter }
    }

    /// Returns the operation.
    #[inline]
    pub fn operation(self) -> Operation {
        match self.opf() & bindings::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Operation::Read,
            bindings::req_op_REQ_OP_WRITE => Operation::Write,
            bindings::req_op_REQ_OP_WRITE_ZEROES => Operation::WriteZeroes,
            _ => Operation::Other,
        }
    }

    /// Returns whether earlier writes must be durable before this request begins.
    #[inline]
    pub fn is_preflush(self) -> bool {
        self.opf() & bindings::REQ_PREFLUSH != 0
    }

    /// Returns whether the data of this request must be durable before it ends.
    #[inline]
    pub fn is_fua(self) -> bool {
        self.opf() & bindings::REQ_FUA != 0
    }

    /// Returns whether the request must not sleep. If it would have to, it ends with
    /// [`Status::AGAIN`] before it has changed anything, and may be submitted again.
    #[inline]
    pub fn is_nowait(self) -> bool {
        self.opf() & bindings::REQ_NOWAIT != 0
    }

    /// Returns the first sector, in units of 512 bytes from the start of the disk.
    #[inline]
    pub fn sector(self) -> u64 {
        self.iter().bi_sector
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.iter().bi_size as usize
    }

    /// Returns whether there is no data.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Returns the memory of a write, in order. [`None`] if the request is not a write.
    #[inline]
    pub fn segments(self) -> Option<Segments<'a>> {
        if self.operation() != Operation::Write {
            return None;
        }

        // SAFETY: The request is a write.
        Some(unsafe { self.data() })
    }

    /// Returns the memory of a read, in order, to be written. [`None`] if the request is not a
    /// read.
    #[inline]
    pub fn segments_to_fill(self) -> Option<SegmentsToFill<'a>> {
        if self.operation() != Operation::Read {
            return None;
        }

        // SAFETY: The request is a read.
        Some(unsafe { SegmentsToFill::new(self.data()) })
    }

    /// Returns the memory of a read or write, in order.
    ///
    /// # Safety
    ///
    /// The request must be a read or a write.
    #[inline]
    unsafe fn data(self) -> Segments<'a> {
        // SAFETY: By the type invariant the request is valid, and does not end while it is
        // borrowed. A read or write has the `bi_size` bytes that its iterator counts.
        unsafe { Segments::new((*self.0.as_ptr()).bi_io_vec, &self.iter()) }
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request is owned by `self`. It is not used after this.
        unsafe {
            (*self.0.as_ptr()).bi_status = Status::IOERR.0;
            bindings::bio_endio(self.0.as_ptr());
        }
    }
}

/// The accounting of a request in `iostat`, until [`Self::end`].
///
/// It borrows the request, so it cannot end for another request. A request that ends without it
/// stays in the `iostat` count of requests in flight.
///
/// # Examples
///
/// The request cannot end before its accounting:
///
/// ```compile_fail,E0505
/// use pmem_rs::abstractions::kernel::block::bio::{
///     Bio,
///     Status, //
/// };
///
/// fn end_early(bio: Bio) {
///     let accounting = bio.start_accounting();
///     bio.end(Status::OK);
///     accounting.map(|accounting| accounting.end());
/// }
/// ```
///
/// # Invariants
///
/// `bio_start_io_acct()` has returned `start` for `bio`.
#[must_use = "the accounting of a request must end"]
pub struct Accounting<'a> {
    bio: BioRef<'a>,
    start: c_ulong,
}

impl Accounting<'_> {
    /// Ends the accounting (`bio_end_io_acct()`).
    #[inline]
    pub fn end(self) {
        // SAFETY: By the type invariant the accounting of this request was started at `start`. The
        // request has not ended, since it is borrowed.
        unsafe { bindings::bio_end_io_acct(self.bio.0.as_ptr(), self.start) };
    }
}

/// A first-in, first-out list of requests (`struct bio_list`).
///
/// The requests are linked to each other, so adding one needs no memory. Dropping the list drops
/// its requests, which ends them with [`Status::IOERR`].
///
/// # Invariants
///
/// The requests from `first` on, linked by `bi_next`, satisfy the invariants of [`Bio`], and are
/// owned by the list. `last` is the last of them. Both are [`None`] if the list is empty.
#[derive(Default)]
pub struct BioList {
    first: Option<NonNull<bindings::bio>>,
    last: Option<NonNull<bindings::bio>>,
}

// SAFETY: The list owns its requests, which are `Send`.
unsafe impl Send for BioList {}

impl BioList {
    /// Creates an empty list.
    pub const fn new() -> Self {
        // INVARIANT: The list is empty.
        Self {
            first: None,
            last: None,
        }
    }

    /// Returns whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Adds a request at the end.
    pub fn push(&mut self, bio: Bio) {
        let bio = bio.into_raw();

        // INVARIANT: The caller owned the request, which has no successor in the list.
        // SAFETY: By the invariant of `Bio` the request is valid. Its owner owns its link.
        unsafe { (*bio.as_ptr()).bi_next = core::ptr::null_mut() };
        match self.last.replace(bio) {
            // SAFETY: By the type invariant the list owns `last`, and so its link.
            Some(last) => unsafe { (*last.as_ptr()).bi_next = bio.as_ptr() },
            None => self.first = Some(bio),
        }
    }

    /// Removes the first request.
    pub fn pop(&mut self) -> Option<Bio> {
        let bio = self.first?;

        // INVARIANT: The successor, if any, becomes the first request.
        // SAFETY: By the type invariant the list owns the request, and its link is the successor.
        self.first = unsafe {
            let link = &raw mut (*bio.as_ptr()).bi_next;
            NonNull::new(link.replace(core::ptr::null_mut()))
        };
        if self.first.is_none() {
            self.last = None;
        }

        // SAFETY: By the type invariant only the list owned the request, and it no longer does.
        Some(unsafe { Bio::from_raw(bio) })
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

#[kunit_tests(pmem_rs_bio)]
mod tests {
    use super::*;
    use kernel::{
        page::PAGE_SIZE,
        types::Opaque, //
    };

    /// Four contiguous pages.
    struct Pages(*mut bindings::page);

    impl Pages {
        const ORDER: c_uint = 2;

        fn new() -> Result<Self> {
            // SAFETY: May be called in process context.
            let page = unsafe { bindings::alloc_pages(bindings::GFP_KERNEL, Self::ORDER) };
            if page.is_null() {
                return Err(ENOMEM);
            }
            Ok(Self(page))
        }

        /// Returns the address of a byte.
        fn at(&self, offset: usize) -> usize {
            // SAFETY: The pages are valid, and are in the linear mapping.
            unsafe { bindings::page_address(self.0) }.addr() + offset
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: `self` owns the pages.
            unsafe { bindings::__free_pages(self.0, Self::ORDER) };
        }
    }

    const MAX_VECS: usize = 4;

    /// A request that was not submitted to a disk, and the status that it ended with.
    struct Request {
        bio: Opaque<bindings::bio>,
        vecs: [bindings::bio_vec; MAX_VECS],
        ended: Option<Status>,
    }

    /// # Safety
    ///
    /// Called by the block layer only. `request()` must have made `bio`, and `outcome()` must not
    /// have freed it.
    unsafe extern "C" fn ended(bio: *mut bindings::bio) {
        // SAFETY: By the safety requirements the private data is the `Request` that contains `bio`.
        unsafe { (*(*bio).bi_private.cast::<Request>()).ended = Some(Status((*bio).bi_status)) };
    }

    /// Creates a request of segments, each with an offset into the pages and a length.
    fn request(
        opf: u32,
        pages: &Pages,
        segments: &[(usize, usize)],
    ) -> Result<(Bio, *mut Request)> {
        let request = KBox::into_raw(KBox::new(
            Request {
                bio: Opaque::zeroed(),
                vecs: Default::default(),
                ended: None,
            },
            GFP_KERNEL,
        )?);

        // SAFETY: All are valid until `outcome()` frees them, and there are at most `MAX_VECS`
        // segments.
        unsafe {
            let bio = (*request).bio.get();
            let vecs = (&raw mut (*request).vecs).cast();
            bindings::bio_init(bio, core::ptr::null_mut(), vecs, MAX_VECS as u16, opf);
            (*bio).bi_end_io = Some(ended);
            (*bio).bi_private = request.cast();
            for (offset, len) in segments {
                bindings::__bio_add_page(bio, pages.0, *len as c_uint, *offset as c_uint);
            }
            Ok((Bio::from_raw(NonNull::new(bio).ok_or(ENOMEM)?), request))
        }
    }

    /// Returns the status that a request ended with, if it did. Frees the request.
    fn outcome(request: *mut Request) -> Option<Status> {
        // SAFETY: The pointer comes from `request()`, and the tests drop the `Bio` before this.
        unsafe { KBox::from_raw(request) }.ended
    }

    /// Returns address and length of the segments of a write.
    fn segments(bio: &Bio) -> Result<KVec<(usize, usize)>> {
        let mut segments = KVec::new();
        for segment in bio.segments().ok_or(EINVAL)? {
            segments.push((segment.as_ptr().addr(), segment.len()), GFP_KERNEL)?;
        }
        Ok(segments)
    }

    const READ: u32 = bindings::req_op_REQ_OP_READ;
    const WRITE: u32 = bindings::req_op_REQ_OP_WRITE;

    #[test]
    fn a_segment_may_be_larger_than_a_page() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(
            WRITE,
            &pages,
            &[(512, 2 * PAGE_SIZE), (3 * PAGE_SIZE, 1024)],
        )?;

        assert_eq!(bio.len(), 2 * PAGE_SIZE + 1024);
        let expected = [
            (pages.at(512), 2 * PAGE_SIZE),
            (pages.at(3 * PAGE_SIZE), 1024),
        ];
        assert!(*segments(&bio)? == expected);
        bio.end(Status::OK);
        assert!(outcome(raw) == Some(Status::OK));
        Ok(())
    }

    #[test]
    fn the_segments_of_an_advanced_request_are_the_rest() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 1024), (PAGE_SIZE, 2 * PAGE_SIZE)])?;

        // SAFETY: The request is valid, and has as many bytes. The block layer advances a request
        // that it has split like this.
        unsafe { bindings::__bio_advance((*raw).bio.get(), 1024 + 512) };
        assert_eq!(bio.sector(), 3);
        assert!(*segments(&bio)? == [(pages.at(PAGE_SIZE + 512), 2 * PAGE_SIZE - 512)]);
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn a_request_may_end_within_a_segment() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 1024), (1024, 1024), (2048, 1024)])?;

        // SAFETY: The request is valid. The first part of a split request looks like this.
        unsafe { (*(*raw).bio.get()).bi_iter.bi_size = 1024 + 512 };
        assert!(*segments(&bio)? == [(pages.at(0), 1024), (pages.at(1024), 512)]);
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn empty_segments_are_harmless() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 0), (512, 512), (0, 0), (1024, 512)])?;

        let all = segments(&bio)?;
        let mut full = all.iter().filter(|(_, len)| *len != 0);
        assert!(full.next() == Some(&(pages.at(512), 512)));
        assert!(full.next() == Some(&(pages.at(1024), 512)));
        assert!(full.next().is_none());
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn a_flush_has_no_memory() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE | bindings::REQ_PREFLUSH, &pages, &[])?;

        assert!(bio.is_preflush());
        assert!(!bio.is_fua());
        assert!(bio.is_empty());
        assert!(segments(&bio)?.is_empty());
        assert!(bio.segments_to_fill().is_none());
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn memory_is_accessible_in_one_direction() -> Result {
        let pages = Pages::new()?;

        for (opf, operation, from, to) in [
            (READ, Operation::Read, false, true),
            (WRITE | bindings::REQ_FUA, Operation::Write, true, false),
            (WRITE | bindings::REQ_NOWAIT, Operation::Write, true, false),
            (
                bindings::req_op_REQ_OP_WRITE_ZEROES,
                Operation::WriteZeroes,
                false,
                false,
            ),
            (
                bindings::req_op_REQ_OP_DISCARD,
                Operation::Other,
                false,
                false,
            ),
        ] {
            let (bio, raw) = request(opf, &pages, &[(0, 512)])?;
            assert!(bio.operation() == operation);
            assert_eq!(bio.is_fua(), opf & bindings::REQ_FUA != 0);
            assert_eq!(bio.is_nowait(), opf & bindings::REQ_NOWAIT != 0);
            assert_eq!(bio.segments().is_some(), from);
            assert_eq!(bio.segments_to_fill().is_some(), to);
            drop(bio);
            outcome(raw);
        }
        Ok(())
    }

    #[test]
    fn a_dropped_request_fails() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(READ, &pages, &[(0, 512)])?;

        // SAFETY: The request is valid until `outcome()`.
        assert!(unsafe { (*raw).ended }.is_none());
        drop(bio);
        assert!(outcome(raw) == Some(Status::IOERR));
        Ok(())
    }

    #[test]
    fn success_does_not_overwrite_an_earlier_error() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(READ, &pages, &[(0, 512)])?;

        // SAFETY: The request is valid. A part that was split off fails like this.
        unsafe { (*(*raw).bio.get()).bi_status = Status::NOTSUPP.0 };
        bio.end(Status::OK);
        assert!(outcome(raw) == Some(Status::NOTSUPP));
        Ok(())
    }

    #[test]
    fn a_request_that_is_given_up_does_not_end() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(READ, &pages, &[(0, 512)])?;

        let bio = bio.into_raw();
        // SAFETY: The request is valid until `outcome()`.
        assert!(unsafe { (*raw).ended }.is_none());
        // SAFETY: `into_raw()` has just given up the request.
        unsafe { Bio::from_raw(bio) }.end(EIO.into());
        assert!(outcome(raw) == Some(Status::IOERR));
        Ok(())
    }

    #[test]
    fn a_list_is_first_in_first_out() -> Result {
        let pages = Pages::new()?;
        let mut list = BioList::new();
        assert!(list.is_empty() && list.pop().is_none());

        // Twice, since an emptied list must work like a new one.
        for _ in 0..2 {
            let mut all = KVec::new();
            for len in [512, 1024, 1536] {
                let (bio, raw) = request(READ, &pages, &[(0, len)])?;
                list.push(bio);
                all.push((len, raw), GFP_KERNEL)?;
            }
            for (len, raw) in all {
                let bio = list.pop().ok_or(EIO)?;
                assert_eq!(bio.len(), len);
                bio.end(Status::OK);
                assert!(outcome(raw) == Some(Status::OK));
            }
            assert!(list.is_empty() && list.pop().is_none());
        }
        Ok(())
    }

    #[test]
    fn the_requests_in_a_dropped_list_fail() -> Result {
        let pages = Pages::new()?;
        let (first, raw_first) = request(READ, &pages, &[(0, 512)])?;
        let (second, raw_second) = request(READ, &pages, &[(0, 512)])?;

        let mut list = BioList::new();
        list.push(first);
        list.push(second);
        drop(list);
        assert!(outcome(raw_first) == Some(Status::IOERR));
        assert!(outcome(raw_second) == Some(Status::IOERR));
        Ok(())
    }
}
