// SPDX-License-Identifier: GPL-2.0

//! References to inodes that are kept, or that a worker puts.
//!
//! Lock order: with `InodePool::slots` held, only the invalidate locks of kept files are taken, and
//! those are only tried. Nothing that sleeps is called with it held.

use super::inode::Inode;
use crate::abstractions::kernel::{
    percpu_ref::Ref,
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::workqueue::OwnedQueue;
use core::mem::{
    replace,
    swap, //
};
use kernel::{
    impl_has_work,
    new_mutex,
    new_work,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// The number of slots that are allocated in advance.
const NR_SLOTS: usize = 512;
/// The pause, in milliseconds, after which kept inodes are checked again while no slot is free.
const RETRY_INTERVAL: Msecs = 1000;
/// The number of these pauses between two messages.
const RETRIES_PER_MESSAGE: u32 = 30;

/// A pool of slots for references.
///
/// The last reference to an inode may evict it, and the last one to a superblock unmounts it. Both
/// may wait for a file system or for pins, so a worker puts them. The slots are allocated in
/// advance. If they do not suffice, more are allocated, or the caller waits for a free one.
#[pin_data]
pub(super) struct InodePool {
    /// For messages.
    name: CString,
    queue: Ref<OwnedQueue>,
    #[pin]
    slots: Mutex<Slots>,
    /// Woken when a slot has become free.
    #[pin]
    freed: WaitQueue,
    #[pin]
    work: Work<InodePool>,
}

/// The slots that have been used. There is memory for more: each unit of the capacity is a slot.
type Slots = KVVec<Slot>;

/// Returns the number of free slots.
fn nr_free(slots: &Slots) -> usize {
    let used = slots.iter().filter(|slot| !slot.is_free());

    // `count()` has a check for overflow, which can panic.
    used.fold(slots.capacity(), |nr, _| nr.saturating_sub(1))
}

/// Returns a free slot, if there is one.
fn free_slot(slots: &mut Slots) -> Option<&mut Slot> {
    if let Some(index) = slots.iter().position(Slot::is_free) {
        return slots.get_mut(index);
    }
    slots.push_within_capacity(Slot::Free).ok()?;
    slots.last_mut()
}

enum Slot {
    Free,
    /// A reference that is kept until [`InodePool::release`].
    Kept(Inode),
    /// A reference that the worker is to put.
    ToPut(Inode),
    /// The worker is putting the reference. There is at most one such slot.
    Putting,
}

impl Slot {
    fn is_free(&self) -> bool {
        matches!(self, Self::Free)
    }

    fn is_to_put(&self) -> bool {
        matches!(self, Self::ToPut(_))
    }
}

impl_has_work! {
    impl HasWork<Self> for InodePool { self.work }
}

impl WorkItem for InodePool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        while let Some(inode) = this.next_to_put() {
            drop(inode);

            for slot in this.slots.lock().iter_mut() {
                if matches!(slot, Slot::Putting) {
                    *slot = Slot::Free;
                }
            }
            this.freed.wake_up();
        }
    }
}

impl InodePool {
    /// Allocates the slots. May sleep.
    pub(super) fn new(name: CString, queue: Ref<OwnedQueue>) -> Result<Arc<Self>> {
        let slots = Slots::with_capacity(NR_SLOTS, GFP_KERNEL)?;

        Arc::pin_init(
            try_pin_init!(Self {
                name,
                queue,
                slots <- new_mutex!(slots, "pmem_rs::InodePool::slots"),
                freed <- WaitQueue::new(),
                work <- new_work!("pmem_rs::InodePool::work"),
            }),
            GFP_KERNEL,
        )
    }

    fn next_to_put(&self) -> Option<Inode> {
        let mut slots = self.slots.lock();
        let slot = slots.iter_mut().find(|slot| slot.is_to_put())?;

        match replace(slot, Slot::Putting) {
            Slot::ToPut(inode) => Some(inode),
            _ => None,
        }
    }

    /// Doubles the number of slots, if there is memory for them. Returns whether there is.
    ///
    /// This thread reclaims no memory for them. That could evict a file, and wait for its pins.
    fn grow(&self) -> bool {
        let count = self.slots.lock().capacity().saturating_mul(2);
        let Ok(mut larger) = Slots::with_capacity(count, GFP_NOWAIT | __GFP_NOWARN) else {
            return false;
        };

        let mut slots = self.slots.lock();
        if slots.capacity() < larger.capacity() {
            for slot in slots.iter_mut() {
                // Never fails: the larger one has more slots.
                let _ = larger.push_within_capacity(replace(slot, Slot::Free));
            }
            swap(&mut *slots, &mut larger);
        }
        true
    }

    /// Stores a reference in a slot, if more than `spare` slots are free. Otherwise puts kept
    /// inodes for which `may_put` returns true, allocates more slots if it can, and waits. Logs a
    /// wait of more than a second.
    fn store(
        self: &Arc<Self>,
        inode: Inode,
        spare: usize,
        may_put: &dyn Fn(&Inode) -> bool,
        new: fn(Inode) -> Slot,
    ) {
        let mut inode = Some(inode);
        let mut limit: Msecs = 0;
        let mut retries: u32 = 0;

        loop {
            let stored = self.freed.wait_until(limit, || {
                let mut slots = self.slots.lock();
                if nr_free(&slots) <= spare {
                    return None;
                }
                // A statement of its own: `*slot = …` would take the inode before it is known
                // whether a slot is free.
                let slot = free_slot(&mut slots)?;

                *slot = new(inode.take()?);
                Some(())
            });
            if stored.is_some() {
                return;
            }
            self.release(may_put);
            // The worker puts the references of a walk soon, unless a file system hangs.
            if (spare > 0 || limit != 0) && self.grow() {
                continue;
            }
            if limit == 0 {
                limit = RETRY_INTERVAL;
                continue;
            }
            if retries % RETRIES_PER_MESSAGE == 0 {
                pr_warn!(
                    "{}: waiting for pins: {} files have pages pinned, or cannot be closed. End \
                     the I/O and the pipes that use them\n",
                    *self.name,
                    self.slots.lock().capacity().saturating_sub(spare)
                );
            }
            retries = retries.wrapping_add(1);
        }
    }

    /// Keeps an inode until [`Self::release`]. If fewer than two slots are free, and there is no
    /// memory for more, sleeps until that changes. Meanwhile kept inodes for which `may_put`
    /// returns true are released.
    pub(super) fn keep(self: &Arc<Self>, inode: &Inode, may_put: &dyn Fn(&Inode) -> bool) {
        // One slot is for the references that a walk puts.
        self.store(inode.clone(), 1, may_put, Slot::Kept);
    }

    /// Calls `f` for each kept inode. Inodes that are kept or released meanwhile may be missed.
    /// Sleeps if no slot is free, as [`Self::keep`].
    pub(super) fn for_each_kept(
        self: &Arc<Self>,
        may_put: &dyn Fn(&Inode) -> bool,
        mut f: impl FnMut(&Inode),
    ) {
        let mut next: usize = 0;
        let next_kept = |next: &mut usize| {
            let slots = self.slots.lock();
            loop {
                let slot = slots.get(*next)?;
                *next = next.saturating_add(1);
                if let Slot::Kept(inode) = slot {
                    return Some(inode.clone());
                }
            }
        };

        while let Some(inode) = next_kept(&mut next) {
            f(&inode);
            self.put(inode, may_put);
        }
    }

    /// Puts a reference, the last one by the worker. Sleeps if no slot is free, as [`Self::keep`].
    pub(super) fn put(self: &Arc<Self>, inode: Inode, may_put: &dyn Fn(&Inode) -> bool) {
        let Some(rest) = inode.put_unless_last() else {
            return;
        };

        self.store(rest, 0, may_put, Slot::ToPut);
        self.start();
    }

    /// Puts a reference, the last one by the worker. Does not wait for the worker, which may be
    /// blocked by a file system that is frozen.
    pub(super) fn put_now(self: &Arc<Self>, inode: Inode) {
        let Some(rest) = inode.put_unless_last() else {
            return;
        };

        let mut rest = Some(rest);
        if let Some(slot) = free_slot(&mut self.slots.lock()) {
            if let Some(inode) = rest.take() {
                *slot = Slot::ToPut(inode);
            }
        }
        self.start();
        if let Some(inode) = rest {
            // Unreachable if one walk runs at a time, and checks `has_room` before each inode.
            self.store(inode, 0, &|_| true, Slot::ToPut);
        }
    }

    /// Returns whether an inode is kept.
    pub(super) fn has_kept(&self) -> bool {
        self.slots
            .lock()
            .iter()
            .any(|slot| matches!(slot, Slot::Kept(_)))
    }

    /// Returns whether there are slots for the two inodes that a walk may have to put.
    pub(super) fn has_room(&self) -> bool {
        nr_free(&self.slots.lock()) >= 2
    }

    fn start(self: &Arc<Self>) {
        // An error means that the work is queued already. It finds this slot.
        let _ = self.queue.enqueue(self.clone());
    }

    /// Puts the kept inodes for which `may_put` returns true, by the worker. Does not wait for it.
    pub(super) fn release(self: &Arc<Self>, may_put: impl Fn(&Inode) -> bool) {
        {
            let mut slots = self.slots.lock();
            for slot in slots.iter_mut() {
                *slot = match replace(slot, Slot::Free) {
                    Slot::Kept(inode) if may_put(&inode) => Slot::ToPut(inode),
                    other => other,
                };
            }
            if !slots.iter().any(Slot::is_to_put) {
                return;
            }
        }
        self.start();
    }

    /// Waits, for at most `limit` milliseconds, until the worker has put all references that are
    /// not kept. Sleeps.
    pub(super) fn wait_put(&self, limit: Msecs) {
        self.freed.wait_until(limit, || {
            let slots = self.slots.lock();
            let is_done = slots
                .iter()
                .all(|slot| matches!(slot, Slot::Free | Slot::Kept(_)));
            is_done.then_some(())
        });
    }
}
