// SPDX-License-Identifier: GPL-2.0

//! The DAX device, through which file systems map the memory to user space.

use super::{
    pagemap_data::PagemapData,
    plain::geometry::Span,
    pmem::Pmem, //
};
use crate::abstractions::compat::error::code::EHWPOISON;
use crate::abstractions::kernel::{
    dax::{
        self,
        AccessMode,
        Extent,
        ReadLocked, //
    },
    memremap::PagemapInner, //
};
use crate::abstractions::kernel_ext::{
    iov::IterSource,
    tracepoint, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

impl dax::Operations<PagemapData> for Pmem {
    #[inline(always)]
    fn are_known_good(pages: &PagemapInner<PagemapData>, pgoff: usize, nr_pages: usize) -> bool {
        let badblocks = &pages.ops().badblocks;

        // A failed page is added to the badblocks before it is repaired.
        badblocks.are_pages_known_good(pgoff as u64, nr_pages as u64)
    }

    fn direct_access<'g>(
        &'g self,
        _pages: &'g PagemapInner<PagemapData>,
        extent: Extent<'g>,
        nr_pages: usize,
        mode: AccessMode,
    ) -> Result<Extent<'g>> {
        // Only the requested pages are checked, not the whole extent.
        match self.pages_up_to_bad(extent.pgoff(), nr_pages, mode) {
            Some(good) => Ok(extent.truncate(good)),
            None => {
                let pages = (extent.pgoff(), nr_pages);
                Err(self.refuse_pages(c"dax_access", pages, EHWPOISON))
            }
        }
    }

    fn zero_page_range(&self, _locked: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result {
        let span = Span::of_pages(pgoff, nr_pages, PAGE_SHIFT, self.memory.size()).ok_or(ERANGE)?;
        let result = if self.io_state.is_read_only() {
            Err(self.refuse_write())
        } else {
            self.zero(span)
        };

        result.map_err(|err| self.refuse_pages(c"dax_zero", (pgoff, nr_pages), err))
    }

    fn recovery_write(
        &self,
        _locked: ReadLocked<'_>,
        pgoff: usize,
        offset: usize,
        len: usize,
        source: &mut IterSource<'_>,
    ) -> usize {
        let Some(span) = Span::from_page(pgoff, PAGE_SHIFT, self.memory.size())
            .and_then(|rest| rest.part(offset, len))
        else {
            return 0;
        };
        let Some(pages) = span.round_to_pages(PAGE_SHIFT) else {
            return 0;
        };
        if self.io_state.is_read_only() {
            self.refuse_write();
            return 0;
        }
        // Clearing poison overwrites whole pages, so it needs a write of whole pages.
        if pages != span && self.first_bad(pages).is_some() {
            return 0;
        }

        let Some(overwrite) = self.start_overwrite(span, true) else {
            return 0;
        };
        let written = overwrite.memory.write_from_iter(source);
        self.finish_overwrite(overwrite, written);
        written
    }
}

impl Pmem {
    /// Reports a call of the DAX core for a number of pages from an offset on, which is going to
    /// fail with `err`, and returns that.
    #[cold]
    #[inline(never)]
    fn refuse_pages(&self, op: &CStr, (pgoff, nr_pages): (usize, usize), err: Error) -> Error {
        let bytes = |pages: usize| (pages as u64) << PAGE_SHIFT;

        tracepoint::refuse(
            self.flusher.name(),
            op,
            bytes(pgoff),
            bytes(nr_pages),
            Err(err),
        );
        err
    }

    /// Returns how many of the `nr_pages` pages from `pgoff` on can be accessed. At least one page
    /// is checked. The end of the data limits the number.
    ///
    /// Returns [`None`] if there is no such page, or if one of them is bad. For a recovery write a
    /// bad page is no error: the number of pages before the first bad one is returned, at least 1.
    #[cold]
    fn pages_up_to_bad(&self, pgoff: usize, nr_pages: usize, mode: AccessMode) -> Option<usize> {
        let rest = Span::from_page(pgoff, PAGE_SHIFT, self.memory.size())?;
        let len = nr_pages.max(1).saturating_mul(PAGE_SIZE);
        let asked = rest.part(0, len.min(rest.len))?;
        let good = match (self.first_bad(asked), mode) {
            (None, _) => asked,
            (Some(_), AccessMode::Normal) => return None,
            (Some(bad), AccessMode::RecoveryWrite) => asked.up_to_bad(bad, PAGE_SHIFT)?,
        };

        Some(good.len >> PAGE_SHIFT)
    }
}
