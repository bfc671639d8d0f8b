// SPDX-License-Identifier: GPL-2.0

//! Sleeping, and measuring time.
//!
//! The kernel crate's `time` checks its arithmetic, and panics if it overflows.
//!
//! C headers: [`include/linux/delay.h`](srctree/include/linux/delay.h),
//! [`include/linux/timekeeping.h`](srctree/include/linux/timekeeping.h)

use crate::abstractions::bindings;
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    },
};

/// A minute, in milliseconds.
pub const MINUTE: Msecs = 60_000;

/// Sleeps, uninterruptibly, for about so many milliseconds. It does not count as load.
pub fn sleep(time: Msecs) {
    // SAFETY: May sleep here, as the caller says by calling this.
    unsafe { bindings::schedule_timeout_idle(msecs_to_jiffies(time) as c_long) };
}

/// A moment, from which time is measured.
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
    /// Takes the time.
    pub fn start() -> Self {
        // SAFETY: May be called from any context.
        Self(unsafe { bindings::ktime_get() })
    }

    /// Returns how many microseconds have passed.
    pub fn micros(&self) -> u64 {
        // SAFETY: As above. The clock is monotonic.
        let nanos = unsafe { bindings::ktime_get() }.saturating_sub(self.0);

        nanos.unsigned_abs() / 1000
    }
}
