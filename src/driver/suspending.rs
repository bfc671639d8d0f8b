// SPDX-License-Identifier: GPL-2.0

//! The data of the suspension of a disk. `suspension.rs` has its functions.

use super::plain::suspension::{
    Phase,
    Suspension, //
};
use crate::abstractions::kernel::wait::WaitQueue;
use crate::abstractions::kernel_ext::time::now_ms;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Mutex, //
    }, //
};

/// The data of a suspension.
#[pin_data]
pub struct Suspending {
    #[pin]
    pub(super) suspension: Mutex<Suspension<Error>>,
    /// Woken when `suspension` has changed.
    #[pin]
    pub(super) changed: WaitQueue,
    /// When the last suspension has begun, in milliseconds of the monotonic clock.
    pub(super) began: Atomic<u64>,
}

impl Suspending {
    /// Creates the data of a disk that is not suspended.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            suspension <- new_mutex!(Suspension::default(), "pmem_rs::Suspending::suspension"),
            changed <- WaitQueue::new(),
            began: Atomic::new(0),
        })
    }

    /// Returns whether the disk is suspended, or is being suspended or resumed.
    pub fn is_suspended(&self) -> bool {
        self.suspension.lock().phase != Phase::Live
    }

    /// Returns the time since the last suspension has begun, in milliseconds.
    pub fn age(&self) -> u64 {
        now_ms().saturating_sub(self.began.load(Relaxed))
    }
}
