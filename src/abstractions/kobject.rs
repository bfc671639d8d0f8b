// SPDX-License-Identifier: GPL-2.0

//! Events for user space.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use super::bindings;
use kernel::{
    device::Device,
    error::to_result,
    prelude::*, //
};

/// Tells user space that a device has changed, with variables of the form `NAME=value`. May sleep.
pub fn notify_change<const N: usize>(dev: &Device, variables: [&CStr; N]) -> Result {
    let mut environment = KVec::with_capacity(N.saturating_add(1), GFP_KERNEL)?;
    for variable in variables {
        environment.push(variable.as_char_ptr().cast_mut(), GFP_KERNEL)?;
    }
    environment.push(core::ptr::null_mut(), GFP_KERNEL)?;

    let dev: *const Device = dev;
    // CAST: `Device` is a transparent wrapper of `struct device`.
    let dev = dev.cast_mut().cast::<bindings::device>();
    // SAFETY: The device is valid, and the environment is a null-terminated list of strings, which
    // are copied.
    to_result(unsafe {
        bindings::kobject_uevent_env(
            &raw mut (*dev).kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            environment.as_mut_ptr(),
        )
    })
}
