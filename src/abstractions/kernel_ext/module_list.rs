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
    pub(in crate::abstractions) fn is_there(&self) -> bool {
        self.built_in || is_loaded(self.module)
    }
}

/// Returns whether sysfs has a module of this name. Does not sleep.
fn is_loaded(name: &CStr) -> bool {
    let module = this_module::<crate::LocalModule>();
    // SAFETY: This module is in sysfs while its code runs. The set of all modules always exists.
    let set = unsafe { (*module.as_ptr()).mkobj.kobj.kset };
    if set.is_null() {
        // The safe error: a wrong `true` costs time, a wrong `false` is unsound.
        return true;
    }

    let mut found = false;
    // SAFETY: The lock protects the list and the names of its members.
    unsafe {
        bindings::spin_lock(addr_of_mut!((*set).list_lock));
        let head = addr_of_mut!((*set).list);
        let mut entry = (*head).next;
        while entry != head {
            let kobj = container_of!(entry, bindings::kobject, entry);
            if !(*kobj).name.is_null() && bindings::strcmp((*kobj).name, name.as_char_ptr()) == 0 {
                found = true;
                break;
            }
            entry = (*entry).next;
        }
        bindings::spin_unlock(addr_of_mut!((*set).list_lock));
    }
    found
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
        assert!(this.is_there());
        for (built_in, there) in [(true, true), (false, false)] {
            let other = Code {
                built_in,
                module: c"no_such_module",
            };
            assert!(other.is_there() == there);
        }
    }
}
