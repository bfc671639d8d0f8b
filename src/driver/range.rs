// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: a reserved physical range, its mapping, and its `struct page`s.
//!
//! The three are one object with a life of its own. It owns all that it uses and refers to no
//! device, so it can outlive the binding that made it, for as long as somebody uses its pages.

use super::geometry::{
    Span,
    SECTOR_SHIFT, //
};
use crate::abstractions::{
    badblocks::Badblocks,
    dax::{
        self,
        Gate, //
    },
    ioport::MemRegion,
    memremap::{
        Memremap,
        Node,
        Pagemap,
        PagemapConfig,
        PagemapOperations,
        PagesInUse,
        UsedPage, //
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
    /// With `struct page`s.
    Pages(PagemapConfig),
    /// Without `struct page`s, so without DAX; all of the range is data.
    Plain,
}

/// A reserved and mapped range of persistent memory.
///
/// Offsets are those of the data: whatever lies before it in the range is not accessible.
pub enum PmemRange {
    /// With `struct page`s.
    Pages(Pagemap<FailureHandler>),
    /// Without.
    Plain(Memremap),
}

/// A part of the data, where it is, and its memory.
#[derive(Clone, Copy)]
pub struct Area<'a> {
    span: Span,
    memory: PmemSlice<'a>,
}

impl<'a> Area<'a> {
    /// Returns where it is.
    #[inline]
    pub fn span(&self) -> Span {
        self.span
    }

    /// Returns its memory.
    #[inline]
    pub fn memory(&self) -> PmemSlice<'a> {
        self.memory
    }
}

impl PmemRange {
    /// Reserves `range` under `name`, and maps it as `layout` says. Memory that fails later is added to
    /// `badblocks`, which counts from the start of the data. May sleep.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if somebody else has reserved a part of the range, [`EINVAL`] if the layout does
    /// not fit it, [`ENOMEM`], and what the mapping of memory fails with.
    pub fn new(
        range: Range<PhysAddr>,
        name: CString,
        layout: Layout,
        node: Node,
        badblocks: Arc<Badblocks>,
    ) -> Result<Self> {
        let len = range.end.checked_sub(range.start).ok_or(EINVAL)?;
        let reservation = MemRegion::request(range.start, len, name)?;

        Ok(match layout {
            Layout::Pages(config) => {
                let handler = FailureHandler {
                    badblocks,
                    dax: SetOnce::new(),
                };
                Self::Pages(Pagemap::new(config, reservation, node, handler)?)
            }
            Layout::Plain => Self::Plain(Memremap::new(reservation)?),
        })
    }

    /// Returns all of the data.
    #[inline]
    fn slice(&self) -> PmemSlice<'_> {
        match self {
            Self::Pages(pages) => pages.slice(),
            Self::Plain(plain) => plain.slice(),
        }
    }

    /// Returns the size of the data in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        self.slice().len()
    }

    /// Returns the physical range of the data.
    pub fn phys(&self) -> Range<PhysAddr> {
        let start = match self {
            Self::Pages(pages) => pages.phys(),
            Self::Plain(plain) => plain.phys(),
        };

        start..start.saturating_add(self.size() as u64)
    }

    /// Returns the `struct page`s with their memory, without which there is no DAX.
    #[inline]
    pub fn pages(&self) -> Option<&Pagemap<FailureHandler>> {
        match self {
            Self::Pages(pages) => Some(pages),
            Self::Plain(_) => None,
        }
    }

    /// Returns what says who may still ask for pages, if there are any.
    pub fn gate(&self) -> Option<&Gate> {
        Some(self.pages()?.gate())
    }

    /// Returns whether the memory has `struct page`s, so that DAX is possible.
    pub fn has_pages(&self) -> bool {
        matches!(self, Self::Pages(_))
    }

    /// Returns the memory that a span describes, if all of it is within the data.
    #[inline]
    pub fn area(&self, span: Span) -> Option<Area<'_>> {
        self.area_in(|_| Some(span))
    }

    /// Returns the memory that the span describes which `find` makes for the size of the data, if all of it is
    /// within the data.
    #[inline]
    pub fn area_in(&self, find: impl FnOnce(usize) -> Option<Span>) -> Option<Area<'_>> {
        let data = self.slice();
        let span = find(data.len())?;
        let memory = data.get(span.offset, span.len)?;

        Some(Area { span, memory })
    }

    /// Returns whether no page has failed.
    #[inline]
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_sound(),
            Self::Plain(_) => true,
        }
    }

    /// Returns the offset of the first page that the `len` bytes from `offset` on are in that has failed; it
    /// may be one before `offset`.
    pub fn first_failed(&self, offset: usize, len: usize) -> Option<usize> {
        match self {
            Self::Pages(pages) => pages.first_failed(offset, len),
            Self::Plain(_) => None,
        }
    }

    /// Returns whether a page that the `len` bytes from `offset` on are in has failed, so that it must not be
    /// written to.
    pub fn has_failed(&self, offset: usize, len: usize) -> bool {
        self.first_failed(offset, len).is_some()
    }

    /// Makes the pages that are wholly in the `len` bytes from `offset` on usable again, after the
    /// poison in them was cleared. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Pagemap::unpoison`].
    pub fn unpoison(&self, offset: usize, len: usize) -> Result {
        match self {
            Self::Pages(pages) => pages.unpoison(offset, len),
            Self::Plain(_) => Ok(()),
        }
    }

    /// Returns the page frames of the data; none if there are no `struct page`s.
    pub fn frames(&self) -> Range<u64> {
        match self {
            Self::Pages(pages) => pages.frames(),
            Self::Plain(_) => 0..0,
        }
    }

    /// Returns whether the `struct page`s are on the media.
    pub fn memmap_is_on_media(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.memmap_is_on_media(),
            Self::Plain(_) => false,
        }
    }

    /// Returns whether anybody was ever told a page frame number.
    pub fn is_exposed(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_exposed(),
            Self::Plain(_) => false,
        }
    }

    /// Returns how much of the data was ever exposed, in bytes.
    pub fn exposed_bytes(&self) -> u64 {
        match self {
            Self::Pages(pages) => pages.exposed_bytes(),
            Self::Plain(_) => 0,
        }
    }

    /// Returns the first page from frame `from` on that somebody uses.
    pub fn first_used(&self, from: u64) -> Option<UsedPage<'_>> {
        match self {
            Self::Pages(pages) => pages.first_used(from),
            Self::Plain(_) => None,
        }
    }

    /// Counts the pages that are in use.
    pub fn count_used(&self) -> PagesInUse {
        match self {
            Self::Pages(pages) => pages.count_used(),
            Self::Plain(_) => PagesInUse::default(),
        }
    }

    /// Writes the CPU caches back for these page frames.
    pub fn write_back(&self, frames: Range<u64>) {
        if let Self::Pages(pages) = self {
            pages.write_back(frames);
        }
    }

    /// Says in `/proc/iomem` that the range is retired. If there is no memory for that, it is not said.
    pub fn mark_retired(&self) {
        let Ok(name) = CString::try_from_fmt(fmt!("{} (retired by pmem_rs)", self.name())) else {
            return;
        };
        match self {
            Self::Pages(pages) => pages.rename_reservation(name),
            Self::Plain(plain) => plain.rename_reservation(name),
        }
    }

    /// The name in `/proc/iomem`.
    fn name(&self) -> &CStr {
        match self {
            Self::Pages(pages) => pages.reservation_name(),
            Self::Plain(plain) => plain.reservation_name(),
        }
    }

    /// Lets failures of the memory be reported to the users of a DAX device.
    ///
    /// The device is put only when the pages are gone, since a failure may be reported until then.
    pub fn set_dax(&self, dax: Arc<dax::Handle>) {
        if let Self::Pages(pages) = self {
            pages.ops().dax.populate(dax);
        }
    }
}

/// Keeps failed memory from being read, and reports it to the file system or mapped device that uses it.
pub struct FailureHandler {
    badblocks: Arc<Badblocks>,
    dax: SetOnce<Arc<dax::Handle>>,
}

impl PagemapOperations for FailureHandler {
    fn memory_failure(&self, offset: u64, len: u64, flags: c_int) -> Result {
        // Before there is a device, the memory management knows what to do.
        let dax = self.dax.as_ref().ok_or(EOPNOTSUPP)?;

        dax.notify_failure(offset, len, flags)
    }

    fn has_failed(&self, offset: u64, len: u64) {
        // For those who read the list. The provider may never say that the memory is bad, or say so only of
        // a few bytes of a page none of which is mapped any more. If the list is full, that changes nothing:
        // the range itself knows.
        let _ = self
            .badblocks
            .add(offset >> SECTOR_SHIFT, len.div_ceil(1 << SECTOR_SHIFT));
    }
}
