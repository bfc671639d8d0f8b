// SPDX-License-Identifier: GPL-2.0

//! Ranges that are retired, and the end of unbind.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// Two threads unbind the same device: a driver is unbound while its provider is removed. One of
/// them starts the worker, and both wait.
const TWO_UNBINDS: Model = Model {
    setup: Setup::INLINE,
    preemptions: 3,
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
        ..Setup::INLINE
    },
    preemptions: 2,
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
    TWO_UNBINDS_AND_SIGNAL.finds(Defect::WakeUpLost(3), "deadlock");
    TWO_UNBINDS_AND_SIGNAL.finds(Defect::SignalIgnored, "deadlock");
}

/// The list of retired ranges is read, and the range is bound again if it is free, while the
/// unbinding thread and the worker race for its end.
const LIST: Model = Model {
    setup: Setup::INLINE,
    preemptions: 3,
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
        ..Setup::INLINE
    },
    preemptions: 4,
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
    SLOW_FREE.finds(Defect::WakeUpLost(1), "deadlock");
}

/// The first search for a user takes until unbind has returned. The range is not used.
const SLOW_SEARCH: Model = Model {
    setup: Setup {
        slow_search: true,
        ..Setup::INLINE
    },
    preemptions: 4,
    run: |world| {
        world.unbind();
    },
};

#[test]
fn a_range_is_retired_while_its_pages_are_searched() {
    let seen = SLOW_SEARCH.explore();
    seen.assert(&["retired"]);
    seen.assert_never(&["in time"]);
    SLOW_SEARCH.finds(Defect::NeverRetired, "deadlock");
    SLOW_SEARCH.finds(Defect::WakeUpLost(1), "deadlock");
}
