// SPDX-License-Identifier: GPL-2.0

//! How long an unbind waits for the users of a device.
//!
//! This is plain Rust. `driver/teardown_ops.rs` uses it, and `tests/host` tests it.

/// The data by which an unbind decides whether to go on waiting for users. It is made anew for each
/// decision: all but the place of the `struct page`s may change.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// How long it has waited, in microseconds.
    pub micros: u64,
    /// How long it waits, in milliseconds.
    pub limit_ms: u32,
    /// The unbinding thread was killed.
    pub is_killed: bool,
    /// The system is being rebooted or switched off.
    pub is_going_down: bool,
    /// Where the `struct page`s are.
    pub memmap: Memmap,
}

/// Where the `struct page`s of a device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memmap {
    /// In RAM, or there are none. They stay for as long as the range is retired.
    Ram,
    /// On the medium, which stays where it is for as long as the system runs.
    Medium,
    /// On a medium that its provider may take away while the system runs.
    RemovableMedium,
}

impl Memmap {
    /// Returns where the `struct page`s are. `is_removable` says whether the provider may take the
    /// medium away while the system runs.
    pub fn new(is_on_medium: bool, is_removable: bool) -> Self {
        match (is_on_medium, is_removable) {
            (false, _) => Self::Ram,
            (true, false) => Self::Medium,
            (true, true) => Self::RemovableMedium,
        }
    }
}

impl Waiting {
    /// Returns whether users that were given notice are still waited for. A limit of 0 means that
    /// they are not.
    pub fn notice_goes_on(&self) -> bool {
        self.micros < self.limit_micros() && !self.ends_early()
    }

    /// Returns whether the wait is over: the limit has passed, the thread was killed, or the system
    /// goes down. A limit of 0 means no limit.
    pub fn is_over(&self) -> bool {
        self.ends_early() || (self.limit_ms != 0 && self.micros >= self.limit_micros())
    }

    /// Returns whether a range that is in use is to be retired. A limit of 0 means no limit.
    ///
    /// While the system runs, a range with its `struct page`s on the medium is not retired. When
    /// the system goes down, nothing binds the range again before the end, so its `struct page`s
    /// stay valid. Those of a bound device also stay in use until the kernel stops, since
    /// `device_shutdown()` unbinds no device. If the medium may be taken away, so may they, and the
    /// range is never retired.
    pub fn should_retire(&self, has_keeper: bool) -> bool {
        match self.memmap {
            Memmap::Ram => self.is_over() || (self.limit_ms != 0 && has_keeper),
            Memmap::Medium => self.is_going_down,
            Memmap::RemovableMedium => false,
        }
    }

    fn ends_early(&self) -> bool {
        self.is_killed || self.is_going_down
    }

    fn limit_micros(&self) -> u64 {
        u64::from(self.limit_ms).saturating_mul(1000)
    }
}
