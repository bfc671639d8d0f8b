// SPDX-License-Identifier: GPL-2.0

//! References to sysfs attributes, for notifications.
//!
//! C header: [`include/linux/kernfs.h`](srctree/include/linux/kernfs.h)

use crate::abstractions::bindings;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The largest number of references at a time.
///
/// The count of a node is an `atomic_t` that wraps. A loop that forgets references could make it
/// zero otherwise.
const MAX_COUNT: usize = 1 << 16;

/// The number of references that are owned by a [`Dirent`], forgotten ones included.
static COUNT: Atomic<usize> = Atomic::new(0);

/// A counted reference to the `struct kernfs_node` of a sysfs attribute.
///
/// It stays valid after the attribute was removed. Notifications have no effect then.
///
/// # Examples
///
/// Wakes programs that poll an attribute, such as `badblocks` of a disk:
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::kernfs::Dirent;
///
/// fn badblocks_changed(attribute: Option<&Dirent>) {
///     if let Some(attribute) = attribute {
///         attribute.notify();
///     }
/// }
/// ```
///
/// # Invariants
///
/// `self.0` is a valid `struct kernfs_node`, to which `self` owns one reference. It is a file once
/// [`Dirent::of_device`] has returned it. `COUNT` counts `self` once.
pub struct Dirent(NonNull<bindings::kernfs_node>);

// SAFETY: References to a `struct kernfs_node` may be put by any thread.
unsafe impl Send for Dirent {}

// SAFETY: Several threads may call `kernfs_notify()` concurrently.
unsafe impl Sync for Dirent {}

impl Dirent {
    /// Looks up the attribute `name` in the sysfs directory of a device (`sysfs_get_dirent()`).
    ///
    /// Returns [`None`] if there is no such entry, if it is not a file, or if there are too many
    /// references.
    ///
    /// # Safety
    ///
    /// `dev` must be valid, must have been added, and must not be deleted during the call.
    pub(in crate::abstractions) unsafe fn of_device(
        dev: *mut bindings::device,
        name: &CStr,
    ) -> Option<Self> {
        if COUNT.fetch_add(1, Relaxed) >= MAX_COUNT {
            COUNT.fetch_sub(1, Relaxed);
            return None;
        }
        // SAFETY: By the safety requirements the device has a directory. `name` is a C string.
        let node = unsafe { bindings::sysfs_get_dirent((*dev).kobj.sd, name.as_char_ptr()) };

        let Some(node) = NonNull::new(node) else {
            COUNT.fetch_sub(1, Relaxed);
            return None;
        };
        // INVARIANT: `sysfs_get_dirent()` took a reference, which `dirent` owns. It was counted.
        let dirent = Self(node);

        // SAFETY: The node is valid, and its type does not change.
        let flags = u32::from(unsafe { (*dirent.0.as_ptr()).flags });
        (flags & bindings::KERNFS_TYPE_MASK == bindings::kernfs_node_type_KERNFS_FILE)
            .then_some(dirent)
    }

    /// Wakes programs that poll the attribute (`kernfs_notify()`). Callable from any context.
    pub fn notify(&self) {
        // SAFETY: By the type invariant the node is a valid file.
        unsafe { bindings::kernfs_notify(self.0.as_ptr()) };
    }
}

impl Drop for Dirent {
    fn drop(&mut self) {
        // SAFETY: By the type invariant `self` owns the reference.
        unsafe { bindings::kernfs_put(self.0.as_ptr()) };
        COUNT.fetch_sub(1, Relaxed);
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
    fn references_are_limited() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_kernfs", None)?;
        let dev: &device::Device<device::Bound> = faux.as_ref().as_ref();
        let find = |name| {
            // SAFETY: The device was added, and is not deleted while `find` is used.
            unsafe { Dirent::of_device(core::ptr::from_ref(dev).cast_mut().cast(), name) }
        };
        let before = COUNT.load(Relaxed);

        assert!(find(c"no such attribute").is_none());
        assert_eq!(COUNT.load(Relaxed), before);
        let mut found = KVVec::with_capacity(MAX_COUNT, GFP_KERNEL)?;
        while let Some(dirent) = find(c"uevent") {
            found.push(dirent, GFP_KERNEL)?;
        }
        assert_eq!(found.len(), MAX_COUNT - before);
        drop(found);
        assert_eq!(COUNT.load(Relaxed), before);
        assert!(find(c"uevent").is_some());
        Ok(())
    }

    #[test]
    fn only_files_can_be_notified() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_kernfs", None)?;
        let dev: &device::Device<device::Bound> = faux.as_ref().as_ref();
        let find = |name| {
            // SAFETY: The device was added, and is not deleted while `find` is used.
            // CAST: `device::Device` is a transparent wrapper of `struct device`.
            unsafe { Dirent::of_device(core::ptr::from_ref(dev).cast_mut().cast(), name) }
        };

        assert!(find(c"power").is_none());
        assert!(find(c"nonesuch").is_none());
        let uevent = find(c"uevent");
        assert!(uevent.is_some());

        // The reference outlives the device.
        drop(faux);
        if let Some(uevent) = uevent {
            uevent.notify();
        }
        Ok(())
    }
}
