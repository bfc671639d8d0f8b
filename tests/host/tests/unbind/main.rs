// SPDX-License-Identifier: GPL-2.0

//! Models of how a device is taken away, which [loom](https://docs.rs/loom) goes through.
//!
//! `protocol.rs` has what `driver/unbind.rs` does, and those who use the memory meanwhile; `kernel.rs` has
//! what both need of the kernel. Here are the models: who takes part, and how the world is when they
//! begin. Loom runs each of them in all orders of what the threads do to each other, and with all values
//! that the memory model lets them read, as long as threads are not preempted more often than the model
//! says.
//!
//! What must hold is asserted where it matters, in every model:
//!
//! - The memory is freed once, and everything has ended then. Nobody sleeps for ever.
//! - When it is freed, no page table maps it, no entry of a page cache names it, nobody has a reference
//!   or a claim, and every access that was made is ordered before that.
//! - When unbind returns, no page table maps the memory, and none does after that. If it returns in
//!   time, everything is free; otherwise the range is on the list of retired ones until it is.
//!
//! A model that finds nothing may be blind. So each of them is run with the defects that it is there
//! for, too, and has to find every one.

mod kernel;
mod protocol;

use kernel::Torn;
use protocol::{
    Defect,
    Model,
    Setup, //
};

/// Most models are not about how the DAX device is killed.
const INLINE: Setup = Setup {
    killed_inline: true,
    ..Setup::IDLE
};

/// Two threads unbind the same device. The lock of the device does not let it come to that; if it
/// did, one of them would find that there is nothing left to do.
const TWO_UNBINDS: Model = Model {
    setup: INLINE,
    preemptions: Some(4),
    run: |world| {
        world.spawn(|world| world.unbind());
        world.unbind();
    },
};

#[test]
fn one_of_two_unbinds_does_it() {
    TWO_UNBINDS
        .explore()
        .assert(&["a second unbind", "retired", "in time"]);
}

#[test]
fn a_state_that_changes_in_two_steps_is_found() {
    let two_unbinds = Model::<Torn> {
        setup: TWO_UNBINDS.setup,
        preemptions: TWO_UNBINDS.preemptions,
        run: |world| {
            world.spawn(|world| world.unbind());
            world.unbind();
        },
    };
    two_unbinds.fails("begun twice");

    // Unbind and the worker.
    let one_unbind = Model::<Torn> {
        run: |world| world.unbind(),
        ..two_unbinds
    };
    one_unbind.fails("drained, as unbind and the worker see it");
}

/// Somebody looks at the list of retired ranges and tries to bind the range again, while unbind and
/// the worker race for its end.
const LOOK: Model = Model {
    setup: INLINE,
    preemptions: Some(3),
    run: |world| {
        world.spawn(|world| world.look());
        world.unbind();
    },
};

#[test]
fn a_retired_range_is_on_the_list_and_reserved() {
    LOOK.explore()
        .assert(&["retired, when looked at", "bound again", "in time"]);
}

#[test]
fn defects_of_the_end_are_found() {
    LOOK.finds(Defect::ListedLate, "still on the list");
    LOOK.finds(Defect::StaysListed, "not retired");
    LOOK.finds(Defect::NeverUnlisted, "still on the list");
    LOOK.finds(Defect::DoneEarly, "when unbind returns");
    LOOK.finds(Defect::UnreservedEarly, "Causality violation");
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
fn a_request_ends_before_the_memory_goes() {
    REQUEST.explore().assert(&["a request", "in time"]);
}

#[test]
fn a_disk_that_does_not_wait_for_requests_is_found() {
    REQUEST.finds(Defect::RequestsIgnored, "Causality violation");
}

/// A page fault, the first one of the device, is somewhere between the lock of its entry and that of the
/// page table. The worker walks through the files when the gate is closed, perhaps while the other work
/// item still waits for readers (SRCU), and again after that.
const FAULT: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.fault());
        world.unbind();
    },
};

/// As above, while some other reader hangs in its section until unbind has returned. So unbind has
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

/// Another fault is recorded as the first one of the device, and the device is killed only when unbind
/// has returned: a file system that is told first may take as long as it likes.
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

/// As the first one, but the files are walked through only once, when nobody is inside of the device.
const FAULT_BEFORE_DEATH: Model = Model {
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
fn a_hanging_reader_does_not_hold_up_unbind() {
    FAULT_AND_HANGING_READER
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "walked early"]);
    FAULT_AND_HANGING_READER.finds(Defect::NeverRetired, "deadlock");
}

#[test]
fn it_does_not_matter_whose_fault_was_the_first() {
    TWO_FAULTS
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "walked early"]);
    TWO_FAULTS.finds(Defect::ExposureAcquired, "mapped");
}

#[test]
fn a_fault_from_before_death_leaves_nothing_behind() {
    FAULT_BEFORE_DEATH
        .explore()
        .assert(&["mapped", "SIGBUS", "retired", "in time"]);
}

#[test]
fn defects_of_the_walk_are_found() {
    let model = FAULT_BEFORE_DEATH;

    model.finds(Defect::LockedEntriesIgnored, "of a page that is in use");
    model.finds(Defect::UnmappedOnce, "mapped when unbind returns");
    model.finds(Defect::WalkBeforeGate, "while it is mapped");
    model.finds(Defect::RetiredUnrevoked, "mapped after unbind returned");
}

#[test]
fn defects_of_the_gate_are_found() {
    for model in [FAULT, FAULT_AND_HANGING_READER] {
        model.finds(Defect::NoGate, "mapped");
        model.finds(Defect::NoBarrier, "mapped");
        model.finds(Defect::ExposedLate, "mapped");
    }
}

/// A page fault of a `MAP_SYNC` mapping: its entry is not locked all the time, and what it inserts last
/// was translated long before. Only the invalidate lock, which it holds all the time, makes the walk
/// wait for it.
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

/// Somebody reads a file, which copies inside of the read-side section.
const READ: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.read());
        world.unbind();
    },
};

#[test]
fn a_read_ends_before_the_memory_goes() {
    READ.explore().assert(&["read", "retired", "in time"]);
}

#[test]
fn memory_that_goes_before_the_device_is_dead_is_found() {
    READ.finds(Defect::DeathUnawaited, "Causality violation");
    READ.finds(Defect::TranslationsIgnored, "Causality violation");
}

/// A process that has mapped a page pins it, or fails to, because it is being unmapped; lets go of it;
/// and ends.
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

/// As above, but it lets go only when unbind has returned.
const STUBBORN_PIN: Model = Model {
    setup: Setup {
        stubborn: true,
        ..PIN.setup
    },
    ..PIN
};

#[test]
fn a_pin_keeps_the_memory() {
    PIN.explore()
        .assert(&["pinned", "retired", "in time", "walked again"]);
}

#[test]
fn a_pin_does_not_hold_up_unbind() {
    STUBBORN_PIN
        .explore()
        .assert(&["pinned", "retired", "in time", "walked again"]);
    STUBBORN_PIN.finds(Defect::NeverRetired, "deadlock");
}

#[test]
fn defects_of_the_drain_are_found() {
    PIN.finds(Defect::PinsIgnored, "freed while");
    PIN.finds(Defect::EntriesIgnored, "freed while an entry names it");
    PIN.finds(Defect::NoGracePeriod, "Causality violation");
}

/// The inode of a file is on its way out, so that no walk finds it. Its entry goes when the page is
/// not pinned any more. What the entry names is read without the lock under which it goes.
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

/// As above, and the page is pinned until unbind has returned.
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
fn an_inode_on_its_way_out_is_waited_for() {
    EVICTION
        .explore()
        .assert(&["evicted", "walked again", "retired", "in time"]);
    EVICTION.finds(Defect::EntriesIgnored, "freed while an entry names it");
    EVICTION.finds(Defect::NoGracePeriod, "freed while an entry names it");
}

#[test]
fn an_inode_on_its_way_out_does_not_hold_up_unbind() {
    EVICTION_OF_A_PIN
        .explore()
        .assert(&["evicted", "walked again", "retired"]);
    EVICTION_OF_A_PIN.finds(Defect::NeverRetired, "deadlock");
}

/// device-mapper has claimed the disk, and uses the memory by an address of its own until it closes it.
const CLAIM: Model = Model {
    setup: Setup {
        claimed: true,
        ..INLINE
    },
    preemptions: Some(4),
    run: |world| {
        world.spawn(|world| world.use_claim());
        world.unbind();
    },
};

/// As above, but it closes the disk only when unbind has returned, whose deadline does not pass: it is
/// told that waiting is hopeless.
const STUBBORN_CLAIM: Model = Model {
    setup: Setup {
        stubborn: true,
        patient: true,
        ..CLAIM.setup
    },
    ..CLAIM
};

#[test]
fn a_claim_keeps_the_memory() {
    CLAIM.explore().assert(&["retired", "in time"]);
    CLAIM.finds(Defect::ClaimsIgnored, "freed while somebody has claimed it");
}

#[test]
fn a_claim_does_not_hold_up_unbind() {
    STUBBORN_CLAIM.explore().assert(&["retired"]);
    STUBBORN_CLAIM.finds(Defect::NeverRetired, "deadlock");
    STUBBORN_CLAIM.finds(Defect::NeverHopeless, "deadlock");
}

/// A program pins a page that it has mapped, and unmaps and closes the file, while the disk is being
/// removed. That evicts files that nobody has, which waits for pins, and this one is there until unbind
/// has returned.
const CLOSE: Model = Model {
    setup: Setup {
        mapped: true,
        closing: true,
        stubborn: true,
        ..INLINE
    },
    preemptions: Some(2),
    run: |world| {
        world.spawn(|world| world.use_and_close());
        world.unbind();
    },
};

/// As above, but the page is first touched while the device is being taken away.
const USE_AND_CLOSE: Model = Model {
    setup: Setup {
        mapped: false,
        ..CLOSE.setup
    },
    ..CLOSE
};

#[test]
fn a_file_that_is_held_does_not_hold_up_the_disk() {
    CLOSE.explore().assert(&["pinned", "retired", "in time"]);
    CLOSE.finds(Defect::FilesNotHeld, "deadlock");
}

#[test]
fn a_file_that_is_used_too_late_to_be_held_cannot_be_pinned() {
    USE_AND_CLOSE
        .explore()
        .assert(&["pinned", "SIGBUS", "retired", "in time"]);
    USE_AND_CLOSE.finds(Defect::NoGate, "deadlock");
    USE_AND_CLOSE.finds(Defect::FilesNotHeld, "deadlock");
}

/// The module is unloaded as soon as that is possible. Its exit waits for the queue, provided that it
/// has the last reference to it; a worker that has it would wait for itself, and lose its code.
const UNLOAD: Model = Model {
    setup: Setup {
        unloading: true,
        ..INLINE
    },
    preemptions: Some(3),
    run: |world| {
        world.unbind();
        world.unload();
    },
};

#[test]
fn the_module_goes_when_the_worker_has_gone() {
    UNLOAD.explore().assert(&["retired", "in time"]);
    UNLOAD.finds(Defect::SharedUsedLate, "the code goes before the queue");
}

/// When unbind has returned, everybody who comes gets an error, whether the range is retired or free.
const LATE: Model = Model {
    setup: Setup::IDLE,
    preemptions: Some(3),
    run: |world| {
        world.unbind();
        world.come_late();
    },
};

/// As above, with a page that is still pinned, so that its entry is still there.
const LATE_AND_PINNED: Model = Model {
    setup: Setup {
        pinned: true,
        ..Setup::IDLE
    },
    preemptions: Some(2),
    run: |world| {
        world.unbind();
        world.come_late();
        world.unpin();
    },
};

#[test]
fn who_comes_late_gets_an_error() {
    LATE.explore().assert(&["retired", "in time"]);
    LATE_AND_PINNED.explore().assert(&["retired"]);
    LATE.finds(Defect::RetiredUnrevoked, "mapped after unbind returned");
}
