// SPDX-License-Identifier: GPL-2.0

//! Namespaces that are attached to the btt driver of libnvdimm.

use super::{
    device::Device,
    enabled_namespace::SetupError,
    namespace::Namespace, //
};
use crate::abstractions::bindings;
use kernel::{
    device::{
        self,
        Bound, //
    },
    devres,
    error::to_result,
    prelude::*,
    sync::aref::ARef, //
};

/// A namespace that is attached to the btt driver.
///
/// # Invariants
///
/// `dev` is a btt device, and for `'bound` it is attached (`nvdimm_namespace_attach_btt`).
pub struct Btt<'bound> {
    dev: &'bound Device<Bound>,
}

impl<'bound> Namespace<'bound> {
    /// Attaches the namespace of a btt device to the btt driver, which makes a disk of it. May
    /// sleep. That driver writes an info block if the device is new.
    ///
    /// The info blocks and the logs of all arenas are checked before. The region must be one whose
    /// flush does not sleep: for each sector that is written, the btt driver writes the log and the
    /// map with a spinlock held, and flushes each time (`btt_write_pg()` in
    /// `drivers/nvdimm/btt.c`).
    ///
    /// When the device is unbound, the disk is removed after the driver's data was dropped.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the device is not a btt, or is not fully configured.
    /// - [`EBUSY`] if a part of the range is in use.
    /// - As in [`SetupError`].
    pub fn attach_btt(self) -> Result<Btt<'bound>, SetupError> {
        if self.btt_sector_size().is_none() {
            return Err(ENODEV.into());
        }

        if self.device().region().flush_may_sleep() {
            return Err(SetupError::SleepingFlush);
        }
        let size = self.size()?;
        let enabled = self.enable_bytes(size)?;
        enabled.check_arenas()?;
        let namespace = enabled.disable();
        let dev = namespace.device();

        // SAFETY: The namespace is claimed by a btt device, which is being bound. The btt driver
        // believes the info blocks and the logs. They were checked, and nothing has written to the
        // medium since: the btt device has claimed the namespace.
        to_result(unsafe { bindings::nvdimm_namespace_attach_btt(namespace.ndns().as_ptr()) })?;

        let generic = dev.generic();
        // If this fails, the btt is detached at once.
        devres::register(generic, DetachBtt(generic.into()), GFP_KERNEL)?;

        // INVARIANT: It has just been attached, and devres detaches it when the device is unbound.
        Ok(Btt { dev })
    }
}

impl Btt<'_> {
    /// Sets the disk read-only or writable, as the region is. May sleep.
    ///
    /// The C function `nvdimm_check_and_set_ro()` is not used here: if the region becomes read-only
    /// while a user has set the disk read-only, it does nothing, and the user can make the disk
    /// writable later.
    pub fn sync_read_only(&self) {
        let read_only = self.dev.region().is_read_only();

        // SAFETY: By the type invariant the device is an attached btt, so it has a disk.
        unsafe {
            let nd_btt = bindings::to_nd_btt(self.dev.as_raw());
            bindings::set_disk_ro((*(*nd_btt).btt).btt_disk, read_only);
        }
    }

    /// Adds the bad ranges that the region knows to the badblocks of the namespace. May sleep.
    /// Takes the bus lock.
    pub fn revalidate_poison(&self) {
        // SAFETY: By the type invariant the device is an attached btt, so it has a namespace, whose
        // badblocks were initialised when it was enabled.
        unsafe {
            let nd_btt = bindings::to_nd_btt(self.dev.as_raw());
            // `to_nd_namespace_io()`
            let nsio = (*nd_btt).ndns.cast::<bindings::nd_namespace_io>();
            let range = bindings::range {
                start: (*nsio).res.start,
                end: (*nsio).res.end,
            };
            bindings::nvdimm_badblocks_populate(
                bindings::to_nd_region((*self.dev.as_raw()).parent),
                &raw mut (*nsio).bb,
                &range,
            );
        }
    }
}

/// Detaches a namespace from the btt driver when it is dropped.
///
/// devres owns it, so a driver cannot forget it: the btt disk uses memory that is freed when the
/// device is unbound.
struct DetachBtt(ARef<device::Device>);

impl Drop for DetachBtt {
    fn drop(&mut self) {
        let dev: *const device::Device = &*self.0;

        // SAFETY: `attach_btt` has made this for a btt device that was attached.
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        unsafe {
            bindings::nvdimm_namespace_detach_btt(bindings::to_nd_btt(dev.cast_mut().cast()))
        };
    }
}
