// SPDX-License-Identifier: GPL-2.0

//! Completions that can be waited for with a timeout.
//!
//! Not an extension of `kernel::sync::Completion`: its `struct completion` is private.
//!
//! C header: [`include/linux/completion.h`](srctree/include/linux/completion.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Full, //
};
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// A completion (`struct completion`).
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
/// `inner` was initialised by `init_completion()`, and is pinned.
#[pin_data]
pub struct Completion {
    #[pin]
    inner: Opaque<bindings::completion>,
}

// SAFETY: A completion may be used by any thread.
unsafe impl Send for Completion {}

// SAFETY: The lock of the completion protects it.
unsafe impl Sync for Completion {}

impl Completion {
    /// Creates a completion that is not done.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Initialised here, and pinned by the initialiser.
            inner <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writing.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Wakes one current or future waiter. Callable from any context.
    pub fn complete(&self) {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::complete(self.inner.get()) };
    }

    /// Wakes all current and future waiters. Callable from any context.
    pub fn complete_all(&self) {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::complete_all(self.inner.get()) };
    }

    /// Makes the completion not done (`reinit_completion()`). Callable from any context.
    ///
    /// A concurrent [`Self::complete`] may be lost. So the caller must check its condition after
    /// this, and before it waits. Only the thread that waits should call this: if another thread is
    /// about to return from a wait, the completion may stay done for good.
    pub fn reinit(&self) {
        // SAFETY: By the type invariant `inner` is initialised. The volatile write may race with
        // the C side, which changes the field under the lock of the completion.
        unsafe { (&raw mut (*self.inner.get()).done).write_volatile(0) };
        // ORDERING: the condition is not read before the field is written.
        smp_mb(Full);
    }

    /// Returns whether a wait would return at once. Callable from any context.
    ///
    /// If so, the `complete()` or `complete_all()` that has made it done no longer uses the
    /// completion.
    pub fn is_done(&self) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe { bindings::completion_done(self.inner.get()) }
    }

    /// Waits for at most `limit` milliseconds, and returns whether the completion was done. Sleeps,
    /// not interruptible.
    pub fn wait_timeout(&self, limit: Msecs) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        unsafe {
            bindings::wait_for_completion_timeout(self.inner.get(), msecs_to_jiffies(limit)) != 0
        }
    }

    /// Waits like [`Self::wait_timeout`], but does not count as load.
    ///
    /// For kernel threads, whose waits may take days. In a thread that gets a signal the wait
    /// begins again, for `limit` milliseconds, and counts as load.
    pub fn wait_idle_timeout(&self, limit: Msecs) -> bool {
        // SAFETY: By the type invariant `inner` is initialised.
        let rest = unsafe {
            bindings::wait_for_completion_interruptible_timeout(
                self.inner.get(),
                msecs_to_jiffies(limit),
            )
        };

        if rest < 0 {
            // The caller is no kernel thread, and has a signal.
            return self.wait_timeout(limit);
        }
        rest > 0
    }
}
