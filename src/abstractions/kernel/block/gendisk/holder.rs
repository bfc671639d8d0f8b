// SPDX-License-Identifier: GPL-2.0

//! The holder of a block device: what has claimed it, or is about to.
//!
//! A holder may be any value, such as the address of a string. So it is read as memory that may not
//! be mapped.
//!
//! C source: [`block/bdev.c`](srctree/block/bdev.c)

use crate::abstractions::bindings;
use core::{
    mem::{
        offset_of,
        size_of_val, //
    },
    ptr::null, //
};
use kernel::prelude::*;

/// A holder (`bd_holder`, `bd_claiming`), which may be null.
#[derive(Clone, Copy)]
pub(super) struct Holder(pub(super) *const c_void);

impl Holder {
    /// Reads a pointer at an offset in what the holder may be.
    fn pointer_at(self, offset: usize) -> Option<*const c_void> {
        let mut value: *const c_void = null();

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

    /// Returns whether the holder is a superblock that is being mounted, and has no device yet.
    ///
    /// `setup_bdev_super()` opens the device before it sets `s_bdev`. There are no inodes yet, so
    /// the head of their list points to itself.
    fn is_new_superblock(self) -> bool {
        let list = offset_of!(bindings::super_block, s_inodes);

        self.pointer_at(list) == Some(self.0.wrapping_byte_add(list))
            && self.pointer_at(offset_of!(bindings::super_block, s_bdev)) == Some(null())
    }

    /// Returns whether an open with this mode and holder may be one that gets the DAX device for
    /// something else than a file system whose `s_bdev` is the device.
    ///
    /// `fs_dax_get_by_bdev()` has four callers, which are vetted (`rust-bindings/vetted`). Each
    /// opens the device first, and claims it. The holders are:
    ///
    /// - a superblock that is being mounted, for its `s_bdev`;
    /// - the superblock of xfs, for its log and its realtime device: `s_bdev` is set already;
    /// - the type of erofs, for further devices;
    /// - a string of device-mapper.
    ///
    /// All but the first are indirect. Holders that get no DAX device may count as indirect as
    /// well, except programs: each mkfs is one.
    pub(super) fn is_indirect(self, mode: bindings::blk_mode_t) -> bool {
        mode & bindings::BLK_OPEN_EXCL != 0 && !self.is_opening_file() && !self.is_new_superblock()
    }
}

#[kunit_tests(pmem_rs_holder)]
mod tests {
    use super::*;
    use bindings::BLK_OPEN_EXCL;

    #[test]
    fn a_superblock_is_direct_while_it_has_no_device() -> Result {
        let mut sb = KBox::<bindings::super_block>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let sb = sb.as_mut_ptr();
        let holder = Holder(sb.cast());

        assert!(holder.is_indirect(BLK_OPEN_EXCL));
        // SAFETY: The memory is valid. The fields are only compared.
        unsafe { (*sb).s_inodes.next = &raw mut (*sb).s_inodes };
        assert!(!holder.is_indirect(BLK_OPEN_EXCL));
        // SAFETY: As above.
        unsafe { (*sb).s_bdev = core::ptr::dangling_mut() };
        assert!(holder.is_indirect(BLK_OPEN_EXCL));
        assert!(!holder.is_indirect(0));
        assert!(Holder(null()).is_indirect(BLK_OPEN_EXCL));
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
