// SPDX-License-Identifier: GPL-2.0

//! Users that keep an address of the memory.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// device-mapper holds the disk, and uses the memory by an address of its own until it closes it.
const KEEPER: Model = Model {
    setup: Setup {
        held: true,
        ..Setup::INLINE
    },
    preemptions: 4,
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
    STUBBORN_KEEPER.finds(Defect::WakeUpLost(2), "deadlock");
}
