// SPDX-License-Identifier: GPL-2.0

//! The code in this kernel that keeps an address or page frame number from `dax_direct_access()`
//! after `dax_read_unlock()`, and cannot be notified that the memory is removed.

use crate::abstractions::kernel_ext::module_list::Code;

/// The targets of device-mapper that keep addresses. device-mapper opens the devices of its targets
/// without holder operations. Before Linux 7.3 erofs opens its further devices without them too. It
/// keeps no addresses, so it is not in the list.
///
/// The list was vetted together with all callers (`rust-bindings/vetted`). An out-of-tree module
/// that does the same is not known here.
const KEEPERS: &[Code] = &[
    Code {
        built_in: cfg!(CONFIG_DM_WRITECACHE = "y"),
        module: c"dm_writecache",
    },
    Code {
        built_in: cfg!(CONFIG_DM_PCACHE = "y"),
        module: c"dm_pcache",
    },
];

/// Returns whether any keeper is part of the kernel image or loaded. Does not sleep.
pub(super) fn is_any_loaded() -> bool {
    KEEPERS.iter().any(Code::is_loaded)
}

/// Returns whether any keeper is part of the kernel image, or is loaded and in use. Such a keeper
/// may have an address of any memory. Does not sleep.
pub(super) fn is_any_in_use() -> bool {
    KEEPERS.iter().any(Code::is_in_use)
}
