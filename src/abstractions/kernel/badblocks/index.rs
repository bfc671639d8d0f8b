// SPDX-License-Identifier: GPL-2.0

//! An index of a list of bad sectors, so that most good sectors are recognised without a search.
//!
//! C code (sysfs, the region) changes the list without a notice. So the index has the sequence
//! number of the list that it was made from, and is valid only while the list has that number. Each
//! change of the list changes the number
//! ([`block/badblocks.c`](srctree/block/badblocks.c) writes with the seqlock held).
//!
//! The model in `tests/host/tests/atomics` has one change of the list. The number has 32 bits:
//! after 2^31 changes between two requests, an index would be taken for a valid one.

use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Read,
    Write, //
};
use crate::abstractions::kernel_ext::sync::atomic::{
    read_acquire,
    read_once, //
};
use kernel::{
    new_spinlock,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed,
            Release, //
        },
        SpinLock, //
    }, //
};

/// No list has this number: those of lists have 32 bits.
const INVALID: u64 = u64::MAX;
/// Byte offsets count 512 for each sector, whatever the list is of.
const SECTOR_SHIFT: u32 = 9;
/// The number of buckets.
const BUCKETS: u32 = u64::BITS;

/// The index of a list.
///
/// A reader of `end` or `first` alone does not look at the number again. If the word is that of a
/// newer index, the answer is right for the newer list.
///
/// Lock order: [`Self::update`] is innermost, and is only tried.
#[pin_data]
#[repr(C)]
pub(super) struct Index {
    /// The sequence number of the list, or [`INVALID`] while the other words are being written.
    sequence: Atomic<u64>,
    /// No sector from this byte offset on is bad.
    end: Atomic<u64>,
    /// No sector before this byte offset is bad.
    first: Atomic<u64>,
    /// No sector from this page on is bad.
    end_page: Atomic<u64>,
    /// No sector before this page is bad.
    first_page: Atomic<u64>,
    /// The buckets from `first` on that have bad sectors, one bit each.
    buckets: Atomic<u64>,
    /// `1 << shift` sectors are in a bucket.
    shift: Atomic<u32>,
    #[pin]
    update: SpinLock<()>,
}

/// A run of bad sectors: the first one, and the one after the last.
pub(super) type Run = (u64, u64);

impl Index {
    /// Creates the index of an empty list that was never changed.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            sequence: Atomic::new(0),
            shift: Atomic::new(0),
            end: Atomic::new(0),
            first: Atomic::new(u64::MAX),
            end_page: Atomic::new(0),
            first_page: Atomic::new(u64::MAX),
            buckets: Atomic::new(0),
            update <- new_spinlock!((), "pmem_rs::badblocks::Index::update"),
        })
    }

    /// Returns whether the index was made from the list with this sequence number.
    ///
    /// ORDERING: the words that are read next are not older than the sequence number.
    #[inline(always)]
    pub(super) fn is_of(&self, sequence: u32) -> bool {
        read_acquire(&self.sequence) == u64::from(sequence)
    }

    /// Returns whether no sector from the byte at `offset` on is bad. The index must be valid.
    #[inline(always)]
    pub(super) fn is_behind(&self, offset: u64) -> bool {
        offset >= read_once(&self.end)
    }

    /// Returns whether no sector of the `len` bytes from `offset` on is bad, since all are before
    /// the first bad one. The index must be valid.
    #[inline(always)]
    pub(super) fn is_before(&self, offset: u64, len: u64) -> bool {
        let good = read_once(&self.first).checked_sub(offset);

        good.is_some_and(|good| len <= good)
    }

    /// As [`Self::is_behind`], for a page.
    #[inline(always)]
    pub(super) fn are_pages_behind(&self, pgoff: u64) -> bool {
        pgoff >= read_once(&self.end_page)
    }

    /// As [`Self::is_before`], for `nr` pages.
    #[inline(always)]
    pub(super) fn are_pages_before(&self, pgoff: u64, nr: u64) -> bool {
        let good = read_once(&self.first_page).checked_sub(pgoff);

        good.is_some_and(|good| nr <= good)
    }

    /// Returns whether it is known that none of the `sectors` sectors from sector `first` on is
    /// bad, for a list with this sequence number.
    pub(super) fn is_good(&self, sequence: u32, (first, sectors): (u64, u64)) -> bool {
        if !self.is_of(sequence) {
            return false;
        }
        let shift = read_once(&self.shift);
        let start = read_once(&self.first) >> SECTOR_SHIFT;
        let bad_end = read_once(&self.end).div_ceil(1 << SECTOR_SHIFT);
        let buckets = read_once(&self.buckets);
        // ORDERING: pairs with the write barrier in `make()`. If the number is the same still, all
        // words were written before it.
        smp_mb(Read);
        if read_once(&self.sequence) != u64::from(sequence) {
            return false;
        }

        let run = (first.max(start), first.saturating_add(sectors).min(bad_end));
        run.0 >= run.1 || mask(run, start, shift).is_some_and(|mask| buckets & mask == 0)
    }

    /// Makes the index valid for the list with this sequence number, of which `runs` returns the
    /// runs in ascending order. `is_current` returns whether the list has this number still.
    ///
    /// Does nothing if another thread is making the index. Callable from any context that may read
    /// the list.
    pub(super) fn make<R: Iterator<Item = Run>>(
        &self,
        sequence: u32,
        runs: impl Fn() -> R,
        is_current: impl FnOnce() -> bool,
    ) {
        let Some(_guard) = self.update.try_lock() else {
            return;
        };
        let first = runs().next().map_or(u64::MAX, |(first, _)| first);
        let end = runs().last().map_or(0, |(_, end)| end);
        let bits = u64::BITS.saturating_sub(end.saturating_sub(first).leading_zeros());
        let shift = bits.saturating_sub(BUCKETS.trailing_zeros());
        let mut buckets = 0;
        for run in runs() {
            buckets |= mask(run, first, shift).unwrap_or(u64::MAX);
        }
        if !is_current() {
            return;
        }
        let first = first.saturating_mul(1 << SECTOR_SHIFT);
        let end = end.saturating_mul(1 << SECTOR_SHIFT);

        self.sequence.store(INVALID, Relaxed);
        // ORDERING: pairs with the barrier in `is_good()`: a reader that sees one of the new words
        // does not see the old number after it. The release below pairs with `is_of()`: a reader
        // that sees the new number sees all new words.
        smp_mb(Write);
        self.shift.store(shift, Relaxed);
        self.end.store(end, Relaxed);
        self.first.store(first, Relaxed);
        self.end_page.store(end.div_ceil(PAGE_SIZE as u64), Relaxed);
        self.first_page.store(first >> PAGE_SHIFT, Relaxed);
        self.buckets.store(buckets, Relaxed);
        self.sequence.store(u64::from(sequence), Release);
    }
}

/// Returns the buckets from sector `start` on that have any of the sectors of a run. [`None`] if a
/// sector is in no bucket.
fn mask((first, end): Run, start: u64, shift: u32) -> Option<u64> {
    let from = u32::try_from(first.checked_sub(start)?.checked_shr(shift)?).ok()?;
    let last = end.checked_sub(1)?.checked_sub(start)?.checked_shr(shift)?;
    let last = u32::try_from(last).ok()?;
    if from > last || last >= BUCKETS {
        return None;
    }

    let above = u64::MAX.checked_shl(from)?;
    let below = u64::MAX.checked_shr((BUCKETS - 1).checked_sub(last)?)?;
    Some(above & below)
}
