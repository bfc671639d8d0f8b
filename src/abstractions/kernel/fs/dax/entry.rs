// SPDX-License-Identifier: GPL-2.0

//! Entries of the page cache of a DAX file.
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c). The encoding is private to it, and the constants here
//! repeat it. The repeated text is vetted when the module is built (`rust-bindings/vetted`): with
//! wrong constants, memory could be freed under a page fault. There are two more checks at run
//! time. An entry is only passed over as foreign if its folio says so too. Nothing is freed
//! while any folio of the range is associated with a file (`PagemapInner::first_used`).

use crate::abstractions::bindings;
use core::ops::Range;

/// An entry of the page cache of a DAX file.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    index: u64,
    /// See `dax_make_entry()`.
    value: u64,
}

impl Entry {
    const LOCKED: u64 = 1 << 0;
    const PMD: u64 = 1 << 1;
    const ZERO_PAGE: u64 = 1 << 2;
    const EMPTY: u64 = 1 << 3;
    const SHIFT: u32 = 4;
    /// The number of pages of an entry of PMD size.
    const PMD_PAGES: u64 = 1 << bindings::PMD_ORDER;

    /// Decodes the value entry (`xa_mk_value()`) that the cache has at `index`.
    pub(super) fn new(index: u64, value: usize) -> Self {
        let value = (value >> 1) as u64;
        let index = if value & Self::PMD != 0 {
            index & !(Self::PMD_PAGES.wrapping_sub(1))
        } else {
            index
        };

        Self { index, value }
    }

    /// Returns the value (`xa_mk_value()`) of an entry for one page frame.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) fn value_of(frame: u64, is_locked: bool) -> usize {
        let lock = if is_locked { Self::LOCKED } else { 0 };

        (((frame << Self::SHIFT) | lock) << 1 | 1) as usize
    }

    /// Returns the first page of the file that the entry is for.
    pub(super) fn start(&self) -> u64 {
        self.index
    }

    /// Returns the page of the file after the last one of the entry.
    pub(super) fn end(&self) -> u64 {
        self.index.saturating_add(self.pages())
    }

    /// Returns whether the entry is locked, by a page fault for instance.
    pub(super) fn is_locked(&self) -> bool {
        self.value & Self::LOCKED != 0
    }

    pub(super) fn pages(&self) -> u64 {
        if self.value & Self::PMD != 0 {
            Self::PMD_PAGES
        } else {
            1
        }
    }

    /// Returns the page frames of the entry; none if it is a hole or empty.
    pub(super) fn frames(&self) -> Range<u64> {
        if self.value & (Self::ZERO_PAGE | Self::EMPTY) != 0 {
            return 0..0;
        }
        let first = self.value >> Self::SHIFT;

        first..first.saturating_add(self.pages())
    }

    /// Returns those of the page frames that the entry has, if any.
    pub(super) fn overlap(&self, pfns: &Range<u64>) -> Option<Range<u64>> {
        let frames = self.frames();
        let common = frames.start.max(pfns.start)..frames.end.min(pfns.end);

        (!common.is_empty()).then_some(common)
    }

    /// Returns whether the entry has any of the page frames.
    pub(super) fn overlaps(&self, pfns: &Range<u64>) -> bool {
        self.overlap(pfns).is_some()
    }
}
