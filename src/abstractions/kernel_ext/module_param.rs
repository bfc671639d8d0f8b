// SPDX-License-Identifier: GPL-2.0

//! Module parameters that are writable while the module is loaded.
//!
//! The parameters of `module!` are not in sysfs. So these are defined in C, in
//! `rust-bindings/parameters.c`, and appear in `/sys/module/*/parameters`.
//!
//! C header: [`include/linux/moduleparam.h`](srctree/include/linux/moduleparam.h)

use crate::abstractions::bindings;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// A parameter of type `uint`.
///
/// # Invariants
///
/// The pointer is that of a parameter of this module, which lives as long as the module.
pub struct Uint(*const c_uint);

// SAFETY: The parameter is only read, with an atomic load.
unsafe impl Sync for Uint {}

// SAFETY: A parameter belongs to no thread.
unsafe impl Send for Uint {}

impl Uint {
    /// Wraps a parameter.
    ///
    /// # Safety
    ///
    /// The pointer must be that of a parameter of this module.
    const unsafe fn new(parameter: *const c_uint) -> Self {
        // INVARIANT: By the safety requirements.
        Self(parameter)
    }

    /// Returns the current value. Callable from any context.
    pub fn get(&self) -> u32 {
        // SAFETY: By the type invariant the pointer is valid. `param_set_uint()` writes it in one
        // store, which in the kernel's memory model may race with `READ_ONCE()`.
        unsafe { Atomic::from_ptr(self.0.cast_mut()) }.load(Relaxed)
    }
}

/// The parameter `revoke_timeout_ms`: how long unbind waits for pinned pages, in milliseconds.
///
/// 0 means without a limit.
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
    // SAFETY: `rust-bindings/parameters.c` defines this parameter of this module.
    unsafe { Uint::new(&raw const bindings::pmem_rs_revoke_timeout_ms) };
