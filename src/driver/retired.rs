// SPDX-License-Identifier: GPL-2.0

//! What all devices share: the work queues on which they are taken away and flushed, and the list
//! of those that are bound, or were retired because something still uses them.

use super::unbind::Unbind;
use crate::abstractions::{
    kernel::percpu_ref::{
        Counted,
        Ref, //
    },
    kernel_ext::{
        debugfs,
        module::Global,
        workqueue::OwnedQueue, //
    }, //
};
use core::ops::Range;
use kernel::{
    fmt,
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

/// Installed from before the first device is bound until after the last one is unbound. Probe takes
/// it from here, and gives it to the objects that it makes.
pub static SHARED: Global<Shared> = Global::new();

/// What all devices share.
///
/// The queues have rescuers, so their work is done even when there is no memory for another thread.
/// There are several because work on one of them may wait for work on another. Only `files` has no
/// rescuer: putting a reference may unmount a file system, which flushes work of queues that have
/// none, and the kernel warns if a queue with a rescuer does that. Unbind waits for a put only if
/// very many files are in use.
#[pin_data]
pub struct Shared {
    /// Where devices are taken away.
    pub teardowns: OwnedQueue,
    /// Where DAX devices are killed.
    pub kills: OwnedQueue,
    /// Where references to files are put.
    pub files: Counted<OwnedQueue>,
    /// Where devices are flushed for requests that do not wait for it.
    pub flushes: OwnedQueue,
    /// Innermost. It is held from one device to the next, and not while a device is described.
    #[pin]
    devices: Mutex<Devices>,
}

struct Devices {
    /// By number, which is the order in which they were bound.
    tree: RBTree<u64, Arc<Unbind>>,
    /// The number that the next device gets.
    next: u64,
}

/// Room for a device in the list.
pub struct Place(RBTreeNodeReservation<u64, Arc<Unbind>>);

impl Shared {
    /// Makes the queues, and an empty list.
    pub fn new() -> Result<Counted<Self>> {
        let teardowns = OwnedQueue::for_io(c"pmem_rs")?;
        let kills = OwnedQueue::for_io(c"pmem_rs_kill")?;
        let files = Counted::new(OwnedQueue::new(c"pmem_rs_files")?)?;
        let flushes = OwnedQueue::for_io(c"pmem_rs_flush")?;

        Counted::pin_init(try_pin_init!(Self {
            teardowns,
            kills,
            files,
            flushes,
            devices <- new_mutex!(
                Devices {
                    tree: RBTree::new(),
                    next: 0,
                },
                "pmem_rs::devices"
            ),
        }))
    }

    /// Makes room for a device in the list, so that adding it cannot fail. May sleep.
    pub fn place() -> Result<Place> {
        Ok(Place(RBTreeNodeReservation::new(GFP_KERNEL)?))
    }

    /// Adds a device to the list. May sleep.
    pub fn add(&self, place: Place, unbind: Arc<Unbind>) {
        let mut devices = self.devices.lock();
        let number = devices.next;

        devices.next = number.wrapping_add(1);
        devices.tree.insert(place.0.into_node(number, unbind));
    }

    /// Takes a device off the list. May sleep.
    pub fn remove(&self, unbind: &Arc<Unbind>) {
        let tree = &mut self.devices.lock().tree;
        let number = tree
            .iter()
            .find_map(|(number, device)| Arc::ptr_eq(device, unbind).then_some(*number));

        if let Some(number) = number {
            tree.remove(&number);
        }
    }

    /// Finds a retired range that overlaps a physical one.
    pub fn find_retired(&self, phys: &Range<PhysAddr>) -> Option<Arc<Unbind>> {
        let overlaps = |unbind: &Arc<Unbind>| {
            let other = unbind.phys();
            other.start < phys.end && phys.start < other.end && unbind.is_retired()
        };

        self.each().find(overlaps)
    }

    /// Returns the devices, in the order in which they were bound. The list is locked only from one
    /// to the next.
    fn each(&self) -> impl Iterator<Item = Arc<Unbind>> + '_ {
        let mut from = 0;

        core::iter::from_fn(move || {
            let devices = self.devices.lock();
            let cursor = devices.tree.cursor_lower_bound(&from)?;
            let (number, unbind) = cursor.current();

            from = number.saturating_add(1);
            Some(unbind.clone())
        })
    }
}

/// The file with the devices that are bound, a line for each: how much was exposed, and what uses
/// it.
pub struct BoundList;

impl debugfs::Contents for BoundList {
    type Data = Ref<Shared>;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Ref<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for unbind in shared.each().filter(|unbind| unbind.is_bound()) {
            f.write_fmt(fmt!("{}\n", unbind.describe()))?;
        }
        Ok(())
    }
}

/// The file with the ranges that are retired, a line for each: what uses it.
pub struct RetiredList;

impl debugfs::Contents for RetiredList {
    type Data = Ref<Shared>;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Ref<Shared>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for unbind in shared.each().filter(|unbind| unbind.is_retired()) {
            f.write_fmt(fmt!("{}\n", unbind.describe()))?;
        }
        Ok(())
    }
}
