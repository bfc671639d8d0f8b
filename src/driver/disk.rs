// SPDX-License-Identifier: GPL-2.0

//! The block device: `/dev/pmemN`.
//!
//! A request is copied when it is submitted, and has ended when that returns, unless its flush is
//! asynchronous (virtio).

use super::{
    plain::geometry::{
        Span, //
        SECTOR_SHIFT,
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
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// What the disk is to be able to do beyond reading and writing.
pub struct Abilities {
    /// Single writes can be made durable by flushing the region.
    pub fua: bool,
    /// There is a DAX device for file systems to find.
    pub dax: bool,
}

/// Makes the disk for `pmem`.
pub fn new(
    name: &DiskName,
    abilities: Abilities,
    node: Node,
    pmem: Arc<Pmem>,
) -> Result<GenDisk<Pmem>> {
    let mut features = Features::WRITE_CACHE | Features::SYNCHRONOUS;
    if abilities.fua {
        features = features | Features::FUA;
    }
    if abilities.dax {
        features = features | Features::DAX;
    }
    let limits = Limits {
        logical_block_size: pmem.block_size,
        physical_block_size: PAGE_BLOCK,
        features,
    };
    let sectors = pmem.range.size() >> SECTOR_SHIFT;

    GenDisk::new(name, limits, sectors as u64, node, pmem)
}

impl gendisk::Operations for Pmem {
    type OwnerModule = crate::LocalModule;

    // Whether `fsync` flushes the CPU caches. To be switched off only where they are durable.
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
            if let Err(err) = self.flusher.flush() {
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
    /// Copies the data of a request. What is the same for all of it is looked at once, not for each piece.
    // A call of its own costs more than thirty instructions, of the hundred and fifty for a small
    // request.
    #[inline(always)]
    fn transfer(&self, bio: &Bio) -> Result {
        // The block layer has checked this, except for requests that a stacked device remapped.
        let find = move |size| Span::of_request(bio.sector(), bio.len(), self.block_size, size);

        // No `match`: that would make the number of the operation one of the enum first.
        if bio.operation() == Operation::Read {
            let segments = bio.segments_to_fill();
            let (span, mut rest) = self.range.find(find).ok_or(EIO)?;
            // Reading bad memory that is not known to be bad is safe.
            if self.bad(span).is_some() {
                return Err(ENODATA);
            }
            for mut segment in segments {
                let (memory, after) = rest.split_at(segment.len()).ok_or(EIO)?;
                memory.read_into(&mut segment)?;
                rest = after;
            }
            Ok(())
        } else if bio.operation() == Operation::Write {
            let segments = bio.segments();
            let Some(overwriting) = self.start_overwriting(find) else {
                let is_there = find(self.range.size()).is_some();
                return Err(if is_there { ENODATA } else { EIO });
            };
            let len = overwriting.memory.len();
            let mut rest = overwriting.memory;
            for segment in segments {
                let Some((memory, after)) = rest.split_at(segment.len()) else {
                    break;
                };
                memory.write_from(&segment);
                rest = after;
            }
            self.finish_overwriting(overwriting, len.saturating_sub(rest.len()));
            if !rest.is_empty() {
                return Err(EIO);
            }
            Ok(())
        } else {
            Err(EOPNOTSUPP)
        }
    }
}
