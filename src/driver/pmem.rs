// SPDX-License-Identifier: GPL-2.0

//! Reads and writes of the memory of a device, for block I/O and DAX. `disk.rs` has the requests of
//! the block device, and `dax_device.rs` the operations of the DAX device.

use super::{
    flush::Flusher,
    io_state::IoState,
    memory::MemoryRef,
    plain::geometry::{
        Span,
        SECTOR_SHIFT, //
    }, //
};
use crate::abstractions::compat::error::code::ENODATA;
use crate::abstractions::kernel::{
    badblocks::BadRange,
    block::bio::{
        Bio,
        BioList, //
    },
    dax,
    pmem_slice::WritableSlice,
    ratelimit::RateLimit,
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::{
    time::MINUTE,
    tracepoint, //
};
use kernel::{
    new_spinlock,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        Arc,
        SetOnce,
        SpinLock, //
    }, //
};

/// Executes reads and writes of the memory of a device, for its disk and for its DAX device.
///
/// All methods may be called by several threads at once. Writes are durable after
/// [`Flusher::flush`].
#[pin_data]
#[repr(C)]
pub struct Pmem {
    /// A reference to the memory, which is not freed while it exists.
    pub memory: MemoryRef,
    /// What each request reads.
    pub io_state: IoState,
    /// The flushes of its region.
    pub flusher: Arc<Flusher>,
    /// The DAX device, once it was created.
    pub dax: SetOnce<Arc<dax::Handle>>,
    message_limits: Pin<KBox<MessageLimits>>,
    /// Its lock also protects changes of `io_state.writes_blocked`.
    #[pin]
    held: SpinLock<WriteState>,
    /// Woken when the last deferred write has ended, and when writes are not held any more. A write
    /// is deferred if a work item executes it, after a flush.
    #[pin]
    deferred_done: WaitQueue,
}

/// What a suspension of the disk needs to know about writes.
#[derive(Default)]
struct WriteState {
    /// The writes that are held.
    bios: BioList,
    /// The number of deferred writes that are being executed. A freeze of the queue does not wait
    /// for them, since their submission has ended.
    deferred: u32,
}

/// How often the messages of a device are logged. Each has a limit of its own, so that one does not
/// suppress another.
#[pin_data]
struct MessageLimits {
    #[pin]
    part_of_failed_page: RateLimit,
    #[pin]
    badblocks_full: RateLimit,
    #[pin]
    still_listed: RateLimit,
    #[pin]
    read_only: RateLimit,
}

impl MessageLimits {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            part_of_failed_page <- RateLimit::new(),
            badblocks_full <- RateLimit::new(),
            still_listed <- RateLimit::new(),
            read_only <- RateLimit::new(),
        })
    }
}

/// What was done before memory is overwritten.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cleared {
    /// Nothing: no sector was bad.
    Nothing,
    /// Poison was cleared.
    Poison,
    /// Poison was cleared, and failed pages were put back into the linear mapping.
    FailedPages,
}

/// A write in progress to memory without poison.
#[must_use = "sectors whose poison was cleared stay in the badblocks until the write is finished"]
pub struct Overwrite<'a> {
    span: Span,
    /// The memory.
    pub memory: WritableSlice<'a>,
    cleared: Cleared,
}

impl Pmem {
    /// Creates the value for a disk with blocks of `block_size` bytes.
    pub fn new(
        memory: MemoryRef,
        flusher: Arc<Flusher>,
        block_size: u32,
    ) -> impl PinInit<Self, Error> {
        let flush_barrier = flusher.region().flush_barrier();

        try_pin_init!(Self {
            memory,
            io_state: IoState::new(block_size, flush_barrier),
            flusher,
            dax: SetOnce::new(),
            message_limits: KBox::pin_init(MessageLimits::new(), GFP_KERNEL)?,
            held <- new_spinlock!(WriteState::default(), "pmem_rs::Pmem::held"),
            deferred_done <- WaitQueue::new(),
        })
    }

    /// Holds writes from now on. Those that are being executed are not waited for.
    pub fn start_holding(&self) {
        let _held = self.held.lock();

        self.io_state.set_writes_blocked(IoState::WRITES_HELD, true);
    }

    /// Holds no further writes, and returns those that were held.
    pub fn stop_holding(&self) -> BioList {
        let mut held = self.held.lock();
        self.io_state
            .set_writes_blocked(IoState::WRITES_HELD, false);
        let bios = core::mem::take(&mut held.bios);
        drop(held);

        self.deferred_done.wake_up();
        bios
    }

    /// Keeps a write until [`Self::stop_holding`], or returns it if writes are not held.
    pub fn hold_bio(&self, bio: Bio) -> Option<Bio> {
        let mut held = self.held.lock();
        if !self.io_state.are_writes_held() {
            return Some(bio);
        }

        held.bios.push(bio);
        None
    }

    /// Calls `execute` with a write whose submission has ended, or holds the write if writes are
    /// held.
    pub fn execute_deferred(&self, bio: Bio, execute: impl FnOnce(Bio)) {
        {
            let mut held = self.held.lock();
            if self.io_state.are_writes_held() {
                return held.bios.push(bio);
            }
            held.deferred = held.deferred.saturating_add(1);
        }

        execute(bio);
        let mut held = self.held.lock();
        held.deferred = held.deferred.saturating_sub(1);
        if held.deferred == 0 {
            drop(held);
            self.deferred_done.wake_up();
        }
    }

    /// Waits for the deferred writes that are being executed, or until writes are not held any
    /// more. Sleeps.
    pub fn wait_deferred(&self) {
        let is_done = || {
            let held = self.held.lock();
            (held.deferred == 0 || !self.io_state.are_writes_held()).then_some(())
        };

        while self.deferred_done.wait_until(MINUTE, is_done).is_none() {}
    }

    /// Refuses or permits writes. Returns whether that is a change. Writes that are under way may
    /// still succeed.
    pub fn set_read_only(&self, read_only: bool) -> bool {
        let _held = self.held.lock();

        if let Some(pages) = self.memory.pages() {
            pages.ops().set_read_only(read_only);
        }
        self.io_state
            .set_writes_blocked(IoState::READ_ONLY, read_only)
    }

    /// Logs that a write is refused because the region is read-only, and returns the error.
    #[cold]
    pub fn refuse_write(&self) -> Error {
        if self.message_limits.read_only.permits(c"pmem_rs") {
            self.flusher.region().err(fmt!(
                "write refused: the region is read-only. Write 0 to its attribute read_only to \
                 permit writes\n"
            ));
        }
        EROFS
    }

    /// Returns the first sector of the first bad range that overlaps `span`. It may be before
    /// `span`. A failed page is bad as a whole, even if its sectors are not in the badblocks.
    #[cold]
    pub fn first_bad(&self, span: Span) -> Option<u64> {
        let (first, sectors) = span.sectors();
        // Failed pages are read before the badblocks. A failed page is added to the badblocks
        // before it is repaired, so it is found in one of the two.
        let failed = self
            .memory
            .first_failed(span)
            .map(|offset| (offset >> SECTOR_SHIFT) as u64);
        let listed = self
            .memory
            .badblocks()
            .check(first, sectors)
            .map(|BadRange { first, .. }| first);

        match (listed, failed) {
            (Some(listed), Some(failed)) => Some(listed.min(failed)),
            (listed, failed) => listed.or(failed),
        }
    }

    /// Clears the poison in `span`, and returns the memory to be overwritten. May sleep if there is
    /// poison and `may_sleep` is true.
    ///
    /// The sectors stay in the badblocks until [`Self::finish_overwrite`]: until then they contain
    /// what the firmware wrote when it cleared the poison, and must not be read.
    ///
    /// Returns [`None`] if the span is not within the data, if its poison cannot be cleared, or if
    /// that would sleep and `may_sleep` is false. The sectors that are still bad are then in the
    /// badblocks, or in pages that have failed.
    #[inline]
    pub fn start_overwrite(&self, span: Span, may_sleep: bool) -> Option<Overwrite<'_>> {
        if let Some((span, memory)) = self.memory.find_writable(|_| Some(span)) {
            return Some(Overwrite {
                span,
                memory,
                cleared: Cleared::Nothing,
            });
        }

        self.make_writable(span, may_sleep)
    }

    /// Clears the first `written` bytes of the span from the badblocks.
    #[inline]
    pub fn finish_overwrite(&self, overwrite: Overwrite<'_>, written: usize) {
        if overwrite.cleared != Cleared::Nothing {
            self.clear_badblocks(overwrite.span, overwrite.cleared, written);
        }
    }

    /// Clears the poison in `span`. Returns [`None`] as [`Self::start_overwrite`] does.
    #[cold]
    fn make_writable(&self, span: Span, may_sleep: bool) -> Option<Overwrite<'_>> {
        if !self.memory.contains(span) {
            return None;
        }

        let cleared = if self.first_bad(span).is_some() {
            if !may_sleep {
                return None;
            }
            let result = self.clear_poison(span);
            tracepoint::repair(
                self.flusher.name(),
                span.offset as u64,
                span.len as u64,
                result.map(|_| ()),
            );
            result.ok()?
        } else {
            Cleared::Nothing
        };
        // A page may have failed since.
        let memory = self.memory.writable(span)?;
        Some(Overwrite {
            span,
            memory,
            cleared,
        })
    }

    /// Overwrites `span` with zeroes, and clears its poison. May sleep if there is poison. Fails if
    /// the span is not within the data, or if its poison cannot be cleared.
    pub fn zero(&self, span: Span) -> Result {
        let overwrite = self.start_overwrite(span, true).ok_or(EIO)?;
        let memory = overwrite.memory;

        memory.zero();
        self.finish_overwrite(overwrite, memory.len());
        Ok(())
    }

    /// Clears the poison in `span`, page by page: firmware does not clear larger pieces reliably.
    /// May sleep.
    #[cold]
    fn clear_poison(&self, span: Span) -> Result<Cleared> {
        let has_failed = |page| self.memory.first_failed(page).is_some();
        let mut cleared = Cleared::Poison;

        // Pages that have not failed are cleared first. If that fails, no failed page was touched.
        self.for_each_bad_page(span, |page| {
            if has_failed(page) {
                return Ok(());
            }
            self.clear_page_poison(page)
        })?;
        let result = self.for_each_bad_page(span, |page| {
            if !has_failed(page) {
                return Ok(());
            }
            self.restore_failed_page(page)?;
            cleared = Cleared::FailedPages;
            Ok(())
        });
        if result.is_err() && cleared == Cleared::FailedPages {
            self.mark_failed_again(span);
        }
        result.map(|()| cleared)
    }

    /// Calls `f` with each page of `span` that has a bad sector, or with the part of it that is in
    /// the span, until it returns an error.
    fn for_each_bad_page(&self, span: Span, mut f: impl FnMut(Span) -> Result) -> Result {
        let mut rest = span;

        while let Some(bad) = self.first_bad(rest) {
            let (page, after) = rest.split_at_bad(bad, PAGE_SHIFT).ok_or(EIO)?;

            f(page)?;
            rest = after;
        }
        Ok(())
    }

    /// Adds a failed page to the badblocks, so that it is not read after its hwpoison flag was
    /// cleared and before it was written. Fails if the badblocks are full, or if `span` is not the
    /// whole page.
    fn list_failed_page(&self, span: Span) -> Result {
        let (first, sectors) = span.sectors();

        if span.len != PAGE_SIZE {
            // Only a whole page can be restored in the linear mapping. Clearing the poison of the
            // whole page would change bytes that are not written here.
            if self.message_limits.part_of_failed_page.permits(c"pmem_rs") {
                self.flusher.region().err(fmt!(
                    "write of {} bytes at sector {first} refused: their page has failed. Write all \
                     of its {PAGE_SIZE} bytes at once to clear the poison\n",
                    span.len
                ));
            }
            return Err(ENODATA);
        }
        if self.memory.badblocks().contains(first, sectors) {
            return Ok(());
        }
        // Clearing parts of the page first makes room for all of it. Meanwhile the pgmap still has
        // the page as failed, so it is not read.
        let _ = self.memory.badblocks().clear(first, sectors);
        if self.memory.badblocks().add(first, sectors).is_ok() {
            return Ok(());
        }
        if self.message_limits.badblocks_full.permits(c"pmem_rs") {
            self.flusher.region().err(fmt!(
                "write at sector {first} refused: its page has failed, and the list of bad blocks \
                 is full. Write to other bad blocks first, which removes them\n"
            ));
        }
        Err(ENODATA)
    }

    /// Clears the poison in `span`, which is a page or a part of one. May sleep. Fails if poison is
    /// left, if unpoison fails, or if the page has failed meanwhile.
    fn clear_page_poison(&self, span: Span) -> Result {
        if self.clear_medium(span)? < span.len {
            return Err(ENODATA);
        }

        self.memory.unpoison(span).map_err(|_| ENODATA)?;
        self.memory.writable(span).ok_or(ENODATA)?.invalidate();
        Ok(())
    }

    /// Restores a page that has failed, so that it can be overwritten. May sleep. Fails if `span`
    /// is not the whole page, if the badblocks are full, if unpoison fails, or if the page has
    /// failed again.
    ///
    /// The poison need not be cleared by the provider, which may have no command for that.
    /// Overwriting all of the page clears it, or the page fails again.
    fn restore_failed_page(&self, span: Span) -> Result {
        self.list_failed_page(span)?;
        let _ = self.clear_medium(span);

        self.memory.unpoison(span).map_err(|_| ENODATA)?;
        let memory = self.memory.writable(span).ok_or(ENODATA)?;
        memory.invalidate();
        // A store to a part of a cache line would read the poison in the rest of the line. So whole
        // lines are overwritten first, past the caches.
        memory.zero();
        Ok(())
    }

    /// Makes the provider clear the poison in `span`, and returns how many bytes were cleared. May
    /// sleep.
    fn clear_medium(&self, span: Span) -> Result<usize> {
        let data = self.memory.data_range(span).ok_or(EIO)?;

        self.flusher
            .region()
            .clear_poison(&data)
            .map_err(|_| ENODATA)
    }

    /// Marks the whole pages of `span` as failed whose sectors are all in the badblocks. Pages that
    /// were restored and not overwritten are among them ([`Self::list_failed_page`]).
    fn mark_failed_again(&self, span: Span) {
        let _ = self.for_each_bad_page(span, |page| {
            let (first, sectors) = page.sectors();
            if page.len == PAGE_SIZE && self.memory.badblocks().contains(first, sectors) {
                // If the list of failed pages is full, the badblocks still have the sectors.
                let _ = self.memory.set_failed(page);
            }
            Ok(())
        });
    }

    /// Clears the whole sectors of the first `len` bytes of `span` from the badblocks, and notifies
    /// pollers. Failed pages of which not all was written stay failed.
    #[cold]
    fn clear_badblocks(&self, span: Span, cleared: Cleared, len: usize) {
        let Some(written) = span.part(0, len.min(span.len)) else {
            return;
        };
        let (first, sectors) = written.whole_sectors();

        if cleared == Cleared::FailedPages && written.len < span.len {
            let end = span.offset.saturating_add(written.len);
            // The page in which the write has ended stays failed as well.
            let start = end & !PAGE_SIZE.saturating_sub(1);
            let offset = start.saturating_sub(span.offset);
            if let Some(rest) = span.part(offset, span.len.saturating_sub(offset)) {
                self.mark_failed_again(rest);
            }
        }
        if self.memory.badblocks().clear(first, sectors).is_err() {
            if self.message_limits.still_listed.permits(c"pmem_rs") {
                self.flusher.region().warn(fmt!(
                    "what was written at sector {first} is still listed as bad. If the list of \
                     bad blocks is full, write to other bad blocks, then write this again\n"
                ));
            }
        }
    }
}
