// SPDX-License-Identifier: GPL-2.0

//! Events for user space.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use crate::abstractions::bindings;
use kernel::{
    device::Device,
    error::to_result,
    prelude::*, //
};

/// Tells user space that a device has changed, with variables of the form `NAME=value`, of which there
/// is at least one. May sleep.
///
/// # Examples
///
/// ```no_run
/// use kernel::{
///     device::Device,
///     prelude::*, //
/// };
/// use pmem_rs::abstractions::kernel::kobject;
///
/// fn tell(dev: &Device) -> Result {
///     kobject::notify_change(dev, [c"MEDIUM=bad"])
/// }
/// ```
pub fn notify_change<const N: usize>(dev: &Device, variables: [&CStr; N]) -> Result {
    const { assert!(N > 0) };

    // One more than there are, for the end.
    let mut environment = [
        [core::ptr::null_mut::<c_char>(); N],
        [core::ptr::null_mut(); N],
    ];
    for (place, variable) in environment.as_flattened_mut().iter_mut().zip(variables) {
        *place = variable.as_char_ptr().cast_mut();
    }

    let dev: *const Device = dev;
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let dev = dev.cast_mut().cast::<bindings::device>();
    // SAFETY: The device is valid, and the environment is a null-terminated list of strings, which
    // are copied.
    to_result(unsafe {
        bindings::kobject_uevent_env(
            &raw mut (*dev).kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            environment.as_flattened_mut().as_mut_ptr(),
        )
    })
}
