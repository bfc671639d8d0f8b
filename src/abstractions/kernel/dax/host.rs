// SPDX-License-Identifier: GPL-2.0

//! The connection of a disk to a DAX device.

use super::device::Handle;
use crate::abstractions::bindings;
use crate::abstractions::kernel::block::gendisk::{
    self,
    GenDisk, //
};
use core::ptr::NonNull;
use kernel::{
    device,
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// The connection of a disk to a DAX device, by which file systems find the device. Dropping it
/// disconnects them.
///
/// # Invariants
///
/// `dax_add_host` was called for `disk`, whose reference `_device` is ours.
pub(super) struct Host {
    disk: NonNull<bindings::gendisk>,
    _device: ARef<device::Device>,
}

impl Host {
    /// Connects a disk to a device. May sleep. Fails if the disk has a device already.
    pub(super) fn new<D: gendisk::Operations>(handle: &Handle, disk: &GenDisk<D>) -> Result<Self> {
        let device = disk.device();

        // SAFETY: Both are valid. The entry is removed before either reference is put.
        to_result(unsafe { bindings::dax_add_host(handle.as_raw(), disk.as_raw()) })?;

        // INVARIANT: `dax_add_host` has succeeded.
        Ok(Self {
            // SAFETY: The pointer of a disk is never null.
            disk: unsafe { NonNull::new_unchecked(disk.as_raw()) },
            _device: device,
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the disk is valid and has an entry.
        unsafe { bindings::dax_remove_host(self.disk.as_ptr()) };
    }
}
