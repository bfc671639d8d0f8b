// SPDX-License-Identifier: GPL-2.0

//! The sleep of the system.
//!
//! Hibernation saves the memory of the system and switches it off. What is on persistent memory is
//! not saved. The kernel that is started to resume the system binds the devices as well, and writes
//! its `struct page`s over those of the sleeping kernel. So hibernation is refused while `struct
//! page`s are on a medium.

use super::{
    device_state::DeviceState,
    registry::RegisteredDevice,
    shared::SHARED, //
};
use crate::abstractions::kernel::{
    pm::SleepOperations,
    suspend::SleepHandler, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// A bound device when the system goes to sleep and wakes up.
pub struct Sleep(pub Arc<DeviceState>);

impl SleepOperations for Sleep {
    fn suspend(&self) -> Result {
        // The device may have been bound after `prepare_hibernation` has looked for such devices.
        if IS_HIBERNATING.load(Relaxed) && self.0.memmap_is_on_medium() {
            return refuse(&self.0.name);
        }
        self.0.flusher.pause()
    }

    fn resume(&self) {
        self.0.flusher.unpause();
    }

    fn power_off(&self) {
        self.0.sync();
    }
}

/// The system is about to hibernate, or does: it saves its memory. Not set in the kernel that is
/// started to resume another one.
///
/// ORDERING: none is needed. The devices are suspended after the store: by the same thread, by one
/// that takes `system_transition_mutex` after it (`/dev/snapshot`), or by work that these queue.
static IS_HIBERNATING: Atomic<bool> = Atomic::new(false);

/// Logs why the system cannot hibernate, and returns an error.
fn refuse(device: &CStr) -> Result {
    pr_err!(
        "hibernation is refused: the struct pages of {} are on its medium (map=dev), where the \
         kernel that is started to resume would overwrite them. Unmount and unbind it before \
         hibernation, and bind it again afterwards\n",
        device
    );
    Err(EBUSY)
}

/// The system is about to sleep, or sleeps. No disk is suspended then.
///
/// ORDERING: the locks of the suspensions order it: it is stored before they are taken to look for
/// one, and it is loaded with the lock held to begin one. For a device that is added after the
/// look, the mutex of the registry orders it.
static IS_SLEEPING: Atomic<bool> = Atomic::new(false);

/// Returns whether the system is about to sleep, or sleeps.
pub fn is_system_sleeping() -> bool {
    IS_SLEEPING.load(Relaxed)
}

/// Refuses hibernation while `struct page`s are on a medium, and any sleep while a disk is
/// suspended: threads that wait for frozen file systems cannot be frozen themselves.
pub struct SleepPolicy;

impl SleepHandler for SleepPolicy {
    fn prepare_sleep() -> Result {
        IS_SLEEPING.store(true, Relaxed);

        if let Some(shared) = SHARED.get() {
            let mut devices = shared.devices.iter();
            if let Some(device) = devices.find(|device| device.has_suspension()) {
                IS_SLEEPING.store(false, Relaxed);
                pr_err!(
                    "the system stays awake, since the disk of {} is suspended, or is being \
                     suspended: write live to its attribute pmem_rs/state, and try again\n",
                    device.name()
                );
                return Err(EBUSY);
            }
        }
        Ok(())
    }

    fn sleep_ended() {
        IS_SLEEPING.store(false, Relaxed);
    }

    fn prepare_hibernation() -> Result {
        if let Some(shared) = SHARED.get() {
            let mut devices = shared.devices.iter();
            if let Some(device) = devices.find(|device| device.memmap_is_on_medium()) {
                return refuse(device.name());
            }
        }
        IS_HIBERNATING.store(true, Relaxed);
        Ok(())
    }

    fn hibernation_ended() {
        IS_HIBERNATING.store(false, Relaxed);
    }
}
