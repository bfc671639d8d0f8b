// SPDX-License-Identifier: GPL-2.0

//! What a walk through the files has done, and what still uses the memory.

/// The result of a walk through the files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// The number of files with pages of the memory.
    pub inodes: u64,
    /// The number of their pages of the memory, pinned or not.
    pub pages: u64,
}

/// A user of revoked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// There is a reference to the pgmap: of a DAX device that is not dead, or of a disk.
    Reference,
    /// A holder of the disk may keep an address.
    Holder,
    /// A page has a reference.
    Pin,
    /// A page is associated with a file, or another walk through the files is needed
    /// ([`Revoked::revoke`](super::Revoked::revoke)).
    PageCache,
}
