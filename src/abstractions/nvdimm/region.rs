// SPDX-License-Identifier: GPL-2.0

//! Regions: what the namespaces in them have in common.

use crate::abstractions::kernel::{
    badblocks::Badblocks,
    kobject, //
};
use crate::abstractions::nvdimm::{
    bindings,
    Namespace, //
};
use core::ops::Range;
use kernel::{
    device, devres,
    error::to_result,
    fmt,
    io::PhysAddr,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Srcu, //
    },
};

/// A region that is bound to its driver.
///
/// # Invariants
///
/// A reference to this is a pointer to a valid `struct nd_region`, which stays bound for the
/// lifetime of the reference.
#[repr(transparent)]
pub struct Region(kernel::types::Opaque<bindings::nd_region>);

impl Region {
    /// Makes a reference from a pointer.
    ///
    /// # Safety
    ///
    /// The region must be valid and bound for `'a`.
    pub(super) unsafe fn from_raw<'a>(region: *mut bindings::nd_region) -> &'a Self {
        // SAFETY: By the safety requirements; the wrapper is transparent.
        unsafe { &*region.cast() }
    }

    fn as_raw(&self) -> *mut bindings::nd_region {
        self.0.get()
    }

    /// Returns whether writes need a flush of the region to be durable, or [`None`] if the platform
    /// does not tell.
    pub fn has_flush(&self) -> Option<bool> {
        // The C function looks at the DIMMs first, and a virtio region has none.
        if !self.is_synchronous() {
            return Some(true);
        }

        // SAFETY: By the type invariant the region is valid.
        match unsafe { bindings::nvdimm_has_flush(self.as_raw()) } {
            0 => Some(false),
            1.. => Some(true),
            _ => None,
        }
    }

    /// Returns whether a flush of the region is no more than the barrier in it: what has left the CPU is durable,
    /// because the platform sees to it (ADR). Not if the platform does not tell.
    ///
    /// C source: `nvdimm_flush` in `drivers/nvdimm/region_devs.c`
    fn is_flushed_by_barrier(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        let calls_provider = unsafe { bindings::nd_region_has_flush_function(self.as_raw()) };

        !calls_provider && self.has_flush() == Some(false)
    }

    /// Returns whether there are CPU caches between a store and the persistent memory.
    pub fn has_cache(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::nvdimm_has_cache(self.as_raw()) != 0 }
    }

    /// Returns whether flushing the CPU caches is all that durability takes.
    pub fn is_synchronous(&self) -> bool {
        // SAFETY: By the type invariant the region is valid.
        unsafe { bindings::is_nvdimm_sync(self.as_raw()) }
    }

    /// Adds what is known to be bad in a physical range to a list, whose first sector is at the
    /// start of the range. May sleep, takes the lock of the bus.
    pub fn populate_badblocks(&self, badblocks: &Badblocks, range: &Range<PhysAddr>) {
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return;
        };
        let range = bindings::range {
            start: range.start,
            end: last,
        };

        // SAFETY: By the type invariants both are valid; the range is only read.
        unsafe {
            bindings::nvdimm_badblocks_populate(self.as_raw(), badblocks.as_raw().as_ptr(), &range)
        };
    }
}

/// Access to the region of a device for those who may outlive the binding: requests that come in
/// while a device is being unbound, and whoever holds what is left of it.
///
/// A region can only be flushed, and its poison only be cleared, while it is bound. So access goes
/// through an SRCU read-side section, and ends when the device is unbound: [`Self::new`] registers
/// with the device for that. After it every operation fails with [`ENXIO`], and nothing refers to
/// the device: nd devices must not outlive their bus. For the same reason no operation hands out
/// the device, of which a driver could keep a reference.
///
/// If a flush is only a barrier, it does not need the region, and none of that.
///
/// Modelled in `tests/host/tests/atomics`.
///
/// Lock order: device lock, then the SRCU domain of this type. The operations call into the provider
/// of the region and may sleep there; they take none of the driver's locks, and not the device lock,
/// under which a device is unbound.
///
/// # Invariants
///
/// Inside of a read-side section of `srcu`, `dev` is null, or a device of an nd region that is
/// bound. `range` is that of its namespace.
///
/// # Examples
///
/// ```no_run
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::{
///     kernel::block::bio::Bio,
///     nvdimm::{
///         Namespace,
///         RegionAccess, //
///     }, //
/// };
///
/// /// Ends requests as durable.
/// struct Flusher(kernel::sync::Arc<RegionAccess>);
///
/// impl Flusher {
///     fn new(namespace: &Namespace<'_>) -> Result<Self> {
///         Ok(Self(RegionAccess::new(namespace)?))
///     }
///
///     // May be called at any time, also after the device was unbound.
///     fn end(&self, bio: Bio) {
///         bio.end(self.0.flush().into());
///     }
/// }
/// ```
///
/// A driver cannot say itself which addresses are the namespace's:
///
/// ```compile_fail,E0308
/// use core::ops::Range;
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::nvdimm::RegionAccess;
///
/// fn access(range: Range<u64>) -> Result<kernel::sync::Arc<RegionAccess>> {
///     RegionAccess::new(&range)
/// }
/// ```
#[pin_data]
pub struct RegionAccess {
    #[pin]
    srcu: Srcu,
    dev: Atomic<*mut bindings::device>,
    range: Range<PhysAddr>,
    /// The DIMMs of a region do not change while it is bound.
    is_flushed_by_barrier: bool,
}

impl RegionAccess {
    /// Gives access to the region that a namespace is in, for as long as its device is bound. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], or [`EOVERFLOW`] if the end of the namespace is not an address.
    pub fn new(namespace: &Namespace<'_>) -> Result<Arc<Self>> {
        let dev = namespace.device();
        let range = namespace.range()?;
        let is_flushed_by_barrier = dev.region().is_flushed_by_barrier();
        let access = Arc::pin_init(
            try_pin_init!(Self {
                srcu <- kernel::new_srcu!("pmem_rs::RegionAccess"),
                // INVARIANT: The device is bound until devres, which follows, ends the access.
                dev: Atomic::new(dev.as_raw()),
                range,
                is_flushed_by_barrier,
            }),
            GFP_KERNEL,
        )?;

        devres::register(dev.as_ref(), RevokeOnUnbind(access.clone()), GFP_KERNEL)?;
        Ok(access)
    }

    /// Calls `f` with the device and its region, unless the device has been unbound.
    #[inline]
    fn with<R>(
        &self,
        f: impl FnOnce(*mut bindings::device, *mut bindings::nd_region) -> R,
    ) -> Result<R> {
        let _guard = self.srcu.read_lock();

        // No order is needed: `revoke` waits for all read-side sections that may have seen the
        // device, and that was there before the `Arc` was shared.
        let dev = self.dev.load(Relaxed);
        if dev.is_null() {
            return Err(ENXIO);
        }

        // SAFETY: By the type invariant the device is bound until the guard is dropped, so its
        // parent is a bound region.
        let region = unsafe { bindings::to_nd_region((*dev).parent) };
        Ok(f(dev, region))
    }

    /// Calls `f` with the device, unless that has been unbound. `f` must not keep a reference to
    /// it.
    fn with_device<R>(&self, f: impl FnOnce(&device::Device) -> R) -> Result<R> {
        // SAFETY: `with` passes a valid device.
        self.with(|dev, _| f(unsafe { device::Device::from_raw(dev) }))
    }

    /// Logs an error of the device, as `dev_err!` does; nothing if it was unbound.
    pub fn err(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_err(message));
    }

    /// Logs a warning about the device, as `dev_warn!` does; nothing if it was unbound.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_warn(message));
    }

    /// Logs a message about the device, as `dev_info!` does; nothing if it was unbound.
    pub fn info(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_info(message));
    }

    /// Tells user space that the device has changed, as [`kobject::notify_change`] does. May sleep.
    ///
    /// # Errors
    ///
    /// As there; [`ENXIO`] if the device was unbound.
    pub fn notify_change<const N: usize>(&self, variables: [&CStr; N]) -> Result {
        self.with_device(|dev| kobject::notify_change(dev, variables))?
    }

    /// Makes all that was written to the region so far durable. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] or [`ENOMEM`] if the flush failed, [`ENXIO`] if the device was unbound. A flush that is only a
    /// barrier cannot fail.
    #[inline]
    pub fn flush(&self) -> Result {
        if self.is_flushed_by_barrier {
            // SAFETY: May be called anywhere.
            unsafe { bindings::pmem_wmb() };
            return Ok(());
        }
        self.flush_region()
    }

    #[inline(never)]
    fn flush_region(&self) -> Result {
        self.with(|_, region| {
            // Without a request nothing is left to be done later, which is what a positive result
            // would mean.
            // SAFETY: `with` passes a bound region.
            to_result(unsafe { bindings::nvdimm_flush(region, core::ptr::null_mut()) })
        })?
    }

    /// Clears the poison in `len` bytes from `phys` on, and returns how many bytes were cleared from
    /// there. May sleep, calls into the provider (for NFIT an ACPI method).
    ///
    /// # Errors
    ///
    /// What the provider answers; [`ENXIO`] if the device was unbound; [`EINVAL`] if the bytes are
    /// not all in the namespace: clearing poison overwrites what is there.
    pub fn clear_poison(&self, phys: PhysAddr, len: usize) -> Result<usize> {
        let is_within = phys
            .checked_add(len as u64)
            .is_some_and(|end| phys >= self.range.start && end <= self.range.end);
        if !is_within {
            return Err(EINVAL);
        }
        let len = c_uint::try_from(len).map_err(|_| EINVAL)?;

        let cleared = self.with(|dev, _| {
            // SAFETY: `with` passes a bound device on the nd bus.
            unsafe { bindings::nvdimm_clear_poison(dev, phys, len) }
        })?;

        usize::try_from(cleared).map_err(|_| {
            // CAST: A negative result is an errno.
            Error::from_errno(cleared as c_int)
        })
    }

    fn revoke(&self) {
        self.dev.store(core::ptr::null_mut(), Relaxed);
        self.srcu.synchronize();
    }
}

/// Ends the access when the device is unbound.
struct RevokeOnUnbind(Arc<RegionAccess>);

impl Drop for RevokeOnUnbind {
    fn drop(&mut self) {
        self.0.revoke();
    }
}

#[kunit_tests(pmem_rs_region)]
mod tests {
    use super::*;
    use kernel::{
        device::Bound,
        faux,
        sync::Completion,
        time::{
            delay::fsleep,
            Delta, //
        },
        workqueue, //
    };

    /// Access to the "region" of a device that has none: nothing may be called with it.
    fn access(faux: &faux::Registration) -> Result<Arc<RegionAccess>> {
        let generic: &device::Device<Bound> = faux.as_ref().as_ref();
        // CAST: `device::Device` is a transparent wrapper of `struct device`.
        let dev = core::ptr::from_ref(generic).cast_mut().cast();
        Arc::pin_init(
            try_pin_init!(RegionAccess {
                srcu <- kernel::new_srcu!("pmem_rs::RegionAccess"),
                dev: Atomic::new(dev),
                range: 0x10000..0x20000,
                is_flushed_by_barrier: false,
            }),
            GFP_KERNEL,
        )
    }

    #[test]
    fn after_revocation_nothing_reaches_the_region() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_region", None)?;
        let access = access(&faux)?;

        drop(RevokeOnUnbind(access.clone()));

        assert!(access.flush() == Err(ENXIO));
        assert!(access.notify_change([c"A=b"]) == Err(ENXIO));
        access.err(fmt!("not to be seen\n"));
        for phys in [0x10000, 0x20000 - 512] {
            assert!(access
                .clear_poison(phys, 512)
                .is_err_and(|err| err == ENXIO));
        }
        Ok(())
    }

    #[test]
    fn poison_is_cleared_in_the_namespace_only() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_region", None)?;
        let access = access(&faux)?;

        // The device is on no bus that could be asked: these do not get as far as that.
        for (phys, len) in [
            (0, 512),
            (0x10000 - 1, 512),
            (0x20000 - 511, 512),
            (0x20000, 512),
            (0x10000, 0x10001),
            (u64::MAX, 1),
            (0x10000, usize::MAX),
        ] {
            assert!(access
                .clear_poison(phys, len)
                .is_err_and(|err| err == EINVAL));
        }
        Ok(())
    }

    #[pin_data]
    struct User {
        #[pin]
        entered: Completion,
        left: Atomic<bool>,
        access: Arc<RegionAccess>,
    }

    #[test]
    fn revocation_waits_for_those_inside() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_region", None)?;
        let user = Arc::pin_init(
            try_pin_init!(User {
                entered <- Completion::new(),
                left: Atomic::new(false),
                access: access(&faux)?,
            }),
            GFP_KERNEL,
        )?;

        let inside = user.clone();
        workqueue::system().try_spawn(GFP_KERNEL, move || {
            let _guard = inside.access.srcu.read_lock();
            inside.entered.complete_all();
            fsleep(Delta::from_millis(100));
            inside.left.store(true, Relaxed);
        })?;

        user.entered.wait_for_completion();
        user.access.revoke();
        assert!(user.left.load(Relaxed));
        Ok(())
    }
}
