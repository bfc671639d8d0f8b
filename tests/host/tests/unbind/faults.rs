// SPDX-License-Identifier: GPL-2.0

//! Page faults during the teardown.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// A page fault, the first one of the device, is somewhere between the lock of its entry and that
/// of the page table. The worker walks the files when access is closed, perhaps while the other
/// thread still waits for readers (SRCU), and again after that.
const FAULT: Model = Model {
    setup: Setup::IDLE,
    preemptions: 2,
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
    preemptions: 2,
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
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.other_fault());
        world.spawn(|world| world.fault());
        world.unbind();
        world.kill_dax();
    },
};

/// As `FAULT`, but the files are walked only once, when there is no reader inside of the device.
const FAULT_BEFORE_KILL: Model = Model {
    setup: Setup::INLINE,
    preemptions: 3,
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

/// A fault copies from the device to another one. No page of the device is ever exposed.
const COPYING_FAULT: Model = Model {
    setup: Setup {
        indirect: true,
        ..Setup::INLINE
    },
    preemptions: 3,
    run: |world| {
        world.spawn(|world| world.copying_fault());
        world.unbind();
    },
};

/// The same while another reader hangs in its section until unbind has returned.
const COPYING_FAULT_AND_HANGING_READER: Model = Model {
    setup: Setup {
        indirect: true,
        ..FAULT_AND_HANGING_READER.setup
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.copying_fault());
        world.unbind();
        world.leave();
    },
};

#[test]
fn memory_stays_while_a_fault_copies_from_it() {
    COPYING_FAULT.explore().assert(&["copied", "in time"]);
    COPYING_FAULT_AND_HANGING_READER
        .explore()
        .assert(&["copied", "retired"]);
    for model in [COPYING_FAULT, COPYING_FAULT_AND_HANGING_READER] {
        model.finds(Defect::CopiesIgnored, "Causality violation");
        model.finds(Defect::LockedEntriesIgnored, "Causality violation");
    }
}

/// A page fault of a `MAP_SYNC` mapping: its entry is not locked all the time, and what it inserts
/// last was translated long before. Only the invalidate lock, which it holds all the time, makes
/// the walk wait for it.
const SYNC_FAULT: Model = Model {
    setup: Setup::INLINE,
    preemptions: 3,
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
