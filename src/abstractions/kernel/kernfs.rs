// SPDX-License-Identifier: GPL-2.0

//! Attributes in sysfs that user space may poll.
//!
//! C header: [`include/linux/kernfs.h`](srctree/include/linux/kernfs.h)

use crate::abstractions::bindings;
use core::ptr::NonNull;
use kernel::prelude::*;

/// A counted reference to the directory entry of a sysfs attribute.
///
/// It stays valid when the attribute is removed; notifying is without effect then.
///
/// # Examples
///
/// Waking those who wait for the attribute `badblocks` of a disk to change:
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::gendisk;
///
/// fn badblocks_changed<T: gendisk::Operations>(disk: &gendisk::Registration<T>) {
///     if let Some(attribute) = disk.attribute(c"badblocks") {
///         attribute.notify();
///     }
/// }
/// ```
///
/// # Invariants
///
/// `self.0` is a valid `struct kernfs_node`, and one of its references is ours. What
/// [`Dirent::of_device`] returns is a file, as `kernfs_notify` demands.
pub struct Dirent(NonNull<bindings::kernfs_node>);

// SAFETY: References to a `struct kernfs_node` may be put from any thread.
unsafe impl Send for Dirent {}

// SAFETY: `kernfs_notify` may be called from any thread, and by several at once.
unsafe impl Sync for Dirent {}

impl Dirent {
    /// Looks up the attribute `name` in the sysfs directory of a device. [`None`] if there is none,
    /// or if it is not a file.
    ///
    /// # Safety
    ///
    /// `dev` must be valid and have been added, and not be deleted concurrently.
    pub(in crate::abstractions) unsafe fn of_device(
        dev: *mut bindings::device,
        name: &CStr,
    ) -> Option<Self> {
        // SAFETY: An added device has a directory; `name` is a C string.
        let node = unsafe { bindings::sysfs_get_dirent((*dev).kobj.sd, name.as_char_ptr()) };

        // INVARIANT: `sysfs_get_dirent` took a reference, which is now ours.
        let dirent = Self(NonNull::new(node)?);

        // SAFETY: The node is valid; its type does not change.
        let flags = u32::from(unsafe { (*dirent.0.as_ptr()).flags });
        (flags & bindings::KERNFS_TYPE_MASK == bindings::kernfs_node_type_KERNFS_FILE)
            .then_some(dirent)
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

#[kunit_tests(pmem_rs_kernfs)]
mod tests {
    use super::*;
    use kernel::{
        device,
        faux, //
    };

    #[test]
    fn only_files_can_be_notified() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_kernfs", None)?;
        let dev: &device::Device<device::Bound> = faux.as_ref().as_ref();
        let find = |name| {
            // SAFETY: The device has been added, and is not deleted before the end of the test.
            // CAST: `device::Device` is a transparent wrapper of `struct device`.
            unsafe { Dirent::of_device(core::ptr::from_ref(dev).cast_mut().cast(), name) }
        };

        assert!(find(c"power").is_none());
        assert!(find(c"nonesuch").is_none());
        let uevent = find(c"uevent");
        assert!(uevent.is_some());

        // Still valid when the device is gone.
        drop(faux);
        if let Some(uevent) = uevent {
            uevent.notify();
        }
        Ok(())
    }
}
