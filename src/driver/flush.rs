// SPDX-License-Identifier: GPL-2.0

//! Making durable what was written.
//!
//! Most regions are flushed at once, by the thread that asks for it. A flush of a virtio region
//! takes as long as the host's storage does. A thread that asks for a flush alone waits for it
//! (`REQ_PREFLUSH`). Writes that are to be durable (`REQ_FUA`) do not keep their submitter: they
//! wait in a list for the end of the next flush, one for all that have come by then.

use super::retired::Shared;
use crate::abstractions::{
    kernel::{
        block::bio::{
            Bio,
            BioList, //
        },
        percpu_ref::Ref, //
    },
    nvdimm::{
        Namespace,
        RegionAccess, //
    }, //
};
use kernel::{
    impl_has_work, new_spinlock, new_work,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    },
    workqueue::{
        Work,
        WorkItem, //
    },
};

/// The flushes of a device.
///
/// Everything here may be used by several threads at once, and after the device was unbound. What
/// they share is modelled in `tests/host/tests/atomics`, which repeats it.
#[pin_data]
pub struct Flusher {
    shared: Ref<Shared>,
    region: Arc<RegionAccess>,
    is_asynchronous: bool,
    /// Requests that have written their data, and end after the next flush.
    #[pin]
    waiting: SpinLock<BioList>,
    /// Flushes fail, and the log says so.
    has_failed: Atomic<bool>,
    #[pin]
    work: Work<Flusher>,
}

impl_has_work! {
    impl HasWork<Self> for Flusher { self.work }
}

impl WorkItem for Flusher {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.flush_waiting();
    }
}

impl Flusher {
    /// Prepares for flushing the region that a namespace is in. May sleep.
    pub fn new(shared: Ref<Shared>, namespace: &Namespace<'_>) -> Result<Arc<Self>> {
        let region = RegionAccess::new(namespace)?;
        let is_asynchronous = !namespace.device().region().is_synchronous();

        Arc::pin_init(
            try_pin_init!(Self {
                shared,
                region,
                is_asynchronous,
                waiting <- new_spinlock!(BioList::new(), "pmem_rs::Flusher::waiting"),
                has_failed: Atomic::new(false),
                work <- new_work!("pmem_rs::Flusher::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the region.
    pub fn region(&self) -> &RegionAccess {
        &self.region
    }

    /// Makes all that was written so far durable. Sleeps, for virtio as long as the host takes.
    ///
    /// # Errors
    ///
    /// As [`RegionAccess::flush`]. The first failure is logged, and the next one after a success.
    #[inline]
    pub fn flush(&self) -> Result {
        let result = self.region.flush();

        if result.is_err() || self.has_failed.load(Relaxed) {
            self.report(result);
        }
        result
    }

    /// Makes all that was written so far durable, and then ends a request. Of an asynchronous
    /// region this does not wait for that.
    pub fn flush_and_end(self: &Arc<Self>, bio: Bio) {
        if !self.is_asynchronous {
            return bio.end(self.flush().into());
        }
        self.waiting.lock().push(bio);

        // If it is queued already, it has not yet looked at the list.
        let _ = self.shared.flushes.enqueue(self.clone());
    }

    /// Flushes for the requests that wait.
    fn flush_waiting(&self) {
        let mut waiting = core::mem::take(&mut *self.waiting.lock());
        if waiting.is_empty() {
            return;
        }

        let result = self.flush();
        while let Some(bio) = waiting.pop() {
            bio.end(result.into());
        }
    }

    /// Says in the log that flushes fail or succeed again, unless it does so already.
    #[cold]
    fn report(&self, result: Result) {
        let Err(err) = result else {
            if self.has_failed.xchg(false, Relaxed) {
                self.region.info(fmt!("flushes succeed again\n"));
            }
            return;
        };
        if self.has_failed.load(Relaxed) || self.has_failed.xchg(true, Relaxed) {
            return;
        }

        // If the device was unbound, nothing was flushed and nothing has failed.
        self.region.err(fmt!(
            "flush failed (error {}): the latest writes may not survive a failure of power or \
             host. After a provider was unplugged that is to be expected: unmount before. Else \
             look for errors of the storage behind it (for virtio-pmem, on the host), and write \
             again\n",
            err.to_errno()
        ));
    }
}
