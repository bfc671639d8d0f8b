// SPDX-License-Identifier: GPL-2.0

//! Runs of loom.

use loom::model::Builder;
use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};

/// Runs all executions, none of which may fail.
///
/// `preemptions` is the maximum number of preemptions of a thread that could go on. Without it most
/// models take too long. `LOOM_MAX_PREEMPTIONS=3` overrides it.
pub fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(run);
}

/// Runs executions until one fails, which must be with the expected message.
#[track_caller]
pub fn finds(what: &str, expected: &str, explore: impl FnOnce()) {
    let Err(payload) = catch_unwind(AssertUnwindSafe(explore)) else {
        panic!("{what} was not found");
    };
    let message = match payload.downcast_ref::<String>() {
        Some(message) => message.as_str(),
        None => payload.downcast_ref::<&str>().unwrap_or(&"?"),
    };
    assert!(
        message.contains(expected),
        "{what} was found otherwise: {message}",
    );
}
