// SPDX-License-Identifier: GPL-2.0

//! Lists of bad sectors of a disk, or of bad pages of a mapping.
//!
//! C header: [`include/linux/badblocks.h`](srctree/include/linux/badblocks.h)

mod index;

use self::index::{
    Index,
    Run, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Read, //
};
use crate::abstractions::kernel::kernfs::Dirent;
use crate::abstractions::kernel_ext::sync::atomic::acquire;
use core::ptr::{
    addr_of,
    NonNull, //
};
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    sync::SetOnce,
    types::Opaque, //
};

/// The number of entries that a list has room for (`MAX_BADBLOCKS`).
const MAX_ENTRIES: usize = PAGE_SIZE / size_of::<u64>();

/// The number of sectors that a list can describe: an entry has 54 bits for the first sector of a
/// run (`BB_MAKE`).
const MAX_SECTORS: u64 = 1 << 54;

/// The number of sectors that the C functions can count.
///
/// They take 64-bit numbers of sectors, but `_badblocks_check()` and `_badblocks_clear()` in
/// `block/badblocks.c` store them in an `int`. From 1 TiB on the first may warn, and both may never
/// return.
const MAX_CHUNK: u64 = 1 << 30;

/// An entry of the list that a [`Badblocks::check`] found: a run of bad sectors, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRange {
    /// The first sector of the entry. It may be before the sectors that were checked.
    pub first: u64,
    /// The number of sectors of the entry, at most 512. The sectors after them may be bad too.
    pub sectors: u64,
}

/// A list of bad sectors, or of bad pages: the unit does not matter to the C side.
///
/// All operations may be called by several threads at once, with interrupts enabled. The C side
/// serialises them with a seqlock.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::badblocks::Badblocks;
///
/// let list = KBox::pin_init(Badblocks::new(), GFP_KERNEL)?;
///
/// // The owner of the list adds bad sectors.
/// assert!(list.is_empty());
/// assert!(list.check(0, 8).is_none());
///
/// // Poison is cleared first, then the sectors are removed from the list.
/// if let Some(bad) = list.check(0, 8) {
///     list.clear(bad.first, bad.sectors)?;
/// }
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` was initialised by `badblocks_init` and stays where it is until it is dropped.
#[pin_data(PinnedDrop)]
#[repr(C)]
pub struct Badblocks {
    #[pin]
    inner: Opaque<bindings::badblocks>,
    #[pin]
    index: Index,
    attribute: SetOnce<Dirent>,
}

// SAFETY: `struct badblocks` may be used and freed by any thread, and so may the other fields.
unsafe impl Send for Badblocks {}

// SAFETY: `struct badblocks` is protected by its own seqlock, and the other fields are `Sync`.
unsafe impl Sync for Badblocks {}

impl Badblocks {
    /// Creates an empty list.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Initialised here, and pinned from here on.
            inner <- Opaque::try_ffi_init(|slot: *mut bindings::badblocks| {
                // SAFETY: `slot` is valid for writing. All zeroes is what the C users start from.
                unsafe { slot.write_bytes(0, 1) };

                // SAFETY: `slot` is zeroed, and is pinned from here on.
                to_result(unsafe { bindings::badblocks_init(slot, 1) })
            }),
            index <- Index::new(),
            attribute: SetOnce::new(),
        })
    }

    /// Sets the sysfs attribute that shows the list, whose pollers [`Self::add`], [`Self::clear`]
    /// and [`Self::notify`] wake. Changes by C code do not. Only the first call has an effect.
    pub fn set_attribute(&self, attribute: Dirent) {
        self.attribute.populate(attribute);
    }

    /// Wakes the pollers of the attribute.
    pub fn notify(&self) {
        if let Some(attribute) = self.attribute.as_ref() {
            attribute.notify();
        }
    }

    /// Returns whether there are no bad sectors.
    ///
    /// The list may change before the caller sees the result, as with C users of
    /// `badblocks::count`.
    ///
    /// ORDERING: what is read after this is not older than the count. A bad sector is overwritten
    /// first, and then removed from the list. So if the list is seen empty, what was written to the
    /// sector is read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // SAFETY: By the type invariant the field is initialised. It is written under a lock that
        // is not taken here; a volatile read of an aligned `int` cannot tear.
        let count = unsafe { addr_of!((*self.inner.get()).count).read_volatile() };

        acquire();
        count == 0
    }

    /// Returns the sequence number of the list, which is odd while the list is being changed.
    #[inline(always)]
    fn sequence(&self) -> u32 {
        // SAFETY: By the type invariant the field is initialised. A volatile read of an aligned
        // `unsigned int` cannot tear.
        unsafe { addr_of!((*self.inner.get()).lock.seqcount.seqcount.sequence).read_volatile() }
    }

    /// Returns whether the `len` bytes from `offset` on are known to have no bad sector. The list
    /// must be one of sectors of 512 bytes.
    ///
    /// Takes a few instructions, and knows sectors before the first bad one and after the last. If
    /// it returns false, [`Self::check`] finds out whether there is a bad sector, and makes this
    /// function work again after a change of the list.
    #[inline(always)]
    pub fn is_known_good(&self, offset: u64, len: u64) -> bool {
        self.index.is_of(self.sequence())
            && (self.index.is_behind(offset) || self.index.is_before(offset, len))
    }

    /// Returns whether the `nr` pages from page `pgoff` on are known to have no bad sector; see
    /// [`Self::is_known_good`]. The list must be one of sectors of 512 bytes.
    #[inline(always)]
    pub fn are_pages_known_good(&self, pgoff: u64, nr: u64) -> bool {
        self.index.is_of(self.sequence())
            && (self.index.are_pages_behind(pgoff) || self.index.are_pages_before(pgoff, nr))
    }

    /// Makes the index for the current list, if it is for an earlier one.
    fn update_index(&self) {
        let sequence = self.sequence();
        if sequence & 1 != 0 || self.index.is_of(sequence) {
            return;
        }

        // ORDERING: pairs with the barriers of the seqlock. If the number is the same before and
        // after, the list has not changed in between.
        smp_mb(Read);
        self.index.make(
            sequence,
            || self.runs(),
            || {
                smp_mb(Read);
                self.sequence() == sequence
            },
        );
    }

    /// Returns the entries of the list, which are in ascending order unless the list is being
    /// changed. Two entries may be parts of one run.
    fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let raw = self.inner.get();
        // SAFETY: By the type invariant the fields are initialised. `page` does not change.
        let (page, count) = unsafe {
            (
                addr_of!((*raw).page).read(),
                addr_of!((*raw).count).read_volatile(),
            )
        };
        let count = usize::try_from(count).unwrap_or(0).min(MAX_ENTRIES);

        (0..count).map(move |index| {
            // SAFETY: `page` has this many entries, which any thread may read. A volatile read of
            // an aligned `u64` cannot tear.
            let entry = unsafe { page.add(index).read_volatile() };
            let first = (entry & bindings::BB_OFFSET_MASK) >> 9;
            let sectors = (entry & u64::from(bindings::BB_LEN_MASK)).saturating_add(1);

            (first, first.saturating_add(sectors))
        })
    }

    /// Returns the first entry that has any of the `sectors` sectors from `first` on.
    pub fn check(&self, first: u64, sectors: u64) -> Option<BadRange> {
        self.update_index();
        if self.is_empty() || self.index.is_good(self.sequence(), (first, sectors)) {
            return None;
        }

        chunks(first, self.within(first, sectors))
            .find_map(|(first, sectors)| self.check_chunk(first, sectors))
    }

    /// Leaves out the sectors after the last bad one, so that a loop over the [`chunks`] ends soon.
    /// Returns the number of sectors from `first` on that are left: all, if they are one chunk, or
    /// if the list is being changed.
    fn within(&self, first: u64, sectors: u64) -> u64 {
        if sectors <= MAX_CHUNK {
            return sectors;
        }
        let sequence = self.sequence();

        // ORDERING: as in `update_index`.
        smp_mb(Read);
        let end = self.runs().map(|(_, end)| end).max().unwrap_or(0);
        smp_mb(Read);
        if sequence & 1 == 0 && self.sequence() == sequence {
            sectors.min(end.saturating_sub(first))
        } else {
            sectors
        }
    }

    /// As [`Self::check`], for one of the [`chunks`].
    fn check_chunk(&self, first: u64, sectors: u64) -> Option<BadRange> {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { check_chunk(self.inner.get(), first, sectors) }
    }

    /// Adds the `sectors` sectors from `first` on, and wakes the pollers of the attribute.
    ///
    /// # Errors
    ///
    /// - [`ENOSPC`] if the list is full (`MAX_BADBLOCKS` entries of at most 512 sectors), even if
    ///   the sectors are on it already. Some of them may be added.
    /// - [`EINVAL`] if the numbers of some sectors are 2^54 or more: the C side would add others.
    pub fn add(&self, first: u64, sectors: u64) -> Result {
        if first
            .checked_add(sectors)
            .is_none_or(|end| end > MAX_SECTORS)
        {
            return Err(EINVAL);
        }
        let result = chunks(first, sectors).try_for_each(|(first, sectors)| {
            // SAFETY: By the type invariant `inner` is initialised.
            let all = unsafe { bindings::badblocks_set(self.inner.get(), first, sectors, 1) };

            if all {
                Ok(())
            } else {
                Err(ENOSPC)
            }
        });
        self.notify();
        result
    }

    /// Returns whether all of the `sectors` sectors from `first` on are bad.
    pub fn contains(&self, first: u64, sectors: u64) -> bool {
        let end = first.saturating_add(sectors);
        let mut next = first;

        while next < end {
            let Some(bad) = self.check(next, 1) else {
                return false;
            };
            next = bad
                .first
                .saturating_add(bad.sectors)
                .max(next.saturating_add(1));
        }
        true
    }

    /// Removes the `sectors` sectors from `first` on, and wakes the pollers of the attribute.
    ///
    /// Interrupts must be enabled, as this enables them (`write_sequnlock_irq()`).
    ///
    /// # Errors
    ///
    /// [`ENOSPC`] if some of them are still on the list: they are in the middle of a run, and there
    /// is no room to make two runs of it (`_badblocks_clear()` in `block/badblocks.c`, which does
    /// not return an error in all cases).
    pub fn clear(&self, first: u64, sectors: u64) -> Result {
        if sectors == 0 {
            return Ok(());
        }

        for (first, sectors) in chunks(first, self.within(first, sectors)) {
            // SAFETY: By the type invariant `inner` is initialised.
            unsafe { bindings::badblocks_clear(self.inner.get(), first, sectors) };
        }
        self.notify();
        match self.check(first, sectors) {
            None => Ok(()),
            Some(_) => Err(ENOSPC),
        }
    }

    /// Returns the C structure, which is valid as long as `self` is.
    pub(in crate::abstractions) fn as_raw(&self) -> NonNull<bindings::badblocks> {
        NonNull::from(&self.inner).cast()
    }
}

/// As [`Badblocks::check`], for a list of the C side.
///
/// # Safety
///
/// The list must be initialised.
pub(in crate::abstractions) unsafe fn check(
    list: *mut bindings::badblocks,
    first: u64,
    sectors: u64,
) -> Option<BadRange> {
    chunks(first, sectors).find_map(|(first, sectors)| {
        // SAFETY: By the safety requirements.
        unsafe { check_chunk(list, first, sectors) }
    })
}

/// As [`check`], for one of the [`chunks`].
///
/// # Safety
///
/// As that of [`check`].
unsafe fn check_chunk(
    list: *mut bindings::badblocks,
    first: u64,
    sectors: u64,
) -> Option<BadRange> {
    let mut bad = BadRange {
        first: 0,
        sectors: 0,
    };
    // SAFETY: By the safety requirements. The results go to local variables.
    let found = unsafe {
        bindings::badblocks_check(list, first, sectors, &mut bad.first, &mut bad.sectors)
    };

    (found != 0).then_some(bad)
}

/// Splits a request into parts that the C functions can handle. None is empty, for which
/// `badblocks_check()` warns. Leaves out sectors that cannot be on a list.
fn chunks(first: u64, sectors: u64) -> impl Iterator<Item = (u64, u64)> {
    let mut rest = sectors.min(MAX_SECTORS.saturating_sub(first));
    let mut next = first;

    core::iter::from_fn(move || {
        let len = rest.min(MAX_CHUNK);
        if len == 0 {
            return None;
        }
        let chunk = (next, len);
        rest = rest.saturating_sub(len);
        next = next.saturating_add(len);
        Some(chunk)
    })
}

#[pinned_drop]
impl PinnedDrop for Badblocks {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant `inner` is initialised, and a dropped list has no users.
        unsafe { bindings::badblocks_exit(self.inner.get()) };
    }
}

#[kunit_tests(pmem_rs_badblocks)]
mod tests {
    use super::*;

    fn list_of(runs: &[(u64, u64)]) -> Result<Pin<KBox<Badblocks>>> {
        let list = KBox::pin_init(Badblocks::new(), GFP_KERNEL)?;

        for (first, sectors) in runs {
            list.add(*first, *sectors)?;
        }
        Ok(list)
    }

    #[test]
    fn a_new_list_is_empty() -> Result {
        let list = list_of(&[])?;

        assert!(list.is_empty());
        assert!(list.check(0, u64::MAX).is_none());
        Ok(())
    }

    #[test]
    fn a_run_is_found_by_every_overlapping_check() -> Result {
        let list = list_of(&[(100, 8)])?;
        let run = BadRange {
            first: 100,
            sectors: 8,
        };

        assert!(!list.is_empty());
        assert!(list.check(92, 8).is_none());
        assert!(list.check(92, 9) == Some(run));
        assert!(list.check(104, 1) == Some(run));
        assert!(list.check(107, 50) == Some(run));
        assert!(list.check(108, 50).is_none());
        Ok(())
    }

    #[test]
    fn the_first_of_several_runs_is_found() -> Result {
        let list = list_of(&[(5000, 1), (300, 2), (40, 3)])?;

        assert!(list.check(0, 10000).is_some_and(|bad| bad.first == 40));
        assert!(list.check(43, 10000).is_some_and(|bad| bad.first == 300));
        assert!(list.check(302, 10000).is_some_and(|bad| bad.first == 5000));
        Ok(())
    }

    #[test]
    fn cleared_sectors_are_good() -> Result {
        let list = list_of(&[(100, 8)])?;

        list.clear(102, 2)?;
        assert!(list.check(102, 2).is_none());
        assert!(list.check(100, 2).is_some());
        assert!(list.check(104, 4).is_some());
        list.clear(0, 1 << 40)?;
        assert!(list.is_empty());
        Ok(())
    }

    #[test]
    fn no_sectors_are_never_bad() -> Result {
        let list = list_of(&[(100, 8)])?;

        assert!(list.check(104, 0).is_none());
        list.clear(104, 0)?;
        assert!(list.check(104, 1).is_some());
        Ok(())
    }

    #[test]
    fn a_full_list_returns_an_error() -> Result {
        let list = list_of(&[])?;
        // Runs that do not touch, so that they cannot be merged.
        let refused = (0..PAGE_SIZE as u64).find(|run| list.add(run * 4, 1).is_err());

        assert!(refused.is_some_and(|run| run > 100));
        list.clear(0, 1)?;
        list.add(2, 1)?;
        assert!(list.check(0, 3).is_some_and(|bad| bad.first == 2));
        Ok(())
    }

    #[test]
    fn a_run_that_a_full_list_cannot_split_stays() -> Result {
        let list = list_of(&[(1 << 20, 24)])?;
        // Runs that do not touch.
        let refused = (0..PAGE_SIZE as u64).find(|run| list.add(run * 4, 1).is_err());

        assert!(refused.is_some());

        assert!(list.clear((1 << 20) + 8, 8).is_err_and(|err| err == ENOSPC));
        assert!(list.contains(1 << 20, 24));
        // The end of a run needs no room.
        list.clear((1 << 20) + 8, 16)?;
        assert!(list.contains(1 << 20, 8));
        Ok(())
    }

    #[test]
    fn contains_checks_all_sectors() -> Result {
        // More than one entry of the C list.
        let list = list_of(&[(100, 1000), (1100, 8), (1109, 1)])?;

        assert!(list.contains(100, 1008));
        assert!(list.contains(500, 1));
        assert!(!list.contains(99, 2));
        assert!(!list.contains(1107, 2));
        assert!(!list.contains(1100, 10));
        assert!(list.contains(5, 0));
        Ok(())
    }

    /// As C code does, without changing the index.
    fn set_behind(list: &Badblocks, first: u64, sectors: u64) {
        // SAFETY: The list is initialised.
        let all = unsafe { bindings::badblocks_set(list.inner.get(), first, sectors, 1) };
        assert!(all);
    }

    #[test]
    fn a_change_makes_the_index_invalid_until_the_next_check() -> Result {
        let list = list_of(&[])?;
        let good = |first: u64, sectors: u64| list.is_known_good(first << 9, sectors << 9);

        assert!(good(0, u64::MAX >> 9));
        set_behind(&list, 100, 8);
        assert!(!good(0, 1) && !good(100, 1));
        assert!(list.check(0, 8).is_none());
        assert!(good(0, 100) && good(108, 1 << 30));
        assert!(!good(0, 101) && !good(107, 1) && !good(100, 0x1000));
        // Behind the first bad sector the index is exact up to a bucket.
        set_behind(&list, 1000, 1);
        assert!(list.check(200, 8).is_none());
        assert!(good(99, 1) && good(1001, 1) && !good(1000, 1));
        list.clear(0, 1 << 20)?;
        assert!(list.check(0, 1).is_none());
        assert!(good(0, 1 << 30));
        Ok(())
    }

    #[test]
    fn pages_are_known_as_their_sectors_are() -> Result {
        let list = list_of(&[(81, 1)])?;
        let sectors = PAGE_SIZE as u64 >> 9;
        let bad = 81 / sectors;

        assert!(list.check(0, 1).is_none());
        assert!(list.are_pages_known_good(0, bad) && !list.are_pages_known_good(0, bad + 1));
        assert!(!list.are_pages_known_good(bad, 1));
        assert!(list.are_pages_known_good(bad + 1, u64::MAX));
        assert!(!list.are_pages_known_good(0, u64::MAX));
        Ok(())
    }

    #[test]
    fn the_index_is_never_wrong() -> Result {
        let mut state: u64 = 1;
        let mut random = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            (state >> 33) % limit
        };

        for size in [100, 5000, 1 << 21] {
            let list = list_of(&[])?;
            for round in 0..2000 {
                let (first, sectors) = (random(size), random(size / 8) + 1);
                if round % 50 == 0 {
                    set_behind(&list, random(size), 1);
                } else if round % 190 == 0 {
                    list.clear(first, sectors)?;
                }
                let found = list.check(first, sectors).is_some();
                // The same without the index.
                let right = chunks(first, sectors)
                    .any(|(first, sectors)| list.check_chunk(first, sectors).is_some());
                assert_eq!(found, right);
                assert!(!right || !list.is_known_good(first << 9, sectors << 9));
            }
        }
        Ok(())
    }

    #[test]
    fn sectors_that_no_entry_can_name_are_refused() -> Result {
        let list = list_of(&[(MAX_SECTORS - 8, 8)])?;

        for (first, sectors) in [
            (MAX_SECTORS, 1),
            (MAX_SECTORS - 8, 9),
            (MAX_SECTORS + 100, 1),
            (u64::MAX, 1),
            (0, u64::MAX),
        ] {
            assert!(list.add(first, sectors).is_err_and(|err| err == EINVAL));
        }
        assert!(list.contains(MAX_SECTORS - 8, 8));
        assert!(list.check(0, 200).is_none());
        assert!(list.check(MAX_SECTORS, u64::MAX).is_none());
        list.clear(MAX_SECTORS, u64::MAX)?;
        list.clear(MAX_SECTORS - 8, u64::MAX)?;
        assert!(list.is_empty());
        Ok(())
    }

    // One loop over 2^54 sectors would take seconds.
    #[test]
    fn sectors_after_the_last_bad_one_are_left_out() -> Result {
        let list = list_of(&[(5, 1), (100, 8)])?;

        assert_eq!(list.within(0, u64::MAX), 108);
        assert_eq!(list.within(200, u64::MAX), 0);
        assert_eq!(list.within(200, MAX_CHUNK), MAX_CHUNK);
        assert!(list.check(108, u64::MAX).is_none());
        list.clear(0, u64::MAX)?;
        assert!(list.is_empty());
        Ok(())
    }

    // With these lengths the C function warns, or does not return.
    #[test]
    fn more_sectors_than_an_int_can_count() -> Result {
        let list = list_of(&[(5, 1), (1 << 33, 4)])?;

        assert!(list.check(6, 1 << 31).is_none());
        assert!(list.check(6, 1 << 32).is_none());
        assert!(list
            .check(6, 1 << 34)
            .is_some_and(|bad| bad.first == 1 << 33));
        assert!(list
            .check(6, u64::MAX)
            .is_some_and(|bad| bad.first == 1 << 33));
        Ok(())
    }
}
