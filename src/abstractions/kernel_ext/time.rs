// SPDX-License-Identifier: GPL-2.0

//! Sleeping, and measuring time.
//!
//! Not `kernel::time::Instant`: the overflow check of its `elapsed()` leaves a panic symbol. Not
//! `kernel::time::delay::fsleep`: it sleeps as `TASK_UNINTERRUPTIBLE`, which counts as load.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::abstractions::bindings;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// A minute, in milliseconds.
pub const MINUTE: Msecs = 60_000;

/// Sleeps for about `time` milliseconds. Not interruptible, does not count as load.
pub fn sleep(time: Msecs) {
    // SAFETY: Callable from any context that may sleep. A context that may not is not undefined
    // behaviour, but a warning of the scheduler.
    unsafe { bindings::schedule_timeout_idle(msecs_to_jiffies(time) as c_long) };
}

/// Returns the time of the monotonic clock (`CLOCK_MONOTONIC` of programs) in milliseconds.
/// Callable from any context.
pub fn now_ms() -> u64 {
    // SAFETY: `ktime_get()` may be called from any context.
    unsafe { bindings::ktime_get() }.unsigned_abs() / 1_000_000
}

/// A point in time of the monotonic clock (`ktime_get()`).
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::time::{
///     sleep,
///     Stopwatch, //
/// };
///
/// let began = Stopwatch::start();
/// sleep(10);
/// assert!(began.micros() >= 5_000);
/// ```
#[derive(Clone, Copy)]
pub struct Stopwatch(bindings::ktime_t);

impl Stopwatch {
    /// Takes the current time. Callable from any context.
    pub fn start() -> Self {
        // SAFETY: `ktime_get()` may be called from any context.
        Self(unsafe { bindings::ktime_get() })
    }

    /// Returns the elapsed time in nanoseconds. Callable from any context.
    pub fn nanos(&self) -> u64 {
        // SAFETY: `ktime_get()` may be called from any context.
        unsafe { bindings::ktime_get() }
            .saturating_sub(self.0)
            .unsigned_abs()
    }

    /// Returns the elapsed time in microseconds. Callable from any context.
    pub fn micros(&self) -> u64 {
        self.nanos() / 1000
    }
}
