// SPDX-License-Identifier: GPL-2.0

//! Uevents, and notifications of attributes.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use crate::abstractions::bindings;
use kernel::{
    device::Device,
    error::to_result,
    prelude::*, //
};

/// Sends a `change` uevent of a device with one or more variables `NAME=value`
/// (`kobject_uevent_env()`). May sleep.
///
/// # Examples
///
/// ```no_run
/// use kernel::device::Device;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel::kobject;
///
/// fn notify(dev: &Device) -> Result {
///     kobject::notify_change(dev, [c"MEDIUM=bad"])
/// }
/// ```
pub fn notify_change<const N: usize>(dev: &Device, variables: [&CStr; N]) -> Result {
    const { assert!(N > 0) };

    // Twice the length, since `N + 1` is no constant. At least one null pointer ends the list.
    let mut environment = [
        [core::ptr::null_mut::<c_char>(); N],
        [core::ptr::null_mut(); N],
    ];
    for (entry, variable) in environment.as_flattened_mut().iter_mut().zip(variables) {
        *entry = variable.as_char_ptr().cast_mut();
    }

    let dev: *const Device = dev;
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let dev = dev.cast_mut().cast::<bindings::device>();
    // SAFETY: The device is valid. The environment is a null-terminated list of C strings, which
    // the function copies.
    to_result(unsafe {
        bindings::kobject_uevent_env(
            &raw mut (*dev).kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            environment.as_flattened_mut().as_mut_ptr(),
        )
    })
}

/// Wakes programs that poll the attribute `name` in a directory of a device (`sysfs_notify()`).
/// Does nothing if there is no such attribute. May sleep.
pub fn notify_attribute(dev: &Device, directory: &CStr, name: &CStr) {
    let dev: *const Device = dev;
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let dev = dev.cast_mut().cast::<bindings::device>();
    // SAFETY: The device is valid, and the function takes a device without a directory. The names
    // are C strings.
    unsafe {
        bindings::sysfs_notify(
            &raw mut (*dev).kobj,
            directory.as_char_ptr(),
            name.as_char_ptr(),
        )
    };
}
