// SPDX-License-Identifier: GPL-2.0

//! Block I/O requests of bio-based disks.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h),
//! [`include/linux/bvec.h`](srctree/include/linux/bvec.h)

use crate::abstractions::bindings;
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// How a request ended, as the block layer counts it (`blk_status_t`).
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::block::bio::Status;
///
/// assert_eq!(Status::from(Ok(())), Status::OK);
/// assert_eq!(Status::from(Err(EIO)), Status::IOERR);
/// assert_eq!(Status::from(ENODATA), Status::MEDIUM);
/// assert_eq!(Status::from(EOPNOTSUPP), Status::NOTSUPP);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(bindings::blk_status_t);

impl Status {
    /// The request was carried out.
    pub const OK: Self = Self(bindings::BLK_STS_OK);
    /// The request failed; it surfaces as `EIO`.
    pub const IOERR: Self = Self(bindings::BLK_STS_IOERR);
    /// The medium is bad in this place; it surfaces as `ENODATA`.
    pub const MEDIUM: Self = Self(bindings::BLK_STS_MEDIUM);
    /// The device does not know this operation; it surfaces as `EOPNOTSUPP`.
    pub const NOTSUPP: Self = Self(bindings::BLK_STS_NOTSUPP);
}

impl From<Error> for Status {
    fn from(err: Error) -> Self {
        // SAFETY: A table look-up.
        Self(unsafe { bindings::errno_to_blk_status(err.to_errno()) })
    }
}

impl From<Result> for Status {
    fn from(result: Result) -> Self {
        match result {
            Ok(()) => Self::OK,
            Err(err) => err.into(),
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data is to be read from the device.
    Read,
    /// Data is to be written to the device. Without data it is a flush.
    Write,
    /// Something else.
    Other,
}

/// A request that a driver owns, from its submission until it ends it.
///
/// A request that is dropped has failed: it ends with [`Status::IOERR`], so that nobody waits for
/// ever.
///
/// # Examples
///
/// Every read gets the first bytes of `memory`; writing is not possible:
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::{
///     block::bio::{
///         Bio,
///         Operation,
///         Status, //
///     },
///     pmem_slice::PmemSlice, //
/// };
///
/// fn serve(bio: Bio, memory: PmemSlice<'_>) -> Result {
///     if bio.operation() != Operation::Read {
///         bio.end(Status::NOTSUPP);
///         return Ok(());
///     }
///
///     // To fail here drops the request, which ends it with an I/O error.
///     for mut segment in bio.segments_to_fill() {
///         memory.get(0, segment.len()).ok_or(EIO)?.read_into(&mut segment)?;
///     }
///
///     bio.end(Status::OK);
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// `self.0` is a valid `struct bio` that was submitted to a disk of ours, has not ended, and is
/// used by nobody else.
pub struct Bio(NonNull<bindings::bio>);

// SAFETY: A `struct bio` may be worked on and ended by any thread.
unsafe impl Send for Bio {}

impl Bio {
    /// Takes over a request.
    ///
    /// # Safety
    ///
    /// `bio` must have been submitted to a disk of ours and not have ended, and the caller must not
    /// use it any more.
    #[inline]
    pub(in crate::abstractions) unsafe fn from_raw(bio: NonNull<bindings::bio>) -> Self {
        // INVARIANT: By the safety requirements.
        Self(bio)
    }

    /// Gives the request up, without ending it.
    #[inline]
    pub(in crate::abstractions) fn into_raw(self) -> NonNull<bindings::bio> {
        ManuallyDrop::new(self).0
    }

    /// Returns the flags and the operation.
    #[inline]
    fn opf(&self) -> u32 {
        // SAFETY: By the type invariant the request is valid. Other CPUs may change other fields
        // (those that count chained parts), so no reference to all of it is made.
        unsafe { (*self.0.as_ptr()).bi_opf }
    }

    /// Returns where the request stands in its memory and on the disk.
    #[inline]
    fn iter(&self) -> bindings::bvec_iter {
        // SAFETY: As in `opf`.
        unsafe { (*self.0.as_ptr()).bi_iter }
    }

    /// Returns what is asked for.
    #[inline]
    pub fn operation(&self) -> Operation {
        match self.opf() & bindings::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => Operation::Read,
            bindings::req_op_REQ_OP_WRITE => Operation::Write,
            _ => Operation::Other,
        }
    }

    /// Returns whether all that was written before must be durable before this request begins.
    #[inline]
    pub fn is_preflush(&self) -> bool {
        self.opf() & bindings::REQ_PREFLUSH != 0
    }

    /// Returns whether the data of this request must be durable before it ends.
    #[inline]
    pub fn is_fua(&self) -> bool {
        self.opf() & bindings::REQ_FUA != 0
    }

    /// Returns the first sector, counted from the start of the disk in units of 512 bytes.
    #[inline]
    pub fn sector(&self) -> u64 {
        self.iter().bi_sector
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.iter().bi_size as usize
    }

    /// Returns whether there is no data.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the memory of a write, in order. Of other requests there is none.
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        self.segments_of(Operation::Write)
    }

    /// Returns the memory of a read, in order, to be filled. Of other requests there is none: what
    /// is written from may be memory that nobody may change, such as the zero page.
    #[inline]
    pub fn segments_to_fill(&self) -> SegmentsToFill<'_> {
        SegmentsToFill(self.segments_of(Operation::Read))
    }

    #[inline]
    fn segments_of(&self, operation: Operation) -> Segments<'_> {
        let iter = self.iter();
        let is_wanted = self.operation() == operation;

        // INVARIANT: A read or write has the `bi_size` bytes that the iterator counts, from entry
        // `bi_idx` on; for others no byte is counted.
        Segments {
            // SAFETY: As in `opf`.
            vecs: unsafe { (*self.0.as_ptr()).bi_io_vec },
            index: iter.bi_idx as usize,
            done: iter.bi_offset,
            remaining: if is_wanted { iter.bi_size } else { 0 },
            _bio: PhantomData,
        }
    }

    /// Starts to account the request to `iostat`; [`None`] if the queue keeps no statistics.
    #[inline]
    pub fn start_accounting(&self) -> Option<Accounting<'_>> {
        // SAFETY: By the type invariant the request was submitted to a disk, which lives longer
        // than it, and so does its queue.
        let features = unsafe {
            let queue = (*(*(*self.0.as_ptr()).bi_bdev).bd_disk).queue;
            // sysfs may change it meanwhile.
            (&raw const (*queue).limits.features).read_volatile()
        };
        if features & bindings::BLK_FEAT_IO_STAT == 0 {
            return None;
        }

        // SAFETY: By the type invariant the request is valid.
        let start = unsafe { bindings::bio_start_io_acct(self.0.as_ptr()) };

        // INVARIANT: It has just been started for this request.
        Some(Accounting { bio: self, start })
    }

    /// Ends the request.
    ///
    /// Runs the submitter's completion, which may be in any context that the caller is in.
    #[inline]
    pub fn end(self, status: Status) {
        let bio = self.into_raw().as_ptr();

        // A status that a chained part has left must not be overwritten by success.
        if status != Status::OK {
            // SAFETY: By the type invariant the request was ours until now.
            unsafe { (*bio).bi_status = status.0 };
        }

        // SAFETY: As above; it is not used after this.
        unsafe { bindings::bio_endio(bio) };
    }
}

impl Drop for Bio {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the request is ours; it is not used after this.
        unsafe {
            (*self.0.as_ptr()).bi_status = Status::IOERR.0;
            bindings::bio_endio(self.0.as_ptr());
        }
    }
}

/// Requests that wait, first come, first served. They are linked to each other, so that adding one needs no
/// memory.
///
/// Those that are in it when it is dropped have failed, as [`Bio`] says.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::bio::{
///     BioList,
///     Status, //
/// };
///
/// fn end_all(mut waiting: BioList) {
///     while let Some(bio) = waiting.pop() {
///         bio.end(Status::OK);
///     }
/// }
/// ```
///
/// # Invariants
///
/// The requests from `first` on, linked by `bi_next`, are as [`Bio`] says, and the list is the only one who
/// owns them. `last` is the last of them; both are [`None`] if there is none.
#[derive(Default)]
pub struct BioList {
    first: Option<NonNull<bindings::bio>>,
    last: Option<NonNull<bindings::bio>>,
}

// SAFETY: It owns its requests, which are `Send`.
unsafe impl Send for BioList {}

impl BioList {
    /// Makes an empty list.
    pub const fn new() -> Self {
        // INVARIANT: There is no request.
        Self {
            first: None,
            last: None,
        }
    }

    /// Returns whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Adds a request behind the others.
    pub fn push(&mut self, bio: Bio) {
        let bio = bio.into_raw();

        // INVARIANT: The request was owned by the caller, and has no successor.
        // SAFETY: By the type invariants the requests are ours, and who owns one owns its link.
        unsafe { (*bio.as_ptr()).bi_next = core::ptr::null_mut() };
        match self.last.replace(bio) {
            // SAFETY: As above.
            Some(last) => unsafe { (*last.as_ptr()).bi_next = bio.as_ptr() },
            None => self.first = Some(bio),
        }
    }

    /// Takes the request that has waited longest.
    pub fn pop(&mut self) -> Option<Bio> {
        let bio = self.first?;

        // INVARIANT: The next one is the first now, if there is one.
        // SAFETY: By the type invariant the request is ours, and its link is the next one of the
        // list.
        self.first = unsafe {
            let link = &raw mut (*bio.as_ptr()).bi_next;
            NonNull::new(link.replace(core::ptr::null_mut()))
        };
        if self.first.is_none() {
            self.last = None;
        }

        // SAFETY: By the type invariant nobody else owns it, and the list does not any more.
        Some(unsafe { Bio::from_raw(bio) })
    }
}

impl Drop for BioList {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

/// A request that is accounted to `iostat`, until [`Self::end`].
///
/// It borrows the request, so that what was started for one cannot be ended for another one. A
/// request that ends without it stays among those that are in flight, as far as `iostat` knows.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::bio::Bio;
///
/// fn serve(bio: Bio, work: impl FnOnce(&Bio) -> Result) {
///     let accounting = bio.start_accounting();
///     let result = work(&bio);
///     if let Some(accounting) = accounting {
///         accounting.end();
///     }
///
///     bio.end(result.into());
/// }
/// ```
///
/// The request cannot end before its accounting does:
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
/// `bio_start_io_acct` has returned `start` for `bio`.
#[must_use = "the accounting of a request must end"]
pub struct Accounting<'a> {
    bio: &'a Bio,
    start: c_ulong,
}

impl Accounting<'_> {
    /// Ends the accounting.
    #[inline]
    pub fn end(self) {
        // SAFETY: By the type invariant the accounting of this request was started then. It has not
        // ended, since it is borrowed.
        unsafe { bindings::bio_end_io_acct(self.bio.0.as_ptr(), self.start) };
    }
}

/// The memory of a request, a physically contiguous piece at a time.
///
/// # Invariants
///
/// If `remaining` is not zero, `vecs` is an array whose entries, from `done` bytes into entry
/// `index` on, have `remaining` bytes or more.
pub struct Segments<'a> {
    vecs: *const bindings::bio_vec,
    index: usize,
    done: u32,
    remaining: u32,
    _bio: PhantomData<&'a Bio>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    #[inline]
    fn next(&mut self) -> Option<Segment<'a>> {
        if self.remaining == 0 {
            return None;
        }

        // SAFETY: By the type invariant there are bytes left, so the entry exists.
        let vec = unsafe { &*self.vecs.add(self.index) };
        let len = vec.bv_len.saturating_sub(self.done).min(self.remaining);

        // INVARIANT: The bytes of this piece are within the entry.
        let segment = Segment {
            page: vec.bv_page,
            offset: vec.bv_offset.saturating_add(self.done) as usize,
            len: len as usize,
            _bio: PhantomData,
        };

        // INVARIANT: The entry is used up, or nothing remains; `len` is at most `remaining`. No
        // overflow: an array of as many entries as `usize` has values does not fit in memory.
        self.remaining = self.remaining.saturating_sub(len);
        self.index = self.index.wrapping_add(1);
        self.done = 0;

        Some(segment)
    }
}

/// The memory of a read, a physically contiguous piece at a time.
pub struct SegmentsToFill<'a>(Segments<'a>);

impl<'a> Iterator for SegmentsToFill<'a> {
    type Item = SegmentToFill<'a>;

    #[inline]
    fn next(&mut self) -> Option<SegmentToFill<'a>> {
        // INVARIANT: `Bio::segments_to_fill` makes this for reads only.
        self.0.next().map(SegmentToFill)
    }
}

/// A physically contiguous piece of the memory of a request.
///
/// It may be larger than a page; so is what the block layer calls a multi-page bvec. Since there is
/// no highmem on any architecture that has persistent memory, it is contiguous in the linear
/// mapping of the kernel too, and needs not be mapped page by page.
///
/// # Invariants
///
/// The `len` bytes from `offset` bytes into `page` on belong to a request that does not end during
/// `'a`.
pub struct Segment<'a> {
    page: *mut bindings::page,
    offset: usize,
    len: usize,
    _bio: PhantomData<&'a Bio>,
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

    /// Returns whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    pub(in crate::abstractions) fn as_ptr(&self) -> *const u8 {
        // SAFETY: By the type invariant the page is valid, and without highmem it has an address.
        let page = unsafe { bindings::page_address(self.page) };

        page.cast::<u8>().wrapping_add(self.offset)
    }

    /// Tells the architecture that the kernel has written, or is about to read, pages that user
    /// space may have mapped (`flush_dcache_page`). Nothing on x86.
    #[inline]
    pub(in crate::abstractions) fn flush_dcache(&self) {
        if bindings::ARCH_IMPLEMENTS_FLUSH_DCACHE_PAGE == 0 {
            return;
        }

        let end = self.offset.saturating_add(self.len);
        let mut offset = self.offset & !(PAGE_SIZE.wrapping_sub(1));
        while offset < end {
            // SAFETY: By the type invariant the pages of the piece are valid, and they are
            // contiguous in the memory map.
            unsafe {
                bindings::flush_dcache_page(self.page.add(offset >> kernel::page::PAGE_SHIFT))
            };
            offset = offset.saturating_add(PAGE_SIZE);
        }
    }
}

/// A physically contiguous piece of the memory of a read.
///
/// # Invariants
///
/// The request is a read, so the memory is there to be written to.
pub struct SegmentToFill<'a>(Segment<'a>);

impl SegmentToFill<'_> {
    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

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

#[kunit_tests(pmem_rs_bio)]
mod tests {
    use super::*;
    use kernel::types::Opaque;

    /// Four pages in one piece.
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

        /// The address of a byte, as a number.
        fn at(&self, offset: usize) -> usize {
            // SAFETY: The pages are valid, and in the linear mapping.
            unsafe { bindings::page_address(self.0) }.addr() + offset
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            // SAFETY: The pages are ours.
            unsafe { bindings::__free_pages(self.0, Self::ORDER) };
        }
    }

    const MAX_VECS: usize = 4;

    /// A request that no disk has seen, and what it ended with.
    struct Request {
        bio: Opaque<bindings::bio>,
        vecs: [bindings::bio_vec; MAX_VECS],
        ended: Option<Status>,
    }

    /// # Safety
    ///
    /// For the block layer only: `bio` must be one that `request` made and `outcome` has not freed.
    unsafe extern "C" fn ended(bio: *mut bindings::bio) {
        // SAFETY: By the safety requirements; its private data is what it is a part of.
        unsafe { (*(*bio).bi_private.cast::<Request>()).ended = Some(Status((*bio).bi_status)) };
    }

    /// Makes a request of pieces, each of which has an offset into the pages and a length.
    fn request(opf: u32, pages: &Pages, pieces: &[(usize, usize)]) -> Result<(Bio, *mut Request)> {
        let request = KBox::into_raw(KBox::new(
            Request {
                bio: Opaque::zeroed(),
                vecs: Default::default(),
                ended: None,
            },
            GFP_KERNEL,
        )?);

        // SAFETY: All are valid until `outcome` frees them; there are at most `MAX_VECS` pieces.
        unsafe {
            let bio = (*request).bio.get();
            let vecs = (&raw mut (*request).vecs).cast();
            bindings::bio_init(bio, core::ptr::null_mut(), vecs, MAX_VECS as u16, opf);
            (*bio).bi_end_io = Some(ended);
            (*bio).bi_private = request.cast();
            for (offset, len) in pieces {
                bindings::__bio_add_page(bio, pages.0, *len as c_uint, *offset as c_uint);
            }
            Ok((Bio::from_raw(NonNull::new(bio).ok_or(ENOMEM)?), request))
        }
    }

    /// What a request ended with, if it did. Frees it.
    fn outcome(request: *mut Request) -> Option<Status> {
        // SAFETY: The pointer comes from `request`, and the tests let go of the `Bio` before.
        unsafe { KBox::from_raw(request) }.ended
    }

    /// Address and length of the pieces of a write.
    fn pieces(bio: &Bio) -> Result<KVec<(usize, usize)>> {
        let mut pieces = KVec::new();
        for segment in bio.segments() {
            pieces.push((segment.as_ptr().addr(), segment.len()), GFP_KERNEL)?;
        }
        Ok(pieces)
    }

    const READ: u32 = bindings::req_op_REQ_OP_READ;
    const WRITE: u32 = bindings::req_op_REQ_OP_WRITE;

    #[test]
    fn a_piece_may_be_larger_than_a_page() -> Result {
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
        assert!(*pieces(&bio)? == expected);
        bio.end(Status::OK);
        assert!(outcome(raw) == Some(Status::OK));
        Ok(())
    }

    #[test]
    fn of_a_request_that_has_begun_the_rest_is_left() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 1024), (PAGE_SIZE, 2 * PAGE_SIZE)])?;

        // SAFETY: The request is valid, and has as many bytes. This is how the block layer goes on
        // in one that it has split.
        unsafe { bindings::__bio_advance((*raw).bio.get(), 1024 + 512) };
        assert_eq!(bio.sector(), 3);
        assert!(*pieces(&bio)? == [(pages.at(PAGE_SIZE + 512), 2 * PAGE_SIZE - 512)]);
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn a_request_may_end_within_a_piece() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 1024), (1024, 1024), (2048, 1024)])?;

        // SAFETY: The request is valid. This is the first part of one that was split.
        unsafe { (*(*raw).bio.get()).bi_iter.bi_size = 1024 + 512 };
        assert!(*pieces(&bio)? == [(pages.at(0), 1024), (pages.at(1024), 512)]);
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn empty_pieces_do_no_harm() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(WRITE, &pages, &[(0, 0), (512, 512), (0, 0), (1024, 512)])?;

        let all = pieces(&bio)?;
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
        assert!(bio.segments().next().is_none());
        assert!(bio.segments_to_fill().next().is_none());
        drop(bio);
        outcome(raw);
        Ok(())
    }

    #[test]
    fn memory_is_for_one_direction() -> Result {
        let pages = Pages::new()?;

        for (opf, operation, from, to) in [
            (READ, Operation::Read, false, true),
            (WRITE | bindings::REQ_FUA, Operation::Write, true, false),
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
            assert_eq!(bio.segments().next().is_some(), from);
            assert_eq!(bio.segments_to_fill().next().is_some(), to);
            drop(bio);
            outcome(raw);
        }
        Ok(())
    }

    #[test]
    fn a_dropped_request_has_failed() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(READ, &pages, &[(0, 512)])?;

        // SAFETY: The request is valid until `outcome`.
        assert!(unsafe { (*raw).ended }.is_none());
        drop(bio);
        assert!(outcome(raw) == Some(Status::IOERR));
        Ok(())
    }

    #[test]
    fn success_does_not_hide_what_went_wrong_before() -> Result {
        let pages = Pages::new()?;
        let (bio, raw) = request(READ, &pages, &[(0, 512)])?;

        // SAFETY: The request is valid. So a part of it that was split off has failed.
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
        // SAFETY: The request is valid until `outcome`.
        assert!(unsafe { (*raw).ended }.is_none());
        // SAFETY: It has just been given up.
        unsafe { Bio::from_raw(bio) }.end(EIO.into());
        assert!(outcome(raw) == Some(Status::IOERR));
        Ok(())
    }

    #[test]
    fn requests_leave_a_list_as_they_came() -> Result {
        let pages = Pages::new()?;
        let mut list = BioList::new();
        assert!(list.is_empty() && list.pop().is_none());

        // Twice, since a list that was emptied must be as good as new.
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
    fn those_in_a_list_that_is_dropped_have_failed() -> Result {
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

    #[test]
    fn errors_become_statuses_and_come_back() {
        let errno = |status: Status| {
            // SAFETY: A table look-up.
            unsafe { bindings::blk_status_to_errno(status.0) }
        };

        for err in [EIO, EOPNOTSUPP, ENOSPC, ENOMEM, ENODATA] {
            assert_eq!(errno(err.into()), err.to_errno());
        }
        // What the block layer does not know is an I/O error.
        assert!(Status::from(ENXIO) == Status::IOERR);
        assert!(Status::from(Ok(())) == Status::OK);
    }
}
