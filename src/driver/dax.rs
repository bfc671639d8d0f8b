// SPDX-License-Identifier: GPL-2.0

//! The DAX device: what file systems map to user space without the page cache.

use super::{
    geometry::Span,
    pmem::Pmem, //
};
use crate::abstractions::{
    dax::{
        self,
        AccessMode,
        Extent,
        ReadLocked, //
    },
    uio::IterSource, //
};
use kernel::{
    page::PAGE_SHIFT,
    prelude::*, //
};

impl dax::Operations for Pmem {
    fn gate(&self) -> &dax::Gate {
        &self.gate
    }

    #[inline(always)]
    fn direct_access<'g>(
        &'g self,
        locked: ReadLocked<'g>,
        pgoff: usize,
        nr_pages: usize,
        mode: AccessMode,
    ) -> Result<Extent<'g>> {
        let pages = self.range.pages().ok_or(ENXIO)?;
        let rest = pages.extent(locked, pgoff).ok_or(ERANGE)?;
        if self.is_sound() {
            return Ok(rest);
        }

        // Only what was asked for is looked at.
        let nr_pages = nr_pages.min(rest.nr_pages());
        Ok(rest.truncate(self.pages_up_to_bad(pgoff, nr_pages, mode)?))
    }

    fn zero_page_range(&self, _locked: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result {
        let span = Span::of_pages(pgoff, nr_pages, PAGE_SHIFT, self.range.size()).ok_or(ERANGE)?;

        // What the DAX core says of bad memory, too.
        self.zero(span).map_err(|_| EIO)
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

        let Some(area) = self.range.area(span) else {
            return 0;
        };
        self.overwrite(area, |memory| memory.write_from_iter(source))
            .unwrap_or(0)
    }
}

impl Pmem {
    /// Returns how many of the `nr_pages` pages from `pgoff` on, of which at least one is looked at, can be used
    /// together: all of them, or in recovery those up to the first bad one.
    ///
    /// # Errors
    ///
    /// [`EHWPOISON`] if a page is bad and this is no recovery, [`ERANGE`] if there are no such pages.
    #[cold]
    fn pages_up_to_bad(&self, pgoff: usize, nr_pages: usize, mode: AccessMode) -> Result<usize> {
        let asked =
            Span::of_pages(pgoff, nr_pages.max(1), PAGE_SHIFT, self.range.size()).ok_or(ERANGE)?;
        let span = match (self.bad(asked), mode) {
            (None, _) => asked,
            (Some(_), AccessMode::Normal) => return Err(EHWPOISON),
            (Some(bad), AccessMode::RecoveryWrite) => {
                asked.up_to_bad(bad, PAGE_SHIFT).ok_or(ERANGE)?
            }
        };

        Ok(span.len >> PAGE_SHIFT)
    }
}
