// SPDX-License-Identifier: GPL-2.0

//! The sleep of the system.
//!
//! Hibernation saves the memory of the system and switches it off. What is on persistent memory is
//! not saved. The kernel that is started then, to read what was saved, binds the devices as well,
//! and so writes new `struct page`s over those of the sleeping kernel. Therefore hibernation is
//! refused while `struct page`s are on a medium.

use super::{
    shared::SHARED,
    unbind::Unbind, //
};
use crate::abstractions::kernel::{
    pm::SleepOperations,
    suspend::HibernationGuard, //
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
pub struct Sleep(pub Arc<Unbind>);

impl SleepOperations for Sleep {
    fn suspend(&self) -> Result {
        // Bound after the guard has looked.
        if IS_HIBERNATING.load(Relaxed) && self.0.memmap_is_on_media {
            return refuse(&self.0.name);
        }
        self.0.flusher.suspend()
    }

    fn resume(&self) {
        self.0.flusher.resume();
    }

    fn power_off(&self) {
        self.0.sync();
    }
}

/// The system saves its memory. A system that is started to resume another one does not.
///
/// ORDERING: none is needed. The thread that stores it suspends the devices after that, itself or
/// by work that it queues.
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

/// Refuses hibernation while `struct page`s are on a medium.
pub struct Hibernation;

impl HibernationGuard for Hibernation {
    fn prepare_hibernation() -> Result {
        if let Some(shared) = SHARED.get() {
            let mut devices = shared.devices.iter();
            if let Some(device) = devices.find(|device| device.memmap_is_on_media()) {
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
