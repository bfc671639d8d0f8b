// SPDX-License-Identifier: GPL-2.0

//! Buses that a provider of persistent memory registers, and the regions on them.

use crate::abstractions::bindings;
use crate::abstractions::kernel::numa::Node;
use crate::abstractions::kernel_ext::{
    io::resource::PmemResource,
    module::Registered, //
};
use core::ptr::NonNull;
use kernel::{
    device::{
        self,
        Bound, //
    },
    devres,
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

/// Whether a region keeps its contents when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// The contents are lost.
    Volatile,
    /// The contents are kept. The platform does not specify from which point on a store is durable.
    Unspecified,
    /// Stores that have reached the memory controller are kept.
    MemoryController,
}

/// The description of a region (`struct nd_region_desc`). The memory is present for `'a`.
///
/// # Examples
///
/// A driver cannot name the memory by numbers:
///
/// ```compile_fail,E0308
/// use pmem_rs::abstractions::kernel::numa::Node;
/// use pmem_rs::abstractions::nvdimm::{
///     Persistence,
///     RegionDesc, //
/// };
///
/// fn describe(start: u64, len: u64) -> RegionDesc<'static> {
///     RegionDesc {
///         memory: start..start.saturating_add(len),
///         node: Node::NONE,
///         target: Node::NONE,
///         persistence: Persistence::Unspecified,
///     }
/// }
/// ```
#[derive(Clone)]
pub struct RegionDesc<'a> {
    /// The memory. Its start and its end should be
    /// [aligned](crate::abstractions::kernel::memremap::compat_align): otherwise its namespace is
    /// refused unless it has `force_raw`.
    pub memory: PmemResource<'a>,
    /// The online node that is nearest to the memory.
    pub node: Node,
    /// The node that the memory would have as System RAM.
    pub target: Node,
    /// Whether it keeps its contents when the power fails.
    pub persistence: Persistence,
}

/// A registered bus. The driver of the parent device provides the memory on it.
///
/// The regions belong to the bus. Dropping the bus removes one region after the other, and unbinds
/// the devices in each of them before. No operation returns a region, so none can outlive its bus.
/// The bus borrows the binding of the parent device. If it was forgotten, devres unregisters it
/// when the parent is unbound.
///
/// Regions hold no reference to the module of the provider (`nvdimm_bus_descriptor.module`): they
/// use only the bus, which is unregistered before the module is unloaded. So the module can be
/// unloaded while namespaces are bound to a driver of another module (`nd_pmem`, `dax_pmem`). These
/// are unbound then, whether they are in use or not.
///
/// Dropping a bus sleeps until all devices on it are unbound. The device lock of the parent is held
/// meanwhile, and those of the bus and of the regions are taken.
///
/// # Examples
///
/// ```no_run
/// use kernel::device::Bound;
/// use kernel::platform::Device;
/// use kernel::prelude::*;
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel::numa::Node;
/// use pmem_rs::abstractions::kernel_ext::platform;
/// use pmem_rs::abstractions::nvdimm::{
///     Bus,
///     Persistence,
///     RegionDesc, //
/// };
///
/// fn provide(dev: &Device<Bound>) -> Result<Bus<'_>> {
///     let memory = platform::memory(dev, 0).ok_or(ENXIO)?;
///     let target = Node::of_memory(memory.range().start);
///     let bus = Bus::register(dev.as_ref(), CString::try_from_fmt(fmt!("memory"))?)?;
///
///     bus.create_region(&RegionDesc {
///         memory,
///         node: target.nearest_online(),
///         target,
///         persistence: Persistence::Unspecified,
///     })?;
///     Ok(bus)
/// }
/// ```
///
/// # Invariants
///
/// `registration` is that of a bus with the parent `parent`, which devres unregisters when `parent`
/// is unbound.
pub struct Bus<'bound> {
    registration: Arc<BusRegistration>,
    parent: &'bound device::Device<Bound>,
}

/// # Invariants
///
/// `bus` is [`None`], or a registered bus that is bound to its driver. It was registered with
/// `descriptor`, which points to `_provider`. Neither moves.
#[pin_data]
struct BusRegistration {
    // Held while the bus is unregistered, so it is outside of the device locks of the bus and of
    // all devices on it. It is inside of the device lock of the parent.
    #[pin]
    bus: Mutex<Option<NonNull<bindings::nvdimm_bus>>>,
    descriptor: KBox<Opaque<bindings::nvdimm_bus_descriptor>>,
    _provider: CString,
}

// SAFETY: A bus may be used and unregistered by any thread.
unsafe impl Send for BusRegistration {}

// SAFETY: The bus is protected by the lock. Nothing else of it is used but the address of the
// descriptor.
unsafe impl Sync for BusRegistration {}

impl BusRegistration {
    /// Unregisters the bus, unless that was done before. Sleeps.
    fn unregister(&self) {
        let mut bus = self.bus.lock();

        if let Some(bus) = bus.take() {
            // SAFETY: By the type invariant the bus is registered, and no other thread has taken
            // it. The fields that it uses are dropped after this.
            unsafe { bindings::nvdimm_bus_unregister(bus.as_ptr()) };
        }
    }
}

/// Unregisters a bus when its parent is unbound. Until then this is a registration of the module
/// ([`Registered`]).
struct UnregisterOnUnbind {
    registration: Arc<BusRegistration>,
    // Dropped last.
    _registered: Registered,
}

impl Drop for UnregisterOnUnbind {
    fn drop(&mut self) {
        self.registration.unregister();
    }
}

impl<'bound> Bus<'bound> {
    /// Registers a bus as a child of `parent`. Sleeps.
    ///
    /// The attribute `provider` of the bus shows `provider`. The bus and its regions get the device
    /// tree node of `parent`.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if libnvdimm does not bind the bus, or if the module accepts no registrations.
    pub fn register(parent: &'bound device::Device<Bound>, provider: CString) -> Result<Self> {
        let registered = Registered::new()?;
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        let raw_parent = core::ptr::from_ref(parent)
            .cast_mut()
            .cast::<bindings::device>();
        let descriptor = KBox::new(
            Opaque::new(bindings::nvdimm_bus_descriptor {
                provider_name: provider.as_char_ptr().cast_mut(),
                // SAFETY: The device is valid.
                of_node: unsafe { (*raw_parent).of_node },
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;
        // INVARIANT: There is no bus yet.
        let registration = Arc::pin_init(
            try_pin_init!(BusRegistration {
                bus <- new_mutex!(None, "nvdimm::BusRegistration::bus"),
                descriptor,
                _provider: provider,
            }),
            GFP_KERNEL,
        )?;
        let on_unbind = UnregisterOnUnbind {
            registration: registration.clone(),
            _registered: registered,
        };
        devres::register(parent, on_unbind, GFP_KERNEL)?;

        // SAFETY: The parent is bound, and devres unregisters the bus when it is unbound. The
        // descriptor and the name are on the heap, and are dropped after the bus was unregistered.
        let bus =
            unsafe { bindings::nvdimm_bus_register(raw_parent, registration.descriptor.get()) };
        let bus = NonNull::new(bus).ok_or(ENOMEM)?;

        // Only the driver of a bus, which is part of libnvdimm, removes the regions of the bus.
        //
        // SAFETY: The bus has just been registered.
        if unsafe {
            (*bindings::to_nvdimm_bus_dev(bus.as_ptr()))
                .driver
                .is_null()
        } {
            // SAFETY: The bus has just been registered.
            unsafe { bindings::nvdimm_bus_unregister(bus.as_ptr()) };
            return Err(ENODEV);
        }

        // INVARIANT: The bus is registered and bound. User space cannot unbind it.
        *registration.bus.lock() = Some(bus);
        Ok(Self {
            registration,
            parent,
        })
    }

    /// Creates a region on the bus. Sleeps.
    ///
    /// The region and its namespaces are bound to their drivers asynchronously.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is empty, or is a resource of another device than the parent of the
    /// bus. That device may be unbound while the region exists.
    pub fn create_region(&self, region: &RegionDesc<'_>) -> Result {
        let range = region.memory.range();
        if range.is_empty() || !region.memory.is_present_with(self.parent) {
            return Err(EINVAL);
        }
        let registered = self.registration.bus.lock();
        let bus = (*registered).ok_or(ENXIO)?;
        let mut resource = bindings::resource {
            start: range.start,
            // Cannot wrap, since the range is not empty.
            end: range.end.wrapping_sub(1),
            ..Default::default()
        };
        let mut flags = 1 << bindings::ND_REGION_PAGEMAP;
        if region.persistence == Persistence::MemoryController {
            flags |= 1 << bindings::ND_REGION_PERSIST_MEMCTRL;
        }
        let create = match region.persistence {
            Persistence::Volatile => bindings::nvdimm_volatile_region_create,
            Persistence::Unspecified | Persistence::MemoryController => {
                bindings::nvdimm_pmem_region_create
            }
        };
        let mut description = bindings::nd_region_desc {
            res: &raw mut resource,
            numa_node: region.node.0,
            target_node: region.target.0,
            flags,
            // SAFETY: By the type invariant the bus is registered while the lock is held.
            of_node: unsafe { (*bindings::to_nvdimm_bus_dev(bus.as_ptr())).of_node },
            ..Default::default()
        };

        // SAFETY: By the type invariant the bus is registered while the lock is held. The call
        // copies the description and the resource. The memory is there until the parent is unbound,
        // and devres unregisters the bus then.
        let region = unsafe { create(bus.as_ptr(), &raw mut description) };
        if region.is_null() {
            return Err(ENOMEM);
        }
        Ok(())
    }
}

impl Drop for Bus<'_> {
    fn drop(&mut self) {
        self.registration.unregister();
    }
}

#[kunit_tests(pmem_rs_bus)]
mod tests {
    use super::*;
    use crate::abstractions::{
        kernel_ext::{
            device::name_of,
            io::resource::free_range,
            time::sleep, //
        },
        nvdimm::provider::{
            ProviderWatcher,
            Watchers, //
        }, //
    };
    use kernel::{
        faux,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        }, //
    };

    /// Returns the device of a bus, which is valid for as long as the bus is registered.
    fn device_of(bus: &Bus<'_>) -> *mut bindings::device {
        let bus = bus.registration.bus.lock();

        bus.map_or(core::ptr::null_mut(), |bus| {
            // SAFETY: By the type invariant the bus is registered.
            unsafe { bindings::to_nvdimm_bus_dev(bus.as_ptr()) }
        })
    }

    fn bus(faux: &faux::Registration) -> Result<Bus<'_>> {
        Bus::register(
            faux.as_ref().as_ref(),
            CString::try_from_fmt(fmt!("pmem_rs test"))?,
        )
    }

    /// Counts the children of a device whose name starts with `prefix`.
    ///
    /// # Safety
    ///
    /// The device must be valid.
    unsafe fn children(dev: *mut bindings::device, prefix: &CStr) -> usize {
        struct Count<'a>(&'a CStr, usize);

        extern "C" fn count(dev: *mut bindings::device, data: *mut c_void) -> c_int {
            // SAFETY: The device is valid, and the data is that of the caller.
            unsafe {
                let count = &mut *data.cast::<Count<'_>>();
                let name = name_of(dev).to_bytes();
                count.1 += usize::from(name.starts_with(count.0.to_bytes()));
            }
            0
        }

        let mut result = Count(prefix, 0);
        // SAFETY: By the safety requirements. The callback takes this type of data.
        unsafe {
            bindings::device_for_each_child(dev, (&raw mut result).cast(), Some(count));
        }
        result.1
    }

    fn raw(faux: &faux::Registration) -> *mut bindings::device {
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        core::ptr::from_ref(generic).cast_mut().cast()
    }

    #[test]
    fn a_bus_is_registered_until_it_is_dropped() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;

        let (one, other) = (bus(&faux)?, bus(&faux)?);
        // SAFETY: The device is valid for as long as `faux`.
        let buses = || unsafe { children(raw(&faux), c"ndbus") };
        assert_eq!(buses(), 2);
        drop(one);
        assert_eq!(buses(), 1);
        drop(other);
        assert_eq!(buses(), 0);
        Ok(())
    }

    #[test]
    fn a_forgotten_bus_goes_with_its_parent() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let bus = bus(&faux)?;
        let parent = raw(&faux);
        // SAFETY: The device is valid. The reference is put below.
        unsafe { bindings::get_device(parent) };

        let forgotten = Arc::into_raw(bus.registration.clone());
        core::mem::forget(bus);
        // SAFETY: The reference keeps the device.
        let before = unsafe { children(parent, c"ndbus") };
        drop(faux);
        // SAFETY: As above.
        let after = unsafe { children(parent, c"ndbus") };
        // SAFETY: The reference was taken above.
        unsafe { bindings::put_device(parent) };
        // kmemleak would report what was forgotten.
        //
        // SAFETY: There are two reference counts: of the clone, and of the bus, which does not put
        // its own any more.
        drop(unsafe { [Arc::from_raw(forgotten), Arc::from_raw(forgotten)] });
        assert_eq!((before, after), (1, 0));
        Ok(())
    }

    #[test]
    fn the_memory_is_not_that_of_another_device() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let other = faux::Registration::new(c"pmem_rs_other", None)?;
        let start = free_range(4096)?;
        let bus = bus(&faux)?;
        let create = |of: &faux::Registration| {
            bus.create_region(&RegionDesc {
                memory: PmemResource::of_device(start..start + 512, of.as_ref().as_ref()),
                node: Node::NONE,
                target: Node::NONE,
                persistence: Persistence::Unspecified,
            })
        };

        assert!(create(&other).is_err_and(|err| err == EINVAL));
        create(&faux)
    }

    #[test]
    fn regions_are_removed_with_their_bus() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let start = free_range(4096)?;
        let target = Node::of_memory(start);
        let bus = bus(&faux)?;

        for persistence in [
            Persistence::Volatile,
            Persistence::Unspecified,
            Persistence::MemoryController,
        ] {
            bus.create_region(&RegionDesc {
                // Too small for a namespace that a driver accepts.
                memory: PmemResource::of_firmware(start..start + 512),
                node: target.nearest_online(),
                target,
                persistence,
            })?;
        }

        let dev = device_of(&bus);
        // SAFETY: The device of the bus is valid.
        let regions = || unsafe { children(dev, c"region") };
        let mut tries = 0;
        // They are registered asynchronously.
        while regions() < 3 && tries < 1000 {
            sleep(10);
            tries += 1;
        }
        assert_eq!(regions(), 3);

        // SAFETY: The device of the bus is valid. The reference is put below.
        unsafe { bindings::get_device(dev) };
        drop(bus);
        // SAFETY: The reference keeps the device.
        unsafe {
            assert_eq!(children(dev, c"region"), 0);
            bindings::put_device(dev);
        }
        Ok(())
    }

    /// A watcher that counts its notices.
    struct Counter(Atomic<u32>);

    impl ProviderWatcher for Counter {
        fn provider_unbinding(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Returns a child that is bound to a driver. It is valid for as long as its bus is registered.
    ///
    /// # Safety
    ///
    /// The device must be valid.
    unsafe fn bound_child(dev: *mut bindings::device) -> *mut bindings::device {
        extern "C" fn find(dev: *mut bindings::device, data: *mut c_void) -> c_int {
            // SAFETY: The device is valid, and the data is that of the caller.
            unsafe {
                if (*dev).driver.is_null() {
                    return 0;
                }
                *data.cast::<*mut bindings::device>() = dev;
            }
            1
        }

        let mut found: *mut bindings::device = core::ptr::null_mut();
        // SAFETY: By the safety requirements. The callback takes this type of data.
        unsafe { bindings::device_for_each_child(dev, (&raw mut found).cast(), Some(find)) };
        found
    }

    #[test]
    fn devices_below_a_region_or_a_bus_are_notified() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let start = free_range(4096)?;
        let bus = bus(&faux)?;
        bus.create_region(&RegionDesc {
            memory: PmemResource::of_firmware(start..start + 512),
            node: Node::NONE,
            target: Node::NONE,
            persistence: Persistence::Volatile,
        })?;
        let dev = device_of(&bus);
        let mut region: *mut bindings::device = core::ptr::null_mut();
        for _ in 0..1000 {
            // It is bound asynchronously.
            //
            // SAFETY: The device of the bus is valid.
            region = unsafe { bound_child(dev) };
            if !region.is_null() {
                break;
            }
            sleep(10);
        }
        assert!(!region.is_null());
        // The devices below it are registered asynchronously too. When libnvdimm unbinds the
        // region, it waits for that only if the region has a child already.
        for prefix in [c"namespace", c"btt", c"pfn", c"dax"] {
            let mut tries = 0;
            // SAFETY: The region is valid for as long as the bus is registered.
            while unsafe { children(region, prefix) } == 0 && tries < 1000 {
                sleep(10);
                tries += 1;
            }
            assert!(tries < 1000);
        }

        let watchers = Watchers::new()?;
        // SAFETY: The device of the bus is valid, and on the nd bus.
        let nd = unsafe { (*dev).bus };
        // SAFETY: The bus is registered. The notifier is unregistered below.
        unsafe { watchers.register(nd)? };
        let below_region = Arc::new(Counter(Atomic::new(0)), GFP_KERNEL)?;
        let below_bus = Arc::new(Counter(Atomic::new(0)), GFP_KERNEL)?;
        let watches = (
            watchers
                .clone()
                .watch(region.addr(), dev.addr(), below_region.clone()),
            watchers.clone().watch(0, dev.addr(), below_bus.clone()),
        );

        // SAFETY: The region is valid for as long as the bus is registered.
        unsafe { bindings::device_release_driver(region) };
        let after_region = (below_region.0.load(Relaxed), below_bus.0.load(Relaxed));
        drop(bus);
        let after_bus = (below_region.0.load(Relaxed), below_bus.0.load(Relaxed));

        drop(watches);
        // SAFETY: Registered above.
        unsafe { watchers.unregister(nd) };
        assert_eq!(after_region, (1, 0));
        assert_eq!(after_bus, (1, 1));
        Ok(())
    }

    #[test]
    fn regions_that_are_being_registered_are_removed_with_their_bus() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let start = free_range(4096)?;

        for _ in 0..3 {
            let bus = bus(&faux)?;
            bus.create_region(&RegionDesc {
                memory: PmemResource::of_firmware(start..start + 512),
                node: Node::NONE,
                target: Node::NONE,
                persistence: Persistence::Unspecified,
            })?;
        }
        // SAFETY: The device is valid.
        assert_eq!(unsafe { children(raw(&faux), c"ndbus") }, 0);
        Ok(())
    }

    #[test]
    fn a_region_is_not_empty() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let refused = bus(&faux)?.create_region(&RegionDesc {
            memory: PmemResource::of_firmware(4096..4096),
            node: Node::NONE,
            target: Node::NONE,
            persistence: Persistence::Unspecified,
        });

        assert!(refused.is_err_and(|err| err == EINVAL));
        Ok(())
    }
}
