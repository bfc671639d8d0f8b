// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: a reserved physical range, its mapping, and its `struct page`s.
//!
//! The three are one object with a life of its own. It owns all that it uses and refers to no
//! device, so it can outlive the binding that made it, for as long as somebody uses its pages.

use super::geometry::data_area;
use crate::abstractions::{
    dax::{
        self,
        Extent,
        ReadLocked, //
    },
    ioport::MemRegion,
    memremap::{
        Memremap,
        Node,
        Pagemap,
        PagemapConfig,
        PagemapOperations, //
    },
    pmem::PmemSlice, //
};
use core::ops::Range;
use kernel::{
    io::PhysAddr,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        SetOnce, //
    },
};

/// How the memory of a device is to be mapped.
pub enum Layout {
    /// With `struct page`s. The data starts `data_offset` bytes into the pages.
    Pages {
        /// The range that gets pages, and where these live.
        config: PagemapConfig,
        /// Where the data starts in it, in bytes.
        data_offset: u64,
    },
    /// Without `struct page`s, so without DAX; all of it is data.
    Plain(Range<PhysAddr>),
}

/// A reserved and mapped range of persistent memory.
///
/// Offsets are those of the data: whatever lies before it in the range is not accessible.
pub struct PmemRange {
    // In the order in which they go: the pages before the mapping's address space is free for
    // others.
    mapping: Mapping,
    _reservation: MemRegion,
    phys: Range<PhysAddr>,
    data_offset: usize,
    size: usize,
}

enum Mapping {
    Pages(Pagemap<FailureHandler>),
    Plain(Memremap),
}

impl PmemRange {
    /// Reserves all of `reserve` under `name`, and maps what `layout` says.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if somebody else has reserved a part of the range, [`EINVAL`] if there is no room
    /// for data, [`ENOMEM`], and what the mapping of memory fails with.
    pub fn new(
        reserve: Range<PhysAddr>,
        name: CString,
        layout: Layout,
        node: Node,
    ) -> Result<Self> {
        let len = reserve.end.checked_sub(reserve.start).ok_or(EINVAL)?;
        let reservation = MemRegion::request(reserve.start, len, name)?;

        let (mapping, phys, data_offset) = match layout {
            Layout::Pages {
                config,
                data_offset,
            } => {
                let phys = data_area(config.start(), config.len(), data_offset).ok_or(EINVAL)?;
                let handler = FailureHandler {
                    data_offset,
                    dax: SetOnce::new(),
                };
                let pages = Pagemap::new(config, node, handler)?;
                (Mapping::Pages(pages), phys, data_offset)
            }
            Layout::Plain(range) => {
                let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
                let plain = Memremap::new(range.start, len)?;
                (Mapping::Plain(plain), range, 0)
            }
        };
        let size = phys.end.checked_sub(phys.start).ok_or(EINVAL)?;

        Ok(Self {
            mapping,
            _reservation: reservation,
            phys,
            data_offset: usize::try_from(data_offset)?,
            size: usize::try_from(size)?,
        })
    }

    /// Returns the size of the data in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the physical range of the data.
    pub fn phys(&self) -> &Range<PhysAddr> {
        &self.phys
    }

    /// Returns whether the memory has `struct page`s, so that DAX is possible.
    pub fn has_pages(&self) -> bool {
        matches!(self.mapping, Mapping::Pages(_))
    }

    /// Returns the `len` bytes from `offset` on, if all are within the data.
    #[inline]
    pub fn data(&self, offset: usize, len: usize) -> Option<PmemSlice<'_>> {
        let slice = match &self.mapping {
            Mapping::Pages(pages) => pages.slice(),
            Mapping::Plain(plain) => plain.slice(),
        };

        slice.get(self.data_offset.checked_add(offset)?, len)
    }

    /// Returns the whole pages of the `len` bytes from `offset` on, for the DAX core, if all are
    /// within the data.
    #[inline]
    pub fn extent<'g>(
        &'g self,
        locked: ReadLocked<'g>,
        offset: usize,
        len: usize,
    ) -> Option<Extent<'g>> {
        match &self.mapping {
            Mapping::Pages(pages) => {
                pages.extent(locked, self.data_offset.checked_add(offset)?, len)
            }
            Mapping::Plain(_) => None,
        }
    }

    /// Makes the pages of the `len` bytes from `offset` on usable again, after the poison in them
    /// was cleared. May sleep.
    pub fn unpoison(&self, offset: usize, len: usize) {
        if let (Mapping::Pages(pages), Some(offset)) =
            (&self.mapping, self.data_offset.checked_add(offset))
        {
            pages.unpoison(offset, len);
        }
    }

    /// Lets failures of the memory be reported to the users of a DAX device.
    ///
    /// The device is put only when the pages are gone, since a failure may be reported until then.
    pub fn set_dax(&self, dax: Arc<dax::Handle>) {
        if let Mapping::Pages(pages) = &self.mapping {
            pages.ops().dax.populate(dax);
        }
    }
}

/// Reports failed memory to the file system or mapped device that uses it.
struct FailureHandler {
    data_offset: u64,
    dax: SetOnce<Arc<dax::Handle>>,
}

impl PagemapOperations for FailureHandler {
    fn memory_failure(&self, offset: u64, len: u64, flags: c_int) -> Result {
        // What is before the data is of no concern to the users of the device; for that, and before
        // there is a device, the memory management knows what to do.
        let offset = offset.checked_sub(self.data_offset).ok_or(EOPNOTSUPP)?;
        let dax = self.dax.as_ref().ok_or(EOPNOTSUPP)?;

        dax.notify_failure(offset, len, flags)
    }
}
