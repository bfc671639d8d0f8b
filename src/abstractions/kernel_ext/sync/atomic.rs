// SPDX-License-Identifier: GPL-2.0

//! Atomic loads without a call of a C function.
//!
//! C header: [`include/asm-generic/rwonce.h`](srctree/include/asm-generic/rwonce.h)

#[cfg(not(target_arch = "x86_64"))]
use crate::abstractions::compat::sync::barrier::{
    smp_mb,
    Full, //
};
use kernel::sync::atomic::{
    Atomic,
    AtomicType, //
};

/// Loads an atomic of at most a word without ordering (`READ_ONCE()`). Callable from any context.
///
/// Not [`Atomic::load`]: it calls a C helper, which each page fault and each translation would pay.
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
    // SAFETY: The atomic is initialised, aligned, and of a size that the CPU loads at once. Other
    // threads write it with atomic operations of the kernel only. In the kernel's memory model a
    // volatile read may race with those.
    unsafe { atomic.as_ptr().read_volatile() }
}

/// Loads an atomic of at most a word; what is read after it is not older (`smp_load_acquire()`).
/// Callable from any context.
///
/// # Examples
///
/// ```
/// use kernel::sync::atomic::Atomic;
/// use pmem_rs::abstractions::kernel_ext::sync::atomic::read_acquire;
///
/// assert_eq!(read_acquire(&Atomic::new(7_u32)), 7);
/// ```
#[inline(always)]
pub fn read_acquire<T: AtomicType>(atomic: &Atomic<T>) -> T {
    let value = read_once(atomic);

    acquire();
    value
}

/// Orders a load before it: what is read or written after it is not older
/// (as after `smp_load_acquire()`). Callable from any context.
///
/// For loads of fields of the C side that are no [`Atomic`].
#[inline(always)]
pub fn acquire() {
    // ORDERING: x86-64 does not reorder loads, so only the compiler must not.
    #[cfg(target_arch = "x86_64")]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
    #[cfg(not(target_arch = "x86_64"))]
    smp_mb(Full);
}
