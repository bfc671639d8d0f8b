// SPDX-License-Identifier: GPL-2.0

//! The state machine of the teardown of a device.
//!
//! ```text
//!  Bound ─▶ Leaving ─▶ RemovingDisk ─▶ Revoking ─▶ Draining ───────────▶ Freeing ─▶ Detached
//!                                                     │                     ▲
//!                                                     └─────▶ Retired ──────┘
//! ```
//!
//! Three kinds of threads take part:
//!
//! - An unbinding thread calls [`give_notice`], which announces that the device is going to be torn
//!   down, and waits for its users. Then it calls [`begin`], which starts the worker. Then it calls
//!   [`wait`]. This returns when the range is free, or when it retires the range
//!   ([`TeardownOps::should_retire`]): `Draining` becomes `Retired`, and `Freeing` gets the
//!   reference to the module that `Retired` has. The worker needs it, because it runs the code of
//!   the module after unbind has returned. If a region or a bus is unbound, its thread calls
//!   [`announce`] and [`begin`] for each device first (`removal_watcher.rs`).
//! - The worker runs [`work`], which makes all other transitions: it removes the disk, revokes the
//!   memory, waits for the last user, and frees the range.
//! - A thread that the worker starts runs [`kill_dax`].
//!
//! The state is one value under one lock, [`TeardownOps::with`]. `Bound`, `Leaving` and
//! `RemovingDisk` own the parts of the device, until the worker takes them. After that the worker
//! owns the disk and the memory.
//!
//! `driver/device_state.rs` has the lock order. No function of [`TeardownOps`] that may sleep is
//! called with this lock held.
//!
//! This is plain Rust over the trait [`TeardownOps`]. `driver/teardown_ops.rs` implements it for
//! the kernel, and `tests/host` with models for loom.

/// A user of a range whose files were revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// A reference to the memory. These have one: a DAX device that is not dead, a disk, a request
    /// that waits for a flush, a suspension whose worker hangs, a lease, an unmapping of files, a
    /// shutdown, and a reader of debugfs.
    Reference,
    /// A keeper: a holder of the disk that may keep an address of the memory.
    Keeper,
    /// A reference to a page: a pipe, direct I/O, a DMA engine.
    Pin,
    /// A page that has no reference, but is associated with a file; or another walk through all
    /// files is needed, and no page was looked at.
    PageCache,
}

/// The state of a device from bind until its range is free.
pub enum State<E: TeardownOps> {
    /// The device is bound. [`announce`] ends this state.
    Bound(E::Parts),
    /// The device is bound and in use as before, and user space was or is being notified that it
    /// is going to be torn down. [`begin`] ends this state.
    Leaving {
        /// The parts, which are in use as before.
        parts: E::Parts,
        /// Whether [`TeardownOps::announce`] has returned.
        announced: bool,
    },
    /// The worker removes the disk. It takes the parts when it starts.
    RemovingDisk(Option<E::Parts>),
    /// The worker revokes the memory from files.
    Revoking,
    /// All files were revoked. The worker waits for the last user; this is the latest one found. It
    /// is [`None`] during the first search.
    Draining(Option<User>),
    /// The unbinding thread has retired the range. The worker still waits for the last user.
    Retired {
        /// Keeps the code of the worker.
        module: E::Module,
        /// The latest user found.
        user: Option<User>,
    },
    /// No user was found. The worker looks once more, and frees the range.
    Freeing {
        /// Keeps the code of the worker, if the unbinding thread has retired the range.
        module: Option<E::Module>,
    },
    /// The device has no range: it is not bound yet, or its range is free.
    Detached,
}

/// The data that the lock of a device protects.
pub struct Teardown<E: TeardownOps> {
    /// The state.
    pub state: State<E>,
    /// The DAX device, from [`State::Revoking`] until [`kill_dax`] takes it.
    pub dax: Option<E::Dax>,
}

impl<E: TeardownOps> Teardown<E> {
    /// Creates the data of a device that is not bound yet.
    pub const fn detached() -> Self {
        Self {
            state: State::Detached,
            dax: None,
        }
    }

    /// Returns the parts of a device that is bound, whether it is leaving or not.
    pub fn parts(&self) -> Option<&E::Parts> {
        match &self.state {
            State::Bound(parts) | State::Leaving { parts, .. } => Some(parts),
            _ => None,
        }
    }

    /// Returns whether the unbinding thread has retired the range, and it is not free yet.
    pub fn is_retired(&self) -> bool {
        matches!(
            self.state,
            State::Retired { .. } | State::Freeing { module: Some(_) }
        )
    }
}

/// The functions that the teardown calls.
///
/// The types are type states: a disk is removed once, memory is closed once, and memory that was
/// not revoked cannot be freed.
///
/// [`should_wait`](Self::should_wait), [`should_retire`](Self::should_retire) and
/// [`try_get_module`](Self::try_get_module) are called with the lock held. They must not take it,
/// and must not sleep. All other functions are called without the lock. Of these,
/// [`wake_up`](Self::wake_up) does not sleep. [`with`](Self::with) sleeps only to take the lock.
/// The others may sleep.
pub trait TeardownOps: Sized {
    /// The parts of a bound device.
    type Parts;
    /// A disk that is added.
    type Disk;
    /// A disk that was removed. It may still have holders.
    type RemovedDisk;
    /// A DAX device that is alive.
    type Dax;
    /// Memory that can be mapped and translated.
    type Memory;
    /// Memory that cannot be translated any more.
    type Closed;
    /// Memory that was revoked from all files.
    type Revoked;
    /// A reference to the module.
    type Module;

    /// Calls `f` with the lock held. `f` does not sleep.
    fn with<R>(&self, f: impl FnOnce(&mut Teardown<Self>) -> R) -> R;

    /// Wakes all threads in [`wait_until`](Self::wait_until).
    fn wake_up(&self);

    /// Waits until `condition`, which is called with the lock held, returns a value.
    ///
    /// The condition is also polled, for a deadline that passes, a changed limit or a fatal signal,
    /// and looked at when the system goes down.
    fn wait_until<R>(&self, condition: impl FnMut(&mut Teardown<Self>) -> Option<R>) -> R;

    /// Notifies user space that the device is going to be torn down, and whether its users are
    /// waited for. Called once.
    fn announce(&self, is_waited_for: bool);

    /// Returns whether users of a device that is leaving are to be waited for now.
    ///
    /// False once none is left, the time of the notice has passed, the thread was killed, or the
    /// system goes down.
    fn should_wait(&self, parts: &Self::Parts) -> bool;

    /// Starts a thread that calls [`work`]. Must not allocate.
    fn start_worker(&self);

    /// Starts a thread that calls [`kill_dax`], and waits for it for a short time. Must not
    /// allocate.
    fn start_kill_dax(&self);

    /// Returns whether a range that is in use is to be retired now.
    ///
    /// True once the deadline has passed, the thread was killed or the system goes down, and at
    /// once if there is a deadline and `has_keeper`. If the `struct page`s are on the medium
    /// (`map=dev`), true only when the system goes down, and never if the medium may be taken away.
    fn should_retire(&self, has_keeper: bool) -> bool;

    /// Takes a reference to the module, unless it is being unloaded.
    fn try_get_module(&self) -> Option<Self::Module>;

    /// Separates the parts.
    fn split(&self, parts: Self::Parts) -> (Self::Disk, Self::Dax, Self::Memory);

    /// Refuses translations to a page frame number, and unmaps all pages. Does not wait for faults.
    ///
    /// References the files that have pinned pages, and those for which a page fault may be in
    /// progress. Otherwise removing the disk would evict these files, and wait for the pins.
    fn close_to_mappings(&self, memory: &mut Self::Memory);

    /// Removes the disk: file systems on it sync and shut down.
    fn remove_disk(&self, disk: Self::Disk) -> Self::RemovedDisk;

    /// Refuses all translations.
    fn close(&self, memory: Self::Memory) -> Self::Closed;

    /// Kills the DAX device.
    fn kill(&self, dax: Self::Dax);

    /// Revokes the memory from all files.
    fn revoke(&self, closed: Self::Closed) -> Self::Revoked;

    /// Logs that the files were revoked, and flushes what was written back.
    fn after_revoke(&self);

    /// Returns a user of the memory, if there is one.
    fn first_user(&self, memory: &mut Self::Revoked, disk: &mut Self::RemovedDisk) -> Option<User>;

    /// Waits for a user that [`first_user`](Self::first_user) has found, for a limited time. For
    /// [`User::PageCache`] it revokes the memory from the files once more.
    fn wait_for(&self, user: User, memory: &mut Self::Revoked, disk: &mut Self::RemovedDisk);

    /// Frees the memory, which has no user.
    fn free(&self, memory: Self::Revoked, disk: Self::RemovedDisk);
}

/// The outcome of an unbind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The range is free.
    Freed,
    /// The range is in use. The worker frees it later.
    Retired,
}

/// Announces that a bound device is going to be torn down, and whether its users are waited for,
/// unless another thread does or has done so.
pub fn announce<E: TeardownOps>(ops: &E, is_waited_for: bool) {
    let is_first =
        ops.with(
            |teardown| match core::mem::replace(&mut teardown.state, State::Detached) {
                State::Bound(parts) => {
                    teardown.state = State::Leaving {
                        parts,
                        announced: false,
                    };
                    true
                }
                other => {
                    teardown.state = other;
                    false
                }
            },
        );
    if !is_first {
        return;
    }

    ops.announce(is_waited_for);
    ops.with(|teardown| {
        if let State::Leaving { announced, .. } = &mut teardown.state {
            *announced = true;
        }
    });
    ops.wake_up();
}

/// Announces that a bound device is going to be torn down, and waits for its users. Returns at once
/// when another thread begins the teardown.
pub fn give_notice<E: TeardownOps>(ops: &E) {
    announce(ops, true);
    ops.wait_until(|teardown| match &teardown.state {
        State::Leaving { parts, .. } => (!ops.should_wait(parts)).then_some(()),
        _ => Some(()),
    });
}

/// Begins the teardown of a bound device, which is announced first. Returns false if it had begun
/// already.
pub fn begin<E: TeardownOps>(ops: &E) -> bool {
    announce(ops, false);
    let begun = loop {
        if let Some(begun) = ops.with(try_begin) {
            break begun;
        }
        // Another thread is announcing it.
        ops.wait_until(|teardown| {
            let announced = !matches!(
                teardown.state,
                State::Leaving {
                    announced: false,
                    ..
                }
            );
            announced.then_some(())
        });
    };

    if begun {
        ops.start_worker();
        ops.wake_up();
    }
    begun
}

/// Begins the teardown. Returns whether this call has begun it, or [`None`] while the device is
/// being announced.
fn try_begin<E: TeardownOps>(teardown: &mut Teardown<E>) -> Option<bool> {
    let state = core::mem::replace(&mut teardown.state, State::RemovingDisk(None));

    let (state, begun) = match state {
        State::Leaving {
            parts,
            announced: true,
        } => (State::RemovingDisk(Some(parts)), Some(true)),
        State::Leaving { .. } => (state, None),
        other => (other, Some(false)),
    };
    teardown.state = state;
    begun
}

/// Waits until the range of a device whose teardown has begun is free, or retires it.
///
/// A range is not retired before its files were revoked. Several threads may wait. Once one of them
/// has retired the range, the others return too.
pub fn wait<E: TeardownOps>(ops: &E) -> Outcome {
    let outcome = ops.wait_until(|teardown| {
        let has_keeper = match &teardown.state {
            State::Detached => return Some(Outcome::Freed),
            State::Retired { .. } | State::Freeing { module: Some(_) } => {
                return Some(Outcome::Retired)
            }
            State::Draining(user) => *user == Some(User::Keeper),
            State::Freeing { module: None } => false,
            State::Bound(_) | State::Leaving { .. } | State::RemovingDisk(_) | State::Revoking => {
                return None
            }
        };
        if !ops.should_retire(has_keeper) {
            return None;
        }

        // A module that is being unloaded cannot be kept for the worker, so the wait goes on.
        let module = ops.try_get_module()?;
        teardown.state = match &teardown.state {
            State::Draining(user) => State::Retired {
                module,
                user: *user,
            },
            _ => State::Freeing {
                module: Some(module),
            },
        };
        Some(Outcome::Retired)
    });

    if outcome == Outcome::Retired {
        ops.wake_up();
    }
    outcome
}

/// Tears down a device, in the worker. Returns the reference to the module if the range had been
/// retired.
pub fn work<E: TeardownOps>(ops: &E) -> Option<E::Module> {
    let parts = ops.with(|teardown| match &mut teardown.state {
        State::RemovingDisk(parts) => parts.take(),
        _ => None,
    })?;
    let (disk, dax, mut memory) = ops.split(parts);

    ops.close_to_mappings(&mut memory);
    let mut disk = ops.remove_disk(disk);
    let closed = ops.close(memory);

    ops.with(|teardown| {
        teardown.state = State::Revoking;
        teardown.dax = Some(dax);
    });
    ops.start_kill_dax();
    let mut memory = ops.revoke(closed);
    ops.after_revoke();

    // From `Draining` on the unbinding thread may retire the range, and logs the user. The first
    // search looks at all pages that were exposed, and may take long.
    ops.with(|teardown| teardown.state = State::Draining(None));
    ops.wake_up();
    while let Some(found) = ops.first_user(&mut memory, &mut disk) {
        ops.with(|teardown| {
            if let State::Draining(user) | State::Retired { user, .. } = &mut teardown.state {
                *user = Some(found);
            }
        });
        ops.wake_up();
        ops.wait_for(found, &mut memory, &mut disk);
    }

    ops.with(|teardown| {
        let freeing = State::Freeing { module: None };
        if let State::Retired { module, .. } = core::mem::replace(&mut teardown.state, freeing) {
            teardown.state = State::Freeing {
                module: Some(module),
            };
        }
    });
    ops.free(memory, disk);
    let module =
        ops.with(
            |teardown| match core::mem::replace(&mut teardown.state, State::Detached) {
                State::Freeing { module } => module,
                _ => None,
            },
        );
    ops.wake_up();
    module
}

/// Kills the DAX device, in a thread of its own: it waits for all `dax_read_lock` sections of the
/// system.
pub fn kill_dax<E: TeardownOps>(ops: &E) {
    if let Some(dax) = ops.with(|teardown| teardown.dax.take()) {
        ops.kill(dax);
    }
}
