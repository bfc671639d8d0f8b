// SPDX-License-Identifier: GPL-2.0

//! Work queues that a module owns.
//!
//! The kernel crate has only the queues of the system. A module whose work may outlive its devices
//! needs a queue that it can drain before its code is unloaded.
//!
//! C header: [`include/linux/workqueue.h`](srctree/include/linux/workqueue.h)

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::module::Registered;
use core::ptr::NonNull;
use kernel::{
    alloc::{
        AllocError,
        Flags, //
    },
    prelude::*,
    workqueue::{
        Queue,
        RawWorkItem, //
    }, //
};

/// A work queue whose items may run on any CPU (`WQ_UNBOUND`), and may sleep for long.
///
/// Dropping it waits for all of its work, and destroys it. So none of this work may do that: it
/// would wait for itself.
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
/// Work that a timer queues later is not waited for, so it is not accepted:
///
/// ```compile_fail,E0599
/// use kernel::sync::Arc;
/// use kernel::workqueue::{
///     DelayedWork,
///     HasDelayedWork,
///     WorkItem, //
/// };
/// use pmem_rs::abstractions::kernel_ext::workqueue::OwnedQueue;
///
/// fn later<T>(queue: &OwnedQueue, work: Arc<T>)
/// where
///     T: WorkItem<Pointer = Arc<T>> + HasDelayedWork<T> + Send + Sync + 'static,
/// {
///     let _ = queue.enqueue_delayed(work, 100);
/// }
/// ```
///
/// # Invariants
///
/// `queue` is a valid work queue that `self` owns.
pub struct OwnedQueue {
    queue: NonNull<bindings::workqueue_struct>,
    _registered: Registered,
}

// SAFETY: A work queue may be used and destroyed by any thread.
unsafe impl Send for OwnedQueue {}

// SAFETY: Several threads may queue work concurrently.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Allocates a queue. May sleep.
    pub fn new(name: &'static CStr) -> Result<Self> {
        Self::with(name, bindings::wq_flags_WQ_UNBOUND)
    }

    /// Allocates a queue with a rescuer (`WQ_MEM_RECLAIM`), which makes progress without memory for
    /// another thread. May sleep.
    ///
    /// For work that memory reclaim may wait for, such as the end of write requests.
    pub fn for_io(name: &'static CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_UNBOUND | bindings::wq_flags_WQ_MEM_RECLAIM;

        Self::with(name, flags)
    }

    fn with(name: &'static CStr, flags: bindings::wq_flags) -> Result<Self> {
        let registered = Registered::new()?;
        // SAFETY: The format takes one string, which follows. 0 is the default for the number of
        // items that run concurrently.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(c"%s".as_char_ptr(), flags, 0, name.as_char_ptr())
        };

        // INVARIANT: The queue was just allocated.
        Ok(Self {
            queue: NonNull::new(queue).ok_or(ENOMEM)?,
            _registered: registered,
        })
    }

    /// As [`Queue::enqueue`].
    pub fn enqueue<W, const ID: u64>(&self, work: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        self.as_queue().enqueue(work)
    }

    /// As [`Queue::try_spawn`].
    pub fn try_spawn<T: FnOnce() + Send + 'static>(
        &self,
        flags: Flags,
        f: T,
    ) -> Result<(), AllocError> {
        self.as_queue().try_spawn(flags, f)
    }

    /// Not public: a queue is destroyed without waiting for the timers of
    /// [`Queue::enqueue_delayed`].
    fn as_queue(&self) -> &Queue {
        // SAFETY: By the type invariant the queue is valid while `self` is.
        unsafe { Queue::from_raw(self.queue.as_ptr()) }
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type invariant `self` owns the queue.
        unsafe { bindings::destroy_workqueue(self.queue.as_ptr()) };
    }
}
