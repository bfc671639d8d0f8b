// SPDX-License-Identifier: GPL-2.0

//! Reservations in the physical address space.
//!
//! The kernel crate's `io::resource::Region` can only be requested from a `Resource` that a bus
//! device has; this one is for the range of a namespace, which has none. No range is taken from a
//! driver as numbers: a [`MemRegion`] comes from a namespace, and a [`PmemResource`] from the
//! firmware.
//!
//! C header: [`include/linux/ioport.h`](srctree/include/linux/ioport.h)

use crate::abstractions::bindings;
use core::{
    marker::PhantomData,
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

/// A reserved range of physical memory addresses, as `/proc/iomem` shows it.
///
/// It owns its name, so it may outlive what it was named after. It cannot overlap System RAM,
/// which is reserved from the start. The reservation is given up when this is dropped.
///
/// A mapping of a reservation can be written to. So only [`Namespace::reserve`] makes one, for the
/// range of the namespace.
///
/// [`Namespace::reserve`]: crate::abstractions::nvdimm::Namespace::reserve
///
/// # Examples
///
/// ```no_run
/// use kernel::str::CString;
/// use pmem_rs::abstractions::{
///     kernel_ext::io::resource::MemRegion,
///     nvdimm::Namespace, //
/// };
///
/// fn reserve(namespace: &Namespace<'_>) -> Result<MemRegion> {
///     namespace.reserve(CString::try_from_fmt(fmt!("{}", namespace.name()))?)
/// }
/// ```
///
/// A driver cannot reserve a range that it knows by its numbers:
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
/// `iomem_resource` has a busy region of `len` bytes at `start`, which is ours, is that of `name`,
/// and points to one of the names there.
pub struct MemRegion {
    start: PhysAddr,
    len: ResourceSize,
    name: Arc<RegionName>,
}

// SAFETY: A region may be used and released by any thread.
unsafe impl Send for MemRegion {}

// SAFETY: Through a shared reference only the names are accessible, which are `Sync`.
unsafe impl Sync for MemRegion {}

/// The name of a [`MemRegion`] in `/proc/iomem`.
///
/// It may outlive the region. It has no effect then.
///
/// # Invariants
///
/// `region` is that of a `MemRegion`, until it is released.
#[pin_data]
pub struct RegionName {
    /// Innermost; nothing is called with it held but the release of the region.
    #[pin]
    region: Mutex<Option<NonNull<bindings::resource>>>,
    name: CString,
    other_name: SetOnce<CString>,
}

// SAFETY: The region may be used by any thread, with the lock held.
unsafe impl Send for RegionName {}

// SAFETY: What changes is protected by the lock.
unsafe impl Sync for RegionName {}

impl RegionName {
    /// Gives the region another name. Only the first call has an effect. May sleep.
    pub fn set(&self, name: CString) {
        if !self.other_name.populate(name) {
            return;
        }
        let region = self.region.lock();
        if let (Some(name), Some(region)) = (self.other_name.as_ref(), *region) {
            // SAFETY: By the type invariant the region is there, as long as the lock is held. Both
            // names live for longer, so readers may see either.
            unsafe { addr_of_mut!((*region.as_ptr()).name).write_volatile(name.as_char_ptr()) };
        }
    }

    /// Returns the name that the region was made with.
    pub fn first(&self) -> &CStr {
        &self.name
    }
}

impl MemRegion {
    /// Reserves `len` bytes from `start` on.
    ///
    /// May sleep.
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

        // SAFETY: `iomem_resource` always exists. The region keeps a pointer to the name, whose
        // bytes are on the heap and live as long as the reservation does.
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
        // INVARIANT: The region has just been requested.
        *name.region.lock() = Some(region);

        Ok(Self { start, len, name })
    }

    /// Returns the name, which can be changed later.
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

    /// Returns whether the region has no bytes, which it never does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the `len` bytes from `start` on are all in the region.
    pub fn contains(&self, start: PhysAddr, len: ResourceSize) -> bool {
        start
            .checked_sub(self.start)
            .and_then(|offset| offset.checked_add(len))
            .is_some_and(|end| end <= self.len)
    }
}

impl Drop for MemRegion {
    fn drop(&mut self) {
        // The lock is held until the region is released.
        let mut region = self.name.region.lock();
        *region = None;
        // SAFETY: By the type invariant the region is ours to release. The name is dropped after
        // this.
        unsafe {
            bindings::__release_region(addr_of_mut!(bindings::iomem_resource), self.start, self.len)
        };
    }
}

/// A physical range of memory that a [region] can be made of, for `'a`. The firmware calls it
/// persistent ([`for_each_legacy_pmem`]), or it is a resource of a device that is bound for `'a`
/// ([`platform::memory`]).
///
/// It is not reserved; it may overlap another one, or System RAM ([`has_ram`]).
///
/// [region]: crate::abstractions::nvdimm::Bus::create_region
/// [`platform::memory`]: crate::abstractions::kernel_ext::platform::memory
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::kernel_ext::io::resource::PmemResource;
///
/// fn len(resource: &PmemResource<'_>) -> u64 {
///     let range = resource.range();
///     range.end.saturating_sub(range.start)
/// }
/// ```
///
/// A driver cannot make one of numbers:
///
/// ```compile_fail,E0624
/// use pmem_rs::abstractions::kernel_ext::io::resource::PmemResource;
///
/// fn at(start: u64, len: u64) -> PmemResource<'static> {
///     PmemResource::new(start..start.saturating_add(len))
/// }
/// ```
#[derive(Clone, Debug)]
pub struct PmemResource<'a> {
    range: Range<PhysAddr>,
    _device: PhantomData<&'a Device<Bound>>,
}

impl PmemResource<'_> {
    /// Makes a resource of what the kernel says about the firmware or a device.
    pub(in crate::abstractions) fn new(range: Range<PhysAddr>) -> Self {
        Self {
            range,
            _device: PhantomData,
        }
    }

    /// Returns the addresses.
    pub fn range(&self) -> Range<PhysAddr> {
        self.range.clone()
    }
}

/// Calls `f` with every range that the firmware (on x86 also `memmap=` on the command line) calls
/// persistent without describing an NVDIMM, in the order of their addresses. One that ends with the
/// last address of all is given without it.
///
/// # Errors
///
/// [`ENODEV`] if there is none. An error of `f` ends the walk.
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
    /// For `walk_iomem_res_desc` only: both must be valid, and `walk` be a `Walk<F>` that nothing
    /// else uses.
    unsafe extern "C" fn visit<'a, F: FnMut(PmemResource<'a>) -> Result>(
        resource: *mut bindings::resource,
        walk: *mut c_void,
    ) -> c_int {
        // SAFETY: By the safety requirements.
        let (walk, start, last) = unsafe {
            (
                &mut *walk.cast::<Walk<F>>(),
                (*resource).start,
                (*resource).end,
            )
        };

        walk.result = (walk.f)(PmemResource::new(start..last.saturating_add(1)));
        // Anything but zero ends the walk.
        c_int::from(walk.result.is_err())
    }

    let mut walk = Walk {
        f,
        // The result if nothing is visited.
        result: Err(ENODEV),
    };
    // SAFETY: The callback is that for the argument, which lives as long as the call. It is called
    // without a lock, with a copy of the resource.
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

/// Returns whether any part of a range is System RAM.
///
/// # Examples
///
/// ```
/// use pmem_rs::abstractions::kernel_ext::io::resource;
///
/// // No machine has as many addresses as there are numbers.
/// assert!(!resource::has_ram(&(1 << 62..(1 << 62) + 4096)));
/// ```
pub fn has_ram(range: &Range<PhysAddr>) -> bool {
    let Some(len) = range.end.checked_sub(range.start).filter(|len| *len != 0) else {
        return false;
    };

    // SAFETY: May be called for any range.
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

/// A range that nothing uses, for tests.
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

    // SAFETY: The region is ours. It is given back at once, for a test to take it.
    unsafe {
        let start = (*region).start;
        // It may be larger than was asked for.
        let len = bindings::resource_size(region);
        bindings::__release_region(addr_of_mut!(bindings::iomem_resource), start, len);
        Ok(start)
    }
}

#[kunit_tests(pmem_rs_ioport)]
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

    // On a PC there is RAM at 1 MiB.
    #[cfg(CONFIG_X86 = "y")]
    #[test]
    fn ram_cannot_be_reserved() {
        assert!(request(1 << 20, 1).is_err_and(|err| err == EBUSY));
    }

    #[cfg(CONFIG_X86 = "y")]
    #[test]
    fn ram_is_found_wherever_it_is_in_a_range() -> Result {
        assert!(has_ram(&((1 << 20)..(1 << 20) + 1)));
        // It begins there, on a PC.
        assert!(has_ram(&(0xa0000..(1 << 20) + 1)));
        assert!(!has_ram(&(0xa0000..1 << 20)));
        assert!(!has_ram(&((1 << 20)..1 << 20)));
        let start = free_range(LEN)?;
        assert!(!has_ram(&(start..start + LEN)));
        Ok(())
    }

    #[test]
    fn a_machine_without_legacy_pmem_is_said_to_have_none() {
        // The machine that this runs on is one.
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
