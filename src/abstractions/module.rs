// SPDX-License-Identifier: GPL-2.0

//! What belongs to a module as a whole: references to it, and values that live as long as it does.
//!
//! C header: [`include/linux/module.h`](srctree/include/linux/module.h)

use super::bindings;
use core::marker::PhantomData;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        rcu,
        Arc, //
    },
    ThisModule, //
};

/// A reference that keeps a module from being unloaded.
///
/// # Invariants
///
/// One reference of the module is ours.
pub struct ModuleRef(&'static ThisModule);

impl ModuleRef {
    /// Takes a reference, unless the module is being unloaded.
    pub fn try_get(module: &'static ThisModule) -> Option<Self> {
        // SAFETY: The module is valid, its code is running.
        let got = unsafe { bindings::try_module_get(module.as_ptr()) };

        if !got {
            return None;
        }
        // INVARIANT: Just taken.
        Some(Self(module))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the reference is ours.
        unsafe { bindings::module_put(self.0.as_ptr()) };
    }
}

/// A place in static memory for a value that exists while the module is in use.
///
/// # Examples
///
/// ```
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::module::Global;
///
/// static LIMIT: Global<u32> = Global::new();
///
/// // What is returned belongs into the module's own structure.
/// let installed = LIMIT.install(Arc::new(3, GFP_KERNEL)?)?;
///
/// assert_eq!(LIMIT.get().map(|limit| *limit), Some(3));
/// drop(installed);
/// assert!(LIMIT.get().is_none());
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// `ptr` is null, or comes from [`Arc::into_raw`] of an `Arc<T>` that the [`Installed`] will put
/// after an RCU grace period.
pub struct Global<T: Send + Sync + 'static> {
    ptr: Atomic<*mut T>,
    _value: PhantomData<Arc<T>>,
}

// SAFETY: What is shared is an `Arc<T>`.
unsafe impl<T: Send + Sync + 'static> Sync for Global<T> {}

impl<T: Send + Sync + 'static> Global<T> {
    /// Makes an empty place.
    #[allow(clippy::new_without_default)]
    pub const fn new() -> Self {
        Self {
            ptr: Atomic::new(core::ptr::null_mut()),
            _value: PhantomData,
        }
    }

    /// Puts a value in its place, until the result is dropped.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if there is one.
    pub fn install(&'static self, value: Arc<T>) -> Result<Installed<T>> {
        let ptr = Arc::into_raw(value).cast_mut();

        match self.ptr.cmpxchg(core::ptr::null_mut(), ptr, Release) {
            // INVARIANT: The pointer was just stored.
            Ok(_) => Ok(Installed(self)),
            Err(_) => {
                // SAFETY: The pointer comes from `into_raw` and was not stored.
                drop(unsafe { Arc::from_raw(ptr) });
                Err(EBUSY)
            }
        }
    }

    /// Returns the value, if there is one.
    pub fn get(&self) -> Option<Arc<T>> {
        let _guard = rcu::read_lock();
        let ptr = self.ptr.load(Acquire);
        if ptr.is_null() {
            return None;
        }

        // SAFETY: By the type invariant this comes from an `Arc` whose reference is put only after
        // the RCU read-side section. That reference stays: only a clone of it is returned.
        let value = core::mem::ManuallyDrop::new(unsafe { Arc::from_raw(ptr) });
        Some(Arc::clone(&value))
    }
}

/// Takes a value from its place when it is dropped. That sleeps.
///
/// # Invariants
///
/// The place holds a value.
pub struct Installed<T: Send + Sync + 'static>(&'static Global<T>);

impl<T: Send + Sync + 'static> Drop for Installed<T> {
    fn drop(&mut self) {
        let ptr = self.0.ptr.xchg(core::ptr::null_mut(), Relaxed);

        // SAFETY: May sleep here.
        unsafe { bindings::synchronize_rcu() };
        // SAFETY: By the type invariants the pointer comes from `into_raw`; after the grace period
        // nobody is about to clone it.
        drop(unsafe { Arc::from_raw(ptr.cast_const()) });
    }
}

#[kunit_tests(pmem_rs_module)]
mod tests {
    use super::*;

    static PLACE: Global<u32> = Global::new();

    #[test]
    fn a_value_can_be_had_while_it_is_installed() -> Result {
        assert!(PLACE.get().is_none());
        let installed = PLACE.install(Arc::new(7, GFP_KERNEL)?)?;

        assert!(PLACE.get().is_some_and(|value| *value == 7));
        assert!(PLACE
            .install(Arc::new(8, GFP_KERNEL)?)
            .is_err_and(|err| err == EBUSY));
        let kept = PLACE.get().ok_or(EINVAL)?;
        drop(installed);
        assert!(PLACE.get().is_none());
        assert_eq!(*kept, 7);
        Ok(())
    }
}
