// SPDX-License-Identifier: GPL-2.0

//! Values whose users are counted per CPU.
//!
//! A [`Counted`] owns a value; everybody else uses it through a [`Hold`]. To get or put a hold touches
//! no cache line that CPUs share, until the owner asks for the value to go: [`Counted::kill`] lets
//! nobody in any more, and the value is dropped when the last hold has been put.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use super::{
    bindings,
    completion::Completion, //
};
use core::{
    cell::UnsafeCell,
    mem::ManuallyDrop,
    ops::Deref, //
};
use kernel::{
    container_of,
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::Msecs,
    types::Opaque, //
};

/// # Invariants
///
/// `count` is initialised. `value` is initialised until the [`Counted`] drops it, which is after
/// `count` has reached zero, so it is for as long as there is a [`Hold`].
#[pin_data(PinnedDrop)]
struct Inner<T> {
    #[pin]
    count: Opaque<bindings::percpu_ref>,
    #[pin]
    zero: Completion,
    killed: Atomic<bool>,
    value: UnsafeCell<ManuallyDrop<T>>,
}

impl<T> Inner<T> {
    /// # Safety
    ///
    /// `value` must be initialised, see the type invariant.
    unsafe fn value(&self) -> &T {
        // SAFETY: By the safety requirements; it is written only to be dropped.
        unsafe { &*self.value.get() }
    }

    /// # Safety
    ///
    /// For `percpu_ref` only: `count` must be that of an `Inner<T>`.
    unsafe extern "C" fn release(count: *mut bindings::percpu_ref) {
        // SAFETY: By the safety requirements. The owner keeps the allocation until this has
        // completed `zero`, whose lock he takes after it.
        let inner = unsafe { &*container_of!(Opaque::cast_from(count), Self, count) };

        inner.zero.complete_all();
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Inner<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant `count` is initialised, and nobody uses it any more.
        unsafe { bindings::percpu_ref_exit(self.count.get()) };
    }
}

/// The owner of a value that others hold.
///
/// Dropping it kills the count, waits for the last [`Hold`] for as long as it takes, and drops the value.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::percpu_ref::Counted;
///
/// let owner = Counted::new(5)?;
/// let hold = owner.hold().ok_or(ENXIO)?;
///
/// owner.kill();
/// assert!(owner.hold().is_none());
/// assert_eq!(*hold, 5);
/// drop(hold);
/// assert!(owner.wait_timeout(1000));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The value of the inner structure is initialised.
pub struct Counted<T: Send + Sync + 'static>(Arc<Inner<T>>);

// SAFETY: The value may be sent to and used by any thread.
unsafe impl<T: Send + Sync + 'static> Send for Counted<T> {}

// SAFETY: As above.
unsafe impl<T: Send + Sync + 'static> Sync for Counted<T> {}

impl<T: Send + Sync + 'static> Counted<T> {
    /// Takes ownership of a value. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; the value is dropped then.
    pub fn new(value: T) -> Result<Self> {
        let inner = Arc::pin_init(
            try_pin_init!(Inner {
                count <- Opaque::try_ffi_init(|slot: *mut bindings::percpu_ref| {
                    // SAFETY: `slot` is valid for writing; the allocation is pinned.
                    to_result(unsafe {
                        bindings::percpu_ref_init(
                            slot,
                            Some(Inner::<T>::release),
                            0,
                            bindings::GFP_KERNEL,
                        )
                    })
                }),
                zero <- Completion::new(),
                killed: Atomic::new(false),
                value: UnsafeCell::new(ManuallyDrop::new(value)),
            }? Error),
            GFP_KERNEL,
        )?;

        // INVARIANT: The value was just moved in.
        Ok(Self(inner))
    }

    /// Returns a hold, unless the count was killed.
    pub fn hold(&self) -> Option<Hold<T>> {
        // SAFETY: By its type invariant the count is initialised.
        let live = unsafe { bindings::percpu_ref_tryget_live(self.0.count.get()) };

        // INVARIANT: The reference has just been taken.
        live.then(|| Hold(self.0.clone()))
    }

    /// Lets nobody in any more. Does not sleep; only the first call has an effect (modelled in
    /// `tests/host/tests/atomics`).
    pub fn kill(&self) {
        if !self.0.killed.xchg(true, Relaxed) {
            // SAFETY: The count is initialised, and has not been killed.
            unsafe { bindings::percpu_ref_kill_and_confirm(self.0.count.get(), None) };
        }
    }

    /// Waits for the last hold to be put, after [`Self::kill`], for at most `limit` milliseconds.
    /// Sleeps. Returns whether there are no holds any more.
    pub fn wait_timeout(&self, limit: Msecs) -> bool {
        self.0.zero.wait_timeout(limit)
    }
}

impl<T: Send + Sync + 'static> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: By the type invariants; only dropping `self` ends that.
        unsafe { self.0.value() }
    }
}

impl<T: Send + Sync + 'static> Drop for Counted<T> {
    fn drop(&mut self) {
        self.kill();
        self.0.zero.wait();

        // SAFETY: The count is dead and zero, so there are no holds; nobody but `self`, which goes
        // now, can refer to the value.
        unsafe { ManuallyDrop::drop(&mut *self.0.value.get()) };
    }
}

/// A use of a value that keeps it from being dropped.
///
/// # Invariants
///
/// One reference of the count is ours.
pub struct Hold<T: Send + Sync + 'static>(Arc<Inner<T>>);

// SAFETY: A hold may be put by any thread, and the value may be used by any.
unsafe impl<T: Send + Sync + 'static> Send for Hold<T> {}

// SAFETY: As above.
unsafe impl<T: Send + Sync + 'static> Sync for Hold<T> {}

impl<T: Send + Sync + 'static> Clone for Hold<T> {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the count is not zero.
        unsafe { bindings::percpu_ref_get(self.0.count.get()) };

        // INVARIANT: The reference has just been taken.
        Self(self.0.clone())
    }
}

impl<T: Send + Sync + 'static> Deref for Hold<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: By the type invariant the count is not zero, so the value is there.
        unsafe { self.0.value() }
    }
}

impl<T: Send + Sync + 'static> Drop for Hold<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours. The allocation stays until the field
        // is dropped after this.
        unsafe { bindings::percpu_ref_put(self.0.count.get()) };
    }
}

#[kunit_tests(pmem_rs_percpu_ref)]
mod tests {
    use super::*;

    /// Says when it goes.
    struct Witness(Arc<Atomic<bool>>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }

    fn witness() -> Result<(Arc<Atomic<bool>>, Counted<Witness>)> {
        let gone = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let counted = Counted::new(Witness(gone.clone()))?;

        Ok((gone, counted))
    }

    #[test]
    fn a_value_goes_with_its_owner() -> Result {
        let (gone, counted) = witness()?;

        drop(counted.hold());
        assert!(!gone.load(Relaxed));
        drop(counted);
        assert!(gone.load(Relaxed));
        Ok(())
    }

    #[test]
    fn after_the_kill_nobody_gets_in_and_those_inside_are_waited_for() -> Result {
        let (gone, counted) = witness()?;
        let hold = counted.hold().ok_or(EINVAL)?;
        let other = hold.clone();

        counted.kill();
        counted.kill();
        assert!(counted.hold().is_none());
        assert!(!counted.wait_timeout(50));
        drop(hold);
        assert!(!counted.wait_timeout(50));
        assert!(!other.0.killed.load(Relaxed) || !gone.load(Relaxed));
        drop(other);
        assert!(counted.wait_timeout(1000));
        drop(counted);
        assert!(gone.load(Relaxed));
        Ok(())
    }
}
