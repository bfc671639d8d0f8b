// SPDX-License-Identifier: GPL-2.0

//! The pgmap: `struct page`s and a mapping of a physical range, without its owner.

use super::{
    config::{
        compat_align,
        start_align,
        PagemapConfig, //
    },
    exposure::Exposure,
    failed_pages::{
        AnyFailed,
        FailedPages,
        PagemapOperations, //
    },
    failure::Failure,
    pages::Pages,
    usage::{
        PagesInUse,
        UsedPage, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    block::gendisk::DiskState,
    lease::Leases,
    numa::Node,
    percpu_ref::Ref, //
};
use crate::abstractions::kernel_ext::io::resource::{
    MemRegion,
    RegionName, //
};
use crate::abstractions::kernel_ext::task::cond_resched;
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    error::from_err_ptr,
    io::PhysAddr,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
    types::Opaque, //
};

/// A reference to a pgmap, which keeps it. A disk and a DAX device have one each.
pub type PagemapRef<T> = Ref<PagemapInner<T>>;

/// A pgmap (`MEMORY_DEVICE_FS_DAX`), as its owner ([`fs::dax::Pagemap`]) and the references to it
/// share it: the `struct page`s of a physical range, and its mapping in the linear map of the
/// kernel.
///
/// Offsets are those in the data. The part of the range before the data, such as `struct page`s
/// that are stored there, is not accessible.
///
/// # Examples
///
/// Memory is read after a check for failed pages, which may be missing in the mapping:
///
/// ```no_run
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel::memremap::{
///     PagemapInner,
///     PagemapOperations, //
/// };
///
/// fn first<T: PagemapOperations>(pages: &PagemapInner<T>) -> Result<[u8; 4]> {
///     let mut bytes = [0; 4];
///     pages.readable(0, 4).ok_or(EIO)?.read(&mut bytes)?;
///     Ok(bytes)
/// }
/// ```
///
/// and not without:
///
/// ```compile_fail,E0624
/// use pmem_rs::abstractions::kernel::memremap::{PagemapInner, PagemapOperations};
/// use pmem_rs::abstractions::kernel::pmem_slice::PmemSlice;
///
/// fn all<T: PagemapOperations>(pages: &PagemapInner<T>) -> PmemSlice<'_> {
///     pages.slice()
/// }
/// ```
///
/// [`fs::dax::Pagemap`]: crate::abstractions::kernel::fs::dax::Pagemap
///
/// # Invariants
///
/// `memremap_pages` mapped the range of `pgmap`. The data, `len` bytes, is mapped at `data`, is at
/// `data_start` in physical memory, and has `struct page`s. `page_states` are its whole pages if it
/// starts at a page boundary, and none otherwise. Pages whose frame numbers were returned are
/// recorded in `page_states`. `any_failed` is set before the first page of the data is taken out of
/// the mapping.
// What each request reads is in the first cache line, with the start of `ops`.
#[pin_data]
#[repr(C, align(64))]
pub struct PagemapInner<T: PagemapOperations> {
    pub(super) data: NonNull<u8>,
    pub(super) len: usize,
    pub(super) any_failed: AnyFailed,
    #[pin]
    ops: T,
    pub(in crate::abstractions) page_states: Pages,
    #[pin]
    pgmap: Opaque<bindings::dev_pagemap>,
    data_start: PhysAddr,
    #[pin]
    pub(super) failed: FailedPages,
    memmap_is_on_medium: bool,
    /// The disk through which file systems and device-mapper find the DAX device.
    host: SetOnce<Arc<DiskState>>,
    leases: Arc<Leases>,
    // Dropped last.
    reservation: MemRegion,
}

// SAFETY: A pgmap may be used and freed by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: PagemapOperations> Send for PagemapInner<T> {}

// SAFETY: A shared reference gives access to slices, to `T`, which is `Sync`, and to lists that
// have locks of their own or are atomic.
unsafe impl<T: PagemapOperations> Sync for PagemapInner<T> {}

impl<T: PagemapOperations> PagemapInner<T> {
    const OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
        memory_failure: Some(Self::memory_failure_callback),
        folio_free: None,
        migrate_to_ram: None,
        folio_split: None,
    };

    /// Makes the `struct page`s of a range and maps it; see [`fs::dax::Pagemap::new`].
    ///
    /// [`fs::dax::Pagemap::new`]: crate::abstractions::kernel::fs::dax::Pagemap::new
    ///
    /// # Safety
    ///
    /// [`Self::free`] must be called before the value is dropped.
    pub(in crate::abstractions) unsafe fn new(
        config: PagemapConfig<'_>,
        reservation: MemRegion,
        node: Node,
        ops: impl PinInit<T, Error>,
    ) -> Result<impl PinInit<Self, Error>> {
        let memmap_is_on_medium = config.memmap_is_on_medium();
        let (pgmap, start, len, data_offset) = config.into_parts();
        let misaligned =
            start & start_align().wrapping_sub(1) != 0 || len & compat_align().wrapping_sub(1) != 0;
        if misaligned || !reservation.contains(start, len) {
            return Err(EINVAL);
        }
        // No overflow: the offset is less than the length of a range that does not wrap.
        let data_start = start.wrapping_add(data_offset);
        let data_len = usize::try_from(len.wrapping_sub(data_offset))?;
        let data_offset = usize::try_from(data_offset)?;
        let frames =
            (data_start >> PAGE_SHIFT)..(data_start.saturating_add(data_len as u64) >> PAGE_SHIFT);
        let all_frames = (start >> PAGE_SHIFT)..(start.saturating_add(len) >> PAGE_SHIFT);
        let exposure = Exposure::new(&frames, node)?;
        let first_pfn = usize::try_from(frames.start)?;
        let nr_pages = if data_start % (PAGE_SIZE as u64) == 0 {
            data_len >> PAGE_SHIFT
        } else {
            0
        };

        Ok(try_pin_init!(&this in Self {
            pgmap: Opaque::new(pgmap),
            data_start,
            len: data_len,
            any_failed: AnyFailed::new(),
            failed <- FailedPages::new(all_frames, frames.start),
            ops <- ops,
            memmap_is_on_medium,
            host: SetOnce::new(),
            leases: Leases::new()?,
            reservation,
            // INVARIANT: `memremap_pages` has succeeded. By the invariant of `PagemapConfig` the
            // data starts at the offset.
            data: {
                // SAFETY: `this` is where the value is made, and stays. The field is initialised.
                let raw = unsafe { (*this.as_ptr()).pgmap.get() };
                // SAFETY: The structure was filled in for a range that is in the reservation.
                let addr = unsafe { Self::map(raw, node) }?;
                // SAFETY: An address in the linear mapping is not null, and the range is mapped
                // there beyond the offset.
                unsafe { NonNull::new_unchecked(addr.add(data_offset)) }
            },
            // Nothing after the mapping fails.
            // SAFETY: The range is mapped with its `struct page`s, of which these are the whole
            // ones, and the record is for all frames of the data. It is not used after `free`. The
            // field `data` is initialised.
            page_states: unsafe {
                Pages::new((*this.as_ptr()).data, first_pfn, nr_pages, exposure)
            },
        }? Error))
    }

    /// # Safety
    ///
    /// `raw` must be the field of a `Self` that stays, filled in by a [`PagemapConfig`] whose range
    /// is reserved, so that it is neither RAM nor in another pgmap.
    unsafe fn map(raw: *mut bindings::dev_pagemap, node: Node) -> Result<*mut u8> {
        let ops: &'static bindings::dev_pagemap_ops = &Self::OPS;

        // SAFETY: By the safety requirements, and the invariant of `PagemapConfig`, the structure
        // is as `memremap_pages` expects it. The C side does not know it yet, so it may be written.
        let addr = from_err_ptr(unsafe {
            (*raw).type_ = bindings::memory_type_MEMORY_DEVICE_FS_DAX;
            (*raw).ops = ops;
            (*raw).owner = raw.cast();
            bindings::memremap_pages(raw, node.0)
        })?;

        Ok(addr.cast())
    }

    /// Waits for threads that may still read a `struct page` after they put its last reference or
    /// deleted its last entry. Sleeps.
    pub(in crate::abstractions) fn synchronize(&self) {
        if !self.is_exposed() {
            return;
        }
        // The thread that put the last reference to a page may still read its `struct page`
        // (`free_zone_device_folio()`), in a section that can be preempted, but does not sleep.
        // Lockless walkers of page tables are in RCU read-side sections. A page that was seen idle
        // may have been in `dax_delete_mapping_range()`, which holds the spin lock of its page
        // cache, so RCU waits for it as well. The grace periods of RCU and of RCU-tasks pass at the
        // same time, and those of other devices that go now.
        // SAFETY: May sleep here.
        unsafe { bindings::synchronize_rcu_and_tasks() };
    }

    /// Frees the pages and the mapping of the range. Sleeps: waits for up to a second if a page has
    /// just failed. Then waits, without a limit, for references of the C side to the pgmap, and
    /// takes the memory hotplug lock.
    ///
    /// # Safety
    ///
    /// No page may be in use, nor have been since [`Self::synchronize`]. No translation may be
    /// under way or begin, and nothing may have an address of the data. The value must not be used
    /// after this, but to be dropped.
    pub(in crate::abstractions) unsafe fn free(&self) {
        self.leases.remove_from_table();
        // SAFETY: By the type invariant `memremap_pages` has succeeded, and by the safety
        // requirements there is no user, and this is called once.
        unsafe {
            self.failed.map_all();
            bindings::memunmap_pages(self.pgmap.get());
        }
    }

    /// Sets the disk through which the DAX device of this memory is found. Fails if there is one.
    pub(in crate::abstractions) fn set_host(&self, host: Arc<DiskState>) -> Result {
        if self.host.populate(host) {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    pub(in crate::abstractions) fn host(&self) -> Option<&DiskState> {
        self.host.as_ref().map(|host| &**host)
    }

    /// Returns the leases of this memory.
    pub fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    /// Returns the C structure, to be compared.
    pub(in crate::abstractions) fn as_raw(&self) -> *const bindings::dev_pagemap {
        self.pgmap.get()
    }

    /// Refuses translations that ask for a page frame number, for good. Callable from any context.
    pub fn refuse_mappings(&self) {
        self.page_states.access.refuse_mappings();
    }

    /// Refuses all translations, for good. Callable from any context.
    pub(in crate::abstractions) fn refuse_access(&self) {
        self.page_states.access.refuse_access();
    }

    /// Returns the operations that the memory management calls.
    pub fn ops(&self) -> &T {
        &self.ops
    }

    /// Returns the physical address of the data.
    pub fn data_start(&self) -> PhysAddr {
        self.data_start
    }

    /// Returns the page frames of the data.
    pub(in crate::abstractions) fn frames(&self) -> Range<u64> {
        self.page_states.frames()
    }

    /// Returns whether the `struct page`s are on the medium. If the medium is taken away, so are
    /// they.
    pub fn memmap_is_on_medium(&self) -> bool {
        self.memmap_is_on_medium
    }

    /// Returns whether any page was ever exposed.
    pub fn is_exposed(&self) -> bool {
        self.page_states.any_exposed()
    }

    /// Returns whether a page fault may have used the memory: a page was exposed, or the disk had
    /// an indirect claim. Above device-mapper, a write fault on a shared block may copy from memory
    /// that was not exposed to that of another device (`dax_iomap_copy_around`). Meanwhile it holds
    /// the lock of an entry, and no `dax_read_lock`.
    pub(in crate::abstractions) fn is_reachable_by_faults(&self) -> bool {
        self.is_exposed() || self.host().is_some_and(DiskState::had_indirect_claim)
    }

    /// Returns how many bytes were ever exposed, in whole chunks of the size that a PMD maps.
    pub fn exposed_bytes(&self) -> u64 {
        self.page_states.exposed_bytes()
    }

    /// Returns the first page from frame `from` on that is in use; see [`Pages::first_used`].
    pub(in crate::abstractions) fn first_used(&self, from: u64) -> Option<UsedPage<'_>> {
        self.page_states.first_used(from)
    }

    /// Returns the first page frame from `from` on that has more references than page table
    /// entries. Sleeps. Takes time in proportion to the exposed pages.
    pub(in crate::abstractions) fn first_pinned(&self, from: u64) -> Option<u64> {
        let mut next = from;

        while let Some(chunk) = self.page_states.next_exposed_chunk(next) {
            next = chunk.end;
            if let Some(pinned) = chunk
                .into_iter()
                .find(|pfn| self.page_states.is_pinned(*pfn))
            {
                return Some(pinned);
            }
            cond_resched();
        }
        None
    }

    /// Counts the pages in use among `limit` exposed ones, from page `first` of the data on. Also
    /// returns the page to continue with, if there are more. Does not sleep.
    ///
    /// The result is not a snapshot: the use of pages may change during the call.
    pub fn count_used(&self, first: u64, limit: u64) -> (PagesInUse, Option<u64>) {
        self.page_states.count_used(first, limit)
    }

    /// Writes the CPU caches back for all exposed pages that are in use: those in the page cache of
    /// a file, and those with a reference. May sleep. Takes time in proportion to the exposed
    /// pages.
    pub fn write_back_used(&self) {
        let mut next = 0;

        while let Some(chunk) = self.page_states.next_exposed_chunk(next) {
            next = chunk.end;
            for pfn in chunk.filter(|pfn| self.page_states.is_used(*pfn)) {
                self.write_back(pfn..pfn.saturating_add(1));
            }
            cond_resched();
        }
    }

    /// Writes the CPU caches back for these page frames, as far as they are in the data and have
    /// not failed.
    pub(in crate::abstractions) fn write_back(&self, pfns: Range<u64>) {
        let frames = self.frames();
        let (start, end) = (pfns.start.max(frames.start), pfns.end.min(frames.end));

        // No overflow: the frames are in the data, whose length in bytes is a `usize`.
        let mut offset = (start.saturating_sub(frames.start) << PAGE_SHIFT) as usize;
        let mut rest = (end.saturating_sub(start) << PAGE_SHIFT) as usize;
        while rest > 0 {
            let len = if self.none_failed() {
                rest
            } else {
                rest.min(PAGE_SIZE)
            };
            if let Some(slice) = self.writable(offset, len) {
                slice.write_back();
            }
            offset = offset.saturating_add(len);
            rest = rest.saturating_sub(len);
        }
    }

    /// Returns the name of the reservation in `/proc/iomem`.
    pub fn reservation_name(&self) -> &Arc<RegionName> {
        self.reservation.name()
    }

    /// # Safety
    ///
    /// For `memory_failure()` only, which must handle a failure of these pages of the pgmap, and
    /// have a reference to it. `pgmap` must be that of a `PagemapInner<T>`.
    unsafe extern "C" fn memory_failure_callback(
        pgmap: *mut bindings::dev_pagemap,
        pfn: c_ulong,
        nr_pages: c_ulong,
        flags: c_int,
    ) -> c_int {
        // SAFETY: By the safety requirements the pgmap is a field of `Self`, and `memunmap_pages`
        // has not returned yet.
        let inner = unsafe { &*container_of!(Opaque::cast_from(pgmap), Self, pgmap) };

        let data = (inner.data_start, inner.len);
        // SAFETY: By the safety requirements.
        let failure = unsafe { Failure::new(&inner.pgmap, data, pfn, nr_pages, flags) };
        // `PagemapOperations` only knows the data. For the rest the memory management fails: no
        // file has these pages.
        let Some(failure) = failure else {
            return EOPNOTSUPP.to_errno();
        };

        // SAFETY: The page frame is the one that the failure was made of.
        let result = unsafe {
            let (failed, any_failed) = (&inner.failed, &inner.any_failed);
            let notify_others = || inner.leases.fail(failure.offset(), failure.len());
            failed.handle(any_failed, &inner.ops, pfn, &failure, notify_others)
        };
        match result {
            Ok(()) => 0,
            Err(err) => err.to_errno(),
        }
    }
}

#[kunit_tests(pmem_rs_memremap)]
mod tests {
    use super::*;
    use crate::abstractions::{
        kernel::fs::dax::testing::TestPagemap,
        kernel_ext::{
            io::resource::free_range,
            time::Stopwatch, //
        }, //
    };
    use kernel::{
        io::ResourceSize,
        str::CString,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    // A section of the memory map, which all architectures can map.
    const LEN: ResourceSize = 128 << 20;

    /// Records the last failure.
    struct LastFailure {
        offset: Atomic<u64>,
        len: Atomic<u64>,
        /// The number of bytes that were recorded as failed.
        recorded: Atomic<u64>,
        /// The error to return, if not 0.
        errno: Atomic<i32>,
        /// The address of the pgmap, if the page is to be repaired when it is recorded, and was not
        /// yet.
        repaired: Atomic<usize>,
    }

    impl PagemapOperations for Arc<LastFailure> {
        fn memory_failure(&self, failure: &Failure<'_>) -> Result {
            self.offset.store(failure.offset(), Relaxed);
            self.len.store(failure.len(), Relaxed);
            match self.errno.load(Relaxed) {
                0 => Ok(()),
                errno => Err(Error::from_errno(errno)),
            }
        }

        fn record_failure(&self, offset: u64, len: u64) {
            self.recorded.fetch_add(len, Relaxed);
            let pages = self.repaired.load(Relaxed) as *const PagemapInner<Self>;
            // SAFETY: The address is that of the caller, or 0.
            if let Some(pages) = unsafe { pages.as_ref() } {
                let (offset, len) = (offset as usize, len as usize);
                let result = pages.unpoison(offset, len);
                if result.is_ok() && !pages.has_failed(offset, len) {
                    self.repaired.store(0, Relaxed);
                }
            }
        }
    }

    fn last_failure() -> Result<Arc<LastFailure>> {
        Ok(Arc::new(
            LastFailure {
                offset: Atomic::new(u64::MAX),
                len: Atomic::new(0),
                recorded: Atomic::new(0),
                errno: Atomic::new(0),
                repaired: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    fn reserve(start: PhysAddr, len: ResourceSize) -> Result<MemRegion> {
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)
    }

    /// Makes pages of a range without memory. It must not be read or written.
    fn pages(start: PhysAddr, data_offset: ResourceSize) -> Result<TestPagemap<Arc<LastFailure>>> {
        let (pgmap, ..) = PagemapConfig::new(start, LEN)?.into_parts();
        // SAFETY: The structure has no altmap, and is zero except for the range.
        let config = unsafe { PagemapConfig::from_raw(pgmap, data_offset) }?;

        TestPagemap::new(config, reserve(start, LEN)?, last_failure()?)
    }

    #[test]
    fn pages_come_and_go_with_their_reservation() -> Result {
        let start = free_range(LEN)?;

        for _ in 0..3 {
            let pages = pages(start, 0)?;
            assert_eq!(pages.size() as u64, LEN);
            assert_eq!(pages.data_start(), start);
            assert!(reserve(start, LEN).is_err());
            drop(pages);
        }
        reserve(start, LEN)?;
        Ok(())
    }

    #[test]
    fn data_begins_at_its_offset() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;

        let data = start + (2 << 20);
        let size = pages.size();
        assert_eq!(pages.data_start(), data);
        assert_eq!(size as u64, LEN - (2 << 20));

        let range = |offset, len| {
            pages
                .data_range(offset, len)
                .map(|range| range.physical_range().clone())
        };
        assert_eq!(range(0, size), Some(data..start + LEN));
        assert_eq!(range(512, 512), Some(data + 512..data + 1024));
        for (offset, len) in [(0, size + 1), (size, 1), (usize::MAX, 2), (1, usize::MAX)] {
            assert!(range(offset, len).is_none());
        }
        Ok(())
    }

    #[test]
    fn pages_outside_of_the_reservation_are_refused() -> Result {
        let start = free_range(LEN)?;
        let reservation = reserve(start, LEN / 2)?;

        let refused = TestPagemap::new(
            PagemapConfig::new(start, LEN)?,
            reservation,
            last_failure()?,
        );
        assert!(refused.is_err_and(|err| err == EINVAL));
        // The reservation was freed.
        reserve(start, LEN)?;
        Ok(())
    }

    #[test]
    fn misaligned_pages_are_refused() -> Result {
        let start = free_range(LEN)?;
        let reservation = reserve(start, LEN)?;

        let refused = TestPagemap::new(
            PagemapConfig::new(start + 4096, LEN / 2)?,
            reservation,
            last_failure()?,
        );
        assert!(refused.is_err_and(|err| err == EINVAL));
        Ok(())
    }

    #[test]
    fn failures_are_reported_by_offset_in_the_data() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let report = |address: PhysAddr, nr_pages| {
            // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
            unsafe {
                PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                    pages.pgmap.get(),
                    (address >> PAGE_SHIFT) as c_ulong,
                    nr_pages,
                    0,
                )
            }
        };

        assert_eq!(report(start + (2 << 20) + 0x3000, 2), 0);
        assert_eq!(pages.ops().offset.load(Relaxed), 0x3000);
        assert_eq!(pages.ops().len.load(Relaxed), 0x2000);
        assert!(pages.has_failed(0x4fff, 1));
        // Only the pages in the data are reported.
        assert_eq!(report(start + LEN - 0x1000, c_ulong::MAX), 0);
        assert_eq!(pages.ops().offset.load(Relaxed), LEN - (2 << 20) - 0x1000);
        assert_eq!(pages.ops().len.load(Relaxed), 0x1000);
        for (address, nr_pages) in [(start, 1), (start + LEN, 1), (start + (2 << 20), 0)] {
            assert_eq!(report(address, nr_pages), EOPNOTSUPP.to_errno());
        }
        assert_eq!(pages.ops().len.load(Relaxed), 0x1000);
        Ok(())
    }

    #[test]
    fn pages_that_stay_mapped_have_not_failed() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let pfn = pages.frames().start;
        let report = |errno: i32| {
            pages.ops().errno.store(errno, Relaxed);
            // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
            unsafe {
                PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                    pages.pgmap.get(),
                    (pfn + 3) as c_ulong,
                    1,
                    0,
                )
            }
        };

        assert_eq!(report(EIO.to_errno()), EIO.to_errno());
        // The page is not associated with a file, so the memory management would fail too.
        assert_eq!(report(EOPNOTSUPP.to_errno()), EBUSY.to_errno());
        assert!(!pages.has_failed(0x3000, 0x1000));
        assert_eq!(pages.ops().recorded.load(Relaxed), 0);

        assert_eq!(report(0), 0);
        assert_eq!(pages.ops().recorded.load(Relaxed), 0x1000);
        // It stays listed.
        assert_eq!(report(EIO.to_errno()), EIO.to_errno());
        assert!(pages.has_failed(0x3000, 0x1000));
        Ok(())
    }

    #[test]
    fn pages_that_are_repaired_while_they_are_recorded_have_failed() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let inner: &PagemapInner<_> = &pages;

        pages
            .ops()
            .repaired
            .store(core::ptr::from_ref(inner).addr(), Relaxed);
        // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
        let result = unsafe {
            PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                pages.pgmap.get(),
                (pages.frames().start + 3) as c_ulong,
                1,
                0,
            )
        };
        assert_eq!(result, 0);
        assert_eq!(pages.ops().repaired.load(Relaxed), 0);
        assert!(pages.has_failed(0x3000, 0x1000));

        // It is not taken out, and so it is repaired after some time.
        let began = Stopwatch::start();
        pages.unpoison(0x3000, 0x1000)?;
        assert!(!pages.has_failed(0x3000, 0x1000));
        assert!(!cfg!(target_arch = "x86_64") || began.micros() >= 500_000);
        Ok(())
    }

    #[test]
    fn simulated_failures_are_not_listed() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let pfn = pages.frames().start;
        let report = |flags: c_int| {
            // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
            unsafe {
                PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                    pages.pgmap.get(),
                    (pfn + 3) as c_ulong,
                    1,
                    flags,
                )
            }
        };
        let simulated = bindings::mf_flags_MF_SW_SIMULATED as c_int;

        assert_eq!(report(simulated), 0);
        assert_eq!(pages.ops().offset.load(Relaxed), 0x3000);
        assert_eq!(pages.ops().recorded.load(Relaxed), 0);
        assert!(pages.none_failed());
        // A real failure stays listed.
        assert_eq!(report(0), 0);
        assert_eq!(report(simulated), 0);
        assert!(pages.has_failed(0x3000, 0x1000));
        Ok(())
    }

    #[test]
    fn failed_pages_are_listed_until_they_are_repaired() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let pfn = pages.frames().start;
        // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
        let report = |page: u64| unsafe {
            PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                pages.pgmap.get(),
                (pfn + page) as c_ulong,
                1,
                0,
            )
        };

        let is_writable = |offset, len| {
            let is_writable = pages.writable(offset, len).is_some();
            assert_eq!(pages.readable(offset, len).is_some(), is_writable);
            is_writable
        };

        assert!(!pages.has_failed(0, pages.size()));
        assert!(is_writable(0, pages.size()));
        assert!(!is_writable(0, pages.size() + 1));
        assert!(pages.readable_all().is_some() && pages.writable_all().is_some());
        assert_eq!(report(3), 0);
        assert_eq!(report(4), 0);
        assert!(pages.readable_all().is_none() && pages.writable_all().is_none());
        assert!(!is_writable(0, pages.size()));
        assert!(!is_writable(0x3fff, 1));
        assert!(is_writable(0x2000, 0x1000));
        assert!(is_writable(0x5000, 0x1000));
        assert!(pages.has_failed(0x3fff, 1));
        assert!(pages.has_failed(0x2fff, 2));
        assert!(!pages.has_failed(0x2000, 0x1000));
        assert!(!pages.has_failed(0x5000, 0x1000));
        assert!(!pages.has_failed(0x3800, 0));

        // A page is repaired as a whole.
        pages.unpoison(0x3001, 0x1fff)?;
        assert!(pages.has_failed(0x3000, 0x1000));
        assert!(!pages.has_failed(0x4000, 0x1000));
        pages.unpoison(0x3000, 0x1000)?;
        assert!(!pages.has_failed(0, pages.size()));
        // A repair that was not completed.
        pages.set_failed(0x3001, 0x1fff)?;
        assert!(pages.has_failed(0x4000, 0x1000) && !pages.has_failed(0x3000, 0x1000));
        pages.unpoison(0x4000, 0x1000)?;
        assert!(!pages.has_failed(0, pages.size()));
        assert!(pages.set_failed(0, pages.size() + 1).is_err());
        assert!(is_writable(0, pages.size()));
        Ok(())
    }
}
