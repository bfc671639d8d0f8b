// SPDX-License-Identifier: GPL-2.0

//! The reboot of the system, and all else after which this kernel does not run any more: power-off,
//! halt and kexec.
//!
//! The driver core takes the lock of each device then (`device_shutdown()`). The unbinding thread
//! holds the lock of its device while it waits for users. If it unbinds the region, it also holds
//! the lock of the region. Some users never go: nothing unloads the module that has a lease, or
//! removes a device-mapper table. So once the reboot notifier was called, no unbind waits for
//! users, whatever its limit is ([`Waiting`](super::plain::waiting::Waiting)). A range that is in
//! use is retired. Two cases still wait: `map=dev` on a medium that can be taken away, and an
//! unbind by `rmmod`.
//!
//! `docs/lifetimes.md` explains why that is safe even where the `struct page`s are on the medium.
//!
//! Lock order: the rwsem of the notifier chain, then the mutex of the registry.

use super::shared::SHARED;
use crate::abstractions::kernel::reboot::RebootHandler;

/// Ends the waits of all unbinds.
pub struct RebootPolicy;

impl RebootHandler for RebootPolicy {
    fn going_down() {
        let Some(shared) = SHARED.get() else {
            return;
        };

        shared.going_down.populate(());
        for device in shared.devices.iter() {
            device.wake_up();
        }
    }
}
