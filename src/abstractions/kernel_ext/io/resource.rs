// SPDX-License-Identifier: GPL-2.0

//! Reservations in the physical address space.
//!
//! `kernel::io::resource::Region` can be requested only inside of a `Resource`. The resource of a
//! namespace is not in the tree of resources, so [`MemRegion`] reserves the range in the root.
//!
//! A driver cannot name a physical range by numbers. A [`MemRegion`] comes from a namespace. A
//! [`PmemResource`] comes from the firmware or from a bound device.
//!
//! Lock order: `RegionName::region` is innermost. Only the release of the region is called with it
//! held.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use crate::abstractions::bindings;
use core::{
    ops::Range,
    ptr::{
        addr_of_mut,
        NonNull, //
    }, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    io::{
        PhysAddr,
        ResourceSize, //
    },
    new_mutex,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex,
        SetOnce, //
    }, //
};

/// A reserved range of physical addresses, as `/proc/iomem` shows it.
///
/// It owns its name. It cannot overlap System RAM, which is always reserved. Dropping it releases
/// the range.
///
/// A mapping of a reservation is writable. So a driver gets one only from [`Namespace::reserve`],
/// for the range of the namespace.
///
/// [`Namespace::reserve`]: crate::abstractions::nvdimm::Namespace::reserve
///
/// # Examples
///
/// A driver cannot reserve a range by numbers:
///
/// ```compile_fail,E0624
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel_ext::io::resource::MemRegion;
///
/// fn reserve(start: u64, len: u64, name: CString) -> Result<MemRegion> {
///     MemRegion::request(start, len, name)
/// }
/// ```
///
/// # Invariants
///
/// `iomem_resource` has a busy region of `len` bytes at `start`, which `self` owns. It is the
/// region of `name`, and points to one of its strings.
pub struct MemRegion {
    start: PhysAddr,
    len: ResourceSize,
    name: Arc<RegionName>,
}

// SAFETY: A region may be used and released by any thread.
unsafe impl Send for MemRegion {}

// SAFETY: A shared reference gives access only to the names, which are `Sync`.
unsafe impl Sync for MemRegion {}

/// The name of a [`MemRegion`] in `/proc/iomem`.
///
/// It may outlive the region, and has no effect then.
///
/// # Invariants
///
/// `region` is that of a `MemRegion`, or [`None`] before it is requested and after it was released.
#[pin_data]
pub struct RegionName {
    #[pin]
    region: Mutex<Option<NonNull<bindings::resource>>>,
    name: CString,
    other_name: SetOnce<CString>,
}

// SAFETY: Any thread may use the region with the lock held.
unsafe impl Send for RegionName {}

// SAFETY: The lock protects `region`. The names are `Sync`.
unsafe impl Sync for RegionName {}

impl RegionName {
    /// Renames the region. Only the first call has an effect. May sleep.
    pub fn set(&self, name: CString) {
        if !self.other_name.populate(name) {
            return;
        }
        let region = self.region.lock();
        if let (Some(name), Some(region)) = (self.other_name.as_ref(), *region) {
            // SAFETY: By the type invariant the region is not released while the lock is held. Both
            // strings outlive the region, so a concurrent reader may see either.
            unsafe { addr_of_mut!((*region.as_ptr()).name).write_volatile(name.as_char_ptr()) };
        }
    }

    /// Returns the first name of the region.
    pub fn first(&self) -> &CStr {
        &self.name
    }
}

impl MemRegion {
    /// Reserves `len` bytes from `start` on (`request_mem_region()`). May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if any part of the range is in use.
    pub(in crate::abstractions) fn request(
        start: PhysAddr,
        len: ResourceSize,
        name: CString,
    ) -> Result<Self> {
        let name = Arc::pin_init(
            try_pin_init!(RegionName {
                region <- new_mutex!(None, "pmem_rs::RegionName::region"),
                name,
                other_name: SetOnce::new(),
            }),
            GFP_KERNEL,
        )?;

        // SAFETY: `iomem_resource` always exists. The region keeps a pointer to the string, which
        // is on the heap and outlives the region.
        let region = unsafe {
            bindings::__request_region(
                addr_of_mut!(bindings::iomem_resource),
                start,
                len,
                name.name.as_char_ptr(),
                0,
            )
        };
        let region = NonNull::new(region).ok_or(EBUSY)?;
        // INVARIANT: The region was just requested.
        *name.region.lock() = Some(region);

        Ok(Self { start, len, name })
    }

    /// Returns the name, which allows to rename the region.
    pub fn name(&self) -> &Arc<RegionName> {
        &self.name
    }

    /// Returns the first address.
    pub fn start(&self) -> PhysAddr {
        self.start
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> ResourceSize {
        self.len
    }

    /// Returns whether the region has no bytes. Always false.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether all of the `len` bytes from `start` on are in the region.
    pub fn contains(&self, start: PhysAddr, len: ResourceSize) -> bool {
        start
            .checked_sub(self.start)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len)
    }
}

impl Drop for MemRegion {
    fn drop(&mut self) {
        // The lock is held until the region was released.
        let mut region = self.name.region.lock();
        *region = None;
        // SAFETY: By the type invariant `self` owns the region. The name is dropped after this.
        unsafe {
            bindings::__release_region(addr_of_mut!(bindings::iomem_resource), self.start, self.len)
        };
    }
}

/// A physical range of persistent memory, of which a [region] can be created during `'a`.
///
/// The firmware calls the range persistent ([`for_each_legacy_pmem`]), or the range is a resource
/// of a device that is bound for `'a` ([`platform::memory`]). A region of it is only created below
/// that device. The range is not reserved, and may overlap another one or System RAM ([`has_ram`]).
///
/// [region]: crate::abstractions::nvdimm::Bus::create_region
/// [`platform::memory`]: crate::abstractions::kernel_ext::platform::memory
///
/// # Examples
///
/// A driver cannot create one from numbers:
///
/// ```compile_fail,E0624
/// use pmem_rs::abstractions::kernel_ext::io::resource::PmemResource;
///
/// fn at(start: u64, len: u64) -> PmemResource<'static> {
///     PmemResource::of_firmware(start..start.saturating_add(len))
/// }
/// ```
#[derive(Clone)]
pub struct PmemResource<'a> {
    range: Range<PhysAddr>,
    device: Option<&'a Device<Bound>>,
}

impl<'a> PmemResource<'a> {
    /// Creates a resource from a range that comes from the firmware.
    pub(in crate::abstractions) fn of_firmware(range: Range<PhysAddr>) -> Self {
        Self {
            range,
            device: None,
        }
    }

    /// Creates a resource from a range that is a resource of a device.
    pub(in crate::abstractions) fn of_device(
        range: Range<PhysAddr>,
        device: &'a Device<Bound>,
    ) -> Self {
        Self {
            range,
            device: Some(device),
        }
    }

    /// Returns whether the memory is there for as long as `device` is bound: it is that of the
    /// firmware, or of this device.
    pub(in crate::abstractions) fn is_present_with(&self, device: &Device<Bound>) -> bool {
        self.device.is_none_or(|of| core::ptr::eq(of, device))
    }

    /// Returns the range of addresses.
    pub fn range(&self) -> Range<PhysAddr> {
        self.range.clone()
    }

    /// Returns the part of the resource with these addresses. [`None`] if there are none, or if
    /// they are not all in the resource.
    pub fn part(&self, range: Range<PhysAddr>) -> Option<Self> {
        let is_part =
            !range.is_empty() && range.start >= self.range.start && range.end <= self.range.end;

        is_part.then_some(Self {
            range,
            device: self.device,
        })
    }
}

/// Calls `f` with each legacy range of persistent memory, in the order of addresses
/// (`walk_iomem_res_desc()`).
///
/// The firmware, or `memmap=` on the command line of x86, defines these ranges without an NVDIMM.
/// The last possible address is left out, since the ranges are half-open.
///
/// # Errors
///
/// [`ENODEV`] if there is no such range. An error of `f` ends the walk.
///
/// # Examples
///
/// ```no_run
/// use kernel::prelude::*;
/// use pmem_rs::abstractions::kernel_ext::io::resource;
///
/// fn total() -> Result<u64> {
///     let mut total: u64 = 0;
///     resource::for_each_legacy_pmem(|resource| {
///         let range = resource.range();
///         total = total.saturating_add(range.end.saturating_sub(range.start));
///         Ok(())
///     })?;
///     Ok(total)
/// }
/// ```
pub fn for_each_legacy_pmem<'a, F: FnMut(PmemResource<'a>) -> Result>(f: F) -> Result {
    struct Walk<F> {
        f: F,
        result: Result,
    }

    /// # Safety
    ///
    /// Called by `walk_iomem_res_desc()` only. `resource` must be valid. `walk` must be a `Walk<F>`
    /// that nothing else uses.
    unsafe extern "C" fn visit<'a, F: FnMut(PmemResource<'a>) -> Result>(
        resource: *mut bindings::resource,
        walk: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements both pointers are valid, and `walk` is exclusive.
        let (walk, start, last) = unsafe {
            (
                &mut *walk.cast::<Walk<F>>(),
                (*resource).start,
                (*resource).end,
            )
        };

        walk.result = (walk.f)(PmemResource::of_firmware(start..last.saturating_add(1)));
        // A value other than zero ends the walk.
        c_int::from(walk.result.is_err())
    }

    let mut walk = Walk {
        f,
        // The result without any range.
        result: Err(ENODEV),
    };
    // SAFETY: The callback expects the argument, which outlives the call. It gets a copy of the
    // resource, without a lock.
    unsafe {
        bindings::walk_iomem_res_desc(
            bindings::IORES_DESC_PERSISTENT_MEMORY_LEGACY as c_ulong,
            bindings::IORESOURCE_MEM as c_ulong,
            0,
            PhysAddr::MAX,
            (&raw mut walk).cast(),
            Some(visit::<F>),
        )
    };
    walk.result
}

/// Returns whether any part of a range is System RAM (`region_intersects()`).
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::io::resource;
///
/// // No machine has addresses that large.
/// assert!(!resource::has_ram(&(1 << 62..(1 << 62) + 4096)));
/// ```
pub fn has_ram(range: &Range<PhysAddr>) -> bool {
    let Some(len) = range.end.checked_sub(range.start).filter(|len| *len != 0) else {
        return false;
    };

    // SAFETY: The function accepts any range.
    let found = unsafe {
        bindings::region_intersects(
            range.start,
            len as usize,
            bindings::IORESOURCE_SYSTEM_RAM as c_ulong,
            bindings::IORES_DESC_NONE as c_ulong,
        )
    };
    // CAST: The values of the enumeration are small.
    found != bindings::REGION_DISJOINT as c_int
}

/// Returns a range that nothing uses, for tests.
#[cfg(CONFIG_KUNIT = "y")]
pub(in crate::abstractions) fn free_range(len: ResourceSize) -> Result<PhysAddr> {
    // SAFETY: `iomem_resource` always exists; the name is static.
    let region = kernel::error::from_err_ptr(unsafe {
        bindings::request_free_mem_region(
            addr_of_mut!(bindings::iomem_resource),
            len as c_ulong,
            c"pmem_rs test".as_char_ptr(),
        )
    })?;

    // SAFETY: The region was just requested. It is released here, so that a test can request it.
    unsafe {
        let start = (*region).start;
        // It may be larger than `len`.
        let len = bindings::resource_size(region);
        bindings::__release_region(addr_of_mut!(bindings::iomem_resource), start, len);
        Ok(start)
    }
}

#[kunit_tests(pmem_rs_resource)]
mod tests {
    use super::*;

    const LEN: ResourceSize = 4 << 20;

    fn request(start: PhysAddr, len: ResourceSize) -> Result<MemRegion> {
        MemRegion::request(start, len, CString::try_from_fmt(fmt!("pmem_rs test"))?)
    }

    #[test]
    fn a_range_has_one_owner_at_a_time() -> Result {
        let start = free_range(LEN)?;
        let region = request(start, LEN)?;

        assert!(request(start, LEN).is_err_and(|err| err == EBUSY));
        assert!(request(start + LEN - 1, 1).is_err_and(|err| err == EBUSY));
        drop(region);
        request(start, LEN)?;
        Ok(())
    }

    // A PC has RAM at 1 MiB.
    #[cfg(CONFIG_X86 = "y")]
    #[test]
    fn ram_cannot_be_reserved() {
        assert!(request(1 << 20, 1).is_err_and(|err| err == EBUSY));
    }

    #[cfg(CONFIG_X86 = "y")]
    #[test]
    fn ram_is_found_wherever_it_is_in_a_range() -> Result {
        assert!(has_ram(&((1 << 20)..(1 << 20) + 1)));
        // On a PC, 0xa0000 to 1 MiB is no RAM.
        assert!(has_ram(&(0xa0000..(1 << 20) + 1)));
        assert!(!has_ram(&(0xa0000..1 << 20)));
        assert!(!has_ram(&((1 << 20)..1 << 20)));
        let start = free_range(LEN)?;
        assert!(!has_ram(&(start..start + LEN)));
        Ok(())
    }

    #[test]
    fn a_machine_without_legacy_pmem_has_no_range() {
        // The machine of this test has none.
        assert!(for_each_legacy_pmem(|_| Ok(())).is_err_and(|err| err == ENODEV));
    }

    #[test]
    fn a_region_contains_its_parts() -> Result {
        let start = free_range(LEN)?;
        let region = request(start, LEN)?;

        assert!(region.contains(start, LEN));
        assert!(region.contains(start + 4096, LEN - 4096));
        assert!(region.contains(start + LEN, 0));
        assert!(!region.contains(start, LEN + 1));
        assert!(!region.contains(start - 1, 1));
        assert!(!region.contains(start + 1, u64::MAX));
        Ok(())
    }
}
