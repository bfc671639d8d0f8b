// SPDX-License-Identifier: GPL-2.0

//! Mappings of physical memory that is not System RAM, with and without `struct page`s.
//!
//! Neither kind is managed by a device: the value owns the mapping, and may outlive the binding of
//! a driver. A mapping owns the reservation of what it maps, so that the range cannot be mapped or
//! used a second time meanwhile.
//!
//! Memory may fail while it is mapped. The architecture then takes the page out of the linear
//! mapping, so that it is not read by speculation, and an ordinary access to it is an oops.
//! [`PagemapInner`] remembers which pages that are ([`PagemapInner::first_failed`]), until they are
//! [repaired](PagemapInner::unpoison). They are put back before the range is unmapped: a page that
//! is missing then would still be missing when the range is mapped again.
//!
//! References to fs-dax pages do not keep the pgmap. [`PagemapInner`] therefore records which of
//! its pages were ever [exposed](Exposure), and [`fs_dax`](crate::abstractions::kernel::fs::dax) unmaps the range only
//! when all of these are idle.
//!
//! C headers: [`include/linux/memremap.h`](srctree/include/linux/memremap.h),
//! [`include/linux/io.h`](srctree/include/linux/io.h)

use crate::abstractions::{
    bindings,
    kernel::{
        badblocks::Badblocks,
        block::gendisk::DiskState,
        percpu_ref::Ref,
        pmem_slice::{
            PmemSlice,
            WritableSlice, //
        }, //
    },
    kernel_ext::io::resource::{
        MemRegion,
        RegionName, //
    }, //
};
use core::{
    ops::Range,
    ptr::{
        addr_of,
        addr_of_mut,
        NonNull, //
    },
};
use kernel::{
    container_of,
    error::from_err_ptr,
    io::{
        PhysAddr,
        ResourceSize, //
    },
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

mod access_state;
mod exposure;
mod plain;
mod usage;

pub(in crate::abstractions) use crate::abstractions::kernel::memremap::exposure::{
    Exposure,
    Pages, //
};
pub use crate::abstractions::kernel::memremap::plain::Memremap;
pub use crate::abstractions::kernel::memremap::usage::PagesInUse;
pub(in crate::abstractions) use crate::abstractions::kernel::memremap::usage::{
    Use,
    UsedPage, //
};

/// The size of a `struct page` in bytes.
pub const PAGE_STRUCT_SIZE: usize = size_of::<bindings::page>();

/// A NUMA node, or "no node in particular".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(pub(in crate::abstractions) c_int);

impl Node {
    /// No node in particular.
    pub const NONE: Self = Self(bindings::NUMA_NO_NODE);

    /// Returns the node that the firmware says memory belongs to, which need not be online.
    pub fn of_memory(start: PhysAddr) -> Self {
        // SAFETY: May be called for any address.
        Self(unsafe { bindings::phys_to_target_node(start) })
    }

    /// Returns the node that is online and nearest to this one.
    pub fn nearest_online(self) -> Self {
        // SAFETY: May be called for any node that there may be, or none.
        Self(unsafe { bindings::numa_map_to_online_node(self.0) })
    }
}

/// What a [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap) is to be made of: a physical range, where its
/// `struct page`s live, and where its data begins.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::memremap::PagemapConfig;
///
/// assert!(PagemapConfig::new(4 << 30, 1 << 30).is_ok());
/// assert!(PagemapConfig::new(4 << 30, 0).is_err());
/// assert!(PagemapConfig::new(4 << 30, u64::MAX).is_err());
/// ```
///
/// # Invariants
///
/// `start..start + len` does not wrap and is the only range of `pgmap`; `pgmap` is otherwise
/// zeroed, apart from what describes the memory for the `struct page`s. `data_offset` is less than
/// `len`, and the pages from there on are not used for `struct page`s.
pub struct PagemapConfig {
    pgmap: bindings::dev_pagemap,
    start: PhysAddr,
    len: ResourceSize,
    data_offset: ResourceSize,
}

impl PagemapConfig {
    /// A range of `len` bytes from `start` on, whose `struct page`s live in System RAM. All of it
    /// is data.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is empty or wraps.
    pub fn new(start: PhysAddr, len: ResourceSize) -> Result<Self> {
        let mut pgmap = bindings::dev_pagemap {
            nr_range: 1,
            ..Default::default()
        };
        let end = last(start, len)?;
        // SAFETY: With one range it is this member of the union that is used.
        unsafe { *pgmap.__bindgen_anon_1.range.as_mut() = bindings::range { start, end } };

        // INVARIANT: As just set.
        Ok(Self {
            pgmap,
            start,
            len,
            data_offset: 0,
        })
    }

    /// Takes over what C code has filled in.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is not exactly one range, if it is empty or wraps, or if there is no
    /// data in it.
    ///
    /// # Safety
    ///
    /// `pgmap` must have been zeroed before. If it describes an altmap, this must be in the first
    /// `data_offset` bytes of the range, which must be free to be used for it.
    pub(in crate::abstractions) unsafe fn from_raw(
        pgmap: bindings::dev_pagemap,
        data_offset: ResourceSize,
    ) -> Result<Self> {
        if pgmap.nr_range != 1 {
            return Err(EINVAL);
        }

        // SAFETY: With one range it is this member of the union that is used.
        let range = unsafe { *pgmap.__bindgen_anon_1.range.as_ref() };
        let len = range
            .end
            .checked_sub(range.start)
            .and_then(|len| len.checked_add(1))
            .ok_or(EINVAL)?;
        last(range.start, len)?;
        if data_offset >= len {
            return Err(EINVAL);
        }

        // INVARIANT: By the checks above, and by the safety requirements.
        Ok(Self {
            pgmap,
            start: range.start,
            len,
            data_offset,
        })
    }
}

/// The last address of a range.
fn last(start: PhysAddr, len: ResourceSize) -> Result<PhysAddr> {
    len.checked_sub(1)
        .and_then(|rest| start.checked_add(rest))
        .ok_or(EINVAL)
}

/// What the memory management asks of the owner of a [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap).
pub trait PagemapOperations: Send + Sync + 'static {
    /// The `len` bytes from `offset` bytes into the data on have failed. Tells the users of them.
    ///
    /// Called by `memory_failure()` in process context, may sleep; it holds `mf_mutex` and a
    /// reference to the pgmap. `flags` are the `MF_*` ones of `include/linux/mm.h`, to be passed
    /// on.
    ///
    /// # Errors
    ///
    /// With [`EOPNOTSUPP`] the caller falls back to killing all processes that map the memory.
    /// After any other error the memory stays in the linear mapping.
    fn memory_failure(&self, offset: u64, len: u64, flags: c_int) -> Result;

    /// The `len` bytes from `offset` bytes into the data on count as
    /// [failed](PagemapInner::has_failed) from here on. Called after [`Self::memory_failure`], if
    /// the caller goes on to take them out of the linear mapping.
    fn has_failed(&self, offset: u64, len: u64);
}

/// A reference to a pgmap, which keeps it: disks and DAX devices have one each.
pub type PagemapRef<T> = Ref<PagemapInner<T>>;

/// A pgmap, as its owner ([`fs::dax::Pagemap`]) and the references to it share it: the
/// `struct page`s of a physical range (`MEMORY_DEVICE_FS_DAX`), and its mapping in the linear map
/// of the kernel.
///
/// Offsets are those of the data: what is before it in the range, such as `struct page`s that live
/// there, is not accessible.
///
/// [`fs::dax::Pagemap`]: crate::abstractions::kernel::fs::dax::Pagemap
///
/// # Invariants
///
/// `pgmap` was passed to `memremap_pages`, which mapped the range. The data, `len` bytes, is mapped
/// at `data`, is at `phys` in physical memory, and has `struct page`s. `pages` are those that it
/// has whole, if it starts at one. All of its pages whose frame numbers were given away are in
/// `pages.exposure`, and those that were taken out of the mapping because they have failed are in
/// `failed`.
#[pin_data]
pub struct PagemapInner<T: PagemapOperations> {
    #[pin]
    pgmap: Opaque<bindings::dev_pagemap>,
    /// Where the data is in physical memory.
    phys: PhysAddr,
    len: usize,
    /// The pages that have failed, counted from the start of the data.
    #[pin]
    failed: Badblocks,
    ops: T,
    memmap_on_media: bool,
    data: NonNull<u8>,
    pub(in crate::abstractions) pages: Pages,
    /// The disk through which file systems and device-mapper find the DAX device.
    host: SetOnce<Arc<DiskState>>,
    // Goes last.
    reservation: MemRegion,
}

// SAFETY: A pgmap may be used and taken down by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: PagemapOperations> Send for PagemapInner<T> {}

// SAFETY: Through a shared reference only slices are made, and `T` is `Sync`.
unsafe impl<T: PagemapOperations> Sync for PagemapInner<T> {}

impl<T: PagemapOperations> PagemapInner<T> {
    const OPS: bindings::dev_pagemap_ops = bindings::dev_pagemap_ops {
        memory_failure: Some(Self::memory_failure_callback),
        folio_free: None,
        migrate_to_ram: None,
        folio_split: None,
    };

    /// Makes the `struct page`s of a range and maps it. May sleep, takes the memory hotplug lock.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is not in the reservation, or is not aligned as the memory map needs
    /// it (`memremap_compat_align()`), [`ENOMEM`], and what the architecture fails with.
    ///
    /// # Safety
    ///
    /// [`Self::unmap`] must be called before the value is dropped.
    pub(in crate::abstractions) unsafe fn new(
        config: PagemapConfig,
        reservation: MemRegion,
        node: Node,
        ops: T,
    ) -> Result<impl PinInit<Self, Error>> {
        let PagemapConfig {
            pgmap,
            start,
            len,
            data_offset,
        } = config;
        // SAFETY: A constant of the architecture.
        let align = unsafe { bindings::memremap_compat_align() } as ResourceSize;
        let misaligned = (start | len) & align.wrapping_sub(1) != 0;
        if misaligned || !reservation.contains(start, len) {
            return Err(EINVAL);
        }
        // No wrap-around: the offset is less than the length of a range that does not wrap.
        let phys = start.wrapping_add(data_offset);
        let data_len = usize::try_from(len.wrapping_sub(data_offset))?;
        let data_offset = usize::try_from(data_offset)?;
        let frames = frames(phys, data_len);
        let exposure = Exposure::new(&frames)?;
        let first_pfn = usize::try_from(frames.start)?;
        let nr_pages = if phys % (PAGE_SIZE as u64) == 0 {
            data_len >> PAGE_SHIFT
        } else {
            0
        };
        let memmap_on_media = pgmap.flags & bindings::PGMAP_ALTMAP_VALID != 0;

        Ok(try_pin_init!(&this in Self {
            pgmap: Opaque::new(pgmap),
            phys,
            len: data_len,
            failed <- Badblocks::new(),
            ops,
            memmap_on_media,
            host: SetOnce::new(),
            reservation,
            // INVARIANT: `memremap_pages` has succeeded. By the invariant of `PagemapConfig` the
            // data is what follows the offset.
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
            // ones, and the record is for all frames of the data. It is not used after `unmap`. The
            // field `data` is initialised.
            pages: unsafe { Pages::new((*this.as_ptr()).data, first_pfn, nr_pages, exposure) },
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

    /// Waits for what may still read a `struct page` after it has put the last reference, or given up
    /// the last entry. Sleeps.
    pub(in crate::abstractions) fn synchronize(&self) {
        if !self.is_exposed() {
            return;
        }
        // The thread that put the last reference to a page may still read its `struct page`
        // (`free_zone_device_folio()`), in a section that can be preempted, but does not sleep.
        // Lockless walkers of page tables are in RCU read-side sections. And a page may have been
        // seen idle that `dax_delete_mapping_range()` was just letting go of, under the lock of its
        // page cache.
        // SAFETY: May sleep here.
        unsafe {
            bindings::synchronize_rcu();
            bindings::synchronize_rcu_tasks();
        }
    }

    /// Takes pages and mapping away. Sleeps: waits for references to the pgmap, and takes the memory
    /// hotplug lock.
    ///
    /// # Safety
    ///
    /// No page may be in use, nor have been since [`Self::synchronize`]. No translation may be under
    /// way or begin, and nothing may have an address of the data. The value must not be used after
    /// this, but to be dropped.
    pub(in crate::abstractions) unsafe fn unmap(&self) {
        // They are still bad, but there is no user left, and they go at once.
        while let Some(run) = self.failed.check(0, u64::MAX) {
            // The first page of a run can always be taken off.
            let _ = self.map_again(run.first);
        }

        // SAFETY: By the type invariant `memremap_pages` has succeeded, and by the safety
        // requirements it is undone once.
        unsafe { bindings::memunmap_pages(self.pgmap.get()) };
    }

    /// Says through which disk the DAX device of this memory is found.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is one already.
    pub(in crate::abstractions) fn set_host(&self, host: Arc<DiskState>) -> Result {
        if self.host.populate(host) {
            Ok(())
        } else {
            Err(EBUSY)
        }
    }

    /// Returns the disk through which the DAX device of this memory is found.
    pub(in crate::abstractions) fn host(&self) -> Option<&DiskState> {
        self.host.as_ref().map(|host| &**host)
    }

    /// Returns the C structure, to be compared.
    pub(in crate::abstractions) fn as_raw(&self) -> *const bindings::dev_pagemap {
        self.pgmap.get()
    }

    /// Refuses translations that ask for a page frame number from here on. Callable from any
    /// context. It cannot be undone.
    pub fn refuse_mappings(&self) {
        self.pages.gate.close_to_mappings();
    }

    /// Returns the operations that the memory management calls.
    pub fn ops(&self) -> &T {
        &self.ops
    }

    /// Returns where the data is in physical memory.
    pub fn phys(&self) -> PhysAddr {
        self.phys
    }

    /// Returns the data, to be read. Reading pages that [have failed](Self::has_failed) is an
    /// error.
    #[inline]
    pub fn slice(&self) -> PmemSlice<'_> {
        // SAFETY: By the type invariant the bytes are mapped for as long as `self` lives.
        unsafe { PmemSlice::from_raw_parts(self.data, self.len) }
    }

    /// Returns all of the data, to be written to, or [`None`] if any page has failed. Callable from
    /// any context.
    ///
    /// A page may fail between this look and the write, see [`WritableSlice`].
    #[inline]
    pub fn writable_all(&self) -> Option<WritableSlice<'_>> {
        if !self.is_sound() {
            return None;
        }
        // SAFETY: By the type invariant no page was taken out of the mapping.
        Some(unsafe { WritableSlice::new(self.slice()) })
    }

    /// Returns the `len` bytes from `offset` on, to be written to, or [`None`] if a page that they
    /// are in has failed, or they are not all in the data. Callable from any context.
    ///
    /// A page may fail between this look and the write, see [`WritableSlice`].
    #[inline]
    pub fn writable(&self, offset: usize, len: usize) -> Option<WritableSlice<'_>> {
        let slice = self.slice().get(offset, len)?;
        if !self.is_sound() && self.has_failed(offset, len) {
            return None;
        }

        // SAFETY: By the type invariant all pages that were taken out of the mapping are in the
        // list that was looked at.
        Some(unsafe { WritableSlice::new(slice) })
    }

    /// Returns whether no page has failed. Callable from any context.
    #[inline]
    pub fn is_sound(&self) -> bool {
        self.failed.is_empty()
    }

    /// Returns the offset of the first page that the `len` bytes from `offset` on are in that has
    /// failed, and was not made good since. It may be one before `offset`: a run of failed pages is
    /// found by its start. Callable from any context.
    #[cold]
    pub fn first_failed(&self, offset: usize, len: usize) -> Option<usize> {
        let first = offset >> PAGE_SHIFT;
        let beyond = offset.saturating_add(len).div_ceil(PAGE_SIZE);
        let run = self
            .failed
            .check(first as u64, beyond.saturating_sub(first) as u64)?;

        Some((run.first as usize) << PAGE_SHIFT)
    }

    /// Returns whether any page that the `len` bytes from `offset` on are in has failed. Callable
    /// from any context.
    pub fn has_failed(&self, offset: usize, len: usize) -> bool {
        self.first_failed(offset, len).is_some()
    }

    /// Returns the page frames of the data.
    pub(in crate::abstractions) fn frames(&self) -> Range<u64> {
        frames(self.phys, self.len)
    }

    /// Returns whether the `struct page`s are on the media, so that they go when these go.
    pub fn memmap_is_on_media(&self) -> bool {
        self.memmap_on_media
    }

    /// Returns whether any page was ever exposed.
    pub fn is_exposed(&self) -> bool {
        self.pages
            .exposure
            .next(self.frames().start as usize)
            .is_some()
    }

    /// Returns how many bytes have ever been exposed, in whole chunks of 2 MiB.
    pub fn exposed_bytes(&self) -> u64 {
        self.pages.exposure.bytes()
    }

    /// Returns the first page from frame `from` on that is in use. Does not sleep; takes as long as
    /// there are exposed pages. Only for when no translation can begin any more: with faults,
    /// folios come and go.
    pub(in crate::abstractions) fn first_used(&self, from: u64) -> Option<UsedPage<'_>> {
        let frames = self.frames();
        let mut next = from.max(frames.start);

        loop {
            let pfn = self.pages.exposure.next(usize::try_from(next).ok()?)? as u64;
            if pfn >= frames.end {
                return None;
            }

            // SAFETY: The frame is one of the data, which has `struct page`s. All pages of a folio
            // belong to one file, so the folio is in the data too. Its size is only read, and is
            // right as long as no folio is being made.
            let (found, page, first, pages) = unsafe {
                let found = Use::of(pfn as c_ulong);
                let page = addr_of_mut!((*found.folio).__bindgen_anon_1.page);
                (
                    found,
                    page,
                    bindings::page_to_pfn(page) as u64,
                    bindings::folio_nr_pages(found.folio) as u64,
                )
            };
            let end = first.saturating_add(pages).max(pfn.saturating_add(1));

            if found.references != 0 || found.is_named() {
                // SAFETY: As above; `self` is borrowed for as long as the result lives.
                return Some(unsafe {
                    UsedPage::new(NonNull::new(page)?, first..end, found.references)
                });
            }
            next = end;
        }
    }

    /// Counts the pages that are in use, among `limit` exposed ones from page `first` of the data
    /// on. Returns the page to go on with too, if there are more. Does not sleep; takes as long as
    /// there are pages to look at. While translations are under way the numbers may be those of no
    /// moment.
    pub fn count_used(&self, first: u64, limit: u64) -> (PagesInUse, Option<u64>) {
        let frames = self.frames();
        let mut count = PagesInUse::default();
        let mut next = frames.start.saturating_add(first);

        for _ in 0..limit {
            let found = usize::try_from(next)
                .ok()
                .and_then(|next| self.pages.exposure.next(next))
                .filter(|pfn| frames.contains(&(*pfn as u64)));
            let Some(pfn) = found else {
                return (count, None);
            };
            // SAFETY: The frame is one of the data, which has `struct page`s.
            let found = unsafe { Use::of(pfn as c_ulong) };
            if found.references != 0 {
                count.referenced = count.referenced.saturating_add(1);
            } else if found.is_named() {
                count.cached = count.cached.saturating_add(1);
            }
            next = (pfn as u64).saturating_add(1);
        }
        (count, Some(next.saturating_sub(frames.start)))
    }

    /// Refuses all translations from here on. Callable from any context. It cannot be undone.
    pub(in crate::abstractions) fn close_gate(&self) {
        self.pages.gate.close();
    }

    /// Writes the CPU caches back for these page frames, as far as they are in the data and have
    /// not failed.
    pub fn write_back(&self, pfns: Range<u64>) {
        let frames = self.frames();
        let (start, end) = (pfns.start.max(frames.start), pfns.end.min(frames.end));

        // No overflow: the frames are in the data, whose length in bytes is a `usize`.
        let mut offset = (start.saturating_sub(frames.start) << PAGE_SHIFT) as usize;
        let mut rest = (end.saturating_sub(start) << PAGE_SHIFT) as usize;
        while rest > 0 {
            let len = if self.failed.is_empty() {
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

    /// Takes the hwpoison mark off the pages that are wholly in the `len` bytes from `offset` on,
    /// and puts those that had one or were reported as failed back into the linear mapping.
    ///
    /// For use after the poison of the medium itself was cleared, or the next access raises another
    /// machine check. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if one of the pages cannot be taken off the list of those that have failed, which
    /// is full; and [`EINVAL`] if they are not all in the data.
    pub fn unpoison(&self, offset: usize, len: usize) -> Result {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.len) else {
            return Err(EINVAL);
        };
        let first = offset.div_ceil(PAGE_SIZE) as u64;
        let beyond = (end >> PAGE_SHIFT) as u64;

        for page in first..beyond {
            let has_failed = self.failed.check(page, 1).is_some();
            let pfn = self.frames().start.wrapping_add(page) as c_ulong;

            // SAFETY: The page frame is in the data, so it has a `struct page`, and the folio that
            // the page is in does too.
            let was_marked = unsafe {
                // Whichever page of a folio has failed, it is the first one that is marked
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
                self.map_again(page)?;
            }
        }
        Ok(())
    }

    /// Puts a page, counted from the start of the data, back into the linear mapping.
    fn map_again(&self, page: u64) -> Result {
        let pfn = self.frames().start.wrapping_add(page) as c_ulong;

        // SAFETY: The page frame is in the data, so it has a place in the linear mapping. If it is
        // there already, nothing changes.
        unsafe { bindings::clear_mce_nospec(pfn) };
        self.failed.clear(page, 1)
    }

    /// # Safety
    ///
    /// For the memory management only: `pgmap` must be that of a `PagemapInner<T>`, with a
    /// reference held.
    unsafe extern "C" fn memory_failure_callback(
        pgmap: *mut bindings::dev_pagemap,
        pfn: c_ulong,
        nr_pages: c_ulong,
        flags: c_int,
    ) -> c_int {
        // SAFETY: By the safety requirements the pgmap is a field of `Self`, and `memunmap_pages`
        // has not returned yet.
        let inner = unsafe { &*container_of!(Opaque::cast_from(pgmap), Self, pgmap) };

        // What is before the data is no concern of its users; the memory management knows what to
        // do then.
        let offset = ((pfn as u64) << PAGE_SHIFT).checked_sub(inner.phys);
        let len = (nr_pages as u64).checked_mul(PAGE_SIZE as u64);
        let (Some(offset), Some(len)) = (offset, len) else {
            return EOPNOTSUPP.to_errno();
        };

        // The caller takes the pages out of the linear mapping only if this does not fail
        // (`uc_decode_notifier()`). So they are remembered first, and forgotten again if it does.
        let first = offset >> PAGE_SHIFT;
        let known = inner.failed.check(first, nr_pages as u64).is_some();
        let remembered = known || inner.failed.add(first, nr_pages as u64).is_ok();

        let mut result = inner.ops.memory_failure(offset, len, flags);
        // The memory management kills the users of pages that the page cache of a file names, and
        // fails otherwise (`mf_generic_kill_procs()`).
        // SAFETY: The page frame is one of the pgmap, which the caller has a reference to.
        if result == Err(EOPNOTSUPP) && !unsafe { Use::of(pfn) }.has_mapping() {
            result = Err(EBUSY);
        }
        let goes = result.is_ok() || result == Err(EOPNOTSUPP);
        if goes && !remembered {
            // What is not remembered has to stay where it is.
            result = Err(ENOSPC);
        } else if goes {
            inner.ops.has_failed(offset, len);
        } else if !known {
            // If it cannot be taken off the list, it is neither read nor written.
            let _ = inner.failed.clear(first, nr_pages as u64);
        }

        match result {
            Ok(()) => 0,
            Err(err) => err.to_errno(),
        }
    }
}

/// The page frames of the `len` bytes from `phys` on.
fn frames(phys: PhysAddr, len: usize) -> Range<u64> {
    (phys >> PAGE_SHIFT)..(phys.saturating_add(len as u64) >> PAGE_SHIFT)
}

#[kunit_tests(pmem_rs_memremap)]
mod tests {
    use super::*;
    use crate::abstractions::{
        kernel::fs::dax::testing::TestPagemap,
        kernel_ext::io::resource::free_range, //
    };
    use kernel::{
        str::CString,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    // A section of the memory map, so that all architectures can map it.
    const LEN: ResourceSize = 128 << 20;

    /// Remembers what failed last.
    struct LastFailure {
        offset: Atomic<u64>,
        len: Atomic<u64>,
        /// How many bytes have failed.
        listed: Atomic<u64>,
        /// What to fail with, if not 0.
        errno: Atomic<i32>,
    }

    impl PagemapOperations for Arc<LastFailure> {
        fn memory_failure(&self, offset: u64, len: u64, _flags: c_int) -> Result {
            self.offset.store(offset, Relaxed);
            self.len.store(len, Relaxed);
            match self.errno.load(Relaxed) {
                0 => Ok(()),
                errno => Err(Error::from_errno(errno)),
            }
        }

        fn has_failed(&self, _offset: u64, len: u64) {
            self.listed.fetch_add(len, Relaxed);
        }
    }

    fn last_failure() -> Result<Arc<LastFailure>> {
        Ok(Arc::new(
            LastFailure {
                offset: Atomic::new(u64::MAX),
                len: Atomic::new(0),
                listed: Atomic::new(0),
                errno: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    fn reserve(start: PhysAddr, len: ResourceSize) -> Result<MemRegion> {
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)
    }

    /// The pages of a range where there is no memory; nothing may be read or written.
    fn pages(start: PhysAddr, data_offset: ResourceSize) -> Result<TestPagemap<Arc<LastFailure>>> {
        let mut config = PagemapConfig::new(start, LEN)?;
        config.data_offset = data_offset;

        TestPagemap::new(config, reserve(start, LEN)?, last_failure()?)
    }

    #[test]
    fn a_range_must_be_there_and_not_wrap() {
        assert!(PagemapConfig::new(0, 0).is_err());
        assert!(PagemapConfig::new(u64::MAX, 2).is_err());
        assert!(PagemapConfig::new(u64::MAX, 1).is_ok());
    }

    #[test]
    fn pages_come_and_go_with_their_reservation() -> Result {
        let start = free_range(LEN)?;

        for _ in 0..3 {
            let pages = pages(start, 0)?;
            assert_eq!(pages.slice().len() as u64, LEN);
            assert_eq!(pages.phys(), start);
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

        assert_eq!(pages.phys(), start + (2 << 20));
        assert_eq!(pages.slice().len() as u64, LEN - (2 << 20));
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
        // And the reservation is not lost.
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
        let report = |phys: PhysAddr, nr_pages| {
            // SAFETY: The pgmap is that of `pages`, which is not dropped meanwhile.
            unsafe {
                PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                    pages.pgmap.get(),
                    (phys >> PAGE_SHIFT) as c_ulong,
                    nr_pages,
                    0,
                )
            }
        };

        assert_eq!(report(start + (2 << 20) + 0x3000, 2), 0);
        assert_eq!(pages.ops().offset.load(Relaxed), 0x3000);
        assert_eq!(pages.ops().len.load(Relaxed), 0x2000);
        assert!(pages.has_failed(0x4fff, 1));
        assert_eq!(report(start, 1), EOPNOTSUPP.to_errno());
        Ok(())
    }

    #[test]
    fn pages_that_stay_mapped_have_not_failed() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let pfn = pages.frames().start;
        let report = |errno: i32| {
            pages.ops().errno.store(errno, Relaxed);
            // SAFETY: As above.
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
        // No file has the page, so the memory management would do nothing either.
        assert_eq!(report(EOPNOTSUPP.to_errno()), EBUSY.to_errno());
        assert!(!pages.has_failed(0x3000, 0x1000));
        assert_eq!(pages.ops().listed.load(Relaxed), 0);

        assert_eq!(report(0), 0);
        assert_eq!(pages.ops().listed.load(Relaxed), 0x1000);
        // It went the first time, and does not come back because of this.
        assert_eq!(report(EIO.to_errno()), EIO.to_errno());
        assert!(pages.has_failed(0x3000, 0x1000));
        Ok(())
    }

    #[test]
    fn failed_pages_are_remembered_until_they_are_good() -> Result {
        let start = free_range(LEN)?;
        let pages = pages(start, 2 << 20)?;
        let pfn = pages.frames().start;
        // SAFETY: As above.
        let report = |page: u64| unsafe {
            PagemapInner::<Arc<LastFailure>>::memory_failure_callback(
                pages.pgmap.get(),
                (pfn + page) as c_ulong,
                1,
                0,
            )
        };

        let is_writable = |offset, len| pages.writable(offset, len).is_some();

        assert!(!pages.has_failed(0, pages.slice().len()));
        assert!(is_writable(0, pages.slice().len()));
        assert!(!is_writable(0, pages.slice().len() + 1));
        assert_eq!(report(3), 0);
        assert_eq!(report(4), 0);
        assert!(!is_writable(0, pages.slice().len()));
        assert!(!is_writable(0x3fff, 1));
        assert!(is_writable(0x2000, 0x1000));
        assert!(is_writable(0x5000, 0x1000));
        assert!(pages.has_failed(0x3fff, 1));
        assert!(pages.has_failed(0x2fff, 2));
        assert!(!pages.has_failed(0x2000, 0x1000));
        assert!(!pages.has_failed(0x5000, 0x1000));

        // Only pages that are good as a whole are good.
        pages.unpoison(0x3001, 0x1fff)?;
        assert!(pages.has_failed(0x3000, 0x1000));
        assert!(!pages.has_failed(0x4000, 0x1000));
        pages.unpoison(0x3000, 0x1000)?;
        assert!(!pages.has_failed(0, pages.slice().len()));
        assert!(is_writable(0, pages.slice().len()));
        Ok(())
    }
}
