// SPDX-License-Identifier: GPL-2.0

//! Devices that a driver has refused, and that other drivers are kept off.
//!
//! After a failed probe the driver core offers the device to the next driver, now or when that
//! driver is loaded. A driver that does not see what is wrong with the contents would bind it. No
//! driver binds a namespace whose range is in use. So the range of a refused device is reserved
//! before another driver probes it (`BUS_NOTIFY_BIND_DRIVER`), and released when that driver has
//! given up (`BUS_NOTIFY_DRIVER_NOT_BOUND`). The device stays unbound, as after any failed probe.
//!
//! An entry of [`Refusals`] is added with the device lock held, and removed when the device is
//! deleted (`BUS_NOTIFY_DEL_DEVICE`), if not earlier. `device_del()` has taken the device lock
//! before that notice, and no driver probes the device afterwards. The notifier is registered
//! before the first entry is added. So the device of an entry is always registered.
//!
//! A reservation exists only while another driver probes the device, with the device lock held. If
//! the driver that has refused the device is unregistered meanwhile, the reservation is released at
//! once.
//!
//! Lock order: the device lock, `Refusals::bus`, the rwsem of the notifier chain,
//! `Refusals::entries`, the locks of a [`MemRegion`]. The notifier does not take `Refusals::bus`.

use super::{
    device::{
        Device,
        Kind, //
    },
    namespace::{
        ClaimClass,
        Namespace, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::kernel_ext::io::resource::MemRegion;
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    container_of,
    device::{
        Bound,
        Core, //
    },
    error::to_result,
    io::PhysAddr,
    module::this_module,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    str::CString,
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

/// What identifies the contents of a namespace. It changes if the namespace is recreated, or if a
/// user has changed its claim class.
#[derive(PartialEq, Eq)]
pub(super) struct Identity {
    range: Option<Range<PhysAddr>>,
    uuid: [u8; 16],
    class: Option<ClaimClass>,
}

impl Identity {
    /// Returns the identity of a namespace.
    pub(super) fn of(namespace: &Namespace<'_>) -> Self {
        Self {
            range: namespace.range().ok(),
            uuid: namespace.uuid(),
            class: namespace.claim_class(),
        }
    }
}

/// A refused device.
struct Entry {
    identity: Identity,
    /// The range of the namespace, while another driver probes the device.
    reservation: Option<MemRegion>,
}

/// The memory for an entry, so that a refusal cannot fail.
pub(super) struct Room(RBTreeNodeReservation<usize, Entry>);

impl Room {
    /// Allocates the memory. May sleep.
    pub(super) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL)?))
    }
}

/// The devices that a driver has refused, and the notifier that keeps other drivers off.
///
/// # Invariants
///
/// If `bus` is set, the notifier is registered with that bus. It is set if there is an entry.
///
/// The keys of `entries` are the addresses of devices on that bus that are registered, and are a
/// [`Device`].
#[pin_data]
pub(super) struct Refusals {
    nb: Opaque<bindings::notifier_block>,
    #[pin]
    bus: Mutex<Option<NonNull<bindings::bus_type>>>,
    #[pin]
    entries: Mutex<RBTree<usize, Entry>>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl Send for Refusals {}

// SAFETY: The rwsem of the chain protects the notifier, and mutexes protect the rest.
unsafe impl Sync for Refusals {}

impl Refusals {
    /// Creates an empty list. May sleep.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                nb: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::notify_callback),
                    ..Default::default()
                }),
                bus <- new_mutex!(None, "nvdimm::Refusals::bus"),
                entries <- new_mutex!(RBTree::new(), "nvdimm::Refusals::entries"),
            }),
            GFP_KERNEL,
        )
    }

    /// Registers the notifier, if it is not registered yet. May sleep.
    ///
    /// To be called before a device is probed.
    ///
    /// # Safety
    ///
    /// [`Self::unregister`] must be called before `self` is dropped.
    pub(super) unsafe fn register(&self, dev: &Device<Core<'_>>) -> Result {
        let mut registered = self.bus.lock();
        if registered.is_none() {
            // SAFETY: The device is valid, and on a bus.
            let bus = unsafe { (*dev.as_raw()).bus };
            // SAFETY: The bus of a registered device is registered. By the safety requirements the
            // notifier is unregistered before it is freed.
            to_result(unsafe { bindings::bus_register_notifier(bus, self.nb.get()) })?;
            // INVARIANT: The notifier was just registered.
            *registered = NonNull::new(bus.cast_mut());
        }
        Ok(())
    }

    /// Keeps other drivers off a device that is being probed.
    pub(super) fn add(&self, dev: &Device<Core<'_>>, room: Room, identity: Identity) {
        let entry = Entry {
            identity,
            reservation: None,
        };

        // INVARIANT: `register` was called before. The device is being probed, so it is
        // registered. It is deleted only after this, since the device lock is held.
        let replaced = {
            let mut entries = self.entries.lock();
            entries.insert(room.0.into_node(dev.as_raw().addr(), entry))
        };
        drop(replaced);
    }

    /// Ends a refusal of a device that was probed again.
    pub(super) fn remove(&self, dev: &Device<Core<'_>>) {
        self.forget(dev.as_raw().addr());
    }

    /// Unregisters the notifier, waits for calls that are in progress, and forgets all devices.
    /// Sleeps.
    pub(super) fn unregister(&self) {
        let mut registered = self.bus.lock();
        if let Some(bus) = *registered {
            // SAFETY: By the type invariant the notifier is registered with this bus.
            unsafe { bindings::bus_unregister_notifier(bus.as_ptr(), self.nb.get()) };
        }
        // INVARIANT: There is no entry any more.
        let entries = core::mem::take(&mut *self.entries.lock());
        *registered = None;
        drop(registered);
        drop(entries);
    }

    /// Forgets a refusal, and releases the range.
    fn forget(&self, dev: usize) {
        let entry = self.entries.lock().remove(&dev);

        drop(entry);
    }

    /// Releases the range of a device that another driver has probed.
    fn release(&self, dev: usize) {
        let reservation = {
            let mut entries = self.entries.lock();
            entries
                .get_mut(&dev)
                .and_then(|entry| entry.reservation.take())
        };

        drop(reservation);
    }

    /// Reserves the range of a refused device that another driver is about to probe.
    ///
    /// # Safety
    ///
    /// `dev` must be a valid device that is being bound, with the device lock held.
    unsafe fn keep_off(&self, dev: *mut bindings::device) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(&dev.addr()) else {
            return;
        };

        // SAFETY: A device that is being bound has a driver, which is valid.
        if unsafe { (*(*dev).driver).owner } == this_module::<crate::LocalModule>().as_ptr() {
            return;
        }
        // SAFETY: By the type invariant it is one of these devices. It is being bound, and its lock
        // is held, so it is valid in this function.
        let dev = unsafe { &*dev.cast::<Device<Bound>>() };
        // SAFETY: The device lock is held.
        let Some(namespace) = (unsafe { Namespace::of_idle(dev) }) else {
            return;
        };
        if Identity::of(&namespace) != entry.identity
            || (dev.kind() == Kind::Namespace && namespace.is_forced_raw())
        {
            return;
        }

        let reserve = || namespace.reserve(CString::try_from_fmt(fmt!("{}", namespace.name()))?);
        match reserve() {
            Ok(reservation) => {
                entry.reservation = Some(reservation);
                dev_warn!(
                    dev,
                    "this driver is kept off: pmem_rs has refused this device, and has logged the \
                     reason\n"
                );
            }
            // The other driver cannot use the range either.
            Err(err) if err == EBUSY => {}
            Err(err) => dev_err!(
                dev,
                "this driver cannot be kept off a device that pmem_rs has refused (error {})\n",
                err.to_errno()
            ),
        }
    }

    /// # Safety
    ///
    /// To be called by the notifier chain of a bus. `nb` must be that of a `Refusals`.
    unsafe extern "C" fn notify_callback(
        nb: *mut bindings::notifier_block,
        action: c_ulong,
        data: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements. It stays until the notifier was unregistered, which
        // waits for this call.
        let this = unsafe { &*container_of!(Opaque::cast_from(nb), Self, nb) };

        // CAST: The values of the enumeration are small.
        match action as bindings::bus_notifier_event {
            // SAFETY: `really_probe()` sends this with the device lock held, after it has set the
            // driver.
            bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER => unsafe {
                this.keep_off(data.cast())
            },
            bindings::bus_notifier_event_BUS_NOTIFY_BOUND_DRIVER
            | bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND => this.release(data.addr()),
            bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE => this.forget(data.addr()),
            _ => {}
        }
        bindings::NOTIFY_DONE as c_int
    }
}

#[kunit_tests(pmem_rs_refusals)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::io::resource::free_range;

    const LEN: u64 = 4 << 20;

    /// Calls the notifier with an event about a device.
    fn notify(refusals: &Refusals, action: bindings::bus_notifier_event, dev: &Device<Core<'_>>) {
        // SAFETY: This is the notifier of a `Refusals`, and the device is one of a test, which
        // nothing else uses.
        let ret = unsafe {
            Refusals::notify_callback(refusals.nb.get(), action as c_ulong, dev.as_raw().cast())
        };
        assert_eq!(ret, 0);
    }

    const BIND: bindings::bus_notifier_event = bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER;
    const FAILED: bindings::bus_notifier_event =
        bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND;
    const DELETED: bindings::bus_notifier_event =
        bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE;

    /// Calls `f` with a namespace that was refused, and a function that tells whether its range is
    /// free. The driver of the namespace is another one.
    fn with_refused(f: impl FnOnce(&Refusals, &Device<Core<'_>>, &dyn Fn() -> bool)) -> Result {
        let mut driver = KBox::new(bindings::device_driver::default(), GFP_KERNEL)?;
        driver.name = c"other".as_char_ptr();
        let mut nsio = KBox::new(bindings::nd_namespace_io::default(), GFP_KERNEL)?;
        nsio.res.start = free_range(LEN)?;
        nsio.res.end = nsio.res.start + LEN - 1;
        nsio.common.dev.init_name = c"namespace7.4".as_char_ptr();
        nsio.common.dev.driver = &raw mut *driver;
        // SAFETY: The device lives until the end of the function. It is not on the nd bus, which
        // the tested methods do not depend on.
        let dev = unsafe { &*(&raw const nsio.common.dev).cast::<Device<Core<'_>>>() };
        // SAFETY: The device is a namespace that nothing else uses.
        let namespace = unsafe { Namespace::of_idle(dev) }.ok_or(ENODEV)?;

        let refusals = Refusals::new()?;
        refusals.add(dev, Room::new()?, Identity::of(&namespace));
        let name = || CString::try_from_fmt(fmt!("pmem_rs test"));
        f(&refusals, dev, &|| {
            name().is_ok_and(|name| namespace.reserve(name).is_ok())
        });
        refusals.unregister();
        Ok(())
    }

    #[test]
    fn the_range_is_reserved_during_the_probe_of_another_driver() -> Result {
        with_refused(|refusals, dev, is_free| {
            assert!(is_free());
            for _ in 0..2 {
                notify(refusals, BIND, dev);
                assert!(!is_free());
                notify(refusals, FAILED, dev);
                assert!(is_free());
            }
        })
    }

    #[test]
    fn a_deleted_device_is_forgotten() -> Result {
        with_refused(|refusals, dev, is_free| {
            notify(refusals, BIND, dev);
            notify(refusals, DELETED, dev);
            assert!(is_free());
            notify(refusals, BIND, dev);
            assert!(is_free());
        })
    }

    #[test]
    fn nothing_stays_reserved_after_unregister() -> Result {
        with_refused(|refusals, dev, is_free| {
            notify(refusals, BIND, dev);
            refusals.unregister();
            assert!(is_free());
        })
    }

    #[test]
    fn a_namespace_that_has_changed_is_not_kept() -> Result {
        with_refused(|refusals, dev, is_free| {
            // SAFETY: The device is that of a namespace.
            let ndns = unsafe { container_of!(dev.as_raw(), bindings::nd_namespace_common, dev) };

            // SAFETY: The namespace is valid, and nothing else uses it.
            unsafe { (*ndns).force_raw = 1 };
            notify(refusals, BIND, dev);
            assert!(is_free());
            // SAFETY: The namespace is valid, and nothing else uses it.
            unsafe { (*ndns).force_raw = 0 };
            notify(refusals, BIND, dev);
            assert!(!is_free());

            notify(refusals, FAILED, dev);
            let nsio = ndns.cast::<bindings::nd_namespace_io>();
            // SAFETY: The namespace is valid, and nothing else uses it. It has a range.
            unsafe { (*nsio).res.end -= 4096 };
            notify(refusals, BIND, dev);
            assert!(is_free());
        })
    }
}
