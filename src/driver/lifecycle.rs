// SPDX-License-Identifier: GPL-2.0

//! The life of a range of memory, from bind to the moment when nobody uses it any more.
//!
//! ```text
//!            begin              drained                 freed
//!    Live ──────────▶ Dying ──────────────▶ Drained ──────────▶ Gone
//!                       │                      ▲
//!                       │ retire               │ drained
//!                       └────────▶ Retired ────┘
//! ```
//!
//! Two threads take part: unbind, which begins, waits, and at its deadline retires what is left; and a
//! worker, which revokes, waits for the last user, and frees. Both may want to move on from `Dying` at
//! the same moment; one of them wins, and the other one is told.
//!
//! This is plain Rust: it is tested and model-checked on the host (`tests/host`), and driven by
//! `driver/unbind.rs`.

/// Where in its life a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It is bound.
    Live,
    /// Unbind has begun, and waits.
    Dying,
    /// Unbind has returned, but somebody still uses the range. It stays reserved and mapped.
    Retired,
    /// Nobody uses the range any more. It is being freed.
    Drained,
    /// It is free.
    Gone,
}

impl State {
    /// The number by which a state is stored.
    pub const fn to_u32(self) -> u32 {
        match self {
            Self::Live => 0,
            Self::Dying => 1,
            Self::Retired => 2,
            Self::Drained => 3,
            Self::Gone => 4,
        }
    }

    /// The state that a number stands for.
    const fn from_u32(number: u32) -> Self {
        match number {
            0 => Self::Live,
            1 => Self::Dying,
            2 => Self::Retired,
            3 => Self::Drained,
            _ => Self::Gone,
        }
    }
}

/// Where a state is stored, so that several threads can change it.
pub trait StateCell {
    /// Makes a cell with a first value.
    fn new(value: u32) -> Self;

    /// Returns the value. What was written before it was stored is visible afterwards (acquire).
    fn load(&self) -> u32;

    /// Replaces `old` by `new`, if the value is `old`; returns whether it was. What was written before
    /// is visible to whoever reads the new value (release), and the other way round (acquire).
    fn replace(&self, old: u32, new: u32) -> bool;
}

/// When the last user of a range went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Unbind is still waiting for it.
    InTime,
    /// The range has been retired meanwhile.
    Late,
}

/// The state of a range.
pub struct Lifecycle<C>(C);

impl<C: StateCell> Lifecycle<C> {
    /// A life that begins.
    pub fn new() -> Self {
        Self(C::new(State::Live.to_u32()))
    }

    /// Returns where the range is in its life. It may move on at any moment.
    pub fn state(&self) -> State {
        State::from_u32(self.0.load())
    }

    fn advance(&self, from: State, to: State) -> bool {
        self.0.replace(from.to_u32(), to.to_u32())
    }

    /// Begins to take the range away. Returns whether it is this caller who has to do it.
    pub fn begin(&self) -> bool {
        self.advance(State::Live, State::Dying)
    }

    /// Gives up waiting for the last user. Returns whether the range is retired now; if not, it is
    /// just being freed, and there is nothing left to wait for that could take long.
    pub fn retire(&self) -> bool {
        self.advance(State::Dying, State::Retired)
    }

    /// Says that the last user has gone. Returns [`None`] if there is nothing to be freed: the range
    /// is not being taken away, or somebody else has said so before.
    pub fn drained(&self) -> Option<Drained> {
        if self.advance(State::Dying, State::Drained) {
            Some(Drained::InTime)
        } else if self.advance(State::Retired, State::Drained) {
            Some(Drained::Late)
        } else {
            None
        }
    }

    /// Says that the range has been freed. Returns whether it was to be.
    pub fn freed(&self) -> bool {
        self.advance(State::Drained, State::Gone)
    }
}

impl<C: StateCell> Default for Lifecycle<C> {
    fn default() -> Self {
        Self::new()
    }
}

/// Which translations the files had been looked through for, when that was done last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// They have not been looked through.
    None,
    /// The device was not alive any more, but reads and writes were still under way.
    Early,
    /// The device was dead: nobody was inside of it any more.
    Complete,
}

/// Who uses a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageUse {
    /// Somebody has a reference to it.
    Referenced,
    /// Only the page cache of a file names it.
    Cached,
}

/// What is known about the users of a range that is being taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Users {
    /// The DAX device is dead: translations have ended.
    pub dead: bool,
    /// The last walk through the files.
    pub walk: Walk,
    /// The first page that is in use.
    pub page: Option<PageUse>,
    /// Somebody in the kernel has claimed the disk, and cannot be told.
    pub claimed: bool,
}

/// What to do next about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Look through the files, and take the pages away from them.
    Walk,
    /// Wait for those who are inside of the DAX device.
    AwaitTranslations,
    /// Wait for the page that is in use.
    AwaitPage,
    /// Wait for the claim to be given up.
    AwaitClaims,
    /// Nobody is left.
    Free,
}

impl Users {
    /// Decides.
    pub fn next_step(&self) -> Step {
        match (self.walk, self.dead) {
            // Whatever else holds: no file may go on using the pages.
            (Walk::None, _) => Step::Walk,
            (_, false) => Step::AwaitTranslations,
            // Those who were inside may have mapped something since.
            (Walk::Early, true) => Step::Walk,
            (Walk::Complete, true) => match self.page {
                Some(PageUse::Referenced) => Step::AwaitPage,
                // It was pinned, or its inode was being evicted, when the files were walked through.
                Some(PageUse::Cached) => Step::Walk,
                None if self.claimed => Step::AwaitClaims,
                None => Step::Free,
            },
        }
    }
}
