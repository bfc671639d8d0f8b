// SPDX-License-Identifier: GPL-2.0

//! Requests and reads, during the teardown and after it.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// A request is inside of `submit_bio()`, or about to be, when the disk is removed.
const REQUEST: Model = Model {
    setup: Setup::INLINE,
    preemptions: 4,
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

/// A read of a file, which copies inside of the read-side section.
const READ: Model = Model {
    setup: Setup::IDLE,
    preemptions: 2,
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

/// When unbind has returned, new accesses get an error, whether the range is retired or free.
const LATE: Model = Model {
    setup: Setup::IDLE,
    preemptions: 3,
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
    preemptions: 2,
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
