// SPDX-License-Identifier: GPL-2.0

//! The unloading of the module.

use crate::{
    defect::Defect,
    model::Model,
    setup::Setup, //
};

/// The module is unloaded as soon as there is no reference to it. Its exit waits for the work queue
/// of the teardown.
const UNLOAD: Model = Model {
    setup: Setup {
        unloaded: true,
        ..Setup::IDLE
    },
    preemptions: 2,
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
        ..Setup::INLINE
    },
    preemptions: 2,
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
        ..Setup::INLINE
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
    UNLOADING.finds(Defect::WakeUpLost(2), "deadlock");
}
