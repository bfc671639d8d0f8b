// SPDX-License-Identifier: GPL-2.0

//! Completions that can be waited for with a limit.
//!
//! The kernel crate's `sync::Completion` waits for as long as it takes.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::abstractions::bindings;
use core::ptr::addr_of_mut;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// A `struct completion`.
///
/// # Examples
///
/// ```
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::kernel_ext::sync::completion::Completion;
///
/// let done = Arc::pin_init(Completion::new(), GFP_KERNEL)?;
///
/// assert!(!done.wait_timeout(1));
/// done.complete();
/// assert!(done.wait_timeout(1));
/// assert!(!done.wait_timeout(1));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` was initialised by `init_completion` and stays where it is.
#[pin_data]
pub struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion may be used by any thread.
unsafe impl Send for Completion {}

// SAFETY: A completion is protected by its own lock.
unsafe impl Sync for Completion {}

impl Completion {
    /// Creates a completion that nobody has completed.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Initialised here, and pinned from here on.
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writing.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Wakes one current or future waiter. May be called from any context.
    pub fn complete(&self) {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Wakes all current and future waiters. May be called from any context.
    pub fn complete_all(&self) {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::complete_all(self.inner.get()) };
    }

    /// Forgets what was completed so far. What is completed at the same moment may be forgotten too, so
    /// whoever waits looks for it himself after this.
    pub fn reinit(&self) {
        // SAFETY: By the type invariant `inner` is initialised. This is `reinit_completion()`.
        unsafe { addr_of_mut!((*self.inner.get()).done).write_volatile(0) };
    }

    /// Returns whether a wait would end at once. May be called from any context.
    ///
    /// If so, `complete` or `complete_all` has ended too, so that the completion may be freed.
    pub fn is_done(&self) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::completion_done(self.inner.get()) }
    }

    /// Waits, uninterruptibly, for at most `limit` milliseconds. Sleeps. Returns whether the
    /// completion was completed.
    pub fn wait_timeout(&self, limit: Msecs) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe {
            bindings::wait_for_completion_timeout(self.inner.get(), msecs_to_jiffies(limit)) != 0
        }
    }

    /// As [`Self::wait_timeout`], without counting as load. For kernel threads, which may wait for what
    /// takes days.
    pub fn wait_idle_timeout(&self, limit: Msecs) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        let rest = unsafe {
            bindings::wait_for_completion_interruptible_timeout(
                self.inner.get(),
                msecs_to_jiffies(limit),
            )
        };

        if rest < 0 {
            // It was called by a thread that has signals, after all.
            return self.wait_timeout(limit);
        }
        rest > 0
    }
}
