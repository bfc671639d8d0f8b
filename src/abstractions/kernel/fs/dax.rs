// SPDX-License-Identifier: GPL-2.0

//! The owner of a pgmap, and how memory is revoked from the files that map it.
//!
//! # States
//!
//! The owner of a pgmap has one of three types. Each type is made by consuming the one before it:
//!
//! - [`Pagemap`]: translations succeed, or at least those without page frame numbers.
//!   [`Pagemap::close`] makes it a
//! - [`Closed`]: all translations fail. [`Closed::revoke`] makes it a
//! - [`Revoked`]: no file maps any page. Pinned pages are still in page caches, and so may be those
//!   of files that a thread wrote to or truncated, and of file systems that were being unmounted,
//!   until [`Revoked::revoke`].
//!
//! # Proofs
//!
//! Pages, mapping and reservation are freed by [`Revoked::free`], or by a drop (see below).
//! [`Revoked::free`] checks four proofs, or returns the owner:
//!
//! - Revoked: all files were walked through after translations were refused. The type proves it.
//! - Dead: there is no [`PagemapRef`]. [`dax::Registration`] puts its reference after `kill_dax()`,
//!   a disk after its removal.
//! - No keeper: no code in the kernel keeps an address. The disk by which the DAX device is found
//!   knows its claims ([`dax::Registration::set_host`]).
//! - Idle: no exposed page has a reference or is associated with a file. The folios of all exposed
//!   pages are read.
//!
//! [`Revoked::first_user`] returns the [`User`] that a missing proof stands for, and
//! [`Revoked::wait_for`] waits for it.
//!
//! # Drops
//!
//! In any state, a dropped owner is freed if no page was ever exposed, the disk had no indirect
//! claim, and all references are put within 10 s. Otherwise pages, mapping and reservation are
//! leaked, with a warning, and the module stays loaded. A memory map on the medium is not leaked,
//! since the medium may be taken away. For such a pgmap the drop waits, without limit, until all
//! proofs are there.
//!
//! [`PagemapRef`]: crate::abstractions::kernel::memremap::PagemapRef
//! [`dax::Registration`]: crate::abstractions::kernel::dax::Registration
//! [`dax::Registration::set_host`]: crate::abstractions::kernel::dax::Registration::set_host
//!
//! C source: [`fs/dax.c`](srctree/fs/dax.c)

mod entry;
mod mapping;
mod owner;
mod pinned_files;
mod revocation;
mod states;
#[cfg(CONFIG_KUNIT = "y")]
pub(in crate::abstractions) mod testing;
mod unmapper;
mod walk;

pub use crate::abstractions::kernel::fs::dax::{
    owner::User,
    pinned_files::PinnedFiles,
    states::{
        Closed,
        Pagemap,
        Revoked, //
    },
    unmapper::{
        FileId,
        Obstacle,
        Unmapper, //
    },
    walk::Walked, //
};
