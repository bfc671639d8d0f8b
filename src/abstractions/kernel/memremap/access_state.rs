// SPDX-License-Identifier: GPL-2.0

//! Which translations of a pgmap may succeed.

use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Full, //
};
use crate::abstractions::kernel_ext::sync::atomic::read_once;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// Which translations of a pgmap may succeed: all, those without page frame numbers, or none. The
/// state changes in this order only.
///
/// ORDERING: a change is a store and a full barrier. A page fault locks an entry in the page cache
/// of its file, enters a `dax_read_lock` section (a full barrier), records which pages it exposes,
/// passes another full barrier, and reads this state. So if the fault is still permitted, the
/// thread that changed the state sees the exposure, and sees the entry locked or complete.
pub(in crate::abstractions) struct AccessState(Atomic<u32>);

impl AccessState {
    const ALL: u32 = 0;
    const NO_MAPPINGS: u32 = 1;
    const NO_ACCESS: u32 = 2;
    const NONE: u32 = Self::NO_MAPPINGS | Self::NO_ACCESS;

    /// Returns the state in which all translations may succeed.
    pub(super) const fn new() -> Self {
        Self(Atomic::new(Self::ALL))
    }

    /// Refuses translations that ask for a page frame number, to map the memory or to keep it.
    /// Reads and writes are still permitted. Callable from any context.
    pub(super) fn refuse_mappings(&self) {
        self.advance_to(Self::NO_MAPPINGS);
    }

    /// Refuses all translations. Callable from any context.
    pub(super) fn refuse_access(&self) {
        self.advance_to(Self::NONE);
    }

    /// Changes the state to `state`, or leaves it if it is the same or a later one. Several threads
    /// may do so at once.
    fn advance_to(&self, state: u32) {
        let mut current = self.0.load(Relaxed);

        while current < state {
            match self.0.cmpxchg(current, state, Relaxed) {
                Ok(_) => break,
                Err(other) => current = other,
            }
        }
        smp_mb(Full);
    }

    /// Returns whether a translation for an access may succeed. Callable from any context.
    #[inline]
    pub(in crate::abstractions) fn permits_access(&self) -> bool {
        read_once(&self.0) & Self::NO_ACCESS == 0
    }

    /// Returns whether a translation may return page frame numbers. They must have been recorded as
    /// exposed. Callable from any context.
    ///
    /// ORDERING: the full barrier pairs with the one in `advance_to()`; it forbids the
    /// store-buffering outcome.
    #[inline]
    pub(in crate::abstractions) fn permits_mapping(&self) -> bool {
        smp_mb(Full);
        read_once(&self.0) == Self::ALL
    }
}
