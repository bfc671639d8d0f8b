// SPDX-License-Identifier: GPL-2.0

//! Platform drivers that match devices by a table of names (`id_table`).
//!
//! The kernel crate matches device tree nodes, ACPI nodes, and devices with the name of the driver.
//! With a table of names a driver can have a name of its own. Its devices are named after the
//! in-tree driver.
//!
//! C headers: [`include/linux/platform_device.h`](srctree/include/linux/platform_device.h),
//! [`include/linux/mod_devicetable.h`](srctree/include/linux/mod_devicetable.h)

use crate::abstractions::bindings;
use crate::abstractions::compat::device_id::IdArray;
use crate::abstractions::kernel::numa::Node;
use crate::abstractions::kernel_ext::{
    device::name_of,
    io::resource::PmemResource,
    module::Registered, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    device_id::{
        IdTable,
        RawDeviceId, //
    },
    driver,
    platform,
    prelude::*,
    types::Opaque,
    ThisModule, //
};

/// The length of a name, with its terminator (`PLATFORM_NAME_SIZE`).
const MAX_NAME: usize = 24;

/// A name of devices that a driver matches (`struct platform_device_id`).
///
/// # Examples
///
/// ```compile_fail,E0080
/// use pmem_rs::abstractions::kernel_ext::platform::DeviceName;
///
/// const TOO_LONG: DeviceName = DeviceName::new(b"twenty-four bytes (24 B)");
/// ```
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct DeviceName(bindings::platform_device_id);

// SAFETY: `DeviceName` is a transparent wrapper of `struct platform_device_id`.
unsafe impl RawDeviceId for DeviceName {
    type RawType = bindings::platform_device_id;
}

impl DeviceName {
    /// Creates a name. A name that is too long does not compile.
    #[inline]
    pub const fn new<const N: usize>(name: &[u8; N]) -> Self {
        const { assert!(N < MAX_NAME) };

        let mut id = bindings::platform_device_id {
            name: [0; MAX_NAME],
            driver_data: 0,
        };
        let mut i = 0;
        while i < N {
            id.name[i] = name[i];
            i += 1;
        }
        Self(id)
    }
}

/// A table of names, which ends with an entry of zeroes.
///
/// # Invariants
///
/// The table is an [`IdArray`].
///
/// # Examples
///
/// `IdTable` of the kernel crate is a safe trait that returns any pointer, so a table is made from
/// an [`IdArray`] only:
///
/// ```compile_fail,E0308
/// use kernel::device_id::{
///     IdTable,
///     RawDeviceId, //
/// };
/// use pmem_rs::abstractions::kernel_ext::platform::{
///     DeviceName,
///     NameTable, //
/// };
///
/// struct Dangling;
///
/// impl IdTable<DeviceName, ()> for Dangling {
///     fn as_ptr(&self) -> *const <DeviceName as RawDeviceId>::RawType {
///         core::ptr::dangling()
///     }
/// }
///
/// const NAMES: NameTable = NameTable::new(&Dangling);
/// ```
#[derive(Clone, Copy)]
pub struct NameTable(&'static dyn IdTable<DeviceName, ()>);

impl NameTable {
    /// Creates a table.
    pub const fn new<const N: usize>(names: &'static IdArray<DeviceName, (), N>) -> Self {
        // INVARIANT: By the type of the argument.
        Self(names)
    }
}

/// A platform driver that also matches devices by name.
///
/// # Examples
///
/// ```no_run
/// use kernel::device::Core;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::compat::device_id::IdArray;
/// use pmem_rs::abstractions::kernel_ext::platform::{
///     self,
///     DeviceName,
///     NameTable, //
/// };
///
/// static NAMES: IdArray<DeviceName, (), 1> =
///     IdArray::new_without_index([DeviceName::new(b"e820_pmem")]);
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
///     const NAMES: NameTable = NameTable::new(&NAMES);
/// }
///
/// // The module has a field of this type.
/// type Registration = kernel::driver::Registration<platform::Adapter<Refuser>>;
/// ```
pub trait NamedDriver: platform::Driver {
    /// The names of the devices, in addition to the tables of [`platform::Driver`].
    const NAMES: NameTable;
}

/// An adapter for the registration of platform drivers with a table of names.
pub struct Adapter<T: NamedDriver>(T);

// SAFETY: The layout is that of the adapter of the kernel crate, which does the registration.
unsafe impl<T: NamedDriver> driver::DriverLayout for Adapter<T> {
    type DriverType = bindings::platform_driver;
    type DriverData<'bound> = T::Data<'bound>;
    const DEVICE_DRIVER_OFFSET: usize =
        <platform::Adapter<T> as driver::DriverLayout>::DEVICE_DRIVER_OFFSET;
}

// SAFETY: Both functions call those of the adapter of the kernel crate.
unsafe impl<T: NamedDriver> driver::RegistrationOps for Adapter<T> {
    unsafe fn register(
        pdrv: &Opaque<Self::DriverType>,
        name: &'static CStr,
        module: &'static ThisModule,
    ) -> Result {
        // SAFETY: The fields of `struct platform_driver` may be set before the registration. By the
        // type invariant the table is an `IdArray`, which is static here, and ends with an entry of
        // zeroes.
        unsafe { (*pdrv.get()).id_table = T::NAMES.0.as_ptr() };

        let registered = Registered::new()?;
        // SAFETY: The callee has the same safety requirements as this function.
        unsafe { <platform::Adapter<T> as driver::RegistrationOps>::register(pdrv, name, module) }?;
        registered.into_raw();
        Ok(())
    }

    unsafe fn unregister(pdrv: &Opaque<Self::DriverType>) {
        // SAFETY: The callee has the same safety requirements as this function.
        unsafe { <platform::Adapter<T> as driver::RegistrationOps>::unregister(pdrv) };
        // SAFETY: `register()` has called `into_raw()`, and this is called once after that.
        drop(unsafe { Registered::from_raw() });
    }
}

fn raw<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> *mut bindings::device {
    // CAST: `device::Device` is a transparent wrapper of `struct device`.
    core::ptr::from_ref::<device::Device<Ctx>>(dev.as_ref())
        .cast_mut()
        .cast()
}

/// Returns the name of a device in sysfs (`dev_name()`).
///
/// Not `device::Device::name()`: the compiler cannot prove that it does not panic.
pub fn name<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> &CStr {
    // SAFETY: The device is valid and was added, so its name does not change.
    unsafe { name_of(raw(dev)) }
}

/// Returns the NUMA node of a device (`dev_to_node()`).
pub fn node<Ctx: device::DeviceContext>(dev: &platform::Device<Ctx>) -> Node {
    // SAFETY: The device is valid.
    Node(unsafe { bindings::dev_to_node(raw(dev)) })
}

/// Returns a memory resource of a device, by its index among the memory resources.
///
/// The last possible address is left out, since the range is half-open.
///
/// # Examples
///
/// The resource cannot outlive the binding:
///
/// ```compile_fail,E0521
/// use kernel::device::Bound;
/// use kernel::platform::Device;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel_ext::io::resource::PmemResource;
/// use pmem_rs::abstractions::kernel_ext::platform;
///
/// fn keep(dev: &Device<Bound>, kept: &mut Option<PmemResource<'static>>) {
///     *kept = platform::memory(dev, 0);
/// }
/// ```
pub fn memory(dev: &platform::Device<Bound>, index: u32) -> Option<PmemResource<'_>> {
    let resource = dev.resource_by_index(index)?;
    let start = resource.start();

    Some(PmemResource::of_device(
        start..start.saturating_add(resource.size()),
        dev.as_ref(),
    ))
}

#[kunit_tests(pmem_rs_platform)]
mod tests {
    use super::*;
    use kernel::{
        device::Core,
        module::this_module,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    static BOUND: Atomic<u32> = Atomic::new(0);

    static NAMES: IdArray<DeviceName, (), 2> = IdArray::new_without_index([
        DeviceName::new(b"pmem_rs_test_a"),
        DeviceName::new(b"pmem_rs_test_b"),
    ]);

    struct Counter;

    /// The count of one bound device.
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
        const NAMES: NameTable = NameTable::new(&NAMES);
    }

    /// A device on the platform bus. Dropping it unregisters the device.
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
    fn a_driver_binds_the_devices_that_it_names() -> Result {
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
        // It binds neither a device that it does not name nor one with its own name.
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
