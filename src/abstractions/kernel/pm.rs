// SPDX-License-Identifier: GPL-2.0

//! Callbacks for the sleep of the system.
//!
//! C header: [`include/linux/pm.h`](srctree/include/linux/pm.h)

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::module::Registered;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// What a [`SleepDevice`] does when the system goes to sleep and wakes up.
///
/// All methods are called in process context, with the device lock of the [`SleepDevice`] held.
/// They may sleep.
pub trait SleepOperations: Send + Sync + 'static {
    /// Prepares for the sleep, for the image of the memory, or for the resume of a hibernated
    /// kernel, before the parent does. The threads of user space are frozen.
    ///
    /// After an error the system stays awake, and [`Self::resume`] is not called, nor if the
    /// [`SleepDevice`] was dropped meanwhile. A hibernating
    /// system is switched off nevertheless, unless the error is [`EBUSY`] or [`EAGAIN`].
    fn suspend(&self) -> Result;

    /// Handles the end of the sleep, after the parent has. Also called before the image of the
    /// memory is saved, and if the system stays awake after [`Self::suspend`] has succeeded.
    fn resume(&self);

    /// Handles that the platform switches a hibernating system off (`platform` in
    /// `/sys/power/disk`). [`Self::suspend`] follows. In the modes `shutdown` and `reboot` the
    /// drivers' `shutdown` callbacks are called instead.
    fn power_off(&self);
}

/// A device whose only purpose is that the PM core calls its operations: before it suspends the
/// parent, and after it has resumed the parent. It has no bus and no driver.
///
/// For users of a device that are no devices themselves, or whose bus the PM core leaves out.
/// Without `CONFIG_PM_SLEEP` there are no calls.
///
/// It does not outlive the binding of the parent. One that is forgotten stays for good, and so do
/// the memory of the parent and this module.
///
/// Dropping it waits for a call in progress. So no call may do that: it would wait for itself. A
/// call that the PM core is about to make may come after that, and has no counterpart
/// (`dpm_suspend()` calls a device after it has released its list).
///
/// # Examples
///
/// ```
/// use kernel::faux;
/// use kernel::prelude::*;
/// use kernel::sync::atomic::{
///     Atomic,
///     Relaxed, //
/// };
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::kernel::pm::{
///     SleepDevice,
///     SleepOperations, //
/// };
///
/// struct Awake(Atomic<bool>);
///
/// impl SleepOperations for Awake {
///     fn suspend(&self) -> Result {
///         self.0.store(false, Relaxed);
///         Ok(())
///     }
///
///     fn resume(&self) {
///         self.0.store(true, Relaxed);
///     }
///
///     fn power_off(&self) {}
/// }
///
/// let parent = faux::Registration::new(c"pmem_rs_pm", None)?;
/// let device = SleepDevice::new(
///     parent.as_ref().as_ref(),
///     c"pmem_rs_pm_child",
///     Arc::new(Awake(Atomic::new(true)), GFP_KERNEL)?,
/// )?;
/// drop(device);
/// # Ok::<(), Error>(())
/// ```
///
/// It is dropped before its parent:
///
/// ```compile_fail,E0505
/// # use kernel::{faux, prelude::*, sync::Arc};
/// # use pmem_rs::abstractions::kernel::pm::{SleepDevice, SleepOperations};
/// fn keep<T: SleepOperations>(parent: faux::Registration, ops: Arc<T>) -> Result {
///     let device = SleepDevice::new(parent.as_ref().as_ref(), c"child", ops)?;
///     drop(parent);
///     drop(device);
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// The device was added, and is unregistered by the drop. Its parent is not deleted for `'a`.
pub struct SleepDevice<'a, T: SleepOperations>(NonNull<Inner<T>>, PhantomData<&'a Device<Bound>>);

/// The memory of the device, which its last reference frees. The count of registrations keeps the
/// module until then.
#[pin_data]
#[repr(C)]
struct Inner<T: SleepOperations> {
    #[pin]
    dev: Opaque<bindings::device>,
    ops: Arc<T>,
    _registered: Registered,
}

// SAFETY: A device may be unregistered by any thread, and `T` is `Send` and `Sync`.
unsafe impl<T: SleepOperations> Send for SleepDevice<'_, T> {}

// SAFETY: There are no methods.
unsafe impl<T: SleepOperations> Sync for SleepDevice<'_, T> {}

impl<'a, T: SleepOperations> SleepDevice<'a, T> {
    /// The PM core only reads it.
    const DOMAIN: bindings::dev_pm_domain = bindings::dev_pm_domain {
        ops: bindings::dev_pm_ops {
            suspend: Some(Self::suspend_callback),
            resume: Some(Self::resume_callback),
            freeze: Some(Self::suspend_callback),
            thaw: Some(Self::resume_callback),
            poweroff: Some(Self::power_off_callback),
            restore: Some(Self::resume_callback),
            ..pin_init::zeroed()
        },
        ..pin_init::zeroed()
    };

    /// Adds a device below `parent`. Sleeps.
    ///
    /// # Errors
    ///
    /// [`EEXIST`] if the parent has a child of this name, [`EINVAL`] if the name is empty.
    pub fn new(parent: &'a Device<Bound>, name: &CStr, ops: Arc<T>) -> Result<Self> {
        // CAST: `Device` is a transparent wrapper of `struct device`.
        let parent = core::ptr::from_ref(parent).cast_mut().cast();

        // SAFETY: A device is added before it is bound, and is unbound before it is deleted.
        unsafe { Self::below(parent, name, ops) }
    }

    /// As [`Self::new`].
    ///
    /// # Safety
    ///
    /// `parent` must have been added, and must not be deleted for `'a`.
    pub(in crate::abstractions) unsafe fn below(
        parent: *mut bindings::device,
        name: &CStr,
        ops: Arc<T>,
    ) -> Result<Self> {
        if name.is_empty() {
            return Err(EINVAL);
        }
        let inner = KBox::pin_init(
            try_pin_init!(Inner {
                dev <- Opaque::ffi_init(|slot: *mut bindings::device| {
                    // SAFETY: `slot` is valid for writing, and zeroes are a value of the type.
                    unsafe { slot.write_bytes(0, 1) };
                }),
                ops,
                _registered: Registered::new()?,
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: The value is not moved until `release_callback` drops it.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(inner) });
        // SAFETY: The value was just made.
        let dev = unsafe { (*inner).dev.get() };

        let domain: &'static bindings::dev_pm_domain = &Self::DOMAIN;
        // SAFETY: The device is zeroed, and its memory stays until it is released. By the safety
        // requirements the parent is valid and is not deleted meanwhile. It is kept by the device
        // once that was added. The domain is static.
        let result = unsafe {
            bindings::device_initialize(dev);
            (*dev).parent = parent;
            (*dev).release = Some(Self::release_callback);
            (*dev).pm_domain = core::ptr::from_ref(domain).cast_mut();
            to_result(bindings::dev_set_name(
                dev,
                c"%s".as_char_ptr(),
                name.as_char_ptr(),
            ))
            .and_then(|()| to_result(bindings::device_add(dev)))
        };
        if let Err(err) = result {
            // SAFETY: The reference of `device_initialize()` is still owned here.
            unsafe { bindings::put_device(dev) };
            return Err(err);
        }

        // INVARIANT: Just added, and by the safety requirements.
        Ok(Self(NonNull::new(inner).ok_or(EINVAL)?, PhantomData))
    }

    /// # Safety
    ///
    /// The device must be that of an [`Inner`], and stay for `'b`.
    unsafe fn ops<'b>(dev: *mut bindings::device) -> &'b T {
        // SAFETY: By the safety requirements. The device is the first field.
        unsafe { &(*dev.cast::<Inner<T>>()).ops }
    }

    extern "C" fn suspend_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: The PM core calls this with a device of this domain, to which it has a reference.
        from_result(|| unsafe { Self::ops(dev) }.suspend().map(|()| 0))
    }

    extern "C" fn power_off_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: As in `suspend_callback`.
        unsafe { Self::ops(dev) }.power_off();
        Self::suspend_callback(dev)
    }

    extern "C" fn resume_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: As in `suspend_callback`.
        unsafe { Self::ops(dev) }.resume();
        0
    }

    extern "C" fn release_callback(dev: *mut bindings::device) {
        // SAFETY: The driver core calls this once, when there is no reference. `below` has made the
        // box.
        drop(unsafe { KBox::from_raw(dev.cast::<Inner<T>>()) });
    }
}

impl<T: SleepOperations> Drop for SleepDevice<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the device was added, and is valid until this call puts the
        // reference.
        unsafe { bindings::device_unregister(self.0.as_ref().dev.get()) };
    }
}

#[kunit_tests(pmem_rs_pm)]
mod tests {
    use super::*;
    use kernel::{
        faux,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    /// The calls, a decimal digit for each.
    struct Recorder(Atomic<u64>);

    impl Recorder {
        fn record(&self, digit: u64) {
            self.0.store(self.0.load(Relaxed) * 10 + digit, Relaxed);
        }
    }

    impl SleepOperations for Recorder {
        fn suspend(&self) -> Result {
            self.record(1);
            if self.0.load(Relaxed) > 100 {
                return Err(EBUSY);
            }
            Ok(())
        }

        fn resume(&self) {
            self.record(2);
        }

        fn power_off(&self) {
            self.record(3);
        }
    }

    #[test]
    fn callbacks_reach_the_operations() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_pm", None)?;
        let parent: &Device<Bound> = faux.as_ref().as_ref();
        let recorder = Arc::new(Recorder(Atomic::new(0)), GFP_KERNEL)?;
        let unnamed = SleepDevice::new(parent, c"", recorder.clone());
        assert!(unnamed.is_err_and(|err| err == EINVAL));
        let device = SleepDevice::new(parent, c"pmem_rs_pm_child", recorder.clone())?;

        // SAFETY: The device was added.
        let dev = unsafe { device.0.as_ref().dev.get() };
        assert_eq!(SleepDevice::<'_, Recorder>::suspend_callback(dev), 0);
        assert_eq!(SleepDevice::<'_, Recorder>::resume_callback(dev), 0);
        assert_eq!(
            SleepDevice::<'_, Recorder>::power_off_callback(dev),
            EBUSY.to_errno()
        );
        assert_eq!(recorder.0.load(Relaxed), 1231);
        drop(device);
        assert!(Arc::into_unique_or_drop(recorder).is_some());
        Ok(())
    }
}
