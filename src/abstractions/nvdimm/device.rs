// SPDX-License-Identifier: GPL-2.0

//! Devices on the `nd` bus that are offered to drivers of namespaces.

use super::region::Region;
use crate::abstractions::bindings;
use crate::abstractions::kernel::{
    block::gendisk::{
        self,
        GenDisk, //
    },
    numa::Node,
    pm::{
        SleepDevice,
        SleepOperations, //
    }, //
};
use crate::abstractions::kernel_ext::device::name_of;
use core::marker::PhantomData;
use kernel::{
    device::{
        self,
        Bound, //
    },
    fmt,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// The kind of a device on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A namespace.
    Namespace,
    /// A pfn device, which claims a namespace in mode fsdax.
    Pfn,
    /// A btt device, which claims a namespace in mode sector.
    Btt,
}

/// A namespace, a pfn device or a btt device on the `nd` bus.
///
/// These are the devices that [`DeviceTypes::NAMESPACE`](super::DeviceTypes::NAMESPACE) selects.
///
/// The release functions of libnvdimm (`namespace_pmem_release()`, `nd_pfn_release()`,
/// `nd_btt_release()`) write to the region. A device has no reference to its region once it was
/// deleted. So the last reference to the device must not be put after that, and safe code gets no
/// reference that it could keep. That is why the device is no `AsRef<device::Device>`, and why
/// there are functions for messages in place of `dev_err!` and the like.
///
/// # Examples
///
/// ```compile_fail,E0277
/// use kernel::{
///     device,
///     sync::aref::ARef, //
/// };
/// use pmem_rs::abstractions::nvdimm::Device;
///
/// fn keep(dev: &Device) -> ARef<device::Device> {
///     AsRef::<device::Device>::as_ref(dev).into()
/// }
/// ```
///
/// ```compile_fail,E0277
/// use kernel::sync::aref::ARef;
/// use pmem_rs::abstractions::nvdimm::Device;
///
/// fn keep(dev: &Device) -> ARef<Device> {
///     dev.into()
/// }
/// ```
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
    pub(super) fn as_raw(&self) -> *mut bindings::device {
        self.0.get()
    }

    /// Returns the device as one of any bus. No reference to it may be kept when it is unbound.
    pub(super) fn generic(&self) -> &device::Device<Ctx> {
        let ptr: *const Self = self;

        // SAFETY: Both are transparent wrappers of `struct device`, and by the type invariant it is
        // valid.
        unsafe { &*ptr.cast() }
    }

    /// Logs an error of the device, as `dev_err!` does.
    pub fn err(&self, message: fmt::Arguments<'_>) {
        self.generic().pr_err(message);
    }

    /// Logs a warning about the device, as `dev_warn!` does.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        self.generic().pr_warn(message);
    }

    /// Logs a message about the device, as `dev_info!` does.
    pub fn info(&self, message: fmt::Arguments<'_>) {
        self.generic().pr_info(message);
    }

    /// Returns the name, as in sysfs.
    pub fn name(&self) -> &CStr {
        // SAFETY: By the type invariant the device is valid. It has been added, so it has a name,
        // which does not change.
        unsafe { name_of(self.as_raw()) }
    }

    /// Returns the kind of the device.
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

    /// Returns the name of the region that the device is in.
    pub(super) fn region_name(&self) -> &CStr {
        // SAFETY: By the type invariant the parent is a region, which has been added, so it has a
        // name. It is kept by its child.
        unsafe { name_of((*self.as_raw()).parent) }
    }

    /// Returns whether the region that the device is in is bound to its driver.
    ///
    /// A device that libnvdimm adds while the region is being unbound may stay below a region
    /// without a driver (`nd_region_remove()` unregisters the devices that are there). A region
    /// that was bound may be unbound at any time.
    pub(super) fn has_bound_region(&self) -> bool {
        // SAFETY: By the type invariant the parent is a region, which is kept by its child.
        unsafe { is_region_bound((*self.as_raw()).parent) }
    }

    /// Returns the NUMA node of the device.
    pub fn node(&self) -> Node {
        // SAFETY: By the type invariant the device is valid.
        Node(unsafe { bindings::dev_to_node(self.as_raw()) })
    }
}

/// Returns whether a region has the data that its driver attaches to it (`nd_region_activate()`).
/// `generic_nvdimm_flush()` dereferences this.
///
/// # Safety
///
/// `region` must be the device of a region.
pub(super) unsafe fn is_region_bound(region: *const bindings::device) -> bool {
    // SAFETY: By the safety requirements. `nd_region_remove()` may clear the pointer meanwhile. A
    // volatile read is `READ_ONCE()`.
    !unsafe { (&raw const (*region).driver_data).read_volatile() }.is_null()
}

impl Device<Bound> {
    /// Returns the region that the device is in.
    ///
    /// The driver of a region removes the devices in it before it is unbound, so the region stays
    /// bound for at least as long as the device.
    pub fn region(&self) -> &Region {
        // SAFETY: By the type invariant the parent is a region. It was bound when the device was
        // probed (`Namespace::probe`). For the exception see `docs/kernel-bugs.md`.
        unsafe { Region::from_raw(bindings::to_nd_region((*self.as_raw()).parent)) }
    }

    /// Adds a disk below the device, as [`GenDisk::register`] does.
    pub fn add_disk<T: gendisk::Operations>(
        &self,
        disk: GenDisk<T>,
    ) -> Result<gendisk::Registration<T>> {
        disk.register(self.generic())
    }

    /// Adds a [`SleepDevice`] below the device of the provider, which has registered the bus.
    /// Sleeps. Returns [`None`] if the provider has no device.
    ///
    /// # Errors
    ///
    /// Those of [`SleepDevice::new`].
    pub fn add_sleep_device<T: SleepOperations>(
        &self,
        name: &CStr,
        ops: Arc<T>,
    ) -> Result<Option<SleepDevice<'_, T>>> {
        // SAFETY: By the type invariant the parent is a region. The parent of a region is its bus
        // (`nd_region_create()`). Each is kept by its child.
        let provider = unsafe {
            let region = (*self.as_raw()).parent;
            let bus = (*region).parent;
            (*bus).parent
        };
        if provider.is_null() {
            return Ok(None);
        }

        // SAFETY: It is the device that was passed to `nvdimm_bus_register()`. A provider
        // unregisters the bus before its device is deleted, and so unbinds `self`. For the
        // exception see `docs/kernel-bugs.md`.
        unsafe { SleepDevice::below(provider, name, ops) }.map(Some)
    }
}

// SAFETY: `Device` is a transparent wrapper of a type that doesn't depend on `Device`'s generic
// argument.
kernel::impl_device_context_deref!(unsafe { Device });

// SAFETY: A `Device` can be released from any thread.
unsafe impl Send for Device {}

// SAFETY: `Device` can be shared among threads because all methods of `Device` are thread safe.
unsafe impl Sync for Device {}

// SAFETY: Same as `Device<Normal>`: `Bound` is a zero-sized type-state marker that does not affect
// thread safety.
unsafe impl Sync for Device<Bound> {}

#[kunit_tests(pmem_rs_nd_device)]
mod tests {
    use super::*;
    use kernel::faux;

    #[test]
    fn a_device_of_no_other_kind_is_a_namespace() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_nd_device", None)?;
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // SAFETY: The device is valid for as long as `faux`. It is not on the bus, which the
        // methods below do not depend on.
        let dev = unsafe { &*core::ptr::from_ref(generic).cast::<Device>() };

        assert!(dev.kind() == Kind::Namespace);
        assert_eq!(dev.node().0, bindings::NUMA_NO_NODE);
        Ok(())
    }
}
