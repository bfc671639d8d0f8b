// SPDX-License-Identifier: GPL-2.0

//! Which translations of a pgmap still succeed.

use crate::abstractions::kernel_ext::sync::atomic::read_once;
use kernel::sync::{
    atomic::{
        Atomic,
        Relaxed, //
    },
    barrier::{
        smp_mb,
        Full, //
    },
};

/// Which translations of a pgmap still succeed. It is closed in two steps, and never opened again.
///
/// ORDERING: closing is a store and a full barrier. A page fault locks an entry in the page cache
/// of its file, enters a `dax_read_lock` section, which is a full barrier too, records what it
/// exposes, passes another full barrier, and looks at the gate. So a fault that gets past the gate
/// is seen once it is closed: its exposure is recorded, and its entry is locked, or done.
pub(in crate::abstractions) struct Gate(Atomic<u32>);

impl Gate {
    const OPEN: u32 = 0;
    const NO_FRAMES: u32 = 1;
    const CLOSED: u32 = 2;

    /// An open gate.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(Self::OPEN))
    }

    /// Refuses translations that ask for a page frame number, to map the memory or to keep it.
    /// Reads and writes go on. Callable from any context.
    pub(in crate::abstractions) fn close_to_mappings(&self) {
        self.close_to(Self::NO_FRAMES);
    }

    /// Refuses all translations. Callable from any context.
    pub(in crate::abstractions) fn close(&self) {
        self.close_to(Self::CLOSED);
    }

    /// Several threads may close a gate at once; the furthest step stays.
    fn close_to(&self, step: u32) {
        let mut current = self.0.load(Relaxed);

        while current < step {
            match self.0.cmpxchg(current, step, Relaxed) {
                Ok(_) => break,
                Err(other) => current = other,
            }
        }
        smp_mb(Full);
    }

    /// Returns whether a translation for an access may go on. Callable from any context.
    #[inline]
    pub(in crate::abstractions) fn admits_access(&self) -> bool {
        read_once(&self.0) != Self::CLOSED
    }

    /// Returns whether a translation may give away page frame numbers. They must have been recorded
    /// as exposed. Callable from any context.
    ///
    /// ORDERING: the full barrier pairs with the one in `close_to()`; it forbids the
    /// store-buffering outcome.
    #[inline]
    pub(in crate::abstractions) fn admits_mapping(&self) -> bool {
        smp_mb(Full);
        read_once(&self.0) == Self::OPEN
    }
}
