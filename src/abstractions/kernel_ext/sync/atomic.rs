// SPDX-License-Identifier: GPL-2.0

//! Reading what others write.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

use kernel::sync::atomic::{
    Atomic,
    AtomicType, //
};

/// Reads an atomic as `READ_ONCE()` does, which is what [`Atomic::load`] does with
/// [`Relaxed`](kernel::sync::atomic::Relaxed). That is a call of a function in C, though; this is
/// for what every page fault does. Not for more than a word. Callable from any context.
///
/// # Examples
///
/// ```
/// use kernel::sync::atomic::Atomic;
/// use pmem_rs::abstractions::kernel_ext::sync::atomic::read_once;
///
/// assert_eq!(read_once(&Atomic::new(7_usize)), 7);
/// ```
#[inline(always)]
pub fn read_once<T: AtomicType>(atomic: &Atomic<T>) -> T {
    const { assert!(size_of::<T>() <= size_of::<usize>()) };
    // SAFETY: The atomic is initialised, aligned, and of a size that the CPU reads at once. Others
    // write to it by the atomic operations of the kernel only, and in the kernel's memory model a
    // volatile read may race with those.
    unsafe { atomic.as_ptr().read_volatile() }
}
