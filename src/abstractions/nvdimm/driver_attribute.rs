// SPDX-License-Identifier: GPL-2.0

//! A text file of a driver in sysfs, below `/sys/bus/nd/drivers/NAME/`.
//!
//! C header: [`include/linux/device/driver.h`](srctree/include/linux/device/driver.h)

use crate::abstractions::bindings;
use core::marker::PhantomData;
use kernel::{
    prelude::*,
    str::{
        as_char_ptr_in_const_context,
        CString, //
    }, //
};

/// A readable and writable attribute of a driver.
///
/// The functions are called in process context, concurrently, from after the driver was offered the
/// devices that are on the bus until before it is unbound from its devices. They may sleep.
#[derive(Clone, Copy)]
pub struct TextAttribute {
    /// The name of the file.
    pub name: &'static CStr,
    /// Returns the contents. Reading shows at most a page of them.
    pub show: fn() -> Result<CString>,
    /// Handles what was written, at most a page.
    pub store: fn(&[u8]) -> Result,
}

/// A driver with an attribute, or without.
pub(super) trait Attributed {
    const ATTRIBUTE: Option<TextAttribute>;
}

/// The C tables of the attribute of `T`. Unused if there is none.
pub(super) struct Tables<T>(PhantomData<T>);

impl<T: Attributed> Tables<T> {
    const ATTRIBUTE: &'static bindings::driver_attribute = &bindings::driver_attribute {
        // With lockdep there are more fields.
        #[allow(clippy::needless_update)]
        attr: bindings::attribute {
            name: match T::ATTRIBUTE {
                Some(attribute) => as_char_ptr_in_const_context(attribute.name),
                None => core::ptr::null(),
            },
            mode: 0o644,
            ..pin_init::zeroed()
        },
        show: Some(Self::show_callback),
        store: Some(Self::store_callback),
    };

    const ATTRIBUTES: &'static [*const bindings::attribute; 2] =
        &[&raw const Self::ATTRIBUTE.attr, core::ptr::null()];

    const GROUP: &'static bindings::attribute_group = &bindings::attribute_group {
        __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
            attrs_const: Self::ATTRIBUTES.as_ptr(),
        },
        ..pin_init::zeroed()
    };

    const GROUPS: &'static [*const bindings::attribute_group; 2] =
        &[&raw const *Self::GROUP, core::ptr::null()];

    /// Returns the null-terminated list of groups for `device_driver.groups`. Null if there is no
    /// attribute.
    pub(super) fn groups() -> *mut *const bindings::attribute_group {
        match T::ATTRIBUTE {
            Some(_) => Self::GROUPS.as_ptr().cast_mut(),
            None => core::ptr::null_mut(),
        }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `buf` must be a page.
    unsafe extern "C" fn show_callback(
        _driver: *mut bindings::device_driver,
        buf: *mut c_char,
    ) -> isize {
        let text = match T::ATTRIBUTE {
            Some(attribute) => (attribute.show)(),
            None => Err(EINVAL),
        };

        match text {
            // SAFETY: By the safety requirements `buf` is a page. The format takes a C string.
            Ok(text) => unsafe {
                bindings::sysfs_emit(buf, c"%s\n".as_char_ptr(), text.as_char_ptr()) as isize
            },
            Err(err) => err.to_errno() as isize,
        }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `buf` must be valid for `len` bytes.
    unsafe extern "C" fn store_callback(
        _driver: *mut bindings::device_driver,
        buf: *const c_char,
        len: usize,
    ) -> isize {
        // SAFETY: By the safety requirements. Nothing writes to the buffer meanwhile.
        let bytes = unsafe { core::slice::from_raw_parts(buf.cast::<u8>(), len) };
        let result = match T::ATTRIBUTE {
            Some(attribute) => (attribute.store)(bytes),
            None => Err(EINVAL),
        };

        match result {
            Ok(()) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }
}
