// SPDX-License-Identifier: GPL-2.0

//! Notices that the provider of a bound device is being unbound: the region or the bus above it.
//!
//! A region and a bus unbind the devices below them one after the other, and wait for each. A
//! driver that is notified before that can begin to tear down all of its devices at once.
//!
//! Lock order: the device lock of a region or a bus, the rwsem of the notifier chain,
//! `Watchers::entries`. Watchers are called and dropped without `entries` held.

use super::{
    device::Device,
    probe_results::ProbeResults, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
use core::{
    marker::PhantomData,
    mem::offset_of, //
};
use kernel::{
    container_of,
    device::Bound,
    error::to_result,
    list::{
        impl_list_arc_safe,
        impl_list_item,
        List,
        ListArc,
        ListLinks, //
    },
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    types::Opaque, //
};

/// A receiver of the notice that the provider of a device is being unbound.
pub trait ProviderWatcher: Send + Sync + 'static {
    /// Handles that the region or the bus above the device is about to be unbound. The device is
    /// unbound soon after this. Called at most once for each [`ProviderWatch`].
    ///
    /// Called in process context. May sleep, but not for long, since the other devices are notified
    /// after this one. The device lock of the region or the bus and the rwsem of the notifier chain
    /// are held. So this must not take a device lock, nor wait for something that does (probe,
    /// unbind), nor register or unregister a driver of the bus. It may queue work and wake threads.
    fn provider_unbinding(&self);
}

/// The registration of a [`ProviderWatcher`] for a bound device.
///
/// It lives no longer than the binding. Dropping it ends the notices, and does not wait for a call
/// that is in progress. That call has its own reference to the watcher, which may be the last one.
///
/// There is no notice if the provider is unbound while the device is being bound, or while the
/// driver is being registered.
///
/// # Examples
///
/// ```
/// use kernel::device::Bound;
/// use kernel::prelude::*;
/// use kernel::sync::atomic::{
///     Atomic,
///     Relaxed, //
/// };
/// use kernel::sync::Arc;
/// use pmem_rs::abstractions::nvdimm::{
///     Device,
///     ProviderWatch,
///     ProviderWatcher, //
/// };
///
/// struct Watcher(Atomic<bool>);
///
/// impl ProviderWatcher for Watcher {
///     fn provider_unbinding(&self) {
///         self.0.store(true, Relaxed);
///     }
/// }
///
/// // The driver keeps the result of probe until the device is unbound.
/// fn probe(dev: &Device<Bound>) -> Result<ProviderWatch<'_>> {
///     let watcher = Arc::new(Watcher(Atomic::new(false)), GFP_KERNEL)?;
///
///     ProviderWatch::new(dev, watcher)
/// }
/// # let _ = probe;
/// ```
///
/// It cannot outlive the binding of its device:
///
/// ```compile_fail,E0505
/// # use kernel::{device::Bound, prelude::*, sync::Arc};
/// # use pmem_rs::abstractions::nvdimm::{
/// #     Device,
/// #     ProviderWatch,
/// #     ProviderWatcher, //
/// # };
/// fn keep(binding: KBox<Device<Bound>>, watcher: Arc<impl ProviderWatcher>) -> Result {
///     let watch = ProviderWatch::new(&binding, watcher)?;
///
///     drop(binding);
///     drop(watch);
///     Ok(())
/// }
/// ```
pub struct ProviderWatch<'bound> {
    watchers: Arc<Watchers>,
    entry: Arc<Entry>,
    _device: PhantomData<&'bound Device<Bound>>,
}

impl<'bound> ProviderWatch<'bound> {
    /// Registers `watcher` for the provider of the device. Sleeps. Fails with [`EINVAL`] if the
    /// driver of the device is not one of this module.
    pub fn new<W: ProviderWatcher>(
        dev: &'bound Device<Bound>,
        watcher: Arc<W>,
    ) -> Result<ProviderWatch<'bound>> {
        let dev = dev.as_raw();
        // SAFETY: The device is bound, so it has a driver, for longer than `'bound`.
        let driver = unsafe { (*dev).driver };

        // SAFETY: The driver of a bound device is valid.
        if unsafe { (*driver).owner } != this_module::<crate::LocalModule>().as_ptr() {
            return Err(EINVAL);
        }
        // SAFETY: The device is on the nd bus, and so is its driver. `Adapter` registers all
        // drivers of this module on that bus.
        let driver = unsafe { RawDriver::of(driver) };
        // SAFETY: The adapter sets the pointer before it registers the driver, and keeps its
        // reference until the driver is unregistered, which unbinds the device first.
        let watchers: Arc<Watchers> = unsafe { ArcBorrow::from_raw((*driver).watchers) }.into();

        // SAFETY: By the type invariant of `Device` the parent is a region; the parent of a region
        // is its bus (`nd_region_create()`). Both are kept by the device.
        let (region, bus) = unsafe {
            let region = (*dev).parent;
            (region, (*region).parent)
        };
        watchers.watch(region.addr(), bus.addr(), watcher)
    }
}

impl Drop for ProviderWatch<'_> {
    fn drop(&mut self) {
        // SAFETY: The entry was added to this list, and to no other.
        let entry = unsafe { self.watchers.entries.lock().remove(&self.entry) };

        // Without the lock, since this may drop the watcher.
        drop(entry);
    }
}

/// A device in the list of [`Watchers`].
#[pin_data]
struct Entry {
    // The addresses of the devices above it, which are only compared.
    region: usize,
    bus: usize,
    /// Written with the list locked.
    notified: Atomic<bool>,
    watcher: Arc<dyn ProviderWatcher>,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for Entry { untracked; }
}

impl_list_item! {
    impl ListItem<0> for Entry { using ListLinks { self.links }; }
}

/// The watched devices of a driver, and the notifier of the bus.
#[pin_data]
pub(super) struct Watchers {
    nb: Opaque<bindings::notifier_block>,
    #[pin]
    entries: Mutex<List<Entry>>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl Send for Watchers {}

// SAFETY: The rwsem of the chain protects the notifier, and a mutex protects the entries.
unsafe impl Sync for Watchers {}

impl Watchers {
    /// Creates an empty list. May sleep.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                nb: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::notify_callback),
                    ..Default::default()
                }),
                entries <- new_mutex!(List::new(), "nvdimm::Watchers::entries"),
            }),
            GFP_KERNEL,
        )
    }

    /// Registers the notifier with the bus. Sleeps.
    ///
    /// # Safety
    ///
    /// The bus must be registered. `self` must not be registered yet, and must stay until
    /// [`Self::unregister`] was called.
    pub(super) unsafe fn register(&self, bus: *const bindings::bus_type) -> Result {
        // SAFETY: By the safety requirements.
        to_result(unsafe { bindings::bus_register_notifier(bus, self.nb.get()) })
    }

    /// Unregisters the notifier, and waits for calls that are in progress. Sleeps.
    ///
    /// # Safety
    ///
    /// It must be registered with that bus.
    pub(super) unsafe fn unregister(&self, bus: *const bindings::bus_type) {
        // SAFETY: By the safety requirements. The call fails only for an unregistered notifier.
        unsafe { bindings::bus_unregister_notifier(bus, self.nb.get()) };
    }

    /// Adds a device below the region and the bus with these addresses.
    pub(super) fn watch<'a>(
        self: Arc<Self>,
        region: usize,
        bus: usize,
        watcher: Arc<dyn ProviderWatcher>,
    ) -> Result<ProviderWatch<'a>> {
        let in_list = ListArc::pin_init(
            try_pin_init!(Entry {
                region,
                bus,
                notified: Atomic::new(false),
                watcher,
                links <- ListLinks::new(),
            }),
            GFP_KERNEL,
        )?;
        let entry = in_list.clone_arc();

        self.entries.lock().push_back(in_list);
        Ok(ProviderWatch {
            watchers: self,
            entry,
            _device: PhantomData,
        })
    }

    /// Finds a device below a region or a bus that was not notified yet, and marks it as notified.
    fn next_to_notify(&self, above: usize) -> Option<Arc<dyn ProviderWatcher>> {
        let entries = self.entries.lock();
        let entry = entries.iter().find(|entry| {
            (entry.region == above || entry.bus == above) && !entry.notified.load(Relaxed)
        })?;

        entry.notified.store(true, Relaxed);
        Some(entry.watcher.clone())
    }

    /// # Safety
    ///
    /// To be called by the notifier chain of a bus. `nb` must be that of a `Watchers`.
    unsafe extern "C" fn notify_callback(
        nb: *mut bindings::notifier_block,
        action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        if action == bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER as c_ulong {
            // SAFETY: By the safety requirements. It stays until the notifier was unregistered,
            // which waits for this call.
            let this = unsafe { &*container_of!(Opaque::cast_from(nb), Self, nb) };

            // The lock is not held here, so a watcher may drop any watch.
            while let Some(watcher) = this.next_to_notify(data.addr()) {
                watcher.provider_unbinding();
            }
        }
        bindings::NOTIFY_DONE as c_int
    }
}

/// A driver as [`Adapter`](super::Adapter) registers it, with the list of its watched devices.
#[repr(C)]
pub struct RawDriver {
    pub(super) nd: bindings::nd_device_driver,
    /// Null until [`Adapter`](super::Adapter) begins to register the driver. A registered driver
    /// has a reference ([`Arc::into_raw`]).
    pub(super) watchers: *const Watchers,
    /// As `watchers`.
    pub(super) results: *const ProbeResults,
}

impl RawDriver {
    /// Returns the driver that embeds a `struct device_driver`.
    ///
    /// # Safety
    ///
    /// [`Adapter`](super::Adapter) must have registered it.
    pub(super) unsafe fn of(driver: *const bindings::device_driver) -> *const Self {
        // SAFETY: By the safety requirement it is embedded at this offset.
        unsafe { driver.byte_sub(offset_of!(Self, nd.drv)).cast() }
    }
}

impl Default for RawDriver {
    fn default() -> Self {
        Self {
            nd: Default::default(),
            watchers: core::ptr::null(),
            results: core::ptr::null(),
        }
    }
}

#[kunit_tests(pmem_rs_provider)]
mod tests {
    use super::*;
    use kernel::faux;

    /// A watcher that counts its notices, and drops another watch then.
    #[pin_data]
    struct Counter {
        notices: Atomic<u32>,
        #[pin]
        other: Mutex<Option<ProviderWatch<'static>>>,
    }

    impl Counter {
        fn new() -> Result<Arc<Self>> {
            Arc::pin_init(
                pin_init!(Self {
                    notices: Atomic::new(0),
                    other <- new_mutex!(None),
                }),
                GFP_KERNEL,
            )
        }

        fn notices(&self) -> u32 {
            self.notices.load(Relaxed)
        }
    }

    impl ProviderWatcher for Counter {
        fn provider_unbinding(&self) {
            self.notices.fetch_add(1, Relaxed);
            let other = self.other.lock().take();
            drop(other);
        }
    }

    /// Calls the notifier with an event about a device.
    fn notify(watchers: &Arc<Watchers>, action: bindings::bus_notifier_event, device: usize) {
        // SAFETY: This is the notifier of a `Watchers`. Only the address of the device is used.
        let ret = unsafe {
            Watchers::notify_callback(
                watchers.nb.get(),
                action as c_ulong,
                core::ptr::without_provenance_mut(device),
            )
        };
        assert_eq!(ret, 0);
    }

    const UNBIND: bindings::bus_notifier_event =
        bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER;

    #[test]
    fn devices_below_a_provider_are_notified_once() -> Result {
        let watchers = Watchers::new()?;
        let (one, two, three) = (Counter::new()?, Counter::new()?, Counter::new()?);
        let _one = watchers.clone().watch(0x10, 0x100, one.clone())?;
        let _two = watchers.clone().watch(0x20, 0x100, two.clone())?;
        let _three = watchers.clone().watch(0x30, 0x200, three.clone())?;

        // Another event, and a device that is not above them.
        notify(
            &watchers,
            bindings::bus_notifier_event_BUS_NOTIFY_UNBOUND_DRIVER,
            0x10,
        );
        notify(&watchers, UNBIND, 0x40);
        assert_eq!((one.notices(), two.notices(), three.notices()), (0, 0, 0));
        notify(&watchers, UNBIND, 0x10);
        assert_eq!((one.notices(), two.notices(), three.notices()), (1, 0, 0));
        notify(&watchers, UNBIND, 0x100);
        notify(&watchers, UNBIND, 0x20);
        assert_eq!((one.notices(), two.notices(), three.notices()), (1, 1, 0));
        Ok(())
    }

    #[test]
    fn a_dropped_watch_is_not_notified() -> Result {
        let watchers = Watchers::new()?;
        let (one, two) = (Counter::new()?, Counter::new()?);
        let first = watchers.clone().watch(0x10, 0x100, one.clone())?;
        // The first one that is notified drops the other one's watch.
        *one.other.lock() = Some(watchers.clone().watch(0x10, 0x100, two.clone())?);

        notify(&watchers, UNBIND, 0x100);
        assert_eq!((one.notices(), two.notices()), (1, 0));
        drop(first);
        assert!(Arc::into_unique_or_drop(one).is_some());
        assert!(Arc::into_unique_or_drop(two).is_some());
        assert!(Arc::into_unique_or_drop(watchers).is_some());
        Ok(())
    }

    #[test]
    fn only_devices_of_this_module_can_be_watched() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_provider", None)?;
        let generic: &kernel::device::Device<Bound> = faux.as_ref().as_ref();
        // SAFETY: The device is valid for as long as `faux`. It is not on the nd bus: `new` finds
        // that its driver is not one of this module.
        let dev = unsafe { &*core::ptr::from_ref(generic).cast::<Device<Bound>>() };

        let refused = ProviderWatch::new(dev, Counter::new()?);
        assert!(refused.is_err_and(|err| err == EINVAL));
        Ok(())
    }
}
