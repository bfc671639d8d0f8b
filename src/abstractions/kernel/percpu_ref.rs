// SPDX-License-Identifier: GPL-2.0

//! Values whose references are counted per CPU.
//!
//! A [`Counted`] owns a value, and a [`Ref`] is a reference to it. Taking or putting a reference
//! writes to no cache line that CPUs share, until the owner kills the count. [`Counted::kill`]
//! refuses new references, and the owner can free the value when the last reference has been put.
//!
//! A leaked reference keeps the value for ever, and so does a leaked owner.
//!
//! C header: [`include/linux/percpu-refcount.h`](srctree/include/linux/percpu-refcount.h)

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::sync::completion::Completion;
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

/// The time between two messages of a wait.
const MESSAGE_INTERVAL: Msecs = 60_000;

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
        // SAFETY: By the type invariant the count is initialised. When it is dropped there is no
        // reference, or only the first one, if the value could not be made.
        unsafe { bindings::percpu_ref_exit(self.as_raw()) };
    }
}

/// The structure that the owner and the references share.
///
/// The owner frees it after `zero` was completed: the count was killed, and the last reference was
/// put.
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
/// Dropping it kills the count, waits for the last [`Ref`] without a limit, and drops the value.
/// Sleeps, and logs every minute that it still waits.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel::percpu_ref::Counted;
///
/// let mut owner = Counted::new(5)?;
/// let reference = owner.try_get().ok_or(ENXIO)?;
///
/// owner.kill();
/// assert!(owner.try_get().is_none());
/// assert_eq!(*reference, 5);
/// assert!(!owner.is_unused());
/// drop(reference);
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
    pub fn new(value: T) -> Result<Self> {
        Self::pin_init(Ok::<T, Error>(value))
    }

    /// Makes a value in place. May sleep. `value` is initialised last, so no step that may fail
    /// follows.
    pub fn pin_init(value: impl PinInit<T, Error>) -> Result<Self> {
        let inner = KBox::pin_init(
            try_pin_init!(Inner {
                count <- Count::new(Inner::<T>::release),
                zero <- Completion::new(),
                value <- value,
            }? Error),
            GFP_KERNEL,
        )?;

        // SAFETY: Nothing is moved out of the box. `drop` makes it a pinned box again.
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

    /// Returns a reference, unless the count was killed. Does not sleep.
    pub fn try_get(&self) -> Option<Ref<T>> {
        // SAFETY: By the type invariant the structure is there.
        unsafe { Ref::try_new(self.inner) }
    }

    /// Refuses new references. Does not sleep. Only the first call has an effect.
    pub fn kill(&mut self) {
        if !self.killed {
            self.killed = true;
            // SAFETY: The count is initialised, and is killed once.
            unsafe { bindings::percpu_ref_kill_and_confirm(self.inner().count.as_raw(), None) };
        }
    }

    /// Returns whether the last reference was put after [`Self::kill`]. Does not sleep.
    pub fn is_unused(&self) -> bool {
        self.inner().zero.is_done()
    }

    /// Waits, after [`Self::kill`], until the last reference is put, for at most `limit`
    /// milliseconds. Sleeps. Returns whether no reference is left.
    pub fn wait_timeout(&self, limit: Msecs) -> bool {
        self.inner().zero.wait_idle_timeout(limit)
    }

    /// Returns the structure, for [`Ref::try_new`].
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
        while !self.wait_timeout(MESSAGE_INTERVAL) {
            pr_warn!(
                "still waiting for the last reference to a {}\n",
                core::any::type_name::<T>()
            );
        }

        // SAFETY: By the type invariant the pointer is that of a pinned box, which is ours. No
        // reference is left, and `release` has ended, since `zero` was seen completed.
        drop(unsafe { Pin::new_unchecked(KBox::from_raw(self.inner.as_ptr())) });
    }
}

/// A reference to a counted value. The value is not freed while it exists.
///
/// # Invariants
///
/// `self.0` points to the structure of a [`Counted`], and one reference of its count is ours.
pub struct Ref<T: Send + Sync + 'static>(NonNull<Inner<T>>);

// SAFETY: A reference may be put by any thread, and the value may be used by any.
unsafe impl<T: Send + Sync + 'static> Send for Ref<T> {}

// SAFETY: Through a shared reference the value is only shared, and `T` is `Sync`.
unsafe impl<T: Send + Sync + 'static> Sync for Ref<T> {}

impl<T: Send + Sync + 'static> Ref<T> {
    /// Takes a reference, unless the count was killed. Does not sleep.
    ///
    /// # Safety
    ///
    /// The structure must not be freed during the call.
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

    /// Records that it was dropped.
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
    fn a_value_is_dropped_with_its_owner() -> Result {
        let (gone, counted) = witness()?;

        drop(counted.try_get());
        assert!(!gone.load(Relaxed));
        drop(counted);
        assert!(gone.load(Relaxed));
        Ok(())
    }

    #[test]
    fn a_kill_refuses_references_and_a_wait_ends_with_the_last_one() -> Result {
        let (gone, mut counted) = witness()?;
        let reference = counted.try_get().ok_or(EINVAL)?;
        let other = reference.clone();

        counted.kill();
        counted.kill();
        assert!(counted.try_get().is_none());
        assert!(!counted.wait_timeout(50));
        drop(reference);
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
    fn the_value_of_a_leaked_owner_can_be_used_for_ever() -> Result {
        let (gone, counted) = witness()?;
        let reference = counted.try_get().ok_or(EINVAL)?;

        core::mem::forget(counted);
        drop(reference.clone());
        assert!(!gone.load(Relaxed));
        // Frees the value after all, or kmemleak would report it.
        // INVARIANT: The owner was forgotten, so that this is the only one.
        drop(Counted {
            inner: reference.0,
            killed: {
                drop(reference);
                false
            },
        });
        assert!(gone.load(Relaxed));
        Ok(())
    }
}
