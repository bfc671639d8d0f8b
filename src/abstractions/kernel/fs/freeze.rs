// SPDX-License-Identifier: GPL-2.0

//! Freezes of all file systems on a disk.
//!
//! C sources: [`fs/super.c`](srctree/fs/super.c), [`block/bdev.c`](srctree/block/bdev.c)

use super::super_block::devices_of;
use crate::abstractions::kernel::block::gendisk::{
    BlockDevice,
    DiskState,
    FrozenDevice,
    Operations,
    Registration, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

pub use crate::abstractions::kernel::block::gendisk::Broken;

/// A device that could not be frozen. [`None`] if memory was too short to find the devices.
pub struct FreezeError {
    device: Option<BlockDevice>,
    error: Error,
}

impl FreezeError {
    /// Returns the name of the device.
    pub fn name(&self) -> &CStr {
        self.device.as_ref().map_or(c"?", BlockDevice::name)
    }

    /// Returns the error.
    pub fn error(&self) -> Error {
        self.error
    }
}

impl From<Error> for FreezeError {
    fn from(error: Error) -> Self {
        Self {
            device: None,
            error,
        }
    }
}

/// A reference to a disk, with which its file systems can be frozen. It may outlive the disk.
///
/// # Examples
///
/// ```no_run
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel::block::gendisk;
/// use pmem_rs::abstractions::kernel::fs::freeze::Freezer;
///
/// fn quiesce<T: gendisk::Operations>(disk: &gendisk::Registration<T>) -> Result {
///     let frozen = Freezer::new(disk).freeze().map_err(|err| err.error())?;
///
///     // No program writes to a file system on the disk here.
///     let mut was_thawed = false;
///     frozen.thaw(|_, _| was_thawed = true);
///     if was_thawed {
///         return Err(EBUSY);
///     }
///     Ok(())
/// }
/// ```
pub struct Freezer(Arc<DiskState>);

impl Freezer {
    /// Takes a reference to a disk.
    pub fn new<T: Operations>(disk: &Registration<T>) -> Self {
        Self(disk.state())
    }

    /// Returns whether code in the kernel may keep an address of the memory behind the disk, and
    /// use it while file systems are frozen. May sleep.
    pub fn has_keeper(&self) -> bool {
        self.0.may_have_keeper()
    }

    /// Freezes the file systems on the disk and on its partitions. If device-mapper has ever
    /// claimed the disk, also freezes each mounted file system whose type uses DAX, and whose
    /// device is one of device-mapper with DAX: below such a device may be this disk.
    ///
    /// Sleeps. Waits for threads that write to a file system, without a limit.
    ///
    /// # Errors
    ///
    /// If a device cannot be frozen, those that were frozen are thawed.
    pub fn freeze(&self) -> Result<Frozen, FreezeError> {
        let devices = devices_of(&self.0)?;
        let list = KVec::with_capacity(devices.len(), GFP_KERNEL).map_err(Error::from)?;
        let mut frozen = Frozen(list);

        for device in devices {
            match FrozenDevice::new(device) {
                Ok(device) => frozen.0.push_within_capacity(device).map_err(|_| ENOMEM)?,
                Err((device, error)) => {
                    return Err(FreezeError {
                        device: Some(device),
                        error,
                    })
                }
            }
        }
        Ok(frozen)
    }

    /// Waits for all requests whose submission to the disk has begun. Requests that are submitted
    /// meanwhile wait for that. Sleeps.
    pub fn drain(&self) {
        self.0.drain();
    }
}

/// Frozen file systems, and devices that cannot be mounted. Dropping it thaws them.
pub struct Frozen(KVec<FrozenDevice>);

impl Frozen {
    /// Thaws all. Calls `broken` with the name of each device that was not frozen until now, or
    /// that stays frozen. Sleeps. A file system that was unmounted meanwhile is shut down.
    pub fn thaw(self, mut broken: impl FnMut(&CStr, Broken)) {
        let mut devices = self.0;

        // In reverse order: what is below first.
        while let Some(mut device) = devices.pop() {
            if let Err(why) = device.thaw() {
                broken(device.name(), why);
            }
        }
    }
}
