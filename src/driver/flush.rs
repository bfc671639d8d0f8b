// SPDX-License-Identifier: GPL-2.0

//! Flushes of the region of a device, which make writes durable.
//!
//! Most regions are flushed by the submitting thread. A flush of a virtio region takes as long as
//! the storage of the host needs. Threads that wait for one at the same time share flushes
//! ([`SharedFlush`]). The submitter of a flush request waits for one, that of a write does not. A
//! write with `REQ_PREFLUSH` waits on a work queue (`disk.rs`). One with `REQ_FUA` is added to a
//! list. Work on the same queue flushes, and then ends all bios of the list.
//!
//! While the system sleeps, a virtio region cannot be flushed. Threads of user space, and those of
//! the kernel that are freezable, are frozen by then. Flushes of the others wait until the region
//! is back.
//! The work queue is not freezable: if it was frozen first, a thread that waits for it could not be
//! frozen any more.
//!
//! Lock order: [`Flusher::shared_flush`] and the spinlock [`Flusher::waiting`] are innermost. The
//! region is flushed without either.

use super::{
    plain::shared_flush::{
        FlushStep, //
        Queue,
        SharedFlush,
    },
    shared::Shared, //
};
use crate::abstractions::kernel::{
    block::bio::{
        Bio,
        BioList, //
    },
    percpu_ref::Ref,
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::{
    sync::atomic::read_once,
    time::Stopwatch,
    tracepoint,
    workqueue::OwnedQueue, //
};
use crate::abstractions::nvdimm::{
    Namespace,
    RegionAccess, //
};
use kernel::{
    impl_has_work,
    new_condvar,
    new_mutex,
    new_spinlock,
    new_work,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        Mutex,
        SpinLock, //
    },
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// How long the sleep of the system waits for a flush in progress, in milliseconds.
const PAUSE_TIMEOUT: Msecs = 10_000;

/// The flushes of a device.
///
/// All methods may be called by several threads at once, and after the device was unbound.
/// `tests/host/tests/atomics` has a model of the shared data.
#[pin_data]
pub struct Flusher {
    shared: Ref<Shared>,
    /// The name of the device, for tracepoints.
    name: CString,
    region: Arc<RegionAccess>,
    /// A flush waits for a host.
    is_asynchronous: bool,
    #[pin]
    shared_flush: Mutex<SharedFlush<Error>>,
    /// Threads that wait for a shared flush with an even number, and with an odd one.
    #[pin]
    even: CondVar,
    #[pin]
    odd: CondVar,
    /// Woken at the end of a flush while flushes are paused, and when they are permitted for good.
    #[pin]
    idle: WaitQueue,
    /// Bios whose data was written, and which end after the next flush.
    #[pin]
    waiting: SpinLock<BioList>,
    /// The last flush has failed, and this was logged.
    flush_failed: Atomic<bool>,
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
    /// Creates a flusher for the region of a namespace. May sleep.
    pub fn new(shared: Ref<Shared>, namespace: &Namespace<'_>) -> Result<Arc<Self>> {
        let region = RegionAccess::new(namespace)?;
        let is_barrier = region.flush_barrier().is_some();
        let is_asynchronous = !is_barrier && !namespace.device().region().is_synchronous();
        let name = CString::try_from_fmt(fmt!("{}", namespace.device().name()))?;

        Arc::pin_init(
            try_pin_init!(Self {
                shared,
                name,
                region,
                is_asynchronous,
                shared_flush <- new_mutex!(SharedFlush::new(), "pmem_rs::Flusher::shared_flush"),
                even <- new_condvar!("pmem_rs::Flusher::even"),
                odd <- new_condvar!("pmem_rs::Flusher::odd"),
                idle <- WaitQueue::new(),
                waiting <- new_spinlock!(BioList::new(), "pmem_rs::Flusher::waiting"),
                flush_failed: Atomic::new(false),
                work <- new_work!("pmem_rs::Flusher::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the name of the device, for tracepoints.
    pub fn name(&self) -> &CStr {
        &self.name
    }

    /// Returns the region.
    pub fn region(&self) -> &RegionAccess {
        &self.region
    }

    /// Returns whether a flush waits for a host.
    pub fn is_asynchronous(&self) -> bool {
        self.is_asynchronous
    }

    /// Returns the queue for work that flushes for requests.
    pub fn work_queue(&self) -> &OwnedQueue {
        &self.shared.queues.flush
    }

    /// Flushes the region, which makes all earlier writes durable. May sleep.
    ///
    /// Fails as [`RegionAccess::flush`]. Logs a failure unless the flush before it has failed too.
    #[inline]
    pub fn flush(&self) -> Result {
        if tracepoint::flush_is_on() {
            return self.flush_traced();
        }
        self.flush_untraced()
    }

    /// As [`Self::flush`]. Reports how long it took.
    #[cold]
    #[inline(never)]
    fn flush_traced(&self) -> Result {
        let began = Stopwatch::start();
        let result = self.flush_untraced();

        tracepoint::flush(&self.name, began.nanos(), result);
        result
    }

    #[inline]
    fn flush_untraced(&self) -> Result {
        if self.is_asynchronous {
            self.flush_shared()
        } else {
            self.flush_alone()
        }
    }

    /// Lets no flush of an asynchronous region start until [`Self::unpause`], and waits for one
    /// that is in progress. Sleeps. Does nothing for other regions.
    ///
    /// Fails with [`EBUSY`] if that flush takes too long, and after [`Self::permit_for_good`]. Then
    /// flushes can start as before.
    pub fn pause(&self) -> Result {
        if !self.is_asynchronous {
            return Ok(());
        }
        self.shared_flush.lock().pause();

        let idle = self.idle.wait_until(PAUSE_TIMEOUT, || {
            let shared = self.shared_flush.lock();
            (!shared.is_flushing() || !shared.is_paused()).then(|| shared.is_paused())
        });
        match idle {
            Some(true) => return Ok(()),
            Some(false) => self.region.err(fmt!(
                "the system stays awake, since the device is being unbound: try again\n"
            )),
            None => {
                self.unpause();
                self.region.err(fmt!(
                    "the system stays awake, since the host has not flushed within \
                     {PAUSE_TIMEOUT} ms: wait until its storage is less busy, and try again\n"
                ));
            }
        }
        Err(EBUSY)
    }

    /// Lets flushes start again. Callable without [`Self::pause`] before it.
    pub fn unpause(&self) {
        self.shared_flush.lock().unpause();
        self.even.notify_all();
        self.odd.notify_all();
    }

    /// Ends a [pause](Self::pause), and lets none begin any more.
    pub fn permit_for_good(&self) {
        self.shared_flush.lock().permit_for_good();
        self.even.notify_all();
        self.odd.notify_all();
        self.idle.wake_up();
    }

    /// Flushes the region, and logs a change of the result.
    #[inline]
    fn flush_alone(&self) -> Result {
        let result = self.region.flush();

        if result.is_err() || read_once(&self.flush_failed) {
            self.report(result);
        }
        result
    }

    /// Flushes the region, and then ends a bio. Does not wait for the flush of an asynchronous
    /// region.
    pub fn flush_and_end(self: &Arc<Self>, bio: Bio) {
        if !self.is_asynchronous {
            return bio.end(self.flush().into());
        }
        self.waiting.lock().push(bio);

        // Work that is queued already has not taken the list yet.
        let _ = self.shared.queues.flush.enqueue(self.clone());
    }

    /// Flushes the region, or waits for a flush of another thread that starts after this call.
    #[inline(never)]
    fn flush_shared(&self) -> Result {
        let mut shared = self.shared_flush.lock();
        let ticket = shared.arrive();

        loop {
            match shared.step(ticket) {
                FlushStep::Done(result) => return result,
                FlushStep::Wait(queue) => self.queue(queue).wait(&mut shared),
                FlushStep::Flush => {
                    drop(shared);
                    let result = self.flush_alone();
                    shared = self.shared_flush.lock();
                    let ended = shared.end(result);
                    let is_paused = shared.is_paused();
                    drop(shared);

                    // The next flush starts before the other threads need the CPU and the lock.
                    self.queue(ended.next()).notify_one();
                    self.queue(ended).notify_all();
                    if is_paused {
                        self.idle.wake_up();
                    }
                    shared = self.shared_flush.lock();
                }
            }
        }
    }

    fn queue(&self, queue: Queue) -> &CondVar {
        match queue {
            Queue::Even => &self.even,
            Queue::Odd => &self.odd,
        }
    }

    /// Flushes the region once, and ends all waiting bios.
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

    /// Logs a failure after a success, and a success after a failure.
    #[cold]
    fn report(&self, result: Result) {
        let Err(err) = result else {
            if self.flush_failed.xchg(false, Relaxed) {
                self.region.info(fmt!("flushes succeed again\n"));
            }
            return;
        };
        if self.flush_failed.load(Relaxed) || self.flush_failed.xchg(true, Relaxed) {
            return;
        }

        // Nothing is logged for an unbound device.
        self.region.err(fmt!(
            "flush failed (error {}): the latest writes may not survive a failure of power or of \
             the host. If the provider was unplugged in use, unmount first the next time. \
             Otherwise look for errors of the storage behind the device (for virtio-pmem, on the \
             host), and write again\n",
            err.to_errno()
        ));
    }
}
