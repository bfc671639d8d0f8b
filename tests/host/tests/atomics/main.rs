// SPDX-License-Identifier: GPL-2.0

//! Models of shared state other than teardown, for [loom](https://docs.rs/loom): flushes, the
//! region, the index of bad blocks, leases, and counts of users.
//!
//! Each model includes the code that the heading of its file names, or repeats it and has to be
//! changed with it. What `unbind/main.rs` and `unbind/kernel.rs` say about loom holds here too. To
//! show that a model finds defects, each is also run with some, and must find every one.

mod badblocks;
mod counted;
#[path = "../unbind/exploration.rs"]
mod exploration;
mod flusher;
mod global;
// Most of it is used by the other models only.
#[allow(dead_code)]
#[path = "../unbind/kernel.rs"]
mod kernel;
mod lease;
mod region;
mod reports;
mod shared;

use loom::thread;
use std::rc::Rc;

/// Runs all executions of `run`, none of which may fail.
fn explore(run: impl Fn() + Sync + Send + 'static) {
    exploration::explore(3, run);
}

/// Runs executions until one fails, which must be with the expected message.
#[track_caller]
fn finds(expected: &str, run: impl Fn() + Sync + Send + 'static) {
    exploration::finds("the defect", expected, || explore(run));
}

/// Runs `work` with `shared` in a thread. What is shared is not [`Send`], but loom runs its threads
/// one at a time, in one thread of the host.
fn spawn<T: 'static>(shared: &Rc<T>, work: impl FnOnce(&T) + 'static) -> thread::JoinHandle<()> {
    let shared = shared.clone();
    thread::spawn(move || work(&shared))
}
