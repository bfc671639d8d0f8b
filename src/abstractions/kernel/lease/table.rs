// SPDX-License-Identifier: GPL-2.0

//! The pgmaps that can be leased, and the queue of the callbacks.

use super::leases::{
    LeasedMemory,
    Leases, //
};
use crate::abstractions::kernel::percpu_ref::Counted;
use crate::abstractions::kernel_ext::{
    module::{
        Global,
        Installed, //
    },
    workqueue::OwnedQueue, //
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// Installed while the module is loaded.
pub(super) static TABLE: Global<Table> = Global::new();

/// The pgmaps that can be leased, and what all leases share.
#[pin_data]
pub struct Table {
    #[pin]
    lists: Mutex<KVec<Arc<Leases>>>,
    /// The addresses of the leases that are held, to check what C code gives back.
    #[pin]
    held: Mutex<KVec<usize>>,
    /// Callbacks may do what flushes other queues, so it has no rescuer.
    pub(super) queue: OwnedQueue,
}

/// A memory, its leases, and an offset in it.
pub(super) type Found = (Arc<Leases>, Arc<dyn LeasedMemory>, usize);

impl Table {
    /// Makes the table. Without it, memory cannot be leased. May sleep.
    pub fn install() -> Result<Installed<Self>> {
        let queue = OwnedQueue::new(c"pmem_rs_lease")?;

        TABLE.install(Counted::pin_init(try_pin_init!(Self {
            lists <- new_mutex!(KVec::new(), "pmem_rs::Table::lists"),
            held <- new_mutex!(KVec::new(), "pmem_rs::Table::held"),
            queue,
        }))?)
    }

    pub(super) fn add(&self, leases: Arc<Leases>) -> Result {
        Ok(self.lists.lock().push(leases, GFP_KERNEL)?)
    }

    pub(super) fn remove(&self, leases: &Leases) {
        let mut lists = self.lists.lock();
        let is_it = |other: &Arc<Leases>| core::ptr::eq(Arc::as_ptr(other), leases);

        if let Some(index) = lists.iter().position(is_it) {
            // The caller has a reference too, so nothing is dropped under the lock.
            let _ = lists.remove(index);
        }
    }

    /// Returns the memory that has a kernel address.
    pub(super) fn find(&self, addr: usize) -> Option<Found> {
        self.lists.lock().iter().find_map(|leases| {
            let (memory, offset) = leases.find(addr)?;
            Some((leases.clone(), memory, offset))
        })
    }

    /// Takes note that the lease at this address is held.
    pub(super) fn set_held(&self, addr: usize) -> Result {
        Ok(self.held.lock().push(addr, GFP_KERNEL)?)
    }

    /// Takes note that the lease at this address is no longer held. Returns false if it was not.
    pub(super) fn set_given_back(&self, addr: usize) -> bool {
        let mut held = self.held.lock();
        let index = held.iter().position(|other| *other == addr);

        index.is_some_and(|index| held.remove(index).is_ok())
    }
}
