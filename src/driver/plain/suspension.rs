// SPDX-License-Identifier: GPL-2.0

//! The state machine of the suspension of a disk.
//!
//! ```text
//!  Live ─▶ Suspending ─▶ Suspended ─▶ Resuming ─▶ Live
//!              │                                    ▲
//!              └────────────────────────────────────┘  a step has failed, or it has to end
//! ```
//!
//! Several threads take part:
//!
//! - A thread that writes to the attribute calls [`suspend`], which starts the worker and waits
//!   until the disk is suspended. Another one calls [`resume`], which ends the suspension and waits
//!   until the disk is live.
//! - The worker runs [`work`], from the freeze of the file systems until they are thawed. So what
//!   ends a suspension needs no memory and no other thread.
//! - A thread that is going to tear the device down, or to shut the system down, calls [`disable`].
//!   This ends a suspension, refuses further ones, and does not wait.
//!
//! The state is one value under one lock, [`SuspensionOps::with`].
//!
//! This is plain Rust over the trait [`SuspensionOps`]. `driver/suspension_ops.rs` implements it
//! for the kernel, and `tests/host` with models for loom.

/// Why a suspension ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A thread has called [`resume`].
    Resumed,
    /// Its time has passed.
    Limit,
    /// The thread that has asked for it was killed before the disk was suspended.
    Killed,
    /// The device is going to be torn down, or the system to be shut down.
    Leaving,
}

/// Why a disk is not suspended, or why [`resume`] fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure<F> {
    /// It is suspended, or another thread is about to suspend or to resume it, or no suspension may
    /// begin now ([`SuspensionOps::may_begin`]).
    Busy,
    /// It is not suspended.
    Live,
    /// The device is going to be torn down, or the system to be shut down.
    Disabled,
    /// The calling thread was killed.
    Killed,
    /// The suspension ended before the disk was suspended.
    Ended(Cause),
    /// A step of the worker has failed.
    Failed(F),
    /// A file system was thawed by something else while the disk was suspended. Or the result is
    /// not known any more, since only those of the last [`RESULTS`] suspensions are kept.
    Thawed,
}

/// The phases of a suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Writes are executed.
    Live,
    /// The worker suspends the disk, or undoes that.
    Suspending,
    /// The disk is suspended.
    Suspended,
    /// The worker resumes the disk, which was suspended.
    Resuming,
}

/// The data that the lock protects.
pub struct Suspension<F> {
    /// The current phase.
    pub phase: Phase,
    /// Why the suspension is to end.
    end: Option<Cause>,
    /// No suspension may begin any more.
    is_disabled: bool,
    /// How many suspensions have begun.
    count: u64,
    /// How the last suspensions that have ended went, by their numbers.
    ended: [Option<Ended<F>>; RESULTS],
}

/// How many results are kept, for threads that are scheduled late. A power of two.
const RESULTS: usize = 8;

/// Returns where the result of a suspension is kept.
fn slot_of(number: u64) -> usize {
    number as usize & (RESULTS - 1)
}

/// How a suspension went.
#[derive(Clone, Copy)]
struct Ended<F> {
    /// The number of the suspension.
    number: u64,
    /// Why it had to end. [`None`] if it ended only because a step has failed.
    cause: Option<Cause>,
    result: Result<(), Failure<F>>,
}

impl<F> Default for Suspension<F> {
    /// Creates the data of a disk that was never suspended.
    fn default() -> Self {
        Self {
            phase: Phase::Live,
            end: None,
            is_disabled: false,
            count: 0,
            ended: [const { None }; RESULTS],
        }
    }
}

impl<F: Copy> Suspension<F> {
    /// Returns how a suspension went, if it has ended and that is known.
    fn ended(&self, number: u64) -> Option<Ended<F>> {
        let entry = self.ended.get(slot_of(number))?;

        entry.filter(|ended| ended.number == number)
    }

    /// Records how the current suspension went.
    fn end_with(&mut self, result: Result<(), Failure<F>>) {
        if let Some(entry) = self.ended.get_mut(slot_of(self.count)) {
            *entry = Some(Ended {
                number: self.count,
                cause: self.end,
                result,
            });
        }
        self.phase = Phase::Live;
    }
}

/// The functions that a suspension calls.
///
/// All but [`may_begin`](Self::may_begin), [`has_time`](Self::has_time) and
/// [`is_killed`](Self::is_killed) are called without the lock.
pub trait SuspensionOps: Sized {
    /// File systems that are frozen.
    type Frozen;
    /// Writes that are held.
    type Held;
    /// Why a step has failed.
    type Failure: Copy;

    /// Calls `f` with the lock held. `f` does not sleep.
    fn with<R>(&self, f: impl FnOnce(&mut Suspension<Self::Failure>) -> R) -> R;

    /// Wakes all threads in [`wait_until`](Self::wait_until).
    fn wake_up(&self);

    /// Waits until `condition`, which is called with the lock held, returns a value. It is also
    /// polled.
    fn wait_until<R>(
        &self,
        condition: impl FnMut(&mut Suspension<Self::Failure>) -> Option<R>,
    ) -> R;

    /// Returns whether a suspension may begin now.
    fn may_begin(&self) -> bool;

    /// Returns whether the suspension has time left.
    fn has_time(&self) -> bool;

    /// Returns whether the calling thread was killed.
    fn is_killed(&self) -> bool;

    /// Starts the time of a suspension, and a thread that calls [`work`]. Must not allocate.
    fn start_worker(&self);

    /// Notifies user space that the phase has changed.
    fn announce(&self);

    /// Freezes all file systems on the disk.
    fn freeze(&self) -> Result<Self::Frozen, Self::Failure>;

    /// Unmaps all pages, waits for pins, and writes back what mappings have stored. May stop early
    /// once [`is_ending`].
    fn unmap(&self, frozen: &Self::Frozen) -> Result<(), Self::Failure>;

    /// Holds all writes from now on. Those that are being executed are not waited for.
    fn hold(&self, frozen: &Self::Frozen) -> Self::Held;

    /// Waits for the writes that are being executed, and checks that nothing that can write without
    /// requests was mounted or has claimed the disk since the freeze. May stop early once
    /// [`is_ending`].
    fn settle(&self, frozen: &Self::Frozen) -> Result<(), Self::Failure>;

    /// Executes the writes that are held, and no longer holds any.
    fn release(&self, held: Self::Held);

    /// Thaws the file systems. Returns whether all of them were frozen until now.
    fn thaw(&self, frozen: Self::Frozen) -> bool;

    /// Logs why a suspension has to end.
    fn report(&self, cause: Cause, was_suspended: bool);
}

/// Suspends the disk, and waits until it is suspended.
pub fn suspend<E: SuspensionOps>(ops: &E) -> Result<(), Failure<E::Failure>> {
    let number = ops.with(|suspension| {
        if suspension.is_disabled {
            return Err(Failure::Disabled);
        }
        if suspension.phase != Phase::Live || !ops.may_begin() {
            return Err(Failure::Busy);
        }
        suspension.phase = Phase::Suspending;
        suspension.end = None;
        suspension.count = suspension.count.wrapping_add(1);
        Ok(suspension.count)
    })?;
    ops.start_worker();

    let result = ops.wait_until(|suspension| {
        let is_current = suspension.count == number;
        match suspension.phase {
            Phase::Suspended if is_current => Some(Ok(())),
            // It has ended, and another one may have begun. If the disk was suspended in between,
            // this is still an error: the caller must not begin to copy now.
            _ if !is_current || suspension.phase == Phase::Live => {
                let own = suspension.ended(number);
                let cause = own.and_then(|ended| ended.cause).unwrap_or(Cause::Limit);
                let result = own.map_or(Ok(()), |ended| ended.result);
                Some(result.and(Err(Failure::Ended(cause))))
            }
            // A teardown waits for this thread, and not for a worker that hangs.
            _ if suspension.is_disabled => Some(Err(Failure::Disabled)),
            Phase::Suspending if ops.is_killed() => {
                suspension.end.get_or_insert(Cause::Killed);
                Some(Err(Failure::Killed))
            }
            _ => None,
        }
    });
    if result.is_err() {
        ops.wake_up();
    }
    result
}

/// Ends a suspension, and waits until the disk is live. Fails if the disk is live already, or did
/// not stay suspended. A suspension that is still beginning is cancelled, which is no error.
pub fn resume<E: SuspensionOps>(ops: &E) -> Result<(), Failure<E::Failure>> {
    let number = ops.with(|suspension| match suspension.phase {
        _ if suspension.is_disabled => Err(Failure::Disabled),
        Phase::Live => Err(Failure::Live),
        _ if suspension.end.is_some() => Err(Failure::Busy),
        _ => {
            suspension.end = Some(Cause::Resumed);
            Ok(suspension.count)
        }
    })?;
    ops.wake_up();

    ops.wait_until(|suspension| {
        if suspension.phase == Phase::Live || suspension.count != number {
            return Some(match suspension.ended(number).map(|ended| ended.result) {
                // It had not been suspended yet, and is not going to be.
                Some(Err(Failure::Ended(Cause::Resumed))) => Ok(()),
                // It was not suspended. The other thread returns why.
                Some(Err(Failure::Failed(_))) => Err(Failure::Live),
                Some(result) => result,
                None => Err(Failure::Thawed),
            });
        }
        if suspension.is_disabled {
            return Some(Err(Failure::Disabled));
        }
        ops.is_killed().then_some(Err(Failure::Killed))
    })
}

/// Ends the current suspension, if there is one, and refuses further ones. Does not wait.
pub fn disable<E: SuspensionOps>(ops: &E) {
    ops.with(|suspension| {
        suspension.is_disabled = true;
        if suspension.phase != Phase::Live {
            suspension.end.get_or_insert(Cause::Leaving);
        }
    });
    ops.wake_up();
}

/// Returns whether the suspension has to end, for steps that take long.
pub fn is_ending<E: SuspensionOps>(ops: &E) -> bool {
    ops.with(|suspension| cause(ops, suspension)).is_some()
}

/// Returns why the suspension has to end, if it has.
fn cause<E: SuspensionOps>(ops: &E, suspension: &mut Suspension<E::Failure>) -> Option<Cause> {
    if suspension.end.is_none() && !ops.has_time() {
        suspension.end = Some(Cause::Limit);
    }
    suspension.end
}

/// Suspends the disk, waits until that is to end, and resumes it, in the worker.
pub fn work<E: SuspensionOps>(ops: &E) {
    let result = ops.freeze().map_err(Failure::Failed).and_then(|frozen| {
        let result = hold_until_end(ops, &frozen);
        let stayed_frozen = ops.thaw(frozen);

        if result.is_ok() && !stayed_frozen {
            Err(Failure::Thawed)
        } else {
            result
        }
    });

    ops.with(|suspension| suspension.end_with(result));
    ops.announce();
    ops.wake_up();
}

/// Suspends the disk, whose file systems are frozen, waits until that is to end, and executes the
/// writes that were held.
fn hold_until_end<E: SuspensionOps>(
    ops: &E,
    frozen: &E::Frozen,
) -> Result<(), Failure<E::Failure>> {
    let check = || match ops.with(|suspension| cause(ops, suspension)) {
        Some(cause) => {
            ops.report(cause, false);
            Err(Failure::Ended(cause))
        }
        None => Ok(()),
    };

    check()?;
    ops.unmap(frozen).map_err(Failure::Failed)?;
    check()?;
    let held = ops.hold(frozen);
    if let Err(failure) = ops.settle(frozen) {
        ops.release(held);
        return Err(Failure::Failed(failure));
    }
    let suspended = ops.with(|suspension| match cause(ops, suspension) {
        None => {
            suspension.phase = Phase::Suspended;
            Ok(())
        }
        Some(cause) => Err(cause),
    });
    if suspended.is_ok() {
        ops.announce();
        ops.wake_up();
    }

    let (cause, was_suspended) = match suspended {
        Ok(()) => {
            let cause = ops.wait_until(|suspension| cause(ops, suspension));
            ops.with(|suspension| suspension.phase = Phase::Resuming);
            (cause, true)
        }
        Err(cause) => (cause, false),
    };
    ops.report(cause, was_suspended);
    ops.release(held);
    if was_suspended {
        Ok(())
    } else {
        Err(Failure::Ended(cause))
    }
}

/// How long the same pinned page has been waited for.
///
/// The time begins when a page is found, not when it is looked for: that takes long if the memory
/// is large.
#[derive(Default)]
pub struct PinTimer {
    /// The page that was found last, and when it was found first.
    page: Option<(u64, u64)>,
}

impl PinTimer {
    /// Records that a page is pinned now. Returns whether it has been for longer than `limit`,
    /// in the unit of `now`.
    pub fn is_over(&mut self, page: u64, now: u64, limit: u64) -> bool {
        let since = match self.page {
            Some((last, since)) if last == page => since,
            _ => now,
        };

        self.page = Some((page, since));
        now.saturating_sub(since) > limit
    }
}
