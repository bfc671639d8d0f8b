// SPDX-License-Identifier: GPL-2.0

//! A list of the loaded modules.
//!
//! The kernel exports no function that finds a module. But each module has a kobject in sysfs, and
//! the kobject of this module leads to the set of all of them.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
use core::ptr::addr_of_mut;
use kernel::{
    container_of,
    prelude::*, //
};

/// Code that is part of the kernel image or a module.
pub(in crate::abstractions) struct Code {
    /// The code is part of the kernel image.
    pub(in crate::abstractions) built_in: bool,
    /// The name of the module in `/sys/module`.
    pub(in crate::abstractions) module: &'static CStr,
}

impl Code {
    /// Returns whether the code is part of the kernel image or loaded. Does not sleep.
    ///
    /// A module counts as loaded from before its init until after its exit.
    pub(in crate::abstractions) fn is_loaded(&self) -> bool {
        self.built_in || find(self.module, |_| true)
    }

    /// Returns whether the code is part of the kernel image, or loaded and in use: something has a
    /// reference to the module. Does not sleep.
    ///
    /// A module counts as in use during its init.
    pub(in crate::abstractions) fn is_in_use(&self) -> bool {
        self.built_in
            || find(self.module, |module| {
                // SAFETY: The module is in sysfs. It has not been freed, and its count is atomic.
                module.is_null() || unsafe { bindings::module_refcount(module) } > 0
            })
    }

    /// Takes a reference to the module, if it is loaded, as something does that uses it. Does not
    /// sleep.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(in crate::abstractions) fn get(&self) -> Option<core::ptr::NonNull<bindings::module>> {
        let mut found = None;

        find(self.module, |module| {
            // SAFETY: The module is in sysfs. It has not been freed, or is null, which is allowed.
            let got = unsafe { bindings::try_module_get(module) };
            found = core::ptr::NonNull::new(module).filter(|_| got);
            got
        });
        found
    }
}

/// Returns whether sysfs has a module of this name for which `f` returns true. `f` is called under
/// a spin lock, with the module, or null for one that is part of the kernel image. Does not sleep.
fn find(name: &CStr, f: impl FnOnce(*mut bindings::module) -> bool) -> bool {
    let this = this_module::<crate::LocalModule>();
    // SAFETY: This module is in sysfs while its code runs. The set of all modules always exists.
    let set = unsafe { (*this.as_ptr()).mkobj.kobj.kset };
    if set.is_null() {
        // The safe error: a wrong `true` costs time, a wrong `false` is unsound.
        return true;
    }

    let mut found = None;
    // SAFETY: The lock protects the list and the names of its members. Each is the kobject of a
    // module, and leaves the list before the module is freed.
    unsafe {
        bindings::spin_lock(addr_of_mut!((*set).list_lock));
        let head = addr_of_mut!((*set).list);
        let mut entry = (*head).next;
        while entry != head {
            let kobj = container_of!(entry, bindings::kobject, entry);
            if !(*kobj).name.is_null() && bindings::strcmp((*kobj).name, name.as_char_ptr()) == 0 {
                let module = container_of!(kobj, bindings::module_kobject, kobj);
                found = Some((*module).mod_);
                break;
            }
            entry = (*entry).next;
        }
        let result = found.is_some_and(f);
        bindings::spin_unlock(addr_of_mut!((*set).list_lock));
        result
    }
}

#[kunit_tests(pmem_rs_module_list)]
mod tests {
    use super::*;

    #[test]
    fn this_module_is_loaded_and_another_is_not() {
        let this = Code {
            built_in: false,
            module: c"pmem_rs",
        };
        assert!(this.is_loaded());
        // Loading the module runs this test, and has a reference meanwhile.
        assert!(this.is_in_use());
        for (built_in, there) in [(true, true), (false, false)] {
            let other = Code {
                built_in,
                module: c"no_such_module",
            };
            assert!(other.is_loaded() == there);
            assert!(other.is_in_use() == there);
        }
    }
}
