// SPDX-License-Identifier: GPL-2.0

//! A failure of memory that the memory management has reported.

use crate::abstractions::bindings;
use core::ptr;
use kernel::{
    io::PhysAddr,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    types::Opaque, //
};

/// A failure of memory, while `memory_failure()` handles it.
///
/// Nothing else makes one, but tests. So failure handlers of file systems are not called with good
/// memory, unless the failure is simulated, nor at a time at which nothing has failed:
///
/// ```compile_fail,E0451
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel::{
///     dax,
///     memremap::Failure, //
/// };
///
/// fn report(device: &dax::Handle) -> Result {
///     device.notify_failure(&Failure {
///         pgmap: todo!(),
///         offset: 0,
///         len: u64::MAX,
///         flags: 0,
///     })
/// }
/// ```
///
/// # Invariants
///
/// `memory_failure()` handles a failure of these bytes of the data of `pgmap`, at least one, and
/// has passed `flags`. The caller has a reference to `pgmap` for `'a`.
pub struct Failure<'a> {
    pgmap: &'a Opaque<bindings::dev_pagemap>,
    offset: u64,
    len: u64,
    flags: c_int,
}

impl<'a> Failure<'a> {
    /// Makes the failure of the `nr_pages` pages from frame `pfn` on, as far as they are in the
    /// data: the `data_len` bytes from the physical address `data_start` on. Returns [`None`] if
    /// the first one is not, or if `nr_pages` is 0.
    ///
    /// # Safety
    ///
    /// For `memory_failure()` only, which must handle a failure of these pages of the pgmap, and
    /// have passed `flags`.
    pub(in crate::abstractions) unsafe fn new(
        pgmap: &'a Opaque<bindings::dev_pagemap>,
        (data_start, data_len): (PhysAddr, usize),
        pfn: c_ulong,
        nr_pages: c_ulong,
        flags: c_int,
    ) -> Option<Self> {
        let offset = ((pfn as u64) << PAGE_SHIFT).checked_sub(data_start)?;
        let rest = (data_len as u64).checked_sub(offset)?;
        let len = (nr_pages as u64).saturating_mul(PAGE_SIZE as u64).min(rest);

        // INVARIANT: By the safety requirements, for bytes that are in the data.
        (len != 0).then_some(Self {
            pgmap,
            offset,
            len,
            flags,
        })
    }

    /// Returns where the bytes that have failed begin in the data.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns how many bytes have failed, which is at least one.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether the memory is that of a pgmap.
    pub(in crate::abstractions) fn is_of(&self, pgmap: *const bindings::dev_pagemap) -> bool {
        ptr::eq(self.pgmap.get(), pgmap)
    }

    /// Returns the `MF_*` flags of `include/linux/mm.h`.
    pub(in crate::abstractions) fn flags(&self) -> c_int {
        self.flags
    }

    /// Returns whether the medium is good, and the failure is only simulated.
    pub(super) fn is_simulated(&self) -> bool {
        self.flags & bindings::mf_flags_MF_SW_SIMULATED as c_int != 0
    }
}
