// SPDX-License-Identifier: GPL-2.0

//! The memory of a device: a reserved physical range, its mapping, and its `struct page`s.
//!
//! The three have one owner ([`Memory`]), which refers to no device, so it can outlive the binding
//! that made it, for as long as its pages are in use. Disk and DAX device have references to it
//! ([`PmemRange`]).

use super::plain::geometry::{
    Span, //
    SECTOR_SHIFT,
};
use crate::abstractions::{
    kernel::{
        badblocks::Badblocks,
        dax,
        fs::dax::{
            self as fs_dax,
            Pagemap, //
        },
        memremap::{
            Memremap,
            PagemapConfig,
            PagemapInner,
            PagemapOperations,
            PagemapRef,
            PagesInUse, //
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
    },
    kernel_ext::{
        io::resource::{
            MemRegion,
            RegionName, //
        },
        workqueue::OwnedQueue, //
    }, //
};
use core::ops::Range;
use kernel::{
    io::PhysAddr,
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    },
    time::Msecs, //
};

/// How the memory of a device is to be mapped.
pub enum Layout {
    /// With `struct page`s.
    Pages(PagemapConfig),
    /// Without `struct page`s, so without DAX; all of the range is data.
    Plain,
}

/// The owner of a reserved and mapped range of persistent memory.
pub enum Memory {
    /// With `struct page`s.
    Pages(Pagemap<FailureHandler>),
    /// Without.
    Plain(Counted<Memremap>),
}

/// The owner of memory that is not translated any more.
pub enum Closed {
    /// With `struct page`s.
    Pages(fs_dax::Closed<FailureHandler>),
    /// Without.
    Plain(Counted<Memremap>),
}

/// The owner of memory that was taken away from all files.
pub enum Revoked {
    /// With `struct page`s.
    Pages(fs_dax::Revoked<FailureHandler>),
    /// Without.
    Plain(Counted<Memremap>),
}

impl Memory {
    /// Maps a reserved range as `layout` says. Memory that fails later is added to `badblocks`,
    /// which counts from the start of the data. References to files are put on `queue` when the
    /// memory is taken away. May sleep.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the layout does not fit the range, [`ENOMEM`], and what the mapping of memory
    /// fails with.
    pub fn new(
        reservation: MemRegion,
        layout: Layout,
        node: Node,
        badblocks: Arc<Badblocks>,
        queue: Ref<OwnedQueue>,
    ) -> Result<Self> {
        Ok(match layout {
            Layout::Pages(config) => {
                let handler = FailureHandler {
                    badblocks,
                    dax: SetOnce::new(),
                };
                Self::Pages(Pagemap::new(config, reservation, node, handler, queue)?)
            }
            Layout::Plain => Self::Plain(Counted::new(Memremap::new(reservation)?)?),
        })
    }

    /// Returns a reference to the memory, which keeps it; none once it is being taken away.
    pub fn reference(&self) -> Option<PmemRange> {
        Some(match self {
            Self::Pages(pages) => PmemRange::Pages(pages.reference()?),
            Self::Plain(plain) => PmemRange::Plain(plain.try_get()?),
        })
    }

    /// Returns whether the `struct page`s are on the media.
    pub fn memmap_is_on_media(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.memmap_is_on_media(),
            Self::Plain(_) => false,
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

    /// Returns the name of the reservation in `/proc/iomem`.
    pub fn reservation_name(&self) -> &Arc<RegionName> {
        match self {
            Self::Pages(pages) => pages.reservation_name(),
            Self::Plain(plain) => plain.reservation_name(),
        }
    }

    /// As [`PagemapInner::refuse_mappings`].
    pub fn refuse_mappings(&self) {
        if let Self::Pages(pages) = self {
            pages.refuse_mappings();
        }
    }

    /// As [`Pagemap::close_to_mappings`].
    pub fn close_to_mappings(&mut self) -> fs_dax::Walked {
        match self {
            Self::Pages(pages) => pages.close_to_mappings(),
            Self::Plain(plain) => {
                plain.kill();
                fs_dax::Walked::default()
            }
        }
    }

    /// As [`Pagemap::close`].
    pub fn close(self) -> Closed {
        match self {
            Self::Pages(pages) => Closed::Pages(pages.close()),
            Self::Plain(plain) => Closed::Plain(plain),
        }
    }
}

impl Closed {
    /// As [`fs_dax::Closed::revoke`].
    pub fn revoke(self) -> (Revoked, fs_dax::Walked) {
        match self {
            Self::Pages(pages) => {
                let (pages, walked) = pages.revoke();
                (Revoked::Pages(pages), walked)
            }
            Self::Plain(plain) => (Revoked::Plain(plain), fs_dax::Walked::default()),
        }
    }
}

impl Revoked {
    /// As [`fs_dax::Revoked::revoke`].
    pub fn revoke(&mut self) -> fs_dax::Walked {
        match self {
            Self::Pages(pages) => pages.revoke(),
            Self::Plain(_) => fs_dax::Walked::default(),
        }
    }

    /// As [`fs_dax::Revoked::first_user`].
    pub fn first_user(&mut self) -> Option<fs_dax::User> {
        match self {
            Self::Pages(pages) => pages.first_user(),
            Self::Plain(plain) => (!plain.is_unused()).then_some(fs_dax::User::Reference),
        }
    }

    /// As [`fs_dax::Revoked::wait_for`].
    pub fn wait_for(&mut self, user: fs_dax::User, limit: Msecs) {
        match self {
            Self::Pages(pages) => pages.wait_for(user, limit),
            Self::Plain(plain) => {
                plain.wait_timeout(limit);
            }
        }
    }

    /// The `struct page`s, if there are any.
    pub fn pages(&self) -> Option<&PagemapInner<FailureHandler>> {
        match self {
            Self::Pages(pages) => Some(pages),
            Self::Plain(_) => None,
        }
    }

    /// Takes mapping and reservation away, after waiting for at most `limit` milliseconds for
    /// references to files to be put. May sleep.
    ///
    /// # Errors
    ///
    /// If there is a user, the memory is returned.
    pub fn unmap(self, limit: Msecs) -> Result<(), Self> {
        match self {
            Self::Pages(pages) => {
                pages.wait_put(limit);
                pages.unmap().map_err(Self::Pages)
            }
            Self::Plain(plain) => {
                drop(plain);
                Ok(())
            }
        }
    }
}

/// A reference to the memory of a device, which keeps it.
///
/// Offsets are those of the data: whatever lies before it in the range is not accessible.
pub enum PmemRange {
    /// With `struct page`s.
    Pages(PagemapRef<FailureHandler>),
    /// Without.
    Plain(Ref<Memremap>),
}

impl PmemRange {
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

    /// Returns a reference to the `struct page`s, without which there is no DAX.
    pub fn pages(&self) -> Option<PagemapRef<FailureHandler>> {
        match self {
            Self::Pages(pages) => Some(pages.clone()),
            Self::Plain(_) => None,
        }
    }

    /// Returns whether the memory has `struct page`s, so that DAX is possible.
    pub fn has_pages(&self) -> bool {
        matches!(self, Self::Pages(_))
    }

    /// Returns the span that `find` makes for the size of the data, and its memory, if all of it is
    /// within the data.
    #[inline]
    pub fn find(&self, find: impl FnOnce(usize) -> Option<Span>) -> Option<(Span, PmemSlice<'_>)> {
        let data = self.slice();
        let span = find(data.len())?;

        Some((span, data.get(span.offset, span.len)?))
    }

    /// Returns the span that `find` makes for the size of the data, and its memory, to be written
    /// to, if all of it is within the data and no page of the data has failed.
    #[inline]
    pub fn find_writable(
        &self,
        find: impl FnOnce(usize) -> Option<Span>,
    ) -> Option<(Span, WritableSlice<'_>)> {
        let data = match self {
            Self::Pages(pages) => pages.writable_all()?,
            Self::Plain(plain) => plain.writable(),
        };
        let span = find(data.len())?;

        Some((span, data.get(span.offset, span.len)?))
    }

    /// Returns the memory of `span`, to be written to, if all of it is within the data and no page
    /// of it has failed.
    pub fn writable(&self, span: Span) -> Option<WritableSlice<'_>> {
        match self {
            Self::Pages(pages) => pages.writable(span.offset, span.len),
            Self::Plain(plain) => plain.writable().get(span.offset, span.len),
        }
    }

    /// Returns whether no page has failed.
    #[inline]
    pub fn is_sound(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.none_failed(),
            Self::Plain(_) => true,
        }
    }

    /// Returns the offset of the first page that the `len` bytes from `offset` on are in that has
    /// failed; it may be one before `offset`.
    pub fn first_failed(&self, offset: usize, len: usize) -> Option<usize> {
        match self {
            Self::Pages(pages) => pages.first_failed(offset, len),
            Self::Plain(_) => None,
        }
    }

    /// Returns whether a page that the `len` bytes from `offset` on are in has failed, so that it
    /// must not be written to.
    pub fn has_failed(&self, offset: usize, len: usize) -> bool {
        self.first_failed(offset, len).is_some()
    }

    /// Makes the pages that are wholly in the `len` bytes from `offset` on usable again, after the
    /// poison in them was cleared. May sleep.
    ///
    /// # Errors
    ///
    /// As [`PagemapInner::unpoison`].
    pub fn unpoison(&self, offset: usize, len: usize) -> Result {
        match self {
            Self::Pages(pages) => pages.unpoison(offset, len),
            Self::Plain(_) => Ok(()),
        }
    }

    /// Returns how much of the data was ever exposed, in bytes.
    pub fn exposed_bytes(&self) -> u64 {
        match self {
            Self::Pages(pages) => pages.exposed_bytes(),
            Self::Plain(_) => 0,
        }
    }

    /// As [`PagemapInner::count_used`].
    pub fn count_used(&self, first: u64, limit: u64) -> (PagesInUse, Option<u64>) {
        match self {
            Self::Pages(pages) => pages.count_used(first, limit),
            Self::Plain(_) => (PagesInUse::default(), None),
        }
    }
}

/// Keeps failed memory from being read, and reports it to the file system or mapped device that
/// uses it.
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

    fn record_failure(&self, offset: u64, len: u64) {
        // For readers of the list. The provider may never say that the memory is bad, or may say so
        // of a few bytes only, while no byte of the page is mapped any more. That the list is full
        // changes nothing: the range has a list of its own.
        let _ = self
            .badblocks
            .add(offset >> SECTOR_SHIFT, len.div_ceil(1 << SECTOR_SHIFT));
    }
}
