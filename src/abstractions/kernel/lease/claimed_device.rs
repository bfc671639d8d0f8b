// SPDX-License-Identifier: GPL-2.0

//! The exclusive claim of a block device, and its DAX device.

use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use core::ptr::{
    null,
    null_mut,
    NonNull, //
};
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*, //
};

/// The holder operations of leases.
///
/// There is none: when the disk is removed or frozen, the block layer then syncs its page cache, as
/// for a holder without operations. That the claim has operations at all distinguishes it from
/// one of device-mapper, whose holder cannot be notified ([`DiskState::has_keeper`]).
///
/// [`DiskState::has_keeper`]: crate::abstractions::kernel::block::gendisk
static HOLDER_OPS: bindings::blk_holder_ops = bindings::blk_holder_ops {
    mark_dead: None,
    sync: None,
    freeze: None,
    thaw: None,
};

/// A block device that is open for reading and writing, and claimed. Dropping it ends the claim at
/// once, and closes the device a moment later. Opening and dropping may sleep.
///
/// # Invariants
///
/// `self.0` is an open file of a block device, which `self` owns.
pub(super) struct Claim(NonNull<bindings::file>);

// SAFETY: A file may be used and closed by any thread.
unsafe impl Send for Claim {}

// SAFETY: Through a shared reference the device is only asked and flushed, which any thread may do.
unsafe impl Sync for Claim {}

impl Claim {
    /// Opens a device. `holder` must be an address that is the caller's own.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if it is claimed, or its disk refuses claims ([`Freezer::freeze`]), [`EACCES`] if
    /// it is read-only, [`ENXIO`] if there is none.
    ///
    /// [`Freezer::freeze`]: crate::abstractions::kernel::fs::freeze::Freezer::freeze
    pub(super) fn new(dev: bindings::dev_t, holder: *const c_void) -> Result<Self> {
        let mode = bindings::BLK_OPEN_READ | bindings::BLK_OPEN_WRITE;
        // SAFETY: The block layer only compares the holder. The `open` operation of the disks of
        // this module reads what it points to, by a function that fails if nothing is mapped there.
        // The operations are static.
        let file = from_err_ptr(unsafe {
            bindings::bdev_file_open_by_dev(dev, mode, holder.cast_mut(), &HOLDER_OPS)
        })?;

        // INVARIANT: The file was just opened.
        let claim = Self(NonNull::new(file).ok_or(ENXIO)?);
        if claim.is_read_only() {
            return Err(EACCES);
        }
        Ok(claim)
    }

    fn bdev(&self) -> *mut bindings::block_device {
        // SAFETY: By the type invariant the file is one of a block device.
        unsafe { bindings::file_bdev(self.0.as_ptr()) }
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> u64 {
        // SAFETY: The device is open.
        unsafe { bindings::bdev_nr_bytes(self.bdev()) }
    }

    /// Returns whether the device is read-only. Callable from any context.
    pub(super) fn is_read_only(&self) -> bool {
        // SAFETY: The device is open.
        unsafe { bindings::bdev_read_only(self.bdev()) }
    }

    /// Makes durable what was written past the CPU caches. Sleeps.
    pub(super) fn flush(&self) -> Result {
        // SAFETY: The device is open. The barrier has no requirements.
        to_result(unsafe {
            // If the disk says that it has no cache, the block layer drops the request.
            bindings::pmem_wmb();
            bindings::blkdev_issue_flush(self.bdev())
        })
    }

    /// Returns the DAX device, and where this device begins in it. May sleep.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is none, or if this device, or a target of a device-mapper table,
    /// does not begin with a page: translations would drop the rest (`linear_dax_pgoff()`).
    pub(super) fn dax(&self) -> Result<(DaxDevice, u64)> {
        let mut start = 0;

        // SAFETY: The device is open.
        if unsafe { bindings::bdev_alignment_offset(self.bdev()) } != 0 {
            return Err(EOPNOTSUPP);
        }

        // SAFETY: The device is open. No holder is set, so no operations are needed.
        let dax =
            unsafe { bindings::fs_dax_get_by_bdev(self.bdev(), &mut start, null_mut(), null()) };
        // INVARIANT: The function has taken a reference.
        let dax = NonNull::new(dax).map(DaxDevice).ok_or(EOPNOTSUPP)?;
        Ok((dax, start))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the file is ours to close.
        unsafe { bindings::bdev_fput(self.0.as_ptr()) };
    }
}

/// A reference to a DAX device, alive or dead.
///
/// # Invariants
///
/// `self.0` is a DAX device, to which `self` owns a reference.
pub(super) struct DaxDevice(NonNull<bindings::dax_device>);

impl DaxDevice {
    /// Calls `f` with `dax_read_lock` held, in which memory that was translated stays.
    pub(super) fn with_lock<R>(&self, f: impl FnOnce(&LockedDaxDevice<'_>) -> R) -> R {
        // SAFETY: Callable from any context.
        let id = unsafe { bindings::dax_read_lock() };
        let result = f(&LockedDaxDevice(self));

        // SAFETY: `id` is of the call above, on this thread.
        unsafe { bindings::dax_read_unlock(id) };
        result
    }
}

impl Drop for DaxDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to put.
        unsafe { bindings::put_dax(self.0.as_ptr()) };
    }
}

/// A DAX device while `dax_read_lock` is held.
pub(super) struct LockedDaxDevice<'a>(&'a DaxDevice);

impl LockedDaxDevice<'_> {
    /// Returns the address of page `pgoff`, and how many of the `nr_pages` pages from there on are
    /// contiguous. At least 1, also if some pages have failed.
    ///
    /// No page frame number is asked for, so nothing is exposed.
    pub(super) fn translate(&self, pgoff: usize, nr_pages: usize) -> Result<(usize, usize)> {
        let nr = c_long::try_from(nr_pages).unwrap_or(c_long::MAX);
        let mut addr = null_mut();

        // SAFETY: By the type invariant of `DaxDevice` it is valid, and the lock is held. The
        // address goes to a local variable.
        let found = unsafe {
            bindings::dax_direct_access(
                self.0 .0.as_ptr(),
                pgoff,
                nr,
                // A recovery write also translates pages that have failed.
                bindings::dax_access_mode_DAX_RECOVERY_WRITE,
                &mut addr,
                null_mut(),
            )
        };
        if found <= 0 {
            // A negative result is an error number.
            return Err(to_result(found as c_int).err().unwrap_or(ENXIO));
        }
        Ok((addr as usize, (found as usize).min(nr_pages)))
    }
}
