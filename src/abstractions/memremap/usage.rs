// SPDX-License-Identifier: GPL-2.0

//! Who uses a page, as far as its folio says: whether it has references, and whether a page cache names it.
//!
//! What is said here is right for the moment of the look only. It is made with no lock, as the C code does.
//!
//! C header: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h)

use super::bindings;
use core::{
    marker::PhantomData,
    ops::Range,
    ptr::{
        addr_of,
        NonNull, //
    },
};
use kernel::{
    prelude::*,
    time::{
        msecs_to_jiffies,
        Msecs, //
    }, //
};

/// A page that somebody uses, and the rest of its folio.
///
/// What it says may be outdated when it arrives, if translations can still begin.
///
/// # Examples
///
/// ```no_run
/// use pmem_rs::abstractions::memremap::UsedPage;
///
/// /// Waits for a second. Whoever has the page need not be gone then.
/// fn wait(page: &UsedPage<'_>) {
///     if page.is_referenced() {
///         page.wait_idle(1000);
///     }
/// }
/// ```
///
/// # Invariants
///
/// `page` is the first page of a folio of a [`Pagemap`](super::Pagemap) that is borrowed for `'a`.
pub struct UsedPage<'a> {
    page: NonNull<bindings::page>,
    frames: Range<u64>,
    references: u32,
    _pages: PhantomData<&'a ()>,
}

impl UsedPage<'_> {
    /// # Safety
    ///
    /// See the type invariant.
    pub(super) unsafe fn new(
        page: NonNull<bindings::page>,
        frames: Range<u64>,
        references: u32,
    ) -> Self {
        // INVARIANT: By the safety requirements.
        Self {
            page,
            frames,
            references,
            _pages: PhantomData,
        }
    }

    /// Returns the page frames of the folio.
    pub fn frames(&self) -> Range<u64> {
        self.frames.clone()
    }

    /// Returns whether somebody has a reference: a page table, a pipe, a DMA engine. Otherwise it is
    /// only the page cache of a file that names the page.
    pub fn is_referenced(&self) -> bool {
        self.references != 0
    }

    /// Waits for the last reference to be put, for at most `limit` milliseconds. Sleeps.
    pub fn wait_idle(&self, limit: Msecs) {
        // SAFETY: By the type invariant the page is there.
        unsafe {
            bindings::wait_dax_page_idle_timeout(self.page.as_ptr(), msecs_to_jiffies(limit))
        };
    }
}

/// What the folio of a page says about who uses it.
#[derive(Clone, Copy)]
pub(super) struct Use {
    pub(super) folio: *mut bindings::folio,
    pub(super) references: u32,
    pub(super) has_mapping: bool,
    is_shared: bool,
}

impl Use {
    /// Looks at the folio that the page is in at the moment.
    ///
    /// # Safety
    ///
    /// The page frame must have a `struct page` of a [`Pagemap`](super::Pagemap), which does not go meanwhile.
    pub(super) unsafe fn of(pfn: c_ulong) -> Self {
        // SAFETY: By the safety requirements the page is there. Whether it is in a folio of several
        // pages is a word that is read at once, and so are the fields of the first one, as the C code
        // does, without a lock.
        unsafe {
            let folio = bindings::page_folio(bindings::pfn_to_page(pfn));
            let fields = addr_of!((*folio).__bindgen_anon_1.__bindgen_anon_1);

            Self {
                folio,
                references: bindings::folio_ref_count(folio).unsigned_abs(),
                has_mapping: !addr_of!((*fields).mapping).read_volatile().is_null(),
                is_shared: addr_of!((*fields).__bindgen_anon_2.share).read_volatile() != 0,
            }
        }
    }

    /// Returns whether the page cache of a file names the page.
    pub(super) fn is_named(&self) -> bool {
        self.has_mapping || self.is_shared
    }
}

/// How many pages are in use; see [`Pagemap::count_used`](super::Pagemap::count_used).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagesInUse {
    /// Pages that somebody has a reference to.
    pub referenced: u64,
    /// Pages that only the page cache of a file names.
    pub cached: u64,
}
