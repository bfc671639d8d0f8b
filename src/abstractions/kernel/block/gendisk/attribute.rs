// SPDX-License-Identifier: GPL-2.0

//! The sysfs attribute that [`Operations::ATTRIBUTE`] defines.

use super::operations::Operations;
use crate::abstractions::bindings;
use core::marker::PhantomData;
use kernel::{
    container_of,
    error::to_result,
    prelude::*,
    str::as_char_ptr_in_const_context,
    sync::{
        Arc,
        ArcBorrow, //
    },
    types::ForeignOwnable, //
};

/// The C tables of the attribute of `T`. Unused if there is none.
pub(super) struct Tables<T: Operations>(PhantomData<T>);

impl<T: Operations> Tables<T> {
    const ATTRIBUTE: &'static bindings::device_attribute = &bindings::device_attribute {
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
        __bindgen_anon_1: bindings::device_attribute__bindgen_ty_1 {
            show: Some(Self::show_callback),
        },
        __bindgen_anon_2: bindings::device_attribute__bindgen_ty_2 {
            store: Some(Self::store_callback),
        },
    };

    const ATTRIBUTES: &'static [*const bindings::attribute; 2] =
        &[&raw const Self::ATTRIBUTE.attr, core::ptr::null()];

    const GROUP: &'static bindings::attribute_group = &bindings::attribute_group {
        name: match T::ATTRIBUTE {
            Some(attribute) => as_char_ptr_in_const_context(attribute.directory),
            None => core::ptr::null(),
        },
        __bindgen_anon_2: bindings::attribute_group__bindgen_ty_2 {
            attrs_const: Self::ATTRIBUTES.as_ptr(),
        },
        ..pin_init::zeroed()
    };

    /// The null-terminated list of groups that `device_add_disk()` takes.
    pub(super) const GROUPS: &'static [*const bindings::attribute_group; 2] =
        &[&raw const *Self::GROUP, core::ptr::null()];

    /// Returns the driver's data of the disk that contains a device.
    ///
    /// # Safety
    ///
    /// `dev` must be the device of a disk whose private data is an `Arc<T>` in its foreign form.
    /// The `Arc` must outlive `'a`.
    unsafe fn data_of<'a>(dev: *mut bindings::device) -> ArcBorrow<'a, T> {
        // SAFETY: By the safety requirements the device is that of `part0` of a disk
        // (`dev_to_disk()`), whose private data is an `Arc<T>`.
        unsafe {
            let part0 = container_of!(dev, bindings::block_device, bd_device);
            Arc::<T>::borrow((*(*part0).bd_disk).private_data)
        }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `dev` must be the device of a `GenDisk<T>` that is not deleted during
    /// the call. `buf` must be a page.
    pub(super) unsafe extern "C" fn show_callback(
        dev: *mut bindings::device,
        _attribute: *mut bindings::device_attribute,
        buf: *mut c_char,
    ) -> isize {
        // SAFETY: By the safety requirements; a `GenDisk` keeps its data until it was deleted.
        let data = unsafe { Self::data_of(dev) };
        let value = T::ATTRIBUTE.is_some_and(|attribute| (attribute.show)(&data));

        // SAFETY: By the safety requirements `buf` is a page. The format takes one integer.
        unsafe { bindings::sysfs_emit(buf, c"%d\n".as_char_ptr(), c_int::from(value)) as isize }
    }

    /// # Safety
    ///
    /// Called by sysfs only. `dev` must be the device of a `GenDisk<T>` that is not deleted during
    /// the call. `buf` must be a C string of `len` bytes.
    pub(super) unsafe extern "C" fn store_callback(
        dev: *mut bindings::device,
        _attribute: *mut bindings::device_attribute,
        buf: *const c_char,
        len: usize,
    ) -> isize {
        let mut value = false;
        // SAFETY: By the safety requirements `buf` is a C string.
        let parsed = to_result(unsafe { bindings::kstrtobool(buf, &mut value) });

        let result = parsed.and_then(|()| {
            // SAFETY: By the safety requirements; a `GenDisk` keeps its data until it was deleted.
            let data = unsafe { Self::data_of(dev) };
            match T::ATTRIBUTE {
                Some(attribute) => (attribute.store)(&data, value),
                None => Err(EINVAL),
            }
        });
        match result {
            Ok(()) => len as isize,
            Err(err) => err.to_errno() as isize,
        }
    }
}
