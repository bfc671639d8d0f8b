// SPDX-License-Identifier: GPL-2.0

//! The block device: `/dev/pmemN`.
//!
//! `submit_bio()` copies the data and ends the bio before it returns, with two exceptions:
//!
//! - The flush of the region is asynchronous (virtio). Then a work item copies a write with
//!   `REQ_PREFLUSH`, after a flush that it may share with others. A write with `REQ_FUA` and no
//!   `REQ_PREFLUSH` is copied at once. With `REQ_FUA` a write ends after a flush that follows the
//!   copy.
//! - The disk is suspended. Then a write is held until the disk is resumed.

use super::{
    plain::geometry::{
        Span,
        SECTOR_SHIFT, //
    },
    pmem::Pmem, //
};
use crate::abstractions::compat::error::code::{
    ENODATA,
    EOPNOTSUPP, //
};
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    block::{
        bio::{
            Accounting,
            Bio,
            BioRef,
            Operation,
            Segments,
            SegmentsToFill,
            Status, //
        },
        gendisk::{
            self,
            BoolAttribute,
            DiskName,
            Features,
            GenDisk,
            Limits,
            PAGE_BLOCK, //
        }, //
    },
    numa::Node,
    pmem_slice::{
        PmemSlice,
        WritableSlice, //
    }, //
};
use crate::abstractions::kernel_ext::{
    task::cond_resched,
    tracepoint, //
};
use kernel::{
    alloc::flags::{
        GFP_NOWAIT,
        __GFP_NOWARN, //
    },
    impl_has_work,
    new_work,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// The optional features of the disk.
pub struct Capabilities {
    /// Writes need a flush of the region to be durable, so `REQ_FUA` is announced.
    pub fua: bool,
    /// File systems can use the DAX device.
    pub dax: bool,
}

/// What a transfer returns if the disk is suspended: the request is to be executed later.
const HOLD_WRITE: Error = ERESTARTSYS;

/// The size of the largest request for zeroes. Between two of them `BLKZEROOUT` can be killed.
const MAX_WRITE_ZEROES: u32 = 64 << 20;
/// How much of it is checked for bad memory and zeroed at once.
const ZEROED_AT_ONCE: usize = 1 << 20;

/// Creates the disk for `pmem`. May sleep.
pub fn new(
    name: &DiskName,
    capabilities: Capabilities,
    node: Node,
    pmem: Arc<Pmem>,
) -> Result<GenDisk<Pmem>> {
    let mut features = Features::WRITE_CACHE | Features::SYNCHRONOUS | Features::NOWAIT;
    if capabilities.fua {
        features = features | Features::FUA;
    }
    if capabilities.dax {
        features = features | Features::DAX;
    }
    let limits = Limits {
        logical_block_size: pmem.io_state.block_size,
        physical_block_size: PAGE_BLOCK,
        max_write_zeroes: MAX_WRITE_ZEROES,
        features,
    };
    let sectors = pmem.memory.size() >> SECTOR_SHIFT;

    GenDisk::new(name, limits, sectors as u64, node, pmem)
}

impl gendisk::Operations for Pmem {
    type OwnerModule = crate::LocalModule;

    // Whether `fsync` flushes the CPU caches. To be cleared only if the platform flushes them at a
    // power failure.
    const ATTRIBUTE: Option<BoolAttribute<Self>> = Some(BoolAttribute {
        directory: c"dax",
        name: c"write_cache",
        show: |pmem| pmem.dax.as_ref().is_some_and(|dax| dax.write_cache()),
        store: |pmem, enabled| {
            pmem.dax
                .as_ref()
                .ok_or(EOPNOTSUPP)?
                .set_write_cache(enabled);
            Ok(())
        },
    });

    #[inline]
    fn submit_bio(this: ArcBorrow<'_, Self>, bio: Bio) {
        if bio.is_preflush() {
            match this.io_state.flush_barrier {
                Some(barrier) if !tracepoint::flush_is_on() => barrier.flush(),
                _ => return Self::submit_preflush(this, bio),
            }
        }
        this.execute(bio);
    }

    fn badblocks(&self) -> Option<&Badblocks> {
        Some(self.memory.badblocks())
    }
}

/// A write that waits for a flush, and is executed after that.
///
/// It has a reference to the memory, so the range is not freed before.
#[pin_data]
struct Preflush {
    pmem: Arc<Pmem>,
    bio: Option<Bio>,
    #[pin]
    work: Work<Preflush>,
}

impl_has_work! {
    impl HasWork<Self> for Preflush { self.work }
}

impl WorkItem for Preflush {
    type Pointer = Pin<KBox<Self>>;

    fn run(mut this: Pin<KBox<Self>>) {
        let this = this.as_mut().project();

        if let Some(bio) = this.bio.take() {
            match this.pmem.flusher.flush() {
                Ok(()) => {
                    let pmem = &*this.pmem;
                    pmem.execute_deferred(bio, |bio| pmem.execute_noinline(bio));
                }
                Err(err) => bio.end(err.into()),
            }
        }
    }
}

impl Pmem {
    /// Executes a request after a flush of the region. If the flush is asynchronous and there is
    /// data, a work item waits for it. If the flush is asynchronous and the request must not wait,
    /// the request fails.
    #[cold]
    #[inline(never)]
    fn submit_preflush(this: ArcBorrow<'_, Self>, bio: Bio) {
        if !this.flusher.is_asynchronous() {
            return this.flush_and_execute(bio);
        }
        if bio.is_nowait() {
            return bio.end(Status::AGAIN);
        }
        if bio.is_empty() {
            return this.flush_and_execute(bio);
        }

        // Without memory the submitter waits.
        let Ok(slot) = KBox::new_uninit(GFP_NOWAIT | __GFP_NOWARN) else {
            return this.flush_and_execute(bio);
        };
        let preflush = slot.write_pin_init(pin_init!(Preflush {
            pmem: this.into(),
            bio: Some(bio),
            work <- new_work!("pmem_rs::Preflush::work"),
        }));
        match preflush {
            Ok(preflush) => this.flusher.work_queue().enqueue(preflush),
            Err(never) => match never {},
        }
    }

    /// Flushes the region, and then executes a request.
    #[inline(never)]
    fn flush_and_execute(&self, bio: Bio) {
        match self.flusher.flush() {
            Ok(()) => self.execute(bio),
            Err(err) => bio.end(err.into()),
        }
    }

    /// Executes a request. If it has `REQ_PREFLUSH`, the region has been flushed.
    #[inline(always)]
    fn execute(&self, bio: Bio) {
        if !bio.is_empty() {
            let result = match bio.start_accounting() {
                Some(accounting) => self.transfer_accounted(bio.borrow(), accounting),
                None => self.transfer(bio.borrow()),
            };
            if let Err(err) = result {
                return self.hold_or_fail(bio, err);
            }
        }

        if bio.is_fua() {
            match self.io_state.flush_barrier {
                Some(barrier) if !tracepoint::flush_is_on() => barrier.flush(),
                _ => return self.flusher.flush_and_end(bio),
            }
        }
        bio.end(Status::OK);
    }

    /// Ends a request that has failed, or holds it if it is to be executed later.
    #[cold]
    #[inline(never)]
    fn hold_or_fail(&self, bio: Bio, err: Error) {
        if err != HOLD_WRITE {
            return bio.end(err.into());
        }
        if bio.is_nowait() {
            return bio.end(Status::AGAIN);
        }
        // The suspension may have ended since the check. Then the bio is returned.
        if let Some(bio) = self.hold_bio(bio) {
            self.execute_noinline(bio);
        }
    }

    /// As [`Self::execute`], not inlined.
    #[inline(never)]
    fn execute_noinline(&self, bio: Bio) {
        self.execute(bio);
    }

    /// Holds no further writes, and executes those that were held.
    pub fn release_writes(&self) {
        let mut held = self.stop_holding();

        while let Some(bio) = held.pop() {
            self.execute_noinline(bio);
            cond_resched();
        }
    }

    /// Copies the data of a bio. Range and badblocks are checked once, not for each segment.
    // A call that is not inlined costs more than 30 of about 150 instructions for a small request.
    #[inline(always)]
    fn transfer(&self, bio: BioRef<'_>) -> Result {
        // The block layer has checked the range, but not of bios that a stacked device remapped.
        let find =
            move |size| Span::of_request(bio.sector(), bio.len(), self.io_state.block_size, size);

        // A `match` of the operation would first convert its number to the enum.
        if let Some(segments) = bio.segments_to_fill() {
            match self.memory.find_good(find) {
                Some((_, memory)) => read(memory, segments),
                None => self.read_checked(bio),
            }
        } else if let Some(segments) = bio.segments() {
            // The block layer only warns about writes to a read-only disk.
            if self.io_state.are_writes_blocked() {
                return Err(self.refuse_write_of(bio));
            }
            match self.memory.find_writable(find) {
                Some((_, memory)) if write(memory, segments).is_empty() => Ok(()),
                Some(_) => Err(EIO),
                None => self.write_checked(bio),
            }
        } else if bio.operation() == Operation::WriteZeroes {
            self.write_zeroes(bio)
        } else {
            Err(EOPNOTSUPP)
        }
    }

    /// As [`Self::refuse_write`], for a request. Returns [`HOLD_WRITE`] if the region is not
    /// read-only: the disk is suspended, or just was.
    #[cold]
    #[inline(never)]
    fn refuse_write_of(&self, bio: BioRef<'_>) -> Error {
        if !self.io_state.is_read_only() {
            return HOLD_WRITE;
        }
        self.refuse(c"write", bio, self.refuse_write())
    }

    /// Reports a request that is going to fail with `err`, and returns that.
    fn refuse(&self, op: &CStr, bio: BioRef<'_>, err: Error) -> Error {
        let offset = bio.sector() << SECTOR_SHIFT;

        tracepoint::refuse(self.flusher.name(), op, offset, bio.len() as u64, Err(err));
        err
    }

    /// As [`Self::transfer`], for a queue that keeps I/O statistics. By default a queue keeps none.
    #[cold]
    #[inline(never)]
    fn transfer_accounted(&self, bio: BioRef<'_>, accounting: Accounting<'_>) -> Result {
        let result = self.transfer(bio);

        accounting.end();
        result
    }

    /// Returns the span of a request. [`None`] if it is not within the data.
    fn span(&self, bio: BioRef<'_>) -> Option<Span> {
        let (block_size, size) = (self.io_state.block_size, self.memory.size());

        Span::of_request(bio.sector(), bio.len(), block_size, size)
    }

    /// Reads what may have bad sectors.
    // Not inlined, so that the usual case saves fewer registers.
    #[cold]
    #[inline(never)]
    fn read_checked(&self, bio: BioRef<'_>) -> Result {
        let read_good = || {
            let span = self.span(bio).ok_or(EIO)?;

            if self.first_bad(span).is_some() {
                return Err(ENODATA);
            }
            // A page may have failed since.
            let segments = bio.segments_to_fill().ok_or(EIO)?;
            read(self.memory.readable(span).ok_or(ENODATA)?, segments)
        };

        read_good().map_err(|err| self.refuse(c"read", bio, err))
    }

    /// Writes to what may have bad sectors.
    #[cold]
    #[inline(never)]
    fn write_checked(&self, bio: BioRef<'_>) -> Result {
        self.repair_and_write(bio)
            .map_err(|err| self.refuse(c"write", bio, err))
    }

    fn repair_and_write(&self, bio: BioRef<'_>) -> Result {
        let span = self.span(bio).ok_or(EIO)?;
        let segments = bio.segments().ok_or(EIO)?;
        let may_sleep = !bio.is_nowait();
        let overwrite = match self.start_overwrite(span, may_sleep) {
            Some(overwrite) => overwrite,
            // The next attempt, which may sleep, says whether the poison can be cleared.
            None if !may_sleep => return Err(EAGAIN),
            None => return Err(ENODATA),
        };

        let rest = write(overwrite.memory, segments);
        self.finish_overwrite(overwrite, span.len.saturating_sub(rest.len()));
        if !rest.is_empty() {
            return Err(EIO);
        }
        Ok(())
    }

    /// Writes zeroes.
    #[cold]
    #[inline(never)]
    fn write_zeroes(&self, bio: BioRef<'_>) -> Result {
        if self.io_state.are_writes_held() && !self.io_state.is_read_only() {
            return Err(HOLD_WRITE);
        }
        self.write_zeroes_by_pieces(bio)
            .map_err(|err| self.refuse(c"write_zeroes", bio, err))
    }

    /// Writes zeroes, a piece at a time. If a piece fails, those before it are zeroed.
    ///
    /// Bad memory is looked for in each piece just before it is written, since the whole may take
    /// long. Other threads may run in between.
    fn write_zeroes_by_pieces(&self, bio: BioRef<'_>) -> Result {
        if self.io_state.is_read_only() {
            return Err(self.refuse_write());
        }
        let span = self.span(bio).ok_or(EIO)?;
        let may_sleep = !bio.is_nowait();
        if !may_sleep && self.first_bad(span).is_some() {
            return Err(EAGAIN);
        }

        let mut done: usize = 0;
        while done < span.len {
            let len = span.len.saturating_sub(done).min(ZEROED_AT_ONCE);
            let piece = span.part(done, len).ok_or(EIO)?;
            let overwrite = self.start_overwrite(piece, may_sleep).ok_or(ENODATA)?;
            overwrite.memory.zero();
            self.finish_overwrite(overwrite, len);
            done = done.saturating_add(len);
            if may_sleep {
                cond_resched();
            }
        }
        Ok(())
    }
}

/// Copies to the memory of a request. Where the copy survives machine checks, it fails for poison
/// that is not in the badblocks.
#[inline(always)]
fn read(memory: PmemSlice<'_>, segments: SegmentsToFill<'_>) -> Result {
    let mut rest = memory;

    for mut segment in segments {
        let (memory, after) = rest.split_at(segment.len()).ok_or(EIO)?;
        memory.read_into(&mut segment)?;
        rest = after;
    }
    Ok(())
}

/// Copies from the memory of a request to `memory`. Returns the rest of `memory`, which is not
/// empty if the request has fewer bytes.
#[inline(always)]
fn write<'a>(memory: WritableSlice<'a>, segments: Segments<'_>) -> WritableSlice<'a> {
    let mut rest = memory;

    for segment in segments {
        let Some((memory, after)) = rest.split_at(segment.len()) else {
            break;
        };
        memory.write_from(&segment);
        rest = after;
    }
    rest
}
