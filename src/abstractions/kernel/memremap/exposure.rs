// SPDX-License-Identifier: GPL-2.0

//! The record of the pages that may be in use.
//!
//! A page is recorded as exposed before a translation returns its page frame number. The record has
//! a bit for each chunk of the size that a PMD maps. A bit is never cleared. A search for users
//! looks at all pages of the chunks with exposed pages, and at no others.

use crate::abstractions::bindings;
use crate::abstractions::kernel::numa::Node;
use crate::abstractions::kernel_ext::{
    alloc::vec_on_node,
    sync::atomic::read_once, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The pages of a pgmap whose page frame numbers may ever have been returned to the DAX core.
///
/// Page tables, entries of page caches, pipes and DMA engines refer to such pages only. The record
/// has a bit for each chunk of pages, so it is small. Most translations are of pages that are
/// recorded already, which a load and a test find.
///
/// # Invariants
///
/// There is a bit for each chunk that has any of the page frames.
pub(super) struct Exposure {
    /// The number of the chunk that the first bit stands for.
    first: usize,
    bits: KVVec<Atomic<usize>>,
}

impl Exposure {
    /// A chunk is as large as a PMD maps.
    const SHIFT: u32 = bindings::PMD_ORDER;
    const BITS: usize = usize::BITS as usize;

    /// Makes an empty record for these page frames, in memory of a node. May sleep.
    pub(super) fn new(frames: &Range<u64>, node: Node) -> Result<Self> {
        let first = usize::try_from(frames.start >> Self::SHIFT)?;
        let last = usize::try_from(frames.end.saturating_sub(1) >> Self::SHIFT)?;
        let chunks = last.saturating_sub(first).saturating_add(1);
        let words = chunks.div_ceil(Self::BITS);

        let mut bits = vec_on_node(words, GFP_KERNEL, node)?;
        for _ in 0..words {
            bits.push_within_capacity(Atomic::new(0))
                .map_err(|_| ENOMEM)?;
        }

        // INVARIANT: `chunks` are all that have any of the frames, rounded up to whole words.
        Ok(Self { first, bits })
    }

    /// Returns the word and the mask of the bit for a chunk, if there is one.
    #[inline]
    fn word(&self, chunk: usize) -> Option<(&Atomic<usize>, usize)> {
        let bit = chunk.wrapping_sub(self.first);
        let word = self.bits.get(bit / Self::BITS)?;

        Some((word, 1 << (bit % Self::BITS)))
    }

    /// Returns the first page frame of the first chunk.
    pub(super) fn start(&self) -> usize {
        self.first << Self::SHIFT
    }

    /// Returns whether the `nr_pages` page frames from `frame` on, which is counted from
    /// [`Self::start`], were added before. Returns false if they are in more than one chunk. If
    /// `nr_pages` is not positive, true means that `frame` was added.
    ///
    /// # Safety
    ///
    /// The record must have been made for `frame`.
    #[inline]
    pub(super) unsafe fn has(&self, frame: usize, nr_pages: isize) -> bool {
        const MASK: usize = (1 << Exposure::SHIFT) - 1;
        // If the sum wraps, it is in another chunk: an `isize` is less than half of the numbers.
        let last = frame.wrapping_add_signed(nr_pages).wrapping_sub(1);
        let bit = frame >> Self::SHIFT;

        frame ^ last <= MASK && {
            // SAFETY: By the safety requirements and the type invariant, its chunk has a bit.
            let word = unsafe { self.bits.get_unchecked(bit / Self::BITS) };
            read_once(word) & (1 << (bit % Self::BITS)) != 0
        }
    }

    /// Adds the `nr_pages` page frames from `pfn` on; at least one. Returns whether the chunk of
    /// any of them was not in the record.
    ///
    /// ORDERING: none here, nor in [`Self::has`]. A full barrier follows before the
    /// [access state](super::access_state::AccessState) is read.
    #[cold]
    pub(super) fn add(&self, pfn: usize, nr_pages: usize) -> bool {
        let last = pfn.saturating_add(nr_pages.saturating_sub(1)) >> Self::SHIFT;
        let mut chunk = pfn >> Self::SHIFT;
        let mut is_new = false;

        while let Some((word, mask)) = self.word(chunk) {
            let mut old = word.load(Relaxed);

            while old & mask == 0 {
                match word.cmpxchg(old, old | mask, Relaxed) {
                    Ok(_) => {
                        is_new = true;
                        break;
                    }
                    Err(current) => old = current,
                }
            }
            if chunk >= last {
                break;
            }
            chunk = chunk.wrapping_add(1);
        }
        is_new
    }

    /// Returns the page frame after the last one of the chunk of `pfn`.
    pub(super) fn end_of_chunk(pfn: u64) -> u64 {
        (pfn | ((1 << Self::SHIFT) - 1)).saturating_add(1)
    }

    /// Returns the first page frame from `pfn` on in a chunk with exposed pages. The page itself
    /// need not be exposed.
    pub(super) fn next(&self, pfn: usize) -> Option<usize> {
        let from = pfn >> Self::SHIFT;
        let mut chunk = from;

        while let Some((word, mask)) = self.word(chunk) {
            // The bits of the chunk and of those after it.
            let rest = word.load(Relaxed) & mask.wrapping_neg();
            // The number of the first bit of the word.
            let first = chunk.wrapping_sub(mask.trailing_zeros() as usize);
            if rest != 0 {
                let found = first.wrapping_add(rest.trailing_zeros() as usize);
                return Some(pfn.max(found << Self::SHIFT));
            }
            chunk = first.wrapping_add(Self::BITS);
        }
        None
    }

    /// Returns the size in bytes of all chunks with exposed pages.
    pub(super) fn bytes(&self) -> u64 {
        let chunks = self.bits.iter().fold(0, |sum: u32, word| {
            sum.saturating_add(word.load(Relaxed).count_ones())
        });

        u64::from(chunks) << (Self::SHIFT + PAGE_SHIFT as u32)
    }
}

#[kunit_tests(pmem_rs_exposure)]
mod tests {
    use super::*;

    #[test]
    fn what_was_exposed_is_found() -> Result {
        const CHUNK: u64 = 1 << Exposure::SHIFT;
        let exposure = Exposure::new(&(1000 * CHUNK + 7..2000 * CHUNK), Node::NONE)?;
        let start = 1000 * CHUNK as usize;

        assert_eq!(exposure.next(start), None);
        let page = start + 70 * CHUNK as usize + 3;
        // SAFETY: The frame is one of the first chunk or a later one.
        let has = |pfn: usize, nr| unsafe { exposure.has(pfn - start, nr) };
        assert!(!has(page, 1));
        assert!(exposure.add(page, 1));
        assert!(!exposure.add(page, 1));
        assert!(has(page, 1) && has(page, CHUNK as isize - 3));
        // The chunk of the page, if none is asked for, unless that is the previous one.
        assert!(has(page, 0) && has(page, -1) && !has(page - 3, 0));
        // Some of the next chunk, too.
        assert!(!has(page, CHUNK as isize - 2) && !has(page, isize::MAX));
        assert!(!has(page - CHUNK as usize, 1) && !has(page + CHUNK as usize, 1));
        assert_eq!(exposure.next(start), Some(start + 70 * CHUNK as usize));
        assert_eq!(
            exposure.next(start + 70 * CHUNK as usize + 9),
            Some(start + 70 * CHUNK as usize + 9)
        );
        assert_eq!(exposure.next(start + 71 * CHUNK as usize), None);
        // Two pages on either side of a border, and what is not there at all.
        assert!(exposure.add(start + 801 * CHUNK as usize - 1, 2));
        assert!(!exposure.add(0, 1));
        assert!(!exposure.add(3000 * CHUNK as usize, 1));
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
