// SPDX-License-Identifier: GPL-2.0

//! The data of the suspension of a disk. `suspension_ops.rs` has the functions that it calls, and
//! `state_file.rs` the file in sysfs.

use super::{
    pagemap_data::PagemapData,
    plain::suspension::{
        Phase,
        Suspension, //
    },
    pmem::Pmem, //
};
use crate::abstractions::kernel::{
    fs::{
        dax::Unmapper,
        freeze::Freezer, //
    },
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::time::now_ms;
use kernel::{
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex, //
    }, //
};

/// The parts of the device that the steps need. The references keep them.
pub struct StepParts {
    pub(super) freezer: Freezer,
    pub(super) pmem: Arc<Pmem>,
    /// [`None`] if the memory cannot be mapped.
    pub(super) unmapper: Option<Unmapper<PagemapData>>,
}

/// A step of a suspension that may wait for threads which wait for the end of the suspension.
#[derive(Clone, Copy)]
pub enum SuspensionStep {
    /// Unmaps all files, and waits for pins.
    Unmap,
    /// Waits for the writes that are being executed, and checks that there are no new users.
    Settle,
}

/// The step that another thread executes, so that the limit can end a suspension whose step hangs.
#[derive(Default)]
pub struct PendingStep {
    /// The number of the last step.
    pub(super) number: u64,
    /// The step, until the thread takes it.
    pub(super) wanted: Option<(SuspensionStep, Arc<StepParts>)>,
    /// The number and the result of the last step that has ended.
    pub(super) done: Option<(u64, Result)>,
}

/// The data of a suspension.
#[pin_data]
pub struct SuspensionState {
    #[pin]
    pub(super) machine: Mutex<Suspension<Error>>,
    #[pin]
    pub(super) step: Mutex<PendingStep>,
    /// Woken when `machine` or `step` has changed.
    #[pin]
    pub(super) changed: WaitQueue,
    /// When the last suspension has begun, in milliseconds of the monotonic clock.
    pub(super) began_at_ms: Atomic<u64>,
}

impl SuspensionState {
    /// Creates the data of a disk that is not suspended.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            machine <- new_mutex!(Suspension::default(), "pmem_rs::SuspensionState::machine"),
            step <- new_mutex!(PendingStep::default(), "pmem_rs::SuspensionState::step"),
            changed <- WaitQueue::new(),
            began_at_ms: Atomic::new(0),
        })
    }

    /// Returns whether the disk is suspended, or is being suspended or resumed.
    pub fn has_suspension(&self) -> bool {
        self.machine.lock().phase != Phase::Live
    }

    /// Returns the milliseconds since the last suspension has begun.
    pub fn age_ms(&self) -> u64 {
        now_ms().saturating_sub(self.began_at_ms.load(Relaxed))
    }
}
