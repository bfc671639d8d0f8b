// SPDX-License-Identifier: GPL-2.0

//! Memory for the tests of several files.

use super::states::Pagemap;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    memremap::{
        Failure,
        PagemapConfig,
        PagemapInner,
        PagemapOperations, //
    },
    numa::Node,
    percpu_ref::Counted, //
};
use crate::abstractions::kernel_ext::{
    io::resource::{
        free_range,
        MemRegion, //
    },
    workqueue::OwnedQueue, //
};
use core::ops::Deref;
use kernel::{
    io::ResourceSize,
    prelude::*,
    str::CString, //
};

/// A pgmap and the queue that it needs.
pub(in crate::abstractions) struct TestPagemap<T: PagemapOperations> {
    // Dropped first: the drop of the queue waits for the pgmap.
    pub(in crate::abstractions) pages: Pagemap<T>,
    pub(in crate::abstractions) queue: Counted<OwnedQueue>,
}

impl<T: PagemapOperations> TestPagemap<T> {
    /// Maps a range.
    pub(in crate::abstractions) fn new(
        config: PagemapConfig<'_>,
        reservation: MemRegion,
        ops: T,
    ) -> Result<Self> {
        let queue = Counted::new(OwnedQueue::for_io(c"pmem_rs_test")?)?;
        let reference = queue.try_get().ok_or(EINVAL)?;

        Ok(Self {
            pages: Pagemap::new(config, reservation, Node(0), Ok::<_, Error>(ops), reference)?,
            queue,
        })
    }
}

impl<T: PagemapOperations> Deref for TestPagemap<T> {
    type Target = PagemapInner<T>;

    fn deref(&self) -> &PagemapInner<T> {
        &self.pages
    }
}

/// Memory whose failures are not handled.
pub(in crate::abstractions) struct Silent;

impl PagemapOperations for Silent {
    fn memory_failure(&self, _failure: &Failure<'_>) -> Result {
        Err(EOPNOTSUPP)
    }

    fn record_failure(&self, _offset: u64, _len: u64) {}
}

/// A section of the memory map, which all architectures can map.
pub(in crate::abstractions) const LEN: ResourceSize = 128 << 20;

/// Makes pages of a range without memory. It must not be read or written.
pub(in crate::abstractions) fn pages() -> Result<TestPagemap<Silent>> {
    pages_with(|config| config)
}

/// As [`pages`], but the `struct page`s are said to be on the medium.
pub(in crate::abstractions) fn pages_on_medium() -> Result<TestPagemap<Silent>> {
    pages_with(PagemapConfig::treated_as_on_medium)
}

fn pages_with(
    change: impl FnOnce(PagemapConfig<'static>) -> PagemapConfig<'static>,
) -> Result<TestPagemap<Silent>> {
    let start = free_range(LEN)?;
    let name = CString::try_from_fmt(fmt!("pmem_rs test"))?;

    TestPagemap::new(
        change(PagemapConfig::new(start, LEN)?),
        MemRegion::request(start, LEN, name)?,
        Silent,
    )
}
