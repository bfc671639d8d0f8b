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
        let size = pages.slice().len();
        let rest = Span::from_page(pgoff, PAGE_SHIFT, size).ok_or(ERANGE)?;

        let span = if self.is_sound() {
            rest
        } else {
            // Only what was asked for is known to be good.
            let asked = nr_pages.min(rest.len >> PAGE_SHIFT).max(1);
            let asked = Span::of_pages(pgoff, asked, PAGE_SHIFT, size).ok_or(ERANGE)?;
            match (self.bad(asked), mode) {
                (None, _) => asked,
                (Some(_), AccessMode::Normal) => return Err(EHWPOISON),
                (Some(bad), AccessMode::RecoveryWrite) => {
                    asked.up_to_bad(bad, PAGE_SHIFT).ok_or(ERANGE)?
                }
            }
        };

        pages.extent(locked, span.offset, span.len).ok_or(ENXIO)
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

        let Some(data) = self.range.data(span.offset, span.len) else {
            return 0;
        };
        self.overwrite(span, data, |data| data.write_from_iter(source))
            .unwrap_or(0)
    }
}
