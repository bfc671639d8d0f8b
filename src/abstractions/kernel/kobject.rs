// SPDX-License-Identifier: GPL-2.0

//! Uevents, and notifications of attributes.
//!
//! C header: [`include/linux/kobject.h`](srctree/include/linux/kobject.h)

use crate::abstractions::bindings;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// The most bytes that all variables may have, with their terminators. The buffer of an event has
/// 2 KiB, and also has the path of the device and the variables of its subsystem.
const MAX_BYTES: usize = 1024;

/// Sends a `change` uevent of a device. As [`notify_change_of`].
///
/// # Safety
///
/// As for [`notify_change_of`].
pub(in crate::abstractions) unsafe fn notify_change<const N: usize>(
    dev: *mut bindings::device,
    variables: [&CStr; N],
) -> Result {
    // SAFETY: By the safety requirements.
    unsafe { notify_change_of(&raw mut (*dev).kobj, variables) }
}

/// Sends a `change` uevent of a kobject with one or more variables `NAME=value`
/// (`kobject_uevent_env()`). May sleep. Fails with [`EINVAL`] if the variables are too long: the C
/// side would warn.
///
/// # Safety
///
/// `kobj` must have been added. Neither the kobject nor one above it may be deleted during the
/// call: `kobject_get_path()` follows the parents without a lock or a reference.
pub(in crate::abstractions) unsafe fn notify_change_of<const N: usize>(
    kobj: *mut bindings::kobject,
    variables: [&CStr; N],
) -> Result {
    const { assert!(N > 0 && N <= 32) };

    let bytes = variables.iter().fold(0, |sum: usize, variable| {
        sum.saturating_add(variable.to_bytes_with_nul().len())
    });
    if bytes > MAX_BYTES {
        return Err(EINVAL);
    }

    // Twice the length, since `N + 1` is no constant. At least one null pointer ends the list.
    let mut environment = [
        [core::ptr::null_mut::<c_char>(); N],
        [core::ptr::null_mut(); N],
    ];
    for (entry, variable) in environment.as_flattened_mut().iter_mut().zip(variables) {
        *entry = variable.as_char_ptr().cast_mut();
    }

    // SAFETY: By the safety requirements. The environment is a null-terminated list of C strings,
    // which the function copies.
    to_result(unsafe {
        bindings::kobject_uevent_env(
            kobj,
            bindings::kobject_action_KOBJ_CHANGE,
            environment.as_flattened_mut().as_mut_ptr(),
        )
    })
}

/// Wakes programs that poll the attribute `name` in a directory of a device (`sysfs_notify()`).
/// Does nothing if there is no such attribute. May sleep.
///
/// # Safety
///
/// `dev` must have been added, and must not be deleted during the call: `sysfs_notify()` uses its
/// directory without a lock or a reference.
pub(in crate::abstractions) unsafe fn notify_attribute(
    dev: *mut bindings::device,
    directory: &CStr,
    name: &CStr,
) {
    // SAFETY: By the safety requirements. The names are C strings.
    unsafe {
        bindings::sysfs_notify(
            &raw mut (*dev).kobj,
            directory.as_char_ptr(),
            name.as_char_ptr(),
        )
    };
}

#[kunit_tests(pmem_rs_kobject)]
mod tests {
    use super::*;
    use kernel::{
        device::{
            Bound,
            Device, //
        },
        faux,
        str::CString, //
    };

    #[test]
    fn long_variables_are_refused() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_kobject", None)?;
        let generic: &Device<Bound> = faux.as_ref().as_ref();
        // CAST: `Device` is a transparent wrapper of `struct device`.
        let dev = core::ptr::from_ref(generic).cast_mut().cast();
        // With their terminators they have 512 and 513 bytes.
        let half = CString::try_from_fmt(fmt!("A={:0509}", 0))?;
        let longer = CString::try_from_fmt(fmt!("A={:0510}", 0))?;

        // SAFETY: The device was added, and is deleted after the calls.
        unsafe {
            notify_change(dev, [&*half, &*half])?;
            let refused = notify_change(dev, [&*half, &*longer]);
            assert!(refused == Err(EINVAL));
        }
        Ok(())
    }
}
