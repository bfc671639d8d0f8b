// SPDX-License-Identifier: GPL-2.0

//! The operations that a driver implements for a DAX device.

use super::extent::{
    Extent,
    ReadLocked, //
};
use crate::abstractions::kernel::memremap::{
    PagemapInner,
    PagemapOperations, //
};
use crate::abstractions::kernel_ext::iov::IterSource;
use kernel::prelude::*;

/// The purpose of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessMode {
    /// An ordinary access, which must not reach bad memory.
    Normal,
    /// A write that clears the poison of bad memory, by [`Operations::recovery_write`]. Leases use
    /// it too, because it also translates bad pages. No recovery write follows then.
    RecoveryWrite,
}

/// The operations of a DAX device.
///
/// They are called in process context under `dax_read_lock`, by several threads at once, and may
/// sleep.
///
/// # Examples
///
/// Memory that never fails, and that the DAX core cannot zero:
///
/// ```no_run
/// use kernel::prelude::*;
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::kernel::dax::{
///     self,
///     AccessMode,
///     Extent,
///     Properties,
///     ReadLocked, //
/// };
/// use pmem_rs::abstractions::kernel::fs::dax::Pagemap;
/// use pmem_rs::abstractions::kernel::memremap::{
///     PagemapInner,
///     PagemapOperations, //
/// };
/// use pmem_rs::abstractions::kernel_ext::iov::IterSource;
///
/// struct Memory;
///
/// impl<P: PagemapOperations> dax::Operations<P> for Memory {
///     fn direct_access<'g>(
///         &'g self,
///         _pages: &'g PagemapInner<P>,
///         extent: Extent<'g>,
///         _nr_pages: usize,
///         _mode: AccessMode,
///     ) -> Result<Extent<'g>> {
///         Ok(extent)
///     }
///
///     fn zero_page_range(&self, _: ReadLocked<'_>, _: usize, _: usize) -> Result {
///         Err(EIO)
///     }
///
///     fn recovery_write(
///         &self,
///         _: ReadLocked<'_>,
///         _: usize,
///         _: usize,
///         _: usize,
///         _: &mut IterSource<'_>,
///     ) -> usize {
///         0
///     }
/// }
///
/// // The device keeps the pgmap. If the pgmap is dropped first, it may be leaked, with a warning.
/// fn register<P: PagemapOperations>(
///     memory: Arc<Memory>,
///     pages: &Pagemap<P>,
/// ) -> Result<dax::Registration<Memory, P>> {
///     let properties = Properties {
///         synchronous: true,
///         write_cache: true,
///     };
///
///     dax::Registration::new(memory, pages.reference(), properties)
/// }
/// ```
pub trait Operations<P: PagemapOperations>: Send + Sync + 'static {
    /// Returns whether all of the `nr_pages` pages from `pgoff` on are known to be good. Then they
    /// are translated without a call of [`Self::direct_access`]. Page `pgoff` exists, and no page
    /// of the pgmap has ever failed.
    ///
    /// This is for a check that takes a few instructions. It may return false for any pages.
    fn are_known_good(_pages: &PagemapInner<P>, _pgoff: usize, _nr_pages: usize) -> bool {
        false
    }

    /// Translates `nr_pages` pages. `extent` has all pages of `pgmap` from the first of these on.
    ///
    /// If one of the `nr_pages` pages [has failed](PagemapInner::has_failed), and `mode` is
    /// [`AccessMode::Normal`], the translation fails with [`EHWPOISON`], even if this succeeds.
    ///
    /// Returns the pages from the first on that may be accessed, at least one. These may be more
    /// than `nr_pages`. They are fewer at the end of the data, and, if `mode` is
    /// [`AccessMode::RecoveryWrite`], before a bad page that follows. The first page may be bad
    /// then.
    ///
    /// # Errors
    ///
    /// [`EHWPOISON`] if there is bad memory among the `nr_pages` pages and `mode` is
    /// [`AccessMode::Normal`].
    ///
    /// [`EHWPOISON`]: kernel::error::Error
    fn direct_access<'g>(
        &'g self,
        pgmap: &'g PagemapInner<P>,
        extent: Extent<'g>,
        nr_pages: usize,
        mode: AccessMode,
    ) -> Result<Extent<'g>>;

    /// Overwrites the `nr_pages` pages from `pgoff` on with zeroes, past the CPU caches.
    fn zero_page_range(&self, locked: ReadLocked<'_>, pgoff: usize, nr_pages: usize) -> Result;

    /// Writes `len` bytes from `source` to `offset` bytes into page `pgoff`, and clears poison
    /// there. Returns the number of bytes that were written, 0 if poison cannot be cleared.
    fn recovery_write(
        &self,
        locked: ReadLocked<'_>,
        pgoff: usize,
        offset: usize,
        len: usize,
        source: &mut IterSource<'_>,
    ) -> usize;
}
