// SPDX-License-Identifier: GPL-2.0

//! Inodes that are evicted, closed, or truncated, during the teardown.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// The inode of a file is being evicted, so that no walk finds it. Its entry is removed when the
/// page is no longer pinned. Whether the entry refers to the page is read without the lock under
/// which it is removed.
const EVICTION: Model = Model {
    setup: Setup {
        evicting: true,
        ..Setup::INLINE
    },
    preemptions: 3,
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
    preemptions: 2,
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

/// A program pins a page that it has mapped, and unmaps and closes the file, while the disk is
/// being removed. That evicts files that are not referenced, which waits for pins, and this one is
/// there until unbind has returned.
const CLOSE: Model = Model {
    setup: Setup {
        mapped: true,
        closing: true,
        stubborn: true,
        ..Setup::INLINE
    },
    preemptions: 2,
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
    preemptions: 2,
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
    preemptions: 2,
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

/// A truncate waits for a pinned page. Until it has read the count of references again, only the
/// entry keeps the page.
const TRUNCATE: Model = Model {
    setup: Setup {
        pinned: true,
        ..Setup::INLINE
    },
    preemptions: 1,
    run: |world| {
        world.spawn(|world| world.truncate());
        world.spawn(|world| world.unpin());
        world.unbind();
    },
};

#[test]
fn a_truncate_that_waits_for_a_pin_keeps_the_page() {
    TRUNCATE.explore().assert(&[
        "waited to truncate",
        "truncated",
        "walked again",
        "retired",
        "in time",
    ]);
    TRUNCATE.finds(Defect::NoInodeLock, "a page that is free is read");
}
