// SPDX-License-Identifier: GPL-2.0

//! Notices of the sleep of the system.
//!
//! C header: [`include/linux/suspend.h`](srctree/include/linux/suspend.h)

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::module::Registered;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A receiver of notices.
pub trait SleepHandler: 'static {
    /// Called when the system is about to suspend or to hibernate. After an error it does not.
    /// Called in the same context as [`Self::prepare_hibernation`], and before it.
    fn prepare_sleep() -> Result {
        Ok(())
    }

    /// Handles the end of a sleep, or that the system did not sleep, also after an error of
    /// [`Self::prepare_hibernation`]. Not called after an error of [`Self::prepare_sleep`].
    fn sleep_ended() {}

    /// Handles that the system is about to hibernate: to save its memory and to be switched off.
    /// After an error it does not.
    ///
    /// Called in process context, before any thread is frozen. May sleep. The rwsem of the notifier
    /// chain is held, so this must not register or unregister a [`PmNotifier`].
    fn prepare_hibernation() -> Result;

    /// Handles the end of a hibernation that was prepared: the system was resumed, or it did not
    /// hibernate. In the same context.
    fn hibernation_ended();
}

/// A registration of a [`SleepHandler`]. Without `CONFIG_PM_SLEEP` there are no notices.
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel::suspend::{
///     SleepHandler,
///     PmNotifier, //
/// };
///
/// struct Never;
///
/// impl SleepHandler for Never {
///     fn prepare_hibernation() -> Result {
///         Err(EBUSY)
///     }
///
///     fn hibernation_ended() {}
/// }
///
/// let notifier = KBox::pin_init(PmNotifier::<Never>::new(), GFP_KERNEL)?;
/// drop(notifier);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The notifier is registered.
#[pin_data(PinnedDrop)]
pub struct PmNotifier<T: SleepHandler> {
    #[pin]
    nb: Opaque<bindings::notifier_block>,
    _registered: Registered,
    _handler: PhantomData<fn() -> T>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl<T: SleepHandler> Send for PmNotifier<T> {}

// SAFETY: The rwsem of the chain protects the notifier.
unsafe impl<T: SleepHandler> Sync for PmNotifier<T> {}

impl<T: SleepHandler> PmNotifier<T> {
    /// Registers the handler. Sleeps.
    pub fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _registered: Registered::new()?,
            // INVARIANT: Registered here, and pinned from here on.
            nb <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                let nb = bindings::notifier_block {
                    notifier_call: Some(Self::notify_callback),
                    ..Default::default()
                };

                // SAFETY: `slot` is valid for writing.
                unsafe { slot.write(nb) };
                // SAFETY: The notifier is initialised, and stays until it is unregistered.
                to_result(unsafe { bindings::register_pm_notifier(slot) })
            }),
            _handler: PhantomData,
        })
    }

    extern "C" fn notify_callback(
        _nb: *mut bindings::notifier_block,
        action: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        const PREPARE: c_ulong = bindings::PM_HIBERNATION_PREPARE as c_ulong;
        const POST: c_ulong = bindings::PM_POST_HIBERNATION as c_ulong;
        const PREPARE_SUSPEND: c_ulong = bindings::PM_SUSPEND_PREPARE as c_ulong;
        const POST_SUSPEND: c_ulong = bindings::PM_POST_SUSPEND as c_ulong;

        let result = match action {
            PREPARE_SUSPEND => T::prepare_sleep(),
            PREPARE => T::prepare_sleep()
                .and_then(|()| T::prepare_hibernation().inspect_err(|_| T::sleep_ended())),
            POST_SUSPEND => {
                T::sleep_ended();
                Ok(())
            }
            POST => {
                T::hibernation_ended();
                T::sleep_ended();
                Ok(())
            }
            _ => return bindings::NOTIFY_DONE as c_int,
        };
        match result {
            Ok(()) => bindings::NOTIFY_OK as c_int,
            // `notifier_from_errno()`: the notifiers that were called before this one are notified
            // that the sleep is over.
            Err(err) => {
                let errno = (bindings::NOTIFY_OK as c_int).wrapping_sub(err.to_errno());
                bindings::NOTIFY_STOP_MASK as c_int | errno
            }
        }
    }
}

#[pinned_drop]
impl<T: SleepHandler> PinnedDrop for PmNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // Waits for calls that are in progress.
        //
        // SAFETY: By the type invariant it is registered. The call fails only for another notifier.
        unsafe { bindings::unregister_pm_notifier(self.nb.get()) };
    }
}

#[kunit_tests(pmem_rs_suspend)]
mod tests {
    use super::*;
    use kernel::sync::atomic::{
        Atomic,
        Relaxed, //
    };

    static ENDED: Atomic<u32> = Atomic::new(0);

    struct Busy;

    impl SleepHandler for Busy {
        fn prepare_hibernation() -> Result {
            Err(EBUSY)
        }

        fn hibernation_ended() {
            ENDED.fetch_add(1, Relaxed);
        }
    }

    fn notify(action: u32) -> c_int {
        PmNotifier::<Busy>::notify_callback(
            core::ptr::null_mut(),
            action as c_ulong,
            core::ptr::null_mut(),
        )
    }

    #[test]
    fn only_hibernation_is_refused() {
        assert_eq!(notify(bindings::PM_HIBERNATION_PREPARE), 0x8000 | (1 + 16));
        assert_eq!(notify(bindings::PM_SUSPEND_PREPARE), 1);
        assert_eq!(notify(bindings::PM_POST_SUSPEND), 1);
        assert_eq!(notify(bindings::PM_RESTORE_PREPARE), 0);
        assert_eq!(ENDED.load(Relaxed), 0);
        assert_eq!(notify(bindings::PM_POST_HIBERNATION), 1);
        assert_eq!(ENDED.load(Relaxed), 1);
    }
}
