// SPDX-License-Identifier: GPL-2.0

//! Planted bugs: a module has one for each checker of the debug kernel. All of these tests must
//! fail; the runner knows the expected messages.
//!
//! lockdep goes first, because the first report of another checker switches it off.

use super::{Suite, Test};
use crate::command::run;

pub const SUITE: Suite = Suite {
    name: "planted",
    tests: &[
        Test::new("lock_inversion", |_| plant(3)),
        Test::new("leak", |_| plant(4)),
        Test::new("use_after_free", |_| plant(1)),
        Test::new("sleep_in_atomic", |_| plant(2)),
        // It leaves the module half loaded.
        Test::new("overflow", |_| plant(5)),
    ],
};

fn plant(bug: u8) -> anyhow::Result<()> {
    run("modprobe", &["planted", &format!("bug={bug}")])?;
    run("rmmod", &["planted"])?;
    Ok(())
}
