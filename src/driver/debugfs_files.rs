// SPDX-License-Identifier: GPL-2.0

//! The files in debugfs, with a line for each device.

use super::{
    registry::RegisteredDevice,
    shared::Shared, //
};
use crate::abstractions::kernel::percpu_ref::Ref;
use crate::abstractions::kernel_ext::debugfs::Contents;
use kernel::{
    fmt,
    prelude::*, //
};

/// The file `devices`: bound devices, how much of each was exposed, and the pages in use; and those
/// that are being torn down, and what is waited for.
pub struct Devices;

impl Contents for Devices {
    type Data = Ref<Shared>;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Ref<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(shared, f, |device| device.is_bound_or_unbinding())
    }
}

/// The file `retired`: retired ranges, and the users of each.
pub struct RetiredRanges;

impl Contents for RetiredRanges {
    type Data = Ref<Shared>;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Ref<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(shared, f, |device| device.is_retired())
    }
}

fn list(
    shared: &Shared,
    f: &mut fmt::Formatter<'_>,
    is_listed: impl Fn(&dyn RegisteredDevice) -> bool,
) -> fmt::Result {
    for device in shared.devices.iter().filter(|device| is_listed(&**device)) {
        f.write_fmt(fmt!("{}\n", device.describe()))?;
    }
    Ok(())
}
