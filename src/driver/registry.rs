// SPDX-License-Identifier: GPL-2.0

//! The registry of the devices with a disk of this driver, from bind until their range is free.
//!
//! Lock order: the mutex of the registry is innermost. It is taken for one device at a time, and is
//! not held while a method of a device is called.

use super::description::Description;
use core::ops::Range;
use kernel::{
    io::PhysAddr,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// A device in the registry.
pub trait RegisteredDevice: Send + Sync + 'static {
    /// Returns the name of the device.
    fn name(&self) -> &CStr;

    /// Returns whether the `struct page`s of the device are on its medium.
    fn memmap_is_on_medium(&self) -> bool;

    /// Returns the physical range of the namespace.
    fn namespace_range(&self) -> Range<PhysAddr>;

    /// Returns whether the device is bound, or is being torn down and has not been retired.
    fn is_bound_or_unbinding(&self) -> bool;

    /// Returns whether the range was retired, and is not free yet.
    fn is_retired(&self) -> bool;

    /// Returns whether the disk is suspended, or is being suspended or resumed.
    fn has_suspension(&self) -> bool;

    /// Wakes the threads that wait for the teardown, which look at their limits again.
    fn wake_up(&self);

    /// Returns the state of the device and the users of its range. Sleeps.
    fn describe(&self) -> Description<'_>;
}

/// The registry of the devices that are bound, torn down or retired.
#[pin_data]
pub struct Registry {
    #[pin]
    entries: Mutex<Entries>,
}

struct Entries {
    /// The key is the order in which the devices were bound.
    tree: RBTree<u64, Arc<dyn RegisteredDevice>>,
    next_key: u64,
}

/// Memory for an entry of the registry.
pub struct ReservedEntry(RBTreeNodeReservation<u64, Arc<dyn RegisteredDevice>>);

impl Registry {
    /// Creates an empty registry.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            entries <- new_mutex!(
                Entries {
                    tree: RBTree::new(),
                    next_key: 0,
                },
                "pmem_rs::Registry::entries"
            ),
        })
    }

    /// Allocates an entry, so that adding a device cannot fail. May sleep.
    pub fn reserve() -> Result<ReservedEntry> {
        Ok(ReservedEntry(RBTreeNodeReservation::new(GFP_KERNEL)?))
    }

    /// Adds a device. May sleep.
    pub fn add(&self, reserved: ReservedEntry, device: Arc<dyn RegisteredDevice>) {
        let mut entries = self.entries.lock();
        let key = entries.next_key;

        entries.next_key = key.wrapping_add(1);
        entries.tree.insert(reserved.0.into_node(key, device));
    }

    /// Removes a device. May sleep.
    pub fn remove<D: RegisteredDevice>(&self, device: &Arc<D>) {
        let tree = &mut self.entries.lock().tree;
        let key = tree.iter().find_map(|(key, other)| {
            core::ptr::addr_eq(Arc::as_ptr(other), Arc::as_ptr(device)).then_some(*key)
        });

        if let Some(key) = key {
            tree.remove(&key);
        }
    }

    /// Returns a retired device whose range overlaps `range`.
    pub fn find_retired(&self, range: &Range<PhysAddr>) -> Option<Arc<dyn RegisteredDevice>> {
        self.iter().find(|device| {
            let other = device.namespace_range();
            other.start < range.end && range.start < other.end && device.is_retired()
        })
    }

    /// Returns the devices in the order in which they were bound.
    ///
    /// A device that is added or removed meanwhile may be missing.
    pub fn iter(&self) -> impl Iterator<Item = Arc<dyn RegisteredDevice>> + '_ {
        let mut from = 0;

        core::iter::from_fn(move || {
            let entries = self.entries.lock();
            let cursor = entries.tree.cursor_lower_bound(&from)?;
            let (key, device) = cursor.current();

            from = key.saturating_add(1);
            Some(device.clone())
        })
    }
}
