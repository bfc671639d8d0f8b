// SPDX-License-Identifier: GPL-2.0

//! The invalidate lock of a file.
//!
//! C header: [`include/linux/fs.h`](srctree/include/linux/fs.h) (`filemap_invalidate_lock`)

use crate::abstractions::bindings;
use core::ptr::NonNull;

/// The invalidate lock of a file, held for writing. Page faults of ext4 and xfs hold it for
/// reading.
///
/// # Invariants
///
/// The mapping is valid, and the lock is held.
pub(super) struct InvalidateLock(NonNull<bindings::address_space>);

impl InvalidateLock {
    /// Takes the lock, unless it is held.
    ///
    /// # Safety
    ///
    /// The mapping must be valid for as long as the result lives.
    pub(super) unsafe fn try_new(mapping: NonNull<bindings::address_space>) -> Option<Self> {
        // SAFETY: By the safety requirements.
        if !unsafe { bindings::filemap_invalidate_trylock(mapping.as_ptr()) } {
            return None;
        }
        // INVARIANT: Just taken.
        Some(Self(mapping))
    }

    /// Takes the lock. Sleeps.
    ///
    /// # Safety
    ///
    /// The mapping must be valid for as long as the result lives.
    pub(super) unsafe fn new(mapping: NonNull<bindings::address_space>) -> Self {
        // SAFETY: By the safety requirements.
        unsafe { bindings::filemap_invalidate_lock(mapping.as_ptr()) };
        // INVARIANT: Just taken.
        Self(mapping)
    }
}

impl Drop for InvalidateLock {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the lock is held.
        unsafe { bindings::filemap_invalidate_unlock(self.0.as_ptr()) };
    }
}
