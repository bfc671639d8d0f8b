// SPDX-License-Identifier: GPL-2.0

//! What identifies a device on the nd bus to users.

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::device::name_of;
use kernel::{
    container_of,
    io::PhysAddr,
    prelude::*, //
};

/// What identifies a device on the nd bus to users, whatever its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// The uuid in the label of a namespace, or that of a pfn or btt device, which is also in its
    /// info block unless the device is new.
    pub uuid: Option<[u8; 16]>,
    /// The physical address at which a namespace starts.
    pub start: Option<PhysAddr>,
}

impl DeviceIdentity {
    /// # Safety
    ///
    /// `dev` must be a valid device on the nd bus, and its lock must be held.
    unsafe fn of(dev: *mut bindings::device) -> Self {
        let mut start = None;
        // The lock of the device protects these. A seed may have neither.
        //
        // SAFETY: By the safety requirements. All types of namespaces start with the part that has
        // the physical range. A uuid that is set stays while the lock is held.
        let uuid = unsafe {
            let uuid = if bindings::is_nd_pfn(dev) {
                (*bindings::to_nd_pfn(dev)).uuid.cast_const()
            } else if bindings::is_nd_btt(dev) {
                (*bindings::to_nd_btt(dev)).uuid.cast_const()
            } else if is_namespace(dev) {
                let io = container_of!(dev, bindings::nd_namespace_io, common.dev);
                let resource = (*io).res;
                start = (resource.start <= resource.end).then_some(resource.start);
                bindings::nd_dev_to_uuid(dev)
            } else {
                core::ptr::null()
            };
            if uuid.is_null() {
                None
            } else {
                // A namespace without a label has one that is all zeroes.
                Some((*uuid).b).filter(|uuid| *uuid != [0; 16])
            }
        };

        Self { uuid, start }
    }
}

/// Returns whether a device is a namespace of any type.
///
/// # Safety
///
/// `dev` must be a valid device on the nd bus.
unsafe fn is_namespace(dev: *mut bindings::device) -> bool {
    // SAFETY: By the safety requirements. The device was added, so it has a name.
    unsafe { name_of(dev) }
        .to_bytes_with_nul()
        .starts_with(b"namespace")
}

/// Calls `f` for each namespace, pfn and btt device on the bus. Sleeps. Takes the lock of each of
/// these devices for a moment; a thread that holds one of them would wait for itself.
///
/// # Safety
///
/// `bus` must be the nd bus, and stay registered during the call.
pub(super) unsafe fn for_each(bus: *const bindings::bus_type, mut f: fn(DeviceIdentity)) {
    /// # Safety
    ///
    /// Called by `bus_for_each_dev()` only, with a valid device on the nd bus. `f` must point to
    /// the function.
    unsafe extern "C" fn visit(dev: *mut bindings::device, f: *mut c_void) -> c_int {
        // SAFETY: By the safety requirements the pointers are valid. The lock is held for the call
        // of `of`.
        let (identity, f) = unsafe {
            if !bindings::is_nd_pfn(dev) && !bindings::is_nd_btt(dev) && !is_namespace(dev) {
                return 0;
            }
            bindings::device_lock(dev);
            let identity = DeviceIdentity::of(dev);
            bindings::device_unlock(dev);
            (identity, *f.cast::<fn(DeviceIdentity)>())
        };

        f(identity);
        0
    }

    // SAFETY: By the safety requirements. The callback expects the data, which outlives the call.
    unsafe {
        bindings::bus_for_each_dev(bus, core::ptr::null_mut(), (&raw mut f).cast(), Some(visit))
    };
}
