// SPDX-License-Identifier: GPL-2.0

//! Module parameters that `module!` cannot define: those that are writable while the module is
//! loaded, and strings.
//!
//! They are defined in C, in `rust-bindings/parameters.c`.
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

/// The parameter `revoke_timeout_ms`: how long unbind waits for leases, pinned pages and other
/// users of the memory, in milliseconds.
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

/// The parameter `revoke_notice_ms`: how long unbind waits for users of a device before it revokes
/// the memory, in milliseconds.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::module_param::REVOKE_NOTICE_MS;
///
/// let waits = REVOKE_NOTICE_MS.get() != 0;
/// # let _ = waits;
/// ```
pub static REVOKE_NOTICE_MS: Uint =
    // SAFETY: `rust-bindings/parameters.c` defines this parameter of this module.
    unsafe { Uint::new(&raw const bindings::pmem_rs_revoke_notice_ms) };

/// The parameter `suspend_limit_ms`: how long a disk stays suspended at most, in milliseconds.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::module_param::SUSPEND_LIMIT_MS;
///
/// let limit = SUSPEND_LIMIT_MS.get().min(100_000);
/// # let _ = limit;
/// ```
pub static SUSPEND_LIMIT_MS: Uint =
    // SAFETY: `rust-bindings/parameters.c` defines this parameter of this module.
    unsafe { Uint::new(&raw const bindings::pmem_rs_suspend_limit_ms) };

/// A parameter of type `charp` that is set only when the module is loaded.
///
/// # Invariants
///
/// The pointer is that of a parameter of this module, which lives as long as the module. Its value
/// is null, or a C string that lives as long as the module.
pub struct Text(*const *mut c_char);

// SAFETY: The parameter does not change after the module was loaded.
unsafe impl Sync for Text {}

// SAFETY: A parameter belongs to no thread.
unsafe impl Send for Text {}

impl Text {
    /// Returns the value, if it was set. Callable from any context.
    pub fn get(&self) -> Option<&'static CStr> {
        // SAFETY: By the type invariant the pointer is valid.
        let value = unsafe { *self.0 };
        if value.is_null() {
            return None;
        }
        // `CStr::from_char_ptr` of the kernel crate can panic.
        //
        // SAFETY: By the type invariant it is a C string, which lives as long as the module.
        Some(unsafe {
            let len = bindings::strlen(value).wrapping_add(1);
            CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(value.cast(), len))
        })
    }
}

/// The parameter `except`: namespaces that are left to other drivers.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::module_param::EXCEPT;
///
/// let is_set = EXCEPT.get().is_some_and(|list| !list.is_empty());
/// # let _ = is_set;
/// ```
pub static EXCEPT: Text =
    // INVARIANT: The parameter cannot be changed through sysfs. `param_free_charp()` frees the
    // string when the module is freed.
    Text(&raw const bindings::pmem_rs_except);
