// SPDX-License-Identifier: GPL-2.0

//! What a DAX file has in memory: the entries of its page cache, and the page tables that map it.
//!
//! An entry names the page frames of a piece of the file. It stands locked in the cache from before
//! a page fault translates the piece until the page table entry is in. So a walk that waits for the
//! lock after the gate was closed meets no translation any more.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c). The encoding of the entries is private to it, and the
//! constants here repeat it. The text that they repeat is vetted when the module is built
//! (`rust-bindings/vetted`). Were they wrong, memory could be freed under a fault that is under
//! way. At run time an entry is taken for foreign only if its folio says so too, and nothing is
//! unmapped while a folio of the range says that a page cache names it
//! (`PagemapInner::first_used`).

use crate::abstractions::{
    bindings,
    kernel::{
        fs::super_block::Inode,
        memremap::{
            PagemapInner,
            PagemapOperations,
            Use, //
        }, //
    }, //
};
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        addr_of_mut,
        NonNull, //
    },
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::barrier::{
        smp_mb,
        Read, //
    }, //
};

/// The page cache of a DAX file, borrowed from its inode.
///
/// # Invariants
///
/// For `'a`, the pointer is to the mapping of an inode that is referenced, or there is none.
#[derive(Clone, Copy)]
pub(super) struct FileMapping<'a>(
    Option<NonNull<bindings::address_space>>,
    PhantomData<&'a ()>,
);

/// What a [`FileMapping::revoke`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Revoked {
    /// Pages whose entries were deleted.
    pub(super) pages: u64,
    /// Pages whose entries had to stay, because they are pinned.
    pub(super) pinned: u64,
    /// An entry and the folio that it names do not agree about each other. They were not read
    /// together, so that it may be so for a moment.
    pub(super) disagree: bool,
}

/// How many pages are deleted at once. The C function holds a spinlock all the while.
const BATCH: u64 = 512;

impl<'a> FileMapping<'a> {
    /// Returns the page cache of a file.
    pub(super) fn new(inode: &'a Inode) -> Self {
        // INVARIANT: An `Inode` has a reference to its inode, if it is still there.
        Self(NonNull::new(inode.mapping()), PhantomData)
    }

    /// Returns the first entry at or after a page of the file.
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

    /// Returns the entries with a mark from a page of the file on, in order. What is made or
    /// deleted meanwhile may be missed.
    fn entries(&self, from: u64, mark: u32) -> impl Iterator<Item = Entry> + '_ {
        let mut next = Some(from);

        core::iter::from_fn(move || {
            let entry = self.entry(next?, mark)?;
            next = entry.index.checked_add(entry.pages());
            Some(entry)
        })
    }

    /// Returns whether the file may use the memory: whether it has an entry that is not proved to
    /// be foreign. Does not sleep.
    pub(super) fn may_use<T: PagemapOperations>(&self, pages: &PagemapInner<T>) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| !self.is_foreign(entry, pages))
    }

    /// Returns whether an entry is proved to be foreign: it is not locked, and names page frames of
    /// another pgmap, whose folio says that this file, or several files, have it.
    fn is_foreign<T: PagemapOperations>(&self, entry: Entry, pages: &PagemapInner<T>) -> bool {
        let frames = entry.frames();
        if frames.is_empty() || entry.is_locked() || entry.overlaps(&pages.frames()) {
            return false;
        }
        let Ok(first) = c_ulong::try_from(frames.start) else {
            return false;
        };

        // SAFETY: May be called for any number. If there is a pgmap, its pages stay until the
        // reference is put. An entry names pages that are there, so they were made before.
        unsafe {
            let pgmap = bindings::get_dev_pagemap(first);
            if pgmap.is_null() {
                return false;
            }
            let is_foreign =
                !core::ptr::eq(pgmap, pages.as_raw()) && Use::of(first).is_of(self.as_raw());
            bindings::put_dev_pagemap(pgmap);
            is_foreign
        }
    }

    fn as_raw(&self) -> *mut bindings::address_space {
        self.0.map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    /// Unmaps the whole file. Returns how many pages of the memory it has, and whether any of them is
    /// pinned, or a fault is under way that may lead to it. Sleeps. Does not wait for faults.
    pub(super) fn unmap<T: PagemapOperations>(&self, pages: &PagemapInner<T>) -> (u64, bool) {
        let Some(mapping) = self.0 else {
            return (0, false);
        };

        // A fault of ext4 or xfs holds the lock to its end. Its entry need not be locked all the
        // time (`MAP_SYNC`), and what it maps in the end is not mapped yet.
        // SAFETY: By the type invariant the mapping stays for as long as `self`.
        let guard = unsafe { InvalidateLock::try_new(mapping) };
        // SAFETY: By the type invariant the mapping is valid. The length 0 stands for all.
        unsafe { bindings::unmap_mapping_pages(mapping.as_ptr(), 0, 0, false) };
        let (count, is_pinned) = self.count(pages);
        (count, is_pinned || guard.is_none())
    }

    /// Returns how many pages of the memory the file has, and whether any of them is pinned, or its
    /// entry is locked. Does not sleep.
    pub(super) fn count<T: PagemapOperations>(&self, pages: &PagemapInner<T>) -> (u64, bool) {
        let frames = pages.frames();
        let mut count: u64 = 0;
        let mut is_pinned = false;

        for entry in self.entries(0, bindings::XA_PRESENT) {
            is_pinned |= entry.is_locked();
            // ORDERING: pairs with the lock of the page cache, which a fault takes when it unlocks
            // the entry. If the entry is unlocked, the references that the fault took are seen.
            smp_mb(Read);
            if let Some(own) = entry.overlap(&frames) {
                count = count.saturating_add(entry.pages());
                is_pinned |= !is_idle(&own);
            }
        }
        (count, is_pinned)
    }

    /// Takes the memory away from the file: unmaps the file everywhere, waits for the faults that
    /// are under way, writes back what may be dirty in the CPU caches, and deletes the entries of
    /// pages that are not pinned. Entries of other memory stay: deleting them would lose that they
    /// are dirty.
    ///
    /// Only complete if no translation can begin any more that yields one of the page frames: the
    /// gate must be closed.
    ///
    /// Sleeps. Takes the invalidate lock of the file, so none of the locks that are taken inside of
    /// page faults may be held.
    pub(super) fn revoke<T: PagemapOperations>(&self, pages: &PagemapInner<T>) -> Revoked {
        let Some(mapping) = self.0 else {
            return Revoked::default();
        };
        let frames = pages.frames();
        // SAFETY: By the type invariant the mapping stays for as long as `self`.
        let _guard = unsafe { InvalidateLock::new(mapping) };

        // It unmaps first and then waits for locked entries, so what these insert is unmapped by
        // the second round.
        for _ in 0..2 {
            self.unmap_and_wait(&frames);
        }

        for mark in [
            bindings::PAGECACHE_TAG_DIRTY,
            bindings::PAGECACHE_TAG_TOWRITE,
        ] {
            for entry in self.entries(0, mark) {
                if let Some(dirty) = entry.overlap(&frames) {
                    pages.write_back(dirty);
                }
            }
        }

        self.delete(&frames)
    }

    /// Unmaps the whole file, and waits for all entries that are locked.
    fn unmap_and_wait(&self, pfns: &Range<u64>) {
        let mut from = 0_u64;

        while let Ok(start) = i64::try_from(u128::from(from) << PAGE_SHIFT) {
            // SAFETY: By the type invariant the mapping is valid; it is that of a DAX file.
            let busy =
                unsafe { bindings::dax_layout_busy_page_range(self.as_raw(), start, i64::MAX) };
            if busy.is_null() {
                break;
            }

            // It has stopped there, at a pinned page, of which it returns the folio. It has waited
            // for all entries up to that of the page. Go on behind that; or, if it is not found
            // because the page has become idle meanwhile, behind the first entry.
            // SAFETY: The page is one of a pgmap, so there is a frame number; it is only a number.
            let frame = unsafe { bindings::page_to_pfn(busy) } as u64;
            let folio = frame..frame.saturating_add(1);
            let behind = self
                .entries(from, bindings::XA_PRESENT)
                .find(|entry| {
                    entry.overlaps(&folio) || entry.overlap(pfns).is_some_and(|own| !is_idle(&own))
                })
                .or_else(|| self.entry(from, bindings::XA_PRESENT));
            match behind {
                Some(entry) => from = entry.index.saturating_add(entry.pages()),
                None => break,
            }
        }
    }

    /// Deletes the entries of idle pages.
    fn delete(&self, pfns: &Range<u64>) -> Revoked {
        let mut revoked = Revoked::default();
        let mut run: Option<Range<u64>> = None;

        for entry in self.entries(0, bindings::XA_PRESENT) {
            let end = entry.index.saturating_add(entry.pages());

            let idle = entry.overlap(pfns).is_some_and(|own| {
                let agrees = is_named_by(&own, self.as_raw());
                revoked.disagree |= !agrees;
                let idle = agrees && is_idle(&own);
                let pages = if idle {
                    &mut revoked.pages
                } else {
                    &mut revoked.pinned
                };
                *pages = pages.saturating_add(entry.pages());
                idle
            });

            // A run ends at an entry that is not to be deleted, at a hole, where an entry may be
            // made at any moment, and when it has its full length.
            run = match (run, idle) {
                (Some(run), true)
                    if run.end == entry.index && end.saturating_sub(run.start) <= BATCH =>
                {
                    Some(run.start..end)
                }
                (run, idle) => {
                    self.delete_run(run);
                    idle.then_some(entry.index..end)
                }
            };
        }
        self.delete_run(run);

        revoked
    }

    fn delete_run(&self, run: Option<Range<u64>>) {
        let Some(run) = run else {
            return;
        };
        let start = i64::try_from(u128::from(run.start) << PAGE_SHIFT).unwrap_or(i64::MAX);
        // The last byte: the range of the C function includes its end.
        let end = i64::try_from((u128::from(run.end) << PAGE_SHIFT).saturating_sub(1))
            .unwrap_or(i64::MAX);

        // SAFETY: By the type invariant the mapping is valid. The entries are those of idle pages
        // that cannot be mapped any more, as the function expects it.
        unsafe {
            bindings::dax_delete_mapping_range(self.as_raw(), start, end);
            bindings::cond_resched();
        }
    }
}

/// An entry of the page cache of a DAX file.
#[derive(Clone, Copy)]
struct Entry {
    /// The first page of the file that it is about.
    index: u64,
    /// What it says; see `dax_make_entry()`.
    value: u64,
}

impl Entry {
    const LOCKED: u64 = 1 << 0;
    const PMD: u64 = 1 << 1;
    const ZERO_PAGE: u64 = 1 << 2;
    const EMPTY: u64 = 1 << 3;
    const SHIFT: u32 = 4;
    /// Pages of an entry that has the size of a page middle directory.
    const PMD_PAGES: u64 = 1 << bindings::PMD_ORDER;

    /// Takes apart what the cache has at `index`; `value` is a value entry (`xa_mk_value()`).
    fn new(index: u64, value: usize) -> Self {
        let value = (value >> 1) as u64;
        let index = if value & Self::PMD != 0 {
            index & !(Self::PMD_PAGES.wrapping_sub(1))
        } else {
            index
        };

        Self { index, value }
    }

    fn is_locked(&self) -> bool {
        self.value & Self::LOCKED != 0
    }

    /// How many pages it is about.
    fn pages(&self) -> u64 {
        if self.value & Self::PMD != 0 {
            Self::PMD_PAGES
        } else {
            1
        }
    }

    /// The page frames that it names.
    fn frames(&self) -> Range<u64> {
        if self.value & (Self::ZERO_PAGE | Self::EMPTY) != 0 {
            return 0..0;
        }
        let first = self.value >> Self::SHIFT;

        first..first.saturating_add(self.pages())
    }

    /// Those of the page frames that it names.
    fn overlap(&self, pfns: &Range<u64>) -> Option<Range<u64>> {
        let frames = self.frames();
        let common = frames.start.max(pfns.start)..frames.end.min(pfns.end);

        (!common.is_empty()).then_some(common)
    }

    fn overlaps(&self, pfns: &Range<u64>) -> bool {
        self.overlap(pfns).is_some()
    }
}

/// Returns whether there is no reference to the folio of page frames that are those of one folio, and
/// of the memory that is being revoked.
fn is_idle(frames: &Range<u64>) -> bool {
    // SAFETY: The frames are those of a pgmap whose owner is borrowed.
    unsafe { Use::of(frames.start as c_ulong) }.references == 0
}

/// Returns whether the folio of such page frames says that this file, or several files, have it.
fn is_named_by(frames: &Range<u64>, mapping: *mut bindings::address_space) -> bool {
    // SAFETY: The frames are those of a pgmap whose owner is borrowed.
    unsafe { Use::of(frames.start as c_ulong) }.is_of(mapping)
}

/// The invalidate lock of a file, held for writing: it keeps page faults out.
///
/// # Invariants
///
/// The mapping is valid, and the lock is held.
struct InvalidateLock(NonNull<bindings::address_space>);

impl InvalidateLock {
    /// # Safety
    ///
    /// The mapping must be valid for as long as the result lives.
    unsafe fn try_new(mapping: NonNull<bindings::address_space>) -> Option<Self> {
        // SAFETY: By the safety requirements.
        if !unsafe { bindings::filemap_invalidate_trylock(mapping.as_ptr()) } {
            return None;
        }
        // INVARIANT: Just taken.
        Some(Self(mapping))
    }

    /// # Safety
    ///
    /// The mapping must be valid for as long as the result lives.
    unsafe fn new(mapping: NonNull<bindings::address_space>) -> Self {
        // SAFETY: By the safety requirements.
        unsafe { bindings::filemap_invalidate_lock(mapping.as_ptr()) };
        // INVARIANT: Just taken.
        Self(mapping)
    }
}

impl Drop for InvalidateLock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::filemap_invalidate_unlock(self.0.as_ptr()) };
    }
}
