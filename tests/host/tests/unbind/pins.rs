// SPDX-License-Identifier: GPL-2.0

//! Pinned pages, and fatal signals while unbind waits for them.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// A process that has mapped a page pins it, or fails to, because it is being unmapped; unpins it;
/// and exits.
const PIN: Model = Model {
    setup: Setup {
        mapped: true,
        ..Setup::INLINE
    },
    preemptions: 3,
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
        ..Setup::INLINE
    },
    preemptions: 2,
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
