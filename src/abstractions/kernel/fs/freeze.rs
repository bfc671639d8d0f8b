// SPDX-License-Identifier: GPL-2.0

//! Freezes of all file systems on a disk.
//!
//! C sources: [`fs/super.c`](srctree/fs/super.c), [`block/bdev.c`](srctree/block/bdev.c)

use super::{
    disk_users::{
        first_unfrozen,
        users_of,
        Users, //
    }, //
    frozen_super::{
        name_of,
        ActiveSuper,
        SuperName, //
    },
};
use crate::abstractions::kernel::block::gendisk::{
    BlockDevice,
    DiskState,
    FrozenDevice,
    Operations,
    Registration, //
};
use kernel::{
    fmt,
    prelude::*,
    sync::Arc, //
};

/// What [`Frozen::thaw`] has found wrong with a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeLost {
    /// Something else has thawed it.
    ThawedByOther,
    /// It cannot be thawed.
    StillFrozen(Error),
}

/// Why file systems could not be frozen.
pub struct FreezeError {
    culprit: Culprit,
    error: Error,
}

enum Culprit {
    /// Memory was too short to list the devices.
    List,
    Device(BlockDevice),
    Super(SuperName),
}

impl FreezeError {
    /// Returns the error.
    pub fn error(&self) -> Error {
        self.error
    }
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.culprit {
            Culprit::List => {
                return f.write_str("the file systems on the disk could not be listed")
            }
            Culprit::Device(device) => device.name(),
            Culprit::Super(name) => name_of(name),
        };
        f.write_fmt(fmt!(
            "{} could not be frozen (error {}). If it is frozen nevertheless, thaw it by fsfreeze -u",
            name,
            self.error.to_errno()
        ))
    }
}

impl From<Error> for FreezeError {
    fn from(error: Error) -> Self {
        Self {
            culprit: Culprit::List,
            error,
        }
    }
}

/// The name of a file system, for messages.
pub struct FileSystemName(SuperName);

impl fmt::Display for FileSystemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{}", name_of(&self.0)))
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

    /// Freezes the file systems on the disk and on its partitions. If the disk ever had an indirect
    /// claim, such as one of device-mapper, also freezes each mounted file system whose type uses
    /// DAX, and whose device is one of device-mapper with DAX: this disk may be below that device.
    ///
    /// Until the result is dropped, programs cannot thaw the file systems with DAX, and nothing but
    /// programs and file systems on the disk itself can claim the disk ([`EBUSY`]).
    ///
    /// Sleeps. Waits for threads that write to a file system, without a limit, and for mounts and
    /// unmounts of file systems with DAX that are under way.
    ///
    /// # Errors
    ///
    /// If a device cannot be frozen, those that were frozen are thawed.
    pub fn freeze(&self) -> Result<Frozen, FreezeError> {
        let refusal = Refusal::new(self.0.clone());
        let Users { devices, supers } = users_of(&self.0)?;
        let mut frozen = Frozen {
            supers: KVec::with_capacity(supers.len(), GFP_KERNEL).map_err(Error::from)?,
            devices: KVec::with_capacity(devices.len(), GFP_KERNEL).map_err(Error::from)?,
            _refusal: refusal,
        };

        for device in devices {
            match FrozenDevice::new(device) {
                Ok(device) => frozen
                    .devices
                    .push_within_capacity(device)
                    .map_err(|_| ENOMEM)?,
                Err((device, error)) => {
                    return Err(FreezeError {
                        culprit: Culprit::Device(device),
                        error,
                    })
                }
            }
        }
        for active in supers {
            active.freeze().map_err(|error| FreezeError {
                culprit: Culprit::Super(active.name()),
                error,
            })?;
            // Unreachable, since the list has the capacity.
            if let Err(rejected) = frozen.supers.push_within_capacity(active) {
                let _ = rejected.0.thaw();
                return Err(ENOMEM.into());
            }
        }
        Ok(frozen)
    }

    /// Returns a file system with DAX that [`Self::freeze`] would freeze now, and that the kernel
    /// has not frozen, if there is one. One that is read-only counts too, since it could be
    /// remounted. Sleeps. Waits for mounts and unmounts of file systems with DAX that are under
    /// way.
    pub fn first_unfrozen(&self) -> Option<FileSystemName> {
        first_unfrozen(&self.0).map(FileSystemName)
    }

    /// Waits until the calls of [`Operations::submit_bio`] that have begun have returned. Requests
    /// that are submitted meanwhile wait for that. Sleeps.
    pub fn drain(&self) {
        self.0.drain();
    }
}

/// Refuses claims of a disk that are indirect ([`DiskState::refuse_indirect`]).
struct Refusal(Arc<DiskState>);

impl Refusal {
    fn new(disk: Arc<DiskState>) -> Self {
        disk.refuse_indirect();
        Self(disk)
    }
}

impl Drop for Refusal {
    fn drop(&mut self) {
        self.0.permit_indirect();
    }
}

/// Frozen file systems, and devices that cannot be mounted. Dropping it thaws them.
pub struct Frozen {
    /// The file systems with DAX, which programs must not thaw. Each was frozen once.
    supers: KVec<ActiveSuper>,
    devices: KVec<FrozenDevice>,
    _refusal: Refusal,
}

impl Frozen {
    /// Thaws all. Calls `lost` with the name of each file system with DAX that was not frozen until
    /// now, and of each file system with DAX or device that stays frozen. Sleeps. A file system
    /// that was unmounted meanwhile is shut down.
    pub fn thaw(mut self, lost: impl FnMut(&CStr, FreezeLost)) {
        self.undo(lost);
    }

    fn undo(&mut self, mut lost: impl FnMut(&CStr, FreezeLost)) {
        // The freezes of the kernel are undone first, since programs cannot undo them. If a device
        // cannot be thawed after that, a program can thaw its file system.
        for active in &self.supers {
            if let Err(err) = active.thaw() {
                let why = if err == EINVAL {
                    FreezeLost::ThawedByOther
                } else {
                    FreezeLost::StillFrozen(err)
                };
                lost(name_of(&active.name()), why);
            }
        }
        // In reverse order: what is below first.
        while let Some(mut device) = self.devices.pop() {
            if let Err(err) = device.thaw() {
                lost(device.name(), FreezeLost::StillFrozen(err));
            }
        }
        self.supers.clear();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.undo(|_, _| {});
    }
}
