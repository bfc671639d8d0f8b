// SPDX-License-Identifier: GPL-2.0

//! The suspension of a disk: what is on its medium does not change until it is resumed.
//!
//! `docs/suspend.md` describes it. [`suspension`] is the state machine, and this file has the
//! functions that it calls. `suspension_state.rs` has the data, and `state_file.rs` the file in
//! sysfs.
//!
//! A translation of the DAX core must not wait for the end of a suspension: its caller holds
//! `dax_read_lock`, and often locks of the file. So writers are stopped one after the other, each
//! where it can wait:
//!
//! 1. All file systems on the disk are frozen. A store to a mapping that needs a write fault waits
//!    in the file system, before any lock of the DAX core.
//! 2. All pages are unmapped, so that each store needs such a fault.
//! 3. Write requests are held, in a list.
//!
//! The contents are those of the moment at which the last write that is not held has ended: what
//! was stopped before has not changed anything since.
//!
//! The worker freezes and thaws. What it does in between may wait for threads that wait for the end
//! of the suspension, such as one that mounts a file system. So another thread executes these steps
//! ([`DeviceState::delegate`]), which is not waited for once the suspension has to end.
//!
//! Lock order: `SuspensionState::machine`, `SuspensionState::step` and the lock of the held writes
//! are innermost. The worker takes `DeviceState::teardown` to get the parts of the device. Neither
//! thread holds a lock while it freezes, unmaps, waits or thaws. Device locks are not taken.

use super::{
    device_state::{
        DeviceState,
        Parts, //
    },
    pagemap_data::PagemapData,
    plain::{
        suspension::{
            self,
            Cause,
            PinTimer,
            Suspension,
            SuspensionOps, //
        }, //
    },
    pmem::Pmem,
    sleep::is_system_sleeping,
    suspension_state::{
        StepParts, //
        SuspensionStep,
    }, //
};
use crate::abstractions::kernel::{
    fs::{
        dax::{
            Obstacle,
            Unmapper, //
        },
        freeze::{
            self,
            FreezeLost,
            Freezer, //
        }, //
    },
    lease,
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
/// How long a page may stay pinned before the suspension fails: as long as direct I/O may take.
const PIN_TIMEOUT: Msecs = 1000;
/// The pause between two looks at a pinned page.
const PIN_INTERVAL: Msecs = 10;
/// The upper limit of `suspend_limit_ms`. After 120 s the kernel reports threads that hang.
const MAX_LIMIT: u32 = 100_000;
/// How long a teardown or a shutdown waits until the disk is resumed.
const RESUME_TIMEOUT: Msecs = 10_000;

/// Frozen file systems, and what the steps need.
pub struct FrozenDisk {
    frozen: freeze::Frozen,
    parts: Arc<StepParts>,
    /// [`None`] if the memory cannot be leased.
    _no_leases: Option<lease::Pause>,
}

/// Writes that are held until this is dropped.
pub struct HeldWrites(Arc<Pmem>);

impl Drop for HeldWrites {
    fn drop(&mut self) {
        self.0.release_writes();
    }
}

impl SuspensionOps for Arc<DeviceState> {
    type Frozen = FrozenDisk;
    type Held = HeldWrites;
    type Failure = Error;

    fn with<R>(&self, f: impl FnOnce(&mut Suspension<Error>) -> R) -> R {
        f(&mut self.suspension.machine.lock())
    }

    fn wake_up(&self) {
        self.suspension.changed.wake_up();
    }

    fn wait_until<R>(&self, mut condition: impl FnMut(&mut Suspension<Error>) -> Option<R>) -> R {
        loop {
            let found = self
                .suspension
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
        self.suspension.age_ms() < u64::from(SUSPEND_LIMIT_MS.get().min(MAX_LIMIT))
    }

    fn is_killed(&self) -> bool {
        fatal_signal_pending()
    }

    fn start_worker(&self) {
        self.suspension.began_at_ms.store(now_ms(), Relaxed);
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
        let parts = self
            .with_parts(|Parts { disk, memory, .. }| StepParts {
                freezer: Freezer::new(disk),
                pmem: Arc::from(disk.data()),
                unmapper: memory.unmapper(),
            })
            .ok_or(ENODEV)?;
        let parts = Arc::new(parts, GFP_KERNEL)?;
        let no_leases = match self.leases.as_ref().map(lease::Leases::pause) {
            None => None,
            Some(Ok(pause)) => Some(pause),
            Some(Err(holders)) => {
                pr_warn!(
                    "{}: not suspended: it is leased by {}. Unload that module first\n",
                    *self.name,
                    holders
                );
                return Err(EBUSY);
            }
        };

        let frozen = self
            .suspension_step(c"freeze", || parts.freezer.freeze())
            .map_err(|err| {
                pr_warn!("{}: not suspended: {}\n", *self.name, err);
                err.error()
            })?;
        Ok(FrozenDisk {
            frozen,
            parts,
            _no_leases: no_leases,
        })
    }

    fn unmap(&self, frozen: &FrozenDisk) -> Result {
        self.suspension_step(c"unmap", || {
            self.delegate(SuspensionStep::Unmap, &frozen.parts)
        })
    }

    fn hold(&self, frozen: &FrozenDisk) -> HeldWrites {
        frozen.parts.pmem.start_holding();
        HeldWrites(frozen.parts.pmem.clone())
    }

    fn settle(&self, frozen: &FrozenDisk) -> Result {
        self.suspension_step(c"hold", || {
            self.delegate(SuspensionStep::Settle, &frozen.parts)
        })
    }

    fn release(&self, held: HeldWrites) {
        self.suspension_step(c"release", || drop(held));
    }

    fn thaw(&self, frozen: FrozenDisk) -> bool {
        let mut stayed_frozen = true;

        self.suspension_step(c"thaw", || {
            frozen.frozen.thaw(|device, lost| match lost {
                FreezeLost::ThawedByOther => {
                    stayed_frozen = false;
                    pr_warn!(
                        "{}: something has thawed {} while the disk was suspended: discard what \
                         was read meanwhile\n",
                        *self.name,
                        device
                    );
                }
                FreezeLost::StillFrozen(err) => pr_err!(
                    "{}: {} stays frozen (error {}): thaw its mount point by fsfreeze -u\n",
                    *self.name,
                    device,
                    err.to_errno()
                ),
            });
        });
        stayed_frozen
    }

    fn report(&self, cause: Cause, was_suspended: bool) {
        let age = self.suspension.age_ms();

        match (cause, was_suspended) {
            (Cause::Limit, true) => pr_warn!(
                "{}: resumed by itself after {} ms, the limit suspend_limit_ms: discard what was \
                 read, and raise the limit\n",
                *self.name,
                age
            ),
            (Cause::Limit, false) => pr_warn!(
                "{}: not suspended within {} ms, the limit suspend_limit_ms: raise it, or try when \
                 the file systems are less busy\n",
                *self.name,
                age
            ),
            (Cause::Leaving, true) => pr_warn!(
                "{}: resumed, since the device is leaving (being unbound) or the system is shut \
                 down: discard what was read\n",
                *self.name
            ),
            (Cause::Resumed | Cause::Killed | Cause::Leaving, _) => {}
        }
    }
}

impl DeviceState {
    /// Executes a step of a suspension, and reports how long it took.
    fn suspension_step<R>(&self, step: &CStr, f: impl FnOnce() -> R) -> R {
        let began = Stopwatch::start();
        let result = f();

        let age = self.suspension.age_ms().saturating_mul(1000);
        tracepoint::step(&self.name, step, began.micros(), age);
        result
    }

    /// Queues a step for the second worker, and waits for the result. If the suspension has to end,
    /// returns success at once. The caller then sees that it has to end. The second worker ends the
    /// step whenever it can.
    fn delegate(self: &Arc<Self>, step: SuspensionStep, parts: &Arc<StepParts>) -> Result {
        let number = {
            let mut pending = self.suspension.step.lock();
            pending.number = pending.number.wrapping_add(1);
            pending.wanted = Some((step, parts.clone()));
            pending.number
        };
        // Work that is queued already finds this step.
        let _ = self.shared.queues.suspend.enqueue::<_, 4>(self.clone());

        loop {
            let done = self.suspension.changed.wait_until(POLL_INTERVAL, || {
                let done = self.suspension.step.lock().done;
                done.filter(|(of, _)| *of == number)
            });
            if let Some((_, result)) = done {
                return result;
            }
            if suspension::is_ending(self) {
                // The other thread may still hang in an earlier step. When that returns, it finds
                // nothing to do.
                let wanted = self.suspension.step.lock().wanted.take();
                drop(wanted);
                return Ok(());
            }
        }
    }

    /// Takes the step that the worker waits for.
    fn run_step(self: &Arc<Self>) {
        let (number, wanted) = {
            let mut pending = self.suspension.step.lock();
            (pending.number, pending.wanted.take())
        };
        let Some((step, parts)) = wanted else {
            return;
        };

        let result = match step {
            SuspensionStep::Unmap => self.unmap_files(&parts),
            SuspensionStep::Settle => self.settle_writes(&parts),
        };
        // Dropped before the result is published, so that a worker that gets the result drops the
        // last reference.
        drop(parts);
        self.suspension.step.lock().done = Some((number, result));
        self.suspension.changed.wake_up();
    }

    /// Unmaps all files, and waits for pins.
    fn unmap_files(self: &Arc<Self>, parts: &StepParts) -> Result {
        self.expect_no_keeper(&parts.freezer)?;
        let Some(unmapper) = &parts.unmapper else {
            return Ok(());
        };

        unmapper
            .unmap_frozen_files(|| !suspension::is_ending(self))
            .map_err(|obstacle| {
                match obstacle {
                    Obstacle::NotFrozen(file) => pr_warn!(
                        "{}: not suspended: {} has pages of the disk, and its file system is not \
                         frozen with it: unmount that file system first\n",
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
    }

    /// Waits for the writes that are being executed, and makes them durable. Fails if there
    /// is a keeper by now, or a file system that is not frozen.
    fn settle_writes(self: &Arc<Self>, parts: &StepParts) -> Result {
        parts.freezer.drain();
        parts.pmem.wait_deferred();
        self.flush();
        // A suspension that has to end thaws file systems without waiting for this step.
        if suspension::is_ending(self) {
            return Ok(());
        }

        self.expect_no_keeper(&parts.freezer)?;
        if let Some(name) = parts.freezer.first_unfrozen() {
            pr_warn!(
                "{}: not suspended: {} was mounted meanwhile: try again\n",
                *self.name,
                name
            );
            return Err(EBUSY);
        }
        Ok(())
    }

    fn expect_no_keeper(&self, freezer: &Freezer) -> Result {
        if freezer.has_keeper() {
            pr_warn!(
                "{}: not suspended: a holder of the disk may keep an address of its memory: remove \
                 the device-mapper table above it, or unload dm-writecache and dm-pcache\n",
                *self.name
            );
            return Err(EBUSY);
        }
        Ok(())
    }

    /// Waits until no page is pinned, or the suspension has to end. Fails if the same page stays
    /// pinned for longer than [`PIN_TIMEOUT`]: a pin may be that of a device that writes.
    fn wait_for_pins(self: &Arc<Self>, unmapper: &Unmapper<PagemapData>) -> Result {
        let mut timer = PinTimer::default();
        let mut next = 0;

        while let Some(offset) = unmapper.first_pinned(&mut next) {
            if suspension::is_ending(self) {
                break;
            }
            if !timer.is_over(offset, now_ms(), PIN_TIMEOUT.into()) {
                sleep(PIN_INTERVAL);
                continue;
            }
            match unmapper.file_at(offset) {
                Some(file) => pr_warn!(
                    "{}: not suspended: the page at byte {} of the disk is pinned ({}): end the \
                     I/O or the pipe that uses it, and try again\n",
                    *self.name,
                    offset,
                    file
                ),
                None => pr_warn!(
                    "{}: not suspended: the page at byte {} of the disk is pinned: end the I/O or \
                     the pipe that uses it, and try again\n",
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
    /// If the worker hangs, because a file system cannot be frozen or thawed, or because a mount
    /// does not end, the caller goes on without it. The worker has references to all that it uses.
    pub(super) fn wait_resumed(&self) {
        let began = Stopwatch::start();
        let resumed = self.suspension.changed.wait_until(RESUME_TIMEOUT, || {
            (!self.suspension.has_suspension()).then_some(())
        });

        if resumed.is_none() {
            pr_warn!(
                "{}: the disk was not resumed within {} s, because a file system could not be \
                 frozen or thawed, or a mount does not end, and is no longer waited for. End the \
                 programs that write to the disk\n",
                *self.name,
                RESUME_TIMEOUT / 1000
            );
        }
        self.waited_for_resume.store(began.micros(), Relaxed);
    }

    /// Resumes the disk, if it is suspended, and refuses further suspensions. Sleeps for a limited
    /// time.
    pub(super) fn end_suspensions(self: &Arc<Self>) {
        suspension::disable(self);
        self.wait_resumed();
    }
}

impl WorkItem<3> for DeviceState {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        suspension::work(&this);
    }
}

impl WorkItem<4> for DeviceState {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.run_step();
    }
}
