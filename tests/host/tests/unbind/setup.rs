// SPDX-License-Identifier: GPL-2.0

//! The initial state of a model.

use crate::defect::Defect;

/// The initial state.
#[derive(Clone, Copy)]
pub struct Setup {
    pub defect: Option<Defect>,
    /// It is not announced yet that the device is going to be torn down.
    pub bound: bool,
    /// A program has opened the disk; see [`World::close_disk`].
    pub opened: bool,
    /// A process has mapped the page, and accessed it.
    pub mapped: bool,
    /// The page is pinned; see [`World::unpin`].
    pub pinned: bool,
    /// The file is closed, and its inode is being evicted; see [`World::evict`].
    pub evicting: bool,
    /// The disk has a keeper with the address of the memory; see [`World::use_by_keeper`].
    pub held: bool,
    /// The memory may be below device-mapper; see [`World::copying_fault`].
    pub indirect: bool,
    /// A reader is inside of a read-side section until unbind has returned; see [`World::leave`].
    pub stuck: bool,
    /// The file may be closed while the disk is removed; see [`World::pin_and_close`].
    pub closing: bool,
    /// The deadline does not pass, nor does the time of the notice. Unbind returns early only if
    /// waiting is hopeless, or after a fatal signal.
    pub no_deadline: bool,
    /// The `struct page`s are on the medium.
    pub on_medium: bool,
    /// Freeing is delayed until unbind has returned.
    pub slow_free: bool,
    /// The first search for a user takes until unbind has returned.
    pub slow_search: bool,
    /// The module is unloaded after that; see [`World::unload`].
    pub unloaded: bool,
    /// The module is being unloaded, so that references to it cannot be taken.
    pub unloading: bool,
    /// The worker kills the DAX device itself, for models of other aspects.
    pub killed_inline: bool,
    /// The DAX device is killed only after unbind has returned; see [`World::kill_dax`].
    pub killed_late: bool,
    /// Users release the memory only after unbind has returned.
    pub stubborn: bool,
}

impl Setup {
    /// Announced, and idle.
    pub const IDLE: Self = Self {
        defect: None,
        bound: false,
        opened: false,
        mapped: false,
        pinned: false,
        evicting: false,
        held: false,
        indirect: false,
        stuck: false,
        closing: false,
        no_deadline: false,
        on_medium: false,
        slow_free: false,
        slow_search: false,
        unloaded: false,
        unloading: false,
        killed_inline: false,
        killed_late: false,
        stubborn: false,
    };

    /// Most models are not about the kill of the DAX device.
    pub const INLINE: Self = Self {
        killed_inline: true,
        ..Self::IDLE
    };

    /// Whether an entry of the page cache refers to the page.
    pub fn has_page(&self) -> bool {
        self.mapped || self.pinned || self.evicting
    }

    pub fn references(&self) -> u32 {
        u32::from(self.mapped) + u32::from(self.pinned)
    }
}
