// SPDX-License-Identifier: GPL-2.0

//! IO vectors, as far as the DAX operations hand them to a driver.
//!
//! The kernel crate's `IovIterSource` copies through the CPU caches and asserts what it is given;
//! what is needed here is the handle alone, for [`PmemSlice::write_from_iter`].
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)
//!
//! [`PmemSlice::write_from_iter`]: super::pmem::PmemSlice::write_from_iter

use super::bindings;
use core::marker::PhantomData;
use kernel::types::NotThreadSafe;

/// An IO vector that is a source of data, borrowed for `'a`.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::{
///     pmem::PmemSlice,
///     uio::IterSource, //
/// };
///
/// /// Returns how many bytes were written, at most `len`.
/// fn write(
///     memory: PmemSlice<'_>,
///     offset: usize,
///     len: usize,
///     source: &mut IterSource<'_>,
/// ) -> usize {
///     memory
///         .get(offset, len)
///         .map_or(0, |part| part.write_from_iter(source))
/// }
/// ```
///
/// # Invariants
///
/// `iter` is valid for `'a`, is an `ITER_SOURCE`, and is not used through another pointer
/// meanwhile.
pub struct IterSource<'a> {
    iter: *mut bindings::iov_iter,
    _borrow: PhantomData<&'a mut bindings::iov_iter>,
    /// What it iterates over may be mapped for this thread alone.
    _not_send: NotThreadSafe,
}

impl IterSource<'_> {
    /// Wraps the C structure.
    ///
    /// # Safety
    ///
    /// `iter` must be valid for the lifetime of the returned value, be an `ITER_SOURCE`, and not be
    /// used through another pointer meanwhile.
    pub(super) unsafe fn from_raw(iter: *mut bindings::iov_iter) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            iter,
            _borrow: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the C structure.
    pub(super) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.iter
    }
}
