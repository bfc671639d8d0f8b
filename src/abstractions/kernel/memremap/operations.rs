// SPDX-License-Identifier: GPL-2.0

//! What the memory management calls for a pgmap.

use kernel::prelude::*;

/// The operations of a pgmap, implemented by the code that owns its
/// [`Pagemap`](crate::abstractions::kernel::fs::dax::Pagemap).
///
/// They are called by `memory_failure()` in process context, with `mf_mutex` and a reference to the
/// pgmap held, and may sleep.
pub trait PagemapOperations: Send + Sync + 'static {
    /// Notifies the users of the `len` bytes from `offset` bytes into the data on that these have
    /// failed. `flags` are the `MF_*` ones of `include/linux/mm.h`, to be passed on.
    ///
    /// # Errors
    ///
    /// After [`EOPNOTSUPP`] the caller kills all processes that map the memory. After any other
    /// error the memory stays in the linear mapping.
    fn memory_failure(&self, offset: u64, len: u64, flags: c_int) -> Result;

    /// Records that the `len` bytes from `offset` bytes into the data on have
    /// [failed](super::PagemapInner::has_failed). Called after [`Self::memory_failure`], before the
    /// memory management takes the pages out of the linear mapping.
    fn record_failure(&self, offset: u64, len: u64);
}
