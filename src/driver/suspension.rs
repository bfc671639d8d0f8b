// SPDX-License-Identifier: GPL-2.0

//! The suspension of a disk: what is on its medium does not change until it is resumed.
//!
//! `docs/suspend.md` describes it. [`suspension`] is the state machine, and this file has the
//! functions that it calls, and the file in sysfs.
//!
//! Nothing may sleep in a translation of the DAX core. So writers are stopped one after the other,
//! each where it can wait:
//!
//! 1. All file systems on the disk are frozen. A store to a mapping that needs a write fault waits
//!    in the file system, before any lock of the DAX core.
//! 2. All pages are unmapped, so that each store needs such a fault.
//! 3. Write requests are held, in a list.
//!
//! The contents are those of the moment at which the list begins: what was stopped before has not
//! changed anything since.
//!
//! Lock order: `Suspending::suspension` and the lock of the held writes are innermost. The worker
//! holds no lock while it calls anything else. Device locks are not taken.

use super::{
    failure_handler::FailureHandler,
    plain::{
        suspension::{
            self,
            Cause,
            Environment,
            Failure,
            Phase,
            Suspension, //
        },
        teardown::State, //
    },
    pmem::Pmem,
    sleep::is_system_sleeping,
    unbind::{
        Parts,
        Unbind, //
    }, //
};
use crate::abstractions::compat::error::code::ECANCELED;
use crate::abstractions::kernel::{
    fs::{
        dax::{
            Obstacle,
            Unmapper, //
        },
        freeze::{
            self,
            Broken,
            Freezer, //
        }, //
    },
    wait::fatal_signal_pending, //
};
use crate::abstractions::kernel_ext::{
    module_param::SUSPEND_LIMIT_MS,
    time::{
        now_ms,
        sleep,
        Stopwatch, //
    },
    tracepoint, //
};
use crate::abstractions::nvdimm;
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc, //
    },
    time::Msecs,
    workqueue::WorkItem, //
};

/// How often threads poll the limit and signals.
const POLL_INTERVAL: Msecs = 100;
/// How long pages that are pinned are waited for: as long as direct I/O may take.
const PIN_TIMEOUT: Msecs = 1000;
/// The pause between two looks at a pinned page.
const PIN_INTERVAL: Msecs = 10;
/// The upper limit of `suspend_limit_ms`. After 120 s the kernel reports threads that hang.
const MAX_LIMIT: u32 = 100_000;
/// How long a teardown waits until the disk is resumed.
const RESUME_TIMEOUT: Msecs = 10_000;

/// Frozen file systems, and the parts of the device that the worker needs. The references keep
/// them.
pub struct FrozenDisk {
    frozen: freeze::Frozen,
    freezer: Freezer,
    pmem: Arc<Pmem>,
    /// [`None`] if the memory cannot be mapped.
    unmapper: Option<Unmapper<FailureHandler>>,
}

/// Writes that are held until this is dropped.
pub struct HeldWrites(Arc<Pmem>);

impl Drop for HeldWrites {
    fn drop(&mut self) {
        self.0.release_writes();
    }
}

impl Environment for Arc<Unbind> {
    type Frozen = FrozenDisk;
    type Held = HeldWrites;
    type Failure = Error;

    fn with<R>(&self, f: impl FnOnce(&mut Suspension<Error>) -> R) -> R {
        f(&mut self.suspending.suspension.lock())
    }

    fn wake_up(&self) {
        self.suspending.changed.wake_up();
    }

    fn wait_until<R>(&self, mut condition: impl FnMut(&mut Suspension<Error>) -> Option<R>) -> R {
        loop {
            let found = self
                .suspending
                .changed
                .wait_until(POLL_INTERVAL, || self.with(&mut condition));
            if let Some(found) = found {
                return found;
            }
        }
    }

    fn may_begin(&self) -> bool {
        !is_system_sleeping()
    }

    fn has_time(&self) -> bool {
        // The value may change meanwhile.
        self.suspending.age() < u64::from(SUSPEND_LIMIT_MS.get().min(MAX_LIMIT))
    }

    fn is_killed(&self) -> bool {
        fatal_signal_pending()
    }

    fn start_worker(&self) {
        self.suspending.began.store(now_ms(), Relaxed);
        let queued = self.shared.queues.suspend.enqueue::<_, 3>(self.clone());
        if queued.is_err() {
            // Unreachable, since one suspension begins after the other.
            pr_warn!("{}: a suspension was started twice\n", *self.name);
        }
    }

    fn announce(&self) {
        self.flusher
            .region()
            .notify_attribute(c"pmem_rs", nvdimm::STATE_FILE);
    }

    fn freeze(&self) -> Result<FrozenDisk> {
        let (freezer, pmem, unmapper) = self
            .with_parts(|Parts { disk, memory, .. }| {
                (
                    Freezer::new(disk),
                    Arc::from(disk.data()),
                    memory.unmapper(),
                )
            })
            .ok_or(ENODEV)?;

        let frozen = self
            .suspension_step(c"freeze", || freezer.freeze())
            .map_err(|err| {
                pr_warn!(
                    "{}: not suspended: {} cannot be frozen (error {})\n",
                    *self.name,
                    err.name(),
                    err.error().to_errno()
                );
                err.error()
            })?;
        if freezer.has_keeper() {
            pr_warn!(
                "{}: not suspended: a holder of the disk may keep an address of its memory \
                 (device-mapper with dm-writecache or dm-pcache)\n",
                *self.name
            );
            return Err(EBUSY);
        }
        Ok(FrozenDisk {
            frozen,
            freezer,
            pmem,
            unmapper,
        })
    }

    fn unmap(&self, frozen: &FrozenDisk) -> Result {
        let Some(unmapper) = &frozen.unmapper else {
            return Ok(());
        };

        self.suspension_step(c"unmap", || {
            unmapper.unmap_frozen_files().map_err(|obstacle| {
                match obstacle {
                    Obstacle::NotFrozen(file) => pr_warn!(
                        "{}: not suspended: {} has pages of the memory, and its file system is not \
                         frozen\n",
                        *self.name,
                        file
                    ),
                    Obstacle::TooManyFiles => pr_warn!(
                        "{}: not suspended: too many files are being closed: try again\n",
                        *self.name
                    ),
                }
                EBUSY
            })?;
            self.wait_for_pins(unmapper)
        })
    }

    fn hold(&self, frozen: &FrozenDisk) -> HeldWrites {
        self.suspension_step(c"hold", || {
            frozen.pmem.hold_writes();
            let held = HeldWrites(frozen.pmem.clone());
            frozen.freezer.drain();
            if self.flusher.is_asynchronous() {
                // Writes that have waited for a flush.
                self.shared.queues.flush.flush();
            }
            self.flush();
            held
        })
    }

    fn release(&self, held: HeldWrites) {
        self.suspension_step(c"release", || drop(held));
    }

    fn thaw(&self, frozen: FrozenDisk) -> bool {
        let mut stayed_frozen = true;

        self.suspension_step(c"thaw", || {
            frozen.frozen.thaw(|device, broken| match broken {
                Broken::Thawed => {
                    stayed_frozen = false;
                    pr_warn!(
                        "{}: another program has thawed {} while the disk was suspended: what was \
                         read meanwhile may not be of one moment\n",
                        *self.name,
                        device
                    );
                }
                Broken::Stays(err) => pr_err!(
                    "{}: {} stays frozen (error {}): try fsfreeze -u\n",
                    *self.name,
                    device,
                    err.to_errno()
                ),
            });
        });
        stayed_frozen
    }

    fn report(&self, cause: Cause, was_suspended: bool) {
        let age = self.suspending.age();

        match (cause, was_suspended) {
            (Cause::Limit, true) => pr_warn!(
                "{}: resumed by itself after {} ms, as suspend_limit_ms says\n",
                *self.name,
                age
            ),
            (Cause::Limit, false) => pr_warn!(
                "{}: not suspended within {} ms, as suspend_limit_ms says\n",
                *self.name,
                age
            ),
            (Cause::Leaving, true) => pr_warn!(
                "{}: resumed, since the device is leaving or the system is shut down\n",
                *self.name
            ),
            (Cause::Resumed | Cause::Killed | Cause::Leaving, _) => {}
        }
    }
}

impl Unbind {
    /// Takes a step of a suspension, and reports how long it took.
    fn suspension_step<R>(&self, step: &CStr, f: impl FnOnce() -> R) -> R {
        let began = Stopwatch::start();
        let result = f();

        let age = self.suspending.age().saturating_mul(1000);
        tracepoint::step(&self.name, step, began.micros(), age);
        result
    }

    /// Waits until no page is pinned. A pin may be that of a device that writes.
    fn wait_for_pins(&self, unmapper: &Unmapper<FailureHandler>) -> Result {
        let began = Stopwatch::start();
        let mut next = 0;

        while let Some(offset) = unmapper.first_pinned(&mut next) {
            if began.micros() < u64::from(PIN_TIMEOUT).saturating_mul(1000) {
                sleep(PIN_INTERVAL);
                continue;
            }
            match unmapper.file_at(offset) {
                Some(file) => pr_warn!(
                    "{}: not suspended: the page at byte {} of the disk is pinned ({})\n",
                    *self.name,
                    offset,
                    file
                ),
                None => pr_warn!(
                    "{}: not suspended: the page at byte {} of the disk is pinned\n",
                    *self.name,
                    offset
                ),
            }
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Waits until the disk is live, for a limited time. Sleeps.
    ///
    /// If the worker hangs, because a file system cannot be frozen or thawed, the caller goes on
    /// without it. The worker has references to all that it uses.
    pub(super) fn wait_resumed(&self) {
        let resumed = self.suspending.changed.wait_until(RESUME_TIMEOUT, || {
            (!self.suspending.is_suspended()).then_some(())
        });

        if resumed.is_none() {
            pr_warn!(
                "{}: a file system on the disk is being frozen or thawed, and is not waited for\n",
                *self.name
            );
        }
    }

    /// Resumes the disk, if it is suspended. Sleeps for a limited time.
    pub(super) fn end_suspension(self: &Arc<Self>) {
        suspension::end(self);
        self.wait_resumed();
    }
}

impl WorkItem<3> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        suspension::work(&this);
    }
}

/// The file with the state of a device: `live`, `suspended` or `leaving`. A program can write the
/// first two to it.
pub struct StateFile(pub Arc<Unbind>);

impl nvdimm::State for StateFile {
    fn state(&self) -> &'static CStr {
        let is_bound = matches!(self.0.teardown.lock().state, State::Bound(_));
        if !is_bound {
            return c"leaving";
        }

        match self.0.suspending.suspension.lock().phase {
            Phase::Live | Phase::Suspending => c"live",
            Phase::Suspended | Phase::Resuming => c"suspended",
        }
    }

    fn set_state(&self, state: &[u8]) -> Result {
        let result = match state {
            b"suspended" => suspension::suspend(&self.0),
            b"live" => suspension::resume(&self.0),
            _ => return Err(EINVAL),
        };

        result.map_err(|failure| match failure {
            Failure::Busy => EBUSY,
            Failure::Live => EINVAL,
            Failure::Closed | Failure::Ended(Cause::Leaving) => ENODEV,
            Failure::Killed | Failure::Ended(Cause::Killed) => EINTR,
            Failure::Ended(Cause::Limit) => ETIMEDOUT,
            Failure::Ended(Cause::Resumed) | Failure::Thawed => ECANCELED,
            Failure::Failed(err) => err,
        })
    }
}
