// SPDX-License-Identifier: GPL-2.0

//! Models of the suspension of a disk, for [loom](https://docs.rs/loom).
//!
//! The threads run the driver's own code. `world.rs` has models of the functions that it calls, and
//! of the programs that write. What `unbind/main.rs` and `unbind/kernel.rs` say about loom holds
//! here too.
//!
//! Every model asserts:
//!
//! - From when `suspend` has returned until the suspension ends, the medium does not change.
//! - At the end the disk is live, nothing is frozen, and each write and each store was executed
//!   once. No thread sleeps for ever.
//!
//! To show that a model finds defects, it is also run with some, and must find every one.

#[path = "../unbind/exploration.rs"]
mod exploration;
// Most of it is used by the other models only.
#[allow(dead_code)]
#[path = "../unbind/kernel.rs"]
mod kernel;
mod world;

use host::suspension::{
    disable,
    resume,
    suspend,
    Cause,
    Failure,
    PinTimer, //
};
use world::{
    Defect,
    World, //
};

fn explore(defect: Defect, run: impl Fn(&World) + Sync + Send + 'static) {
    exploration::explore(2, move || {
        let world = World::new(defect);
        run(&world);
        world.end();
    });
}

#[track_caller]
fn finds(defect: Defect, expected: &str, run: impl Fn(&World) + Sync + Send + 'static) {
    exploration::finds(&format!("{defect:?}"), expected, || explore(defect, run));
}

/// A program writes a block.
fn with_writer(world: &World) {
    world.spawn(|world| world.write());
    assert_eq!(suspend(world), Ok(()));
    world.expect_still();
    assert_eq!(resume(world), Ok(()));
}

/// A program writes a block, for which its device flushes first.
fn with_flushing_writer(world: &World) {
    world.spawn(|world| world.write_after_flush());
    assert_eq!(suspend(world), Ok(()));
    world.expect_still();
    assert_eq!(resume(world), Ok(()));
}

/// A program stores to a page that was mapped before.
fn with_mapping(world: &World) {
    world.spawn(|world| world.store());
    assert_eq!(suspend(world), Ok(()));
    world.expect_still();
    assert_eq!(resume(world), Ok(()));
}

/// The time passes at some moment.
fn with_limit(world: &World) {
    world.spawn(|world| world.pass_time());
    match suspend(world) {
        Ok(()) => match resume(world) {
            Ok(()) | Err(Failure::Busy | Failure::Live) => {}
            other => panic!("resume: {other:?}"),
        },
        other => assert_eq!(other, Err(Failure::Ended(Cause::Limit))),
    }
}

/// The thread that waits for the worker is killed.
fn with_signal(world: &World) {
    world.spawn(|world| world.signal());
    match suspend(world) {
        Ok(()) => match resume(world) {
            Ok(()) | Err(Failure::Killed) => {}
            other => panic!("resume: {other:?}"),
        },
        other => assert_eq!(other, Err(Failure::Killed)),
    }
}

/// The thread is killed while the file system cannot be frozen.
fn with_signal_while_it_freezes(world: &World) {
    world.begin_call();
    world.spawn(|world| world.signal());
    assert_eq!(suspend(world), Err(Failure::Killed));
    world.end_call();
}

/// The device is going to be torn down.
fn with_teardown(world: &World) {
    world.spawn(|world| {
        disable(world);
        world.wait_live();
        assert_eq!(suspend(world), Err(Failure::Disabled));
    });
    match suspend(world) {
        Ok(()) => match resume(world) {
            // Not Busy: the caller would try again.
            Ok(()) | Err(Failure::Live | Failure::Disabled) => {}
            other => panic!("resume: {other:?}"),
        },
        Err(Failure::Disabled | Failure::Ended(Cause::Leaving)) => {}
        other => panic!("suspend: {other:?}"),
    }
}

/// The same while the file system cannot be frozen. The teardown waits for the thread.
fn with_teardown_while_it_freezes(world: &World) {
    world.begin_call();
    world.spawn(disable);
    assert_eq!(suspend(world), Err(Failure::Disabled));
    world.end_call();
}

/// Two programs suspend the disk.
fn with_two(world: &World) {
    let attempt = |world: &World| match suspend(world) {
        Ok(()) => {
            world.expect_still();
            assert_eq!(resume(world), Ok(()));
        }
        other => assert_eq!(other, Err(Failure::Busy)),
    };

    world.spawn(attempt);
    attempt(world);
}

/// Something else has thawed a file system. Another program suspends the disk and resumes it
/// meanwhile, without that.
fn with_later_suspension(world: &World) {
    assert_eq!(suspend(world), Ok(()));
    world.thaw_by_another();
    world.spawn(|world| match suspend(world) {
        Ok(()) => assert_eq!(resume(world), Ok(())),
        other => assert_eq!(other, Err(Failure::Busy)),
    });
    assert_eq!(resume(world), Err(Failure::Thawed));
}

/// Another program resumes the disk while it is being suspended.
fn with_early_resume(world: &World) {
    world.spawn(|world| match resume(world) {
        Ok(()) | Err(Failure::Busy | Failure::Live) => {}
        other => panic!("early: {other:?}"),
    });
    match suspend(world) {
        Ok(()) => match resume(world) {
            Ok(()) | Err(Failure::Busy | Failure::Live) => {}
            other => panic!("resume: {other:?}"),
        },
        other => assert_eq!(other, Err(Failure::Ended(Cause::Resumed))),
    }
}

#[test]
fn writes_are_held_and_executed_later() {
    explore(Defect::None, with_writer);
    explore(Defect::None, with_flushing_writer);
    finds(
        Defect::NotSettled,
        "the medium has changed",
        with_flushing_writer,
    );
    finds(Defect::NotDrained, "the medium has changed", with_writer);
    finds(Defect::CheckedOnce, "is not executed", with_writer);
}

#[test]
fn stores_wait_and_are_executed_later() {
    explore(Defect::None, with_mapping);
    finds(
        Defect::UnmappedFirst,
        "the medium has changed",
        with_mapping,
    );
    finds(Defect::NotUnmapped, "the medium has changed", with_mapping);
}

#[test]
fn the_limit_ends_it() {
    explore(Defect::None, with_limit);
}

#[test]
fn a_fatal_signal_ends_the_wait() {
    explore(Defect::None, with_signal);
    explore(Defect::None, with_signal_while_it_freezes);
    finds(
        Defect::SignalIgnored,
        "deadlock",
        with_signal_while_it_freezes,
    );
}

#[test]
fn a_teardown_ends_it_for_good() {
    explore(Defect::None, with_teardown);
    explore(Defect::None, with_teardown_while_it_freezes);
}

#[test]
fn one_suspends_it_at_a_time() {
    explore(Defect::None, with_two);
}

#[test]
fn a_freeze_that_fails_leaves_nothing() {
    explore(Defect::None, |world| {
        world.fail();
        assert_eq!(suspend(world), Err(Failure::Failed(())));
        assert_eq!(resume(world), Err(Failure::Live));
        assert_eq!(suspend(world), Ok(()));
        assert_eq!(resume(world), Ok(()));
    });
}

#[test]
fn a_thaw_by_another_program_is_told() {
    explore(Defect::None, |world| {
        assert_eq!(suspend(world), Ok(()));
        world.thaw_by_another();
        assert_eq!(resume(world), Err(Failure::Thawed));
    });
}

#[test]
fn each_thread_gets_the_result_of_its_own_suspension() {
    explore(Defect::None, with_later_suspension);
    explore(Defect::None, with_early_resume);
}

#[test]
fn a_user_that_has_come_meanwhile_ends_it() {
    explore(Defect::None, |world| {
        world.spawn(|world| world.write());
        world.set_other_user(true);
        assert_eq!(suspend(world), Err(Failure::Failed(())));
        world.set_other_user(false);
        assert_eq!(suspend(world), Ok(()));
        assert_eq!(resume(world), Ok(()));
    });
}

#[test]
fn the_time_of_a_pin_begins_when_it_is_found() {
    let mut timer = PinTimer::default();

    // A scan that takes long is not counted.
    assert!(!timer.is_over(7, 5000, 1000));
    assert!(!timer.is_over(7, 6000, 1000));
    // Nor is the time of a page before it.
    assert!(!timer.is_over(8, 6500, 1000));
    assert!(!timer.is_over(8, 7500, 1000));
    assert!(timer.is_over(8, 7501, 1000));
}
