// SPDX-License-Identifier: GPL-2.0

//! How a device is taken away: revoke, drain, retire.
//!
//! Unbind hands everything to a worker and waits for it, but not for ever. The worker
//!
//! 1. closes the gate to mappings, and references the files that use the memory, so that removing the
//!    disk does not evict them, which would wait for pinned pages;
//! 2. removes the disk: file systems on it sync and shut down in order while DAX reads and writes still
//!    work;
//! 3. closes the gate, and lets a second work item release and kill the DAX device, since that waits for every DAX
//!    read and write of the system, and these may hang in a page fault of their own for as long as a user
//!    likes;
//! 4. *revokes*: goes through the DAX files of all mounted file systems, unmaps the memory, waits for page
//!    faults that are under way, writes dirty pages back and deletes the entries of the page caches;
//! 5. *drains*: waits for pages that are pinned, for those who are inside of the DAX device, and for
//!    claims of the disk that cannot be told;
//! 6. frees pages, mapping and reservation.
//!
//! If that takes longer than unbind may wait, the range is *retired*: it stays as it is, is listed, and
//! the worker goes on by itself. See `docs/lifetimes.md` for what may hold on to what, and for the
//! order of the locks.

use super::{
    flush::Flusher,
    lifecycle::{
        Drained,
        Lifecycle,
        PageUse,
        State,
        StateCell,
        Step,
        Users,
        Walk, //
    },
    pmem::Pmem,
    range::PmemRange,
    retired::SHARED, //
};
use crate::abstractions::{
    completion::Completion,
    dax, fs,
    gendisk::{
        self,
        Claims, //
    },
    kobject,
    list::Stack,
    memremap::PagesInUse,
    module::ModuleRef,
    percpu_ref::Counted,
    time::{
        sleep,
        Stopwatch, //
    },
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
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc,
        Mutex, //
    },
    time::Msecs,
    workqueue::{
        Work,
        WorkItem, //
    }, //
};

/// How long the worker waits at a time for what wakes it up, before it looks for itself.
const LOOK: Msecs = 1000;
/// How long it lets the DAX device die before it goes on without: most die in less.
const DEATH: Msecs = 200;
/// How long it pauses at most between two walks, once nobody waits for it.
const PAUSE: Msecs = 10 * LOOK;
/// How long it waits after an allocation has failed.
const RETRY: Msecs = 100;
/// How long unbind waits for references to files to be put, which nothing depends on.
const COURTESY: Msecs = 1000;
/// How often a wait without limit is mentioned in the log, in microseconds.
const MENTION: u64 = 30_000_000;

impl StateCell for Atomic<u32> {
    fn new(value: u32) -> Self {
        Atomic::new(value)
    }

    fn load(&self) -> u32 {
        self.load(Acquire)
    }

    fn replace(&self, old: u32, new: u32) -> bool {
        self.cmpxchg(old, new, Full).is_ok()
    }
}

/// What a bound device consists of, for as long as it is bound.
pub struct Parts {
    /// The disk.
    pub disk: gendisk::Registration<Pmem>,
    /// The DAX device.
    pub dax: Option<dax::Registration<Pmem>>,
    /// What the two share.
    pub pmem: Arc<Pmem>,
    /// The memory.
    pub range: Arc<Counted<PmemRange>>,
}

/// What revocation has done, for the log.
#[derive(Clone, Copy, Default)]
struct Report {
    inodes: u64,
    pages: u64,
    micros: u64,
}

/// The way of a device from bound to gone.
///
/// It is made when the device is bound, so that taking it away needs no memory that may not be there.
#[pin_data]
pub struct Unbind {
    lifecycle: Lifecycle<Atomic<u32>>,
    /// The name of the device, for messages: it may be gone by then.
    name: CString,
    phys: Range<PhysAddr>,
    flusher: Arc<Flusher>,
    /// Completed whenever somebody closes the disk.
    closed: Arc<Completion>,
    /// For the worker.
    #[pin]
    parts: Mutex<Option<Parts>>,
    /// For the work item that kills it.
    #[pin]
    dax: Mutex<Option<dax::Registration<Pmem>>>,
    /// For the work item that puts them.
    #[pin]
    inodes: Mutex<Stack<fs::Inode>>,
    /// It has put all that there were; reset with `inodes` locked.
    #[pin]
    are_put: Completion,
    /// What the worker is doing, see [`Unbind::describe`].
    stage: Atomic<u32>,
    /// Nobody is inside of the DAX device any more.
    #[pin]
    dead: Completion,
    /// As above, for those who only look.
    is_dead: Atomic<bool>,
    /// No file uses the memory any more, except for pinned pages.
    is_revoked: Atomic<bool>,
    /// Somebody who cannot be told still has the disk.
    is_claimed: Atomic<bool>,
    /// There is no point in waiting for those who are left.
    is_hopeless: Atomic<bool>,
    is_done: Atomic<bool>,
    /// The memory, for those who ask who uses it.
    #[pin]
    range: Mutex<Option<Arc<Counted<PmemRange>>>>,
    #[pin]
    report: Mutex<Report>,
    /// Keeps the code for a worker that unbind does not wait for.
    #[pin]
    module: Mutex<Option<ModuleRef>>,
    /// It is done, or hopeless.
    #[pin]
    progress: Completion,
    #[pin]
    work: Work<Unbind, 0>,
    #[pin]
    kill: Work<Unbind, 1>,
    #[pin]
    put: Work<Unbind, 2>,
}

impl_has_work! {
    impl HasWork<Self, 0> for Unbind { self.work }
    impl HasWork<Self, 1> for Unbind { self.kill }
    impl HasWork<Self, 2> for Unbind { self.put }
}

impl WorkItem<0> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.take_away();
    }
}

impl WorkItem<1> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.kill_dax();
    }
}

impl WorkItem<2> for Unbind {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // The last reference to a file may evict it, and the last one to its file system unmount it.
        let inodes = core::mem::take(&mut *this.inodes.lock());

        drop(inodes);
        // Locked until it was said: nobody may add files in between. Modelled in `tests/host/tests/atomics`.
        let waiting = this.inodes.lock();
        if waiting.is_empty() {
            this.are_put.complete_all();
        }
    }
}

/// The device is bound.
const STAGE_BOUND: u32 = 0;
/// The worker removes the disk.
const STAGE_DISK: u32 = 1;
/// It walks through the files for the first time.
const STAGE_FILES: u32 = 2;
/// It waits for users that it knows.
const STAGE_USERS: u32 = 3;

impl Unbind {
    /// Prepares for the end of a device with this name and physical range.
    pub fn new(name: CString, phys: Range<PhysAddr>, flusher: Arc<Flusher>) -> Result<Arc<Self>> {
        let closed = Arc::pin_init(Completion::new(), GFP_KERNEL)?;

        let this = Arc::pin_init(
            try_pin_init!(Self {
                lifecycle: Lifecycle::new(),
                name,
                phys,
                flusher,
                closed,
                parts <- new_mutex!(None, "pmem_rs::Unbind::parts"),
                dax <- new_mutex!(None, "pmem_rs::Unbind::dax"),
                inodes <- new_mutex!(Stack::new(), "pmem_rs::Unbind::inodes"),
                are_put <- Completion::new(),
                stage: Atomic::new(STAGE_BOUND),
                dead <- Completion::new(),
                is_dead: Atomic::new(false),
                is_revoked: Atomic::new(false),
                is_claimed: Atomic::new(false),
                is_hopeless: Atomic::new(false),
                is_done: Atomic::new(false),
                range <- new_mutex!(None, "pmem_rs::Unbind::range"),
                report <- new_mutex!(Report::default(), "pmem_rs::Unbind::report"),
                module <- new_mutex!(None, "pmem_rs::Unbind::module"),
                progress <- Completion::new(),
                work <- new_work!("pmem_rs::Unbind::work"),
                kill <- new_work!("pmem_rs::Unbind::kill"),
                put <- new_work!("pmem_rs::Unbind::put"),
            }),
            GFP_KERNEL,
        )?;
        this.are_put.complete_all();
        Ok(this)
    }

    /// Returns the completion for [`gendisk::GenDisk::new`].
    pub fn closed(&self) -> Arc<Completion> {
        self.closed.clone()
    }

    /// Returns the physical range.
    pub fn phys(&self) -> Range<PhysAddr> {
        self.phys.clone()
    }

    /// Lists the device, which is bound from now on. May sleep.
    pub fn set_bound(self: &Arc<Self>, range: Arc<Counted<PmemRange>>) -> Result {
        SHARED.get().ok_or(ENODEV)?.add_bound(self.clone())?;
        *self.range.lock() = Some(range);
        Ok(())
    }

    /// Takes the device away. Returns when it is gone, or retired after `limit` milliseconds; 0 means
    /// to wait for as long as it takes.
    ///
    /// Called while the device is being unbound, with its lock held. Sleeps.
    pub fn run(self: Arc<Self>, parts: Parts, limit: Msecs) {
        if !self.lifecycle.begin() {
            return;
        }
        if let Some(shared) = SHARED.get() {
            shared.remove_bound(&self);
        }
        // The `struct page`s on the media go with it, whoever uses them.
        let limit = if parts.range.memmap_is_on_media() {
            0
        } else {
            limit
        };
        *self.parts.lock() = Some(parts);

        let queued = SHARED
            .get()
            .is_some_and(|shared| shared.queue.enqueue::<_, 0>(self.clone()).is_ok());
        if !queued {
            self.take_away();
        }

        let retired = self.wait(limit);
        // Who unmounts next, or removes the device-mapper device below a file system, should not find it
        // busy because of references of ours.
        if !retired {
            self.are_put.wait_timeout(COURTESY);
        }
        self.tell_user_space(retired);
    }

    /// Waits until the range is gone, or can be retired: at the deadline, or when it is hopeless to wait.
    /// Returns whether it was retired.
    fn wait(self: &Arc<Self>, limit: Msecs) -> bool {
        let began = Stopwatch::start();
        let limit_micros = u64::from(limit).saturating_mul(1000);
        let mut mentioned = 0;

        while !self.is_done.load(Acquire) {
            let waited = began.micros();
            let late = limit != 0
                && (waited >= limit_micros || self.is_hopeless.load(Acquire))
                && self.is_revoked.load(Acquire);
            if late && self.retire() {
                return true;
            }

            if waited / MENTION > mentioned {
                mentioned = waited / MENTION;
                pr_warn!("still waiting to unbind {}\n", self.describe());
            }
            // Until the deadline, in steps; and after it, if it cannot be retired, too.
            let rest = match limit_micros.saturating_sub(waited).div_ceil(1000) {
                0 => LOOK,
                rest => Msecs::try_from(rest).unwrap_or(LOOK).min(LOOK),
            };
            self.progress.wait_timeout(rest);
        }
        false
    }

    /// Lets unbind retire the range at once.
    fn retire_now(&self) {
        if !self.is_hopeless.xchg(true, Full) {
            self.progress.complete();
        }
    }

    /// Leaves the range to the worker. Returns whether it is retired now.
    fn retire(self: &Arc<Self>) -> bool {
        // While the module is being unloaded, there is nobody to leave it to.
        let Some(module) = ModuleRef::try_get(this_module::<crate::LocalModule>()) else {
            return false;
        };
        let Some(shared) = SHARED.get() else {
            return false;
        };
        *self.module.lock() = Some(module);
        // Before the state changes: from then on the worker may take it off again.
        if shared.add_retired(self.clone()).is_err() {
            return false;
        }
        if !self.lifecycle.retire() {
            shared.remove_retired(self);
            return false;
        }

        if let Some(range) = &*self.range.lock() {
            range.mark_retired();
        }
        // It is the last time that the region can be reached.
        self.flush();
        pr_warn!(
            "retired {}; it is freed when they are done, and cannot be bound until then\n",
            self.describe()
        );
        true
    }

    /// Makes what was written durable. If that fails, the log has it, and there is nobody else to tell.
    fn flush(&self) {
        let _ = self.flusher.flush();
    }

    /// Sends an event with what was revoked.
    fn tell_user_space(&self, retired: bool) {
        let report = *self.report.lock();
        if report.inodes == 0 && !retired {
            return;
        }

        let variables = || -> Result<_> {
            Ok([
                CString::try_from_fmt(fmt!("PMEM_RS_REVOKED={}", report.pages))?,
                CString::try_from_fmt(fmt!("PMEM_RS_INODES={}", report.inodes))?,
                CString::try_from_fmt(fmt!("PMEM_RS_RETIRED={}", u32::from(retired)))?,
            ])
        };
        let sent = variables().and_then(|[pages, inodes, retired]| {
            self.flusher
                .region()
                .with_device(|dev| kobject::notify_change(dev, [&*pages, &*inodes, &*retired]))?
        });
        if let Err(err) = sent {
            pr_warn!(
                "{}: could not send an event: error {}\n",
                *self.name,
                err.to_errno()
            );
        }
    }

    /// What the second work item does.
    fn kill_dax(&self) {
        let dax = self.dax.lock().take();

        if let Some(mut dax) = dax {
            // The removal of the disk has told him, unless he is unmounting.
            dax.release_holder();
            drop(dax);
        }
        self.is_dead.store(true, Release);
        self.dead.complete_all();
    }

    /// What the worker does.
    fn take_away(self: &Arc<Self>) {
        let began = Stopwatch::start();
        let Some(parts) = self.parts.lock().take() else {
            return;
        };
        self.stage.store(STAGE_DISK, Relaxed);
        let Parts {
            disk,
            dax,
            pmem,
            range,
        } = parts;
        // Nobody gets a hold any more. It takes a grace period to be sure of that, which may as well
        // pass while other things are done.
        range.kill();
        // A holder of the disk that keeps addresses holds the range by this.
        let hold = pmem.range.clone();

        // From here on no page can be pinned that was not mapped before; so the files that are found now
        // are all that the eviction of inodes could wait for.
        if let Some(gate) = range.gate() {
            gate.close_to_mappings();
        }
        let mut files = Stack::new();
        while range.is_exposed() && !self.find_files(&range, &mut files) {
            sleep(RETRY);
        }
        let claims = loop {
            match disk.claims() {
                Ok(claims) => break claims,
                // Not to know them is not to know whether the memory may go.
                Err(_) => sleep(RETRY),
            }
        };
        drop(disk);

        if let Some(gate) = range.gate() {
            gate.close();
        }
        drop(pmem);
        self.stage.store(STAGE_FILES, Relaxed);
        self.end_translations(dax);

        self.drain(&range, &mut files, &claims, began);
        drop(hold);
        self.finish(range, files);
    }

    /// Lets the DAX device die. That may take longer than this.
    fn end_translations(self: &Arc<Self>, dax: Option<dax::Registration<Pmem>>) {
        *self.dax.lock() = dax;

        let queued = SHARED
            .get()
            .is_some_and(|shared| shared.queue.enqueue::<_, 1>(self.clone()).is_ok());
        if !queued {
            self.kill_dax();
        }
        self.dead.wait_idle_timeout(DEATH);
    }

    /// Replaces what is known of the files that use a range, or may be about to. Returns whether all
    /// were found.
    fn find_files(self: &Arc<Self>, range: &PmemRange, files: &mut Stack<fs::Inode>) -> bool {
        let frames = range.frames();
        let fs::Found {
            wanted,
            others,
            result,
        } = fs::dax_inodes(this_module::<crate::LocalModule>(), |file| {
            file.may_use(&frames)
        });

        // Those that were known before may go now: who still uses the range has been found again.
        match result {
            Ok(()) => self.put_later(core::mem::replace(files, wanted)),
            Err(_) => self.put_later(wanted),
        }
        self.put_later(others);
        result.is_ok()
    }

    /// Puts references to inodes, without waiting for what that may wait for.
    fn put_later(self: &Arc<Self>, mut inodes: Stack<fs::Inode>) {
        if inodes.is_empty() {
            return;
        }
        {
            let mut waiting = self.inodes.lock();
            waiting.append(&mut inodes);
            self.are_put.reinit();
        }

        // If it is queued already, it will find these too.
        let _ = SHARED
            .get()
            .map(|shared| shared.queue.enqueue::<_, 2>(self.clone()));
    }

    /// Revokes and waits until nobody uses the range any more.
    fn drain(
        self: &Arc<Self>,
        range: &PmemRange,
        files: &mut Stack<fs::Inode>,
        claims: &Claims,
        began: Stopwatch,
    ) {
        let mut walk = Walk::None;
        // Pages before this one are not in use, and stay so.
        let mut next = 0;
        let mut pause: Msecs = 1;

        loop {
            let dead = self.is_dead.load(Acquire);
            let page = if dead && walk == Walk::Complete {
                let page = range.first_used(next);
                next = page.as_ref().map_or(u64::MAX, |page| page.frames().start);
                page
            } else {
                None
            };
            self.closed.reinit();
            // Who never asked for a page frame has no address either.
            let claimed = range.is_exposed() && claims.are_left();
            self.is_claimed.store(claimed, Relaxed);
            let users = Users {
                dead,
                walk,
                page: page.as_ref().map(|page| {
                    if page.is_referenced() {
                        PageUse::Referenced
                    } else {
                        PageUse::Cached
                    }
                }),
                claimed,
            };

            match users.next_step() {
                Step::Walk => {
                    if walk == Walk::Complete {
                        // Somebody else is about to let go of what is left. Do not run in circles.
                        sleep(pause);
                        let most = if self.lifecycle.state() == State::Retired {
                            PAUSE
                        } else {
                            LOOK
                        };
                        pause = pause.saturating_mul(2).min(most);
                    }
                    if self.revoke(range, files) {
                        walk = if dead { Walk::Complete } else { Walk::Early };
                        self.report_revoked(range, began);
                    } else {
                        sleep(RETRY);
                    }
                }
                Step::AwaitTranslations => {
                    self.dead.wait_idle_timeout(LOOK);
                }
                Step::AwaitPage => {
                    if let Some(page) = page {
                        page.wait_idle(LOOK);
                        pause = 1;
                    }
                }
                Step::AwaitClaims => {
                    // They do not know that anybody is waiting. And they may be below one of the file
                    // systems that the files keep.
                    self.put_later(core::mem::take(files));
                    self.retire_now();
                    self.closed.wait_idle_timeout(LOOK);
                }
                Step::Free => return,
            }
        }
    }

    /// Goes through the files once. Returns whether that was possible.
    fn revoke(self: &Arc<Self>, range: &PmemRange, files: &mut Stack<fs::Inode>) -> bool {
        // Whoever passes the gate has said so before.
        if !range.is_exposed() {
            return true;
        }
        if !self.find_files(range, files) {
            return false;
        }

        let frames = range.frames();
        let first = !self.is_revoked.load(Relaxed);
        let mut released = Stack::new();
        let mut kept = Stack::new();
        while let Some(file) = files.pop_node() {
            let revoked = file
                .value()
                .mapping()
                .revoke(&frames, |dirty| range.write_back(dirty));
            {
                let mut report = self.report.lock();
                report.pages = report.pages.saturating_add(revoked.pages);
                if first && revoked != dax::Revoked::default() {
                    report.inodes = report.inodes.saturating_add(1);
                }
            }

            // It stays if it has pinned pages.
            if file.value().mapping().uses(&frames) {
                kept.push_node(file);
            } else {
                released.push_node(file);
            }
        }
        *files = kept;
        self.put_later(released);
        true
    }

    /// Says once that no file uses the memory any more.
    fn report_revoked(&self, range: &PmemRange, began: Stopwatch) {
        if self.is_revoked.load(Relaxed) {
            return;
        }
        if self.lifecycle.state() == State::Dying {
            self.flush();
        }

        let report = {
            let mut report = self.report.lock();
            report.micros = began.micros();
            *report
        };
        if range.is_exposed() {
            pr_info!(
                "{}: revoked: {} inodes, {} pages, {} us\n",
                *self.name,
                report.inodes,
                report.pages,
                report.micros
            );
        }
        self.is_revoked.store(true, Release);
        self.stage.store(STAGE_USERS, Relaxed);
    }

    /// Frees the range, which nobody uses any more.
    fn finish(self: &Arc<Self>, range: Arc<Counted<PmemRange>>, files: Stack<fs::Inode>) {
        let drained = self.lifecycle.drained();
        if drained == Some(Drained::InTime) {
            // What later walks wrote back.
            self.flush();
        }

        // Others look at it under the lock only, so the last reference is the one that was passed.
        drop(self.range.lock().take());
        drop(range);
        self.lifecycle.freed();

        if drained == Some(Drained::Late) {
            if let Some(shared) = SHARED.get() {
                shared.remove_retired(self);
            }
            pr_info!("{}: the retired range is free\n", *self.name);
        }
        // Before unbind returns: after that the module may be unloaded, and the queue with it.
        self.put_later(files);
        self.is_done.store(true, Release);
        self.progress.complete_all();

        // The module may go as soon as the queue is empty.
        drop(self.module.lock().take());
    }
}

impl Unbind {
    /// Says who uses the range. It sleeps, so that it cannot be done while something is printed.
    pub fn describe(&self) -> Description {
        let (used, exposed) = match &*self.range.lock() {
            Some(range) => (range.count_used(), range.exposed_bytes()),
            None => (PagesInUse::default(), 0),
        };
        // All of it is read once: what is printed is formatted twice, first for its length.
        let words = Words {
            unbind: self,
            used,
            exposed,
            stage: self.stage.load(Relaxed),
            claimed: self.is_claimed.load(Relaxed),
            dead: self.is_dead.load(Acquire),
        };

        Description(CString::try_from_fmt(fmt!("{words}")).ok())
    }
}

/// Who uses a range, in words, if there was memory for them.
pub struct Description(Option<CString>);

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(words) => fmt::Display::fmt(&**words, f),
            None => f.write_str("a range"),
        }
    }
}

struct Words<'a> {
    unbind: &'a Unbind,
    used: PagesInUse,
    /// In bytes.
    exposed: u64,
    stage: u32,
    claimed: bool,
    dead: bool,
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self {
            unbind: this,
            used,
            exposed,
            stage,
            claimed,
            dead,
        } = self;
        f.write_fmt(fmt!(
            "{} [mem {:#x}-{:#x}], ",
            *this.name,
            this.phys.start,
            this.phys.end.saturating_sub(1)
        ))?;

        if stage == STAGE_BOUND {
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
        if claimed {
            f.write_str(" (a holder of the disk: device-mapper, md or swap)")?;
        }
        match stage {
            STAGE_DISK => {
                return f.write_str(" (a file system on the disk that does not shut down)")
            }
            STAGE_FILES => return f.write_str(" (files, of which one is locked)"),
            _ => {}
        }
        if !dead {
            f.write_str(" (translation: a DAX read or write that hangs somewhere in the system)")?;
        }
        if used == PagesInUse::default() && !claimed && dead {
            f.write_str(" nobody any more")?;
        }
        Ok(())
    }
}
