// SPDX-License-Identifier: GPL-2.0

//! The room that `struct page`s need on the medium, between the info block and the data.
//!
//! The medium is untrusted: nothing here overflows or panics. `tests/host/tests/infoblock.rs`
//! compiles it for the host.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

use super::infoblock::{
    Expected,
    InfoBlockError, //
};

/// The size and the alignment of a block of the memory map on the medium (`PMD_SIZE` with pages of
/// 4 KiB).
const MEMMAP_BLOCK: u64 = 2 << 20;

impl Expected {
    /// Returns whether the `struct page`s of `len` bytes fit before the data.
    ///
    /// The kernel allocates the memory map of a section in blocks of 2 MiB, and libnvdimm aligns
    /// the data to them (`nd_pfn_init()`). With less room the kernel warns, and never unmaps the
    /// range.
    pub(super) fn has_room_for_memmap(&self, start: u64, len: u64, data_offset: u64) -> bool {
        let needed = || {
            let end = match self.section {
                Some(section) => self.end_of_memmap_with_parts(start, len, section)?,
                None => {
                    let pages = self.memmap_of(len.checked_sub(self.reserve)?)?;
                    let end = start.checked_add(self.reserve)?.checked_add(pages)?;
                    end.checked_next_multiple_of(MEMMAP_BLOCK)?
                }
            };

            end.checked_sub(start)
        };
        needed().is_some_and(|needed| data_offset >= needed)
    }

    /// Returns the size of the `struct page`s of `len` bytes.
    fn memmap_of(&self, len: u64) -> Option<u64> {
        len.checked_div(self.page_size)?
            .checked_mul(self.page_struct_size)
    }

    /// Returns where the memory map of `len` bytes ends on arm64 (`vmemmap_populate()`).
    ///
    /// It is allocated in the order of addresses: single pages for the part of a section in which
    /// the range starts, blocks for whole sections if pages have 4 KiB, and single pages for the
    /// part at the end. A block is aligned, also if there are pages before it.
    fn end_of_memmap_with_parts(&self, start: u64, len: u64, section: u64) -> Option<u64> {
        const SMALL_PAGE: u64 = 4 << 10;
        let block = match self.page_size {
            SMALL_PAGE => MEMMAP_BLOCK,
            other => other,
        };
        let end = start.checked_add(len)?;
        let first = start.checked_next_multiple_of(section)?.min(end);
        let sections = end.checked_sub(first)?.checked_div(section)?;
        let rest = end.checked_sub(first)?.checked_rem(section)?;
        let in_pages = |len| {
            self.memmap_of(len)?
                .checked_next_multiple_of(self.page_size)
        };

        let mut at = start
            .checked_add(self.reserve)?
            .checked_add(in_pages(first.checked_sub(start)?)?)?;
        if sections > 0 {
            let of_section = self.memmap_of(section)?.checked_next_multiple_of(block)?;
            at = at
                .checked_next_multiple_of(block)?
                .checked_add(sections.checked_mul(of_section)?)?;
        }
        at.checked_add(in_pages(rest)?)
    }

    /// Checks that a new pfn device, whose data are to be aligned to `align`, can be used with the
    /// block that libnvdimm will write (`nd_pfn_init()`).
    pub(super) fn check_new(&self, align: u64, on_medium: bool) -> Result<(), InfoBlockError> {
        if self.start & self.start_align.saturating_sub(1) != 0 {
            return Err(InfoBlockError::StartAlignment);
        }

        let has_room = || {
            let (offset, len) = (self.new_data_offset(align)?, self.new_len(align)?);
            Some(self.has_room_for_memmap(self.start, len, offset))
        };
        // libnvdimm refuses a device without data.
        if on_medium && has_room() == Some(false) {
            return Err(InfoBlockError::PageStructSize);
        }
        Ok(())
    }

    /// Returns the size of a new pfn device with its memory map: it ends at a multiple of `align`
    /// (`end_trunc`).
    fn new_len(&self, align: u64) -> Option<u64> {
        let end = self.start.checked_add(self.size)?;
        let rest = end.checked_rem(align.max(self.compat_align))?;

        end.checked_sub(rest)?.checked_sub(self.start)
    }

    /// Returns the offset of the data in a new pfn device with `struct page`s on the medium, whose
    /// data are to be aligned to `align` (`nd_pfn_init()`). [`None`] if there is no such offset.
    pub(super) fn new_data_offset(&self, align: u64) -> Option<u64> {
        const RESERVED: u64 = 8 << 10;
        const MAX_STRUCT_PAGE_SIZE: u64 = 64;
        let pages = self
            .size
            .checked_sub(RESERVED)?
            .checked_div(self.page_size)?
            .checked_mul(self.page_struct_size.max(MAX_STRUCT_PAGE_SIZE))?;
        let end = self.start.checked_add(RESERVED)?.checked_add(pages)?;
        let offset = end
            .checked_next_multiple_of(align.max(self.compat_align))?
            .checked_sub(self.start)?;

        (offset < self.new_len(align)?).then_some(offset)
    }
}
