// SPDX-License-Identifier: GPL-2.0

//! IO vectors, as far as the DAX operations hand them to a driver.
//!
//! The kernel crate's `IovIterSource` copies through the CPU caches and asserts what it is given;
//! what is needed here is the handle alone, for [`WritableSlice::write_from_iter`].
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)
//!
//! [`WritableSlice::write_from_iter`]: crate::abstractions::kernel::pmem_slice::WritableSlice::write_from_iter

use crate::abstractions::bindings;
use core::marker::PhantomData;
use kernel::{
    prelude::*,
    types::NotThreadSafe, //
};

/// An IO vector that is a source of data, borrowed for `'a`.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::{
///     kernel::pmem_slice::WritableSlice,
///     kernel_ext::iov::IterSource, //
/// };
///
/// /// Returns how many bytes were written, at most `len`.
/// fn write(
///     memory: WritableSlice<'_>,
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
    pub(in crate::abstractions) unsafe fn from_raw(iter: *mut bindings::iov_iter) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            iter,
            _borrow: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the C structure.
    pub(in crate::abstractions) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.iter
    }
}

#[kunit_tests(pmem_rs_uio)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::pmem_slice::{
        PmemSlice,
        WritableSlice, //
    };
    use core::ptr::NonNull;

    /// Has `f` read from two pieces of five bytes each, `abcdefghij`, into eight bytes, and returns them.
    fn reading(f: impl FnOnce(&WritableSlice<'_>, &mut IterSource<'_>)) -> [u8; 8] {
        let (mut first, mut second, mut target) = (*b"abcde", *b"fghij", *b"________");
        let vecs = [&mut first, &mut second].map(|piece| bindings::kvec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        });
        let mut iter = bindings::iov_iter::default();

        // SAFETY: The iterator, what it iterates over and the target live until the end of the
        // function, and are not used in another way before. The target does not fail.
        unsafe {
            bindings::iov_iter_kvec(&mut iter, bindings::ITER_SOURCE, vecs.as_ptr(), 2, 10);
            let memory = PmemSlice::from_raw_parts(NonNull::from(&mut target).cast(), 8);
            f(
                &WritableSlice::new(memory),
                &mut IterSource::from_raw(&mut iter),
            );
        }
        target
    }

    #[test]
    fn a_source_is_read_across_its_pieces() {
        let copied = reading(|memory, source| {
            assert_eq!(memory.write_from_iter(source), 8);
        });

        assert!(copied == *b"abcdefgh");
    }

    #[test]
    fn a_source_goes_on_where_it_stopped() {
        let copied = reading(|memory, source| {
            for (offset, len) in [(4, 2), (0, 0), (0, 4)] {
                let written = memory
                    .get(offset, len)
                    .map(|part| part.write_from_iter(source));
                assert!(written == Some(len));
            }
        });

        assert!(copied == *b"cdefab__");
    }

    #[test]
    fn a_source_ends() {
        reading(|memory, source| {
            assert_eq!(memory.write_from_iter(source), 8);
            assert_eq!(memory.write_from_iter(source), 2);
            assert_eq!(memory.write_from_iter(source), 0);
        });
    }
}
