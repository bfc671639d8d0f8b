// SPDX-License-Identifier: GPL-2.0

//! What all devices share: the work queues on which they are taken away and flushed, the list of those
//! that are bound, and the list of what was retired because somebody still uses it.

use super::unbind::Unbind;
use crate::abstractions::{
    debugfs,
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
    /// What is bound.
    #[pin]
    bound: Mutex<Stack<Arc<Unbind>>>,
    /// What unbind could not wait for.
    #[pin]
    retired: Mutex<Stack<Arc<Unbind>>>,
}

impl Shared {
    /// Makes the queue, and empty lists.
    pub fn new() -> Result<Arc<Self>> {
        let queue = OwnedQueue::new(c"pmem_rs")?;
        let flushes = OwnedQueue::for_io(c"pmem_rs_flush")?;

        Arc::pin_init(
            try_pin_init!(Self {
                queue,
                flushes,
                bound <- new_mutex!(Stack::new(), "pmem_rs::bound"),
                retired <- new_mutex!(Stack::new(), "pmem_rs::retired"),
            }),
            GFP_KERNEL,
        )
    }

    /// Adds a device to those that are bound. May sleep.
    pub fn add_bound(&self, device: Arc<Unbind>) -> Result {
        self.bound.lock().push(device)
    }

    /// Takes a device off those that are bound. May sleep.
    pub fn remove_bound(&self, device: &Unbind) {
        remove(&self.bound, device);
    }

    /// Adds a range to those that are retired. May sleep.
    pub fn add_retired(&self, range: Arc<Unbind>) -> Result {
        self.retired.lock().push(range)
    }

    /// Takes a range off those that are retired. May sleep.
    pub fn remove_retired(&self, range: &Unbind) {
        remove(&self.retired, range);
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
}

/// A file with what is bound, a line for each device: how much of it was exposed, and who uses it.
pub struct BoundList;

impl debugfs::Contents for BoundList {
    type Data = Shared;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Shared, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&shared.bound, f)
    }
}

/// A file with what is retired, a line for each range: who uses it.
pub struct RetiredList;

impl debugfs::Contents for RetiredList {
    type Data = Shared;
    type OwnerModule = crate::LocalModule;

    fn show(shared: &Shared, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(&shared.retired, f)
    }
}

/// A file with the time after which a range is retired.
pub struct RevokeTimeout;

impl debugfs::Contents for RevokeTimeout {
    type Data = u32;
    type OwnerModule = crate::LocalModule;

    fn show(milliseconds: &u32, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!("{milliseconds}\n"))
    }
}

/// Takes an element off a list. The caller has a reference to it too.
fn remove(list: &Mutex<Stack<Arc<Unbind>>>, element: &Unbind) {
    list.lock()
        .remove(|other| core::ptr::eq::<Unbind>(&**other, element));
}

/// Writes a line for each element of a list.
fn show(list: &Mutex<Stack<Arc<Unbind>>>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Copied first: what the elements have to say takes locks and time.
    let mut elements = Stack::new();
    for element in list.lock().iter() {
        if elements.push(element.clone()).is_err() {
            return f.write_str("not enough memory to show all\n");
        }
    }

    for element in elements.iter() {
        f.write_fmt(fmt!("{}\n", element.describe()))?;
    }
    Ok(())
}
