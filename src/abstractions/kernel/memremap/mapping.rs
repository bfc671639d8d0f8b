// SPDX-License-Identifier: GPL-2.0

//! Mappings without `struct page`s.

use super::data_range::DataRange;
use crate::abstractions::bindings;
use crate::abstractions::kernel::pmem_slice::{
    PmemSlice,
    WritableSlice, //
};
use crate::abstractions::kernel_ext::io::resource::{
    MemRegion,
    PmemResource,
    RegionName, //
};
use core::{
    ops::Range,
    ptr::NonNull, //
};
use kernel::{
    io::PhysAddr,
    prelude::*,
    str::CString,
    sync::Arc, //
};

/// A mapping of a physical range that has no `struct page`s.
///
/// # Examples
///
/// ```no_run
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel::memremap::Memremap;
/// use pmem_rs::abstractions::nvdimm::Namespace;
///
/// fn wipe(namespace: &Namespace<'_>, name: CString) -> Result {
///     let mapping = Memremap::new(namespace.reserve(name)?, &namespace.range()?)?;
///     mapping.writable().zero();
///     // Drops mapping and reservation.
///     Ok(())
/// }
/// ```
///
/// # Invariants
///
/// `memremap` mapped the `len` bytes from `data_start` on, which are in `reservation`, at `addr`.
pub struct Memremap {
    addr: NonNull<u8>,
    data_start: PhysAddr,
    len: usize,
    // Dropped after the mapping.
    reservation: MemRegion,
}

// SAFETY: A mapping may be used and unmapped by any thread.
unsafe impl Send for Memremap {}

// SAFETY: A shared reference only makes slices.
unsafe impl Sync for Memremap {}

impl Memremap {
    /// Maps the part `range` of a reserved range as the architecture maps persistent memory
    /// (`ARCH_MEMREMAP_PMEM`). May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `range` is empty, or is not all in the reservation.
    /// - [`ENXIO`] if it cannot be mapped.
    pub fn new(reservation: MemRegion, range: &Range<PhysAddr>) -> Result<Self> {
        let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        if len == 0 || !reservation.contains(range.start, len) {
            return Err(EINVAL);
        }
        let len = usize::try_from(len)?;

        // SAFETY: The C function either maps the range or fails; it is reserved, so it is not RAM.
        let addr =
            unsafe { bindings::memremap(range.start, len, bindings::ARCH_MEMREMAP_PMEM as usize) };

        // INVARIANT: `memremap` has succeeded.
        Ok(Self {
            addr: NonNull::new(addr.cast()).ok_or(ENXIO)?,
            data_start: range.start,
            len,
            reservation,
        })
    }

    /// Returns the physical address of the memory.
    pub fn data_start(&self) -> PhysAddr {
        self.data_start
    }

    /// Returns the physical range of the `len` bytes from `offset` on, or [`None`] if they are not
    /// all in the memory.
    pub fn data_range(&self, offset: usize, len: usize) -> Option<DataRange<'_>> {
        // SAFETY: By the type invariant the data are mapped for as long as `self` lives.
        unsafe { DataRange::new(self.data_start, self.len, offset, len) }
    }

    /// Returns all of the memory.
    #[inline]
    pub fn slice(&self) -> PmemSlice<'_> {
        // SAFETY: By the type invariant the bytes are mapped for as long as `self` lives.
        unsafe { PmemSlice::from_raw_parts(self.addr, self.len) }
    }

    /// Returns all of the memory, to be written to.
    ///
    /// A page that fails is not taken out of this mapping, but out of the linear mapping.
    #[inline]
    pub fn writable(&self) -> WritableSlice<'_> {
        // SAFETY: Only x86 takes pages out, and only of the linear mapping (`set_mce_nospec()`).
        // On x86 `memremap()` of memory that is not RAM makes another mapping.
        unsafe { WritableSlice::new(self.slice()) }
    }

    /// Returns the name of the reservation in `/proc/iomem`.
    pub fn reservation_name(&self) -> &Arc<RegionName> {
        self.reservation.name()
    }
}

/// Copies the first bytes of a resource to `buffer`. Reserves and maps them meanwhile, as `name`.
/// May sleep.
///
/// # Errors
///
/// - [`EBUSY`] if any of the bytes is reserved.
/// - [`EINVAL`] if the resource has fewer bytes, or `buffer` has none.
/// - [`ENXIO`] if the bytes cannot be mapped.
/// - [`ENODATA`] if the medium raised a machine check.
///
/// # Examples
///
/// ```no_run
/// use kernel::prelude::*;
/// use kernel::str::CString;
/// use pmem_rs::abstractions::kernel::memremap;
/// use pmem_rs::abstractions::kernel_ext::io::resource::PmemResource;
///
/// fn has_xfs(memory: &PmemResource<'_>) -> Result<bool> {
///     let mut bytes = [0; 4];
///     memremap::read_resource(memory, CString::try_from_fmt(fmt!("look"))?, &mut bytes)?;
///     Ok(&bytes == b"XFSB")
/// }
/// ```
pub fn read_resource(resource: &PmemResource<'_>, name: CString, buffer: &mut [u8]) -> Result {
    let start = resource.range().start;
    let end = start.checked_add(buffer.len() as u64).ok_or(EINVAL)?;
    resource.part(start..end).ok_or(EINVAL)?;

    let reservation = MemRegion::request(start, buffer.len() as u64, name)?;
    Memremap::new(reservation, &(start..end))?
        .slice()
        .read(buffer)
}

impl Drop for Memremap {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the mapping is ours. Slices borrow from `self`, so none is
        // left.
        unsafe { bindings::memunmap(self.addr.as_ptr().cast()) };
    }
}
