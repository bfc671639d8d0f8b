// SPDX-License-Identifier: GPL-2.0

//! Memory, and files that use it, for the tests of several files.

use super::{
    entry::Entry,
    mapping::FileMapping,
    states::Pagemap, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    memremap::{
        Failure,
        PagemapConfig,
        PagemapInner,
        PagemapOperations, //
    },
    numa::Node,
    percpu_ref::Counted, //
};
use crate::abstractions::kernel_ext::{
    io::resource::{
        free_range,
        MemRegion, //
    },
    workqueue::OwnedQueue, //
};
use core::{
    ops::Deref,
    ptr::{
        null_mut,
        without_provenance_mut, //
    }, //
};
use kernel::{
    error::to_result,
    io::ResourceSize,
    page::PAGE_SHIFT,
    prelude::*,
    str::CString,
    sync::LockClassKey,
    types::Opaque, //
};

/// A pgmap and the queue that it needs.
pub(in crate::abstractions) struct TestPagemap<T: PagemapOperations> {
    // Dropped first: the drop of the queue waits for the pgmap.
    pub(in crate::abstractions) pages: Pagemap<T>,
    pub(in crate::abstractions) queue: Counted<OwnedQueue>,
}

impl<T: PagemapOperations> TestPagemap<T> {
    /// Maps a range.
    pub(in crate::abstractions) fn new(
        config: PagemapConfig<'_>,
        reservation: MemRegion,
        ops: T,
    ) -> Result<Self> {
        let queue = Counted::new(OwnedQueue::for_io(c"pmem_rs_test")?)?;
        let reference = queue.try_get().ok_or(EINVAL)?;

        Ok(Self {
            pages: Pagemap::new(config, reservation, Node(0), Ok::<_, Error>(ops), reference)?,
            queue,
        })
    }
}

impl<T: PagemapOperations> Deref for TestPagemap<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        &self.pages
    }
}

/// Memory whose failures are not handled.
pub(in crate::abstractions) struct Silent;

impl PagemapOperations for Silent {
    fn memory_failure(&self, _failure: &Failure<'_>) -> Result {
        Err(EOPNOTSUPP)
    }

    fn record_failure(&self, _offset: u64, _len: u64) {}
}

/// A section of the memory map on x86-64, and on arm64 with pages of 4 or 16 KiB. A range of this
/// size can be mapped with larger pages too.
pub(in crate::abstractions) const LEN: ResourceSize = 128 << 20;

/// Makes pages of a range without memory. It must not be read or written.
pub(in crate::abstractions) fn pages() -> Result<TestPagemap<Silent>> {
    pages_with(|config| config, Silent)
}

/// Handles every failure.
pub(in crate::abstractions) struct Handling;

impl PagemapOperations for Handling {
    fn memory_failure(&self, _failure: &Failure<'_>) -> Result {
        Ok(())
    }

    fn record_failure(&self, _offset: u64, _len: u64) {}
}

/// As [`pages`], with failures that are handled.
pub(in crate::abstractions) fn pages_that_may_fail() -> Result<TestPagemap<Handling>> {
    pages_with(|config| config, Handling)
}

/// As [`pages`], but the `struct page`s are said to be on the medium.
pub(in crate::abstractions) fn pages_on_medium() -> Result<TestPagemap<Silent>> {
    pages_with(PagemapConfig::treated_as_on_medium, Silent)
}

fn pages_with<T: PagemapOperations>(
    change: impl FnOnce(PagemapConfig<'static>) -> PagemapConfig<'static>,
    ops: T,
) -> Result<TestPagemap<T>> {
    let start = free_range(LEN)?;
    let name = CString::try_from_fmt(fmt!("pmem_rs test"))?;

    TestPagemap::new(
        change(PagemapConfig::new(start, LEN)?),
        MemRegion::request(start, LEN, name)?,
        ops,
    )
}

/// Returns whether the range of a pgmap is still reserved, as that of a leaked one is.
pub(super) fn is_reserved(start: u64) -> Result<bool> {
    let name = CString::try_from_fmt(fmt!("pmem_rs test"))?;

    Ok(MemRegion::request(start, 4096, name).is_err())
}

/// Writes to the memory map of a leaked range, as a fault between `dax_read_unlock` and
/// `dax_insert_entry` does.
pub(super) fn use_page(start: u64) {
    // SAFETY: The range was leaked, so its pages stay until reboot. No other test uses it.
    unsafe {
        let page = bindings::pfn_to_page((start >> PAGE_SHIFT) as c_ulong);
        (*page)._refcount.counter = 1;
        (*page)._refcount.counter = 0;
    }
}

/// A page of a pgmap that has a reference.
pub(super) struct Referenced(*mut bindings::page);

impl Referenced {
    pub(super) fn new<T: PagemapOperations>(pages: &PagemapInner<T>, pgoff: u64) -> Self {
        // SAFETY: The frame has a page, which nothing else knows.
        let page = unsafe { bindings::pfn_to_page((pages.frames().start + pgoff) as c_ulong) };
        // SAFETY: The page stays until the test is over; the count is that of a page that was
        // just mapped.
        unsafe { (*page)._refcount.counter = 1 };
        Self(page)
    }
}

impl Drop for Referenced {
    fn drop(&mut self) {
        // SAFETY: The page is there, since it was in use until now.
        unsafe { (*self.0)._refcount.counter = 0 };
    }
}

/// Associates a page frame of a pgmap with a file, or with none.
pub(super) fn associate(frame: u64, mapping: *mut bindings::address_space) {
    // SAFETY: The frame has a page, which nothing else knows.
    unsafe {
        let folio: *mut bindings::folio = bindings::pfn_to_page(frame as c_ulong).cast();
        (*folio).__bindgen_anon_1.__bindgen_anon_1.mapping = mapping;
    }
}

/// Associates a page frame of a pgmap with `share` files. The folio points to none of them.
pub(super) fn associate_with_several(frame: u64, share: c_ulong) {
    associate(frame, null_mut());
    // SAFETY: The frame has a page, which nothing else knows.
    unsafe {
        let folio: *mut bindings::folio = bindings::pfn_to_page(frame as c_ulong).cast();
        (*folio)
            .__bindgen_anon_1
            .__bindgen_anon_1
            .__bindgen_anon_2
            .share = share;
    }
}

/// A DAX file that is in no file system, with at most one page.
///
/// It has the fields of an inode that the functions for the page cache of a DAX file use.
pub(super) struct TestFile(Pin<KBox<Opaque<bindings::inode>>>);

impl TestFile {
    /// The page of the file that has an entry.
    const INDEX: c_ulong = 7;

    pub(super) fn new() -> Result<Self> {
        let init = Opaque::ffi_init(|inode: *mut bindings::inode| {
            // SAFETY: `inode` is valid for writing, and known to nothing else. `inode_init_once()`
            // initialises all of it.
            unsafe {
                bindings::inode_init_once(inode);
                let mapping = &raw mut (*inode).i_data;
                (*inode).i_mapping = mapping;
                (*inode).i_flags = bindings::S_DAX;
                (*mapping).host = inode;
                // As `xa_store()` needs it, without flags: the lock of a page cache is taken in
                // interrupts.
                bindings::xa_init_flags(&raw mut (*mapping).i_pages, 0);
                init_rwsem(&raw mut (*inode).i_rwsem, kernel::static_lock_class!());
                init_rwsem(
                    &raw mut (*mapping).invalidate_lock,
                    kernel::static_lock_class!(),
                );
            }
        });

        Ok(Self(KBox::pin_init(init, GFP_KERNEL)?))
    }

    fn raw(&self) -> *mut bindings::address_space {
        // SAFETY: The inode is valid.
        unsafe { &raw mut (*self.0.get()).i_data }
    }

    fn entries(&self) -> *mut bindings::xarray {
        // SAFETY: The inode is valid.
        unsafe { &raw mut (*self.raw()).i_pages }
    }

    pub(super) fn mapping(&self) -> FileMapping<'_> {
        // SAFETY: The mapping is that of the inode, which `self` owns.
        unsafe { FileMapping::from_raw(self.raw()) }
    }

    /// Stores the entry of the page.
    pub(super) fn store(&self, frame: u64, is_locked: bool) -> Result {
        let entry = without_provenance_mut(Entry::value_of(frame, is_locked));

        // SAFETY: The array was initialised. The entry is a value. The number of pages is changed
        // under the lock of the array elsewhere, but nothing else knows the file.
        unsafe {
            let old = bindings::xa_store(self.entries(), Self::INDEX, entry, bindings::GFP_KERNEL);
            (*self.raw()).nrpages = 1;
            to_result(bindings::xa_err(old))
        }
    }

    /// Marks the entry of the page as dirty.
    pub(super) fn set_dirty(&self) {
        let mark = bindings::PAGECACHE_TAG_DIRTY;

        // SAFETY: The array was initialised.
        unsafe { bindings::xa_set_mark(self.entries(), Self::INDEX, mark) };
    }

    /// Returns whether the entry of the page is there, and marked as dirty.
    pub(super) fn is_dirty(&self) -> bool {
        let mark = bindings::PAGECACHE_TAG_DIRTY;

        // SAFETY: The array was initialised.
        unsafe { bindings::xa_get_mark(self.entries(), Self::INDEX, mark) }
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        // SAFETY: The array was initialised, and is not used after this.
        unsafe { bindings::xa_destroy(self.entries()) };
    }
}

/// Initialises a lock.
///
/// # Safety
///
/// `sem` must be valid for writing, and known to nothing else.
unsafe fn init_rwsem(sem: *mut bindings::rw_semaphore, class: Pin<&'static LockClassKey>) {
    // SAFETY: By the safety requirements. The class is static.
    unsafe { bindings::__init_rwsem(sem, c"pmem_rs test".as_char_ptr(), class.as_ptr()) };
}
