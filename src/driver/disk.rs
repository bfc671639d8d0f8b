// SPDX-License-Identifier: GPL-2.0

//! The block device: `/dev/pmemN`.
//!
//! `submit_bio()` copies the data and ends the bio before it returns, unless the flush of the
//! region is asynchronous (virtio).

use super::{
    plain::geometry::{
        Span,
        SECTOR_SHIFT, //
    },
    pmem::Pmem, //
};
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    block::{
        bio::{
            Bio,
            Operation,
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
    numa::Node, //
};
use crate::abstractions::kernel_ext::task::cond_resched;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// The optional features of the disk.
pub struct Capabilities {
    /// The region can be flushed, so `REQ_FUA` is supported.
    pub fua: bool,
    /// File systems can use the DAX device.
    pub dax: bool,
}

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
        logical_block_size: pmem.access.block_size,
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
    fn submit_bio(&self, bio: Bio) {
        if bio.is_preflush() {
            if let Err(err) = self.flusher.flush_before(&bio) {
                return bio.end(err.into());
            }
        }

        let status = if bio.is_empty() {
            Status::OK
        } else {
            let accounting = bio.start_accounting();
            let result = self.transfer(&bio);
            if let Some(accounting) = accounting {
                accounting.end();
            }
            result.into()
        };

        if bio.is_fua() && status == Status::OK {
            self.flusher.flush_and_end(bio);
        } else {
            bio.end(status);
        }
    }

    fn badblocks(&self) -> Option<&Badblocks> {
        Some(&self.badblocks)
    }
}

impl Pmem {
    /// Copies the data of a bio. Range and badblocks are checked once, not for each segment.
    // A call that is not inlined costs more than 30 of about 150 instructions for a small request.
    #[inline(always)]
    fn transfer(&self, bio: &Bio) -> Result {
        // The block layer has checked the range, but not of bios that a stacked device remapped.
        let find =
            move |size| Span::of_request(bio.sector(), bio.len(), self.access.block_size, size);

        // A `match` would first convert the number of the operation to the enum.
        if bio.operation() == Operation::Read {
            let segments = bio.segments_to_fill();
            let (span, mut rest) = self.memory.find(find).ok_or(EIO)?;
            // Reading poison that is not in the badblocks is safe: the copy fails.
            if self.first_bad(span).is_some() {
                return Err(ENODATA);
            }
            for mut segment in segments {
                let (memory, after) = rest.split_at(segment.len()).ok_or(EIO)?;
                memory.read_into(&mut segment)?;
                rest = after;
            }
            Ok(())
        } else if bio.operation() == Operation::Write {
            // The block layer only warns about writes to a read-only disk.
            if self.access.is_read_only() {
                return Err(self.refuse_write());
            }
            let segments = bio.segments();
            let Some(overwrite) = self.start_overwrite(find, || !bio.is_nowait()) else {
                return Err(cannot_write(find(self.memory.size()), !bio.is_nowait()));
            };
            let len = overwrite.memory.len();
            let mut rest = overwrite.memory;
            for segment in segments {
                let Some((memory, after)) = rest.split_at(segment.len()) else {
                    break;
                };
                memory.write_from(&segment);
                rest = after;
            }
            self.finish_overwrite(overwrite, len.saturating_sub(rest.len()));
            if !rest.is_empty() {
                return Err(EIO);
            }
            Ok(())
        } else if bio.operation() == Operation::WriteZeroes {
            // Not `find`: if a reference to the bio escaped, the other branches would be slower.
            self.write_zeroes(bio.sector(), bio.len(), !bio.is_nowait())
        } else {
            Err(EOPNOTSUPP)
        }
    }

    /// Writes zeroes, a piece at a time. If a piece fails, those before it are zeroed.
    ///
    /// Bad memory is looked for in each piece just before it is written, since the whole may take
    /// long. Other threads may run in between.
    #[cold]
    #[inline(never)]
    fn write_zeroes(&self, sector: u64, len: usize, may_sleep: bool) -> Result {
        if self.access.is_read_only() {
            return Err(self.refuse_write());
        }
        let span =
            Span::of_request(sector, len, self.access.block_size, self.memory.size()).ok_or(EIO)?;
        if !may_sleep && self.first_bad(span).is_some() {
            return Err(EAGAIN);
        }

        let mut done: usize = 0;
        while done < span.len {
            let len = span.len.saturating_sub(done).min(ZEROED_AT_ONCE);
            let piece = span.part(done, len).ok_or(EIO)?;
            let overwrite = self
                .start_overwrite(|_| Some(piece), || may_sleep)
                .ok_or(ENODATA)?;
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

/// Returns why [`Pmem::start_overwrite`] has failed, for a request of `span`.
#[cold]
fn cannot_write(span: Option<Span>, may_sleep: bool) -> Error {
    match span {
        None => EIO,
        // The next attempt, which may sleep, says whether the poison can be cleared.
        Some(_) if !may_sleep => EAGAIN,
        Some(_) => ENODATA,
    }
}
