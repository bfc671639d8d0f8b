// SPDX-License-Identifier: GPL-2.0

//! References to DAX devices.
//!
//! Lock order: [`Handle::is_released`] is outside of the locks that the holder takes in
//! `notify_failure()`, and inside of `mf_mutex`.

use crate::abstractions::bindings;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::memremap::Failure;
use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex,
        UniqueArc, //
    }, //
};

/// A counted reference to a `struct dax_device`, alive or dead.
///
/// # Invariants
///
/// `dev` is a valid `struct dax_device`, and one of its references is ours. It is killed before the
/// last [`Arc`] of this is dropped.
#[pin_data(PinnedDrop)]
pub struct Handle {
    dev: NonNull<bindings::dax_device>,
    /// The memory, or null. Only compared.
    pgmap: *const bindings::dev_pagemap,
    /// Set once the holder has been released. The lock is held across `notify_failure()`, because
    /// the DAX core does not serialise that against `fs_put_dax()`.
    #[pin]
    is_released: Mutex<bool>,
}

// SAFETY: References to a DAX device may be put from any thread.
unsafe impl Send for Handle {}

// SAFETY: The methods of `Handle` may be called by several threads at once.
unsafe impl Sync for Handle {}

impl Handle {
    /// Makes a device that is alive, for the memory of a pgmap, if that is not null. May sleep.
    ///
    /// # Safety
    ///
    /// The device must be killed before the last reference to the result is dropped. Until then
    /// `ops` must be callable with `private`.
    pub(super) unsafe fn new(
        private: *mut c_void,
        ops: &'static bindings::dax_operations,
        pgmap: *const bindings::dev_pagemap,
    ) -> Result<Arc<Self>> {
        // First, because a device that is alive cannot be put.
        let slot = UniqueArc::new_uninit(GFP_KERNEL)?;

        // SAFETY: By the safety requirements.
        let dev = from_err_ptr(unsafe { bindings::alloc_dax(private, ops) })
            .and_then(|dev| NonNull::new(dev).ok_or(ENOMEM))?;

        // INVARIANT: One reference came with the device. By the safety requirements it is killed
        // in time.
        let handle = slot.pin_init_with(pin_init!(Self {
            dev,
            pgmap,
            is_released <- new_mutex!(false, "pmem_rs::Handle::is_released"),
        }));
        match handle {
            Ok(handle) => Ok(handle.into()),
            Err(never) => match never {},
        }
    }

    pub(super) fn as_raw(&self) -> *mut bindings::dax_device {
        self.dev.as_ptr()
    }

    /// Returns whether the DAX core flushes the CPU caches on behalf of the device.
    pub fn write_cache(&self) -> bool {
        // SAFETY: By the type invariant the device is valid.
        unsafe { bindings::dax_write_cache_enabled(self.as_raw()) }
    }

    /// Sets whether the DAX core flushes the CPU caches on behalf of the device.
    pub fn set_write_cache(&self, enabled: bool) {
        // SAFETY: By the type invariant the device is valid. The flag is set atomically.
        unsafe { bindings::dax_write_cache(self.as_raw(), enabled) };
    }

    /// Notifies the holder of the device that memory of the device has failed. Only xfs becomes a
    /// holder: ext4, erofs and device-mapper pass none to `fs_dax_get_by_bdev()`. May sleep. Takes
    /// locks of the holder.
    ///
    /// # Errors
    ///
    /// [`EOPNOTSUPP`] if there is no holder, it was released, or it does not handle failures,
    /// [`ENXIO`] if the device is dead and no holder was released, [`EINVAL`] if other memory has
    /// failed, and the errors of the holder.
    pub fn notify_failure(&self, failure: &Failure<'_>) -> Result {
        if !failure.is_of(self.pgmap) {
            return Err(EINVAL);
        }
        let is_released = self.is_released.lock();
        if *is_released {
            return Err(EOPNOTSUPP);
        }

        // SAFETY: By the type invariant the device is valid. It may be dead.
        to_result(unsafe {
            bindings::dax_holder_notify_failure(
                self.as_raw(),
                failure.offset(),
                failure.len(),
                failure.flags(),
            )
        })
    }

    /// Releases the holder, so that it is not notified when the device is killed. May sleep. Waits
    /// for a notification that is under way.
    ///
    /// The device must not have a host.
    pub(super) fn release_holder(&self) {
        let dev = self.as_raw();
        let mut is_released = self.is_released.lock();

        *is_released = true;
        // SAFETY: By the type invariant the device is valid. `fs_put_dax` clears the operations of
        // the holder, and the holder if it is still the one that was read. It puts a reference: the
        // one that is taken here, not the one of the holder, which the holder puts itself, now or
        // later. The lock serialises this against notifications. A thread that found the device
        // before it lost its host may still become its holder after this: then `kill_dax` notifies
        // it, or `fs_put_dax` warns.
        unsafe {
            let holder = bindings::dax_holder(dev);
            if !holder.is_null() && !bindings::igrab(bindings::dax_inode(dev)).is_null() {
                bindings::fs_put_dax(dev, holder);
            }
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Handle {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the reference is ours to put.
        unsafe { bindings::put_dax(self.dev.as_ptr()) };
    }
}
