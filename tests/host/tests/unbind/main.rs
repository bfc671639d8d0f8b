// SPDX-License-Identifier: GPL-2.0

//! Models of teardown, for [loom](https://docs.rs/loom).
//!
//! The threads of the teardown run the driver's own code. `environment.rs` has models of the
//! functions that it calls, and of the users of the memory; `kernel.rs` has the primitives of the
//! kernel for both. This file has the models: which threads take part, and the initial state. Loom
//! runs each of them in all orders of the threads' interactions, and with all values that the
//! memory model lets them read, as long as threads are not preempted more often than the model
//! says.
//!
//! Every model asserts:
//!
//! - The memory is freed once, and all threads have ended then. No thread sleeps for ever.
//! - When it is freed, no page table maps it, no entry of a page cache refers to it, there is no
//!   reference and no keeper, and every access is ordered before that.
//! - When unbind returns, no page table maps the memory, and none does after that. If it returns in
//!   time, the range is free; otherwise it is retired until it is free.
//! - The worker gets a reference to the module if and only if the range was retired.
//!
//! To show that a model finds defects, each of them is also run with those that it is for, and must
//! find every one.

mod environment;
mod kernel;

use environment::{
    Defect,
    Model,
    Setup, //
};

/// Most models are not about the kill of the DAX device.
const INLINE: Setup = Setup {
    killed_inline: true,
    ..Setup::IDLE
};

/// Two threads unbind the same device: a driver is unbound while its provider is removed. One of
/// them starts the worker, and both wait.
const TWO_UNBINDS: Model = Model {
    setup: INLINE,
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| {
            world.unbind();
        });
        world.unbind();
    },
};

/// As `TWO_UNBINDS`, with a page that is pinned until both have returned. One of them has got a
/// fatal signal, and the other one has no deadline of its own.
const TWO_UNBINDS_AND_SIGNAL: Model = Model {
    setup: Setup {
        pinned: true,
        no_deadline: true,
        ..INLINE
    },
    preemptions: Some(2),
    run: |world| {
        let other = world.spawn(|world| {
            world.unbind();
        });
        world.signal();
        world.unbind_killable();
        other.join().unwrap();
        world.unpin();
    },
};

#[test]
fn one_of_two_unbinds_tears_down() {
    TWO_UNBINDS
        .explore()
        .assert(&["a second unbind", "retired", "in time"]);
}

#[test]
fn a_range_that_one_unbind_has_retired_does_not_delay_another() {
    let seen = TWO_UNBINDS_AND_SIGNAL.explore();
    seen.assert(&["a second unbind", "retired"]);
    seen.assert_never(&["in time"]);
    TWO_UNBINDS_AND_SIGNAL.finds(Defect::WakeUpLost(1), "deadlock");
    TWO_UNBINDS_AND_SIGNAL.finds(Defect::SignalIgnored, "deadlock");
}

/// The list of retired ranges is read, and the range is bound again if it is free, while the
/// unbinding thread and the worker race for its end.
const LIST: Model = Model {
    setup: INLINE,
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| world.read_list());
        world.unbind();
    },
};

#[test]
fn a_retired_range_is_on_the_list_and_reserved() {
    LIST.explore()
        .assert(&["retired, when looked at", "bound again", "in time"]);
}

#[test]
fn defects_of_the_end_are_found() {
    LIST.finds(Defect::FreedLater, "not free in time");
    LIST.finds(Defect::UnreservedEarly, "Causality violation");
}

/// The range has no user, but freeing it takes until unbind has returned.
const SLOW_FREE: Model = Model {
    setup: Setup {
        slow_free: true,
        ..INLINE
    },
    preemptions: Some(4),
    run: |world| {
        world.unbind();
    },
};

#[test]
fn a_range_is_retired_while_it_is_freed() {
    let seen = SLOW_FREE.explore();
    seen.assert(&["retired", "retired while it is freed"]);
    seen.assert_never(&["in time"]);
    SLOW_FREE.finds(Defect::NeverRetired, "deadlock");
    SLOW_FREE.finds(Defect::WakeUpLost(0), "deadlock");
}

/// A request is inside of `submit_bio()`, or about to be, when the disk is removed.
const REQUEST: Model = Model {
    setup: INLINE,
    preemptions: Some(4),
    run: |world| {
        world.spawn(|world| {
            world.request();
        });
        world.unbind();
    },
};

#[test]
fn a_request_ends_before_the_memory_is_freed() {
    REQUEST.explore().assert(&["a request", "in time"]);
}

#[test]
fn a_disk_that_does_not_wait_for_requests_is_found() {
    REQUEST.finds(Defect::RequestsIgnored, "Causality violation");
}

/// A page fault, the first one of the device, is somewhere between the lock of its entry and that
/// of the page table. The worker walks the files when access is closed, perhaps while the other
/// thread still waits for readers (SRCU), and again after that.
const FAULT: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.fault());
        world.unbind();
    },
};

/// As `FAULT`, while another reader hangs in its section until unbind has returned. So unbind has
/// to return after the early walk.
const FAULT_AND_HANGING_READER: Model = Model {
    setup: Setup {
        stuck: true,
        ..Setup::IDLE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.fault());
        world.unbind();
        world.leave();
    },
};

/// Another fault is recorded as the first one of the device, and the device is killed only when
/// unbind has returned: a file system that is notified first may take any time.
const TWO_FAULTS: Model = Model {
    setup: Setup {
        killed_late: true,
        ..Setup::IDLE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.other_fault());
        world.spawn(|world| world.fault());
        world.unbind();
        world.kill_dax();
    },
};

/// As `FAULT`, but the files are walked only once, when there is no reader inside of the device.
const FAULT_BEFORE_KILL: Model = Model {
    setup: INLINE,
    preemptions: Some(3),
    run: FAULT.run,
};

#[test]
fn a_fault_under_way_leaves_nothing_behind() {
    FAULT
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "in time", "walked early"]);
}

#[test]
fn a_hanging_reader_does_not_delay_unbind() {
    FAULT_AND_HANGING_READER
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "walked early"]);
    FAULT_AND_HANGING_READER.finds(Defect::NeverRetired, "deadlock");
}

#[test]
fn any_fault_may_be_the_first() {
    TWO_FAULTS
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "walked early"]);
    TWO_FAULTS.finds(Defect::ExposureAcquired, "mapped");
}

#[test]
fn a_fault_before_the_kill_leaves_nothing_behind() {
    FAULT_BEFORE_KILL
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "in time"]);
}

#[test]
fn defects_of_the_walk_are_found() {
    let model = FAULT_BEFORE_KILL;

    model.finds(Defect::LockedEntriesIgnored, "of a page that is in use");
    model.finds(Defect::UnmappedOnce, "mapped when unbind returns");
    model.finds(Defect::WalkBeforeClose, "freed while");
    model.finds(Defect::RevokedUnwalked, "mapped");
}

#[test]
fn defects_of_the_access_state_are_found() {
    for model in [FAULT, FAULT_AND_HANGING_READER] {
        model.finds(Defect::AccessStateIgnored, "mapped");
        model.finds(Defect::NoBarrier, "mapped");
        model.finds(Defect::NoFaultBarrier, "mapped");
        model.finds(Defect::ExposedLate, "mapped");
    }
}

/// A page fault of a `MAP_SYNC` mapping: its entry is not locked all the time, and what it inserts
/// last was translated long before. Only the invalidate lock, which it holds all the time, makes
/// the walk wait for it.
const SYNC_FAULT: Model = Model {
    setup: INLINE,
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| world.sync_fault());
        world.unbind();
    },
};

#[test]
fn a_synchronous_fault_leaves_nothing_behind() {
    SYNC_FAULT
        .explore()
        .assert(&["mapped", "retired", "in time"]);
}

#[test]
fn a_walk_without_the_invalidate_lock_is_found() {
    SYNC_FAULT.finds(Defect::NoInvalidateLock, "mapped when unbind returns");
}

/// A read of a file, which copies inside of the read-side section.
const READ: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.read());
        world.unbind();
    },
};

#[test]
fn a_read_ends_before_the_memory_is_freed() {
    READ.explore().assert(&["read", "retired", "in time"]);
}

#[test]
fn memory_that_is_freed_before_the_kill_is_found() {
    READ.finds(Defect::ReadersIgnored, "Causality violation");
    READ.finds(Defect::TranslationsIgnored, "freed while it is referenced");
}

/// A process that has mapped a page pins it, or fails to, because it is being unmapped; unpins it;
/// and exits.
const PIN: Model = Model {
    setup: Setup {
        mapped: true,
        ..INLINE
    },
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| {
            world.pin();
            world.exit();
        });
        world.unbind();
    },
};

/// As `PIN`, but it unpins only when unbind has returned.
const STUBBORN_PIN: Model = Model {
    setup: Setup {
        stubborn: true,
        ..PIN.setup
    },
    ..PIN
};

/// As `STUBBORN_PIN`. The deadline does not pass, but the unbinding thread gets a fatal signal at
/// some moment.
const SIGNAL: Model = Model {
    setup: Setup {
        pinned: true,
        no_deadline: true,
        ..INLINE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.signal());
        world.unbind_killable();
        world.unpin();
    },
};

#[test]
fn a_pin_keeps_the_memory() {
    PIN.explore()
        .assert(&["pinned", "retired", "in time", "walked again"]);
}

#[test]
fn a_pin_does_not_delay_unbind() {
    STUBBORN_PIN
        .explore()
        .assert(&["pinned", "retired", "in time", "walked again"]);
    STUBBORN_PIN.finds(Defect::NeverRetired, "deadlock");
}

#[test]
fn a_fatal_signal_ends_the_wait() {
    let seen = SIGNAL.explore();
    seen.assert(&["retired"]);
    seen.assert_never(&["in time"]);
    SIGNAL.finds(Defect::SignalIgnored, "deadlock");
}

#[test]
fn defects_of_the_drain_are_found() {
    PIN.finds(Defect::PinsIgnored, "freed while");
    PIN.finds(Defect::EntriesIgnored, "freed while an entry refers to it");
    PIN.finds(Defect::NoGracePeriod, "Causality violation");
}

/// The inode of a file is being evicted, so that no walk finds it. Its entry is removed when the
/// page is no longer pinned. Whether the entry refers to the page is read without the lock under
/// which it is removed.
const EVICTION: Model = Model {
    setup: Setup {
        evicting: true,
        ..INLINE
    },
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| world.evict());
        world.unbind();
    },
};

/// As `EVICTION`, and the page is pinned until unbind has returned.
const EVICTION_OF_A_PIN: Model = Model {
    setup: Setup {
        pinned: true,
        ..EVICTION.setup
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.evict());
        world.unbind();
        world.unpin();
    },
};

#[test]
fn an_inode_that_is_being_evicted_is_waited_for() {
    EVICTION
        .explore()
        .assert(&["evicted", "walked again", "retired", "in time"]);
    EVICTION.finds(Defect::EntriesIgnored, "freed while an entry refers to it");
    EVICTION.finds(Defect::NoGracePeriod, "freed while an entry refers to it");
}

#[test]
fn an_inode_that_is_being_evicted_does_not_delay_unbind() {
    EVICTION_OF_A_PIN
        .explore()
        .assert(&["evicted", "walked again", "retired"]);
    EVICTION_OF_A_PIN.finds(Defect::NeverRetired, "deadlock");
}

/// device-mapper holds the disk, and uses the memory by an address of its own until it closes it.
const KEEPER: Model = Model {
    setup: Setup {
        held: true,
        ..INLINE
    },
    preemptions: Some(4),
    run: |world| {
        world.spawn(|world| world.use_by_keeper());
        world.unbind();
    },
};

/// As `KEEPER`, but it closes the disk only when unbind has returned, whose deadline does not pass:
/// unbind has to return because waiting is hopeless.
const STUBBORN_KEEPER: Model = Model {
    setup: Setup {
        stubborn: true,
        no_deadline: true,
        ..KEEPER.setup
    },
    ..KEEPER
};

#[test]
fn a_keeper_keeps_the_memory() {
    KEEPER.explore().assert(&["retired", "in time"]);
    KEEPER.finds(Defect::KeepersIgnored, "freed while the disk has a keeper");
}

#[test]
fn a_keeper_does_not_delay_unbind() {
    STUBBORN_KEEPER.explore().assert(&["retired"]);
    STUBBORN_KEEPER.finds(Defect::NeverRetired, "deadlock");
    STUBBORN_KEEPER.finds(Defect::KeeperWaitedForever, "deadlock");
    STUBBORN_KEEPER.finds(Defect::WakeUpLost(0), "deadlock");
}

/// A program pins a page that it has mapped, and unmaps and closes the file, while the disk is
/// being removed. That evicts files that are not referenced, which waits for pins, and this one is
/// there until unbind has returned.
const CLOSE: Model = Model {
    setup: Setup {
        mapped: true,
        closing: true,
        stubborn: true,
        ..INLINE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.pin_and_close());
        world.unbind();
    },
};

/// As `CLOSE`, but the page is first accessed during the teardown.
const FAULT_AND_CLOSE: Model = Model {
    setup: Setup {
        mapped: false,
        ..CLOSE.setup
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| {
            world.fault();
            world.pin_and_close();
        });
        world.unbind();
    },
};

/// As `FAULT_AND_CLOSE`, and the file is mapped with `MAP_SYNC`.
const SYNC_FAULT_AND_CLOSE: Model = Model {
    setup: FAULT_AND_CLOSE.setup,
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| {
            world.sync_fault();
            world.pin_and_close();
        });
        world.unbind();
    },
};

#[test]
fn a_file_that_is_held_does_not_delay_the_disk() {
    CLOSE.explore().assert(&["pinned", "retired", "in time"]);
    CLOSE.finds(Defect::FilesNotHeld, "deadlock");
}

#[test]
fn a_file_that_is_used_too_late_to_be_held_cannot_be_pinned() {
    FAULT_AND_CLOSE
        .explore()
        .assert(&["pinned", "SIGBUS", "retired", "in time"]);
    FAULT_AND_CLOSE.finds(Defect::AccessStateIgnored, "deadlock");
    FAULT_AND_CLOSE.finds(Defect::FilesNotHeld, "deadlock");
    FAULT_AND_CLOSE.finds(Defect::LockedNotHeld, "deadlock");
    FAULT_AND_CLOSE.finds(Defect::LockedReadRelaxed, "deadlock");
}

#[test]
fn a_file_that_is_used_by_a_synchronous_fault_does_not_delay_the_disk() {
    SYNC_FAULT_AND_CLOSE
        .explore()
        .assert(&["pinned", "retired", "in time"]);
    SYNC_FAULT_AND_CLOSE.finds(Defect::FilesNotLocked, "deadlock");
}

/// The module is unloaded as soon as there is no reference to it. Its exit waits for the work queue
/// of the teardown.
const UNLOAD: Model = Model {
    setup: Setup {
        unloaded: true,
        ..Setup::IDLE
    },
    preemptions: Some(2),
    run: |world| {
        world.unbind();
        world.unload();
    },
};

/// As `UNLOAD`, and a page is pinned until unbind has returned.
const UNLOAD_RETIRED: Model = Model {
    setup: Setup {
        unloaded: true,
        pinned: true,
        ..INLINE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| {
            world.unbind();
            world.unload();
        });
        world.unpin();
    },
};

/// The module is being unloaded, which unbinds the device. No reference to the module can be taken,
/// so the range is not retired, although the deadline passes.
const UNLOADING: Model = Model {
    setup: Setup {
        unloading: true,
        pinned: true,
        ..INLINE
    },
    ..UNLOAD_RETIRED
};

#[test]
fn the_module_is_unloaded_after_its_work_items() {
    UNLOAD.explore().assert(&["retired", "in time"]);
    UNLOAD.finds(Defect::QueuesNotDrained, "Causality violation");
}

#[test]
fn a_retired_range_keeps_the_module() {
    UNLOAD_RETIRED.explore().assert(&["retired", "in time"]);
    UNLOAD_RETIRED.finds(Defect::QueuesNotDrained, "Causality violation");
    UNLOAD_RETIRED.finds(
        Defect::ModuleNotKept,
        "the module is unloaded before the range is freed",
    );
}

#[test]
fn unbind_waits_while_the_module_is_unloaded() {
    let seen = UNLOADING.explore();
    seen.assert(&["in time"]);
    seen.assert_never(&["retired", "retired while it is freed"]);
    UNLOADING.finds(Defect::QueuesNotDrained, "Causality violation");
    UNLOADING.finds(Defect::WakeUpLost(1), "deadlock");
}

/// When unbind has returned, new accesses get an error, whether the range is retired or free.
const LATE: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(3),
    run: |world| {
        world.unbind();
        world.access_late();
    },
};

/// As `LATE`, with a page that is still pinned, so that its entry still exists.
const LATE_AND_PINNED: Model = Model {
    setup: Setup {
        pinned: true,
        ..Setup::IDLE
    },
    preemptions: Some(2),
    run: |world| {
        world.unbind();
        world.access_late();
        world.unpin();
    },
};

#[test]
fn late_accesses_get_an_error() {
    LATE.explore().assert(&["retired", "in time"]);
    LATE_AND_PINNED.explore().assert(&["retired"]);
    LATE.finds(Defect::AccessStateIgnored, "mapped after unbind returned");
}
