// SPDX-License-Identifier: GPL-2.0

//! Work queues of one's own.
//!
//! The kernel crate's `workqueue` has those of the system only. A module whose work may outlive
//! the devices that it was for needs one that it can wait for before its code goes.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::abstractions::{
    bindings,
    kernel_ext::module::Registered, //
};
use core::{
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    workqueue::Queue, //
};

/// A work queue whose items may run on any CPU, and may sleep for long.
///
/// Dropping it waits for all of its work.
///
/// # Examples
///
/// ```
/// use kernel::sync::atomic::{
///     Atomic,
///     Relaxed, //
/// };
/// use pmem_rs::abstractions::kernel_ext::workqueue::OwnedQueue;
///
/// static RUNS: Atomic<u32> = Atomic::new(0);
///
/// let queue = OwnedQueue::new(c"pmem_rs_example")?;
///
/// queue.try_spawn(GFP_KERNEL, || RUNS.store(1, Relaxed))?;
/// drop(queue);
/// assert_eq!(RUNS.load(Relaxed), 1);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `queue` is a valid work queue that is ours.
pub struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    _registered: Registered,
}

// SAFETY: A work queue may be used and destroyed by any thread.
unsafe impl Send for OwnedQueue {}

// SAFETY: Work may be queued by any thread, by several at once.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue. May sleep.
    pub fn new(name: &'static CStr) -> Result<Self> {
        Self::with(name, bindings::wq_flags_WQ_UNBOUND)
    }

    /// Makes a queue that gets on even when there is no memory for another thread, because memory is
    /// freed by writing to disks, and requests end on this queue. May sleep.
    pub fn for_io(name: &'static CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;

        Self::with(name, flags)
    }

    fn with(name: &'static CStr, flags: bindings::wq_flags) -> Result<Self> {
        let registered = Registered::new()?;
        // SAFETY: The format has one string, and that is what follows. 0 is the default for how
        // many items run at once.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(c"%s".as_char_ptr(), flags, 0, name.as_char_ptr())
        };

        // INVARIANT: Just made.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            _registered: registered,
        })
    }
}

impl Deref for OwnedQueue {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid for as long as `self` is.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the queue is ours.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}
