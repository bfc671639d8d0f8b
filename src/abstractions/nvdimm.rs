// SPDX-License-Identifier: GPL-2.0

//! The `nd` bus of libnvdimm: its devices and its drivers.
//!
//! A provider (NFIT, a device tree, virtio) describes *regions* of persistent memory; a region is
//! cut into *namespaces*. A namespace may carry an info block that gives it a personality: *pfn*
//! (fsdax, with `struct page`s), *btt* (sectors that do not tear) or *dax* (devdax). A personality
//! is a device of its own that claims the namespace. Namespaces, pfn and btt devices are offered to
//! the same drivers; [`Device::kind`] tells them apart.
//!
//! C headers: [`include/linux/nd.h`](srctree/include/linux/nd.h),
//! [`include/linux/libnvdimm.h`](srctree/include/linux/libnvdimm.h),
//! [`drivers/nvdimm/nd.h`](srctree/drivers/nvdimm/nd.h)

use crate::abstractions::nvdimm::provider::{
    RawDriver,
    Watchers, //
};
use crate::abstractions::{
    bindings,
    kernel::{
        block::gendisk,
        numa::Node, //
    },
    kernel_ext::module::Registered, //
};
use core::{
    marker::PhantomData,
    mem::offset_of, //
};
use kernel::{
    device::{
        self,
        Bound,
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

mod bus;
mod namespace;
mod provider;
mod region;

pub use crate::abstractions::nvdimm::bus::{
    Bus,
    Persistence,
    RegionDesc, //
};
pub use crate::abstractions::nvdimm::namespace::{
    info_block_reserve,
    Btt,
    Claim,
    EnabledNamespace,
    Namespace, //
    INFO_BLOCK_SIZE,
};
pub use crate::abstractions::nvdimm::provider::{
    ProviderWatch,
    ProviderWatcher, //
};
pub use crate::abstractions::nvdimm::region::{
    Region,
    RegionAccess, //
};

/// The kinds of devices that a driver serves, as a set (`ND_DRIVER_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTypes(c_ulong);

impl DeviceTypes {
    /// Namespaces, and the personalities on them: `ND_DRIVER_NAMESPACE_IO` in regions without
    /// labels, `ND_DRIVER_NAMESPACE_PMEM` in regions with labels.
    pub const NAMESPACE: Self =
        Self((bindings::ND_DRIVER_NAMESPACE_IO | bindings::ND_DRIVER_NAMESPACE_PMEM) as c_ulong);
}

/// Something that happened to a region or a namespace while its driver was bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The list of bad memory has changed.
    RevalidatePoison,
    /// The region has changed, for instance to read-only.
    RevalidateRegion,
}

/// A driver of devices on the `nd` bus.
///
/// All callbacks are called in process context with the lock of the device held; they may sleep.
///
/// # Examples
///
/// A driver that claims namespaces for their personalities, and binds to nothing itself:
///
/// ```no_run
/// use kernel::{
///     device::Core,
///     prelude::*, //
/// };
/// use pmem_rs::abstractions::nvdimm::{
///     self,
///     Claim,
///     Device,
///     DeviceTypes,
///     Event,
///     Kind,
///     Namespace, //
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
///     ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
///         let claim = || {
///             if dev.kind() == Kind::Namespace && namespace.enable()?.claim()? == Claim::Claimed {
///                 dev_info!(dev, "claimed\n");
///             }
///             Err(ENXIO)
///         };
///
///         claim()
///     }
///
///     fn notify<'bound>(dev: &'bound Device<Core<'_>>, _this: Pin<&()>, event: Event) {
///         dev_info!(dev, "{:?}\n", event);
///     }
/// }
///
/// // A module that has this as a field is the driver's.
/// type Registration = kernel::driver::Registration<nvdimm::Adapter<Claimer>>;
/// ```
pub trait Driver {
    /// What the driver keeps for a bound device. It is dropped after [`Driver::unbind`].
    type Data<'bound>: Send + 'bound;

    /// The devices that the bus offers to the driver.
    const TYPES: DeviceTypes;

    /// Binds a device, whose namespace can be used: it is not empty, incomplete or locked, and no
    /// other personality uses it. Devices of other namespaces are refused before.
    ///
    /// # Errors
    ///
    /// Any error lets the bus offer the device to the next driver. [`EOPNOTSUPP`] is special: the
    /// bus creates a new seed, an empty device of the same kind for user space to configure, as it
    /// does after success. Therefore empty seeds must be refused with another error.
    fn probe<'bound>(
        dev: &'bound Device<Core<'_>>,
        namespace: Namespace<'bound>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound;

    /// Unbinds a device; what the driver holds by RAII is dropped after this.
    fn unbind<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (dev, this);
    }

    /// The system shuts down or reboots; the device stays bound.
    fn shutdown<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>) {
        let _ = (dev, this);
    }

    /// Something happened to the device.
    fn notify<'bound>(dev: &'bound Device<Core<'_>>, this: Pin<&Self::Data<'bound>>, event: Event) {
        let _ = (dev, this, event);
    }
}

/// An adapter for the registration of drivers on the `nd` bus.
pub struct Adapter<T: Driver>(T);

// SAFETY:
// - `RawDriver` is declared as `repr(C)`.
// - `T::Data` is the type of the driver's device private data.
// - `RawDriver` embeds a `struct nd_device_driver`, which embeds a `struct device_driver`, at the given
//   offset.
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
        let driver = driver.get();
        // SAFETY: The driver is valid, by the safety requirements of this function.
        let ndrv = unsafe { &raw mut (*driver).nd };

        // SAFETY: It is safe to set the fields of `struct nd_device_driver` on initialization, and
        // those of what it is embedded in. Devices use the pointer for as long as they are bound,
        // which is until `unregister`.
        unsafe {
            (*ndrv).drv.name = name.as_char_ptr();
            (*ndrv).type_ = T::TYPES.0;
            (*ndrv).probe = Some(Self::probe_callback);
            (*ndrv).remove = Some(Self::remove_callback);
            (*ndrv).shutdown = Some(Self::shutdown_callback);
            (*ndrv).notify = Some(Self::notify_callback);
            (*driver).watchers = Arc::as_ptr(&watchers);
        }

        // SAFETY: The driver is valid, and stays until `unregister`.
        to_result(unsafe {
            bindings::__nd_driver_register(ndrv, module.as_ptr(), name.as_char_ptr())
        })?;
        // The bus is known from here on: `__nd_driver_register()` has set it.
        //
        // SAFETY: The bus is registered for as long as there is libnvdimm, which this module needs.
        // The reference to the notifier is kept until `unregister`.
        if let Err(err) = unsafe { watchers.register((*ndrv).drv.bus) } {
            // SAFETY: The driver was registered just now.
            unsafe { bindings::driver_unregister(&raw mut (*ndrv).drv) };
            return Err(err);
        }

        // Taken back by `unregister`.
        let _ = Arc::into_raw(watchers);
        registered.into_raw();
        Ok(())
    }

    unsafe fn unregister(driver: &Opaque<Self::DriverType>) {
        let driver = driver.get();
        // SAFETY: The driver is registered, by the safety requirements of this function.
        // `nd_driver_unregister()` does just this.
        unsafe { bindings::driver_unregister(&raw mut (*driver).nd.drv) };

        // SAFETY: `register` has left a reference, and the bus stays set.
        unsafe {
            let watchers = Arc::from_raw((*driver).watchers);
            watchers.unregister((*driver).nd.drv.bus);
        }
        // SAFETY: `register` has succeeded, and this is called once after it.
        drop(unsafe { Registered::from_raw() });
    }
}

impl<T: Driver> Adapter<T> {
    extern "C" fn probe_callback(dev: *mut bindings::device) -> c_int {
        // SAFETY: The bus only ever calls the probe callback with a valid pointer to a device on
        // it.
        //
        // INVARIANT: `dev` is valid for the duration of the callback.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        from_result(|| Self::bind(dev, Namespace::probe(dev)?).map(|()| 0))
    }

    /// Has the driver bind a device, and keeps its data.
    fn bind<'bound>(dev: &'bound Device<CoreInternal<'_>>, namespace: Namespace<'bound>) -> Result {
        dev.as_ref().set_drvdata(T::probe(dev, namespace))
    }

    extern "C" fn remove_callback(dev: *mut bindings::device) {
        // SAFETY: As in `probe_callback`.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        // SAFETY: The bus calls this only after a successful `probe_callback`, which has set the
        // data, and the device is not fully unbound yet.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::unbind(dev, data);
    }

    extern "C" fn shutdown_callback(dev: *mut bindings::device) {
        // SAFETY: As in `probe_callback`.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };

        // SAFETY: The bus calls this only for devices with a driver, under the device's lock, so
        // `probe_callback` has set the data, and nobody unbinds the device meanwhile.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::shutdown(dev, data);
    }

    extern "C" fn notify_callback(dev: *mut bindings::device, event: bindings::nvdimm_event) {
        // SAFETY: As in `probe_callback`.
        let dev = unsafe { &*dev.cast::<Device<CoreInternal<'_>>>() };
        let event = match event {
            bindings::nvdimm_event_NVDIMM_REVALIDATE_POISON => Event::RevalidatePoison,
            bindings::nvdimm_event_NVDIMM_REVALIDATE_REGION => Event::RevalidateRegion,
            _ => {
                dev_warn!(dev, "ignoring unknown event {}\n", event);
                return;
            }
        };

        // SAFETY: As in `shutdown_callback`; here it is `nd_device_notify` that holds the lock.
        let data = unsafe { dev.as_ref().drvdata_borrow::<T::Data<'_>>() };

        T::notify(dev, data, event);
    }
}

/// What a device on the bus is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A namespace without a personality.
    Namespace,
    /// The pfn personality of a namespace (fsdax).
    Pfn,
    /// The btt personality of a namespace (sector mode).
    Btt,
}

/// A device on the `nd` bus that is offered to drivers of [`DeviceTypes::NAMESPACE`]: a namespace, or a pfn or btt device.
///
/// # Invariants
///
/// A [`Device`] represents a valid `struct device` of one of these kinds, whose parent is a region.
#[repr(transparent)]
pub struct Device<Ctx: device::DeviceContext = device::Normal>(
    Opaque<bindings::device>,
    PhantomData<Ctx>,
);

impl<Ctx: device::DeviceContext> Device<Ctx> {
    fn as_raw(&self) -> *mut bindings::device {
        self.0.get()
    }

    /// Returns the name, as in sysfs.
    pub fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the device is valid. It has been added, so it has a name,
        // which does not change.
        unsafe { name_of(self.as_raw()) }
    }

    /// Returns what the device is.
    pub fn kind(&self) -> Kind {
        // SAFETY: By the type invariant the device is valid.
        let (is_btt, is_pfn) = unsafe {
            (
                bindings::is_nd_btt(self.as_raw()),
                bindings::is_nd_pfn(self.as_raw()),
            )
        };

        match (is_btt, is_pfn) {
            (true, _) => Kind::Btt,
            (_, true) => Kind::Pfn,
            _ => Kind::Namespace,
        }
    }

    /// Returns the NUMA node of the device.
    pub fn node(&self) -> Node {
        // SAFETY: By the type invariant the device is valid.
        Node(unsafe { bindings::dev_to_node(self.as_raw()) })
    }
}

impl Device<Bound> {
    /// Returns the region that the device is in.
    ///
    /// The region stays bound to its own driver for at least as long as the device: the driver of
    /// the region removes the devices in it first.
    pub fn region(&self) -> &Region {
        // SAFETY: By the type invariant the parent is a region. A bound device has a bound region.
        unsafe { Region::from_raw(bindings::to_nd_region((*self.as_raw()).parent)) }
    }

    /// Makes a disk on this device read-only or writable, as the region is, and says so in the log.
    pub fn sync_read_only<T: gendisk::Operations>(&self, disk: &gendisk::Registration<T>) {
        let disk = disk.disk();

        // The C function takes the region from the parent of the disk.
        //
        // SAFETY: The device of a disk is valid, and its parent is set before it is added.
        if unsafe { (*disk.device_raw()).parent } != self.as_raw() {
            return;
        }

        // SAFETY: The parent of the disk is `self`, whose parent is a region.
        unsafe { bindings::nvdimm_check_and_set_ro(disk.as_raw()) };
    }
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on `Device`'s generic
// argument.
kernel::impl_device_context_deref!(unsafe { Device });

/// `dev_name()`
///
/// Not `CStr::from_char_ptr`: it has a path that panics, should the length overflow.
///
/// # Safety
///
/// For `'a`, the device must be valid, and keep its name.
pub(in crate::abstractions) unsafe fn name_of<'a>(dev: *const bindings::device) -> &'a CStr {
    // SAFETY: By the safety requirements; a name is a C string.
    unsafe {
        let name = bindings::dev_name(dev);
        let len = bindings::strlen(name).wrapping_add(1);
        CStr::from_bytes_with_nul_unchecked(core::slice::from_raw_parts(name.cast(), len))
    }
}

impl<Ctx: device::DeviceContext> AsRef<device::Device<Ctx>> for Device<Ctx> {
    fn as_ref(&self) -> &device::Device<Ctx> {
        let ptr: *const Self = self;

        // SAFETY: Both are transparent wrappers of `struct device`, and by the type invariant it is
        // valid.
        unsafe { &*ptr.cast() }
    }
}

// SAFETY: A `Device` can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads because all methods of `Device` are thread safe.
unsafe impl Sync for Device {}

// SAFETY: Same as `Device<Normal>`: `Bound` is a zero-sized type-state marker that does not affect
// thread safety.
unsafe impl Sync for Device<Bound> {}

#[kunit_tests(pmem_rs_nvdimm)]
mod tests {
    use super::*;
    use core::ptr::NonNull;
    use kernel::{
        faux,
        module::this_module,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        types::ForeignOwnable, //
    };

    /// A driver that only remembers how it was called, a decimal digit each time.
    struct Diary;

    struct Log(Atomic<u64>);

    impl Log {
        fn note(&self, digit: u64) {
            self.0.store(self.0.load(Relaxed) * 10 + digit, Relaxed);
        }
    }

    impl Driver for Diary {
        type Data<'bound> = Log;

        // The bit of no kind of device.
        const TYPES: DeviceTypes = DeviceTypes(1 << 31);

        fn probe<'bound>(
            _dev: &'bound Device<Core<'_>>,
            _namespace: Namespace<'bound>,
        ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
            Ok(Log(Atomic::new(1)))
        }

        fn unbind<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>) {
            this.note(2);
        }

        fn shutdown<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>) {
            this.note(3);
        }

        fn notify<'bound>(_dev: &'bound Device<Core<'_>>, this: Pin<&Log>, event: Event) {
            this.note(match event {
                Event::RevalidatePoison => 4,
                Event::RevalidateRegion => 5,
            });
        }
    }

    /// A driver that serves nothing, which the bus refuses.
    struct Useless;

    impl Driver for Useless {
        type Data<'bound> = ();

        const TYPES: DeviceTypes = DeviceTypes(0);

        fn probe<'bound>(
            _dev: &'bound Device<Core<'_>>,
            _namespace: Namespace<'bound>,
        ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
            Err::<(), _>(ENODEV)
        }
    }

    fn raw(faux: &faux::Registration) -> *mut bindings::device {
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        core::ptr::from_ref(generic).cast_mut().cast()
    }

    /// Has a driver bind a device that stands for its own namespace.
    fn bind<T: Driver>(dev: *mut bindings::device) -> Result {
        // SAFETY: The device is valid for as long as its registration, which the tests keep. It is
        // on no nd bus and has no namespace, and the drivers of the tests do not use either.
        let (dev, namespace) = unsafe {
            let dev = &*dev.cast::<Device<CoreInternal<'_>>>();
            (dev, Namespace::from_raw(dev, NonNull::dangling()))
        };

        Adapter::<T>::bind(dev, namespace)
    }

    #[test]
    fn a_driver_comes_and_goes() -> Result {
        // Its name is free again, or the bus would refuse the second one.
        for _ in 0..2 {
            KBox::pin_init(
                driver::Registration::<Adapter<Diary>>::new(
                    c"pmem_rs_test",
                    this_module::<crate::LocalModule>(),
                ),
                GFP_KERNEL,
            )?;
        }
        Ok(())
    }

    #[test]
    fn a_driver_must_serve_something() {
        let refused = KBox::pin_init(
            driver::Registration::<Adapter<Useless>>::new(
                c"pmem_rs_test",
                this_module::<crate::LocalModule>(),
            ),
            GFP_KERNEL,
        );
        assert!(refused.is_err_and(|err| err == EINVAL));
    }

    // The bus knows no device that could be bound here, so one of another bus has to do.
    #[test]
    fn the_bus_reaches_the_driver() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nvdimm", None)?;
        let dev = raw(&faux);
        type Callbacks = Adapter<Diary>;

        bind::<Diary>(dev)?;
        let poison = bindings::nvdimm_event_NVDIMM_REVALIDATE_POISON;
        let region = bindings::nvdimm_event_NVDIMM_REVALIDATE_REGION;
        Callbacks::notify_callback(dev, poison);
        Callbacks::notify_callback(dev, region);
        // A later kernel may have more of them.
        Callbacks::notify_callback(dev, 1000);
        Callbacks::shutdown_callback(dev);
        Callbacks::remove_callback(dev);

        // SAFETY: The device is valid, and `bind` has left it a `Log`, which is taken back
        // as the driver core would.
        let log = unsafe {
            let data = bindings::dev_get_drvdata(dev);
            bindings::dev_set_drvdata(dev, core::ptr::null_mut());
            Pin::<KBox<Log>>::from_foreign(data.cast())
        };
        assert_eq!(log.0.load(Relaxed), 14532);
        Ok(())
    }

    #[test]
    fn a_driver_may_refuse_a_device() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nvdimm", None)?;

        assert!(bind::<Useless>(raw(&faux)) == Err(ENODEV));
        Ok(())
    }

    #[test]
    fn what_has_no_personality_is_a_namespace() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nvdimm", None)?;
        // SAFETY: The device is valid for as long as `faux`. It is not on the bus, which neither of
        // the methods below asks for.
        let dev = unsafe { &*raw(&faux).cast::<Device>() };

        assert!(dev.kind() == Kind::Namespace);
        assert_eq!(dev.node().0, bindings::NUMA_NO_NODE);
        Ok(())
    }
}
