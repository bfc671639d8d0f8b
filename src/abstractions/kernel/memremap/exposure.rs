// SPDX-License-Identifier: GPL-2.0

//! The record of the pages that may be in use.
//!
//! Once a chunk is marked it stays so. A search for users looks at all pages that were ever given
//! away, and at nothing else.

use crate::abstractions::kernel::memremap::{
    access_state::Gate,
    bindings, //
};
use crate::abstractions::kernel_ext::{
    list::Array,
    sync::atomic::read_once, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// The pages of a pgmap of which the DAX core was ever told the frame numbers.
///
/// Page tables, entries of page caches, pipes and DMA engines refer to such pages only. They are
/// remembered by chunks, so that the record is small, and so that marking one that is marked
/// already, which is the rule, is a load and a test.
///
/// # Invariants
///
/// There is a bit for each chunk that has some of the frames.
pub(in crate::abstractions) struct Exposure {
    /// The chunk that the first bit is about.
    first: usize,
    bits: Array<Atomic<usize>>,
}

impl Exposure {
    /// A chunk has the pages of a page middle directory.
    const SHIFT: u32 = bindings::PMD_ORDER;
    const BITS: usize = usize::BITS as usize;

    /// Makes an empty record for these page frames.
    pub(in crate::abstractions) fn new(frames: &Range<u64>) -> Result<Self> {
        let first = usize::try_from(frames.start >> Self::SHIFT)?;
        let last = usize::try_from(frames.end.saturating_sub(1) >> Self::SHIFT)?;
        let chunks = last.saturating_sub(first).saturating_add(1);

        // INVARIANT: As computed.
        Ok(Self {
            first,
            bits: Array::zeroed(chunks.div_ceil(Self::BITS))?,
        })
    }

    /// The word and the bit for the chunk of a page frame.
    #[inline]
    fn place(&self, chunk: usize) -> Option<(&Atomic<usize>, usize)> {
        let bit = chunk.wrapping_sub(self.first);
        let word = self.bits.get(bit / Self::BITS)?;

        Some((word, 1 << (bit % Self::BITS)))
    }

    /// Returns the page frame that the first chunk starts with.
    fn start(&self) -> usize {
        self.first << Self::SHIFT
    }

    /// Returns whether the `nr_pages` page frames from a frame on, which is counted from the start
    /// of the first chunk, were added before. It says no if they are in more than one chunk, or
    /// none.
    ///
    /// # Safety
    ///
    /// The frame must be one that the record was made for.
    #[inline]
    unsafe fn has(&self, frame: usize, nr_pages: usize) -> bool {
        const MASK: usize = (1 << Exposure::SHIFT) - 1;
        let behind_first = !frame & MASK;
        let bit = frame >> Self::SHIFT;

        nr_pages.wrapping_sub(1) <= behind_first && {
            // SAFETY: By the safety requirements and the type invariant, its chunk has a bit.
            let word = unsafe { self.bits.get_unchecked(bit / Self::BITS) };
            read_once(word) & (1 << (bit % Self::BITS)) != 0
        }
    }

    /// Adds the `nr_pages` page frames from `pfn` on; at least one.
    ///
    /// ORDERING: none here, nor in [`Self::has`]. A full barrier follows before the gate is looked
    /// at.
    #[cold]
    pub(super) fn add(&self, pfn: usize, nr_pages: usize) {
        let last = pfn.saturating_add(nr_pages.saturating_sub(1)) >> Self::SHIFT;
        let mut chunk = pfn >> Self::SHIFT;

        while let Some((word, mask)) = self.place(chunk) {
            let mut old = word.load(Relaxed);

            while old & mask == 0 {
                match word.cmpxchg(old, old | mask, Relaxed) {
                    Ok(_) => break,
                    Err(current) => old = current,
                }
            }
            if chunk >= last {
                break;
            }
            chunk = chunk.wrapping_add(1);
        }
    }

    /// Returns the first page frame from `pfn` on in a chunk that was exposed; it may be one that
    /// is not itself exposed.
    pub(super) fn next(&self, pfn: usize) -> Option<usize> {
        let from = pfn >> Self::SHIFT;
        let mut chunk = from;

        while let Some((word, mask)) = self.place(chunk) {
            let word = word.load(Relaxed);
            if word & mask != 0 {
                return Some(pfn.max(chunk << Self::SHIFT));
            }
            chunk = if word == 0 {
                // On to the next word.
                let bit = chunk.wrapping_sub(self.first);
                chunk.wrapping_add(Self::BITS.wrapping_sub(bit % Self::BITS))
            } else {
                chunk.wrapping_add(1)
            };
        }
        None
    }

    /// Returns the size of all chunks that were exposed, in bytes.
    pub(super) fn bytes(&self) -> u64 {
        let chunks = self.bits.iter().fold(0, |sum: u32, word| {
            sum.saturating_add(word.load(Relaxed).count_ones())
        });

        u64::from(chunks) << (Self::SHIFT + PAGE_SHIFT as u32)
    }
}

/// Pages that translations give away, the record of that, and the gate that all translations pass.
///
/// # Invariants
///
/// For as long as this lives, the `nr_pages` pages from `addr` on are mapped in the kernel, except
/// those that have failed, and have `struct page`s, from page frame `first_pfn` on. The last
/// address, and the last page frame, are numbers. `exposure` is a record for all of these frames.
pub(in crate::abstractions) struct Pages {
    addr: NonNull<u8>,
    first_pfn: usize,
    /// How many page frames the first chunk of the record has before these.
    lead: usize,
    nr_pages: usize,
    pub(in crate::abstractions) exposure: Exposure,
    pub(in crate::abstractions) gate: Gate,
}

impl Pages {
    /// Puts together what is known of some pages.
    ///
    /// # Safety
    ///
    /// See the type invariants.
    pub(in crate::abstractions) unsafe fn new(
        addr: NonNull<u8>,
        first_pfn: usize,
        nr_pages: usize,
        exposure: Exposure,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            addr,
            first_pfn,
            lead: first_pfn.wrapping_sub(exposure.start()),
            nr_pages,
            exposure,
            gate: Gate::new(),
        }
    }

    /// Returns how many pages there are from one on, or [`None`] if there are none.
    #[inline]
    pub(in crate::abstractions) fn nr_from(&self, pgoff: usize) -> Option<usize> {
        if pgoff >= self.nr_pages {
            return None;
        }
        // Does not wrap around, as has just been seen.
        Some(self.nr_pages.wrapping_sub(pgoff))
    }

    /// Returns the page frame number of a page, which is for
    /// [`Extent`](crate::abstractions::kernel::dax::Extent) to expose.
    #[inline]
    pub(in crate::abstractions) fn pfn(&self, pgoff: usize) -> usize {
        // Does not wrap around for a page that there is.
        self.first_pfn.wrapping_add(pgoff)
    }

    /// Returns whether `nr_pages` pages from one on are known to have been exposed: if they are in
    /// one chunk, which was.
    ///
    /// # Safety
    ///
    /// There must be such a page.
    #[inline]
    pub(in crate::abstractions) unsafe fn are_exposed(
        &self,
        pgoff: usize,
        nr_pages: usize,
    ) -> bool {
        // SAFETY: By the type invariant the record was made for all frames, of which the page's is
        // one.
        unsafe { self.exposure.has(self.lead.wrapping_add(pgoff), nr_pages) }
    }

    /// Records that `nr_pages` pages from one on are exposed; at least one.
    pub(in crate::abstractions) fn expose(&self, pgoff: usize, nr_pages: usize) {
        self.exposure.add(self.pfn(pgoff), nr_pages);
    }

    /// Returns the address of a page.
    #[inline]
    pub(in crate::abstractions) fn addr(&self, pgoff: usize) -> *mut u8 {
        // Points into the mapping for a page that there is.
        self.addr.as_ptr().wrapping_add(pgoff << PAGE_SHIFT)
    }
}

// SAFETY: Nothing here refers to a thread, and what is there is not accessed by this.
unsafe impl Send for Pages {}

// SAFETY: As above; the record is `Sync`.
unsafe impl Sync for Pages {}

#[kunit_tests(pmem_rs_exposure)]
mod tests {
    use super::*;

    #[test]
    fn what_was_exposed_is_found() -> Result {
        const CHUNK: u64 = 1 << Exposure::SHIFT;
        let exposure = Exposure::new(&(1000 * CHUNK + 7..2000 * CHUNK))?;
        let start = 1000 * CHUNK as usize;

        assert_eq!(exposure.next(start), None);
        let page = start + 70 * CHUNK as usize + 3;
        // SAFETY: The frame is one of the first chunk or a later one.
        let has = |pfn: usize, nr| unsafe { exposure.has(pfn - start, nr) };
        assert!(!has(page, 1));
        exposure.add(page, 1);
        exposure.add(page, 1);
        assert!(has(page, 1) && has(page, CHUNK as usize - 3));
        // Some of the next chunk, too, and none.
        assert!(!has(page, CHUNK as usize - 2) && !has(page, usize::MAX) && !has(page, 0));
        assert!(!has(page - CHUNK as usize, 1) && !has(page + CHUNK as usize, 1));
        assert_eq!(exposure.next(start), Some(start + 70 * CHUNK as usize));
        assert_eq!(
            exposure.next(start + 70 * CHUNK as usize + 9),
            Some(start + 70 * CHUNK as usize + 9)
        );
        assert_eq!(exposure.next(start + 71 * CHUNK as usize), None);
        // Two pages on either side of a border, and what is not there at all.
        exposure.add(start + 801 * CHUNK as usize - 1, 2);
        exposure.add(0, 1);
        exposure.add(3000 * CHUNK as usize, 1);
        assert_eq!(exposure.bytes(), 3 * CHUNK << PAGE_SHIFT);
        assert_eq!(
            exposure.next(start + 71 * CHUNK as usize),
            Some(start + 800 * CHUNK as usize)
        );
        assert_eq!(
            exposure.next(start + 801 * CHUNK as usize),
            Some(start + 801 * CHUNK as usize)
        );
        assert_eq!(exposure.next(start + 802 * CHUNK as usize), None);
        Ok(())
    }
}
