// SPDX-License-Identifier: GPL-2.0

//! The state machine of the suspension of a disk.
//!
//! ```text
//!  Live ─▶ Suspending ─▶ Suspended ─▶ Resuming ─▶ Live
//!              │                         ▲
//!              ├─────────────────────────┘  writes are held already
//!              └▶ Live                      they are not
//! ```
//!
//! Several threads take part:
//!
//! - A thread that writes to the attribute calls [`suspend`], which starts the worker and waits
//!   until the disk is suspended. Another one calls [`resume`], which ends the suspension and waits
//!   until the disk is live.
//! - The worker runs [`work`], from the freeze of the file systems until they are thawed. So what
//!   ends a suspension needs no memory and no other thread.
//! - [`close`] ends a suspension for good, before a teardown or a shutdown, without a wait.
//!
//! The state is one value under one lock, [`Environment::with`].
//!
//! This is plain Rust over an [`Environment`]. `driver/suspension.rs` implements it for the kernel,
//! and `tests/host` with models for loom.

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
    /// It is suspended, or another thread is about to suspend or to resume it.
    Busy,
    /// It is not suspended.
    Live,
    /// The device is going to be torn down.
    Closed,
    /// The calling thread was killed.
    Killed,
    /// The suspension ended before the disk was suspended.
    Ended(Cause),
    /// A step of the worker has failed.
    Failed(F),
    /// A file system was thawed by something else while the disk was suspended. Or that is not
    /// known any more, because [`RESULTS`] suspensions have ended since.
    Thawed,
}

/// The phases of a suspension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Writes are executed.
    Live,
    /// The worker suspends the disk.
    Suspending,
    /// The disk is suspended.
    Suspended,
    /// The worker resumes the disk.
    Resuming,
}

/// The data that the lock protects.
pub struct Suspension<F> {
    /// The current phase.
    pub phase: Phase,
    /// Why the suspension is to end.
    end: Option<Cause>,
    /// There is no suspension any more.
    is_closed: bool,
    /// How many suspensions have begun.
    count: u64,
    /// How the last suspensions that have ended went, by their numbers.
    ended: [Option<Ended<F>>; RESULTS],
}

/// How many results are kept, for threads that look late. A power of two.
const RESULTS: usize = 8;

/// Returns where the result of a suspension is kept.
fn place(number: u64) -> usize {
    number as usize & (RESULTS - 1)
}

/// How a suspension went.
#[derive(Clone, Copy)]
struct Ended<F> {
    /// The number of the suspension.
    number: u64,
    /// Why it has ended, if it was not by a failure.
    cause: Option<Cause>,
    result: Result<(), Failure<F>>,
}

impl<F> Default for Suspension<F> {
    /// Creates the data of a disk that was never suspended.
    fn default() -> Self {
        Self {
            phase: Phase::Live,
            end: None,
            is_closed: false,
            count: 0,
            ended: [const { None }; RESULTS],
        }
    }
}

impl<F: Copy> Suspension<F> {
    /// Returns how a suspension went, if it has ended and that is known.
    fn ended(&self, number: u64) -> Option<Ended<F>> {
        let entry = self.ended.get(place(number))?;

        entry.filter(|ended| ended.number == number)
    }

    /// Records how the current suspension went.
    fn end_with(&mut self, result: Result<(), Failure<F>>) {
        if let Some(entry) = self.ended.get_mut(place(self.count)) {
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
pub trait Environment: Sized {
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

    /// Returns whether the time of the suspension has not passed.
    fn has_time(&self) -> bool;

    /// Returns whether the calling thread was killed.
    fn is_killed(&self) -> bool;

    /// Starts the time of a suspension, and a thread that calls [`work`]. Must not allocate.
    fn start_worker(&self);

    /// Tells user space that the phase has changed.
    fn announce(&self);

    /// Freezes all file systems on the disk.
    fn freeze(&self) -> Result<Self::Frozen, Self::Failure>;

    /// Unmaps all pages, waits for pins, and writes back what mappings have stored. May stop early
    /// once [`is_ending`].
    fn unmap(&self, frozen: &Self::Frozen) -> Result<(), Self::Failure>;

    /// Holds all writes from now on. Those that are being executed are not waited for.
    fn hold(&self, frozen: &Self::Frozen) -> Self::Held;

    /// Waits for the writes that are being executed, and checks that no user has come since the
    /// freeze that can write without requests. May stop early once [`is_ending`].
    fn settle(&self, frozen: &Self::Frozen) -> Result<(), Self::Failure>;

    /// Executes the writes that are held, and no longer holds any.
    fn release(&self, held: Self::Held);

    /// Thaws the file systems. Returns whether all of them were frozen until now.
    fn thaw(&self, frozen: Self::Frozen) -> bool;

    /// Logs why a suspension has ended.
    fn report(&self, cause: Cause, was_suspended: bool);
}

/// Suspends the disk, and waits until it is suspended.
pub fn suspend<E: Environment>(env: &E) -> Result<(), Failure<E::Failure>> {
    let number = env.with(|suspension| {
        if suspension.is_closed {
            return Err(Failure::Closed);
        }
        if suspension.phase != Phase::Live || !env.may_begin() {
            return Err(Failure::Busy);
        }
        suspension.phase = Phase::Suspending;
        suspension.end = None;
        suspension.count = suspension.count.wrapping_add(1);
        Ok(suspension.count)
    })?;
    env.start_worker();

    let result = env.wait_until(|suspension| {
        let is_current = suspension.count == number;
        match suspension.phase {
            Phase::Suspended if is_current => Some(Ok(())),
            // It may have ended already, and another one may have begun.
            _ if !is_current || suspension.phase == Phase::Live => {
                let own = suspension.ended(number);
                let cause = own.and_then(|ended| ended.cause).unwrap_or(Cause::Limit);
                let result = own.map_or(Ok(()), |ended| ended.result);
                Some(result.and(Err(Failure::Ended(cause))))
            }
            // A teardown waits for this thread, and not for a worker that hangs.
            _ if suspension.is_closed => Some(Err(Failure::Closed)),
            Phase::Suspending if env.is_killed() => {
                suspension.end.get_or_insert(Cause::Killed);
                Some(Err(Failure::Killed))
            }
            _ => None,
        }
    });
    if result.is_err() {
        env.wake_up();
    }
    result
}

/// Ends a suspension, and waits until the disk is live. Fails if it was not suspended all the time.
pub fn resume<E: Environment>(env: &E) -> Result<(), Failure<E::Failure>> {
    let number = env.with(|suspension| match suspension.phase {
        Phase::Live => Err(Failure::Live),
        _ if suspension.end.is_some() => Err(Failure::Busy),
        _ => {
            suspension.end = Some(Cause::Resumed);
            Ok(suspension.count)
        }
    })?;
    env.wake_up();

    env.wait_until(|suspension| {
        if suspension.phase == Phase::Live || suspension.count != number {
            return Some(match suspension.ended(number).map(|ended| ended.result) {
                // It had not been suspended yet, and is not going to be.
                Some(Err(Failure::Ended(Cause::Resumed))) => Ok(()),
                // It was not suspended, which the other thread is told.
                Some(Err(Failure::Failed(_))) => Err(Failure::Live),
                Some(result) => result,
                None => Err(Failure::Thawed),
            });
        }
        if suspension.is_closed {
            return Some(Err(Failure::Closed));
        }
        env.is_killed().then_some(Err(Failure::Killed))
    })
}

/// Lets a suspension end, and no other begin. Does not wait.
pub fn close<E: Environment>(env: &E) {
    env.with(|suspension| {
        suspension.is_closed = true;
        if suspension.phase != Phase::Live {
            suspension.end.get_or_insert(Cause::Leaving);
        }
    });
    env.wake_up();
}

/// Returns whether the suspension has to end, for steps that take long.
pub fn is_ending<E: Environment>(env: &E) -> bool {
    env.with(|suspension| cause(env, suspension)).is_some()
}

/// Returns why the suspension has to end, if it has.
fn cause<E: Environment>(env: &E, suspension: &mut Suspension<E::Failure>) -> Option<Cause> {
    if suspension.end.is_none() && !env.has_time() {
        suspension.end = Some(Cause::Limit);
    }
    suspension.end
}

/// Suspends the disk, waits until that is to end, and resumes it, in the worker.
pub fn work<E: Environment>(env: &E) {
    let result = env.freeze().map_err(Failure::Failed).and_then(|frozen| {
        let result = hold_until_end(env, &frozen);
        let stayed_frozen = env.thaw(frozen);

        if result.is_ok() && !stayed_frozen {
            Err(Failure::Thawed)
        } else {
            result
        }
    });

    env.with(|suspension| suspension.end_with(result));
    env.announce();
    env.wake_up();
}

/// Suspends the disk, whose file systems are frozen, waits until that is to end, and executes the
/// writes that were held.
fn hold_until_end<E: Environment>(env: &E, frozen: &E::Frozen) -> Result<(), Failure<E::Failure>> {
    let check = || match env.with(|suspension| cause(env, suspension)) {
        Some(cause) => {
            env.report(cause, false);
            Err(Failure::Ended(cause))
        }
        None => Ok(()),
    };

    check()?;
    env.unmap(frozen).map_err(Failure::Failed)?;
    check()?;
    let held = env.hold(frozen);
    if let Err(failure) = env.settle(frozen) {
        env.with(|suspension| suspension.phase = Phase::Resuming);
        env.release(held);
        return Err(Failure::Failed(failure));
    }
    let suspended = env.with(|suspension| match cause(env, suspension) {
        None => {
            suspension.phase = Phase::Suspended;
            Ok(())
        }
        Some(cause) => Err(cause),
    });
    if suspended.is_ok() {
        env.announce();
        env.wake_up();
    }

    let (cause, was_suspended) = match suspended {
        Ok(()) => (env.wait_until(|suspension| cause(env, suspension)), true),
        Err(cause) => (cause, false),
    };
    env.with(|suspension| suspension.phase = Phase::Resuming);
    env.report(cause, was_suspended);
    env.release(held);
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
