// SPDX-License-Identifier: GPL-2.0

//! The system goes down while unbind waits. No user goes before unbind has returned, and no
//! deadline passes.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// A page is pinned.
const PINNED: Model = Model {
    setup: Setup {
        pinned: true,
        no_deadline: true,
        ..Setup::INLINE
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.go_down());
        world.unbind();
        world.unpin();
    },
};

/// As `PINNED`. The `struct page`s are on the medium, and the deadline has passed.
const ON_MEDIUM: Model = Model {
    setup: Setup {
        on_medium: true,
        no_deadline: false,
        ..PINNED.setup
    },
    ..PINNED
};

/// A program has opened the disk, and has been given notice.
const OPEN: Model = Model {
    setup: Setup {
        bound: true,
        opened: true,
        no_deadline: true,
        stubborn: true,
        ..Setup::INLINE
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.go_down());
        world.leave_and_unbind();
    },
};

#[test]
fn a_range_in_use_is_retired() {
    for model in [PINNED, ON_MEDIUM] {
        let seen = model.explore();
        seen.assert(&["retired"]);
        seen.assert_never(&["in time"]);
        model.finds(Defect::GoingDownIgnored, "deadlock");
        model.finds(Defect::NotWokenToGoDown, "deadlock");
    }
}

#[test]
fn the_notice_ends() {
    OPEN.explore().assert(&["in time"]);
    OPEN.finds(Defect::GoingDownIgnored, "deadlock");
    OPEN.finds(Defect::NotWokenToGoDown, "deadlock");
}
