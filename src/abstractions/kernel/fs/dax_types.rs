// SPDX-License-Identifier: GPL-2.0

//! The types of file systems with DAX, and their superblocks.

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::module_list::Code;
use core::ptr::null;
use kernel::prelude::*;

/// A type of file system, and the code that registers it.
pub(super) struct FileSystemType {
    pub(super) name: &'static CStr,
    pub(super) code: Code,
    /// The only block device whose DAX device it uses is `s_bdev`.
    pub(super) uses_s_bdev_only: bool,
}

const EXT4: Code = Code {
    built_in: cfg!(CONFIG_EXT4_FS = "y"),
    module: c"ext4",
};

/// All types whose DAX memory comes from a block device: the callers of `dax_iomap_fault()`, which
/// are vetted (`rust-bindings/vetted`). `fs/fuse` and `device-dax` have memory of their own.
pub(super) const DAX_TYPES: &[FileSystemType] = &[
    FileSystemType {
        name: c"ext4",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    FileSystemType {
        name: c"ext3",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    #[cfg(CONFIG_EXT4_USE_FOR_EXT2)]
    FileSystemType {
        name: c"ext2",
        code: EXT4,
        uses_s_bdev_only: true,
    },
    FileSystemType {
        name: c"xfs",
        code: Code {
            built_in: cfg!(CONFIG_XFS_FS = "y"),
            module: c"xfs",
        },
        uses_s_bdev_only: false,
    },
    FileSystemType {
        name: c"erofs",
        code: Code {
            built_in: cfg!(CONFIG_EROFS_FS = "y"),
            module: c"erofs",
        },
        uses_s_bdev_only: false,
    },
];

/// Returns the types of [`DAX_TYPES`] that are loaded, and null pointers for the others.
///
/// The types are only compared: with the types of superblocks, which keep the modules of their
/// types, and with holders of block devices, one of which is the type of a mounted erofs. So a type
/// that is unloaded meanwhile is found nowhere.
pub(super) fn dax_types() -> [*const bindings::file_system_type; DAX_TYPES.len()] {
    let mut types = [null(); DAX_TYPES.len()];

    for (found, fs_type) in types.iter_mut().zip(DAX_TYPES) {
        // `get_fs_type` would load the module.
        if !fs_type.code.is_loaded() {
            continue;
        }
        // SAFETY: The name is a string. The reference to the module is put again
        // (`put_filesystem()`).
        unsafe {
            let raw = bindings::get_fs_type(fs_type.name.as_char_ptr());
            if !raw.is_null() {
                *found = raw.cast_const();
                bindings::module_put((*raw).owner);
            }
        }
    }
    types
}

/// Calls a function for each mounted superblock of a type, with its `s_umount` held for reading.
/// Sleeps.
///
/// # Safety
///
/// The function must be callable with any such superblock and this argument.
pub(super) unsafe fn for_each_super(
    name: &CStr,
    callback: unsafe extern "C" fn(*mut bindings::super_block, *mut c_void),
    argument: *mut c_void,
) {
    // SAFETY: The name is a string.
    let fs_type = unsafe { bindings::get_fs_type(name.as_char_ptr()) };
    if fs_type.is_null() {
        return;
    }

    // SAFETY: The type is valid, and its module is referenced until it is put. By the safety
    // requirements the function may be called.
    unsafe {
        bindings::iterate_supers_type(fs_type, Some(callback), argument);
        // `put_filesystem()`
        bindings::module_put((*fs_type).owner);
    }
}

/// As [`for_each_super`], for all types of [`DAX_TYPES`].
///
/// # Safety
///
/// As for [`for_each_super`].
pub(super) unsafe fn for_each_dax_super(
    callback: unsafe extern "C" fn(*mut bindings::super_block, *mut c_void),
    argument: *mut c_void,
) {
    for fs_type in DAX_TYPES.iter().filter(|fs_type| fs_type.code.is_loaded()) {
        // SAFETY: By the safety requirements.
        unsafe { for_each_super(fs_type.name, callback, argument) };
    }
}
