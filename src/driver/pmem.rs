// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the memory of a device, for block I/O and DAX.

use super::{
    flush::Flusher,
    memory::MemoryRef,
    plain::geometry::{
        Span,
        SECTOR_SHIFT, //
    }, //
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
    }, //
};

/// The memory of a device and its badblocks.
///
/// All methods may be called by several threads at once. Writes are durable after
/// [`Flusher::flush`].
#[pin_data]
pub struct Pmem {
    /// A reference that keeps the memory.
    pub memory: MemoryRef,
    /// The bad sectors, from the start of the data. Failed pages are added to them.
    pub badblocks: Arc<Badblocks>,
    /// Flushes the region.
    pub flusher: Arc<Flusher>,
    /// The logical block size of the disk, a power of two.
    pub block_size: u32,
    /// The DAX device, once it was created.
    pub dax: SetOnce<Arc<dax::Handle>>,
}

/// A write in progress to memory without poison.
#[must_use = "sectors whose poison was cleared stay in the badblocks until the write is finished"]
pub struct Overwrite<'a> {
    span: Span,
    /// The memory.
    pub memory: WritableSlice<'a>,
    poison_cleared: bool,
}

impl Pmem {
    /// Creates it from its parts.
    pub fn new(
        memory: MemoryRef,
        badblocks: Arc<Badblocks>,
        flusher: Arc<Flusher>,
        block_size: u32,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            memory,
            badblocks,
            flusher,
            block_size,
            dax: SetOnce::new(),
        })
    }

    /// Returns the first bad sector in `span`. It may be before the span, as the start of a run.
    #[inline]
    pub fn first_bad(&self, span: Span) -> Option<u64> {
        if self.badblocks.is_empty() && self.memory.none_failed() {
            return None;
        }
        self.find_bad(span)
    }

    /// Finds a bad sector. All sectors of a failed page are bad, including those that the badblocks
    /// lack because the page failed while they were being cleared.
    #[cold]
    fn find_bad(&self, span: Span) -> Option<u64> {
        let (first, sectors) = span.sectors();
        let listed = self
            .badblocks
            .check(first, sectors)
            .map(|BadRange { first, .. }| first);
        let failed = self
            .memory
            .first_failed(span)
            .map(|offset| (offset >> SECTOR_SHIFT) as u64);

        match (listed, failed) {
            (Some(listed), Some(failed)) => Some(listed.min(failed)),
            (listed, failed) => listed.or(failed),
        }
    }

    /// Clears the poison in the span that `find` computes from the size of the data, and returns
    /// the memory to be overwritten. May sleep if there is poison.
    ///
    /// The sectors stay in the badblocks until [`Self::finish_overwrite`], because their contents
    /// are those that the firmware has written.
    ///
    /// Returns [`None`] if the span is not within the data, or if its poison cannot be cleared. The
    /// sectors that are still bad are in the badblocks then, or in pages that have failed.
    // Calls that are not inlined cost more than 30 of about 150 instructions for a small request.
    // So does a `Result`, whose error would share a register with the address.
    #[inline(always)]
    pub fn start_overwrite(&self, find: impl Fn(usize) -> Option<Span>) -> Option<Overwrite<'_>> {
        if self.badblocks.is_empty() {
            if let Some((span, memory)) = self.memory.find_writable(&find) {
                return Some(Overwrite {
                    span,
                    memory,
                    poison_cleared: false,
                });
            }
        }

        self.make_writable(find(self.memory.size())?)
    }

    /// Clears the first `written` bytes of the span from the badblocks.
    #[inline(always)]
    pub fn finish_overwrite(&self, overwrite: Overwrite<'_>, written: usize) {
        if overwrite.poison_cleared {
            self.clear_badblocks(overwrite.span, written);
        }
    }

    /// Clears the poison in `span`. Returns [`None`] as [`Self::start_overwrite`] does.
    #[cold]
    fn make_writable(&self, span: Span) -> Option<Overwrite<'_>> {
        self.memory.find(|_| Some(span))?;

        let bad = self.find_bad(span);
        if let Some(bad) = bad {
            self.clear_poison(span, bad).ok()?;
        }
        // A page may have failed since.
        let memory = self.memory.writable(span)?;
        Some(Overwrite {
            span,
            memory,
            poison_cleared: bad.is_some(),
        })
    }

    /// Overwrites `span` with zeroes, and clears its poison. May sleep if there is poison. Fails if
    /// the span is not within the data, or if its poison cannot be cleared.
    pub fn zero(&self, span: Span) -> Result {
        let overwrite = self.start_overwrite(|_| Some(span)).ok_or(EIO)?;
        let memory = overwrite.memory;

        memory.zero();
        self.finish_overwrite(overwrite, memory.len());
        Ok(())
    }

    /// Clears the poison in `span`, page by page: firmware does not clear larger pieces reliably.
    /// May sleep. `bad` is the first bad sector.
    #[cold]
    fn clear_poison(&self, span: Span, mut bad: u64) -> Result {
        let mut rest = span;

        loop {
            let (piece, after) = rest.split_at_bad(bad, PAGE_SHIFT).ok_or(EIO)?;

            if self.memory.first_failed(piece).is_some() {
                self.list_failed_page(piece)?;
            }
            self.clear_page_poison(piece)?;

            rest = after;
            match self.first_bad(rest) {
                None => return Ok(()),
                Some(next) => bad = next,
            }
        }
    }

    /// Adds a failed page to the badblocks, so that it is not read between unpoison and the write.
    /// Fails if the badblocks are full, or if `span` is not the whole page.
    fn list_failed_page(&self, span: Span) -> Result {
        let (first, sectors) = span.sectors();

        if span.len != PAGE_SIZE {
            // Only a whole page can be restored in the linear mapping. Clearing the poison of the
            // whole page would change bytes that are not written here.
            kernel::do_once_lite! {
                self.flusher.region().err(fmt!(
                    "write of {} bytes at sector {first} refused: their page has failed. Write all \
                     of its {PAGE_SIZE} bytes at once to clear the poison\n",
                    span.len
                ));
            }
            return Err(ENODATA);
        }
        if self.badblocks.contains(first, sectors) {
            return Ok(());
        }
        // Clearing parts of the page first makes room for all of it. Meanwhile the pgmap still has
        // the page as failed, so it is not read.
        let _ = self.badblocks.clear(first, sectors);
        if self.badblocks.add(first, sectors).is_ok() {
            return Ok(());
        }
        kernel::do_once_lite! {
            self.flusher.region().err(fmt!(
                "write at sector {first} refused: its page has failed, and the list of bad blocks \
                 is full. Write to other bad blocks first, which removes them\n"
            ));
        }
        Err(ENODATA)
    }

    /// Clears the poison in `span`, which is a page or a part of one. May sleep. Fails if poison is
    /// left, if unpoison fails, or if the page has failed again.
    fn clear_page_poison(&self, span: Span) -> Result {
        let phys = self
            .memory
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

        self.memory.unpoison(span).map_err(|_| ENODATA)?;
        self.memory.writable(span).ok_or(ENODATA)?.invalidate();
        Ok(())
    }

    /// Clears the whole sectors of the first `len` bytes of `span` from the badblocks, and notifies
    /// pollers.
    #[cold]
    fn clear_badblocks(&self, span: Span, len: usize) {
        let Some(written) = span.part(0, len.min(span.len)) else {
            return;
        };
        let (first, sectors) = written.whole_sectors();

        if self.badblocks.clear(first, sectors).is_err() {
            kernel::do_once_lite! {
                self.flusher.region().warn(fmt!(
                    "what was written at sector {first} is still listed as bad. If the list of \
                     bad blocks is full, write to other bad blocks, then write this again\n"
                ));
            }
        }
    }
}
