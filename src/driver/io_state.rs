// SPDX-License-Identifier: GPL-2.0

//! The properties of a disk that each request reads.

use crate::abstractions::kernel_ext::sync::atomic::read_once;
use crate::abstractions::nvdimm::FlushBarrier;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// What each request reads. It is in the cache line of the reference to the memory.
pub struct IoState {
    /// The logical block size of the disk, a power of two.
    pub block_size: u32,
    /// The barrier that flushes the region, if no more is needed.
    pub flush_barrier: Option<FlushBarrier>,
    /// [`Self::READ_ONLY`] or [`Self::WRITES_HELD`], or both, or 0.
    writes_blocked: Atomic<u32>,
}

impl IoState {
    /// The region is read-only.
    pub const READ_ONLY: u32 = 1;
    /// The disk is suspended.
    pub const WRITES_HELD: u32 = 2;

    /// Creates the state of a disk whose writes are executed.
    pub fn new(block_size: u32, flush_barrier: Option<FlushBarrier>) -> Self {
        Self {
            block_size,
            flush_barrier,
            writes_blocked: Atomic::new(0),
        }
    }

    /// Sets or clears a flag. Returns whether that is a change. Called with the lock of
    /// `Pmem::held` held.
    pub fn set_writes_blocked(&self, flag: u32, set: bool) -> bool {
        let old = self.writes_blocked.load(Relaxed);
        let new = if set { old | flag } else { old & !flag };

        self.writes_blocked.store(new, Relaxed);
        new != old
    }

    /// Returns whether writes are not executed: they are refused or held.
    #[inline]
    pub fn are_writes_blocked(&self) -> bool {
        read_once(&self.writes_blocked) != 0
    }

    /// Returns whether writes are refused, because the region is read-only.
    #[inline]
    pub fn is_read_only(&self) -> bool {
        read_once(&self.writes_blocked) & Self::READ_ONLY != 0
    }

    /// Returns whether writes are held, because the disk is suspended.
    pub fn are_writes_held(&self) -> bool {
        read_once(&self.writes_blocked) & Self::WRITES_HELD != 0
    }
}
