// SPDX-License-Identifier: GPL-2.0

//! The result of the last probe of each device.
//!
//! A device that is bound or was refused has a directory in sysfs with the name of the driver. Its
//! files say what is bound, or what was refused and why.
//!
//! Other drivers are kept off a device that was refused because of its contents. After a failed
//! probe the driver core offers the device to the next driver, now or when that driver is loaded. A
//! driver that does not see what is wrong with the contents would bind it. No driver binds a
//! namespace whose range is in use. So the range of a refused device is reserved before another
//! driver probes it (`BUS_NOTIFY_BIND_DRIVER`), and released when that probe has ended
//! (`BUS_NOTIFY_BOUND_DRIVER`, `BUS_NOTIFY_DRIVER_NOT_BOUND`).
//!
//! The device of an entry of [`ProbeResults`] is always registered. An entry is added by a probe,
//! with the device lock held, when the notifier is registered. It is removed at
//! `BUS_NOTIFY_DEL_DEVICE` at the latest. No driver probes the device after that: `device_del()`
//! has marked it as dead, with the device lock held.
//!
//! A reservation exists only while another driver probes the device, with the device lock held. If
//! the driver that has refused the device is unregistered meanwhile, the reservation is released at
//! once.
//!
//! Lock order, outermost first:
//!
//! 1. The device lock.
//! 2. `ProbeResults::bus`. The notifier does not take it.
//! 3. The rwsem of the notifier chain.
//! 4. `ProbeResults::entries`.
//! 5. The locks of a [`MemRegion`].
//!
//! Readers of the files in sysfs take none of these locks. So a thread that holds one may wait for
//! readers.

use super::{
    device::{
        Device,
        Kind, //
    },
    namespace::{
        ClaimClass,
        Namespace, //
    },
    status::{
        StateAttribute,
        Status, //
    }, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::module::this_module;
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

/// What identifies the contents of a namespace, so that a refusal ends with them. With a label, it
/// changes if the namespace is recreated, or if a user has changed its claim class. Without a
/// label, it is only the range.
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

/// A result, as it is shown to users.
pub(super) enum Shown {
    /// The device is bound, in this mode, and may have a state.
    Bound(&'static CStr, Option<Arc<dyn StateAttribute>>),
    /// The device was refused for this reason.
    Refused(CString),
}

impl Shown {
    /// Creates the files of a device. If that fails, there are none.
    ///
    /// # Safety
    ///
    /// As for [`Status::new`].
    unsafe fn publish(self, dev: &Device<Core<'_>>, directory: &'static CStr) -> Option<Status> {
        let lines = || {
            let (status, line, state) = match self {
                Self::Bound(mode, state) => (c"bound", (c"mode", mode.try_into()?), state),
                Self::Refused(reason) => (c"refused", (c"reason", reason), None),
            };

            Ok(([(c"status", status.try_into()?), line], state))
        };

        lines()
            // SAFETY: By the safety requirements.
            .and_then(|(lines, state)| unsafe { Status::new(dev, directory, lines, state) })
            .inspect_err(|err: &Error| {
                dev.warn(fmt!(
                    "the result of the probe is not shown in sysfs (error {})\n",
                    err.to_errno()
                ));
            })
            .ok()
    }
}

/// The result of the last probe of a device.
struct Entry {
    /// The files in sysfs. [`None`] if there is nothing to show or they could not be made, or if
    /// the device was unbound or is bound to another driver.
    status: Option<Status>,
    /// The contents that other drivers are kept off. [`None`] if they may bind the device.
    refused: Option<Identity>,
    /// The range of the namespace, while another driver probes the device.
    reservation: Option<MemRegion>,
}

/// The results of probes, and the notifier that keeps other drivers off what was refused.
///
/// # Invariants
///
/// If `bus` is set, the notifier is registered with that bus. It is set if there is an entry.
///
/// The keys of `entries` are the addresses of devices on that bus that are registered, and are a
/// [`Device`].
#[pin_data]
pub(super) struct ProbeResults {
    /// The name of the driver, and of the directories of its devices.
    name: &'static CStr,
    nb: Opaque<bindings::notifier_block>,
    #[pin]
    bus: Mutex<Option<NonNull<bindings::bus_type>>>,
    #[pin]
    entries: Mutex<RBTree<usize, Entry>>,
}

// SAFETY: A notifier may be registered and unregistered by any thread.
unsafe impl Send for ProbeResults {}

// SAFETY: The rwsem of the chain protects the notifier, and mutexes protect the rest.
unsafe impl Sync for ProbeResults {}

impl ProbeResults {
    /// Creates an empty list for the driver `name`. May sleep.
    pub(super) fn new(name: &'static CStr) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                name,
                nb: Opaque::new(bindings::notifier_block {
                    notifier_call: Some(Self::notify_callback),
                    ..Default::default()
                }),
                bus <- new_mutex!(None, "nvdimm::ProbeResults::bus"),
                entries <- new_mutex!(RBTree::new(), "nvdimm::ProbeResults::entries"),
            }),
            GFP_KERNEL,
        )
    }

    /// Begins the probe of a device. May sleep.
    ///
    /// # Safety
    ///
    /// [`Self::unregister`] must be called before `self` is dropped.
    pub(super) unsafe fn begin<'a>(&'a self, dev: &'a Device<Core<'a>>) -> Result<Probe<'a>> {
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;

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
        // INVARIANT: The notifier is registered.
        Ok(Probe {
            results: self,
            dev,
            node,
        })
    }

    /// Removes the files of a device that was unbound, or that another driver has bound. Waits for
    /// their readers.
    fn end_binding(&self, dev: usize) {
        let status = {
            let mut entries = self.entries.lock();
            entries.get_mut(&dev).and_then(|entry| entry.status.take())
        };

        drop(status);
    }

    /// Removes all entries, unregisters the notifier, and waits for its calls that are in progress.
    /// Sleeps.
    ///
    /// No probe may be in progress, and none may follow.
    pub(super) fn unregister(&self) {
        let mut registered = self.bus.lock();

        // Dropped with the lock of `entries` held: a device that is being deleted waits for that
        // lock, so it is still registered.
        drop(core::mem::take(&mut *self.entries.lock()));
        if let Some(bus) = *registered {
            // SAFETY: By the type invariant the notifier is registered with this bus.
            unsafe { bindings::bus_unregister_notifier(bus.as_ptr(), self.nb.get()) };
        }
        // INVARIANT: There is no entry any more.
        *registered = None;
    }

    /// Removes and returns the entry of a device, whose drop releases the range and removes the
    /// files.
    fn take(&self, dev: usize) -> Option<Entry> {
        let node = self.entries.lock().remove_node(&dev);

        node.map(|node| node.to_key_value().1)
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
        let Some((identity, reservation)) = entries.get_mut(&dev.addr()).and_then(|entry| {
            let identity = entry.refused.as_ref()?;
            Some((identity, &mut entry.reservation))
        }) else {
            return;
        };

        // SAFETY: By the safety requirements.
        if unsafe { is_bound_here(dev) } {
            return;
        }
        // SAFETY: By the type invariant it is one of these devices. It is being bound, and its lock
        // is held, so it is valid in this function.
        let dev = unsafe { &*dev.cast::<Device<Bound>>() };
        // SAFETY: The device lock is held.
        let Some(namespace) = (unsafe { Namespace::of_idle(dev) }) else {
            return;
        };
        if Identity::of(&namespace) != *identity
            || (dev.kind() == Kind::Namespace && namespace.is_forced_raw())
        {
            return;
        }

        let reserve = || namespace.reserve(CString::try_from_fmt(fmt!("{}", namespace.name()))?);
        match reserve() {
            Ok(reserved) => {
                *reservation = Some(reserved);
                dev.warn(fmt!(
                    "this driver is kept off: {} has refused this device, and has logged the \
                     reason\n",
                    self.name
                ));
            }
            // The other driver cannot use the range either.
            Err(err) if err == EBUSY => {}
            Err(err) => dev.err(fmt!(
                "this driver cannot be kept off a device that {} has refused (error {}): unbind it \
                 before anything is written to its disk\n",
                self.name,
                err.to_errno()
            )),
        }
    }

    /// # Safety
    ///
    /// To be called by the notifier chain of a bus. `nb` must be that of a `ProbeResults`.
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
            // SAFETY: `driver_sysfs_add()` sends this with the device lock held, after
            // `really_probe()` has set the driver.
            bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER => unsafe {
                this.keep_off(data.cast())
            },
            bindings::bus_notifier_event_BUS_NOTIFY_BOUND_DRIVER => {
                this.release(data.addr());
                // SAFETY: `driver_bound()` sends this with the device lock held, after the driver
                // was set.
                if !unsafe { is_bound_here(data.cast()) } {
                    this.end_binding(data.addr());
                }
            }
            // If it was another driver, there are no files.
            bindings::bus_notifier_event_BUS_NOTIFY_UNBOUND_DRIVER => {
                this.end_binding(data.addr());
            }
            bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND => this.release(data.addr()),
            bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE => drop(this.take(data.addr())),
            _ => {}
        }
        bindings::NOTIFY_DONE as c_int
    }
}

/// Returns whether the driver of a device is one of this module.
///
/// # Safety
///
/// `dev` must be a valid device that has a driver, with the device lock held.
unsafe fn is_bound_here(dev: *mut bindings::device) -> bool {
    // SAFETY: By the safety requirements. The driver of a device is valid.
    unsafe { (*(*dev).driver).owner == this_module::<crate::LocalModule>().as_ptr() }
}

/// What happens to the refusal of a device after a probe; see
/// [`Driver::probe`](super::Driver::probe).
pub(super) enum Refusal {
    /// It begins: other drivers are kept off these contents.
    Begins(Identity),
    /// It ends, if there was one.
    Ends,
    /// It stays, if there was one.
    Stays,
}

/// A device that is being probed, with the memory for its result.
///
/// # Invariants
///
/// The notifier of `results` is registered.
pub(super) struct Probe<'a> {
    results: &'a ProbeResults,
    dev: &'a Device<Core<'a>>,
    node: RBTreeNodeReservation<usize, Entry>,
}

impl Probe<'_> {
    /// Records the result. May sleep.
    pub(super) fn end(self, shown: Option<Shown>, refusal: Refusal) {
        let key = self.dev.as_raw().addr();
        // The old files are removed before there are new ones.
        let old = self.results.take(key).and_then(|entry| entry.refused);
        let refused = match refusal {
            Refusal::Begins(identity) => Some(identity),
            Refusal::Ends => None,
            Refusal::Stays => old,
        };
        if shown.is_none() && refused.is_none() {
            return;
        }

        // SAFETY: The device is being probed, so it is registered. It is deleted only after the
        // device lock was released and the notifier, which is registered by the type invariant,
        // has removed the entry.
        let status = shown.and_then(|shown| unsafe { shown.publish(self.dev, self.results.name) });
        let entry = Entry {
            status,
            refused,
            reservation: None,
        };
        // INVARIANT: As for `publish`.
        let replaced = {
            let mut entries = self.results.entries.lock();
            entries.insert(self.node.into_node(key, entry))
        };
        drop(replaced);
    }
}

#[kunit_tests(pmem_rs_probe_results)]
mod tests {
    use super::*;
    use crate::abstractions::kernel_ext::io::resource::free_range;

    const LEN: u64 = 4 << 20;

    /// Calls the notifier with an event about a device.
    fn notify(
        results: &ProbeResults,
        action: bindings::bus_notifier_event,
        dev: &Device<Core<'_>>,
    ) {
        // SAFETY: This is the notifier of a `ProbeResults`, and the device is one of a test, which
        // nothing else uses.
        let ret = unsafe {
            ProbeResults::notify_callback(results.nb.get(), action as c_ulong, dev.as_raw().cast())
        };
        assert_eq!(ret, 0);
    }

    const BIND: bindings::bus_notifier_event = bindings::bus_notifier_event_BUS_NOTIFY_BIND_DRIVER;
    const FAILED: bindings::bus_notifier_event =
        bindings::bus_notifier_event_BUS_NOTIFY_DRIVER_NOT_BOUND;
    const DELETED: bindings::bus_notifier_event =
        bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE;

    /// Calls `f` with a namespace that was refused, and a function that returns whether its range
    /// is free. The driver of the namespace is another one.
    fn with_refused(f: impl FnOnce(&ProbeResults, &Device<Core<'_>>, &dyn Fn() -> bool)) -> Result {
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

        let results = ProbeResults::new(c"pmem_rs_test")?;
        // The notifier is called by the tests only.
        let probe = Probe {
            results: &results,
            dev,
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
        };
        probe.end(None, Refusal::Begins(Identity::of(&namespace)));
        let name = || CString::try_from_fmt(fmt!("pmem_rs test"));
        f(&results, dev, &|| {
            name().is_ok_and(|name| namespace.reserve(name).is_ok())
        });
        results.unregister();
        Ok(())
    }

    #[test]
    fn the_range_is_reserved_during_the_probe_of_another_driver() -> Result {
        with_refused(|results, dev, is_free| {
            assert!(is_free());
            for _ in 0..2 {
                notify(results, BIND, dev);
                assert!(!is_free());
                notify(results, FAILED, dev);
                assert!(is_free());
            }
        })
    }

    #[test]
    fn a_deleted_device_is_forgotten() -> Result {
        with_refused(|results, dev, is_free| {
            notify(results, BIND, dev);
            notify(results, DELETED, dev);
            assert!(is_free());
            notify(results, BIND, dev);
            assert!(is_free());
        })
    }

    #[test]
    fn nothing_stays_reserved_after_unregister() -> Result {
        with_refused(|results, dev, is_free| {
            notify(results, BIND, dev);
            results.unregister();
            assert!(is_free());
        })
    }

    #[test]
    fn a_namespace_that_has_changed_is_not_kept() -> Result {
        with_refused(|results, dev, is_free| {
            // SAFETY: The device is that of a namespace.
            let ndns = unsafe { container_of!(dev.as_raw(), bindings::nd_namespace_common, dev) };

            // SAFETY: The namespace is valid, and nothing else uses it.
            unsafe { (*ndns).force_raw = 1 };
            notify(results, BIND, dev);
            assert!(is_free());
            // SAFETY: The namespace is valid, and nothing else uses it.
            unsafe { (*ndns).force_raw = 0 };
            notify(results, BIND, dev);
            assert!(!is_free());

            notify(results, FAILED, dev);
            let nsio = ndns.cast::<bindings::nd_namespace_io>();
            // SAFETY: The namespace is valid, and nothing else uses it. It has a range.
            unsafe { (*nsio).res.end -= 4096 };
            notify(results, BIND, dev);
            assert!(is_free());
        })
    }
}
