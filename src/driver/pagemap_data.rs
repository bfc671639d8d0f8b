// SPDX-License-Identifier: GPL-2.0

//! The handler of memory failures of a device.

use super::plain::geometry::SECTOR_SHIFT;
use crate::abstractions::compat::error::code::EOPNOTSUPP;
use crate::abstractions::kernel::{
    badblocks::Badblocks,
    dax,
    memremap::{
        Failure,
        PagemapOperations, //
    },
};
use crate::abstractions::kernel_ext::{
    sync::atomic::read_once,
    tracepoint, //
};
use kernel::{
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SetOnce, //
    }, //
};

/// Adds failed memory to the badblocks, and reports it to the file system or mapped device that
/// uses it.
#[pin_data]
#[repr(C)]
pub struct PagemapData {
    /// The bad sectors, from the start of the data. They are the first field, so that requests find
    /// them in the cache line of the address of the data.
    #[pin]
    pub badblocks: Badblocks,
    dax: SetOnce<Arc<dax::Handle>>,
    /// Writes are refused. A copy of the flag of the disk, for leases.
    read_only: Atomic<bool>,
    /// The name of the device, for tracepoints.
    name: CString,
}

impl PagemapData {
    /// Creates a handler with an empty list of bad sectors, for the device `name`.
    pub fn new(name: CString) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            badblocks <- Badblocks::new(),
            dax: SetOnce::new(),
            read_only: Atomic::new(false),
            name,
        })
    }

    /// Sets the DAX device whose holder is notified of failures.
    ///
    /// The handle is put when the pages are freed, since a failure may be reported until then.
    pub fn set_dax(&self, dax: Arc<dax::Handle>) {
        self.dax.populate(dax);
    }

    /// Refuses or permits writes by leases.
    pub fn set_read_only(&self, read_only: bool) {
        self.read_only.store(read_only, Relaxed);
    }
}

impl PagemapOperations for PagemapData {
    fn memory_failure(&self, failure: &Failure<'_>) -> Result {
        // Without a DAX device the memory management handles the failure alone.
        let dax = self.dax.as_ref().ok_or(EOPNOTSUPP)?;

        let result = dax.notify_failure(failure);
        tracepoint::memory_failure(&self.name, failure.offset(), failure.len(), result);
        result
    }

    fn record_failure(&self, offset: u64, len: u64) {
        // The provider may not report the failure, or only a few bytes of the page, although all of
        // the page is unmapped. Nothing is lost if the badblocks are full: the pgmap records failed
        // pages too, and reads check both.
        let _ = self
            .badblocks
            .add(offset >> SECTOR_SHIFT, len.div_ceil(1 << SECTOR_SHIFT));
    }

    fn is_bad(&self, offset: u64, len: u64) -> bool {
        if self.badblocks.is_known_good(offset, len) {
            return false;
        }
        let first = offset >> SECTOR_SHIFT;
        let end = offset.saturating_add(len).div_ceil(1 << SECTOR_SHIFT);

        self.badblocks
            .check(first, end.saturating_sub(first))
            .is_some()
    }

    fn is_read_only(&self) -> bool {
        read_once(&self.read_only)
    }

    fn exposed(&self, offset: u64, len: u64) {
        tracepoint::expose(&self.name, offset, len);
    }
}
