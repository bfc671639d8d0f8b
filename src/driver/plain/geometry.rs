// SPDX-License-Identifier: GPL-2.0

//! Arithmetic of sectors, pages and ranges.
//!
//! What comes in is untrusted: sectors and lengths from requests, page offsets from file systems,
//! offsets from info blocks on the medium. So nothing here can overflow or panic, and everything
//! that does not fit is [`None`].
//!
//! Only `core` is used; `tests/host` compiles this file for the host and tests it there.

/// The unit of the block layer, whatever the size of a block of the disk, is `1 << SECTOR_SHIFT`.
pub const SECTOR_SHIFT: u32 = 9;

/// Whether a range of addresses is whole pages, and at least one. `page_size` is a power of two.
pub fn is_whole_pages(range: &core::ops::Range<u64>, page_size: u64) -> bool {
    let Some(in_page) = page_size.checked_sub(1) else {
        return false;
    };

    !range.is_empty() && (range.start | range.end) & in_page == 0
}

/// A part of a device, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it starts.
    pub offset: usize,
    /// How many bytes it has.
    pub len: usize,
}

impl Span {
    /// The `len` bytes from `sector` on, if they are whole blocks and within `size` bytes.
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

    /// The `nr` pages from page `pgoff` on, if there is at least one and all are within `size`
    /// bytes.
    #[inline]
    pub fn of_pages(pgoff: usize, nr: usize, page_shift: usize, size: usize) -> Option<Self> {
        let pages = size.checked_shr(u32::try_from(page_shift).ok()?)?;

        if nr == 0 || nr > pages.checked_sub(pgoff)? {
            return None;
        }
        // No bit is lost: both are at most `pages`.
        Some(Self {
            offset: pgoff << page_shift,
            len: nr << page_shift,
        })
    }

    /// From page `pgoff` to the end of the whole pages of `size` bytes, if there is a page.
    #[inline]
    pub fn from_page(pgoff: usize, page_shift: usize, size: usize) -> Option<Self> {
        let pages = size.checked_shr(u32::try_from(page_shift).ok()?)?;

        Self::of_pages(pgoff, pages.checked_sub(pgoff)?, page_shift, size)
    }

    /// The whole pages that the span touches.
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

    /// The part from `skip` bytes into the span on that has `len` bytes, if it is within the span.
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

    /// The part of the span that is in the page of its first bad sector, and what follows that page
    /// in the span. What is before the page is good.
    ///
    /// `bad_sector` may lie before the span: a run of bad sectors is reported by its start.
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

    /// The sectors that the span touches: the first one, and how many.
    #[inline]
    pub fn sectors(self) -> (u64, u64) {
        let first = self.offset >> SECTOR_SHIFT;
        let beyond = self
            .offset
            .saturating_add(self.len)
            .div_ceil(1 << SECTOR_SHIFT);

        (first as u64, beyond.saturating_sub(first) as u64)
    }

    /// The sectors that are wholly in the span: the first one, and how many.
    pub fn whole_sectors(self) -> (u64, u64) {
        let first = self.offset.div_ceil(1 << SECTOR_SHIFT);
        let beyond = self.offset.saturating_add(self.len) >> SECTOR_SHIFT;

        (first as u64, beyond.saturating_sub(first) as u64)
    }

    /// The pages at the start of the span before the one that `bad_sector` is in; but at least the
    /// first one, since that is the one to be healed.
    ///
    /// `bad_sector` may lie before the span: a run of bad sectors is reported by its start.
    pub fn up_to_bad(self, bad_sector: u64, page_shift: usize) -> Option<Self> {
        let page = 1_usize.checked_shl(u32::try_from(page_shift).ok()?)?;
        let bad = usize::try_from(bad_sector.checked_mul(1 << SECTOR_SHIFT)?).ok()?;
        let good = bad.saturating_sub(self.offset) & !page.checked_sub(1)?;

        self.part(0, good.max(page).min(self.len))
    }
}
