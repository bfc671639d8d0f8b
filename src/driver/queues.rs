// SPDX-License-Identifier: GPL-2.0

//! The work queues that all devices share.

use crate::abstractions::kernel::percpu_ref::Counted;
use crate::abstractions::kernel_ext::workqueue::OwnedQueue;
use kernel::prelude::*;

/// The work queues that all devices share.
///
/// There are several because work on one may wait for work on another. All but `files` have a
/// rescuer, so they make progress when no thread can be created for want of memory. Putting a
/// reference to a file may unmount a file system, which flushes queues without a rescuer; the
/// kernel warns if a queue with one does that. Unbind waits for `files` only if very many files are
/// in use.
pub struct Queues {
    /// Runs the teardown of devices.
    pub teardown: OwnedQueue,
    /// Kills DAX devices.
    pub kill_dax: OwnedQueue,
    /// Puts references to files.
    pub files: Counted<OwnedQueue>,
    /// Flushes regions for requests that do not wait for the flush.
    pub flush: OwnedQueue,
}

impl Queues {
    /// Creates the queues. May sleep.
    pub fn new() -> Result<Self> {
        Ok(Self {
            teardown: OwnedQueue::for_io(c"pmem_rs")?,
            kill_dax: OwnedQueue::for_io(c"pmem_rs_kill")?,
            files: Counted::new(OwnedQueue::new(c"pmem_rs_files")?)?,
            flush: OwnedQueue::for_io(c"pmem_rs_flush")?,
        })
    }
}
