// SPDX-License-Identifier: GPL-2.0

//! Notices of the reboot, the halt and the power-off of the system.
//!
//! C header: [`include/linux/reboot.h`](srctree/include/linux/reboot.h)

use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::module::Registered;
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*,
    types::Opaque, //
};

/// A receiver of the notice that the system is going down.
pub trait RebootHandler: 'static {
    /// Handles that the system is about to be rebooted, halted or switched off, or to start another
    /// kernel (`kexec`). After that, this kernel goes on running only if the firmware fails to
    /// switch the machine off. Not called for an emergency (`emergency_restart()`), a crash, a
    /// kexec that returns to this kernel, or a hibernation that the platform ends (`platform` in
    /// `/sys/power/disk`).
    ///
    /// Called in process context, before `device_shutdown()`, which takes the lock of each device
    /// and calls the `shutdown` callback of its driver. User space may still run. May sleep,
    /// which delays the reboot. The rwsem of the notifier chain is held, so this must not register
    /// or unregister a [`RebootNotifier`].
    fn going_down();
}

/// A registration of a [`RebootHandler`].
///
/// # Examples
///
/// ```
/// use kernel::prelude::*;
/// use kernel::sync::atomic::{
///     Atomic,
///     Relaxed, //
/// };
/// use pmem_rs::abstractions::kernel::reboot::{
///     RebootHandler,
///     RebootNotifier, //
/// };
///
/// static IS_GOING_DOWN: Atomic<bool> = Atomic::new(false);
///
/// struct Recorder;
///
/// impl RebootHandler for Recorder {
///     fn going_down() {
///         IS_GOING_DOWN.store(true, Relaxed);
///     }
/// }
///
/// let notifier = KBox::pin_init(RebootNotifier::<Recorder>::new(), GFP_KERNEL)?;
/// drop(notifier);
/// # Ok::<(), Error>(())
/// ```
///
/// # Invariants
///
/// The notifier is registered.
#[pin_data(PinnedDrop)]
pub struct RebootNotifier<T: RebootHandler> {
    #[pin]
    nb: Opaque<bindings::notifier_block>,
    _registered: Registered,
    _handler: PhantomData<fn() -> T>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl<T: RebootHandler> Send for RebootNotifier<T> {}

// SAFETY: The rwsem of the chain protects the notifier.
unsafe impl<T: RebootHandler> Sync for RebootNotifier<T> {}

impl<T: RebootHandler> RebootNotifier<T> {
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
                to_result(unsafe { bindings::register_reboot_notifier(slot) })
            }),
            _handler: PhantomData,
        })
    }

    extern "C" fn notify_callback(
        _nb: *mut bindings::notifier_block,
        _action: c_ulong,
        _data: *mut c_void,
    ) -> c_int {
        T::going_down();
        // The other notifiers are called too.
        bindings::NOTIFY_DONE as c_int
    }
}

#[pinned_drop]
impl<T: RebootHandler> PinnedDrop for RebootNotifier<T> {
    fn drop(self: Pin<&mut Self>) {
        // Waits for calls that are in progress.
        //
        // SAFETY: By the type invariant it is registered. The call fails only for another notifier.
        unsafe { bindings::unregister_reboot_notifier(self.nb.get()) };
    }
}

#[kunit_tests(pmem_rs_reboot)]
mod tests {
    use super::*;
    use kernel::sync::atomic::{
        Atomic,
        Relaxed, //
    };

    static CALLS: Atomic<u32> = Atomic::new(0);

    struct Counter;

    impl RebootHandler for Counter {
        fn going_down() {
            CALLS.fetch_add(1, Relaxed);
        }
    }

    #[test]
    fn the_handler_is_called_and_the_chain_goes_on() -> Result {
        let before = Registered::count();
        let notifier = KBox::pin_init(RebootNotifier::<Counter>::new(), GFP_KERNEL)?;

        assert_eq!(Registered::count(), before + 1);
        // SAFETY: The notifier was registered, so it was initialised.
        let callback = unsafe { (*notifier.nb.get()).notifier_call };
        let callback = callback.ok_or(EINVAL)?;
        // SAFETY: This is what the chain does.
        let ret = unsafe { callback(notifier.nb.get(), 1, core::ptr::null_mut()) };
        assert_eq!((ret, CALLS.load(Relaxed)), (0, 1));
        drop(notifier);
        assert_eq!(Registered::count(), before);
        Ok(())
    }
}
