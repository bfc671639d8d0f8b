// SPDX-License-Identifier: GPL-2.0

//! The state of a device from its probe until its range is free: the data of its teardown and of
//! the suspension of its disk, and the entry points of the threads of the teardown.
//!
//! [`teardown`] is the state machine of the teardown, and `teardown_ops.rs` has the functions that
//! it calls. `plain/suspension.rs` and `suspension_ops.rs` are those of the suspension.
//! `docs/lifetimes.md` explains why the teardown is safe.
//!
//! Lock order, outermost first:
//!
//! 1. The device lock of the nd device. The unbinding thread holds it. The worker never takes it.
//! 2. [`DeviceState::teardown`]. It protects the state. Apart from taking `progress`, two calls
//!    under it may sleep: one sets the disk read-only, the other sends its uevents. Both take
//!    `DiskState::removal`, which the worker takes only after it has taken the disk out of the
//!    state.
//! 3. [`DeviceState::progress`], [`DeviceState::retired_name`], the mutex of the registry, and the
//!    locks of [`DeviceState::suspension`]. None is taken inside of another.
//! 4. [`DeviceState::count_lock`], which a reader of debugfs takes with `teardown` held, and keeps.

use super::{
    description::{
        Description,
        Stage,
        TeardownStep, //
    },
    flush::Flusher,
    memory::{
        Backing,
        Memory, //
    },
    pagemap_data::PagemapData,
    plain::{
        teardown::{
            self,
            Outcome,
            State,
            Teardown, //
        },
        waiting::{
            Memmap,
            Waiting, //
        }, //
    },
    pmem::Pmem,
    registry::RegisteredDevice,
    shared::Shared,
    suspension_state::SuspensionState, //
};
use crate::abstractions::kernel::{
    block::gendisk,
    dax,
    fs::dax::{
        PinnedFiles,
        Walked, //
    },
    lease::Leases,
    memremap::PagesInUse,
    percpu_ref::Ref,
    wait::WaitQueue, //
};
use crate::abstractions::kernel_ext::{
    io::resource::RegionName,
    sync::completion::Completion,
    time::Stopwatch,
    tracepoint, //
};
use core::ops::Range;
use kernel::{
    impl_has_work,
    io::PhysAddr,
    new_mutex,
    new_spinlock,
    new_work,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        SetOnce,
        SpinLock, //
    },
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// How many pages of a bound device are counted before the reference to the memory is put.
const COUNT_BATCH: u64 = 4096;

/// The parts of a bound device.
pub struct Parts {
    /// The disk, which holds the module while it is open.
    pub disk: gendisk::Registration<Pmem>,
    /// The DAX device. [`None`] if the architecture has none.
    pub dax: Option<dax::Registration<Pmem, PagemapData>>,
    /// The owner of the memory. Disk and DAX device have references to it.
    pub memory: Memory,
}

/// The step, what was revoked, and the pages in use, for messages, uevents and tracepoints.
#[derive(Clone, Copy, Default)]
pub(super) struct Progress {
    /// The step that the worker has begun last.
    pub(super) step: Option<TeardownStep>,
    pub(super) walked: Walked,
    pub(super) used: PagesInUse,
}

/// The state of a device from its probe until its range is free. It has the data of the teardown
/// and of the suspension, and their work items.
///
/// It is created before the device is bound, so that the teardown depends on no allocation.
#[pin_data]
pub struct DeviceState {
    pub(super) shared: Ref<Shared>,
    /// The name of the device, which may be removed before the range is free.
    pub(super) name: CString,
    pub(super) namespace_range: Range<PhysAddr>,
    pub(super) flusher: Arc<Flusher>,
    /// The name of the range in `/proc/iomem`.
    region_name: Arc<RegionName>,
    /// The name of the range in `/proc/iomem` once it is retired.
    #[pin]
    retired_name: Mutex<Option<CString>>,
    /// Where the `struct page`s are, which decides whether the range can be retired.
    pub(super) memmap: Memmap,
    /// The leases of the memory. [`None`] if it has no `struct page`s.
    pub(super) leases: Option<Arc<Leases>>,
    /// Files with pinned pages on other devices. A reference to each keeps the removal of the disk
    /// from waiting for the pins.
    pub(super) pinned_files: Arc<PinnedFiles>,
    /// The unbinding thread was killed. Set once.
    pub(super) unbind_killed: SetOnce<()>,
    /// Set by [`teardown::announce`].
    pub(super) announced_at: SetOnce<Stopwatch>,
    /// Set by [`teardown::begin`].
    pub(super) began_at: SetOnce<Stopwatch>,
    /// How long the teardown has waited for the end of a suspension, in microseconds.
    ///
    /// ORDERING: none is needed. A thread that reads an older value retires the range earlier.
    pub(super) waited_for_resume: Atomic<u64>,
    #[pin]
    pub(super) teardown: Mutex<Teardown<Arc<DeviceState>>>,
    /// Held while pages of the bound device are counted, so that the thread is not preempted
    /// (except with PREEMPT_RT). Protects no data.
    #[pin]
    count_lock: SpinLock<()>,
    /// Woken when `teardown` has changed, and when the system goes down.
    #[pin]
    pub(super) changed: WaitQueue,
    /// Completed when the DAX device was killed.
    #[pin]
    pub(super) dax_killed: Completion,
    #[pin]
    pub(super) progress: Mutex<Progress>,
    /// The suspension of the disk.
    #[pin]
    pub(super) suspension: SuspensionState,
    /// Runs [`teardown::work`].
    #[pin]
    work: Work<DeviceState, 0>,
    /// Runs [`teardown::kill_dax`].
    #[pin]
    kill_work: Work<DeviceState, 1>,
    /// Unmaps the memory from all files once, when the region has become read-only.
    #[pin]
    unmap_work: Work<DeviceState, 2>,
    /// Suspends the disk and resumes it.
    #[pin]
    suspend_work: Work<DeviceState, 3>,
    /// Runs the steps of a suspension that may wait for threads which wait for its end
    /// ([`DeviceState::run_step`]).
    #[pin]
    step_work: Work<DeviceState, 4>,
}

impl_has_work! {
    impl HasWork<Self, 0> for DeviceState { self.work }
    impl HasWork<Self, 1> for DeviceState { self.kill_work }
    impl HasWork<Self, 2> for DeviceState { self.unmap_work }
    impl HasWork<Self, 3> for DeviceState { self.suspend_work }
    impl HasWork<Self, 4> for DeviceState { self.step_work }
}

impl WorkItem<0> for DeviceState {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.work();
    }
}

impl WorkItem<1> for DeviceState {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        teardown::kill_dax(&this);
    }
}

impl WorkItem<2> for DeviceState {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // The reference keeps the memory while the files are unmapped.
        let unmapper = this.with_parts(|parts| parts.memory.unmapper()).flatten();

        if let Some(unmapper) = unmapper {
            unmapper.unmap_files();
        }
    }
}

impl DeviceState {
    /// Creates the data for a device with this name, physical range and memory. `is_removable` says
    /// whether the provider may take the medium away. May sleep.
    pub fn new(
        shared: Ref<Shared>,
        name: CString,
        namespace_range: Range<PhysAddr>,
        flusher: Arc<Flusher>,
        memory: &Memory,
        is_removable: bool,
    ) -> Result<Arc<Self>> {
        let region_name = memory.reservation_name().clone();
        let first = region_name.first();
        let retired_name = CString::try_from_fmt(fmt!("{first} (retired by pmem_rs)"))?;
        let files = shared.queues.files.try_get().ok_or(ENODEV)?;
        let pinned_files = PinnedFiles::new(CString::try_from_fmt(fmt!("{}", *name))?, files)?;
        let on_medium = memory
            .pages()
            .is_some_and(|pages| pages.memmap_is_on_medium());

        Arc::pin_init(
            try_pin_init!(Self {
                shared,
                name,
                namespace_range,
                flusher,
                region_name,
                retired_name <- new_mutex!(Some(retired_name), "pmem_rs::DeviceState::retired_name"),
                memmap: Memmap::new(on_medium, is_removable),
                leases: memory.pages().map(|pages| pages.leases().clone()),
                pinned_files,
                unbind_killed: SetOnce::new(),
                announced_at: SetOnce::new(),
                began_at: SetOnce::new(),
                waited_for_resume: Atomic::new(0),
                teardown <- new_mutex!(Teardown::detached(), "pmem_rs::DeviceState::teardown"),
                count_lock <- new_spinlock!((), "pmem_rs::DeviceState::count_lock"),
                changed <- WaitQueue::new(),
                dax_killed <- Completion::new(),
                progress <- new_mutex!(Progress::default(), "pmem_rs::DeviceState::progress"),
                suspension <- SuspensionState::new(),
                work <- new_work!("pmem_rs::DeviceState::work"),
                kill_work <- new_work!("pmem_rs::DeviceState::kill_work"),
                unmap_work <- new_work!("pmem_rs::DeviceState::unmap_work"),
                suspend_work <- new_work!("pmem_rs::DeviceState::suspend_work"),
                step_work <- new_work!("pmem_rs::DeviceState::step_work"),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets the state to bound, with these parts.
    pub fn set_bound(&self, parts: Parts) {
        self.teardown.lock().state = State::Bound(parts);
    }

    /// Calls `f` with the parts of the device if it is bound. `f` is called with the lock held, so
    /// they are not removed meanwhile.
    pub fn with_parts<R>(&self, f: impl FnOnce(&Parts) -> R) -> Option<R> {
        self.teardown.lock().parts().map(f)
    }

    /// Starts a worker that unmaps the memory from all files once, if the device is bound.
    ///
    /// A worker does this, because the caller holds the device lock, which unbind needs. The walk
    /// may wait for an unmount, and the unmount for pinned pages.
    pub fn start_unmapping(self: &Arc<Self>) {
        // An error means that the work is queued already.
        let _ = self.shared.queues.teardown.enqueue::<_, 2>(self.clone());
    }

    /// Notifies user space that the device is going to be torn down, and waits until nothing has
    /// its disk open, for at most `revoke_notice_ms`.
    ///
    /// Called with the device lock held. Sleeps.
    pub fn give_notice(self: &Arc<Self>) {
        teardown::give_notice(self);

        let waited = self.announced_at.as_ref().map_or(0, Stopwatch::micros);
        tracepoint::step(&self.name, c"notice", waited, 0);
    }

    /// Starts the worker that tears down the device, and waits until the range is free or retired.
    ///
    /// Called with the device lock held. Sleeps.
    pub fn tear_down(self: &Arc<Self>) {
        teardown::begin(self);

        let outcome = teardown::wait(self);
        if outcome == Outcome::Retired {
            let name = self.retired_name.lock().take();
            if let Some(name) = name {
                self.region_name.set(name);
            }
            // Flushed now: once the device is unbound, `RegionAccess` refuses flushes.
            self.flush();
            let PagesInUse { referenced, cached } = self.progress.lock().used;
            tracepoint::retire(&self.name, referenced, cached, self.teardown_micros());
            let description = self.describe();
            pr_warn!(
                "retired {}. {}: the range is freed then, and can be bound again\n",
                description,
                description.remedy()
            );
        }
        self.send_outcome_uevent(outcome);
    }

    /// Makes durable what was written to the disk, and what mappings of files have stored in the
    /// CPU caches. Does not wait for threads that store meanwhile. Sleeps.
    pub fn sync(&self) {
        // The reference keeps the memory, and the lock is not held for long.
        let memory = self.with_parts(|parts| parts.memory.reference());

        if let Some(Backing::Pages(pages)) = memory.flatten() {
            pages.write_back_used();
        }
        self.flush();
    }

    /// Flushes the region. The flusher logs a failure.
    pub(super) fn flush(&self) {
        let _ = self.flusher.flush();
    }

    /// Tears down the device, in the worker.
    fn work(self: &Arc<Self>) {
        let module = teardown::work(self);

        self.shared.devices.remove(self);
        if let Some(module) = &module {
            pr_info!("{}: the retired range is free\n", *self.name);
            self.send_free_uevent(module);
        }
        // The exit of the module drains this queue, so the code of this work item stays until it
        // has returned.
        drop(module);
    }

    /// Returns the microseconds since the teardown began.
    pub(super) fn teardown_micros(&self) -> u64 {
        self.began_at.as_ref().map_or(0, Stopwatch::micros)
    }

    /// Returns the data by which a thread decides whether to go on waiting for users. It has waited
    /// for `micros` microseconds so far.
    pub(super) fn waiting(&self, micros: u64, limit_ms: u32, is_killed: bool) -> Waiting {
        Waiting {
            micros,
            limit_ms,
            is_killed,
            is_going_down: self.is_going_down(),
            memmap: self.memmap,
        }
    }

    /// Returns whether the system is being rebooted or switched off.
    fn is_going_down(&self) -> bool {
        self.shared.going_down.as_ref().is_some()
    }

    /// Returns the part of [`Self::teardown_micros`] that counts for `revoke_timeout_ms`: all but
    /// the wait for the end of a suspension.
    pub(super) fn micros_for_users(&self) -> u64 {
        let waited = self.waited_for_resume.load(Relaxed);

        self.teardown_micros().saturating_sub(waited)
    }
}

impl RegisteredDevice for DeviceState {
    fn name(&self) -> &CStr {
        &self.name
    }

    fn memmap_is_on_medium(&self) -> bool {
        self.memmap != Memmap::Ram
    }

    fn namespace_range(&self) -> Range<PhysAddr> {
        self.namespace_range.clone()
    }

    fn is_bound_or_unbinding(&self) -> bool {
        let teardown = self.teardown.lock();

        !teardown.is_retired() && !matches!(teardown.state, State::Detached)
    }

    fn is_retired(&self) -> bool {
        self.teardown.lock().is_retired()
    }

    fn has_suspension(&self) -> bool {
        self.suspension.has_suspension()
    }

    fn wake_up(&self) {
        self.changed.wake_up();
    }

    fn describe(&self) -> Description<'_> {
        let stage = match &self.teardown.lock().state {
            State::Bound(_) | State::Leaving { .. } => Stage::Bound,
            State::RemovingDisk(_) | State::Revoking => {
                Stage::TearingDown(self.progress.lock().step)
            }
            State::Draining(user) | State::Retired { user, .. } => Stage::Draining(*user),
            State::Freeing { .. } | State::Detached => Stage::Freeing,
        };
        let (used, exposed) = if stage == Stage::Bound {
            self.count_bound()
        } else {
            (self.progress.lock().used, 0)
        };

        Description {
            name: &self.name,
            namespace_range: self.namespace_range(),
            stage,
            used,
            exposed,
            lease_holders: self.leases.as_ref().and_then(|leases| leases.holders()),
        }
    }
}

impl DeviceState {
    /// Returns the pages in use of a bound device, and how much of it was exposed, in bytes.
    ///
    /// Counts in batches, since the teardown waits for the reference to the memory. Without
    /// PREEMPT_RT a thread that holds a spin lock is not preempted, so the reference is put soon,
    /// whatever the priority of the thread is.
    fn count_bound(&self) -> (PagesInUse, u64) {
        let mut sum = PagesInUse::default();
        let mut exposed = 0;
        let mut first = Some(0);

        while let Some(next) = first {
            let reference =
                self.with_parts(|parts| (self.count_lock.lock(), parts.memory.reference()));
            let Some((no_preemption, Some(Backing::Pages(pages)))) = reference else {
                break;
            };
            if next == 0 {
                exposed = pages.exposed_bytes();
            }
            let (used, rest) = pages.count_used(next, COUNT_BATCH);
            drop(pages);
            drop(no_preemption);
            sum.referenced = sum.referenced.saturating_add(used.referenced);
            sum.cached = sum.cached.saturating_add(used.cached);
            first = rest;
        }
        (sum, exposed)
    }
}
