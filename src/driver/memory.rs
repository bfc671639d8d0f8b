// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: a reserved physical range, its mapping, and its `struct page`s.
//!
//! The three have one owner, [`Memory`]. It refers to no device, so it can outlive the binding
//! until its pages are not in use any more. The disk and the DAX device have references,
//! [`MemoryRef`].

use super::{
    pagemap_data::PagemapData,
    plain::geometry::Span, //
};
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    fs::dax::{
        self as fs_dax,
        Pagemap, //
    },
    memremap::{
        DataRange,
        Memremap,
        PagemapConfig,
        PagemapRef, //
    },
    numa::Node,
    percpu_ref::{
        Counted,
        Ref, //
    },
    pmem_slice::{
        PmemSlice,
        WritableSlice, //
    }, //
};
use crate::abstractions::kernel_ext::{
    io::resource::{
        MemRegion,
        RegionName, //
    },
    workqueue::OwnedQueue, //
};
use core::ops::Range;
use kernel::{
    io::PhysAddr,
    prelude::*,
    str::CString,
    sync::Arc,
    time::Msecs, //
};

/// How the memory of a device is to be mapped.
pub enum MapKind<'bound> {
    /// With `struct page`s.
    Pages(PagemapConfig<'bound>),
    /// Without `struct page`s, so without DAX. The addresses are those of the data.
    WithoutPages(Range<PhysAddr>),
}

/// A mapping without `struct page`s, and its bad sectors.
#[pin_data]
pub struct MemoryWithoutPages {
    mapping: Memremap,
    #[pin]
    badblocks: Badblocks,
}

// Not inlined: then the path of memory with pages has no instructions for this one.
impl MemoryWithoutPages {
    #[inline(never)]
    fn slice(&self) -> PmemSlice<'_> {
        self.mapping.slice()
    }

    #[inline(never)]
    fn writable(&self) -> (WritableSlice<'_>, &Badblocks) {
        (self.mapping.writable(), &self.badblocks)
    }

    #[inline(never)]
    fn badblocks(&self) -> &Badblocks {
        &self.badblocks
    }
}

/// Memory with `struct page`s, or without.
pub enum Backing<P, M = Counted<MemoryWithoutPages>> {
    /// With `struct page`s.
    Pages(P),
    /// Without.
    WithoutPages(M),
}

/// The owner of a reserved and mapped range of persistent memory.
pub type Memory = Backing<Pagemap<PagemapData>>;

/// The owner of memory that cannot be translated any more.
pub type Closed = Backing<fs_dax::Closed<PagemapData>>;

/// The owner of memory that was revoked from all files.
pub type Revoked = Backing<fs_dax::Revoked<PagemapData>>;

/// A reference that keeps the memory of a device.
///
/// Offsets count from the start of the data. Metadata before the data is not accessible.
pub type MemoryRef = Backing<PagemapRef<PagemapData>, Ref<MemoryWithoutPages>>;

impl<P, M> Backing<P, M> {
    /// Returns the owner of the `struct page`s, or the reference to them, if there are any.
    #[inline(always)]
    pub fn pages(&self) -> Option<&P> {
        match self {
            Self::Pages(pages) => Some(pages),
            Self::WithoutPages(_) => None,
        }
    }
}

impl Memory {
    /// Maps a reserved range of the device `name` as `kind` says. May sleep.
    ///
    /// References to files are put on `queue` when the memory is revoked.
    pub fn new(
        name: CString,
        reservation: MemRegion,
        kind: MapKind<'_>,
        node: Node,
        queue: Ref<OwnedQueue>,
    ) -> Result<Self> {
        Ok(match kind {
            MapKind::Pages(config) => Self::Pages(Pagemap::new(
                config,
                reservation,
                node,
                PagemapData::new(name),
                queue,
            )?),
            MapKind::WithoutPages(data) => {
                Self::WithoutPages(Counted::pin_init(try_pin_init!(MemoryWithoutPages {
                    mapping: Memremap::new(reservation, &data)?,
                    badblocks <- Badblocks::new(),
                }))?)
            }
        })
    }

    /// Returns a reference to the memory, or [`None`] after [`Self::close_to_mappings`].
    pub fn reference(&self) -> Option<MemoryRef> {
        Some(match self {
            Self::Pages(pages) => Backing::Pages(pages.reference()?),
            Self::WithoutPages(mapped) => Backing::WithoutPages(mapped.try_get()?),
        })
    }

    /// Returns the name of the reservation in `/proc/iomem`.
    pub fn reservation_name(&self) -> &Arc<RegionName> {
        match self {
            Self::Pages(pages) => pages.reservation_name(),
            Self::WithoutPages(mapped) => mapped.mapping.reservation_name(),
        }
    }

    /// As [`Pagemap::close_to_mappings`].
    pub fn close_to_mappings(&mut self) -> fs_dax::Walked {
        match self {
            Self::Pages(pages) => pages.close_to_mappings(),
            Self::WithoutPages(mapped) => {
                mapped.kill();
                fs_dax::Walked::default()
            }
        }
    }

    /// As [`Pagemap::unmapper`]. Memory without `struct page`s has no files.
    pub fn unmapper(&self) -> Option<fs_dax::Unmapper<PagemapData>> {
        self.pages()?.unmapper()
    }

    /// As [`Pagemap::close`].
    pub fn close(self) -> Closed {
        match self {
            Self::Pages(pages) => Backing::Pages(pages.close()),
            Self::WithoutPages(mapped) => Backing::WithoutPages(mapped),
        }
    }
}

impl Closed {
    /// As [`fs_dax::Closed::revoke`].
    pub fn revoke(self) -> (Revoked, fs_dax::Walked) {
        match self {
            Self::Pages(pages) => {
                let (pages, walked) = pages.revoke();
                (Backing::Pages(pages), walked)
            }
            Self::WithoutPages(mapped) => {
                (Backing::WithoutPages(mapped), fs_dax::Walked::default())
            }
        }
    }
}

impl Revoked {
    /// As [`fs_dax::Revoked::revoke`].
    pub fn revoke(&mut self) {
        if let Self::Pages(pages) = self {
            pages.revoke();
        }
    }

    /// As [`fs_dax::Revoked::first_user`].
    pub fn first_user(&mut self) -> Option<fs_dax::User> {
        match self {
            Self::Pages(pages) => pages.first_user(),
            Self::WithoutPages(mapped) => (!mapped.is_unused()).then_some(fs_dax::User::Reference),
        }
    }

    /// As [`fs_dax::Revoked::wait_for`].
    pub fn wait_for(&mut self, user: fs_dax::User, limit: Msecs) {
        match self {
            Self::Pages(pages) => pages.wait_for(user, limit),
            Self::WithoutPages(mapped) => {
                mapped.wait_timeout(limit);
            }
        }
    }

    /// Waits for at most `limit` milliseconds for references to files to be put, then frees the
    /// range. Returns the memory if it has a user. Sleeps.
    pub fn free(self, limit: Msecs) -> Result<(), Self> {
        match self {
            Self::Pages(pages) => {
                pages.wait_put(limit);
                pages.free().map_err(Self::Pages)
            }
            Self::WithoutPages(mapped) => {
                drop(mapped);
                Ok(())
            }
        }
    }
}

impl MemoryRef {
    /// Returns the bad sectors, from the start of the data. Memory that fails is added to them.
    #[inline]
    pub fn badblocks(&self) -> &Badblocks {
        match self {
            Self::Pages(pages) => &pages.ops().badblocks,
            Self::WithoutPages(mapped) => mapped.badblocks(),
        }
    }

    /// Returns the size of the data in bytes.
    #[inline]
    pub fn size(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.size(),
            Self::WithoutPages(mapped) => mapped.slice().len(),
        }
    }

    /// Returns the physical range of the data.
    pub fn physical_range(&self) -> Range<PhysAddr> {
        let start = match self {
            Self::Pages(pages) => pages.data_start(),
            Self::WithoutPages(mapped) => mapped.mapping.data_start(),
        };

        start..start.saturating_add(self.size() as u64)
    }

    /// Returns the physical range of `span`. [`None`] if it is not within the data.
    pub fn data_range(&self, span: Span) -> Option<DataRange<'_>> {
        match self {
            Self::Pages(pages) => pages.data_range(span.offset, span.len),
            Self::WithoutPages(mapped) => mapped.mapping.data_range(span.offset, span.len),
        }
    }

    /// Calls `span_in` with the size of the data, and returns the span and its memory for writing.
    /// [`None`] if the span is not within the data, any page of the data has ever failed, or the
    /// span is not known to have no bad sector ([`Badblocks::is_known_good`]).
    ///
    /// The size is an argument, so that the fast path reads address and size once.
    #[inline(always)]
    pub fn find_writable(
        &self,
        span_in: impl FnOnce(usize) -> Option<Span>,
    ) -> Option<(Span, WritableSlice<'_>)> {
        let (data, badblocks) = match self {
            Self::Pages(pages) => (pages.writable_all()?, &pages.ops().badblocks),
            Self::WithoutPages(mapped) => mapped.writable(),
        };
        let span = span_in(data.len())?;
        if !badblocks.is_known_good(span.offset as u64, span.len as u64) {
            return None;
        }

        Some((span, data.get(span.offset, span.len)?))
    }

    /// Calls `span_in` with the size of the data, and returns the span and its memory. [`None`] if
    /// the span is not within the data, any page of the data has ever failed, or the span is not
    /// known to have no bad sector.
    #[inline(always)]
    pub fn find_good(
        &self,
        span_in: impl FnOnce(usize) -> Option<Span>,
    ) -> Option<(Span, PmemSlice<'_>)> {
        let (data, badblocks) = match self {
            Self::Pages(pages) => (pages.readable_all()?, &pages.ops().badblocks),
            Self::WithoutPages(mapped) => (mapped.slice(), mapped.badblocks()),
        };
        let span = span_in(data.len())?;
        if !badblocks.is_known_good(span.offset as u64, span.len as u64) {
            return None;
        }

        Some((span, data.get(span.offset, span.len)?))
    }

    /// Returns whether the span is within the data.
    pub fn contains(&self, span: Span) -> bool {
        span.offset
            .checked_add(span.len)
            .is_some_and(|end| end <= self.size())
    }

    /// Returns the memory of `span` for reading. [`None`] if the span is not within the data, or a
    /// page of it has failed.
    pub fn readable(&self, span: Span) -> Option<PmemSlice<'_>> {
        match self {
            Self::Pages(pages) => pages.readable(span.offset, span.len),
            Self::WithoutPages(mapped) => mapped.mapping.slice().get(span.offset, span.len),
        }
    }

    /// Returns the memory of `span` for writing. [`None`] if the span is not within the data, or a
    /// page of it has failed.
    pub fn writable(&self, span: Span) -> Option<WritableSlice<'_>> {
        match self {
            Self::Pages(pages) => pages.writable(span.offset, span.len),
            Self::WithoutPages(mapped) => mapped.mapping.writable().get(span.offset, span.len),
        }
    }

    /// Returns the offset of the first failed page that `span` overlaps. If a run of failed pages
    /// begins before the span, returns the offset of the run.
    pub fn first_failed(&self, span: Span) -> Option<usize> {
        self.pages()?.first_failed(span.offset, span.len)
    }

    /// As
    /// [`PagemapInner::unpoison`](crate::abstractions::kernel::memremap::PagemapInner::unpoison).
    pub fn unpoison(&self, span: Span) -> Result {
        self.pages()
            .map_or(Ok(()), |pages| pages.unpoison(span.offset, span.len))
    }

    /// As
    /// [`PagemapInner::set_failed`](crate::abstractions::kernel::memremap::PagemapInner::set_failed).
    pub fn set_failed(&self, span: Span) -> Result {
        self.pages()
            .map_or(Ok(()), |pages| pages.set_failed(span.offset, span.len))
    }
}
