// SPDX-License-Identifier: GPL-2.0

//! The calls that the holder of a lease has to get, and which thread makes them.
//!
//! Callbacks are called by one thread at a time. Once a lease was given back, no callback begins.
//! The thread that gives it back waits for a callback that runs in another thread.
//!
//! This is plain Rust, to be used under a lock. `tests/host` has a model of it for loom.

/// How many ranges that have failed are kept apart until the holder is notified.
const RANGES: usize = 4;

/// A call to the holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// The device is going to be unbound.
    Revoke,
    /// The `len` bytes from `offset` on have failed. They may include good bytes between two
    /// failures.
    BadMemory {
        /// Where they begin in the lease.
        offset: u64,
        /// How many they are.
        len: u64,
    },
}

/// Whether the holder was notified that the device is going to be unbound.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Revoke {
    No,
    Pending,
    Delivered,
}

/// The calls that a holder has to get. `T` names threads.
pub(super) struct Handover<T> {
    revoke: Revoke,
    /// The ranges that have failed, as first byte and length. Those that are used come first.
    failed: [(u64, u64); RANGES],
    used: usize,
    /// The thread that is in a callback.
    caller: Option<T>,
    /// Calls may begin.
    open: bool,
    given_back: bool,
}

impl<T: Copy + PartialEq> Handover<T> {
    pub(super) const fn new() -> Self {
        Self {
            revoke: Revoke::No,
            failed: [(0, 0); RANGES],
            used: 0,
            caller: None,
            open: false,
            given_back: false,
        }
    }

    /// Permits calls. Returns whether there is one to be made.
    pub(super) fn open(&mut self) -> bool {
        self.open = true;
        self.revoke == Revoke::Pending || self.used != 0
    }

    /// Requests the call that the device is going to be unbound. Returns whether that is a new
    /// request.
    pub(super) fn request_return(&mut self) -> bool {
        if self.given_back || self.revoke != Revoke::No {
            return false;
        }
        self.revoke = Revoke::Pending;
        true
    }

    /// Requests the call that the `len` bytes from `offset` on have failed. Returns whether that is
    /// a new request. If there are many ranges, the last one grows.
    pub(super) fn fail(&mut self, offset: u64, len: u64) -> bool {
        if self.given_back {
            return false;
        }

        if let Some(free) = self.failed.get_mut(self.used) {
            *free = (offset, len);
            self.used = self.used.saturating_add(1);
        } else if let Some((start, old)) = self.failed.last_mut() {
            let end = offset.saturating_add(len).max(start.saturating_add(*old));
            *start = offset.min(*start);
            *old = end.saturating_sub(*start);
        }
        true
    }

    /// Begins the next call, in this thread. `get` keeps the code of the holder. If it fails, the
    /// module of that code is being unloaded, and nothing is called any more.
    ///
    /// If another thread is in a callback, it makes the call afterwards.
    pub(super) fn begin<P>(
        &mut self,
        thread: T,
        get: impl FnOnce() -> Option<P>,
    ) -> Option<(Call, P)> {
        if !self.open || self.given_back || self.caller.is_some() {
            return None;
        }
        let call = self.next()?;
        let Some(module) = get() else {
            self.used = 0;
            return None;
        };

        self.caller = Some(thread);
        Some((call, module))
    }

    fn next(&mut self) -> Option<Call> {
        if self.revoke == Revoke::Pending {
            self.revoke = Revoke::Delivered;
            return Some(Call::Revoke);
        }

        self.used = self.used.checked_sub(1)?;
        let (offset, len) = *self.failed.get(self.used)?;
        Some(Call::BadMemory { offset, len })
    }

    /// Ends the call.
    pub(super) fn end(&mut self) {
        self.caller = None;
    }

    /// Records that the lease was given back. No call begins after this.
    pub(super) fn give_back(&mut self) {
        self.given_back = true;
    }

    /// Returns whether no callback runs, other than in `thread`.
    pub(super) fn may_end(&self, thread: T) -> bool {
        self.caller.is_none_or(|caller| caller == thread)
    }

    /// Returns whether a thread is in a callback.
    pub(super) fn is_in_callback(&self) -> bool {
        self.caller.is_some()
    }
}
