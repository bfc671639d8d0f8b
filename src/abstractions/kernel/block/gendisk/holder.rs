// SPDX-License-Identifier: GPL-2.0

//! The holder of a block device: what has claimed it, or is about to.
//!
//! A holder may be any value, such as the address of a string. So what it points to is read with a
//! function that fails if nothing is mapped there.
//!
//! C source: [`block/bdev.c`](srctree/block/bdev.c)

use crate::abstractions::bindings;
use core::{
    mem::offset_of,
    ptr::null, //
};
use kernel::prelude::*;

/// A holder (`bd_holder`, `bd_claiming`), which may be null.
#[derive(Clone, Copy)]
pub(super) struct Holder(pub(super) *const c_void);

impl Holder {
    /// Reads some bytes at an offset in what the holder may be.
    fn bytes_at<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        let mut value = [0_u8; N];

        // SAFETY: `copy_from_kernel_nofault()` accepts any source address, and writes to a local
        // variable.
        let result = unsafe {
            bindings::copy_from_kernel_nofault(
                value.as_mut_ptr().cast(),
                self.0.wrapping_byte_add(offset),
                N,
            )
        };
        (result == 0).then_some(value)
    }

    /// Reads a pointer at an offset in what the holder may be.
    fn pointer_at(self, offset: usize) -> Option<*const c_void> {
        let bytes = self.bytes_at(offset)?;

        Some(core::ptr::without_provenance(usize::from_ne_bytes(bytes)))
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

    /// Returns the number of the device that the holder opens, if it is a superblock that is being
    /// mounted from a device with this major number, and has not opened it yet.
    ///
    /// `setup_bdev_super()` opens the device before it sets `s_bdev`. There are no inodes yet, so
    /// the head of their list points to itself. `s_dev` is the number by which it opens.
    ///
    /// Another holder has all three by chance only: a pointer to itself, a null pointer, and the
    /// number of the disk, at offsets that have no meaning for it.
    pub(super) fn number_of_new_superblock(self, major: u32) -> Option<bindings::dev_t> {
        let list = offset_of!(bindings::super_block, s_inodes);
        let number = u32::from_ne_bytes(self.bytes_at(offset_of!(bindings::super_block, s_dev))?);
        let is_new = self.pointer_at(list) == Some(self.0.wrapping_byte_add(list))
            && self.pointer_at(offset_of!(bindings::super_block, s_bdev)) == Some(null())
            && major_of(number) == major;

        is_new.then_some(number)
    }

    /// Returns the index in `types` of the holder's type, if the holder is a superblock of one of
    /// these types. The holder must not be one of the types.
    ///
    /// The type is set before the superblock is published (`sget_fc()`), and does not change. Only
    /// a superblock has a pointer to a type at this offset.
    pub(super) fn superblock_type(
        self,
        types: &[*const bindings::file_system_type],
    ) -> Option<usize> {
        let found = self.pointer_at(offset_of!(bindings::super_block, s_type))?;

        // The types that are not loaded are null.
        types
            .iter()
            .position(|fs_type| !found.is_null() && fs_type.cast() == found)
    }

    /// Returns whether the holder, which is a superblock, has this device as its `s_bdev`.
    pub(super) fn is_superblock_on(self, bdev: *const bindings::block_device) -> bool {
        self.pointer_at(offset_of!(bindings::super_block, s_bdev)) == Some(bdev.cast())
    }

    /// Returns whether an open with this mode and holder may be one that gets the DAX device for
    /// something else than a file system whose `s_bdev` is the device.
    ///
    /// `fs_dax_get_by_bdev()` has four callers in the kernel, which are vetted
    /// (`rust-bindings/vetted`), and leases. Each opens the device first, and claims it. These are
    /// the holders:
    ///
    /// - a superblock that is being mounted, for its `s_bdev`;
    /// - the superblock of xfs, for its log and its realtime device: `s_bdev` is set already;
    /// - the type of erofs, for further devices;
    /// - a string of device-mapper;
    /// - a lease.
    ///
    /// All but the first are indirect. Holders that get no DAX device may count as indirect as
    /// well. Programs must not: each run of mkfs would count for good.
    ///
    /// `number` is that of the disk.
    pub(super) fn is_indirect(self, mode: bindings::blk_mode_t, number: bindings::dev_t) -> bool {
        mode & bindings::BLK_OPEN_EXCL != 0
            && !self.is_opening_file()
            && self.number_of_new_superblock(major_of(number)).is_none()
    }
}

/// Returns the major number of a device (`MAJOR()`). The disks of this module have no range of
/// numbers of their own, so they and their partitions have that of extended numbers
/// (`BLOCK_EXT_MAJOR`).
pub(super) const fn major_of(number: bindings::dev_t) -> u32 {
    number >> 20
}

#[kunit_tests(pmem_rs_holder)]
mod tests {
    use super::*;
    use bindings::BLK_OPEN_EXCL;

    const DISK: bindings::dev_t = 259 << 20 | 3;
    const PARTITION: bindings::dev_t = 259 << 20 | 77;

    #[test]
    fn a_superblock_is_direct_while_it_has_no_device() -> Result {
        let mut sb = KBox::<bindings::super_block>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let sb = sb.as_mut_ptr();
        let holder = Holder(sb.cast());

        assert!(holder.is_indirect(BLK_OPEN_EXCL, DISK));
        // SAFETY: The memory is valid. The fields are only compared.
        unsafe { (*sb).s_inodes.next = &raw mut (*sb).s_inodes };
        assert!(holder.is_indirect(BLK_OPEN_EXCL, DISK));
        // SAFETY: As above.
        unsafe { (*sb).s_dev = PARTITION };
        assert!(!holder.is_indirect(BLK_OPEN_EXCL, DISK));
        assert!(holder.is_indirect(BLK_OPEN_EXCL, 8 << 20));
        // SAFETY: As above.
        unsafe { (*sb).s_bdev = core::ptr::dangling_mut() };
        assert!(holder.is_indirect(BLK_OPEN_EXCL, DISK));
        assert!(!holder.is_indirect(0, DISK));
        assert!(Holder(null()).is_indirect(BLK_OPEN_EXCL, DISK));
        Ok(())
    }

    #[test]
    fn a_superblock_has_one_of_the_types() -> Result {
        let mut sb = KBox::<bindings::super_block>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let sb = sb.as_mut_ptr();
        let fs_type = core::ptr::without_provenance_mut::<bindings::file_system_type>(64);
        // A type that is not loaded is null.
        let types = [null(), fs_type.cast_const()];

        let bdev = core::ptr::without_provenance_mut::<bindings::block_device>(128);

        assert_eq!(Holder(sb.cast()).superblock_type(&types), None);
        assert_eq!(Holder(null()).superblock_type(&types), None);
        // SAFETY: The memory is valid. The field is only compared.
        unsafe { (*sb).s_type = fs_type };
        assert_eq!(Holder(sb.cast()).superblock_type(&types), Some(1));
        assert_eq!(Holder(sb.cast()).superblock_type(&[null()]), None);
        assert!(!Holder(sb.cast()).is_superblock_on(bdev));
        // SAFETY: As above.
        unsafe { (*sb).s_bdev = bdev };
        assert!(Holder(sb.cast()).is_superblock_on(bdev));
        Ok(())
    }

    #[test]
    fn programs_are_no_indirect_users() -> Result {
        let mut file = KBox::<bindings::file>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let file = file.as_mut_ptr();
        let holder = Holder(file.cast());

        assert!(holder.is_indirect(BLK_OPEN_EXCL, DISK));
        // SAFETY: The memory is valid, and the field is only compared.
        unsafe { (*file).private_data = file.cast() };
        assert!(!holder.is_indirect(BLK_OPEN_EXCL, DISK));
        let name = c"I belong to device-mapper";
        assert!(Holder(name.as_char_ptr().cast()).is_indirect(BLK_OPEN_EXCL, DISK));
        Ok(())
    }
}
