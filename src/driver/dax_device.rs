// SPDX-License-Identifier: GPL-2.0

//! The DAX device: what file systems map to user space without the page cache.

use super::{
    plain::geometry::Span,
    pmem::Pmem,
    range::FailureHandler, //
};
use crate::abstractions::{
    kernel::{
        dax::{
            self,
            AccessMode,
            Extent,
            ReadLocked, //
        },
        memremap::PagemapInner, //
    },
    kernel_ext::iov::IterSource, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

impl dax::Operations<FailureHandler> for Pmem {
    #[inline(always)]
    fn direct_access<'g>(
        &'g self,
        pages: &'g PagemapInner<FailureHandler>,
        extent: Extent<'g>,
        nr_pages: usize,
        mode: AccessMode,
    ) -> Result<Extent<'g>> {
        if self.badblocks.is_empty() && pages.none_failed() {
            return Ok(extent);
        }

        // Only what was asked for is looked at.
        let good = self
            .pages_up_to_bad(extent.pgoff(), nr_pages, mode)
            .ok_or(EHWPOISON)?;
        Ok(extent.truncate(good))
    }

    fn zero_page_range(&self, _locked: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result {
        let span = Span::of_pages(pgoff, nr_pages, PAGE_SHIFT, self.range.size()).ok_or(ERANGE)?;

        // What the DAX core says of bad memory, too.
        self.zero(span)
    }

    fn recovery_write(
        &self,
        _locked: ReadLocked<'_>,
        pgoff: usize,
        offset: usize,
        len: usize,
        source: &mut IterSource<'_>,
    ) -> usize {
        let Some(span) = Span::from_page(pgoff, PAGE_SHIFT, self.range.size())
            .and_then(|rest| rest.part(offset, len))
        else {
            return 0;
        };
        let Some(pages) = span.round_to_pages(PAGE_SHIFT) else {
            return 0;
        };
        // Clearing poison wipes whole pages, so a write of less than those cannot heal.
        if pages != span && self.bad(pages).is_some() {
            return 0;
        }

        let Some(overwriting) = self.start_overwriting(|_| Some(span)) else {
            return 0;
        };
        let written = overwriting.memory.write_from_iter(source);
        self.finish_overwriting(overwriting, written);
        written
    }
}

impl Pmem {
    /// Returns how many of the `nr_pages` pages from `pgoff` on, as far as there are any, can be
    /// used together: all of them, or in recovery those up to the first bad one. [`None`] if there
    /// is a bad one otherwise, or no such page. At least one is looked at.
    #[cold]
    fn pages_up_to_bad(&self, pgoff: usize, nr_pages: usize, mode: AccessMode) -> Option<usize> {
        let rest = Span::from_page(pgoff, PAGE_SHIFT, self.range.size())?;
        let len = nr_pages.max(1).saturating_mul(PAGE_SIZE);
        let asked = rest.part(0, len.min(rest.len))?;
        let good = match (self.bad(asked), mode) {
            (None, _) => asked,
            (Some(_), AccessMode::Normal) => return None,
            (Some(bad), AccessMode::RecoveryWrite) => asked.up_to_bad(bad, PAGE_SHIFT)?,
        };

        Some(good.len >> PAGE_SHIFT)
    }
}
