// SPDX-License-Identifier: GPL-2.0

//! Additions to `kernel::task`.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use crate::abstractions::bindings;

/// Lets other threads run if they are waiting (`cond_resched()`). May sleep.
///
/// To be called in process context, without spinlocks.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::task::cond_resched;
///
/// for part in [0_u8; 64].chunks_mut(16) {
///     part.fill(1);
///     cond_resched();
/// }
/// ```
pub fn cond_resched() {
    // SAFETY: The function has no requirements for memory safety.
    unsafe { bindings::cond_resched() };
}
