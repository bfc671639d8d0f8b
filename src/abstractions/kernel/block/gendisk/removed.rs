// SPDX-License-Identifier: GPL-2.0

//! The removed disks that something still has open.
//!
//! A file system keeps the name of its disk in sysfs and procfs until it is unmounted, even if the
//! disk was removed. A disk that comes back has the same name. If it was mounted meanwhile, the
//! kernel would warn about the name, and the mount would fail. So such a mount is refused before.

use super::{
    block_device::BlockDevice,
    state::DiskState, //
};
use crate::abstractions::kernel::{
    percpu_ref::Counted,
    ratelimit::RateLimit, //
};
use crate::abstractions::kernel_ext::module::{
    Global,
    Installed, //
};
use kernel::{
    list::{
        List,
        ListArc, //
    },
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    }, //
};

/// Installed while the module is loaded.
static REMOVED: Global<RemovedDisks> = Global::new();

/// The list of the removed disks that something may have open. `PmemModule` owns it.
#[pin_data]
pub struct RemovedDisks {
    #[pin]
    disks: Mutex<List<DiskState>>,
    #[pin]
    messages: RateLimit,
}

impl RemovedDisks {
    /// Makes the list. Without it no mount is refused. May sleep.
    pub fn install() -> Result<Installed<Self>> {
        let removed = Counted::pin_init(try_pin_init!(Self {
            disks <- new_mutex!(List::new(), "pmem_rs::RemovedDisks::disks"),
            messages <- RateLimit::new(),
        }))?;

        REMOVED.install(removed)
    }
}

/// Removes a disk, and adds it to the list until [`forget`]. Sleeps, see `Registration::remove()`.
pub(super) fn remove(state: &Arc<DiskState>) {
    state.remove(|| {
        if let (Some(removed), Ok(entry)) = (REMOVED.get(), ListArc::try_from_arc(state.clone())) {
            removed.disks.lock().push_back(entry);
        }
    });
}

/// Takes a disk off the list, if it is there: nothing has it open any more. May sleep.
pub(super) fn forget(state: &DiskState) {
    if let Some(removed) = REMOVED.get() {
        // SAFETY: A disk is added to this list only.
        let entry = unsafe { removed.disks.lock().remove(state) };

        // Without the lock.
        drop(entry);
    }
}

/// Returns whether a file system must not be mounted from a disk or partition, because one of a
/// removed disk has its name. Logs what to do then. May sleep.
pub(super) fn has_name_of(device: &BlockDevice) -> bool {
    let name = device.name();
    let Some(removed) = REMOVED.get() else {
        return false;
    };

    let is_taken = removed
        .disks
        .lock()
        .iter()
        .any(|disk| disk.has_file_system_on(name));
    if is_taken && removed.messages.permits(c"pmem_rs") {
        pr_warn!(
            "{name}: not mounted: a file system of the removed disk {name} is still mounted or in \
             use: unmount it first\n"
        );
    }
    is_taken
}
