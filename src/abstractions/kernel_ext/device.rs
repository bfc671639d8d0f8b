// SPDX-License-Identifier: GPL-2.0

//! Names of devices.
//!
//! C header: [`include/linux/device.h`](srctree/include/linux/device.h)

use crate::abstractions::bindings;
use kernel::prelude::*;

/// Returns the name of a device (`dev_name()`).
///
/// `Device::name` of the kernel crate calls `CStr::from_char_ptr`, which can panic.
///
/// # Safety
///
/// For `'a`, the device must be valid, and keep its name.
pub(in crate::abstractions) unsafe fn name_of<'a>(dev: *const bindings::device) -> &'a CStr {
    // SAFETY: By the safety requirements; a name is a C string.
    unsafe {
        let name = bindings::dev_name(dev);
        let len = bindings::strlen(name).wrapping_add(1);
        CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(name.cast(), len))
    }
}
