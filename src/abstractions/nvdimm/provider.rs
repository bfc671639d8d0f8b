// SPDX-License-Identifier: GPL-2.0

//! Watches for the moment when the provider of a bound device goes: the region or the bus above the
//! device is about to lose its driver.
//!
//! Region and bus unbind the devices below them one after the other, and wait for the end of each.
//! A driver that is told before that can begin with all of its devices at once.
//!
//! C headers: [`include/linux/device/bus.h`](srctree/include/linux/device/bus.h),
//! [`include/linux/notifier.h`](srctree/include/linux/notifier.h)

use crate::abstractions::nvdimm::{
    bindings,
    Device, //
};
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
    module::this_module,
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

/// A receiver of the news that the provider of a device goes.
pub trait ProviderWatcher: Send + Sync + 'static {
    /// The region or the bus above the device is about to lose its driver. The device is unbound
    /// soon after this. Called once for each [`ProviderWatch`] at most.
    ///
    /// Called in process context; may sleep, but not for long, since the other devices are told
    /// after this one. The lock of the region or the bus is held, and the notifier chain is being
    /// read: this must not take the lock of a device, nor wait for something that does (probe,
    /// unbind), nor register or unregister a driver of the bus. Starting work and waking threads is
    /// fine.
    fn provider_goes(&self);
}

/// A bound device whose driver is told that the provider goes.
///
/// Dropping it ends that, at the latest when the device is unbound. A call that is under way then
/// is not waited for. It has its own reference to the watcher, which may be the last one.
///
/// A provider may go while a device below it is being bound, or while the driver is being
/// registered. Then the device is unbound without notice.
///
/// # Examples
///
/// ```
/// use kernel::{
///     device::Bound,
///     prelude::*,
///     sync::{
///         Arc,
///         Completion, //
///     },
/// };
/// use pmem_rs::abstractions::nvdimm::{
///     Device,
///     ProviderWatch,
///     ProviderWatcher, //
/// };
///
/// #[pin_data]
/// struct Teardown {
///     #[pin]
///     begin: Completion,
/// }
///
/// impl ProviderWatcher for Teardown {
///     fn provider_goes(&self) {
///         self.begin.complete_all();
///     }
/// }
///
/// // What probe returns is what the driver keeps until the device is unbound.
/// fn probe(dev: &Device<Bound>) -> Result<ProviderWatch<'_>> {
///     let teardown = Arc::pin_init(
///         pin_init!(Teardown {
///             begin <- Completion::new(),
///         }),
///         GFP_KERNEL,
///     )?;
///
///     ProviderWatch::new(dev, teardown)
/// }
/// # let _ = probe;
/// ```
///
/// It does not outlive the binding of its device:
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
    /// Makes the bus call `watcher` when the provider of the device goes. Sleeps.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the driver of the device is not one of this module, [`ENOMEM`].
    pub fn new<W: ProviderWatcher>(
        dev: &'bound Device<Bound>,
        watcher: Arc<W>,
    ) -> Result<ProviderWatch<'bound>> {
        let dev = dev.as_raw();
        // SAFETY: The device is bound, so it has a driver, for longer than `'bound`.
        let driver = unsafe { (*dev).driver };

        // SAFETY: As above, the driver is valid.
        if unsafe { (*driver).owner } != this_module::<crate::LocalModule>().as_ptr() {
            return Err(EINVAL);
        }
        // SAFETY: The device is on the nd bus, and so is its driver. Those of this module are all
        // registered by `Adapter`, which embeds them in a `RawDriver`.
        let driver = unsafe {
            driver
                .byte_sub(offset_of!(RawDriver, nd.drv))
                .cast::<RawDriver>()
        };
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

        // Not under the lock: the watcher may be dropped with it.
        drop(entry);
    }
}

/// A device whose driver is to be told.
#[pin_data]
struct Entry {
    // Addresses of the devices above it. They are compared, and nothing else.
    region: usize,
    bus: usize,
    told: Atomic<bool>,
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

/// The devices of a driver, and the notifier by which the bus tells of their providers.
#[pin_data]
pub(super) struct Watchers {
    nb: Opaque<bindings::notifier_block>,
    #[pin]
    entries: Mutex<List<Entry>>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl Send for Watchers {}

// SAFETY: The notifier belongs to its chain, which has a lock, as the entries have.
unsafe impl Sync for Watchers {}

impl Watchers {
    /// Makes an empty list. May sleep.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                nb: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::notify_callback),
                    ..Default::default()
                }),
                entries <- new_mutex!(List::new(), "nvdimm::Watchers"),
            }),
            GFP_KERNEL,
        )
    }

    /// Begins to listen to the bus. Sleeps.
    ///
    /// # Safety
    ///
    /// The bus must be registered. `self` must stay until [`Self::unregister`] was called, and is
    /// not registered yet.
    pub(super) unsafe fn register(&self, bus: *const bindings::bus_type) -> Result {
        // SAFETY: By the safety requirements.
        to_result(unsafe { bindings::bus_register_notifier(bus, self.nb.get()) })
    }

    /// Ends listening, and waits for the calls that are under way. Sleeps.
    ///
    /// # Safety
    ///
    /// It must be registered on that bus.
    pub(super) unsafe fn unregister(&self, bus: *const bindings::bus_type) {
        // SAFETY: By the safety requirements. It fails for what is not registered only.
        unsafe { bindings::bus_unregister_notifier(bus, self.nb.get()) };
    }

    /// Adds a device below a region and a bus, of which the addresses are given.
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
                told: Atomic::new(false),
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

    /// Finds a device below a region or a bus that was not told yet, and marks it as told.
    fn next_to_tell(&self, above: usize) -> Option<Arc<dyn ProviderWatcher>> {
        let entries = self.entries.lock();
        let entry = entries.iter().find(|entry| {
            (entry.region == above || entry.bus == above) && !entry.told.load(Relaxed)
        })?;

        entry.told.store(true, Relaxed);
        Some(entry.watcher.clone())
    }

    /// # Safety
    ///
    /// For the notifier chain of a bus only: `nb` must be that of a `Watchers`.
    unsafe extern "C" fn notify_callback(
        nb: *mut bindings::notifier_block,
        action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        if action == bindings::bus_notifier_event_BUS_NOTIFY_UNBIND_DRIVER as c_ulong {
            // SAFETY: By the safety requirements. It stays until the notifier was unregistered,
            // which waits for this.
            let this = unsafe { &*container_of!(Opaque::cast_from(nb), Self, nb) };

            // One at a time and without the lock, so that the watcher may drop any watch.
            while let Some(watcher) = this.next_to_tell(data.addr()) {
                watcher.provider_goes();
            }
        }
        // The chain goes on.
        bindings::NOTIFY_DONE as c_int
    }
}

/// What [`Adapter`](super::Adapter) registers: the driver, and the devices of it that watch their
/// providers.
#[repr(C)]
pub struct RawDriver {
    pub(super) nd: bindings::nd_device_driver,
    /// From [`Arc::into_raw`], or null before the driver is registered.
    pub(super) watchers: *const Watchers,
}

impl Default for RawDriver {
    fn default() -> Self {
        Self {
            nd: Default::default(),
            watchers: core::ptr::null(),
        }
    }
}

#[kunit_tests(pmem_rs_provider)]
mod tests {
    use super::*;
    use kernel::faux;

    /// Counts how often it was told, and lets another watch go then.
    #[pin_data]
    struct Witness {
        told: Atomic<u32>,
        #[pin]
        other: Mutex<Option<ProviderWatch<'static>>>,
    }

    impl Witness {
        fn new() -> Result<Arc<Self>> {
            Arc::pin_init(
                pin_init!(Self {
                    told: Atomic::new(0),
                    other <- new_mutex!(None),
                }),
                GFP_KERNEL,
            )
        }

        fn told(&self) -> u32 {
            self.told.load(Relaxed)
        }
    }

    impl ProviderWatcher for Witness {
        fn provider_goes(&self) {
            self.told.fetch_add(1, Relaxed);
            let other = self.other.lock().take();
            drop(other);
        }
    }

    /// Calls the notifier with an event about a device.
    fn say(watchers: &Arc<Watchers>, action: bindings::bus_notifier_event, device: usize) {
        // SAFETY: This is the notifier of a `Watchers`; of the device only the address is used.
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
    fn those_below_a_provider_are_told_once() -> Result {
        let watchers = Watchers::new()?;
        let (one, two, three) = (Witness::new()?, Witness::new()?, Witness::new()?);
        let _one = watchers.clone().watch(0x10, 0x100, one.clone())?;
        let _two = watchers.clone().watch(0x20, 0x100, two.clone())?;
        let _three = watchers.clone().watch(0x30, 0x200, three.clone())?;

        // Another event, and a device that is no provider.
        say(
            &watchers,
            bindings::bus_notifier_event_BUS_NOTIFY_UNBOUND_DRIVER,
            0x10,
        );
        say(&watchers, UNBIND, 0x40);
        assert_eq!((one.told(), two.told(), three.told()), (0, 0, 0));
        say(&watchers, UNBIND, 0x10);
        assert_eq!((one.told(), two.told(), three.told()), (1, 0, 0));
        say(&watchers, UNBIND, 0x100);
        say(&watchers, UNBIND, 0x20);
        assert_eq!((one.told(), two.told(), three.told()), (1, 1, 0));
        Ok(())
    }

    #[test]
    fn what_was_let_go_is_not_told() -> Result {
        let watchers = Watchers::new()?;
        let (one, two) = (Witness::new()?, Witness::new()?);
        let first = watchers.clone().watch(0x10, 0x100, one.clone())?;
        // Whichever is told first lets the other one go.
        *one.other.lock() = Some(watchers.clone().watch(0x10, 0x100, two.clone())?);

        say(&watchers, UNBIND, 0x100);
        assert_eq!((one.told(), two.told()), (1, 0));
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
        // SAFETY: The device is valid for as long as `faux`. It is not on the bus, which is found
        // out by its driver.
        let dev = unsafe { &*core::ptr::from_ref(generic).cast::<Device<Bound>>() };

        let refused = ProviderWatch::new(dev, Witness::new()?);
        assert!(refused.is_err_and(|err| err == EINVAL));
        Ok(())
    }
}
