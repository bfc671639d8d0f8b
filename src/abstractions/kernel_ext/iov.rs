// SPDX-License-Identifier: GPL-2.0

//! I/O vectors, as the DAX operations pass them to a driver.
//!
//! Not `kernel::iov::IovIterSource`: it copies through the CPU caches, and its constructor asserts.
//! This is only a handle for `WritableSlice::write_from_iter()`.
//!
//! C header: [`include/linux/uio.h`](srctree/include/linux/uio.h)

use crate::abstractions::bindings;
use core::marker::PhantomData;
use kernel::{
    prelude::*,
    types::NotThreadSafe, //
};

/// An I/O vector that is a source of data (`struct iov_iter`), borrowed for `'a`.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::pmem_slice::WritableSlice;
/// use pmem_rs::abstractions::kernel_ext::iov::IterSource;
///
/// /// Returns the number of bytes written, at most as many as the memory has.
/// fn write(memory: WritableSlice<'_>, source: &mut IterSource<'_>) -> usize {
///     memory.write_from_iter(source)
/// }
/// ```
///
/// # Invariants
///
/// `iter` is an `ITER_SOURCE` that is valid for `'a`. Nothing else uses it meanwhile.
pub struct IterSource<'a> {
    iter: *mut bindings::iov_iter,
    _borrow: PhantomData<&'a mut bindings::iov_iter>,
    /// User memory is that of the current process.
    _not_send: NotThreadSafe,
}

impl IterSource<'_> {
    /// Wraps the C structure.
    ///
    /// # Safety
    ///
    /// `iter` must be an `ITER_SOURCE` that is valid for the lifetime of the returned value.
    /// Nothing else may use it meanwhile.
    pub(in crate::abstractions) unsafe fn from_raw(iter: *mut bindings::iov_iter) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            iter,
            _borrow: PhantomData,
            _not_send: NotThreadSafe,
        }
    }

    pub(in crate::abstractions) fn as_raw(&mut self) -> *mut bindings::iov_iter {
        self.iter
    }
}

#[kunit_tests(pmem_rs_iov)]
mod tests {
    use super::*;
    use crate::abstractions::kernel::pmem_slice::{
        PmemSlice,
        WritableSlice, //
    };
    use core::ptr::NonNull;

    /// Calls `f` with eight bytes of memory, and with a source of `abcde` and `fghij`. Returns the
    /// memory.
    fn reading(f: impl FnOnce(&WritableSlice<'_>, &mut IterSource<'_>)) -> [u8; 8] {
        let (mut first, mut second, mut target) = (*b"abcde", *b"fghij", *b"________");
        let vecs = [&mut first, &mut second].map(|piece| bindings::kvec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: piece.len(),
        });
        let mut iter = bindings::iov_iter::default();

        // SAFETY: The iterator, its vectors and the target live until the end of the function, and
        // nothing else uses them meanwhile. The target is ordinary memory.
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
    fn a_source_is_read_across_its_vectors() {
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
