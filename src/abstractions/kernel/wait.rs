// SPDX-License-Identifier: GPL-2.0

//! Wait queues.
//!
//! `sync::CondVar` of the kernel crate has no uninterruptible wait with a limit.
//!
//! C header: [`include/linux/wait.h`](srctree/include/linux/wait.h)

use crate::abstractions::bindings;
use core::pin::pin;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
    types::Opaque, //
};

/// A `wait_queue_head_t`.
///
/// # Examples
///
/// ```
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::kernel::wait::WaitQueue;
///
/// let queue = Arc::pin_init(WaitQueue::new(), GFP_KERNEL)?;
/// let mut checks = 0;
///
/// // The condition is checked once more when the time has passed.
/// let found = queue.wait_until(1, || {
///     checks += 1;
///     (checks == 2).then_some(7)
/// });
/// assert_eq!(found, Some(7));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` was initialised by `init_waitqueue_head` and stays where it is.
#[pin_data]
pub struct WaitQueue {
    #[pin]
    inner: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue may be used by any thread.
unsafe impl Send for WaitQueue {}

// SAFETY: A wait queue is protected by its own lock.
unsafe impl Sync for WaitQueue {}

impl WaitQueue {
    /// Creates a queue without waiters.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            // INVARIANT: Initialised here, and pinned from here on.
            inner <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head| {
                // SAFETY: `slot` is valid for writing; name and key are static.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"pmem_rs::WaitQueue".as_char_ptr(),
                        kernel::static_lock_class!().as_ptr(),
                    )
                };
            }),
        })
    }

    /// Wakes all waiters, which check their conditions again. Callable from any context.
    pub fn wake_up(&self) {
        // SAFETY: By the type invariant the queue is initialised. 0 stands for all waiters.
        unsafe {
            bindings::__wake_up(
                self.inner.get(),
                bindings::TASK_NORMAL,
                0,
                core::ptr::null_mut(),
            )
        };
    }

    /// Waits, uninterruptibly, until `condition` returns a value, for at most `limit` milliseconds.
    /// Checks the condition once more after that. Sleeps. `condition` may sleep too.
    ///
    /// A change of the condition before a call of [`Self::wake_up`] is seen.
    pub fn wait_until<R>(
        &self,
        limit: Msecs,
        mut condition: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        let entry = pin!(Opaque::new(bindings::wait_queue_entry {
            private: kernel::current!().as_ptr().cast(),
            func: Some(bindings::woken_wake_function),
            ..Default::default()
        }));
        let entry = entry.get();
        // The C function takes a signed number.
        let mut rest = msecs_to_jiffies(limit).min(c_long::MAX as c_ulong) as c_long;

        // SAFETY: By the type invariant the queue is initialised. The entry stays where it is until
        // it is removed below.
        unsafe { bindings::add_wait_queue(self.inner.get(), entry) };
        let found = loop {
            let found = condition();
            if found.is_some() || rest <= 0 {
                break found;
            }
            // SAFETY: The entry is in the queue, its task is the current one, and may sleep.
            rest = unsafe { bindings::wait_woken(entry, bindings::TASK_UNINTERRUPTIBLE, rest) };
        };
        // SAFETY: The entry was added above.
        unsafe { bindings::remove_wait_queue(self.inner.get(), entry) };
        found
    }
}

/// Returns whether the current thread was killed and should return to user space.
pub fn fatal_signal_pending() -> bool {
    let task = kernel::current!().as_ptr();

    // SAFETY: The current task is valid.
    unsafe { bindings::fatal_signal_pending(task) != 0 }
}

#[kunit_tests(pmem_rs_wait)]
mod tests {
    use super::*;
    use kernel::{
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Release, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
        workqueue, //
    };

    #[test]
    fn a_wait_ends_at_its_limit() -> Result {
        let queue = KBox::pin_init(WaitQueue::new(), GFP_KERNEL)?;
        let began = Instant::<Monotonic>::now();

        assert!(queue.wait_until(20, || None::<()>).is_none());
        assert!(began.elapsed().as_millis() >= 10);
        assert!(!fatal_signal_pending());
        Ok(())
    }

    #[pin_data]
    struct Shared {
        #[pin]
        queue: WaitQueue,
        flag: Atomic<bool>,
    }

    #[test]
    fn a_waiter_sees_changes_from_before_the_wake_up() -> Result {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                queue <- WaitQueue::new(),
                flag: Atomic::new(false),
            }),
            GFP_KERNEL,
        )?;
        let other = shared.clone();
        let began = Instant::<Monotonic>::now();

        workqueue::system().try_spawn(GFP_KERNEL, move || {
            fsleep(Delta::from_millis(30));
            other.flag.store(true, Release);
            other.queue.wake_up();
        })?;
        let found = shared
            .queue
            .wait_until(60_000, || shared.flag.load(Acquire).then_some(3));
        assert_eq!(found, Some(3));
        assert!(began.elapsed().as_millis() < 30_000);
        Ok(())
    }
}
