// SPDX-License-Identifier: GPL-2.0

//! Hibernation, which is refused while `struct page`s are on a medium.
//!
//! Hibernation saves the memory of the system and switches it off. What is on persistent memory is
//! not saved. The kernel that is started then, to read what was saved, binds the devices as well,
//! and so writes new `struct page`s over those of the sleeping kernel.

use super::shared::SHARED;
use crate::abstractions::kernel::suspend::HibernationGuard;
use kernel::prelude::*;

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
