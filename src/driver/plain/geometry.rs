// SPDX-License-Identifier: GPL-2.0

//! Arithmetic of sectors, pages and ranges.
//!
//! The arguments are untrusted: sectors and lengths of requests, page offsets of file systems,
//! offsets in info blocks on the medium. Nothing here overflows or panics. A result that is out of
//! range is [`None`].

use core::ops::Range;

/// The size of a sector of the block layer is `1 << SECTOR_SHIFT`, for every block size of a disk.
pub const SECTOR_SHIFT: u32 = 9;

/// Returns the largest range inside of a range of addresses whose start and end are aligned.
/// [`None`] if it has no address. The alignments are powers of two.
pub fn aligned_inside(
    range: &Range<u64>,
    start_align: u64,
    end_align: u64, //
) -> Option<Range<u64>> {
    let start = range.start.checked_next_multiple_of(start_align)?;
    let end = range.end.checked_sub(range.end.checked_rem(end_align)?)?;

    (start < end).then_some(start..end)
}

/// A part of the data of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The offset in bytes.
    pub offset: usize,
    /// The length in bytes.
    pub len: usize,
}

impl Span {
    /// Returns the `len` bytes from `sector` on, if they are whole blocks and within `size` bytes.
    ///
    /// `block_size` is a power of two.
    #[inline]
    pub fn of_request(sector: u64, len: usize, block_size: u32, size: usize) -> Option<Self> {
        let offset = usize::try_from(sector.checked_mul(1 << SECTOR_SHIFT)?).ok()?;
        let in_block = (block_size as usize).checked_sub(1)?;

        if (offset | len) & in_block != 0 || len > size.checked_sub(offset)? {
            return None;
        }
        Some(Self { offset, len })
    }

    /// Returns the `nr` pages from page `pgoff` on, if `nr` is not 0 and all are within `size`
    /// bytes.
    #[inline]
    pub fn of_pages(pgoff: usize, nr: usize, page_shift: usize, size: usize) -> Option<Self> {
        let pages = size.checked_shr(u32::try_from(page_shift).ok()?)?;

        if nr == 0 || nr > pages.checked_sub(pgoff)? {
            return None;
        }
        // No bit is shifted out: both are at most `pages`.
        Some(Self {
            offset: pgoff << page_shift,
            len: nr << page_shift,
        })
    }

    /// Returns the whole pages of `size` bytes from page `pgoff` on, if there is one.
    #[inline]
    pub fn from_page(pgoff: usize, page_shift: usize, size: usize) -> Option<Self> {
        let pages = size.checked_shr(u32::try_from(page_shift).ok()?)?;

        Self::of_pages(pgoff, pages.checked_sub(pgoff)?, page_shift, size)
    }

    /// Returns the whole pages that the span overlaps.
    pub fn round_to_pages(self, page_shift: usize) -> Option<Self> {
        let in_page = 1_usize
            .checked_shl(u32::try_from(page_shift).ok()?)?
            .checked_sub(1)?;
        let end = self.offset.checked_add(self.len)?.checked_add(in_page)? & !in_page;
        let offset = self.offset & !in_page;

        Some(Self {
            offset,
            len: end.checked_sub(offset)?,
        })
    }

    /// Returns the `len` bytes from `skip` bytes into the span on, if they are within the span.
    #[inline]
    pub fn part(self, skip: usize, len: usize) -> Option<Self> {
        if len > self.len.checked_sub(skip)? {
            return None;
        }
        Some(Self {
            offset: self.offset.checked_add(skip)?,
            len,
        })
    }

    /// Returns the part of the span in the page of its first bad sector, and the part after that
    /// page. The part before the page has no bad sector.
    ///
    /// `bad_sector` may be before the span: it is the start of a run of bad sectors.
    pub fn split_at_bad(self, bad_sector: u64, page_shift: usize) -> Option<(Self, Self)> {
        let page = 1_usize.checked_shl(u32::try_from(page_shift).ok()?)?;
        let bad = usize::try_from(bad_sector.checked_mul(1 << SECTOR_SHIFT)?).ok()?;
        let bad_page = bad.max(self.offset) & !page.checked_sub(1)?;

        let start = bad_page.max(self.offset);
        let end = bad_page
            .checked_add(page)?
            .min(self.offset.checked_add(self.len)?);
        let in_page = self.part(
            start.checked_sub(self.offset)?,
            end.checked_sub(start).filter(|len| *len > 0)?,
        )?;
        let rest = self.part(
            end.checked_sub(self.offset)?,
            self.len.checked_sub(end.checked_sub(self.offset)?)?,
        )?;

        Some((in_page, rest))
    }

    /// Returns the sectors that the span overlaps: the first one, and the number of them.
    #[inline]
    pub fn sectors(self) -> (u64, u64) {
        let first = self.offset >> SECTOR_SHIFT;
        let beyond = self
            .offset
            .saturating_add(self.len)
            .div_ceil(1 << SECTOR_SHIFT);

        (first as u64, beyond.saturating_sub(first) as u64)
    }

    /// Returns the sectors that are wholly in the span: the first one, and the number of them.
    pub fn whole_sectors(self) -> (u64, u64) {
        let first = self.offset.div_ceil(1 << SECTOR_SHIFT);
        let beyond = self.offset.saturating_add(self.len) >> SECTOR_SHIFT;

        (first as u64, beyond.saturating_sub(first) as u64)
    }

    /// Returns the pages of the span before the page of `bad_sector`, but at least the first page:
    /// if that is bad, its poison is cleared.
    ///
    /// `bad_sector` may be before the span: it is the start of a run of bad sectors.
    pub fn up_to_bad(self, bad_sector: u64, page_shift: usize) -> Option<Self> {
        let page = 1_usize.checked_shl(u32::try_from(page_shift).ok()?)?;
        let bad = usize::try_from(bad_sector.checked_mul(1 << SECTOR_SHIFT)?).ok()?;
        let good = bad.saturating_sub(self.offset) & !page.checked_sub(1)?;

        self.part(0, good.max(page).min(self.len))
    }
}
