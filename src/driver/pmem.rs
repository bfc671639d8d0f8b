// SPDX-License-Identifier: GPL-2.0

//! Reading, writing and healing the memory of a device: what block I/O and DAX share.

use super::{
    flush::Flusher,
    plain::geometry::{
        Span, //
        SECTOR_SHIFT,
    },
    range::PmemRange, //
};
use crate::abstractions::kernel::{
    badblocks::{
        BadRange,
        Badblocks, //
    },
    dax,
    pmem_slice::WritableSlice, //
};
use kernel::{
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
};

/// The memory of a device, with what is known to be bad in it.
///
/// Everything here may be used by several threads at once. Writes are durable after
/// [`Flusher::flush`].
#[pin_data]
pub struct Pmem {
    /// The memory itself, which this keeps.
    pub range: PmemRange,
    /// What is known to be bad, in sectors from the start of the data. The range adds to it what fails.
    pub badblocks: Arc<Badblocks>,
    /// What makes writes durable; it has the region.
    pub flusher: Arc<Flusher>,
    /// The smallest unit of block I/O in bytes, a power of two.
    pub block_size: u32,
    /// The DAX device, once there is one.
    pub dax: SetOnce<Arc<dax::Handle>>,
}

/// Memory that is about to be overwritten.
#[must_use = "what was healed stays on the list of bad blocks until the overwriting is finished"]
pub struct Overwriting<'a> {
    span: Span,
    /// The memory.
    pub memory: WritableSlice<'a>,
    /// Bad memory in it was healed.
    healed: bool,
}

impl Pmem {
    /// Brings the parts together.
    pub fn new(
        range: PmemRange,
        badblocks: Arc<Badblocks>,
        flusher: Arc<Flusher>,
        block_size: u32,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            range,
            badblocks,
            flusher,
            block_size,
            dax: SetOnce::new(),
        })
    }

    /// Returns whether nothing is known to be bad.
    #[inline]
    pub fn is_sound(&self) -> bool {
        self.badblocks.is_empty() && self.range.is_sound()
    }

    /// Returns the first bad sector in `span`, or one before it if that belongs to the same run.
    #[inline]
    pub fn bad(&self, span: Span) -> Option<u64> {
        if self.is_sound() {
            return None;
        }
        self.look_for_bad(span)
    }

    /// Pages that have failed are bad, whatever the list says: what fails while its sectors are being taken off
    /// the list is not on it.
    #[cold]
    fn look_for_bad(&self, span: Span) -> Option<u64> {
        let (first, sectors) = span.sectors();
        let listed = self
            .badblocks
            .check(first, sectors)
            .map(|BadRange { first, .. }| first);
        let failed = self
            .range
            .first_failed(span.offset, span.len)
            .map(|offset| (offset >> SECTOR_SHIFT) as u64);

        match (listed, failed) {
            (Some(listed), Some(failed)) => Some(listed.min(failed)),
            (listed, failed) => listed.or(failed),
        }
    }

    /// Makes the span that `find` makes for the size of the data ready to be overwritten. If there
    /// is bad memory in it, that is healed first, and may sleep for it. It stays on the list of bad
    /// blocks until [`Self::finish_overwriting`], so that what firmware has put there is not read.
    ///
    /// Returns [`None`] if there is no such span in the data, or if it cannot be healed. Then
    /// nothing was taken off the list that is not still known to be bad.
    // Calls of their own cost more than thirty instructions, of the hundred and fifty for a small
    // request. So does an error in the result, which would share its place with the address.
    #[inline(always)]
    pub fn start_overwriting(
        &self,
        find: impl Fn(usize) -> Option<Span>,
    ) -> Option<Overwriting<'_>> {
        if self.badblocks.is_empty() {
            if let Some((span, memory)) = self.range.find_writable(&find) {
                return Some(Overwriting {
                    span,
                    memory,
                    healed: false,
                });
            }
        }

        self.make_writable(find(self.range.size())?)
    }

    /// Takes the first `written` bytes of what was overwritten off the list of bad blocks.
    #[inline(always)]
    pub fn finish_overwriting(&self, overwriting: Overwriting<'_>, written: usize) {
        if overwriting.healed {
            self.forget_bad(overwriting.span, written);
        }
    }

    /// Heals what is bad in `span`. Returns [`None`] as [`Self::start_overwriting`] does.
    #[cold]
    fn make_writable(&self, span: Span) -> Option<Overwriting<'_>> {
        self.range.find(|_| Some(span))?;

        let bad = self.look_for_bad(span);
        if let Some(bad) = bad {
            self.heal(span, bad).ok()?;
        }
        // A page may have failed since.
        let memory = self.range.writable(span)?;
        Some(Overwriting {
            span,
            memory,
            healed: bad.is_some(),
        })
    }

    /// Overwrites `span` with zeroes, healing bad memory. May sleep for that.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the memory is not there, or cannot be healed.
    pub fn zero(&self, span: Span) -> Result {
        let overwriting = self.start_overwriting(|_| Some(span)).ok_or(EIO)?;
        let memory = overwriting.memory;

        memory.zero();
        self.finish_overwriting(overwriting, memory.len());
        Ok(())
    }

    /// Heals the pages of `span` that have bad memory, one at a time: firmware does not clear the
    /// poison of larger pieces reliably.
    #[cold]
    fn heal(&self, span: Span, mut bad: u64) -> Result {
        let mut rest = span;

        loop {
            let (piece, after) = rest.split_at_bad(bad, PAGE_SHIFT).ok_or(EIO)?;

            if self.range.has_failed(piece.offset, piece.len) {
                self.prepare_failed_page(piece)?;
            }
            self.clear_poison(piece)?;

            rest = after;
            match self.bad(rest) {
                None => return Ok(()),
                Some(next) => bad = next,
            }
        }
    }

    /// Sees to it that a page that has failed is not read before it was written, once it is usable again.
    ///
    /// # Errors
    ///
    /// [`ENODATA`] if that cannot be done, or if `span` is not all of the page.
    fn prepare_failed_page(&self, span: Span) -> Result {
        let (first, sectors) = span.sectors();

        if span.len != PAGE_SIZE {
            // A part of a page cannot be put back into the linear mapping. To clear the poison of
            // all of it would leave bytes that are neither bad nor what they were.
            kernel::do_once_lite! {
                self.flusher.region().err(fmt!(
                    "write of {} bytes at sector {first} refused: their page has failed. Write all of \
                     its {PAGE_SIZE} bytes at once, which repairs it\n",
                    span.len
                ));
            }
            return Err(ENODATA);
        }
        // It need not be listed yet, since the range knew.
        if self.badblocks.contains(first, sectors) {
            return Ok(());
        }
        // Parts of it may be, and make room for all of it. It is not read meanwhile, since the
        // range still knows.
        let _ = self.badblocks.clear(first, sectors);
        if self.badblocks.add(first, sectors).is_ok() {
            return Ok(());
        }
        kernel::do_once_lite! {
            self.flusher.region().err(fmt!(
                "write at sector {first} refused: its page has failed, and the list of bad blocks is full. \
                 Repair others first, by writing to them\n"
            ));
        }
        Err(ENODATA)
    }

    /// Clears the poison in `span`, which is a page or a part of one. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENODATA`] if not all of it could be cleared, or if the range cannot forget that the page
    /// has failed, or it has failed again.
    fn clear_poison(&self, span: Span) -> Result {
        let phys = self
            .range
            .phys()
            .start
            .checked_add(span.offset as u64)
            .ok_or(EIO)?;
        let cleared = self
            .flusher
            .region()
            .clear_poison(phys, span.len)
            .map_err(|_| ENODATA)?;
        if cleared < span.len {
            return Err(ENODATA);
        }

        self.range
            .unpoison(span.offset, span.len)
            .map_err(|_| ENODATA)?;
        self.range.writable(span).ok_or(ENODATA)?.invalidate();
        Ok(())
    }

    /// Takes the whole sectors of the first `len` bytes of `span` off the list of bad blocks, and tells
    /// those who poll it.
    #[cold]
    fn forget_bad(&self, span: Span, len: usize) {
        let Some(written) = span.part(0, len.min(span.len)) else {
            return;
        };
        let (first, sectors) = written.whole_sectors();

        if self.badblocks.clear(first, sectors).is_err() {
            kernel::do_once_lite! {
                self.flusher.region().warn(fmt!(
                    "what was written at sector {first} is still listed as bad. If the list of bad blocks is \
                     full, repair others, by writing to them, then write this again\n"
                ));
            }
        }
    }
}
