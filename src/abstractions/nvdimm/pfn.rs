// SPDX-License-Identifier: GPL-2.0

//! The info block of a pfn device in memory.

use super::{
    device::{
        Device,
        Kind, //
    },
    infoblock::LEN, //
};
use crate::abstractions::bindings;
use kernel::{
    device::Bound,
    devres,
    prelude::*, //
};

/// Gives a pfn device a buffer for its info block. Does nothing for other devices.
///
/// `size` and `resource` in sysfs read the buffer of each bound device. But only
/// `nvdimm_setup_pfn()` makes one, and the one that `nd_pfn_probe()` has used was freed.
pub(super) fn make_info_block(dev: &Device<Bound>) -> Result {
    if dev.kind() != Kind::Pfn {
        return Ok(());
    }
    let mut buffer = KBox::new([0_u8; LEN], GFP_KERNEL)?;
    let pfn_sb = buffer.as_mut_ptr().cast::<bindings::nd_pfn_sb>();

    devres::register(dev.generic(), buffer, GFP_KERNEL)?;
    // SAFETY: The device is a pfn device that is being bound. The attributes are read with the
    // device lock held, and only while there is a driver. devres frees the buffer before the device
    // has none any more, with the lock held.
    unsafe { (*bindings::to_nd_pfn(dev.as_raw())).pfn_sb = pfn_sb };
    Ok(())
}
