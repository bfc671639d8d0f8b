// SPDX-License-Identifier: GPL-2.0

//! The limits and features of a request queue.

use crate::abstractions::bindings;
use core::ops::BitOr;
use kernel::page::PAGE_SIZE;

/// The features of a queue (`BLK_FEAT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(pub(super) u32);

impl Features {
    /// The device has a volatile write cache, which a flush writes back.
    pub const WRITE_CACHE: Self = Self(bindings::BLK_FEAT_WRITE_CACHE);
    /// The device supports `REQ_FUA` writes.
    pub const FUA: Self = Self(bindings::BLK_FEAT_FUA);
    /// Requests end before `submit_bio` returns, so polling for their completion is pointless.
    pub const SYNCHRONOUS: Self = Self(bindings::BLK_FEAT_SYNCHRONOUS);
    /// `submit_bio` ends a `REQ_NOWAIT` request with `Status::AGAIN` instead of sleeping.
    pub const NOWAIT: Self = Self(bindings::BLK_FEAT_NOWAIT);
    /// The disk supports DAX.
    pub const DAX: Self = Self(bindings::BLK_FEAT_DAX);
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

/// The limits of a queue, in bytes (`struct queue_limits`).
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The smallest unit that the disk can address.
    pub logical_block_size: u32,
    /// The smallest unit that the disk can write without reading first.
    pub physical_block_size: u32,
    /// The size of the largest request of [`Operation::WriteZeroes`]. 0 if there are none.
    ///
    /// [`Operation::WriteZeroes`]: crate::abstractions::kernel::block::bio::Operation::WriteZeroes
    pub max_write_zeroes: u32,
    /// The features of the queue.
    pub features: Features,
}

/// The size of a page, as a limit of a queue.
pub const PAGE_BLOCK: u32 = PAGE_SIZE as u32;
