// SPDX-License-Identifier: GPL-2.0

//! The notice before a teardown.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// A program closes the disk at some moment. The time of the notice does not pass.
const CLOSED: Model = Model {
    setup: Setup {
        bound: true,
        opened: true,
        no_deadline: true,
        ..Setup::INLINE
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.close_disk());
        world.leave_and_unbind();
    },
};

/// A program closes the disk only when unbind has returned. The time of the notice passes at some
/// moment.
const STUBBORN: Model = Model {
    setup: Setup {
        no_deadline: false,
        stubborn: true,
        ..CLOSED.setup
    },
    ..CLOSED
};

/// As `STUBBORN`. The time does not pass, but the unbinding thread gets a fatal signal.
const SIGNAL: Model = Model {
    setup: Setup {
        stubborn: true,
        ..CLOSED.setup
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.signal());
        world.leave_and_unbind_killable();
    },
};

/// As `STUBBORN`. The time does not pass, but the provider is removed.
const PROVIDER: Model = Model {
    setup: Setup {
        stubborn: true,
        ..CLOSED.setup
    },
    preemptions: 2,
    run: |world| {
        world.spawn(|world| world.remove_provider());
        world.leave_and_unbind();
    },
};

#[test]
fn unbind_waits_until_the_disk_is_closed() {
    let seen = CLOSED.explore();
    seen.assert(&["in time"]);
    seen.assert_never(&["retired", "a second unbind"]);
    CLOSED.finds(Defect::NoticeIgnored, "revoked while it is open");
}

#[test]
fn unbind_waits_no_longer_than_the_notice() {
    STUBBORN.explore().assert(&["in time"]);
}

#[test]
fn a_fatal_signal_ends_the_notice() {
    SIGNAL.explore().assert(&["in time"]);
    SIGNAL.finds(Defect::SignalIgnored, "deadlock");
}

#[test]
fn the_removal_of_the_provider_ends_the_notice() {
    PROVIDER.explore().assert(&["in time", "a second unbind"]);
}

#[test]
fn nothing_is_revoked_before_it_is_announced() {
    CLOSED.finds(Defect::AnnouncedLate, "revoked before it was announced");
    PROVIDER.finds(Defect::AnnouncedLate, "revoked before it was announced");
}
