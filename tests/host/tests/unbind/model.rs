// SPDX-License-Identifier: GPL-2.0

//! Models: threads that run concurrently in a world.

use crate::{
    defect::Defect,
    exploration,
    seen::Seen,
    setup::Setup,
    world::World, //
};
use std::rc::Rc;

/// Threads that run concurrently in a world.
pub struct Model {
    pub setup: Setup,
    /// See [`exploration::explore`].
    pub preemptions: usize,
    pub run: fn(&Rc<World>),
}

impl Model {
    /// Runs the executions, each with a new world. None may fail.
    pub fn explore(&self) -> Seen {
        let seen = Seen::default();
        let (setup, run, notes) = (self.setup, self.run, seen.clone());
        exploration::explore(self.preemptions, move || {
            run(&World::new(setup, notes.clone()));
        });
        seen
    }

    /// Runs the executions with a defect, until one fails, which must be with the expected message.
    #[track_caller]
    pub fn finds(&self, defect: Defect, expected: &str) {
        let model = Self {
            setup: Setup {
                defect: Some(defect),
                ..self.setup
            },
            ..*self
        };
        exploration::finds(&format!("{defect:?}"), expected, || {
            model.explore();
        });
    }
}
