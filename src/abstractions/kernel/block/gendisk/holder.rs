// SPDX-License-Identifier: GPL-2.0

//! The holder of a block device: what has claimed it, or is about to.
//!
//! A holder may be any value, such as the address of a string. So it is read as memory that may not
//! be mapped.
//!
//! C source: [`block/bdev.c`](srctree/block/bdev.c)

use crate::abstractions::bindings;
use core::mem::{
    offset_of,
    size_of_val, //
};
use kernel::prelude::*;

/// A holder (`bd_holder`, `bd_claiming`), which may be null.
#[derive(Clone, Copy)]
pub(super) struct Holder(pub(super) *const c_void);

impl Holder {
    /// Reads a pointer at an offset in what the holder may be.
    fn pointer_at(self, offset: usize) -> Option<*const c_void> {
        let mut value: *const c_void = core::ptr::null();

        // SAFETY: `copy_from_kernel_nofault()` accepts any source address, and writes to a local
        // variable.
        let result = unsafe {
            bindings::copy_from_kernel_nofault(
                (&raw mut value).cast(),
                self.0.wrapping_byte_add(offset),
                size_of_val(&value),
            )
        };
        (result == 0).then_some(value)
    }

    /// Returns whether the holder is a file by which a program has opened the device with this
    /// mapping, with `O_EXCL`.
    ///
    /// The holder is the `struct file` then (`blkdev_open()`). Only a file of a device has the
    /// mapping of that device in `f_mapping`.
    pub(super) fn is_file_of(self, mapping: *const bindings::address_space) -> bool {
        self.pointer_at(offset_of!(bindings::file, f_mapping)) == Some(mapping.cast())
    }

    /// Returns whether the holder is a file by which a program is opening a device with `O_EXCL`.
    ///
    /// `blkdev_open()` has stored the file in its own `private_data`.
    fn is_opening_file(self) -> bool {
        self.pointer_at(offset_of!(bindings::file, private_data)) == Some(self.0)
    }

    /// Returns whether an open with this mode and holder may be one that gets the DAX device for
    /// something else than a file system whose `s_bdev` is the device.
    ///
    /// `fs_dax_get_by_bdev()` has four callers, which are vetted (`rust-bindings/vetted`). Each
    /// opens the device first, and claims it. The holders are:
    ///
    /// - the superblock, while it is being mounted: `s_bdev` is set after that, and writes by
    ///   others are refused (`setup_bdev_super()`);
    /// - the superblock of xfs, for its log and its realtime device: `s_bdev` is set already;
    /// - the type of erofs, for further devices: writes by others are not refused;
    /// - a string of device-mapper: neither, and it is no `struct file`.
    pub(super) fn is_indirect(self, mode: bindings::blk_mode_t) -> bool {
        if mode & bindings::BLK_OPEN_EXCL == 0 {
            return false;
        }
        if mode & bindings::BLK_OPEN_RESTRICT_WRITES != 0 {
            let s_bdev = self.pointer_at(offset_of!(bindings::super_block, s_bdev));
            return s_bdev != Some(core::ptr::null());
        }
        !self.is_opening_file()
    }
}

#[kunit_tests(pmem_rs_holder)]
mod tests {
    use super::*;
    use bindings::{
        BLK_OPEN_EXCL,
        BLK_OPEN_RESTRICT_WRITES, //
    };

    #[test]
    fn superblocks_are_told_apart_by_their_device() -> Result {
        const MOUNT: bindings::blk_mode_t = BLK_OPEN_EXCL | BLK_OPEN_RESTRICT_WRITES;
        let mut sb = KBox::<bindings::super_block>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let sb = sb.as_mut_ptr();
        let holder = Holder(sb.cast());

        assert!(!holder.is_indirect(MOUNT));
        // As the holder of erofs, and without a claim.
        assert!(holder.is_indirect(BLK_OPEN_EXCL));
        assert!(!holder.is_indirect(0));
        // SAFETY: The memory is valid. The field is only compared with null.
        unsafe { (*sb).s_bdev = core::ptr::dangling_mut() };
        assert!(holder.is_indirect(MOUNT));
        assert!(Holder(core::ptr::null()).is_indirect(MOUNT));
        Ok(())
    }

    #[test]
    fn programs_are_no_indirect_users() -> Result {
        let mut file = KBox::<bindings::file>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let file = file.as_mut_ptr();
        let holder = Holder(file.cast());

        assert!(holder.is_indirect(BLK_OPEN_EXCL));
        // SAFETY: The memory is valid, and the field is only compared.
        unsafe { (*file).private_data = file.cast() };
        assert!(!holder.is_indirect(BLK_OPEN_EXCL));
        let name = c"I belong to device-mapper";
        assert!(Holder(name.as_char_ptr().cast()).is_indirect(BLK_OPEN_EXCL));
        Ok(())
    }
}
