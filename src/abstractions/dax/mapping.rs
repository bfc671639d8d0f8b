// SPDX-License-Identifier: GPL-2.0

//! What a DAX file has in memory: the entries of its page cache, and the page tables that map it.
//!
//! An entry names the page frames of a piece of the file. It stands locked in the cache from before a
//! page fault translates the piece until the page table entry is in, so whoever waits for the lock
//! after the device has died meets no translation any more.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c). The encoding of the entries is private to it; the
//! constants here repeat it. If they were wrong, entries would not be found, their pages would never
//! become idle, and the pgmap would stay: see [`Pagemap`].
//!
//! [`Pagemap`]: crate::abstractions::memremap::Pagemap

use crate::abstractions::bindings;
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
    prelude::*, //
};

/// The mapping of a DAX file, borrowed from its inode.
///
/// # Examples
///
/// ```no_run
/// use core::ops::Range;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::fs::Inode;
///
/// /// Takes page frames of a dead device away from a file; returns whether that was all.
/// fn take_away(inode: &Inode, frames: &Range<u64>, write_back: impl FnMut(Range<u64>)) -> bool {
///     inode.mapping().revoke(frames, write_back).pinned == 0
/// }
/// ```
///
/// # Invariants
///
/// For `'a`, the pointer is to the mapping of an inode that is referenced.
#[derive(Clone, Copy)]
pub struct FileMapping<'a>(NonNull<bindings::address_space>, PhantomData<&'a ()>);

/// What a [`FileMapping::revoke`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Pages whose entries were deleted.
    pub pages: u64,
    /// Pages whose entries had to stay, because they are pinned.
    pub pinned: u64,
}

/// How many pages are deleted at once. The C function holds a spinlock all the while.
const BATCH: u64 = 512;

impl<'a> FileMapping<'a> {
    /// Makes a reference from a pointer.
    ///
    /// # Safety
    ///
    /// For `'a`, `mapping` must be the mapping of an inode that is referenced.
    pub(in crate::abstractions) unsafe fn from_raw(mapping: *mut bindings::address_space) -> Self {
        // INVARIANT: By the safety requirements.
        // SAFETY: A valid pointer is not null.
        Self(unsafe { NonNull::new_unchecked(mapping) }, PhantomData)
    }

    fn as_raw(&self) -> *mut bindings::address_space {
        self.0.as_ptr()
    }

    /// Returns the first entry at or after a page of the file.
    fn entry(&self, from: u64, mark: u32) -> Option<Entry> {
        let mut index = from as c_ulong;
        // SAFETY: By the type invariant the mapping is valid. The function locks what it needs.
        let value = unsafe {
            bindings::xa_find(
                addr_of_mut!((*self.as_raw()).i_pages),
                &mut index,
                c_ulong::MAX,
                mark,
            )
        };

        (!value.is_null()).then(|| Entry::new(index as u64, value.addr()))
    }

    /// Returns the entries with a mark from a page of the file on, in order. What is made or deleted
    /// meanwhile may be missed.
    fn entries(&self, from: u64, mark: u32) -> impl Iterator<Item = Entry> + '_ {
        let mut next = Some(from);

        core::iter::from_fn(move || {
            let entry = self.entry(next?, mark)?;
            next = entry.index.checked_add(entry.pages());
            Some(entry)
        })
    }

    /// Returns whether the file has entries that name one of the page frames, or that may be about
    /// to: the faults that hold them locked are under way. Does not sleep.
    pub fn may_use(&self, pfns: &Range<u64>) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| entry.is_locked() || entry.overlaps(pfns))
    }

    /// Returns whether the file has entries that name one of the page frames. Does not sleep.
    pub fn uses(&self, pfns: &Range<u64>) -> bool {
        self.entries(0, bindings::XA_PRESENT)
            .any(|entry| entry.overlaps(pfns))
    }

    /// Takes the page frames away from the file: unmaps them everywhere, waits for the faults that
    /// are under way, and deletes the entries of those that are not pinned. Before that, `write_back`
    /// is called with the page frames that may be dirty in the CPU caches.
    ///
    /// Only complete if no translation can begin any more that yields one of the page frames: the
    /// device must be dead.
    ///
    /// Sleeps. Takes the invalidate lock of the file, so none of the locks that are taken inside of
    /// page faults may be held.
    pub fn revoke(&self, pfns: &Range<u64>, mut write_back: impl FnMut(Range<u64>)) -> Revoked {
        let _guard = InvalidateLock::new(*self);

        // It unmaps first and then waits for locked entries, so what these insert is unmapped by
        // the second round.
        for _ in 0..2 {
            self.unmap_and_wait();
        }

        for mark in [
            bindings::PAGECACHE_TAG_DIRTY,
            bindings::PAGECACHE_TAG_TOWRITE,
        ] {
            for entry in self.entries(0, mark) {
                if let Some(frames) = entry.overlap(pfns) {
                    write_back(frames);
                }
            }
        }

        self.delete(pfns)
    }

    /// Unmaps the whole file, and waits for all entries that are locked.
    fn unmap_and_wait(&self) {
        let mut from = 0_u64;

        while let Ok(start) = i64::try_from(u128::from(from) << PAGE_SHIFT) {
            // SAFETY: By the type invariant the mapping is valid; it is that of a DAX file.
            let busy =
                unsafe { bindings::dax_layout_busy_page_range(self.as_raw(), start, i64::MAX) };
            if busy.is_null() {
                break;
            }

            // It has stopped there, at a pinned page. Go on behind it; if it has become idle
            // meanwhile and is gone, once more from the same place.
            // SAFETY: The page is one of a pgmap, so there is a frame number; it is only a number.
            let frame = unsafe { bindings::page_to_pfn(busy) } as u64;
            let holder = self
                .entries(from, bindings::XA_PRESENT)
                .find(|entry| entry.overlaps(&(frame..frame.saturating_add(1))));
            if let Some(entry) = holder {
                from = entry.index.saturating_add(entry.pages());
            }
        }
    }

    /// Deletes the entries of idle pages.
    fn delete(&self, pfns: &Range<u64>) -> Revoked {
        let mut revoked = Revoked::default();
        let mut run: Option<Range<u64>> = None;

        for entry in self.entries(0, bindings::XA_PRESENT) {
            let end = entry.index.saturating_add(entry.pages());

            let idle = entry.overlaps(pfns) && {
                let idle = entry.is_idle();
                let pages = if idle {
                    &mut revoked.pages
                } else {
                    &mut revoked.pinned
                };
                *pages = pages.saturating_add(entry.pages());
                idle
            };

            // What is not ours to delete ends a run; so does a hole, where an entry may be made at any
            // moment; and so does its length.
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
        // that nobody can map any more, as the function expects it.
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

    /// The page frames that it names among these.
    fn overlap(&self, pfns: &Range<u64>) -> Option<Range<u64>> {
        let frames = self.frames();
        let common = frames.start.max(pfns.start)..frames.end.min(pfns.end);

        (!common.is_empty()).then_some(common)
    }

    fn overlaps(&self, pfns: &Range<u64>) -> bool {
        self.overlap(pfns).is_some()
    }

    /// Whether nobody has a reference to its pages. It must name frames that have `struct page`s.
    fn is_idle(&self) -> bool {
        // SAFETY: The entry names page frames of a pgmap that exists, since its owner is waiting for
        // this entry to go.
        unsafe { bindings::dax_page_is_idle(bindings::pfn_to_page(self.frames().start as c_ulong)) }
    }
}

/// The invalidate lock of a file, held for writing: it keeps page faults out.
struct InvalidateLock<'a>(FileMapping<'a>);

impl<'a> InvalidateLock<'a> {
    fn new(mapping: FileMapping<'a>) -> Self {
        // SAFETY: The mapping is valid.
        unsafe { bindings::filemap_invalidate_lock(mapping.as_raw()) };
        Self(mapping)
    }
}

impl Drop for InvalidateLock<'_> {
    fn drop(&mut self) {
        // SAFETY: The lock was taken by `new`.
        unsafe { bindings::filemap_invalidate_unlock(self.0.as_raw()) };
    }
}
