// SPDX-License-Identifier: GPL-2.0

//! How a device is taken away: the states, and what the unbinding thread and the worker do.
//!
//! ```text
//!  Bound ──▶ RemovingDisk ──▶ Revoking ──▶ Draining ──────────▶ Freeing ──▶ Gone
//!                                             │                    ▲
//!                                             └────▶ Retired ──────┘
//! ```
//!
//! Two threads take part. The unbinding thread starts the worker, waits for it, and retires the
//! range at its deadline. The worker removes the disk, revokes, waits for the last user, and frees.
//! The state is one value under one lock, and each state owns what is left of the device.
//!
//! This is plain Rust over an [`Environment`]. The kernel runs it with the abstractions
//! (`driver/unbind.rs`), and loom runs the same lines with models of them (`tests/host`).

/// What is still using a range whose files were revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// A thread is inside of the DAX device or the disk, or may be.
    Translation,
    /// A mapping in the kernel may keep an address: a holder of the disk.
    Keeper,
    /// A page has a reference: a pipe, direct I/O, a DMA engine.
    Pin,
    /// Only an entry of a page cache names a page.
    PageCache,
}

/// The state of a device, from bind until its range is free.
pub enum State<E: Environment> {
    /// The device is bound.
    Bound(E::Parts),
    /// The worker removes the disk. The parts are here until the worker takes them.
    RemovingDisk(Option<E::Parts>),
    /// The worker takes the pages away from files.
    Revoking,
    /// All files were revoked. The worker waits for the last user.
    Draining(Option<User>),
    /// The unbinding thread has returned. The worker still waits for the last user.
    Retired {
        /// Keeps the code of the worker.
        module: E::Module,
        /// What it waits for.
        user: Option<User>,
    },
    /// The range has no user and is being freed.
    Freeing {
        /// Keeps the code of the worker, if the unbinding thread has returned.
        module: Option<E::Module>,
    },
    /// The range is free.
    Gone,
}

/// What the lock of a device protects.
pub struct Teardown<E: Environment> {
    /// The state.
    pub state: State<E>,
    /// The DAX device, until the thread that kills it takes it.
    pub dying: Option<E::Dax>,
}

impl<E: Environment> Teardown<E> {
    /// A device that is not bound yet: there is nothing to be taken away.
    pub const fn unbound() -> Self {
        Self {
            state: State::Gone,
            dying: None,
        }
    }

    /// Whether the unbinding thread has returned, and the range is not free.
    pub fn is_retired(&self) -> bool {
        matches!(
            self.state,
            State::Retired { .. } | State::Freeing { module: Some(_) }
        )
    }
}

/// What the teardown needs of the kernel.
///
/// The types of the parts carry the proofs: a disk is removed once, memory is closed once, and what
/// was not revoked cannot be freed.
///
/// [`is_over`](Self::is_over) and [`module`](Self::module) are called with the lock held, so they
/// must not take it. [`with`](Self::with) and [`wake_up`](Self::wake_up) do not sleep longer than
/// the lock is held. All other functions are called without the lock, and may sleep.
pub trait Environment: Sized {
    /// The parts of a bound device.
    type Parts;
    /// A disk that is added.
    type Disk;
    /// A disk that was removed; it may still have holders.
    type RemovedDisk;
    /// A DAX device that is alive.
    type Dax;
    /// Memory whose gate is open.
    type Memory;
    /// Memory whose gate is closed.
    type Closed;
    /// Memory that was taken away from all files.
    type Revoked;
    /// A reference to the module.
    type Module;

    /// Calls `f` with the lock held. `f` does not sleep.
    fn with<R>(&self, f: impl FnOnce(&mut Teardown<Self>) -> R) -> R;

    /// Makes all threads in [`wait_until`](Self::wait_until) look again.
    fn wake_up(&self);

    /// Waits until `condition`, which is called with the lock held, returns something.
    ///
    /// It is also called from time to time, so that a deadline, a changed limit or a fatal signal
    /// is noticed.
    fn wait_until<R>(&self, condition: impl FnMut(&mut Teardown<Self>) -> Option<R>) -> R;

    /// Starts a thread that calls [`work`]. It must not need memory.
    fn start_worker(&self);

    /// Starts a thread that calls [`kill_dax`], and gives it a moment. It must not need memory.
    fn start_killing(&self);

    /// Whether the unbinding thread is to return although the range is in use: the deadline has
    /// passed, or `hopeless` and there is a deadline, or the thread was killed. Never, if memory
    /// map or medium go with the provider.
    fn is_over(&self, hopeless: bool) -> bool;

    /// Takes a reference to the module, unless it is being unloaded.
    fn module(&self) -> Option<Self::Module>;

    /// Takes the parts apart.
    fn split(&self, parts: Self::Parts) -> (Self::Disk, Self::Dax, Self::Memory);

    /// Refuses translations that ask for a page frame number, and unmaps what is mapped.
    ///
    /// References the files that have pinned pages, or that a page fault may be about to map pages
    /// of: removing the disk would evict these files, and wait for the pins. Faults are not waited
    /// for.
    fn close_to_mappings(&self, memory: &mut Self::Memory);

    /// Removes the disk: file systems on it sync and shut down.
    fn remove_disk(&self, disk: Self::Disk) -> Self::RemovedDisk;

    /// Refuses all translations.
    fn close(&self, memory: Self::Memory) -> Self::Closed;

    /// Kills the DAX device.
    fn kill(&self, dax: Self::Dax);

    /// Takes the memory away from all files.
    fn revoke(&self, closed: Self::Closed) -> Self::Revoked;

    /// Says that the files were revoked; makes durable what was written back.
    fn revoked(&self);

    /// Finds a user of the memory.
    fn first_user(&self, memory: &mut Self::Revoked, disk: &mut Self::RemovedDisk) -> Option<User>;

    /// Waits for a user that [`first_user`](Self::first_user) has found, for a limited time, or
    /// takes the memory away from the files once more if it is [`User::PageCache`].
    fn wait_for(&self, user: User, memory: &mut Self::Revoked, disk: &mut Self::RemovedDisk);

    /// Frees the memory, which has no user.
    fn free(&self, memory: Self::Revoked, disk: Self::RemovedDisk);
}

/// How an unbind ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The range is free.
    Freed,
    /// The range is in use, and is freed by the worker.
    Retired,
}

/// Begins to take a device away. Returns whether this call did it; another one may have.
pub fn begin<E: Environment>(env: &E) -> bool {
    let begun = env.with(|teardown| {
        match core::mem::replace(&mut teardown.state, State::RemovingDisk(None)) {
            State::Bound(parts) => {
                teardown.state = State::RemovingDisk(Some(parts));
                true
            }
            other => {
                teardown.state = other;
                false
            }
        }
    });

    if begun {
        env.start_worker();
    }
    begun
}

/// Waits until the range of a device that [`begin`] was called for is free, or retires it.
///
/// It is not retired before its files were revoked. Several threads may wait; once one of them has
/// retired the range, the others return too.
pub fn wait<E: Environment>(env: &E) -> End {
    let end = env.wait_until(|teardown| {
        let hopeless = match &teardown.state {
            State::Gone => return Some(End::Freed),
            State::Retired { .. } | State::Freeing { module: Some(_) } => {
                return Some(End::Retired)
            }
            State::Draining(user) => *user == Some(User::Keeper),
            State::Freeing { module: None } => false,
            State::Bound(_) | State::RemovingDisk(_) | State::Revoking => return None,
        };
        if !env.is_over(hopeless) {
            return None;
        }

        // While the module is being unloaded, its code must not be left to the worker.
        let module = env.module()?;
        teardown.state = match &teardown.state {
            State::Draining(user) => State::Retired {
                module,
                user: *user,
            },
            _ => State::Freeing {
                module: Some(module),
            },
        };
        Some(End::Retired)
    });

    if end == End::Retired {
        env.wake_up();
    }
    end
}

/// What the worker does. Returns a reference to the module if the range had been retired.
pub fn work<E: Environment>(env: &E) -> Option<E::Module> {
    let parts = env.with(|teardown| match &mut teardown.state {
        State::RemovingDisk(parts) => parts.take(),
        _ => None,
    })?;
    let (disk, dax, mut memory) = env.split(parts);

    env.close_to_mappings(&mut memory);
    let mut disk = env.remove_disk(disk);
    let closed = env.close(memory);

    env.with(|teardown| {
        teardown.state = State::Revoking;
        teardown.dying = Some(dax);
    });
    env.start_killing();
    let mut memory = env.revoke(closed);
    env.revoked();

    // The unbinding thread may retire the range as soon as it sees this, and say for what user.
    let mut found = env.first_user(&mut memory, &mut disk);
    env.with(|teardown| teardown.state = State::Draining(found));
    env.wake_up();
    while let Some(user) = found {
        env.wait_for(user, &mut memory, &mut disk);
        found = env.first_user(&mut memory, &mut disk);
        env.with(|teardown| {
            if let State::Draining(user) | State::Retired { user, .. } = &mut teardown.state {
                *user = found;
            }
        });
        env.wake_up();
    }

    env.with(|teardown| {
        let freeing = State::Freeing { module: None };
        if let State::Retired { module, .. } = core::mem::replace(&mut teardown.state, freeing) {
            teardown.state = State::Freeing {
                module: Some(module),
            };
        }
    });
    env.free(memory, disk);
    let module = env.with(
        |teardown| match core::mem::replace(&mut teardown.state, State::Gone) {
            State::Freeing { module } => module,
            _ => None,
        },
    );
    env.wake_up();
    module
}

/// What the thread does that kills the DAX device: that waits for all `dax_read_lock` sections of
/// the system.
pub fn kill_dax<E: Environment>(env: &E) {
    if let Some(dax) = env.with(|teardown| teardown.dying.take()) {
        env.kill(dax);
    }
}
