// SPDX-License-Identifier: GPL-2.0

//! Kernels that save the memory of a kernel that has crashed.
//!
//! C header: [`include/linux/crash_dump.h`](srctree/include/linux/crash_dump.h)

use crate::abstractions::bindings;

/// Returns whether this kernel was booted after another one has crashed, to save its memory.
/// Callable from any context.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::crash_dump::is_kdump_kernel;
///
/// // The memory of such a kernel is small.
/// let buffers = if is_kdump_kernel() { 1 } else { 64 };
/// # assert_eq!(buffers, 64);
/// ```
pub fn is_kdump_kernel() -> bool {
    // SAFETY: Reads a variable that does not change after boot.
    unsafe { bindings::is_kdump_kernel() }
}
