// SPDX-License-Identifier: GPL-2.0

//! What all devices share: the work queues on which they are taken away and flushed, and the list of what was
//! retired because somebody still uses it.

use super::unbind::Unbind;
use crate::abstractions::{
    list::Stack,
    module::Global,
    workqueue::OwnedQueue, //
};
use core::ops::Range;
use kernel::{
    fmt,
    io::PhysAddr,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// There from before the first device is bound until after the last one is unbound.
pub static SHARED: Global<Shared> = Global::new();

/// What all devices share.
#[pin_data]
pub struct Shared {
    /// Where devices are taken away. Only who is not running on it may hold the last reference to this.
    pub queue: OwnedQueue,
    /// Where devices are flushed for those who do not wait for it.
    pub flushes: OwnedQueue,
    /// What unbind could not wait for.
    #[pin]
    retired: Mutex<Stack<Arc<Unbind>>>,
}

impl Shared {
    /// Makes the queue, and an empty list.
    pub fn new() -> Result<Arc<Self>> {
        let queue = OwnedQueue::new(c"pmem_rs")?;
        let flushes = OwnedQueue::for_io(c"pmem_rs_flush")?;

        Arc::pin_init(
            try_pin_init!(Self {
                queue,
                flushes,
                retired <- new_mutex!(Stack::new(), "pmem_rs::retired"),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a range to the list. May sleep.
    pub fn add(&self, range: Arc<Unbind>) -> Result {
        self.retired.lock().push(range)
    }

    /// Takes a range off the list, of which the caller has a reference too. May sleep.
    pub fn remove(&self, range: &Unbind) {
        self.retired
            .lock()
            .remove(|other| core::ptr::eq::<Unbind>(&**other, range));
    }

    /// Finds a retired range that overlaps a physical one.
    pub fn find(&self, phys: &Range<PhysAddr>) -> Option<Arc<Unbind>> {
        self.retired
            .lock()
            .iter()
            .find(|retired| {
                let other = retired.phys();
                other.start < phys.end && phys.start < other.end
            })
            .cloned()
    }

    /// Writes the list, a line for each range.
    pub fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Copied first: what the ranges have to say takes locks and time.
        let mut ranges = Stack::new();
        for range in self.retired.lock().iter() {
            if ranges.push(range.clone()).is_err() {
                return f.write_str("not enough memory to show all\n");
            }
        }

        for range in ranges.iter() {
            f.write_fmt(fmt!("{}\n", range.describe()))?;
        }
        Ok(())
    }
}
