// SPDX-License-Identifier: GPL-2.0

//! References to block devices, their claims, and their page cache.

use super::holder::{
    major_of,
    Holder, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::device::name_of;
use core::ptr::{
    addr_of,
    addr_of_mut,
    NonNull, //
};
use kernel::prelude::*;

/// The claim of a block device (`bd_prepare_to_claim()`).
pub(super) struct Claim {
    /// The holder has no holder operations, and is no file that a program has opened.
    pub(super) is_unknown: bool,
    /// The holder has holder operations, as file systems do.
    pub(super) has_operations: bool,
    /// The number of claims (`bd_holders`).
    pub(super) count: c_int,
}

/// What has claimed a device with holder operations.
pub(in crate::abstractions) enum FsClaim<R> {
    /// A superblock whose `s_bdev` is the device. The value is the result of the function that
    /// [`BlockDevice::with_superblock`] has called with the superblock.
    Super(R),
    /// The device is a further device of some file system of the type with this index: its log, its
    /// realtime device, its journal.
    Further(usize),
    /// Nothing, or something else.
    Other,
}

/// A reference to a disk or partition (`struct block_device`).
///
/// # Invariants
///
/// `self` owns one reference to the device.
pub(in crate::abstractions) struct BlockDevice(NonNull<bindings::block_device>);

// SAFETY: References may be used and put by any thread.
unsafe impl Send for BlockDevice {}

impl BlockDevice {
    /// Takes a reference, unless the count is zero already.
    ///
    /// # Safety
    ///
    /// `bdev` must be null, or must not be freed during the call.
    pub(in crate::abstractions) unsafe fn get(bdev: *mut bindings::block_device) -> Option<Self> {
        let bdev = NonNull::new(bdev)?;
        // SAFETY: By the safety requirements the device is not freed during the call.
        let kobj = unsafe {
            bindings::kobject_get_unless_zero(addr_of_mut!((*bdev.as_ptr()).bd_device.kobj))
        };

        if kobj.is_null() {
            return None;
        }
        // INVARIANT: The reference was just taken.
        Some(Self(bdev))
    }

    pub(in crate::abstractions) fn as_raw(&self) -> *mut bindings::block_device {
        self.0.as_ptr()
    }

    /// Returns the name of the device in `/dev`.
    pub(in crate::abstractions) fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the device is valid. Disks and partitions keep their names.
        unsafe { name_of(&raw const (*self.0.as_ptr()).bd_device) }
    }

    /// Calls `f` with the lock held under which the holder changes, together with its operations.
    /// The holder of a whole disk may also become the address of a function (`bd_may_claim()`) or
    /// null meanwhile: claims of partitions change it without this lock, and so does a further
    /// claim by the same holder, for a moment. May sleep.
    fn with_holder<R>(&self, f: impl FnOnce(*mut bindings::block_device) -> R) -> R {
        let raw = self.0.as_ptr();

        // SAFETY: By the type invariant the device is valid.
        unsafe {
            let lock = addr_of_mut!((*raw).bd_holder_lock);
            bindings::mutex_lock(lock);
            let result = f(raw);
            bindings::mutex_unlock(lock);
            result
        }
    }

    /// Returns the claim of the device. May sleep.
    pub(super) fn claim(&self) -> Claim {
        // SAFETY: By the type invariant the device is valid. `with_holder` holds the lock of holder
        // and operations. The count may change concurrently, hence the volatile read.
        self.with_holder(|raw| unsafe {
            let holder = Holder((*raw).bd_holder);
            Claim {
                is_unknown: !holder.0.is_null()
                    && (*raw).bd_holder_ops.is_null()
                    && !holder.is_file_of((*raw).bd_mapping),
                has_operations: !(*raw).bd_holder_ops.is_null(),
                count: addr_of!((*raw).bd_holders).read_volatile(),
            }
        })
    }

    /// Calls `f` with the superblock that has claimed the device, if it has one of these types, and
    /// the device is its `s_bdev`. May sleep.
    ///
    /// The superblock is valid during the call: it ends this claim before it is freed
    /// (`kill_block_super()`), and that takes the lock of the holder (`bd_end_claim()`). It may be
    /// one that is being unmounted, or whose mount is not complete. **Not covered**: an xfs whose
    /// log device is the same device, if the claim for the log ends late, as described below.
    ///
    /// The claim of a further device may end after its superblock was freed: if the device is
    /// read-only, `bdev_file_open_by_path()` closes it by a deferred `fput()`. So that superblock
    /// is only read with a function that fails if nothing is mapped there.
    pub(in crate::abstractions) fn with_superblock<R>(
        &self,
        types: &[*const bindings::file_system_type],
        f: impl FnOnce(*mut bindings::super_block) -> R,
    ) -> FsClaim<R> {
        self.with_holder(|raw| {
            // SAFETY: By the type invariant the device is valid. `with_holder` holds the lock.
            let (holder, has_operations) =
                unsafe { ((*raw).bd_holder, !(*raw).bd_holder_ops.is_null()) };

            if !has_operations {
                return FsClaim::Other;
            }
            let holder_type = holder.cast_const().cast();
            if let Some(index) = types.iter().position(|fs_type| *fs_type == holder_type) {
                return FsClaim::Further(index);
            }
            // SAFETY: As above. The number of a device does not change.
            let major = major_of(unsafe { (*raw).bd_dev });
            match Holder(holder).superblock_type(types) {
                // It has no inodes yet.
                Some(_) if Holder(holder).number_of_new_superblock(major).is_some() => {
                    FsClaim::Other
                }
                Some(_) if Holder(holder).is_superblock_on(raw) => FsClaim::Super(f(holder.cast())),
                Some(index) => FsClaim::Further(index),
                None => FsClaim::Other,
            }
        })
    }

    /// Takes the pages of the device's own page cache from the processes that have mapped them.
    /// Each access raises SIGBUS from now on, except to what a `write` that is under way stores
    /// later. Sleeps.
    ///
    /// The size of the device becomes zero, which a fault checks with its page locked. A fault that
    /// has checked it before has inserted its page when the truncation gets the lock of the page.
    /// The removal of a disk has made the size of the whole disk zero (`set_capacity()`), but not
    /// that of partitions.
    ///
    /// The cache of a device with holder operations stays, since a file system has its buffers
    /// there. The pages are unmapped all the same. A page of a partition can be mapped again then.
    ///
    /// The disk must have been removed, so nothing new claims the device. The removal has written
    /// back what was stored before it. What was stored later is lost, so `fsync` fails.
    pub(super) fn revoke_cache(&self) {
        let bdev = self.0.as_ptr();
        let has_file_system = self.claim().has_operations;

        // SAFETY: By the type invariant the device is valid, and it keeps its inode and mapping.
        // The lock protects the size. The functions need no lock of the caller: without
        // `i_rwsem` and `invalidate_lock` pages may be added concurrently, but with a size of zero
        // only by calls that have begun before.
        unsafe {
            let mapping = (*bdev).bd_mapping;

            if !has_file_system {
                bindings::spin_lock(addr_of_mut!((*bdev).bd_size_lock));
                // A write that is under way may have set the size again. Then it stays: the write
                // expects that the size does not become smaller.
                if (*bdev).bd_nr_sectors != 0 {
                    bindings::i_size_write((*mapping).host, 0);
                    (*bdev).bd_nr_sectors = 0;
                }
                bindings::spin_unlock(addr_of_mut!((*bdev).bd_size_lock));
            }
            // Pages that a private mapping has copied do not belong to the device.
            bindings::unmap_mapping_pages(mapping, 0, 0, false);
            if !has_file_system {
                bindings::__filemap_set_wb_err(mapping, EIO.to_errno());
                bindings::truncate_inode_pages(mapping, 0);
            }
        }
    }

    /// Returns whether one of these has claimed the device. May sleep.
    pub(super) fn has_holder(&self, holders: &[*const c_void]) -> bool {
        // SAFETY: By the type invariant the device is valid. `with_holder` holds the lock.
        self.with_holder(|raw| holders.contains(&unsafe { (*raw).bd_holder }.cast_const()))
    }
}

impl Clone for BlockDevice {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::get_device(addr_of_mut!((*self.0.as_ptr()).bd_device)) };
        // INVARIANT: The reference was just taken.
        Self(self.0)
    }
}

impl Drop for BlockDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant `self` owns the reference.
        unsafe { bindings::put_device(addr_of_mut!((*self.0.as_ptr()).bd_device)) };
    }
}

#[kunit_tests(pmem_rs_block_device)]
mod tests {
    use super::*;

    #[test]
    fn no_reference_is_taken_to_a_device_without_references() -> Result {
        let mut device = KBox::<bindings::block_device>::new_uninit(GFP_KERNEL | __GFP_ZERO)?;
        let bdev = device.as_mut_ptr();

        // SAFETY: The memory is valid. Only the reference count is read, which is zero.
        let (found, references) = unsafe {
            (
                BlockDevice::get(bdev).is_some(),
                (*bdev).bd_device.kobj.kref.refcount.refs.counter,
            )
        };
        assert!(!found);
        assert_eq!(references, 0);
        Ok(())
    }
}
