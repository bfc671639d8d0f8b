// SPDX-License-Identifier: GPL-2.0

//! Parameters of the module that can be written while it is loaded.
//!
//! Those of `module!` are set when the module is loaded, and are not in sysfs. These are defined in
//! C (`rust-bindings/parameters.c`), with a mode, and are found in `/sys/module/*/parameters`.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::abstractions::bindings;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    },
};

/// A parameter of type `uint`.
///
/// # Invariants
///
/// The pointer is that of a parameter, which is there for as long as the module.
pub struct Uint(*const c_uint);

// SAFETY: The parameter is only read, by an atomic load.
unsafe impl Sync for Uint {}

// SAFETY: A parameter belongs to no thread.
unsafe impl Send for Uint {}

impl Uint {
    /// # Safety
    ///
    /// The pointer must be that of a parameter of this module.
    const unsafe fn new(parameter: *const c_uint) -> Self {
        // INVARIANT: By the safety requirements.
        Self(parameter)
    }

    /// Returns the value as it is now; it may change at any time. Callable from any context.
    pub fn get(&self) -> u32 {
        // SAFETY: By the type invariant the pointer is valid. The C side writes the parameter as a
        // whole (`param_set_uint()`), which in the kernel's memory model may race with a
        // `READ_ONCE()`.
        unsafe { Atomic::from_ptr(self.0.cast_mut()) }.load(Relaxed)
    }
}

/// `revoke_timeout_ms`: how long unbind waits for pinned pages, in milliseconds; 0 for as long as
/// it takes.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::module_param::REVOKE_TIMEOUT_MS;
///
/// let limit = match REVOKE_TIMEOUT_MS.get() {
///     0 => None,
///     milliseconds => Some(milliseconds),
/// };
/// # let _ = limit;
/// ```
pub static REVOKE_TIMEOUT_MS: Uint =
    // SAFETY: It is defined in `rust-bindings/parameters.c`.
    unsafe { Uint::new(&raw const bindings::pmem_rs_revoke_timeout_ms) };
