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
    sync::Arc, //
};

/// A bound device when the system goes to sleep and wakes up.
pub struct Sleep(pub Arc<Unbind>);

impl SleepOperations for Sleep {
    fn suspend(&self) -> Result {
        self.0.flusher.suspend()
    }

    fn resume(&self) {
        self.0.flusher.resume();
    }

    fn power_off(&self) {
        self.0.sync();
    }
}

/// Refuses hibernation while `struct page`s are on a medium.
pub struct Hibernation;

impl HibernationGuard for Hibernation {
    fn prepare_hibernation() -> Result {
        let Some(shared) = SHARED.get() else {
            return Ok(());
        };
        let mut devices = shared.devices.iter();
        let Some(device) = devices.find(|device| device.memmap_is_on_media()) else {
            return Ok(());
        };

        pr_err!(
            "hibernation is refused: the struct pages of {} are on its medium (map=dev), where the \
             kernel that resumes would overwrite them. Unmount and unbind it before, and bind it \
             again afterwards\n",
            device.name()
        );
        Err(EBUSY)
    }
}
