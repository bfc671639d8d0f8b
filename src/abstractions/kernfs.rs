// SPDX-License-Identifier: GPL-2.0

//! Attributes in sysfs that user space may poll.
//!
//! C header: [`include/linux/kernfs.h`](srctree/include/linux/kernfs.h)

use super::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// A counted reference to the directory entry of a sysfs attribute.
///
/// It stays valid when the attribute is removed; notifying is without effect then.
///
/// # Invariants
///
/// `self.0` is a valid `struct kernfs_node`, and one of its references is ours.
pub struct Dirent(NonNull<bindings::kernfs_node>);

// SAFETY: References to a `struct kernfs_node` may be put from any thread.
unsafe impl Send for Dirent {}

// SAFETY: `kernfs_notify` may be called from any thread, and by several at once.
unsafe impl Sync for Dirent {}

impl Dirent {
    /// Looks up the attribute `name` in the sysfs directory of a device.
    ///
    /// # Safety
    ///
    /// `dev` must be valid and have been added, and not be deleted concurrently.
    pub(super) unsafe fn of_device(dev: *mut bindings::device, name: &CStr) -> Option<Self> {
        // SAFETY: An added device has a directory; `name` is a C string.
        let node = unsafe { bindings::sysfs_get_dirent((*dev).kobj.sd, name.as_char_ptr()) };

        // INVARIANT: `sysfs_get_dirent` took a reference, which is now ours.
        NonNull::new(node).map(Self)
    }

    /// Wakes those who poll the attribute. Callable from any context.
    pub fn notify(&self) {
        // SAFETY: By the type invariant the node is valid.
        unsafe { bindings::kernfs_notify(self.0.as_ptr()) };
    }
}

impl Drop for Dirent {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours to put.
        unsafe { bindings::kernfs_put(self.0.as_ptr()) };
    }
}
