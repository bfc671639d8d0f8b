// SPDX-License-Identifier: GPL-2.0

//! Reading, writing and healing the memory of a device: what block I/O and DAX share.

use super::{
    flush::Flusher,
    geometry::{
        Span,
        SECTOR_SHIFT, //
    },
    range::PmemRange, //
};
use crate::abstractions::{
    badblocks::{
        BadRange,
        Badblocks, //
    },
    bio::{
        Segment,
        SegmentToFill, //
    },
    dax,
    percpu_ref::Hold, //
};
use kernel::{
    page::PAGE_SHIFT,
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
    /// The memory itself, which stays as long as disk and DAX device do.
    pub range: Hold<PmemRange>,
    /// What is known to be bad, in sectors from the start of the data.
    #[pin]
    pub badblocks: Badblocks,
    /// What makes writes durable; it has the region.
    pub flusher: Arc<Flusher>,
    /// The smallest unit of block I/O in bytes, a power of two.
    pub block_size: u32,
    /// What the DAX device admits.
    pub gate: dax::Gate,
    /// The DAX device, once there is one.
    pub dax: SetOnce<Arc<dax::Handle>>,
}

impl Pmem {
    /// Brings the parts together, with an empty list of bad blocks.
    pub fn new(
        range: Hold<PmemRange>,
        flusher: Arc<Flusher>,
        block_size: u32,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            range,
            badblocks <- Badblocks::new(),
            flusher,
            block_size,
            gate: dax::Gate::new(),
            dax: SetOnce::new(),
        })
    }

    /// Returns the first run of bad sectors in `span`.
    #[inline]
    pub fn bad(&self, span: Span) -> Option<BadRange> {
        if self.badblocks.is_empty() {
            return None;
        }
        let (first, sectors) = span.sectors();

        self.badblocks.check(first, sectors)
    }

    /// Reads `span` into the memory of a request.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the memory is bad or not there.
    #[inline]
    pub fn read(&self, span: Span, segment: &mut SegmentToFill<'_>) -> Result {
        if self.bad(span).is_some() {
            return Err(EIO);
        }

        self.range
            .data(span.offset, span.len)
            .ok_or(EIO)?
            .read_into(segment)
    }

    /// Writes the memory of a request to `span`. If there is bad memory in it, that is healed
    /// first, and may sleep for it.
    ///
    /// # Errors
    ///
    /// [`EIO`] if the memory cannot be healed or is not there.
    #[inline]
    pub fn write(&self, span: Span, segment: &Segment<'_>) -> Result {
        self.make_writable(span)?;
        self.range
            .data(span.offset, span.len)
            .ok_or(EIO)?
            .write_from(segment);
        Ok(())
    }

    /// Overwrites `span` with zeroes, healing bad memory. May sleep for that.
    ///
    /// # Errors
    ///
    /// As [`Self::write`].
    pub fn zero(&self, span: Span) -> Result {
        self.make_writable(span)?;
        self.range.data(span.offset, span.len).ok_or(EIO)?.zero();
        Ok(())
    }

    /// Heals the bad memory in `span`, if there is any, and takes it off the list of bad blocks.
    #[inline]
    fn make_writable(&self, span: Span) -> Result {
        match self.bad(span) {
            None => Ok(()),
            Some(bad) => self.heal(span, bad),
        }
    }

    /// Heals the pages of `span` that have bad memory, one at a time: firmware does not clear the
    /// poison of larger pieces reliably.
    #[cold]
    fn heal(&self, span: Span, mut bad: BadRange) -> Result {
        let mut rest = span;

        loop {
            let (page, after) = rest.split_at_bad(bad.first, PAGE_SHIFT).ok_or(EIO)?;

            let cleared = self.clear_poison(page)?;
            self.forget_bad(cleared);
            if cleared.len < page.len {
                return Err(EIO);
            }

            rest = after;
            match self.bad(rest) {
                None => return Ok(()),
                Some(next) => bad = next,
            }
        }
    }

    /// Clears the poison in `span`, and returns how much from its start on is good now. The list of
    /// bad blocks stays as it is, so that nobody reads what is not yet written; see
    /// [`Self::forget_bad`]. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] if nothing could be cleared.
    pub fn clear_poison(&self, span: Span) -> Result<Span> {
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
            .map_err(|_| EIO)?;

        let cleared = span.part(0, cleared.min(span.len)).ok_or(EIO)?;
        if cleared.len > 0 {
            self.range.unpoison(cleared.offset, cleared.len);
            if let Some(data) = self.range.data(span.offset, span.len) {
                data.invalidate();
            }
        }
        Ok(cleared)
    }

    /// Takes the whole sectors of `span` off the list of bad blocks, and tells those who poll it.
    pub fn forget_bad(&self, span: Span) {
        let sectors = span.len >> SECTOR_SHIFT;

        self.badblocks
            .clear((span.offset >> SECTOR_SHIFT) as u64, sectors as u64);
    }
}
