// SPDX-License-Identifier: GPL-2.0

//! The platform bus: drivers that also match devices by name.
//!
//! The kernel crate's `platform` matches nodes of device trees and of ACPI, and devices that have the
//! name of the driver. This adds a table of names, so that a driver can be called something else than
//! another one for the same devices.
//!
//! C headers: [`include/linux/platform_device.h`](srctree/include/linux/platform_device.h),
//! [`include/linux/mod_devicetable.h`](srctree/include/linux/mod_devicetable.h)

use crate::abstractions::{
    bindings,
    kernel::memremap::Node,
    kernel_ext::{
        device::name_of,
        io::resource::PmemResource,
        module::Registered, //
    }, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    device_id::RawDeviceId,
    driver,
    platform,
    prelude::*,
    types::Opaque,
    ThisModule, //
};

/// The name of devices that a driver wants.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceName(bindings::platform_device_id);

// SAFETY: `DeviceName` is a transparent wrapper of `struct platform_device_id`.
unsafe impl RawDeviceId for DeviceName {
    type RawType = bindings::platform_device_id;
}

impl DeviceName {
    /// Makes a name of less than 24 bytes. Only for constants: it does not compile if the name is too
    /// long.
    #[inline]
    pub const fn new(name: &'static CStr) -> Self {
        let mut id = bindings::platform_device_id {
            name: [0; 24],
            driver_data: 0,
        };
        let bytes = name.to_bytes_with_nul();

        let mut i = 0;
        while i < bytes.len() {
            id.name[i] = bytes[i];
            i += 1;
        }
        Self(id)
    }
}

/// A table of names.
pub type NameTable = &'static dyn kernel::device_id::IdTable<DeviceName, ()>;

/// A platform driver that matches devices by name, too.
///
/// # Examples
///
/// ```no_run
/// use kernel::{
///     device::Core,
///     device_id::IdArray,
///     prelude::*, //
/// };
/// use pmem_rs::abstractions::kernel_ext::platform::{
///     self,
///     DeviceName,
///     NameTable, //
/// };
///
/// static NAMES: IdArray<DeviceName, (), 1> =
///     IdArray::new_without_index([DeviceName::new(c"e820_pmem")]);
///
/// struct Refuser;
///
/// impl kernel::platform::Driver for Refuser {
///     type IdInfo = ();
///     type Data<'bound> = ();
///
///     fn probe<'bound>(
///         dev: &'bound kernel::platform::Device<Core<'_>>,
///         _info: Option<&'bound ()>,
///     ) -> impl PinInit<(), Error> + 'bound {
///         dev_info!(dev, "on {:?}\n", platform::node(dev));
///         Err::<(), _>(ENODEV)
///     }
/// }
///
/// impl platform::NamedDriver for Refuser {
///     const NAMES: NameTable = &NAMES;
/// }
///
/// // A module that has this as a field is the driver's.
/// type Registration = kernel::driver::Registration<platform::Adapter<Refuser>>;
/// ```
pub trait NamedDriver: platform::Driver {
    /// The names of the devices, apart from those that the tables of [`platform::Driver`] match.
    const NAMES: NameTable;
}

/// An adapter for the registration of platform drivers with a table of names.
pub struct Adapter<T: NamedDriver>(T);

// SAFETY: All is as in the adapter of the kernel crate, which does what is to be done.
unsafe impl<T: NamedDriver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::platform_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize =
        <platform::Adapter<T> as driver::DriverLayout>::DEVICE_DRIVER_OFFSET;
}

// SAFETY: As for the adapter of the kernel crate, which is called by both functions.
unsafe impl<T: NamedDriver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: It is safe to set the fields of `struct platform_driver` on initialization. The
        // table is static, and ends with an entry of zeroes.
        unsafe { (*pdrv.get()).id_table = T::NAMES.as_ptr() };

        let registered = Registered::new()?;
        // SAFETY: By the safety requirements of this function, which are the same.
        unsafe { <platform::Adapter<T> as driver::RegistrationOps>::register(pdrv, name, module) }?;
        registered.into_raw();
        Ok(())
    }

    unsafe fn unregister(pdrv: &Opaque<Self::DriverType>) {
        // SAFETY: By the safety requirements of this function, which are the same.
        unsafe { <platform::Adapter<T> as driver::RegistrationOps>::unregister(pdrv) };
        // SAFETY: `register` has succeeded, and this is called once after it.
        drop(unsafe { Registered::from_raw() });
    }
}

fn raw<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> *mut bindings::device {
    // CAST: `device::Device` is a transparent wrapper of `struct device`.
    core::ptr::from_ref::<device::Device<Ctx>>(dev.as_ref())
        .cast_mut()
        .cast()
}

/// Returns the name of a device, as in sysfs.
///
/// That of the kernel crate has a path that panics.
pub fn name<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> &CStr {
    // SAFETY: The device is valid, and has been added, so its name does not change.
    unsafe { name_of(raw(dev)) }
}

/// Returns the NUMA node of a device.
pub fn node<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> Node {
    // SAFETY: The device is valid.
    Node(unsafe { bindings::dev_to_node(raw(dev)) })
}

/// Returns the memory resource of a device with this index, counted among those of memory, if there
/// is one. One that ends with the last address of all is given without it.
///
/// # Examples
///
/// ```no_run
/// use kernel::{
///     device::Bound,
///     platform::Device,
///     prelude::*, //
/// };
/// use pmem_rs::abstractions::kernel_ext::platform;
///
/// fn has_memory(dev: &Device<Bound>) -> bool {
///     platform::memory(dev, 0).is_some()
/// }
/// ```
///
/// It is not for longer than the device is bound:
///
/// ```compile_fail,E0521
/// use kernel::{
///     device::Bound,
///     platform::Device,
///     prelude::*, //
/// };
/// use pmem_rs::abstractions::kernel_ext::{
///     io::resource::PmemResource,
///     platform, //
/// };
///
/// fn keep(dev: &Device<Bound>, kept: &mut Option<PmemResource<'static>>) {
///     *kept = platform::memory(dev, 0);
/// }
/// ```
pub fn memory(dev: &platform::Device<Bound>, index: u32) -> Option<PmemResource<'_>> {
    let resource = dev.resource_by_index(index)?;
    let start = resource.start();

    Some(PmemResource::new(
        start..start.saturating_add(resource.size()),
    ))
}

#[kunit_tests(pmem_rs_platform)]
mod tests {
    use super::*;
    use kernel::{
        device::Core,
        device_id::IdArray,
        module::this_module,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    static BOUND: Atomic<u32> = Atomic::new(0);

    static NAMES: IdArray<DeviceName, (), 2> = IdArray::new_without_index([
        DeviceName::new(c"pmem_rs_test_a"),
        DeviceName::new(c"pmem_rs_test_b"),
    ]);

    struct Counter;

    /// A device that is bound.
    struct OneMore;

    impl Drop for OneMore {
        fn drop(&mut self) {
            BOUND.fetch_sub(1, Relaxed);
        }
    }

    impl platform::Driver for Counter {
        type IdInfo = ();
        type Data<'bound> = OneMore;

        fn probe<'bound>(
            dev: &'bound platform::Device<Core<'_>>,
            info: Option<&'bound ()>,
        ) -> impl PinInit<OneMore, Error> + 'bound {
            if info.is_some() || !name(dev).to_bytes().starts_with(b"pmem_rs_test_") {
                return Err(EINVAL);
            }
            BOUND.fetch_add(1, Relaxed);
            Ok(OneMore)
        }
    }

    impl NamedDriver for Counter {
        const NAMES: NameTable = &NAMES;
    }

    /// A device on the platform bus, which goes when this is dropped.
    struct TestDevice(*mut bindings::platform_device);

    impl TestDevice {
        fn new(name: &'static CStr) -> Result<Self> {
            let info = bindings::platform_device_info {
                name: name.as_char_ptr(),
                id: bindings::PLATFORM_DEVID_NONE,
                ..Default::default()
            };
            // SAFETY: The description is only used during the call.
            kernel::error::from_err_ptr(unsafe { bindings::platform_device_register_full(&info) })
                .map(Self)
        }
    }

    impl Drop for TestDevice {
        fn drop(&mut self) {
            // SAFETY: The device was registered by `new`.
            unsafe { bindings::platform_device_unregister(self.0) };
        }
    }

    #[test]
    fn a_driver_gets_the_devices_that_it_names() -> Result {
        let before = TestDevice::new(c"pmem_rs_test_a")?;
        let driver = KBox::pin_init(
            driver::Registration::<Adapter<Counter>>::new(
                c"pmem_rs_test",
                this_module::<crate::LocalModule>(),
            ),
            GFP_KERNEL,
        )?;
        assert_eq!(BOUND.load(Relaxed), 1);

        let after = TestDevice::new(c"pmem_rs_test_b")?;
        assert_eq!(BOUND.load(Relaxed), 2);
        // Neither one that it does not name, nor one that is called as itself.
        let others = (
            TestDevice::new(c"pmem_rs_test_c")?,
            TestDevice::new(c"pmem_rs_test")?,
        );
        assert_eq!(BOUND.load(Relaxed), 2);

        drop(before);
        assert_eq!(BOUND.load(Relaxed), 1);
        drop(driver);
        assert_eq!(BOUND.load(Relaxed), 0);
        drop((after, others));
        Ok(())
    }
}
