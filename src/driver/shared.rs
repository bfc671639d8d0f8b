// SPDX-License-Identifier: GPL-2.0

//! The state that all devices share.

use super::{
    except_list::ExceptList,
    registry::Registry, //
};
use crate::abstractions::kernel::percpu_ref::Counted;
use crate::abstractions::kernel_ext::{
    module::Global,
    workqueue::OwnedQueue, //
};
use kernel::{
    prelude::*,
    sync::SetOnce, //
};

/// Installed from before the first device is bound until after the last one is unbound.
///
/// Probe takes a reference, and gives it to the objects that it creates.
pub static SHARED: Global<Shared> = Global::new();

/// The state that all devices share.
#[pin_data]
pub struct Shared {
    /// The work queues.
    pub queues: Queues,
    /// The devices, from bind until their range is free.
    #[pin]
    pub devices: Registry,
    /// The namespaces that are left to other drivers.
    #[pin]
    pub except_list: ExceptList,
    /// The system is being rebooted or switched off. Set once.
    pub going_down: SetOnce<()>,
}

impl Shared {
    /// Creates the queues, an empty registry, and the list of the parameter `except`. Fails if an
    /// entry of that list is malformed. May sleep.
    pub fn new() -> Result<Counted<Self>> {
        let queues = Queues::new()?;
        let except_list = ExceptList::new()?;

        Counted::pin_init(try_pin_init!(Self {
            queues,
            devices <- Registry::new(),
            except_list <- except_list,
            going_down: SetOnce::new(),
        }))
    }
}

/// The work queues. There are several because work on one may wait for work on another.
///
/// All but `files` and `suspend` have a rescuer, so they make progress while memory is too short to
/// create a thread. Work on `files` and `suspend` may unmount a file system, which flushes queues
/// without a rescuer. The kernel warns if work on a queue with a rescuer does that. Unbind waits
/// for `files` for at most 1 s at a time, or longer if no slot for a reference is free
/// (`InodePool`). A suspension is one work item until its end. A second item runs two of its steps
/// (`SuspensionStep`), and the first one waits for it until the suspension has to end.
pub struct Queues {
    /// Tears down devices, and unmaps files when a region has become read-only.
    pub teardown: OwnedQueue,
    /// Kills DAX devices.
    pub kill_dax: OwnedQueue,
    /// Puts references to files, and polls for pins of files on other devices.
    pub files: Counted<OwnedQueue>,
    /// Flushes regions for requests that do not wait for the flush.
    pub flush: OwnedQueue,
    /// Suspends disks, and resumes them.
    pub suspend: OwnedQueue,
}

impl Queues {
    /// Creates the queues. May sleep.
    pub fn new() -> Result<Self> {
        Ok(Self {
            teardown: OwnedQueue::for_io(c"pmem_rs")?,
            kill_dax: OwnedQueue::for_io(c"pmem_rs_kill")?,
            files: Counted::new(OwnedQueue::new(c"pmem_rs_files")?)?,
            flush: OwnedQueue::for_io(c"pmem_rs_flush")?,
            suspend: OwnedQueue::new(c"pmem_rs_suspend")?,
        })
    }
}
