// SPDX-License-Identifier: GPL-2.0

//! Buses: what a provider of persistent memory registers, and the regions on them.

use crate::abstractions::nvdimm::bindings;
use crate::abstractions::{
    kernel::numa::Node,
    kernel_ext::{
        io::resource::PmemResource,
        module::Registered, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    device::{
        self,
        Bound, //
    },
    prelude::*,
    str::CString,
    types::Opaque, //
};

/// What becomes of the contents of a region when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// They are lost.
    Volatile,
    /// They stay; the platform does not say from which point on.
    Unspecified,
    /// What has reached the memory controller stays.
    MemoryController,
}

/// A region to be, of memory that is there for `'a`.
///
/// # Examples
///
/// A driver cannot name the memory by numbers:
///
/// ```compile_fail,E0308
/// use pmem_rs::abstractions::{
///     kernel::numa::Node,
///     nvdimm::{
///         Persistence,
///         RegionDesc, //
///     }, //
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
#[derive(Clone, Debug)]
pub struct RegionDesc<'a> {
    /// The memory; whole pages, or no namespace in it can be used.
    pub memory: PmemResource<'a>,
    /// The node that is near to the memory, and has CPUs or memory of its own.
    pub node: Node,
    /// The node that the memory would be, were it used as System RAM.
    pub target: Node,
    /// What becomes of it when the power fails.
    pub persistence: Persistence,
}

/// A bus that is registered by the driver of a device, which provides the memory on it.
///
/// The regions belong to the bus: they go with it, after all devices in them were unbound from their
/// drivers. Nothing of a region is handed out, so none can outlive its bus; and the bus borrows the
/// binding of the device that it was registered for.
///
/// Regions do not hold a reference to the module of the provider (`nvdimm_bus_descriptor.module`), as
/// they need nothing of it but the bus, which is unregistered before the module goes. So only the users
/// of namespaces that a driver of the module has can keep it loaded. Namespaces that another driver has
/// (`nd_pmem`, `dax_pmem`) are taken away from it, in use or not.
///
/// Dropping a bus sleeps, for as long as it takes to unbind all that is on it. The lock of the device is
/// held meanwhile, and those of the bus and of the regions are taken.
///
/// # Examples
///
/// ```no_run
/// use kernel::{
///     device::Bound,
///     platform::Device,
///     prelude::*,
///     str::CString, //
/// };
/// use pmem_rs::abstractions::{
///     kernel::numa::Node,
///     kernel_ext::platform,
///     nvdimm::{
///         Bus,
///         Persistence,
///         RegionDesc, //
///     }, //
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
/// `bus` is a registered bus that is bound to its driver; `descriptor` is what it was registered with,
/// and points to `provider`. Both stay where they are.
pub struct Bus<'bound> {
    bus: NonNull<bindings::nvdimm_bus>,
    _descriptor: KBox<Opaque<bindings::nvdimm_bus_descriptor>>,
    _provider: CString,
    _parent: PhantomData<&'bound device::Device<Bound>>,
    _registered: Registered,
}

// SAFETY: A bus may be used and unregistered by any thread.
unsafe impl Send for Bus<'_> {}

// SAFETY: As above; regions may be added by several threads at once.
unsafe impl Sync for Bus<'_> {}

impl<'bound> Bus<'bound> {
    /// Registers a bus as a child of `parent`. `provider` is what user space sees as its provider.
    ///
    /// If the device comes from a device tree, the bus and its regions are given its node. Sleeps.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`ENODEV`] if libnvdimm cannot drive the bus, or the module has no registrations
    /// ([`Registered::new`]).
    pub fn register(parent: &'bound device::Device<Bound>, provider: CString) -> Result<Self> {
        let registered = Registered::new()?;
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        let parent = core::ptr::from_ref(parent)
            .cast_mut()
            .cast::<bindings::device>();
        let descriptor = KBox::new(
            Opaque::new(bindings::nvdimm_bus_descriptor {
                provider_name: provider.as_char_ptr().cast_mut(),
                // SAFETY: The device is valid.
                of_node: unsafe { (*parent).of_node },
                ..Default::default()
            }),
            GFP_KERNEL,
        )?;

        // SAFETY: The device is bound for longer than the bus is registered. The descriptor and the
        // name are on the heap, and are dropped after the bus was unregistered.
        let bus = unsafe { bindings::nvdimm_bus_register(parent, descriptor.get()) };
        let bus = NonNull::new(bus).ok_or(ENOMEM)?;

        // Only its driver, which is libnvdimm's own, takes the regions away when the bus goes.
        //
        // SAFETY: The bus has just been registered.
        if unsafe {
            (*bindings::to_nvdimm_bus_dev(bus.as_ptr()))
                .driver
                .is_null()
        } {
            // SAFETY: As above.
            unsafe { bindings::nvdimm_bus_unregister(bus.as_ptr()) };
            return Err(ENODEV);
        }

        // INVARIANT: As just done. The driver of a bus cannot be unbound by user space.
        Ok(Self {
            bus,
            _descriptor: descriptor,
            _provider: provider,
            _parent: PhantomData,
            _registered: registered,
        })
    }

    /// Adds a region to the bus. It is bound to its driver, and its namespaces to theirs, in the
    /// background. Sleeps.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the range is empty, [`ENOMEM`] if the region cannot be made.
    pub fn create_region(&self, region: &RegionDesc<'bound>) -> Result {
        let range = region.memory.range();
        if range.is_empty() {
            return Err(EINVAL);
        }
        let mut resource = bindings::resource {
            start: range.start,
            // Does not wrap, since the range is not empty.
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
            // SAFETY: By the type invariant the bus is registered. It has the node of its parent.
            of_node: unsafe { (*bindings::to_nvdimm_bus_dev(self.bus.as_ptr())).of_node },
            ..Default::default()
        };

        // SAFETY: By the type invariant the bus is registered. The description, and what it points
        // to, are only used during the call.
        let region = unsafe { create(self.bus.as_ptr(), &raw mut description) };
        if region.is_null() {
            return Err(ENOMEM);
        }
        Ok(())
    }
}

impl Drop for Bus<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the bus is registered. What it uses is dropped after this.
        unsafe { bindings::nvdimm_bus_unregister(self.bus.as_ptr()) };
    }
}

#[kunit_tests(pmem_rs_bus)]
mod tests {
    use super::{
        crate::abstractions::nvdimm::provider::{
            ProviderWatcher,
            Watchers, //
        },
        *, //
    };
    use crate::abstractions::kernel_ext::{
        io::resource::free_range,
        time::sleep, //
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
            // SAFETY: The device is valid, and the data is what was passed along.
            unsafe {
                let count = &mut *data.cast::<Count<'_>>();
                let name = super::super::name_of(dev).to_bytes();
                count.1 += usize::from(name.starts_with(count.0.to_bytes()));
            }
            0
        }

        let mut result = Count(prefix, 0);
        // SAFETY: By the safety requirements; the callback is that for the data.
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
    fn a_bus_is_there_until_it_is_dropped() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;

        // Two at once are no trouble.
        let (one, other) = (bus(&faux)?, bus(&faux)?);
        // SAFETY: The device is valid.
        assert_eq!(unsafe { children(raw(&faux), c"ndbus") }, 2);
        drop(one);
        // SAFETY: As above.
        assert_eq!(unsafe { children(raw(&faux), c"ndbus") }, 1);
        drop(other);
        // SAFETY: As above.
        assert_eq!(unsafe { children(raw(&faux), c"ndbus") }, 0);
        Ok(())
    }

    #[test]
    fn regions_come_and_go_with_their_bus() -> Result {
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
                // Too small for a namespace that a driver would take.
                memory: PmemResource::new(start..start + 512),
                node: target.nearest_online(),
                target,
                persistence,
            })?;
        }

        // SAFETY: The bus is registered.
        let dev = unsafe { bindings::to_nvdimm_bus_dev(bus.bus.as_ptr()) };
        let mut tries = 0;
        // They are registered in the background.
        //
        // SAFETY: The device of the bus is valid.
        while unsafe { children(dev, c"region") } < 3 && tries < 1000 {
            sleep(10);
            tries += 1;
        }
        // SAFETY: As above.
        assert_eq!(unsafe { children(dev, c"region") }, 3);

        // SAFETY: As above; one reference is taken, and put below.
        unsafe { bindings::get_device(dev) };
        drop(bus);
        // SAFETY: The device was kept by the reference.
        unsafe {
            assert_eq!(children(dev, c"region"), 0);
            bindings::put_device(dev);
        }
        Ok(())
    }

    /// Counts how often it was told that the provider goes.
    struct Told(Atomic<u32>);

    impl ProviderWatcher for Told {
        fn provider_goes(&self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    /// Returns a child that is bound to a driver.
    ///
    /// # Safety
    ///
    /// The device must be valid. What is returned is valid for as long as its bus is registered.
    unsafe fn bound_child(dev: *mut bindings::device) -> *mut bindings::device {
        extern "C" fn find(dev: *mut bindings::device, data: *mut c_void) -> c_int {
            // SAFETY: The device is valid, and the data is what was passed along.
            unsafe {
                if (*dev).driver.is_null() {
                    return 0;
                }
                *data.cast::<*mut bindings::device>() = dev;
            }
            1
        }

        let mut found: *mut bindings::device = core::ptr::null_mut();
        // SAFETY: By the safety requirements; the callback is that for the data.
        unsafe { bindings::device_for_each_child(dev, (&raw mut found).cast(), Some(find)) };
        found
    }

    #[test]
    fn those_below_are_told_that_region_or_bus_goes() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let start = free_range(4096)?;
        let bus = bus(&faux)?;
        bus.create_region(&RegionDesc {
            memory: PmemResource::new(start..start + 512),
            node: Node::NONE,
            target: Node::NONE,
            persistence: Persistence::Volatile,
        })?;
        // SAFETY: The bus is registered.
        let dev = unsafe { bindings::to_nvdimm_bus_dev(bus.bus.as_ptr()) };
        let mut region: *mut bindings::device = core::ptr::null_mut();
        for _ in 0..1000 {
            // It is bound in the background.
            //
            // SAFETY: The device of the bus is valid.
            region = unsafe { bound_child(dev) };
            if !region.is_null() {
                break;
            }
            sleep(10);
        }
        assert!(!region.is_null());
        // What is below it is registered in the background too. libnvdimm does not wait for that
        // when the region loses its driver.
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
        // SAFETY: The bus is registered; it is unregistered below.
        unsafe { watchers.register(nd)? };
        let below_region = Arc::new(Told(Atomic::new(0)), GFP_KERNEL)?;
        let below_bus = Arc::new(Told(Atomic::new(0)), GFP_KERNEL)?;
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
    fn regions_that_were_not_registered_yet_go_with_their_bus() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_bus", None)?;
        let start = free_range(4096)?;

        for _ in 0..3 {
            let bus = bus(&faux)?;
            bus.create_region(&RegionDesc {
                memory: PmemResource::new(start..start + 512),
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
            memory: PmemResource::new(4096..4096),
            node: Node::NONE,
            target: Node::NONE,
            persistence: Persistence::Unspecified,
        });

        assert!(refused.is_err_and(|err| err == EINVAL));
        Ok(())
    }
}
