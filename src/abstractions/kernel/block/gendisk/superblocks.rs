// SPDX-License-Identifier: GPL-2.0

//! The superblocks that may use a disk or its memory.

use super::{
    block_device::BlockDevice,
    state::DiskState, //
};
use crate::abstractions::bindings;
use core::iter::from_fn;
use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

impl DiskState {
    /// Returns whether files of a superblock may use the memory behind this disk.
    /// `uses_s_bdev_only` is whether its type gets a DAX device for `s_bdev` only. Does not sleep.
    ///
    /// If translations that ask for a page frame number were not refused before, a superblock that
    /// gets the DAX device meanwhile may be missed. If they were, a superblock that is mounted
    /// after that cannot map the memory, so the result for it does not matter.
    ///
    /// If all claims were those of programs and of superblocks that were being mounted from the
    /// disk ([`Holder::is_indirect`]), only superblocks on the disk itself may. Otherwise those on
    /// other disks may too, except, with `uses_s_bdev_only`, those on a disk of blk-mq. The disk of
    /// a DAX device (`dax_add_host()`) has `submit_bio`, unless it is a request-based device of
    /// device-mapper: no target of those has DAX.
    ///
    /// [`Holder::is_indirect`]: super::holder::Holder::is_indirect
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held, or an active reference to it.
    pub(in crate::abstractions) unsafe fn may_be_used_by(
        &self,
        sb: *mut bindings::super_block,
        uses_s_bdev_only: bool,
    ) -> bool {
        let indirect = self.had_indirect_claim.load(Relaxed);

        // SAFETY: By the safety requirements the superblock has its device open, if it has one. The
        // disk of a device does not change, and its operations are static.
        unsafe {
            let bdev = (*sb).s_bdev;
            if bdev.is_null() {
                return indirect && !uses_s_bdev_only;
            }
            let disk = (*bdev).bd_disk;
            disk == self.disk.as_ptr()
                || indirect && (!uses_s_bdev_only || (*(*disk).fops).submit_bio.is_some())
        }
    }

    /// Returns whether the `s_bdev` of a superblock is the disk or a partition of it. Does not
    /// sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held, or an active reference to it.
    pub(in crate::abstractions) unsafe fn has_super(&self, sb: *mut bindings::super_block) -> bool {
        // SAFETY: By the safety requirements the superblock has its device open, if it has one. The
        // disk of a device does not change.
        unsafe {
            let bdev = (*sb).s_bdev;
            !bdev.is_null() && (*bdev).bd_disk == self.disk.as_ptr()
        }
    }

    /// Returns whether the removal of the disk shuts a superblock down, and evicts its files: it
    /// has opened the disk or a partition (`fs_bdev_file_open_by_dev()`). The holder is the
    /// superblock then, or its type. May sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held, or an active reference to it.
    pub(in crate::abstractions) unsafe fn shuts_down(
        &self,
        sb: *mut bindings::super_block,
    ) -> bool {
        // SAFETY: By the safety requirements the superblock has its device open, if it has one. The
        // disk of a device does not change, nor does the type of a superblock.
        let (holders, is_on_disk) = unsafe {
            let bdev = (*sb).s_bdev;
            let holders: [*const c_void; 2] = [sb.cast(), (*sb).s_type.cast()];
            (
                holders,
                !bdev.is_null() && (*bdev).bd_disk == self.disk.as_ptr(),
            )
        };
        let mut index = 0;

        is_on_disk
            || self.part0.has_holder(&holders)
            || from_fn(|| self.next_partition(&mut index))
                .any(|partition| partition.has_holder(&holders))
    }

    /// Returns whether this disk may be below a superblock, which then is on the disk, on a
    /// partition of it, or on a device that [`Self::device_above`] returns. Does not sleep.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held.
    pub(in crate::abstractions) unsafe fn may_be_below(
        &self,
        sb: *mut bindings::super_block,
    ) -> bool {
        // SAFETY: By the safety requirements the superblock has its device open, if it has one. The
        // disk of a device does not change.
        unsafe {
            let bdev = (*sb).s_bdev;
            !bdev.is_null() && (*bdev).bd_disk == self.disk.as_ptr()
                || self.device_above(sb).is_some()
        }
    }

    /// Returns the device of a superblock, if it is a device-mapper device with DAX, and this disk
    /// ever had an indirect claim. Does not sleep.
    ///
    /// This disk may or may not be below that device: a driver cannot see the devices of a
    /// device-mapper table.
    ///
    /// # Safety
    ///
    /// `sb` must be valid and mounted, with `s_umount` held.
    pub(in crate::abstractions) unsafe fn device_above(
        &self,
        sb: *mut bindings::super_block,
    ) -> Option<BlockDevice> {
        const NAME: &[c_char] = &[b'd' as c_char, b'm' as c_char, b'-' as c_char];

        if !self.had_indirect_claim.load(Relaxed) {
            return None;
        }
        // SAFETY: By the safety requirements the superblock has its device open, if it has one. The
        // name of a disk does not change. The features are read without the lock that protects
        // them, as the C code does.
        unsafe {
            let bdev = (*sb).s_bdev;
            if bdev.is_null() {
                return None;
            }
            let disk = (*bdev).bd_disk;
            let features = (&raw const (*(*disk).queue).limits.features).read_volatile();
            let is_above =
                (*disk).disk_name.starts_with(NAME) && features & bindings::BLK_FEAT_DAX != 0;

            is_above.then(|| BlockDevice::get(bdev))?
        }
    }
}
