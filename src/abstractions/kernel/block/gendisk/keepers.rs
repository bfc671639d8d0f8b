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

/// A keeper, for tests.
#[cfg(CONFIG_KUNIT = "y")]
pub(super) mod testing {
    use super::KEEPERS;
    use crate::abstractions::bindings;
    use core::ptr::NonNull;
    use kernel::prelude::*;

    /// The module of a keeper, which is loaded, and in use until this is dropped.
    ///
    /// # Invariants
    ///
    /// `self` owns one reference to the module.
    pub(in crate::abstractions) struct UsedKeeper(NonNull<bindings::module>);

    impl UsedKeeper {
        /// Loads the module. It stays loaded.
        pub(in crate::abstractions) fn load() -> Result<Self> {
            let keeper = KEEPERS.first().ok_or(EINVAL)?;

            // SAFETY: The name is a string, as the format needs it.
            let status = unsafe {
                bindings::__request_module(true, c"%s".as_char_ptr(), keeper.module.as_char_ptr())
            };
            if status != 0 {
                return Err(ENODEV);
            }
            // INVARIANT: The reference was just taken.
            keeper.get().map(Self).ok_or(ENODEV)
        }
    }

    impl Drop for UsedKeeper {
        fn drop(&mut self) {
            // SAFETY: By the type invariant `self` owns the reference.
            unsafe { bindings::module_put(self.0.as_ptr()) };
        }
    }
}
