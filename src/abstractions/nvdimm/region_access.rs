// SPDX-License-Identifier: GPL-2.0

//! Access to a region that is revoked when a device in it is unbound.
//!
//! Lock order: device lock, then the SRCU domain of [`RegionAccess`]. The operations call into the
//! provider of the region inside of a read-side section, and may sleep there. They take none of the
//! driver's locks, and not the device lock, which is held while a device is unbound.

use super::{
    device::is_region_bound,
    namespace::Namespace, //
};
use crate::abstractions::bindings;
use crate::abstractions::compat::sync::{
    new_srcu,
    Srcu, //
};
use crate::abstractions::kernel::{
    kobject,
    memremap::DataRange, //
};
use core::ops::Range;
use kernel::{
    device,
    devres,
    error::to_result,
    fmt,
    io::PhysAddr,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// Access to the region of a device. It may outlive the binding of the device.
///
/// A region can only be flushed, and its poison can only be cleared, while it is bound. So each
/// operation runs in an SRCU read-side section. [`Self::new`] registers with devres, which revokes
/// the access when the device is unbound. From then on every operation fails with [`ENXIO`], and
/// nothing refers to the device: nd devices must not outlive their bus. For the same reason no
/// operation returns the device, so that a driver cannot keep a reference to it.
///
/// A flush for which [`Self::flush_barrier`] returns a barrier does not use the region, and always
/// succeeds.
///
/// Modelled in `tests/host/tests/atomics`.
///
/// # Invariants
///
/// Inside of a read-side section of `srcu`, `dev` is null, or a bound device in an nd region.
/// `range` is that of its namespace.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel::block::bio::Bio;
/// use pmem_rs::abstractions::nvdimm::RegionAccess;
///
/// // May be called at any time, even after the device was unbound.
/// fn flush_and_end(region: &RegionAccess, bio: Bio) {
///     bio.end(region.flush().into());
/// }
/// ```
///
/// A driver cannot choose the addresses itself:
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
///
/// ```compile_fail,E0308
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::nvdimm::RegionAccess;
///
/// fn clear(region: &RegionAccess) -> Result<usize> {
///     region.clear_poison(&(0x1_0000_2000..0x1_0000_3000))
/// }
/// ```
///
/// The device cannot be kept either:
///
/// ```compile_fail,E0624
/// use kernel::{
///     device::Device,
///     prelude::*,
///     sync::aref::ARef, //
/// };
/// use pmem_rs::abstractions::nvdimm::RegionAccess;
///
/// fn keep(region: &RegionAccess) -> Result<ARef<Device>> {
///     region.with_device(|dev| ARef::from(dev))
/// }
/// ```
///
/// The functions that send uevents need a device that is not being deleted, which a reference does
/// not prove. So they are private:
///
/// ```compile_fail,E0603
/// use kernel::device::Device;
/// use pmem_rs::abstractions::kernel::kobject;
///
/// fn notify(dev: &Device) {
///     let _ = kobject::notify_change(dev, [c"A=b"]);
/// }
/// ```
#[pin_data]
pub struct RegionAccess {
    #[pin]
    srcu: Srcu,
    dev: Atomic<*mut bindings::device>,
    range: Range<PhysAddr>,
    /// Does not change: the DIMMs of a region are the same for as long as it is bound.
    is_flushed_by_barrier: bool,
}

/// The proof that a flush of a region is only a barrier (`pmem_wmb()`), so that it neither sleeps
/// nor fails. It is for the region whose [`RegionAccess::flush_barrier`] has returned it.
#[derive(Clone, Copy)]
pub struct FlushBarrier(());

impl FlushBarrier {
    /// Flushes the region. Callable from any context.
    #[inline]
    pub fn flush(self) {
        // SAFETY: A barrier may be called in any context.
        unsafe { bindings::pmem_wmb() };
    }
}

impl RegionAccess {
    /// Creates access to the region of a namespace, for as long as its device is bound. May sleep.
    pub fn new(namespace: &Namespace<'_>) -> Result<Arc<Self>> {
        let dev = namespace.device();
        let range = namespace.range()?;
        let is_flushed_by_barrier = dev.region().is_flushed_by_barrier();
        let access = Arc::pin_init(
            try_pin_init!(Self {
                srcu <- new_srcu!("pmem_rs::RegionAccess"),
                // INVARIANT: The device is bound until devres revokes the access.
                dev: Atomic::new(dev.as_raw()),
                range,
                is_flushed_by_barrier,
            }),
            GFP_KERNEL,
        )?;

        devres::register(dev.generic(), RevokeOnUnbind(access.clone()), GFP_KERNEL)?;
        Ok(access)
    }

    /// Calls `f` with the device and its region, unless the device has been unbound.
    #[inline]
    fn with<R>(
        &self,
        f: impl FnOnce(*mut bindings::device, *mut bindings::nd_region) -> R,
    ) -> Result<R> {
        let _guard = self.srcu.read_lock();

        // ORDERING: None is needed. `revoke` waits for all read-side sections that may have read
        // the device, and the device was valid before the `Arc` was shared.
        let dev = self.dev.load(Relaxed);
        if dev.is_null() {
            return Err(ENXIO);
        }

        // SAFETY: By the type invariant the device is bound until the guard is dropped. Its parent
        // is a region.
        let region = unsafe { bindings::to_nd_region((*dev).parent) };
        Ok(f(dev, region))
    }

    /// As [`Self::with`], unless the region was unbound before the device.
    fn with_bound_region<R>(
        &self,
        f: impl FnOnce(*mut bindings::device, *mut bindings::nd_region) -> Result<R>,
    ) -> Result<R> {
        self.with(|dev, region| {
            // SAFETY: `with` passes a device in a region.
            if !unsafe { is_region_bound((*dev).parent) } {
                return Err(ENXIO);
            }
            f(dev, region)
        })?
    }

    /// Calls `f` with the device, unless it has been unbound. `f` must not keep a reference to it.
    fn with_device<R>(&self, f: impl FnOnce(&device::Device) -> R) -> Result<R> {
        // SAFETY: `with` passes a valid device.
        self.with(|dev, _| f(unsafe { device::Device::from_raw(dev) }))
    }

    /// Logs an error of the device, as `dev_err!` does. Nothing is logged once it was unbound.
    pub fn err(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_err(message));
    }

    /// Logs a warning about the device, as `dev_warn!` does. Nothing is logged once it was unbound.
    pub fn warn(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_warn(message));
    }

    /// Logs a message about the device, as `dev_info!` does. Nothing is logged once it was unbound.
    pub fn info(&self, message: fmt::Arguments<'_>) {
        let _ = self.with_device(|dev| dev.pr_info(message));
    }

    /// Sends a `change` uevent of the device with one or more variables `NAME=value`. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENXIO`] if the device was unbound, [`EINVAL`] if the variables have more than 1 KiB.
    pub fn notify_change<const N: usize>(&self, variables: [&CStr; N]) -> Result {
        // SAFETY: `with` passes a bound device. It is unbound before it is deleted. The region and
        // the bus above it remove it before they are deleted. For the exception see
        // `docs/kernel-bugs.md`.
        self.with(|dev, _| unsafe { kobject::notify_change(dev, variables) })?
    }

    /// Wakes programs that poll an attribute of the device. May sleep. Does nothing once the device
    /// was unbound.
    pub fn notify_attribute(&self, directory: &CStr, name: &CStr) {
        // SAFETY: `with` passes a bound device, which is unbound before it is deleted.
        let _ = self.with(|dev, _| unsafe { kobject::notify_attribute(dev, directory, name) });
    }

    /// Returns the barrier that flushes the region, if no more is needed.
    #[inline]
    pub fn flush_barrier(&self) -> Option<FlushBarrier> {
        self.is_flushed_by_barrier.then_some(FlushBarrier(()))
    }

    /// Flushes the region, which makes all earlier writes to it durable. May sleep.
    ///
    /// # Errors
    ///
    /// [`EIO`] or [`ENOMEM`] if the flush failed, [`ENXIO`] if the device or its region was
    /// unbound. A flush by [`Self::flush_barrier`] cannot fail.
    #[inline]
    pub fn flush(&self) -> Result {
        if let Some(barrier) = self.flush_barrier() {
            barrier.flush();
            return Ok(());
        }
        self.flush_region()
    }

    #[inline(never)]
    fn flush_region(&self) -> Result {
        self.with_bound_region(|_, region| {
            // SAFETY: The region is bound. Without a bio the flush is synchronous.
            to_result(unsafe { bindings::nvdimm_flush(region, core::ptr::null_mut()) })
        })
    }

    /// Clears the poison in a range of the data, and returns how many bytes were cleared. May
    /// sleep, calls into the provider (for NFIT an ACPI method).
    ///
    /// Clearing poison overwrites it. The namespace may also contain an info block, and the `struct
    /// page`s of the data (`map=dev`). No [`DataRange`] contains these.
    ///
    /// # Errors
    ///
    /// - The provider's error.
    /// - [`ENXIO`] if the device or its region was unbound.
    /// - [`EINVAL`] if the range is not all in the namespace, or has 4 GiB or more.
    pub fn clear_poison(&self, data: &DataRange<'_>) -> Result<usize> {
        let range = data.physical_range();
        if range.start < self.range.start || range.end > self.range.end {
            return Err(EINVAL);
        }
        let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        let len = c_uint::try_from(len).map_err(|_| EINVAL)?;

        let cleared = self.with_bound_region(|dev, _| {
            // SAFETY: The device is on the nd bus, whose provider exists for as long as a region is
            // bound. What is overwritten is data, by the type invariant of `DataRange`.
            Ok(unsafe { bindings::nvdimm_clear_poison(dev, range.start, len) })
        })?;

        usize::try_from(cleared).map_err(|_| {
            // CAST: A negative result is an errno.
            Error::from_errno(cleared as c_int)
        })
    }

    /// Revokes the access, and waits for operations that are in progress. May sleep.
    fn revoke(&self) {
        self.dev.store(core::ptr::null_mut(), Relaxed);
        self.srcu.synchronize();
    }
}

/// Revokes the access when it is dropped, which devres does when the device is unbound.
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

    /// Creates access to a device that is in no region, so the C functions must not be called.
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

    fn data(start: PhysAddr, len: usize) -> DataRange<'static> {
        // SAFETY: Nothing is mapped, and no poison is cleared: the calls fail before that.
        unsafe { DataRange::from_raw(start..start + len as u64) }
    }

    #[test]
    fn after_revocation_nothing_reaches_the_region() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_region", None)?;
        let access = access(&faux)?;

        drop(RevokeOnUnbind(access.clone()));

        assert!(access.flush() == Err(ENXIO));
        assert!(access.notify_change([c"A=b"]) == Err(ENXIO));
        access.err(fmt!("never logged\n"));
        for start in [0x10000, 0x20000 - 512] {
            assert!(access
                .clear_poison(&data(start, 512))
                .is_err_and(|err| err == ENXIO));
        }
        Ok(())
    }

    #[test]
    fn poison_is_cleared_in_the_namespace_only() -> Result {
        let faux = faux::Registration::new(c"pmem_rs_region", None)?;
        let access = access(&faux)?;

        // These fail before they use the device, which is not on the nd bus.
        for (start, len) in [
            (0, 512),
            (0x10000 - 1, 512),
            (0x20000 - 511, 512),
            (0x20000, 512),
            (0x10000, 0x10001),
            (u64::MAX - 1, 1),
            (0x10000, usize::MAX >> 1),
        ] {
            assert!(access
                .clear_poison(&data(start, len))
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
    fn revocation_waits_for_readers() -> Result {
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
