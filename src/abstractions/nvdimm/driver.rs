// SPDX-License-Identifier: GPL-2.0

//! Drivers on the `nd` bus.

use super::{
    device::Device,
    driver_attribute::{
        Attributed,
        Tables,
        TextAttribute, //
    },
    identity::{
        for_each,
        DeviceIdentity, //
    },
    namespace::Namespace,
    probe_error::ProbeError,
    probe_results::{
        Identity,
        ProbeResults,
        Refusal,
        Shown, //
    },
    provider::{
        RawDriver,
        Watchers, //
    },
    status::StateAttribute, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::{
    error::code::EOPNOTSUPP,
    pin_init::raw_try_init, //
};
use crate::abstractions::kernel_ext::module::Registered;
use core::mem::offset_of;
use kernel::{
    device::{
        Core,
        CoreInternal, //
    },
    driver,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    sync::Arc,
    types::Opaque,
    ThisModule, //
};
use pin_init::pin_init_from_closure;

/// A set of device types that a driver serves (`ND_DRIVER_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTypes(c_ulong);

impl DeviceTypes {
    /// Namespaces, and the pfn and btt devices that claim them: `ND_DRIVER_NAMESPACE_IO` in regions
    /// without labels, `ND_DRIVER_NAMESPACE_PMEM` in regions with labels.
    pub const NAMESPACE: Self =
        Self((bindings::ND_DRIVER_NAMESPACE_IO | bindings::ND_DRIVER_NAMESPACE_PMEM) as c_ulong);
}

/// A change of a region or a namespace that has a driver (`enum nvdimm_event`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The list of bad memory has changed.
    RevalidatePoison,
    /// The region has changed, for instance to read-only.
    RevalidateRegion,
}

/// A driver of devices on the `nd` bus.
///
/// All callbacks are called in process context, and all but [`Driver::present`] with the device
/// lock held. They may sleep.
///
/// # Examples
///
/// A driver that claims namespaces for the modes in their info blocks, and binds to no device:
///
/// ```no_run
/// use kernel::device::Core;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::nvdimm::{
///     self,
///     Claim,
///     Device,
///     DeviceTypes,
///     Event,
///     Kind,
///     Namespace,
///     ProbeError, //
/// };
///
/// struct Claimer;
///
/// impl nvdimm::Driver for Claimer {
///     type Data<'bound> = ();
///
///     const TYPES: DeviceTypes = DeviceTypes::NAMESPACE;
///
///     fn probe<'bound>(
///         dev: &'bound Device<Core<'_>>,
///         namespace: Namespace<'bound>,
///     ) -> impl PinInit<Self::Data<'bound>, ProbeError> + 'bound {
///         let claim = || {
///             if dev.kind() == Kind::Namespace && namespace.enable()?.claim()? == Claim::Claimed {
///                 dev.info(fmt!("claimed\n"));
///             }
///             Err(ENXIO.into())
///         };
///
///         claim()
///     }
///
///     fn mode<'bound>(_this: Pin<&()>) -> &'static CStr {
///         c"none"
///     }
///
///     fn notify<'bound>(dev: &'bound Device<Core<'_>>, _this: Pin<&()>, event: Event) {
///         dev.info(fmt!("{:?}\n", event));
///     }
/// }
///
/// // A field of this type in a module registers the driver.
/// type Registration = kernel::driver::Registration<nvdimm::Adapter<Claimer>>;
/// ```
pub trait Driver {
    /// The driver's data of a bound device. It is dropped after [`Driver::unbind`].
    type Data<'bound>: Send + 'bound;

    /// The types of devices that the bus offers to the driver.
    const TYPES: DeviceTypes;

    /// A file of the driver in sysfs.
    const ATTRIBUTE: Option<TextAttribute> = None;

    /// Handles a namespace, pfn or btt device that is on the bus when the driver has been
    /// registered, whatever its driver. Devices are probed before this, unless probes are
    /// asynchronous.
    ///
    /// No lock of a device is held.
    fn present(identity: DeviceIdentity) {
        let _ = identity;
    }

    /// Checks whether the driver serves a device with this namespace at all. Called before
    /// [`Self::probe`], and before the adapter checks that the namespace is where its labels
    /// allocate space to it.
    ///
    /// # Errors
    ///
    /// As for [`Self::probe`]: with [`ENODEV`] the device is left to other drivers.
    ///
    /// # Examples
    ///
    /// Only a namespace in its place can be reserved:
    ///
    /// ```compile_fail,E0599
    /// use kernel::prelude::*;
    /// use pmem_rs::abstractions::nvdimm::DeviceIdentity;
    ///
    /// fn admit(namespace: DeviceIdentity, name: CString) {
    ///     let _ = namespace.reserve(name);
    /// }
    /// ```
    fn admit(dev: &Device<Core<'_>>, namespace: DeviceIdentity) -> Result<(), ProbeError> {
        let _ = (dev, namespace);
        Ok(())
    }

    /// Binds a device to the driver.
    ///
    /// The adapter has refused namespaces that are empty, incomplete, locked, claimed by another
    /// device, or not where their labels allocate space to them.
    ///
    /// # Errors
    ///
    /// After any error the bus offers the device to the next driver, unless user space has asked
    /// for this one (`bind` in sysfs).
    ///
    /// After [`EOPNOTSUPP`] the adapter keeps drivers of other modules off the device. A namespace
    /// is free for them while it has `force_raw`. The refusal ends when the device is bound without
    /// `force_raw`, when this function returns [`ENXIO`] or [`ENODEV`], or when a namespace with a
    /// label is recreated or gets another claim class.
    ///
    /// If the device is the seed (an empty device of its kind for user space to configure), the bus
    /// creates a new one after [`EOPNOTSUPP`], as it does after success. Therefore empty seeds must
    /// be refused with another error.
    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        namespace: Namespace<'bound>,
    ) -> impl PinInit<Self::Data<'bound>, ProbeError> + 'bound;

    /// Returns what the device is bound as, for users. It is shown in sysfs, in the file `mode` of
    /// the device's directory that has the name of the driver.
    fn mode<'bound>(this: Pin<&Self::Data<'bound>>) -> &'static CStr;

    /// Returns the state of the device. It is shown in the same directory, in the file
    /// [`STATE_FILE`](super::STATE_FILE), until the driver's data was dropped. If the device is
    /// deleted while it is bound, the file is removed before the device is unbound.
    fn state<'bound>(this: Pin<&Self::Data<'bound>>) -> Option<Arc<dyn StateAttribute>> {
        let _ = this;
        None
    }

    /// Unbinds a device. The driver's data is dropped after this.
    fn unbind<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (dev, this);
    }

    /// Handles a shutdown or reboot of the system. The device stays bound.
    ///
    /// The PM core does not know devices of the nd bus (`device_set_pm_not_required()`), so there
    /// are no callbacks for the sleep of the system: see
    /// [`SleepDevice`](crate::abstractions::kernel::pm::SleepDevice).
    fn shutdown<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (dev, this);
    }

    /// Handles a change of the region or the namespace.
    fn notify<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>, event: Event) {
        let _ = (dev, this, event);
    }
}

/// An adapter for the registration of drivers on the `nd` bus.
pub struct Adapter<T: Driver>(T);

impl<T: Driver> Attributed for Adapter<T> {
    const ATTRIBUTE: Option<TextAttribute> = T::ATTRIBUTE;
}

// SAFETY:
// - `RawDriver` is declared as `repr(C)`.
// - `T::Data` is the type of the driver's device private data.
// - `RawDriver` embeds a `struct nd_device_driver`, which embeds a `struct device_driver`, at the
//   given offset.
unsafe impl<T: Driver> driver::DriverLayout for Adapter<T> {
    type DriverType = RawDriver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize = offset_of!(Self::DriverType, nd.drv);
}

// SAFETY: A call to `unregister` for a given instance of `DriverType` is guaranteed to be valid if
// a preceding call to `register` has been successful.
unsafe impl<T: Driver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        driver: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        let registered = Registered::new()?;
        let watchers = Watchers::new()?;
        let results = ProbeResults::new(name)?;
        let driver = driver.get();
        // SAFETY: The driver is valid, by the safety requirements of this function.
        let ndrv = unsafe { &raw mut (*driver).nd };

        // SAFETY: The driver is not registered yet, so no other thread reads its fields. Devices
        // that are bound or probed use `watchers` and `results`, and there is none after
        // `driver_unregister()`. The references are put after that.
        unsafe {
            (*ndrv).drv.name = name.as_char_ptr();
            (*ndrv).drv.groups = Tables::<Self>::groups();
            (*ndrv).type_ = T::TYPES.0;
            (*ndrv).probe = Some(Self::probe_callback);
            (*ndrv).remove = Some(Self::remove_callback);
            (*ndrv).shutdown = Some(Self::shutdown_callback);
            (*ndrv).notify = Some(Self::notify_callback);
            (*driver).watchers = Arc::as_ptr(&watchers);
            (*driver).results = Arc::as_ptr(&results);
        }

        // SAFETY: The driver is valid, and stays until `unregister`.
        to_result(unsafe {
            bindings::__nd_driver_register(ndrv, module.as_ptr(), name.as_char_ptr())
        })
        // Devices may have been probed.
        .inspect_err(|_| results.unregister())?;
        // SAFETY: `__nd_driver_register()` has set the bus. libnvdimm, which this module depends
        // on, keeps it registered. The reference to the notifier is kept until `unregister`.
        if let Err(err) = unsafe { watchers.register((*ndrv).drv.bus) } {
            // SAFETY: The driver has just been registered.
            unsafe { bindings::driver_unregister(&raw mut (*ndrv).drv) };
            results.unregister();
            return Err(err);
        }

        // `__nd_driver_register()` has taken the locks of the same devices, so the caller holds
        // none.
        //
        // SAFETY: `__nd_driver_register()` has set the bus, which stays registered.
        unsafe { for_each((*ndrv).drv.bus, T::present) };

        // `unregister` takes all of them back.
        let _ = Arc::into_raw(watchers);
        let _ = Arc::into_raw(results);
        registered.into_raw();
        Ok(())
    }

    unsafe fn unregister(driver: &Opaque<Self::DriverType>) {
        let driver = driver.get();
        // SAFETY: The driver is registered, by the safety requirements of this function.
        // `nd_driver_unregister()` is an inline function with this call.
        unsafe { bindings::driver_unregister(&raw mut (*driver).nd.drv) };

        // SAFETY: `register` has left the references, and has registered the notifier of `watchers`
        // with this bus.
        unsafe {
            let watchers = Arc::from_raw((*driver).watchers);
            watchers.unregister((*driver).nd.drv.bus);
            Arc::from_raw((*driver).results).unregister();
        }
        // SAFETY: `register` has succeeded, and this is called once after it.
        drop(unsafe { Registered::from_raw() });
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: The bus calls this with a valid device on it, for the duration of the call.
        //
        // INVARIANT: Drivers of `DeviceTypes::NAMESPACE` are offered these kinds of devices only.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        // SAFETY: A device that is being probed has this driver.
        let results = unsafe { Self::results(dev) };

        from_result(|| {
            // SAFETY: `register`, if it fails, and `unregister` unregister the notifier.
            let probe = unsafe { results.begin(dev) }?;

            let (result, refusal) = match Namespace::probe(dev) {
                Ok(namespace) => {
                    let identity = Identity::of(&namespace);
                    let is_forced_raw = namespace.is_forced_raw();
                    let result = T::admit(dev, namespace.identity())
                        .and_then(|()| namespace.check_place(dev))
                        .and_then(|()| Self::bind(dev, namespace));
                    let refusal = match result.as_ref().map_err(ProbeError::to_error) {
                        Err(err) if err == EOPNOTSUPP => Refusal::Begins(identity),
                        // The contents are good now, another device has claimed the namespace, or
                        // the device is left to other drivers.
                        Ok(_) if !is_forced_raw => Refusal::Ends,
                        Err(err) if err == ENXIO || err == ENODEV => Refusal::Ends,
                        // They were not checked.
                        _ => Refusal::Stays,
                    };
                    (result, refusal)
                }
                Err(error) => (Err(error), Refusal::Stays),
            };

            match result {
                Ok(shown) => {
                    probe.end(Some(shown), refusal);
                    Ok(0)
                }
                Err(error) => {
                    let err = error.to_error();
                    probe.end(error.into_shown_reason().map(Shown::Refused), refusal);
                    Err(err)
                }
            }
        })
    }

    /// Returns the results of probes.
    ///
    /// # Safety
    ///
    /// The device must be one that is being probed by this driver.
    unsafe fn results<'a>(dev: &'a Device<CoreInternal<'_>>) -> &'a ProbeResults {
        // SAFETY: By the safety requirements the device has this driver. `register` has set the
        // pointer, and the list stays until no device is bound or probed.
        unsafe { &*(*RawDriver::of((*dev.as_raw()).driver)).results }
    }

    /// Probes a device, and stores the driver's data in it. Returns what is shown of the device.
    fn bind<'bound>(
        dev: &'bound Device<CoreInternal<'_>>,
        namespace: Namespace<'bound>,
    ) -> Result<Shown, ProbeError> {
        let mut failure = None;
        let data = T::probe(dev, namespace);
        let slot_init = |slot| {
            // SAFETY: This is called once, with the slot and the guarantees for the closure below.
            unsafe { raw_try_init(slot, data) }.map_err(|error| {
                let err = error.to_error();
                failure = Some(error);
                err
            })
        };

        // SAFETY: The closure does what the initializer does.
        let data = unsafe { pin_init_from_closure(slot_init) };
        dev.generic()
            .set_drvdata(data)
            .map_err(|err| failure.unwrap_or(err.into()))?;
        // SAFETY: The data was just set.
        let data = unsafe { dev.generic().drvdata_borrow::<T::Data<'_>>() };
        Ok(Shown::Bound(T::mode(data), T::state(data)))
    }

    extern "C" fn remove_callback(dev: *mut bindings::device) {
        // SAFETY: The bus calls this with a valid device, for the duration of the call.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        // SAFETY: The bus calls this only after a successful `probe_callback`, which has set the
        // data.
        unsafe { Self::unbind(dev) };
    }

    /// # Safety
    ///
    /// [`Self::bind`] must have set the data of the device.
    unsafe fn unbind(dev: &Device<CoreInternal<'_>>) {
        // SAFETY: By the safety requirements. The driver core drops the data later.
        let data = unsafe { dev.generic().drvdata_borrow::<T::Data<'_>>() };

        T::unbind(dev, data);
    }

    extern "C" fn shutdown_callback(dev: *mut bindings::device) {
        // SAFETY: The bus calls this with a valid device, for the duration of the call.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        // SAFETY: The bus calls this only for devices with a driver, so `probe_callback` has set
        // the data. The device lock is held, so the device is not unbound meanwhile.
        let data = unsafe { dev.generic().drvdata_borrow::<T::Data<'_>>() };

        T::shutdown(dev, data);
    }

    extern "C" fn notify_callback(dev: *mut bindings::device, event: bindings::nvdimm_event) {
        // SAFETY: The bus calls this with a valid device, for the duration of the call.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };
        let event = match event {
            bindings::nvdimm_event_NVDIMM_REVALIDATE_POISON => Event::RevalidatePoison,
            bindings::nvdimm_event_NVDIMM_REVALIDATE_REGION => Event::RevalidateRegion,
            _ => {
                dev.warn(fmt!("ignoring unknown event {}\n", event));
                return;
            }
        };

        // SAFETY: `nd_device_notify()` calls this only for devices with a driver, so
        // `probe_callback` has set the data. It holds the device lock, so the device is not unbound
        // meanwhile.
        let data = unsafe { dev.generic().drvdata_borrow::<T::Data<'_>>() };

        T::notify(dev, data, event);
    }
}

#[kunit_tests(pmem_rs_nvdimm)]
mod tests {
    use super::*;
    use core::ptr::NonNull;
    use kernel::{
        device::{
            self,
            Bound, //
        },
        faux,
        module::this_module,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        types::ForeignOwnable, //
    };

    /// A driver that records its callbacks, a decimal digit for each call.
    struct Recorder;

    struct Log(Atomic<u64>);

    impl Log {
        fn record(&self, digit: u64) {
            self.0.store(self.0.load(Relaxed) * 10 + digit, Relaxed);
        }
    }

    impl Driver for Recorder {
        type Data<'bound> = Log;

        // No device type has this bit.
        const TYPES: DeviceTypes = DeviceTypes(1 << 31);

        fn probe<'bound>(
            _dev: &'bound Device<Core<'_>>,
            _namespace: Namespace<'bound>,
        ) -> impl PinInit<Self::Data<'bound>, ProbeError> + 'bound {
            Ok::<_, ProbeError>(Log(Atomic::new(1)))
        }

        fn mode<'bound>(_this: Pin<&Log>) -> &'static CStr {
            c"recorder"
        }

        fn unbind<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>) {
            this.record(2);
        }

        fn shutdown<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>) {
            this.record(3);
        }

        fn notify<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>, event: Event) {
            this.record(match event {
                Event::RevalidatePoison => 4,
                Event::RevalidateRegion => 5,
            });
        }
    }

    /// A driver without device types, which the bus refuses.
    struct Untyped;

    impl Driver for Untyped {
        type Data<'bound> = ();

        const TYPES: DeviceTypes = DeviceTypes(0);

        fn probe<'bound>(
            _dev: &'bound Device<Core<'_>>,
            _namespace: Namespace<'bound>,
        ) -> impl PinInit<Self::Data<'bound>, ProbeError> + 'bound {
            Err::<(), _>(ProbeError::silent(ENODEV, fmt!("no {}", "type")))
        }

        fn mode<'bound>(_this: Pin<&()>) -> &'static CStr {
            c"none"
        }
    }

    fn raw(faux: &faux::Registration) -> *mut bindings::device {
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        core::ptr::from_ref(generic).cast_mut().cast()
    }

    /// Binds a device that is not on the bus to a driver.
    fn bind<T: Driver>(dev: *mut bindings::device) -> Result<Shown, ProbeError> {
        // SAFETY: The tests keep the registration of the device, so it is valid. It is on no nd bus
        // and has no namespace, and the drivers of the tests use neither.
        let (dev, namespace) = unsafe {
            let dev = &*dev.cast::<Device<CoreInternal<'_>>>();
            (dev, Namespace::from_raw(dev, NonNull::dangling()))
        };

        Adapter::<T>::bind(dev, namespace)
    }

    #[test]
    fn a_driver_can_be_registered_again() -> Result {
        // The bus would refuse the second one if the name was still in use.
        for _ in 0..2 {
            KBox::pin_init(
                driver::Registration::<Adapter<Recorder>>::new(
                    c"pmem_rs_test",
                    this_module::<crate::LocalModule>(),
                ),
                GFP_KERNEL,
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_driver_must_have_a_type() {
        let refused = KBox::pin_init(
            driver::Registration::<Adapter<Untyped>>::new(
                c"pmem_rs_test",
                this_module::<crate::LocalModule>(),
            ),
            GFP_KERNEL,
        );
        assert!(refused.is_err_and(|err| err == EINVAL));
    }

    // The device is one of another bus: the nd bus has none that could be bound here.
    #[test]
    fn callbacks_reach_the_driver() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nvdimm", None)?;
        let dev = raw(&faux);
        type Callbacks = Adapter<Recorder>;

        assert!(
            matches!(bind::<Recorder>(dev), Ok(Shown::Bound(mode, None)) if mode == c"recorder")
        );
        let poison = bindings::nvdimm_event_NVDIMM_REVALIDATE_POISON;
        let region = bindings::nvdimm_event_NVDIMM_REVALIDATE_REGION;
        Callbacks::notify_callback(dev, poison);
        Callbacks::notify_callback(dev, region);
        // A later kernel may have more events.
        Callbacks::notify_callback(dev, 1000);
        Callbacks::shutdown_callback(dev);
        // SAFETY: The device is valid, and `bind` has set its data.
        unsafe { Callbacks::unbind(&*dev.cast::<Device<CoreInternal<'_>>>()) };

        // SAFETY: The device is valid, and `bind` has stored a `Log` in it. The driver core does
        // not drop that: the device has a C driver, without `post_unbind_rust`.
        let log = unsafe {
            let data = bindings::dev_get_drvdata(dev);
            bindings::dev_set_drvdata(dev, core::ptr::null_mut());
            Pin::<KBox<Log>>::from_foreign(data.cast())
        };
        assert_eq!(log.0.load(Relaxed), 14532);
        Ok(())
    }

    #[test]
    fn an_error_of_probe_is_returned() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nvdimm", None)?;

        let error = bind::<Untyped>(raw(&faux)).err().ok_or(EINVAL)?;
        assert!(error.to_error() == ENODEV);
        assert!(error
            .into_shown_reason()
            .is_some_and(|reason| &*reason == c"no type"));
        Ok(())
    }
}
