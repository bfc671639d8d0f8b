// SPDX-License-Identifier: GPL-2.0

//! The functions that the teardown of a device calls.

use super::{
    description::TeardownStep,
    device_state::{
        DeviceState,
        Parts, //
    },
    memory::{
        Closed,
        Memory,
        Revoked, //
    },
    pagemap_data::PagemapData,
    plain::{
        suspension,
        teardown::{
            Teardown,
            TeardownOps,
            User, //
        }, //
    },
    pmem::Pmem,
    registry::RegisteredDevice, //
};
use crate::abstractions::compat::module::this_module;
use crate::abstractions::kernel::{
    block::gendisk::{
        self,
        RemovedDisk, //
    },
    dax,
    fs::dax::{
        self as fs_dax,
        Walked, //
    },
    wait::fatal_signal_pending, //
};
use crate::abstractions::kernel_ext::{
    module::ModuleRef,
    module_param::{
        REVOKE_NOTICE_MS,
        REVOKE_TIMEOUT_MS, //
    },
    time::{
        sleep,
        Stopwatch, //
    },
    tracepoint, //
};
use crate::abstractions::nvdimm;
use kernel::{
    prelude::*,
    sync::Arc,
    time::Msecs, //
};

/// How often the unbinding thread polls the deadline, the limit, and signals, and the worker the
/// limit while it waits for leases.
const POLL_INTERVAL: Msecs = 100;
/// How long the worker waits for a user before it looks for the first one again.
const USER_TIMEOUT: Msecs = 1000;
/// How long the worker waits for `kill_dax()` before it goes on without. Most calls are faster.
const KILL_DAX_TIMEOUT: Msecs = 200;
/// The longest pause between two walks through the files.
const MAX_WALK_PAUSE: Msecs = 10_000;
/// How long the worker waits for references to files to be put, before and after it frees the
/// range. The range does not depend on that.
const PUT_FILES_TIMEOUT: Msecs = 1000;
/// The time between two messages about a wait, in microseconds.
const MESSAGE_INTERVAL: u64 = 30_000_000;

/// Memory that was revoked, and the data of the worker's loop.
pub struct Draining {
    memory: Revoked,
    /// The next pause between two walks.
    pause: Msecs,
    /// The time since the pages in use were counted, and the duration of that in microseconds.
    last_count: Option<(Stopwatch, u64)>,
}

impl TeardownOps for Arc<DeviceState> {
    type Parts = Parts;
    type Disk = gendisk::Registration<Pmem>;
    type RemovedDisk = RemovedDisk;
    type Dax = Option<dax::Registration<Pmem, PagemapData>>;
    type Memory = Memory;
    type Closed = Closed;
    type Revoked = Draining;
    type Module = ModuleRef;

    fn with<R>(&self, f: impl FnOnce(&mut Teardown<Self>) -> R) -> R {
        f(&mut self.teardown.lock())
    }

    fn wake_up(&self) {
        self.changed.wake_up();
    }

    fn wait_until<R>(&self, mut condition: impl FnMut(&mut Teardown<Self>) -> Option<R>) -> R {
        let mut messages = 0;

        loop {
            let found = self
                .changed
                .wait_until(POLL_INTERVAL, || self.with(&mut condition));
            if let Some(found) = found {
                return found;
            }
            if fatal_signal_pending() {
                self.unbind_killed.populate(());
            }

            let intervals = self.teardown_micros() / MESSAGE_INTERVAL;
            if intervals > messages {
                messages = intervals;
                pr_warn!(
                    "still waiting to unbind {}; pmem_rs(4) says how to end the wait\n",
                    self.describe()
                );
            }
        }
    }

    fn announce(&self, is_waited_for: bool) {
        suspension::disable(self);
        self.announced_at.populate(Stopwatch::start());
        self.flusher
            .region()
            .notify_attribute(c"pmem_rs", nvdimm::STATE_FILE);
        self.send_leaving_uevent(is_waited_for);
        // The holders may still read and write in their callbacks.
        if let Some(leases) = &self.leases {
            leases.request_return();
        }
    }

    fn should_wait(&self, parts: &Parts) -> bool {
        // The value may change while an unbind waits.
        let waited = self.announced_at.as_ref().map_or(0, Stopwatch::micros);
        let waiting = self.waiting(waited, REVOKE_NOTICE_MS.get(), fatal_signal_pending());

        waiting.notice_goes_on() && parts.disk.is_open()
    }

    fn start_worker(&self) {
        self.began_at.populate(Stopwatch::start());
        let queued = self.shared.queues.teardown.enqueue::<_, 0>(self.clone());
        if queued.is_err() {
            // Unreachable, since the teardown begins once.
            pr_warn!("{}: unbind was started twice\n", *self.name);
        }
    }

    fn start_kill_dax(&self) {
        let queued = self.shared.queues.kill_dax.enqueue::<_, 1>(self.clone());
        if queued.is_ok() {
            self.dax_killed.wait_idle_timeout(KILL_DAX_TIMEOUT);
        }
    }

    fn should_retire(&self, has_keeper: bool) -> bool {
        // The value may change while an unbind waits.
        let limit = REVOKE_TIMEOUT_MS.get();

        self.waiting(self.micros_for_users(), limit, fatal_signal_pending())
            .should_retire(has_keeper)
    }

    fn try_get_module(&self) -> Option<ModuleRef> {
        ModuleRef::try_get(this_module::<crate::LocalModule>())
    }

    fn split(&self, parts: Parts) -> (Self::Disk, Self::Dax, Memory) {
        let Parts { disk, dax, memory } = parts;

        (disk, dax, memory)
    }

    fn close_to_mappings(&self, memory: &mut Memory) {
        self.step(TeardownStep::Resume, || self.wait_resumed());
        let walked = self.step(TeardownStep::CloseToMappings, || memory.close_to_mappings());

        self.progress.lock().walked = walked;
    }

    fn remove_disk(&self, disk: Self::Disk) -> RemovedDisk {
        // Holders of leases may use the disk until they have given them back.
        self.wait_for_leases();
        self.step(TeardownStep::RemoveDisk, || {
            self.pinned_files.remove_disk(disk, &self.namespace_range)
        })
    }

    fn close(&self, memory: Memory) -> Closed {
        self.step(TeardownStep::Close, || memory.close())
    }

    fn kill(&self, dax: Self::Dax) {
        self.traced(c"kill_dax", || drop(dax));
        self.dax_killed.complete_all();
    }

    fn revoke(&self, closed: Closed) -> Draining {
        let (memory, walked) = self.step(TeardownStep::Revoke, || closed.revoke());
        {
            // This walk does not find inodes that were evicted since `close_to_mappings`.
            let mut progress = self.progress.lock();
            progress.walked.nr_inodes = progress.walked.nr_inodes.max(walked.nr_inodes);
            progress.walked.nr_pages = progress.walked.nr_pages.max(walked.nr_pages);
        }

        Draining {
            memory,
            pause: 1,
            last_count: None,
        }
    }

    fn after_revoke(&self) {
        self.step(TeardownStep::Flush, || self.flush());

        let Walked {
            nr_inodes: inodes,
            nr_pages: pages,
            ..
        } = self.progress.lock().walked;
        tracepoint::revoked(&self.name, inodes, pages, self.teardown_micros());
        if inodes != 0 {
            pr_info!(
                "{}: revoked: {} inodes, {} pages, {} us\n",
                *self.name,
                inodes,
                pages,
                self.teardown_micros()
            );
        }
    }

    fn first_user(&self, draining: &mut Draining, _disk: &mut RemovedDisk) -> Option<User> {
        let user = draining.memory.first_user()?;

        self.count(draining);
        Some(match user {
            fs_dax::User::Reference => User::Reference,
            fs_dax::User::Keeper => User::Keeper,
            fs_dax::User::Pin => User::Pin,
            fs_dax::User::PageCache => User::PageCache,
        })
    }

    fn wait_for(&self, user: User, draining: &mut Draining, _disk: &mut RemovedDisk) {
        let began = Stopwatch::start();
        let mut wait_for = |user| draining.memory.wait_for(user, USER_TIMEOUT);
        let name = match user {
            User::Reference => {
                wait_for(fs_dax::User::Reference);
                c"reference"
            }
            User::Keeper => {
                wait_for(fs_dax::User::Keeper);
                c"keeper"
            }
            User::Pin => {
                wait_for(fs_dax::User::Pin);
                draining.pause = 1;
                c"pin"
            }
            User::PageCache => {
                // Another thread is about to remove the entry, or writes to the file or truncates
                // it, or all files have to be walked through again.
                sleep(draining.pause);
                draining.pause = draining.pause.saturating_mul(2).min(MAX_WALK_PAUSE);
                draining.memory.revoke();
                c"page_cache"
            }
        };
        tracepoint::wait(&self.name, name, began.micros(), self.teardown_micros());
    }

    fn free(&self, draining: Draining, _disk: RemovedDisk) {
        // Later walks may have written back. The region of a retired range cannot be reached.
        if !self.with(|teardown| teardown.is_retired()) {
            self.flush();
        }

        let mut memory = draining.memory;
        self.traced(c"free", || {
            while let Err(rest) = memory.free(PUT_FILES_TIMEOUT) {
                memory = rest;
                sleep(USER_TIMEOUT);
                // An entry of a page cache may name a page that was idle before.
                memory.revoke();
            }
            // So that a file system that is unmounted after this is gone when umount returns.
            self.pinned_files.put_unpinned(PUT_FILES_TIMEOUT);
        });
        // If the range is not retired, this event comes before unbind returns.
        let retired = self.with(|teardown| teardown.is_retired());
        tracepoint::free(&self.name, retired, self.teardown_micros());
    }
}

impl DeviceState {
    /// Waits until the leases of the memory were given back, or `revoke_timeout_ms` has passed
    /// since the teardown began. The wait also ends if the unbinding thread is killed or the system
    /// goes down. The memory then stays for the holders.
    fn wait_for_leases(&self) {
        let Some(leases) = self.leases.as_ref().filter(|leases| leases.are_held()) else {
            return;
        };

        self.step(TeardownStep::Leases, || {
            while !leases.wait_returned(POLL_INTERVAL) {
                // The value may change.
                let limit = REVOKE_TIMEOUT_MS.get();
                let is_killed = self.unbind_killed.as_ref().is_some();
                if self
                    .waiting(self.micros_for_users(), limit, is_killed)
                    .is_over()
                {
                    if let Some(holders) = leases.holders() {
                        pr_warn!(
                            "{}: its lease is kept by {}: the disk is removed without waiting \
                             longer. Make that module give the lease back, or unload it\n",
                            *self.name,
                            holders
                        );
                    }
                    break;
                }
            }
        });
    }

    /// Executes a step of the teardown, which messages name meanwhile, and reports how long it
    /// took.
    fn step<R>(&self, step: TeardownStep, f: impl FnOnce() -> R) -> R {
        self.progress.lock().step = Some(step);
        self.traced(step.name(), f)
    }

    /// Calls `f`, and reports how long it took.
    fn traced<R>(&self, name: &CStr, f: impl FnOnce() -> R) -> R {
        let began = Stopwatch::start();
        let result = f();

        tracepoint::step(&self.name, name, began.micros(), self.teardown_micros());
        result
    }

    /// Counts the pages in use of revoked memory, for messages.
    fn count(&self, draining: &mut Draining) {
        let Some(pages) = draining.memory.pages() else {
            return;
        };
        // The time is proportional to the exposed memory, so at most a tenth of the time is spent
        // here.
        if let Some((last, took)) = &draining.last_count {
            if last.micros() < took.saturating_mul(10) {
                return;
            }
        }

        let began = Stopwatch::start();
        let (used, _) = pages.count_used(0, u64::MAX);
        self.progress.lock().used = used;
        draining.last_count = Some((Stopwatch::start(), began.micros()));
    }
}
