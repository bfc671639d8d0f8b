// SPDX-License-Identifier: GPL-2.0

//! How a device is taken away, with the kernel: the environment of [`teardown`].
//!
//! `docs/lifetimes.md` has the argument why that is safe, and the order of the locks.

use super::{
    flush::Flusher,
    parameters,
    plain::teardown::{
        self,
        End,
        Environment,
        State,
        Teardown,
        User, //
    },
    pmem::Pmem,
    range::{
        Closed,
        FailureHandler,
        Memory,
        Revoked, //
    },
    retired::Shared, //
};
use crate::abstractions::{
    kernel::{
        block::gendisk::{
            self,
            RemovedDisk, //
        },
        dax,
        fs::dax::{
            self as fs_dax,
            Walked, //
        },
        memremap::PagesInUse,
        percpu_ref::Ref,
        wait::{
            fatal_signal_pending,
            WaitQueue, //
        }, //
    },
    kernel_ext::{
        io::resource::RegionName,
        module::ModuleRef,
        sync::completion::Completion,
        time::{
            sleep,
            Stopwatch, //
        }, //
    },
    nvdimm::ProviderWatcher, //
};
use core::ops::Range;
use kernel::{
    fmt,
    impl_has_work,
    io::PhysAddr,
    module::this_module,
    new_mutex,
    new_work,
    prelude::*,
    str::CString,
    sync::{
        Arc,
        Mutex,
        SetOnce, //
    },
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// How often the unbinding thread looks whether its deadline has passed or changed, or whether it
/// was killed.
const LOOK_INTERVAL: Msecs = 100;
/// How long the worker waits for a user at a time.
const USER_INTERVAL: Msecs = 1000;
/// How long the worker waits for the DAX device to die before it goes on without: most die in less.
const DEATH_LIMIT: Msecs = 200;
/// How long the worker pauses at most between two walks through the files.
const PAUSE_LIMIT: Msecs = 10_000;
/// How long the worker waits for references to files to be put, which nothing depends on.
const PUT_LIMIT: Msecs = 1000;
/// How long after one message about a wait the next one is logged, in microseconds.
const MESSAGE_INTERVAL: u64 = 30_000_000;
/// How many pages are counted at a time for a reader of the list of devices, which holds a
/// reference to the memory meanwhile.
const COUNT_BATCH: u64 = 1 << 14;

/// What a bound device consists of.
pub struct Parts {
    /// The disk.
    pub disk: gendisk::Registration<Pmem>,
    /// The DAX device.
    pub dax: Option<dax::Registration<Pmem, FailureHandler>>,
    /// The memory.
    pub memory: Memory,
}

/// Memory that was revoked, with what the worker remembers between two looks at it.
pub struct Draining {
    memory: Revoked,
    /// The next pause between two walks.
    pause: Msecs,
    /// When the pages in use were counted, and how long that took, in microseconds.
    counted: Option<(Stopwatch, u64)>,
}

/// What was done, and what is in use, for messages.
#[derive(Clone, Copy, Default)]
struct Report {
    walked: Walked,
    used: PagesInUse,
}

/// The teardown of a device, with the kernel.
///
/// It is made before the device is bound, so that nothing on the way needs memory.
#[pin_data]
pub struct Unbind {
    shared: Ref<Shared>,
    /// The name of the device, for messages: the device may be gone by then.
    name: CString,
    phys: Range<PhysAddr>,
    flusher: Arc<Flusher>,
    /// The name of the memory in `/proc/iomem`.
    region_name: Arc<RegionName>,
    /// What that is to be once the range is retired. Innermost.
    #[pin]
    retired_name: Mutex<Option<CString>>,
    /// The `struct page`s are on the media and go with them, so the memory cannot be retired.
    must_wait: bool,
    /// When the device began to be taken away.
    began: SetOnce<Stopwatch>,
    /// Lock order: inside of device locks; nothing that sleeps is called with it held, but for the
    /// change of the disk to read-only.
    #[pin]
    teardown: Mutex<Teardown<Arc<Unbind>>>,
    /// Woken when the teardown has changed.
    #[pin]
    changed: WaitQueue,
    /// Completed when the DAX device is dead.
    #[pin]
    dead: Completion,
    /// Innermost.
    #[pin]
    report: Mutex<Report>,
    #[pin]
    work: Work<Unbind, 0>,
    #[pin]
    kill: Work<Unbind, 1>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Unbind { self.work }
    impl HasWork<Self, 1> for Unbind { self.kill }
}

impl WorkItem<0> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.work();
    }
}

impl WorkItem<1> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        teardown::kill_dax(&this);
    }
}

impl Unbind {
    /// Prepares for the end of a device with this name and physical range, and this memory.
    pub fn new(
        shared: Ref<Shared>,
        name: CString,
        phys: Range<PhysAddr>,
        flusher: Arc<Flusher>,
        memory: &Memory,
    ) -> Result<Arc<Self>> {
        let region_name = memory.reservation_name().clone();
        let first = region_name.first();
        let retired_name = CString::try_from_fmt(fmt!("{first} (retired by pmem_rs)"))?;

        Arc::pin_init(
            try_pin_init!(Self {
                shared,
                name,
                phys,
                flusher,
                region_name,
                retired_name <- new_mutex!(Some(retired_name), "pmem_rs::Unbind::retired_name"),
                must_wait: memory.memmap_is_on_media(),
                began: SetOnce::new(),
                teardown <- new_mutex!(Teardown::unbound(), "pmem_rs::Unbind::teardown"),
                changed <- WaitQueue::new(),
                dead <- Completion::new(),
                report <- new_mutex!(Report::default(), "pmem_rs::Unbind::report"),
                work <- new_work!("pmem_rs::Unbind::work"),
                kill <- new_work!("pmem_rs::Unbind::kill"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the physical range.
    pub fn phys(&self) -> Range<PhysAddr> {
        self.phys.clone()
    }

    /// The device is bound from now on, and consists of these parts.
    pub fn set_bound(&self, parts: Parts) {
        self.teardown.lock().state = State::Bound(parts);
    }

    /// Calls `f` with the disk, if the device is bound. The disk is not removed meanwhile; `f` is
    /// called with the lock held.
    pub fn with_disk(&self, f: impl FnOnce(&gendisk::Registration<Pmem>)) {
        if let State::Bound(parts) = &self.teardown.lock().state {
            f(&parts.disk);
        }
    }

    /// Takes the device away. Returns when its range is free, or retired.
    ///
    /// Called while the device is being unbound, with its lock held. Sleeps.
    pub fn run(self: &Arc<Self>) {
        teardown::begin(self);

        let end = teardown::wait(self);
        if end == End::Retired {
            let name = self.retired_name.lock().take();
            if let Some(name) = name {
                self.region_name.set(name);
            }
            // It is the last time that the region can be reached.
            self.flush();
            pr_warn!(
                "retired {}; it is freed when they are done, and cannot be bound until then\n",
                self.describe()
            );
        }
        self.send_event(end);
    }

    /// Makes durable what was written. A failure is in the log, and nothing else waits for it.
    fn flush(&self) {
        let _ = self.flusher.flush();
    }

    /// Sends an event with what was revoked.
    fn send_event(&self, end: End) {
        let Walked { inodes, pages, .. } = self.report.lock().walked;
        let retired = end == End::Retired;
        if inodes == 0 && !retired {
            return;
        }

        let variables = || -> Result<_> {
            Ok([
                CString::try_from_fmt(fmt!("PMEM_RS_REVOKED={pages}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_INODES={inodes}"))?,
                CString::try_from_fmt(fmt!("PMEM_RS_RETIRED={}", u32::from(retired)))?,
            ])
        };
        let sent = variables().and_then(|[pages, inodes, retired]| {
            self.flusher
                .region()
                .notify_change([&*pages, &*inodes, &*retired])
        });
        if let Err(err) = sent {
            pr_warn!(
                "{}: could not send an event: error {}\n",
                *self.name,
                err.to_errno()
            );
        }
    }

    /// What the worker does.
    fn work(self: &Arc<Self>) {
        let module = teardown::work(self);

        self.shared.remove(self);
        if module.is_some() {
            pr_info!("{}: the retired range is free\n", *self.name);
        }
        // The module may go as soon as the queue is empty: that is waited for.
        drop(module);
    }

    /// Returns how long ago the device began to be taken away, in microseconds.
    fn age(&self) -> u64 {
        self.began.as_ref().map_or(0, Stopwatch::micros)
    }

    /// Counts the pages in use of a device whose range is being taken away, for messages.
    fn count(&self, draining: &mut Draining) {
        let Some(pages) = draining.memory.pages() else {
            return;
        };
        // It takes as long as there are exposed pages, so it is done for a tenth of the time.
        if let Some((last, took)) = &draining.counted {
            if last.micros() < took.saturating_mul(10) {
                return;
            }
        }

        let began = Stopwatch::start();
        let (used, _) = pages.count_used(0, u64::MAX);
        self.report.lock().used = used;
        draining.counted = Some((Stopwatch::start(), began.micros()));
    }
}

/// The provider of a device.
///
/// When it goes, all of its devices begin to be taken away at once: their deadlines pass together.
pub struct Provider(pub Arc<Unbind>);

impl ProviderWatcher for Provider {
    fn provider_unbinding(&self) {
        if let State::Bound(parts) = &self.0.teardown.lock().state {
            parts.memory.refuse_mappings();
        }
        teardown::begin(&self.0);
    }
}

impl Environment for Arc<Unbind> {
    type Parts = Parts;
    type Disk = gendisk::Registration<Pmem>;
    type RemovedDisk = RemovedDisk;
    type Dax = Option<dax::Registration<Pmem, FailureHandler>>;
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
        let mut mentioned = 0;

        loop {
            let found = self
                .changed
                .wait_until(LOOK_INTERVAL, || self.with(&mut condition));
            if let Some(found) = found {
                return found;
            }

            let intervals = self.age() / MESSAGE_INTERVAL;
            if intervals > mentioned {
                mentioned = intervals;
                pr_warn!("still waiting to unbind {}\n", self.describe());
            }
        }
    }

    fn start_worker(&self) {
        self.began.populate(Stopwatch::start());
        if self.shared.teardowns.enqueue::<_, 0>(self.clone()).is_err() {
            // That cannot be: the teardown begins once.
            pr_warn!("{}: unbind was started twice\n", *self.name);
        }
    }

    fn start_killing(&self) {
        if self.shared.kills.enqueue::<_, 1>(self.clone()).is_ok() {
            self.dead.wait_idle_timeout(DEATH_LIMIT);
        }
    }

    fn is_over(&self, hopeless: bool) -> bool {
        if self.must_wait {
            return false;
        }
        let limit = u64::from(parameters::revoke_timeout_ms()).saturating_mul(1000);

        fatal_signal_pending() || (limit != 0 && (hopeless || self.age() >= limit))
    }

    fn module(&self) -> Option<ModuleRef> {
        ModuleRef::try_get(this_module::<crate::LocalModule>())
    }

    fn split(&self, parts: Parts) -> (Self::Disk, Self::Dax, Memory) {
        let Parts { disk, dax, memory } = parts;

        (disk, dax, memory)
    }

    fn close_to_mappings(&self, memory: &mut Memory) {
        let walked = memory.close_to_mappings();

        self.report.lock().walked = walked;
    }

    fn remove_disk(&self, disk: Self::Disk) -> RemovedDisk {
        disk.remove()
    }

    fn close(&self, memory: Memory) -> Closed {
        memory.close()
    }

    fn kill(&self, dax: Self::Dax) {
        drop(dax);
        self.dead.complete_all();
    }

    fn revoke(&self, closed: Closed) -> Draining {
        let (memory, walked) = closed.revoke();
        {
            // Files that were closed meanwhile have lost their pages too.
            let mut report = self.report.lock();
            report.walked.inodes = report.walked.inodes.max(walked.inodes);
            report.walked.pages = report.walked.pages.max(walked.pages);
        }

        Draining {
            memory,
            pause: 1,
            counted: None,
        }
    }

    fn revoked(&self) {
        self.flush();

        let Walked { inodes, pages, .. } = self.report.lock().walked;
        if inodes != 0 {
            pr_info!(
                "{}: revoked: {} inodes, {} pages, {} us\n",
                *self.name,
                inodes,
                pages,
                self.age()
            );
        }
    }

    fn first_user(&self, memory: &mut Draining, _disk: &mut RemovedDisk) -> Option<User> {
        let user = memory.memory.first_user()?;

        self.count(memory);
        Some(match user {
            fs_dax::User::Reference => User::Translation,
            fs_dax::User::Holder => User::Keeper,
            fs_dax::User::Pin => User::Pin,
            fs_dax::User::PageCache => User::PageCache,
        })
    }

    fn wait_for(&self, user: User, memory: &mut Draining, _disk: &mut RemovedDisk) {
        let user = match user {
            User::Translation => fs_dax::User::Reference,
            User::Keeper => fs_dax::User::Holder,
            User::Pin => {
                memory.pause = 1;
                fs_dax::User::Pin
            }
            User::PageCache => {
                // Another thread is about to let go of the page. It gets some time.
                sleep(memory.pause);
                memory.pause = memory.pause.saturating_mul(2).min(PAUSE_LIMIT);
                memory.memory.revoke();
                return;
            }
        };
        memory.memory.wait_for(user, USER_INTERVAL);
    }

    fn free(&self, memory: Draining, _disk: RemovedDisk) {
        // What later walks wrote back. Once the range was retired, the region cannot be reached.
        if !self.with(|teardown| teardown.is_retired()) {
            self.flush();
        }

        let mut memory = memory.memory;
        while let Err(rest) = memory.unmap(PUT_LIMIT) {
            memory = rest;
            sleep(USER_INTERVAL);
            // A page that was seen idle too early may be named by a page cache still.
            memory.revoke();
        }
    }
}

/// What a device is doing, as a line of text.
///
/// All of it was read before: what is printed is formatted twice, first for its length.
pub struct Description<'a> {
    unbind: &'a Unbind,
    stage: Stage,
    used: PagesInUse,
    /// In bytes.
    exposed: u64,
}

/// The states of a device, as far as they are told apart in messages.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Bound,
    RemovingDisk,
    Revoking,
    Draining(Option<User>),
    Freeing,
}

impl Unbind {
    /// Returns whether the unbinding thread has returned, and the range is not free.
    pub fn is_retired(&self) -> bool {
        self.teardown.lock().is_retired()
    }

    /// Returns whether the device is bound.
    pub fn is_bound(&self) -> bool {
        matches!(self.teardown.lock().state, State::Bound(_))
    }

    /// Says what the device is doing, and what uses its range. Sleeps. Pages of a bound device are
    /// counted, in pieces: a reference to the memory is held for one piece at a time.
    pub fn describe(&self) -> Description<'_> {
        let stage = match &self.teardown.lock().state {
            State::Bound(_) => Stage::Bound,
            State::RemovingDisk(_) => Stage::RemovingDisk,
            State::Revoking => Stage::Revoking,
            State::Draining(user) | State::Retired { user, .. } => Stage::Draining(*user),
            State::Freeing { .. } | State::Gone => Stage::Freeing,
        };
        let (used, exposed) = if stage == Stage::Bound {
            self.count_bound()
        } else {
            (self.report.lock().used, 0)
        };

        Description {
            unbind: self,
            stage,
            used,
            exposed,
        }
    }

    /// Counts the pages in use of a bound device, and how much of it was exposed, in bytes.
    fn count_bound(&self) -> (PagesInUse, u64) {
        let mut sum = PagesInUse::default();
        let mut exposed = 0;
        let mut first = Some(0);

        while let Some(next) = first {
            let range = match &self.teardown.lock().state {
                State::Bound(parts) => parts.memory.reference(),
                _ => None,
            };
            let Some(range) = range else {
                break;
            };
            exposed = range.exposed_bytes();
            let (used, rest) = range.count_used(next, COUNT_BATCH);
            sum.referenced = sum.referenced.saturating_add(used.referenced);
            sum.cached = sum.cached.saturating_add(used.cached);
            first = rest;
        }
        (sum, exposed)
    }
}

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self {
            unbind: this,
            stage,
            used,
            exposed,
        } = self;
        f.write_fmt(fmt!(
            "{} [mem {:#x}-{:#x}], ",
            *this.name,
            this.phys.start,
            this.phys.end.saturating_sub(1)
        ))?;

        if stage == Stage::Bound {
            return f.write_fmt(fmt!(
                "exposed: {} KiB, in use: {} pages, in page caches only: {} pages",
                exposed >> 10,
                used.referenced,
                used.cached
            ));
        }

        f.write_str("used by")?;
        if used.referenced != 0 {
            write!(f, " (pins: {} pages)", used.referenced)?;
        }
        if used.cached != 0 {
            write!(f, " (page caches: {} pages)", used.cached)?;
        }
        f.write_str(match stage {
            Stage::Bound => "",
            Stage::RemovingDisk => " (a file system on the disk that does not shut down)",
            Stage::Revoking => " (files, of which one is locked)",
            Stage::Draining(Some(User::Translation)) => {
                " (translation: a DAX read or write that hangs somewhere in the system)"
            }
            Stage::Draining(Some(User::Keeper)) => " (a holder of the disk: device-mapper)",
            Stage::Draining(_) => "",
            Stage::Freeing => " (the memory management, which is freeing it)",
        })
    }
}
