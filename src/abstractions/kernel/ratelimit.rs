// SPDX-License-Identifier: GPL-2.0

//! Limits of how often something is done, such as logging a message.
//!
//! C header: [`include/linux/ratelimit.h`](srctree/include/linux/ratelimit.h)

use crate::abstractions::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// A limit of how often something is done (`struct ratelimit_state`): 10 times in 5 seconds, as
/// `dev_err_ratelimited()` has it.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::ratelimit::RateLimit;
///
/// let limit = KBox::pin_init(RateLimit::new(), GFP_KERNEL)?;
/// let other = KBox::pin_init(RateLimit::new(), GFP_KERNEL)?;
///
/// let permitted = (0..100).filter(|_| limit.permits(c"example")).count();
/// assert!((10..100).contains(&permitted));
/// assert!(other.permits(c"example"));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` was initialised by `ratelimit_default_init()`, and is pinned.
#[pin_data]
pub struct RateLimit {
    #[pin]
    inner: Opaque<bindings::ratelimit_state>,
}

// SAFETY: `struct ratelimit_state` may be used by any thread.
unsafe impl Send for RateLimit {}

// SAFETY: `struct ratelimit_state` has a lock of its own.
unsafe impl Sync for RateLimit {}

impl RateLimit {
    /// Creates a limit that was not used yet.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Initialised here, and pinned by the initialiser.
            inner <- Opaque::ffi_init(|slot: *mut bindings::ratelimit_state| {
                // SAFETY: `slot` is valid for writing.
                unsafe { bindings::ratelimit_default_init(slot) };
            }),
        })
    }

    /// Returns whether it may be done now, and counts it. Callable from any context.
    ///
    /// After a time in which it was not permitted, the C side logs how often, with `name`.
    pub fn permits(&self, name: &CStr) -> bool {
        // SAFETY: By the type invariant `inner` is initialised. The name is only used during the
        // call.
        unsafe { bindings::___ratelimit(self.inner.get(), name.as_char_ptr()) != 0 }
    }
}
