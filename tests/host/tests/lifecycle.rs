// SPDX-License-Identifier: GPL-2.0

//! Properties of the life of a range, and of the decisions about its users, on one thread.
//!
//! What several threads make of it is modelled in `unbind/`.

use host::lifecycle::{
    Drained,
    Lifecycle,
    PageUse,
    State,
    StateCell,
    Step,
    Users,
    Walk, //
};
use proptest::prelude::*;
use std::cell::Cell;

struct Plain(Cell<u32>);

impl StateCell for Plain {
    fn new(value: u32) -> Self {
        Self(Cell::new(value))
    }

    fn load(&self) -> u32 {
        self.0.get()
    }

    fn replace(&self, old: u32, new: u32) -> bool {
        let replaces = self.0.get() == old;
        if replaces {
            self.0.set(new);
        }
        replaces
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Begin,
    Retire,
    Drained,
    Freed,
}

const EVENTS: [Event; 4] = [Event::Begin, Event::Retire, Event::Drained, Event::Freed];

/// All that may happen to a state. The rest changes nothing.
const EDGES: [(State, Event, State); 5] = [
    (State::Live, Event::Begin, State::Dying),
    (State::Dying, Event::Retire, State::Retired),
    (State::Dying, Event::Drained, State::Drained),
    (State::Retired, Event::Drained, State::Drained),
    (State::Drained, Event::Freed, State::Gone),
];

/// Lets something happen. Returns whether it was said to be of effect, and when the last user went.
fn apply(life: &Lifecycle<Plain>, event: Event) -> (bool, Option<Drained>) {
    match event {
        Event::Begin => (life.begin(), None),
        Event::Retire => (life.retire(), None),
        Event::Drained => {
            let drained = life.drained();
            (drained.is_some(), drained)
        }
        Event::Freed => (life.freed(), None),
    }
}

#[test]
fn a_life_begins_live() {
    assert_eq!(Lifecycle::<Plain>::new().state(), State::Live);
    assert_eq!(Lifecycle::<Plain>::default().state(), State::Live);
}

#[test]
fn a_range_that_drains_in_time_is_never_retired() {
    let life = Lifecycle::<Plain>::new();

    assert!(life.begin());
    assert_eq!(life.drained(), Some(Drained::InTime));
    assert!(!life.retire());
    assert!(life.freed());
    assert_eq!(life.state(), State::Gone);
}

#[test]
fn a_retired_range_drains_late() {
    let life = Lifecycle::<Plain>::new();

    assert!(life.begin());
    assert!(life.retire());
    assert_eq!(life.drained(), Some(Drained::Late));
    assert!(life.freed());
    assert_eq!(life.state(), State::Gone);
}

#[test]
fn states_are_stored_as_different_numbers() {
    let states = [
        State::Live,
        State::Dying,
        State::Retired,
        State::Drained,
        State::Gone,
    ];

    for (index, state) in states.iter().enumerate() {
        let same = |other: &&State| other.to_u32() == state.to_u32();
        assert_eq!(states.iter().filter(same).count(), 1);
        assert_eq!(state.to_u32() as usize, index);
    }
}

proptest! {
    #[test]
    fn whatever_happens_a_life_goes_its_way(
        events in prop::collection::vec(prop::sample::select(&EVENTS), 0..24),
    ) {
        let life = Lifecycle::<Plain>::new();
        let mut wins = Vec::new();

        for event in events {
            let before = life.state();
            let (won, drained) = apply(&life, event);
            let after = life.state();

            let edge = EDGES.iter().find(|edge| (edge.0, edge.1) == (before, event));
            prop_assert_eq!(won, edge.is_some());
            prop_assert_eq!(after, edge.map_or(before, |edge| edge.2));
            // What retire has promised is what is said when the last user goes.
            let retired = wins.contains(&Event::Retire);
            prop_assert!(drained.is_none() || (drained == Some(Drained::Late)) == retired);

            if won {
                // Each has one winner.
                prop_assert!(!wins.contains(&event));
                wins.push(event);
            }
        }
    }

    /// Both sides try at any moment and as often as they like, as they do while they race.
    #[test]
    fn unbind_and_the_worker_agree_on_who_was_first(
        tries in prop::collection::vec(prop::sample::select(&EVENTS[1..3]), 1..8),
    ) {
        let life = Lifecycle::<Plain>::new();
        life.begin();

        let mut retired = false;
        let mut drained = None;
        for event in tries {
            let (won, when) = apply(&life, event);
            retired |= won && event == Event::Retire;
            drained = drained.or(when);
        }
        drained = drained.or_else(|| life.drained());

        prop_assert_eq!(drained, Some(if retired { Drained::Late } else { Drained::InTime }));
        prop_assert!(life.drained().is_none());
        prop_assert!(!life.retire());
    }
}

fn all_users() -> impl Iterator<Item = Users> {
    let walks = [Walk::None, Walk::Early, Walk::Complete];
    let pages = [None, Some(PageUse::Referenced), Some(PageUse::Cached)];

    (0..36).map(move |index| Users {
        dead: index % 2 != 0,
        claimed: index / 2 % 2 != 0,
        walk: walks[index / 4 % 3],
        page: pages[index / 12],
    })
}

#[test]
fn memory_is_freed_if_and_only_if_nobody_uses_it() {
    for users in all_users() {
        let unused =
            users.dead && users.walk == Walk::Complete && users.page.is_none() && !users.claimed;

        assert_eq!(users.next_step() == Step::Free, unused, "{users:?}");
    }
}

/// Nobody waits for what has happened, and no walk is made that has nothing to find: there is no
/// state in which the worker is stuck.
#[test]
fn every_step_is_one_that_can_end() {
    for users in all_users() {
        let can_end = match users.next_step() {
            Step::AwaitTranslations => !users.dead,
            Step::AwaitPage => users.page == Some(PageUse::Referenced),
            Step::AwaitClaims => users.claimed,
            Step::Walk => {
                users.walk == Walk::None
                    || (users.walk == Walk::Early && users.dead)
                    || users.page == Some(PageUse::Cached)
            }
            Step::Free => true,
        };

        assert!(can_end, "{users:?}");
    }
}

#[test]
fn the_first_step_is_a_walk_and_an_early_one_is_repeated() {
    for users in all_users() {
        if users.walk == Walk::None || (users.walk == Walk::Early && users.dead) {
            assert_eq!(users.next_step(), Step::Walk, "{users:?}");
        }
        // Pins and claims are no reason to leave those alone who only wait for the device to die.
        if users.walk == Walk::Early && !users.dead {
            assert_eq!(users.next_step(), Step::AwaitTranslations, "{users:?}");
        }
    }
}

/// What users do while they are waited for.
#[derive(Clone, Copy, Debug)]
enum Doing {
    /// A page fault that began while the device was alive.
    Fault,
    /// Nobody is inside of the device any more.
    Die,
    Pin,
    Unpin,
    /// The inode is on its way out, so that a walk does not find it.
    Leave,
    /// It has gone.
    Evict,
    /// A claim is given up.
    Close,
}

#[derive(Clone, Debug, Default)]
struct Memory {
    dead: bool,
    mapped: bool,
    cached: bool,
    leaving: bool,
    pins: u32,
    claimed: bool,
}

impl Memory {
    fn page(&self) -> Option<PageUse> {
        if self.mapped || self.pins != 0 {
            Some(PageUse::Referenced)
        } else {
            self.cached.then_some(PageUse::Cached)
        }
    }

    fn walk(&mut self) {
        if !self.leaving {
            self.mapped = false;
            self.cached &= self.pins != 0;
        }
    }

    fn happens(&mut self, doing: Doing) {
        match doing {
            Doing::Fault if !self.dead && !self.leaving => {
                self.mapped = true;
                self.cached = true;
            }
            Doing::Die => self.dead = true,
            Doing::Pin if self.mapped => self.pins += 1,
            Doing::Unpin => self.pins = self.pins.saturating_sub(1),
            // Not while it is mapped.
            Doing::Leave if !self.mapped => self.leaving = true,
            Doing::Evict if self.leaving && self.pins == 0 => self.cached = false,
            Doing::Close => self.claimed = false,
            _ => {}
        }
    }

    fn is_used(&self) -> bool {
        !self.dead || self.page().is_some() || self.claimed
    }

    /// Everybody lets go.
    fn calm_down(&mut self) {
        self.dead = true;
        self.pins = 0;
        self.claimed = false;
        self.cached &= !self.leaving;
    }
}

proptest! {
    #[test]
    fn users_are_waited_for_and_not_for_ever(
        claimed in any::<bool>(),
        doings in prop::collection::vec(
            prop::sample::select(&[
                Doing::Fault,
                Doing::Die,
                Doing::Pin,
                Doing::Unpin,
                Doing::Leave,
                Doing::Evict,
                Doing::Close,
            ][..]),
            0..32,
        ),
    ) {
        let mut memory = Memory { claimed, ..Memory::default() };
        let mut doings = doings.into_iter();
        let mut walk = Walk::None;
        let mut steps_in_calm = 0;

        loop {
            let users = Users {
                dead: memory.dead,
                walk,
                page: memory.page(),
                claimed: memory.claimed,
            };
            match users.next_step() {
                Step::Walk => {
                    memory.walk();
                    walk = if users.dead { Walk::Complete } else { Walk::Early };
                }
                Step::AwaitTranslations | Step::AwaitPage | Step::AwaitClaims => {}
                Step::Free => {
                    prop_assert!(!memory.is_used(), "{memory:?}");
                    break;
                }
            }

            match doings.next() {
                Some(doing) => memory.happens(doing),
                None => {
                    memory.calm_down();
                    steps_in_calm += 1;
                    prop_assert!(steps_in_calm < 5, "{memory:?} {walk:?}");
                }
            }
        }
    }
}
