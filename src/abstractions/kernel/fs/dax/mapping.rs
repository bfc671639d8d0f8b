// SPDX-License-Identifier: GPL-2.0

//! The page cache of a DAX file, and the page tables that map the file.
//!
//! An entry of the page cache has the page frames of a part of the file. A page fault locks the
//! entry before it translates the part, and unlocks it after it has inserted the page table entry.
//! So if translations are refused first, a walk that then waits for locked entries finds the result
//! of each fault whose translation has succeeded. A synchronous fault (`MAP_SYNC`) unlocks its
//! entry before it inserts the page table entry. ext4 and xfs hold the invalidate lock of the file
//! until it has ended, so the walk takes that lock too.
//!
//! Lock order: the inode lock of a file (`i_rwsem`) is outside of `mmap_lock` and of the invalidate
//! lock of the file. The invalidate lock is outside of locked entries, which are outside of
//! `i_mmap_rwsem` and the lock of the page cache.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

use super::entry::Entry;
use crate::abstractions::bindings;
use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Read, //
};
use crate::abstractions::kernel::{
    fs::inode::Inode,
    memremap::{
        FolioUse,
        PagemapInner,
        PagemapOperations, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

/// The page cache of a DAX file, borrowed from its inode.
///
/// # Invariants
///
/// For `'a`, the pointer is to the mapping of a referenced inode, or there is none.
#[derive(Clone, Copy)]
pub(super) struct FileMapping<'a>(
    Option<NonNull<bindings::address_space>>,
    PhantomData<&'a ()>,
);

impl<'a> FileMapping<'a> {
    pub(super) fn new(inode: &'a Inode) -> Self {
        // INVARIANT: `mapping` returns null if there is no reference to the inode.
        Self(NonNull::new(inode.mapping()), PhantomData)
    }

    /// # Safety
    ///
    /// For `'a` the mapping must be that of an inode which is not freed.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) unsafe fn from_raw(mapping: *mut bindings::address_space) -> Self {
        // INVARIANT: By the safety requirements. The owner of the inode stands for a reference.
        Self(NonNull::new(mapping), PhantomData)
    }

    pub(super) fn as_raw(&self) -> *mut bindings::address_space {
        self.0.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    /// Takes the invalidate lock of the file, unless it is held or there is no page cache.
    ///
    /// A fault of ext4 or xfs holds the lock until it ends. Its entry is not locked all the time
    /// (`MAP_SYNC`), and the page may not be mapped yet.
    fn try_lock(self) -> Option<InvalidateLock<'a>> {
        let mapping = self.0?;
        // SAFETY: By the type invariant the mapping is valid.
        let taken = unsafe { bindings::filemap_invalidate_trylock(mapping.as_ptr()) };

        if !taken {
            return None;
        }
        // INVARIANT: Just taken. The mapping is valid for `'a`.
        Some(InvalidateLock(mapping, PhantomData))
    }

    /// Takes the invalidate lock of the file, if there is a page cache. Sleeps.
    pub(super) fn lock(self) -> Option<InvalidateLock<'a>> {
        let mapping = self.0?;
        // SAFETY: By the type invariant the mapping is valid.
        unsafe { bindings::filemap_invalidate_lock(mapping.as_ptr()) };

        // INVARIANT: Just taken. The mapping is valid for `'a`.
        Some(InvalidateLock(mapping, PhantomData))
    }

    /// Takes the inode lock of the file for reading, if there is a page cache.
    pub(super) fn lock_inode(self, mode: LockMode) -> Option<InodeLock<'a>> {
        let mapping = self.0?;
        // SAFETY: By the type invariant the mapping is that of a referenced inode. A DAX file has
        // its own mapping, whose host is that inode.
        let (inode, taken) = unsafe {
            let inode = NonNull::new((*mapping.as_ptr()).host)?;
            let lock = addr_of_mut!((*inode.as_ptr()).i_rwsem);
            let taken = match mode {
                LockMode::Try => bindings::down_read_trylock(lock) != 0,
                LockMode::Wait => bindings::down_read_interruptible(lock) == 0,
            };
            (inode, taken)
        };

        if !taken {
            return None;
        }
        // INVARIANT: Just taken. The inode is valid for `'a`.
        Some(InodeLock(inode, PhantomData))
    }

    /// Returns the first entry with a mark, at or after a page of the file.
    fn entry(&self, from: u64, mark: u32) -> Option<Entry> {
        let mut index = from as c_ulong;
        // SAFETY: By the type invariant the mapping is valid. The function locks what it needs.
        let value = unsafe {
            bindings::xa_find(
                addr_of_mut!((*self.0?.as_ptr()).i_pages),
                &mut index,
                c_ulong::MAX,
                mark,
            )
        };

        (!value.is_null()).then(|| Entry::new(index as u64, value.addr()))
    }

    /// Returns the entries with a mark from a page of the file on, in order. Entries that are made
    /// or deleted meanwhile may be missed.
    pub(super) fn entries(&self, from: u64, mark: u32) -> impl Iterator<Item = Entry> + '_ {
        let mut next = Some(from);

        core::iter::from_fn(move || {
            let entry = self.entry(next?, mark)?;
            next = entry.start().checked_add(entry.pages());
            Some(entry)
        })
    }

    /// Returns whether the file may use the memory: whether any entry is not proved to be foreign.
    /// Does not sleep.
    pub(super) fn may_use<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| !self.is_foreign(entry, pgmap))
    }

    /// Returns whether an entry is proved to be foreign: it is not locked, its page frames are
    /// those of another pgmap, and their folio is associated with this file or with several.
    fn is_foreign<T: PagemapOperations>(&self, entry: Entry, pgmap: &PagemapInner<T>) -> bool {
        let frames = entry.frames();
        if frames.is_empty() || entry.is_locked() || entry.overlaps(&pgmap.frames()) {
            return false;
        }
        let Ok(first) = c_ulong::try_from(frames.start) else {
            return false;
        };

        // SAFETY: May be called for any number. If there is a pgmap, its pages stay until the
        // reference is put. The `struct page` is initialised, since the entry refers to it.
        unsafe {
            let other = bindings::get_dev_pagemap(first);
            if other.is_null() {
                return false;
            }
            let is_foreign =
                !core::ptr::eq(other, pgmap.as_raw()) && FolioUse::of(first).is_in(self.as_raw());
            bindings::put_dev_pagemap(other);
            is_foreign
        }
    }

    /// Unmaps the whole file. Returns how many pages of the memory the file has, and whether it may
    /// have pinned pages or page faults under way: a page has a reference, an entry is locked, or
    /// another thread holds the invalidate lock. Sleeps. Does not wait for faults.
    pub(super) fn unmap<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> (u64, bool) {
        let Some(mapping) = self.0 else {
            return (0, false);
        };

        let guard = self.try_lock();
        // SAFETY: By the type invariant the mapping is valid. The length 0 stands for all.
        unsafe { bindings::unmap_mapping_pages(mapping.as_ptr(), 0, 0, false) };
        let (count, may_be_busy) = self.count(pgmap);
        (count, may_be_busy || guard.is_none())
    }

    /// Returns whether the file may have pinned pages of the memory, or page faults under way: a
    /// page has a reference, an entry is locked, or another thread holds the invalidate lock. A
    /// page that is mapped has references. Does not sleep. Reads the entries up to the first one
    /// that is in use.
    pub(super) fn may_be_busy<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> bool {
        self.0.is_some() && (self.try_lock().is_none() || self.has_busy_entries(pgmap))
    }

    /// Returns whether any page of the memory that the file has is pinned or mapped, or any entry
    /// of the file is locked. Does not sleep. Reads the entries up to the first such one.
    pub(super) fn has_busy_entries<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> bool {
        let frames = pgmap.frames();

        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| is_in_use(entry, &frames))
    }

    /// Returns how many pages of the memory the file has, and whether any of them is pinned or
    /// mapped, or any entry of the file is locked. Does not sleep.
    pub(super) fn count<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> (u64, bool) {
        let frames = pgmap.frames();
        let mut count: u64 = 0;
        let mut may_be_busy = false;

        for entry in self.entries(0, bindings::XA_PRESENT) {
            may_be_busy |= is_in_use(entry, &frames);
            if entry.overlaps(&frames) {
                count = count.saturating_add(entry.pages());
            }
        }
        (count, may_be_busy)
    }

    /// Returns whether a page outside of `own` is pinned, or an entry outside of it is locked. A
    /// page that is only mapped is not pinned. Does not sleep.
    ///
    /// `spans_devices` is whether the pages may be on several devices. Otherwise a file with a page
    /// in `own` has no others.
    pub(super) fn has_busy_entries_outside(&self, own: &Range<u64>, spans_devices: bool) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .take_while(|entry| spans_devices || !entry.overlaps(own))
            .any(|entry| !entry.overlaps(own) && (is_locked(entry) || is_pinned(&entry.frames())))
    }

    /// Unmaps a file to which nothing can write, waits for the faults that are under way, and
    /// writes dirty pages back from the CPU caches. The entries stay, and so do their dirty marks.
    /// Returns how many pages of the memory the file has.
    ///
    /// Pages may be mapped again, but for reading only: a write fault waits for the file system
    /// before it takes the invalidate lock.
    ///
    /// Sleeps. Takes the invalidate lock of the file, so none of the locks that are taken inside of
    /// page faults may be held.
    pub(super) fn unmap_frozen<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) -> u64 {
        let Some(_guard) = self.lock() else {
            return 0;
        };

        self.unmap_and_wait(&pgmap.frames());
        self.write_back(pgmap);
        self.count(pgmap).0
    }

    /// Writes dirty pages of the memory back from the CPU caches.
    pub(super) fn write_back<T: PagemapOperations>(&self, pgmap: &PagemapInner<T>) {
        for mark in [
            bindings::PAGECACHE_TAG_DIRTY,
            bindings::PAGECACHE_TAG_TOWRITE,
        ] {
            for entry in self.entries(0, mark) {
                if let Some(dirty) = entry.overlap(&pgmap.frames()) {
                    pgmap.write_back(dirty);
                }
            }
        }
    }

    /// Returns whether the file has the page frame.
    pub(super) fn has_frame(&self, frame: u64) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| entry.overlaps(&(frame..frame.saturating_add(1))))
    }

    /// Unmaps the whole file, and waits for all locked entries.
    pub(super) fn unmap_and_wait(&self, pfns: &Range<u64>) {
        let mut from = 0_u64;

        while let Ok(start) = i64::try_from(u128::from(from) << PAGE_SHIFT) {
            // SAFETY: By the type invariant the mapping is valid; it is that of a DAX file.
            let busy =
                unsafe { bindings::dax_layout_busy_page_range(self.as_raw(), start, i64::MAX) };
            if busy.is_null() {
                break;
            }

            // The function has stopped at the entry of a pinned page, which it returns, after it
            // has waited for all entries up to that one. Continue after this entry. If it is not
            // found, because it was deleted or replaced since, continue after the first entry.
            // SAFETY: The page is one of a pgmap, so there is a frame number; it is only a number.
            let frame = unsafe { bindings::page_to_pfn(busy) } as u64;
            let folio = frame..frame.saturating_add(1);
            let stopped_at = self
                .entries(from, bindings::XA_PRESENT)
                .find(|entry| {
                    entry.overlaps(&folio) || entry.overlap(pfns).is_some_and(|own| !is_idle(&own))
                })
                .or_else(|| self.entry(from, bindings::XA_PRESENT));
            match stopped_at {
                Some(entry) => from = entry.end(),
                None => break,
            }
        }
    }
}

/// The invalidate lock of a file, held for writing. Page faults of ext4 and xfs hold it for
/// reading; a write fault of xfs during a remap, for writing.
///
/// # Invariants
///
/// For `'a` the mapping is valid. The lock is held.
pub(super) struct InvalidateLock<'a>(NonNull<bindings::address_space>, PhantomData<&'a ()>);

impl Drop for InvalidateLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::filemap_invalidate_unlock(self.0.as_ptr()) };
    }
}

/// How an [`InodeLock`] is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockMode {
    /// Tries once. Fails if a thread holds the lock for writing, or waits for it. Does not sleep.
    Try,
    /// Sleeps until it is free, or the thread has a signal.
    Wait,
}

/// The inode lock of a file (`i_rwsem`), held for reading. Threads that write to the file, truncate
/// it, or punch holes into it hold it for writing.
///
/// While it exists, no thread waits in `dax_break_layout()` for a page of the file. Such a thread
/// has a pointer to the `struct page` without a reference, and gives the invalidate lock up while
/// it sleeps. It holds the inode lock for writing all the time.
///
/// # Invariants
///
/// For `'a` the inode is valid. The lock is held.
pub(super) struct InodeLock<'a>(NonNull<bindings::inode>, PhantomData<&'a ()>);

impl Drop for InodeLock<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held. This is `inode_unlock_shared()`.
        unsafe { bindings::up_read(addr_of_mut!((*self.0.as_ptr()).i_rwsem)) };
    }
}

/// Returns whether the folio of these page frames has no reference. They must be those of one
/// folio, and of the memory that is being revoked.
pub(super) fn is_idle(frames: &Range<u64>) -> bool {
    // SAFETY: The frames are those of a pgmap whose owner is borrowed.
    unsafe { FolioUse::of(frames.start as c_ulong) }.references == 0
}

/// Returns whether an entry is locked, or has a folio of these page frames that is in use. The
/// frames must be those of the memory that is being revoked.
fn is_in_use(entry: Entry, frames: &Range<u64>) -> bool {
    is_locked(entry) || entry.overlap(frames).is_some_and(|own| !is_idle(&own))
}

/// Returns whether an entry is locked. If it is not, a later read of the folio sees the references
/// that the fault took before it unlocked the entry.
fn is_locked(entry: Entry) -> bool {
    let is_locked = entry.is_locked();

    // ORDERING: pairs with the lock of the page cache, which a fault takes to unlock the entry.
    smp_mb(Read);
    is_locked
}

/// Returns whether the folio of these page frames, which may be those of any memory, is pinned.
fn is_pinned(frames: &Range<u64>) -> bool {
    let Ok(first) = c_ulong::try_from(frames.start) else {
        return false;
    };
    if frames.is_empty() {
        return false;
    }

    // SAFETY: May be called for any number. If there is a pgmap, its pages stay until the reference
    // is put. The `struct page` is initialised, since the entry refers to it.
    unsafe {
        let pgmap = bindings::get_dev_pagemap(first);
        if pgmap.is_null() {
            return false;
        }
        let is_pinned = FolioUse::is_pinned(first);
        bindings::put_dev_pagemap(pgmap);
        is_pinned
    }
}

#[kunit_tests(pmem_rs_fs_dax_mapping)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::fs::dax::testing::{
        associate,
        pages,
        Silent,
        TestFile, //
    };

    /// Stores an entry, and returns whether the file may use the memory.
    fn may_use(
        file: &TestFile,
        frame: u64,
        is_locked: bool,
        pages: &PagemapInner<Silent>,
    ) -> Result<bool> {
        file.store(frame, is_locked)?;
        Ok(file.mapping().may_use(pages))
    }

    #[test]
    fn an_entry_is_foreign_only_if_it_is_unlocked_and_its_folio_says_so() -> Result {
        let (ours, other) = (pages()?, pages()?);
        let file = TestFile::new()?;
        let frame = other.frames().start + 3;

        associate(frame, file.mapping().as_raw());
        let foreign = may_use(&file, frame, false, &ours);
        // A fault under way may replace it by one of our frames.
        let locked = may_use(&file, frame, true, &ours);
        let own = may_use(&file, frame, false, &other);
        let of_no_pgmap = may_use(&file, 0, false, &ours);
        associate(frame, core::ptr::null_mut());
        let of_another_file = may_use(&file, frame, false, &ours);

        assert!(!foreign?);
        assert!(locked?);
        assert!(own?);
        assert!(of_no_pgmap?);
        assert!(of_another_file?);
        Ok(())
    }

    #[test]
    fn pins_of_other_memory_are_found() -> Result {
        let (ours, other) = (pages()?, pages()?);
        let file = TestFile::new()?;
        let frame = other.frames().start + 3;
        let is_busy = |own: &PagemapInner<Silent>| {
            file.mapping().has_busy_entries_outside(&own.frames(), true)
        };

        file.store(frame, false)?;
        let idle = is_busy(&ours);
        // SAFETY: The frame has a page, which nothing else knows. An idle page has no reference.
        let count =
            unsafe { &raw mut (*bindings::pfn_to_page(frame as c_ulong))._refcount.counter };
        // SAFETY: As above.
        unsafe { *count = 1 };
        let (pinned, own) = (is_busy(&ours), is_busy(&other));
        // SAFETY: As above.
        unsafe { *count = 0 };
        file.store(frame, true)?;
        let locked = is_busy(&ours);

        assert!(!idle);
        assert!(pinned);
        assert!(!own);
        assert!(locked);
        Ok(())
    }
}
