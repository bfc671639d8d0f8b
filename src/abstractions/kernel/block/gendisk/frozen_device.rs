// SPDX-License-Identifier: GPL-2.0

//! Block devices whose file systems are frozen.
//!
//! C source: [`block/bdev.c`](srctree/block/bdev.c)

use super::block_device::BlockDevice;
use crate::abstractions::bindings;
use core::ptr::addr_of_mut;
use kernel::{
    error::to_result,
    prelude::*, //
};

/// A block device with a freeze (`bdev_freeze()`). It cannot be mounted. Dropping it thaws it.
///
/// # Invariants
///
/// If `is_frozen`, one of the freezes that `bd_fsfreeze_count` counts is that of `self`, unless
/// something else has put it (`emergency_thaw_all()`).
pub(in crate::abstractions) struct FrozenDevice {
    bdev: BlockDevice,
    is_frozen: bool,
}

impl FrozenDevice {
    /// Freezes the file systems on a device, and writes its page cache. If the device is frozen
    /// already, the freeze is only counted. Sleeps. Waits for threads that write to the file
    /// systems.
    ///
    /// The caller must not hold a lock that is taken inside of such a write.
    pub(in crate::abstractions) fn new(bdev: BlockDevice) -> Result<Self, (BlockDevice, Error)> {
        // SAFETY: The reference keeps the device.
        match to_result(unsafe { bindings::bdev_freeze(bdev.as_raw()) }) {
            // INVARIANT: The freeze was just counted.
            Ok(()) => Ok(Self {
                bdev,
                is_frozen: true,
            }),
            Err(err) => Err((bdev, err)),
        }
    }

    pub(in crate::abstractions) fn name(&self) -> &CStr {
        self.bdev.name()
    }

    /// Thaws the device, once. Sleeps. If the file system was unmounted meanwhile, it may be shut
    /// down here. On failure the file system stays frozen.
    ///
    /// If something else has thawed the file system (`FITHAW`), `bdev_thaw()` fails and keeps the
    /// freeze. With a count that never becomes 0, the device could not be mounted any more, and the
    /// next freeze would do nothing.
    pub(in crate::abstractions) fn thaw(&mut self) -> Result {
        if !core::mem::replace(&mut self.is_frozen, false) {
            return Ok(());
        }
        let raw = self.bdev.as_raw();
        // SAFETY: The reference keeps the device.
        let (count, mutex) = unsafe {
            (
                addr_of_mut!((*raw).bd_fsfreeze_count),
                addr_of_mut!((*raw).bd_fsfreeze_mutex),
            )
        };

        loop {
            // SAFETY: As above.
            match to_result(unsafe { bindings::bdev_thaw(raw) }) {
                Err(err) if err == EINVAL => {}
                other => return other,
            }

            // SAFETY: As above. The mutex protects a count that is greater than 0.
            let is_done = unsafe {
                bindings::mutex_lock(mutex);
                let freezes = (&raw const (*count).counter).read_volatile();
                if freezes == 1 {
                    bindings::atomic_add_unless(count, -1, 0);
                }
                bindings::mutex_unlock(mutex);
                freezes <= 1
            };
            if is_done {
                return Ok(());
            }
            // Something else has frozen the device since, so this freeze can be put.
        }
    }
}

impl Drop for FrozenDevice {
    fn drop(&mut self) {
        let _ = self.thaw();
    }
}
