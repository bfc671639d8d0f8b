// SPDX-License-Identifier: GPL-2.0

//! Values whose references are counted per CPU.
//!
//! A [`Counted`] owns a value, and everything else uses it through a [`Ref`]. To take or to put a
//! hold touches no cache line that CPUs share, until the owner kills the count: [`Counted::kill`]
//! refuses new holds, and the owner can free the value when the last hold has been put.
//!
//! A hold that is leaked keeps the value for ever. An owner that is leaked keeps it as well.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use crate::abstractions::{
    bindings,
    kernel_ext::{
        sync::completion::Completion,
        time::MINUTE, //
    }, //
};
use core::{
    ops::Deref,
    pin::Pin,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    error::to_result,
    prelude::*,
    time::Msecs,
    types::Opaque, //
};

/// An initialised `struct percpu_ref`.
///
/// # Invariants
///
/// The structure was initialised by `percpu_ref_init`.
#[pin_data(PinnedDrop)]
struct Count {
    #[pin]
    inner: Opaque<bindings::percpu_ref>,
}

impl Count {
    fn new(release: unsafe extern "C" fn(*mut bindings::percpu_ref)) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: Initialised here.
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::percpu_ref| {
                // SAFETY: `slot` is valid for writing, and pinned from here on.
                to_result(unsafe {
                    bindings::percpu_ref_init(slot, Some(release), 0, bindings::GFP_KERNEL)
                })
            }),
        }? Error)
    }

    fn as_raw(&self) -> *mut bindings::percpu_ref {
        self.inner.get()
    }
}

#[pinned_drop]
impl PinnedDrop for Count {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariant the count is initialised. What contains it goes, so there
        // is no reference that could use it.
        unsafe { bindings::percpu_ref_exit(self.as_raw()) };
    }
}

/// What the owner and the holds share.
///
/// It is freed by the owner, after `zero` was completed. That happens when the last hold was put.
#[pin_data]
pub(in crate::abstractions) struct Inner<T> {
    #[pin]
    count: Count,
    #[pin]
    zero: Completion,
    #[pin]
    value: T,
}

impl<T> Inner<T> {
    /// # Safety
    ///
    /// For `percpu_ref` only: `count` must be that of an `Inner<T>`.
    unsafe extern "C" fn release(count: *mut bindings::percpu_ref) {
        // SAFETY: By the safety requirements. The owner frees the structure only after it has seen
        // `zero` completed, for which it takes the lock that `complete_all` holds.
        let inner = unsafe {
            let count = container_of!(Opaque::cast_from(count), Count, inner);
            &*container_of!(count, Self, count)
        };

        inner.zero.complete_all();
    }
}

/// The owner of a counted value.
///
/// Dropping it kills the count, waits for the last [`Ref`] for as long as it takes, and drops the
/// value. It sleeps, and says every minute in the log that it still waits.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::percpu_ref::Counted;
///
/// let mut owner = Counted::new(5)?;
/// let hold = owner.try_get().ok_or(ENXIO)?;
///
/// owner.kill();
/// assert!(owner.try_get().is_none());
/// assert_eq!(*hold, 5);
/// assert!(!owner.is_unused());
/// drop(hold);
/// assert!(owner.wait_timeout(1000));
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `inner` is a pinned box in its raw form, which is ours to free once `zero` was completed.
/// `killed` says whether the count was killed.
pub struct Counted<T: Send + Sync + 'static> {
    inner: NonNull<Inner<T>>,
    killed: bool,
}

// SAFETY: The value may be sent to and used by any thread.
unsafe impl<T: Send + Sync + 'static> Send for Counted<T> {}

// SAFETY: Through a shared reference the value is only shared, and `T` is `Sync`.
unsafe impl<T: Send + Sync + 'static> Sync for Counted<T> {}

impl<T: Send + Sync + 'static> Counted<T> {
    /// Takes ownership of a value. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`]; the value is dropped then.
    pub fn new(value: T) -> Result<Self> {
        Self::pin_init(Ok::<T, Error>(value))
    }

    /// Makes a value in place. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], and those of `value`, which is initialised last.
    pub fn pin_init(value: impl PinInit<T, Error>) -> Result<Self> {
        let inner = KBox::pin_init(
            try_pin_init!(Inner {
                count <- Count::new(Inner::<T>::release),
                zero <- Completion::new(),
                value <- value,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: The box stays pinned: it is only turned back to be dropped.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(inner) });
        // INVARIANT: Just made, and not killed. The pointer of a box is not null.
        Ok(Self {
            // SAFETY: The pointer of a box is not null.
            inner: unsafe { NonNull::new_unchecked(inner) },
            killed: false,
        })
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: By the type invariant the structure is there until `self` frees it.
        unsafe { self.inner.as_ref() }
    }

    /// Returns a hold, unless the count was killed. Does not sleep.
    pub fn try_get(&self) -> Option<Ref<T>> {
        // SAFETY: By the type invariant the structure is there.
        unsafe { Ref::try_new(self.inner) }
    }

    /// Refuses new holds. Does not sleep. Only the first call has an effect.
    pub fn kill(&mut self) {
        if !self.killed {
            self.killed = true;
            // SAFETY: The count is initialised, and is killed once.
            unsafe { bindings::percpu_ref_kill_and_confirm(self.inner().count.as_raw(), None) };
        }
    }

    /// Returns whether the last hold was put after [`Self::kill`]. Does not sleep.
    pub fn is_unused(&self) -> bool {
        self.inner().zero.is_done()
    }

    /// Waits for the last hold to be put, after [`Self::kill`], for at most `limit` milliseconds.
    /// Sleeps. Returns whether there are no holds any more.
    pub fn wait_timeout(&self, limit: Msecs) -> bool {
        self.inner().zero.wait_idle_timeout(limit)
    }

    /// Returns a pointer to the structure, from which a hold can be made without a reference to
    /// `self`.
    pub(in crate::abstractions) fn as_ptr(&self) -> NonNull<Inner<T>> {
        self.inner
    }
}

impl<T: Send + Sync + 'static> Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T: Send + Sync + 'static> Drop for Counted<T> {
    fn drop(&mut self) {
        self.kill();
        while !self.wait_timeout(MINUTE) {
            pr_warn!("still waiting for references to something that is to be freed\n");
        }

        // SAFETY: By the type invariant the pointer is that of a pinned box, which is ours. There
        // is no hold any more, and `release` has ended, since `zero` was seen completed.
        drop(unsafe { Pin::new_unchecked(KBox::from_raw(self.inner.as_ptr())) });
    }
}

/// A reference to a counted value, which keeps it.
///
/// # Invariants
///
/// `self.0` points to the structure of a [`Counted`], and one reference of its count is ours.
pub struct Ref<T: Send + Sync + 'static>(NonNull<Inner<T>>);

// SAFETY: A hold may be put by any thread, and the value may be used by any.
unsafe impl<T: Send + Sync + 'static> Send for Ref<T> {}

// SAFETY: Through a shared reference the value is only shared, and `T` is `Sync`.
unsafe impl<T: Send + Sync + 'static> Sync for Ref<T> {}

impl<T: Send + Sync + 'static> Ref<T> {
    /// # Safety
    ///
    /// The structure must be there during the call.
    pub(in crate::abstractions) unsafe fn try_new(inner: NonNull<Inner<T>>) -> Option<Self> {
        // SAFETY: By the safety requirements; the count is initialised by its type invariant.
        let live = unsafe { bindings::percpu_ref_tryget_live(inner.as_ref().count.as_raw()) };

        // INVARIANT: The reference has just been taken.
        if live {
            Some(Self(inner))
        } else {
            None
        }
    }

    #[inline]
    fn inner(&self) -> &Inner<T> {
        // SAFETY: By the type invariant the count is not zero, so the owner has not freed it.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Send + Sync + 'static> Clone for Ref<T> {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariant the count is not zero.
        unsafe { bindings::percpu_ref_get(self.inner().count.as_raw()) };

        // INVARIANT: The reference has just been taken.
        Self(self.0)
    }
}

impl<T: Send + Sync + 'static> Deref for Ref<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T: Send + Sync + 'static> Drop for Ref<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours. After the last one was put, the C
        // function uses the structure only until `release` has completed `zero`.
        unsafe { bindings::percpu_ref_put(self.inner().count.as_raw()) };
    }
}

#[kunit_tests(pmem_rs_percpu_ref)]
mod tests {
    use super::*;
    use kernel::sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    };

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

        drop(counted.try_get());
        assert!(!gone.load(Relaxed));
        drop(counted);
        assert!(gone.load(Relaxed));
        Ok(())
    }

    #[test]
    fn after_the_kill_no_hold_is_given_and_those_there_are_waited_for() -> Result {
        let (gone, mut counted) = witness()?;
        let hold = counted.try_get().ok_or(EINVAL)?;
        let other = hold.clone();

        counted.kill();
        counted.kill();
        assert!(counted.try_get().is_none());
        assert!(!counted.wait_timeout(50));
        drop(hold);
        assert!(!counted.wait_timeout(50));
        assert!(!counted.is_unused() && !gone.load(Relaxed));
        drop(other);
        assert!(counted.wait_timeout(1000));
        assert!(counted.is_unused());
        drop(counted);
        assert!(gone.load(Relaxed));
        Ok(())
    }

    #[test]
    fn what_a_leaked_owner_had_can_be_used_for_ever() -> Result {
        let (gone, counted) = witness()?;
        let hold = counted.try_get().ok_or(EINVAL)?;

        core::mem::forget(counted);
        drop(hold.clone());
        assert!(!gone.load(Relaxed));
        // Nothing is leaked for good: that is what kmemleak looks for.
        // INVARIANT: The owner was forgotten, so that this is the only one.
        drop(Counted {
            inner: hold.0,
            killed: {
                drop(hold);
                false
            },
        });
        assert!(gone.load(Relaxed));
        Ok(())
    }
}
