// SPDX-License-Identifier: GPL-2.0

//! Unbinding between the translation and the insertion of a page fault, during unmount, and during
//! a truncate that has waited for a pin.
//!
//! The module `window` blocks faults there until the DAX device has been killed. Entries that they
//! insert later must not stay: after unbind, no page of the file can be reached through the
//! mapping. `docs/window.md` says which part of the driver each test is about.

use std::collections::HashMap;
use std::fs::{self, File};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::pipe;

use super::copying::copy_from_another_device;
use super::fixture::{Fixture, LEN, contents};
use super::users::SIGNAL_LIMIT;
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT, Under, Way};
use crate::bus_error;
use crate::command::run;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, PMD, Sharing, need_huge_pages};
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::retired;
use crate::suites::{Suite, Test};
use crate::sysfs;
use crate::tracing::FaultTrace;

macro_rules! tests {
    ($($name:ident: $fs:ident $touch:ident $size:ident $position:ident $window:ident,)*) => {
        &[$(Test::new(stringify!($name), |lab| {
            let case = Case {
                fs: Fs::$fs,
                touch: Touch::$touch,
                size: Size::$size,
                position: Position::$position,
                window: Window::$window,
            };
            case.run(lab)
        }),)*
            Test::new("xfs_being_unmounted", being_unmounted),
            Test::new("ext4_truncate_after_a_pin", |lab| truncate_after_a_pin(lab, Fs::Ext4)),
            Test::new("xfs_truncate_after_a_pin", |lab| truncate_after_a_pin(lab, Fs::Xfs)),
            Test::new("copy_from_another_device", copy_from_another_device),
        ]
    };
}

pub const SUITE: Suite = Suite {
    name: "window",
    tests: tests! {
        ext4_read: Ext4 Load Page Translated Open,
        ext4_read_of_pmd: Ext4 Load Pmd Translated Open,
        ext4_read_being_translated: Ext4 Load Page Translating Open,
        ext4_write: Ext4 Store Page Translated ClosedByJournal,
        ext4_map_sync_write_synced: Ext4 StoreSync Page Synced Open,
        ext4_nojournal_write: Ext4NoJournal Store Page Translated Open,
        ext4_nojournal_write_of_pmd: Ext4NoJournal Store Pmd Translated Open,
        ext4_nojournal_map_sync_write: Ext4NoJournal StoreSync Page Translated Open,
        xfs_read: Xfs Load Page Translated Open,
        xfs_write: Xfs Store Page Translated Open,
        xfs_write_of_pmd: Xfs Store Pmd Translated Open,
        xfs_map_sync_write: Xfs StoreSync Page Translated Open,
        xfs_map_sync_write_synced: Xfs StoreSync Page Synced Open,
        xfs_rmap_read: XfsRmap Load Page Translated Open,
        xfs_rmap_write: XfsRmap Store Page Translated Open,
        xfs_reflink_read: XfsReflink Load Page Translated Open,
        xfs_reflink_write: XfsReflink Store Page Translated Open,
        erofs_read: Erofs Load Page Translated Open,
        erofs_read_of_pmd: Erofs Load Pmd Translated Open,
        erofs_read_being_translated: Erofs Load Page Translating Open,
    },
};

/// How long faults are blocked after the device was killed: longer than the driver waits for pinned
/// pages.
pub(super) const HELD: Duration = Duration::from_millis(2000);
/// How long they are blocked if the device is not killed at all.
const HELD_AT_MOST: Duration = Duration::from_millis(4000);
/// The same for a truncate: it is still blocked when unbind has returned.
const HELD_TRUNCATE: Duration = Duration::from_secs(10);
/// How long the range may stay after the truncate has ended. The driver's pauses are longer by
/// then, but it waits for the lock of the file instead.
const FREE_AFTER_TRUNCATE: Duration = Duration::from_secs(2);
/// How long the threads may take to enter their faults, and to leave them.
pub(super) const FAULT_LIMIT: Duration = Duration::from_secs(10);
/// How long a thread may take to wait for a page.
const QUEUE_TIME: Duration = Duration::from_millis(200);

pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The maximum number of reachable pages that are listed.
const SHOWN: usize = 8;

/// The name of threads that the module blocks.
pub(super) const HELD_NAME: &str = "window";
/// The name of a thread that it does not block.
const QUEUED_NAME: &str = "queued";

/// How a page is accessed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Touch {
    Load,
    Store,
    /// In a mapping with `MAP_SYNC`, of a file without blocks: only then such a fault syncs.
    StoreSync,
}

/// The size that one fault maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Size {
    Page,
    Pmd,
}

/// Where faults, unmounts or truncates are blocked; the numbers are the module's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Position {
    Translating = 0,
    Translated = 1,
    Synced = 2,
    Unmounted = 3,
    PinWaitedFor = 4,
    Copying = 5,
}

/// Whether faults are still blocked when the device is killed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Window {
    Open,
    /// A write fault of ext4 is a transaction of the journal, and the file system is synced before
    /// anything else happens.
    ClosedByJournal,
}

/// A test case.
#[derive(Clone, Copy)]
struct Case {
    fs: Fs,
    touch: Touch,
    size: Size,
    position: Position,
    window: Window,
}

impl Case {
    fn run(self, lab: &Lab) -> Result<()> {
        if self.size == Size::Pmd {
            need_huge_pages()?;
        }
        let fixture = Fixture::build(lab, self.fs, Under::Whole)?;
        let module = Module::load(self.position)?;
        let known = (self.touch != Touch::StoreSync).then(|| self.map(&fixture));
        if let Some(mapping) = known {
            let mapping = mapping?;
            for &offset in self.known() {
                mapping.load(offset);
            }
        }
        let trace = FaultTrace::start()?;

        let mut user =
            Child::start_ready("the faulting process", |link| self.work(&fixture, link))?;
        let count = self.offsets().count();
        module.expect_blocked(count)?;
        if self.has_queue() {
            user.go()?;
            user.hear("queued", FAULT_LIMIT)?;
        }
        let held = match self.window {
            Window::Open => HELD,
            Window::ClosedByJournal => HELD_AT_MOST,
        };
        let took = Way::Unbind.go(&fixture, held + UNBIND_LIMIT)?;
        println!("gone after {} ms", took.as_millis());
        self.expect_was_open(&module, count)?;

        user.hear("through", FAULT_LIMIT)?;
        if self.size == Size::Pmd {
            let (pmds, pages) = (trace.pmds_installed()?, trace.pages_installed()?);
            ensure!(
                pmds == count && pages == 0,
                "{pmds} PMDs and {pages} pages were mapped, expected {count} PMDs"
            );
        }
        user.go()?;
        user.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?;
        drop((trace, module));
        expect_no_thread_stuck()?;

        give_back(fixture)
    }

    /// Checks that the faults were blocked when the device was killed, and were not any more when
    /// it was gone.
    fn expect_was_open(self, module: &Module, count: usize) -> Result<()> {
        let state = module.state()?;
        let expect = |name: &str, wanted: usize| expect(&state, name, wanted);
        expect("asleep", 0)?;
        expect("slept", count)?;
        match (self.window, self.position) {
            (Window::Open, Position::Translating) => {
                expect("at_kill", count)?;
                expect("at_death", 0)?;
                expect("gave_up", 0)
            }
            (Window::Open, _) => {
                expect("at_death", count)?;
                expect("gave_up", 0)
            }
            (Window::ClosedByJournal, _) => {
                expect("at_kill", 0)?;
                expect("gave_up", count)
            }
        }
    }

    /// Offsets in the file without an entry in the page cache.
    fn fresh(self) -> &'static [usize] {
        match self.size {
            Size::Page => &[0, 3 * PAGE],
            Size::Pmd => &[0],
        }
    }

    /// Offsets with an entry in the page cache, since they are or were mapped elsewhere.
    fn known(self) -> &'static [usize] {
        match (self.size, self.touch) {
            (_, Touch::StoreSync) => &[],
            (Size::Page, _) => &[PMD, PMD + 5 * PAGE],
            (Size::Pmd, _) => &[PMD],
        }
    }

    fn offsets(self) -> impl Iterator<Item = usize> {
        self.fresh().iter().chain(self.known()).copied()
    }

    /// Whether another thread faults on the same page and waits for the entry. This is not the case
    /// if it would wait for the journal instead.
    fn has_queue(self) -> bool {
        self.position == Position::Translated && self.window != Window::ClosedByJournal
    }

    fn map(self, fixture: &Fixture<'_>) -> Result<Mapping> {
        if self.touch == Touch::StoreSync {
            let file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(fixture.root()?.join("sparse"))?;
            file.set_len(LEN as u64)?;
            return Ok(Mapping::of_pages(&file, LEN, Sharing::Synchronous, true)?);
        }
        match self.size {
            Size::Page => fixture.map(Sharing::Shared),
            Size::Pmd => fixture.map_large(),
        }
    }

    /// The process with the faulting threads.
    fn work(self, fixture: &Fixture<'_>, link: &mut Link) -> Result<()> {
        let mapping = Arc::new(self.map(fixture)?);
        let through = Arc::new(AtomicUsize::new(0));
        let wrong = Arc::new(AtomicUsize::new(0));
        let contents = Arc::new(contents());
        bus_error::ends_thread()?;

        // All threads exist, and have allocated their memory, before the first one faults: a change
        // of the address space may have to wait for faults.
        let up = Arc::new(AtomicUsize::new(0));
        let start = |name: &str, offset: usize, go: &Arc<AtomicBool>| -> Result<()> {
            let (mapping, contents, go) = (mapping.clone(), contents.clone(), go.clone());
            let (up, through, wrong) = (up.clone(), through.clone(), wrong.clone());
            // The thread is never joined, since it may be killed.
            Builder::new().name(name.to_owned()).spawn(move || {
                up.fetch_add(1, Ordering::SeqCst);
                while !go.load(Ordering::SeqCst) {
                    sleep(POLL_INTERVAL);
                }
                match self.touch {
                    Touch::Load => {
                        if mapping.load(offset) != contents[offset] {
                            wrong.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    Touch::Store | Touch::StoreSync => mapping.store(offset, contents[offset]),
                }
                through.fetch_add(1, Ordering::SeqCst);
            })?;
            Ok(())
        };
        let (held_go, queued_go) = (Arc::default(), Arc::default());
        let mut count = 0;
        for offset in self.offsets() {
            start(HELD_NAME, offset, &held_go)?;
            count += 1;
        }
        if self.has_queue() {
            start(QUEUED_NAME, 0, &queued_go)?;
            count += 1;
        }
        while up.load(Ordering::SeqCst) < count {
            sleep(POLL_INTERVAL);
        }
        held_go.store(true, Ordering::SeqCst);
        link.say("ready")?;
        if self.has_queue() {
            link.wait()?;
            queued_go.store(true, Ordering::SeqCst);
            sleep(QUEUE_TIME);
            link.say("queued")?;
        }

        let ended = || through.load(Ordering::SeqCst) + bus_error::ended_threads();
        while ended() < count {
            sleep(POLL_INTERVAL);
        }
        println!(
            "{} threads went on, {} got a SIGBUS",
            through.load(Ordering::SeqCst),
            bus_error::ended_threads()
        );
        ensure!(wrong.load(Ordering::SeqCst) == 0, "wrong data was read");
        link.say("through")?;
        link.wait()?;
        self.expect_unreachable(&mapping)?;
        bus_error::ends_process()?;
        mapping.load(0);
        bail!("the file can still be read through the mapping");
    }

    /// Checks that no page of the mapping can be read. The kernel does the read, and gets an error
    /// where the process would get a signal.
    fn expect_unreachable(self, mapping: &Mapping) -> Result<()> {
        let path = "/tmp/reached";
        let file = File::create(path)?;
        let mut reached = Vec::new();
        let pages: Vec<usize> = match self.touch {
            // The rest of the file are holes, which read as zeros without the device.
            Touch::StoreSync => self.offsets().collect(),
            Touch::Load | Touch::Store => (0..LEN).step_by(PAGE).collect(),
        };
        for offset in pages {
            match mapping.write_to(offset, 1, &file, 0) {
                Ok(()) => reached.push(offset / PAGE),
                Err(error) => {
                    let errno = error.raw_os_error().map(Errno::from_raw);
                    ensure!(
                        errno == Some(Errno::EFAULT),
                        "reading page {} failed with `{error}`, expected EFAULT",
                        offset / PAGE
                    );
                }
            }
        }
        fs::remove_file(path)?;
        reached.truncate(SHOWN);
        ensure!(
            reached.is_empty(),
            "the device is gone, and pages of the file can still be read through the mapping: \
             {reached:?}"
        );
        Ok(())
    }
}

/// xfs keeps its DAX device until the very end of an unmount, when it can no longer be notified.
fn being_unmounted(lab: &mut Lab) -> Result<()> {
    let mut fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let module = Module::load(Position::Unmounted)?;
    let root = fixture.root()?;
    fixture.leave_mount();
    let unmount = Builder::new()
        .name(HELD_NAME.to_owned())
        .spawn(move || umount2(&root, MntFlags::empty()))?;
    module.expect_blocked(1)?;

    Way::Unbind.go(&fixture, HELD + UNBIND_LIMIT)?;
    let ended = unmount
        .join()
        .map_err(|_| anyhow!("the thread that unmounts panicked"))?;
    ended.context("unmounting")?;
    let state = module.state()?;
    expect(&state, "at_death", 1)?;
    expect(&state, "gave_up", 0)?;
    drop(module);
    expect_no_thread_stuck()?;

    give_back(fixture)
}

/// A truncate that waits for a pin has a pointer to the `struct page` without a reference, and
/// reads it again when the pin is gone. Until then the page must stay, although it is idle.
fn truncate_after_a_pin(lab: &mut Lab, fs: Fs) -> Result<()> {
    let fixture = Fixture::build(lab, fs, Under::Whole)?;
    let module = Module::load_for(Position::PinWaitedFor, HELD_TRUNCATE)?;
    let used = fixture.open()?;
    let mapping = fixture.map(Sharing::Shared)?;
    let (reader, writer) = pipe()?;
    let given = mapping.give_to_pipe(0, PAGE, &writer)?;
    ensure!(given == PAGE, "{given} bytes were put into the pipe");
    let truncated = Builder::new()
        .name(HELD_NAME.to_owned())
        .spawn(move || used.set_len(0))?;
    sleep(QUEUE_TIME);
    ensure!(
        !truncated.is_finished(),
        "the truncate has not waited for the pin"
    );
    drop((reader, writer));
    module.expect_blocked(1)?;

    Way::Unbind.go(&fixture, UNBIND_LIMIT)?;
    retired::expect(1)?;
    expect(&module.state()?, "asleep", 1)?;
    let ended = truncated
        .join()
        .map_err(|_| anyhow!("the thread that truncates panicked"))?;
    println!("the truncate ended with {ended:?}");
    retired::await_none(FREE_AFTER_TRUNCATE)?;
    let state = module.state()?;
    expect(&state, "at_death", 1)?;
    expect(&state, "gave_up", 0)?;
    drop((mapping, module));
    give_back(fixture)
}

/// Releases everything, binds the device again, and checks that everything is intact.
fn give_back(mut fixture: Fixture<'_>) -> Result<()> {
    fixture.remove_devices()?;
    retired::await_none(FREE_LIMIT)?;
    Way::Unbind.come_back(&fixture)?;
    fixture.expect_intact()?;
    expect_no_thread_stuck()
}

/// Checks one of the module's counters.
pub(super) fn expect(state: &HashMap<String, usize>, name: &str, wanted: usize) -> Result<()> {
    let found = state.get(name).copied();
    ensure!(
        found == Some(wanted),
        "{name} is {found:?}, expected {wanted}: {state:?}"
    );
    Ok(())
}

/// The module `window`, while it is loaded.
pub(super) struct Module(());

impl Module {
    const NAME: &str = "window";
    const STATE: &str = "/sys/kernel/debug/window/state";

    pub(super) fn load(position: Position) -> Result<Module> {
        Module::load_for(position, HELD)
    }

    fn load_for(position: Position, held: Duration) -> Result<Module> {
        let parameters = [
            format!("place={}", position as u8),
            format!("ms={}", held.as_millis()),
            format!("max_ms={}", (2 * held).as_millis()),
        ];
        let [place, ms, max_ms] = &parameters;
        run("modprobe", &[Module::NAME, place, ms, max_ms])?;
        Ok(Module(()))
    }

    /// Its counters.
    pub(super) fn state(&self) -> Result<HashMap<String, usize>> {
        let text = sysfs::read(Module::STATE)?;
        text.lines()
            .map(|line| {
                let (name, number) = line.split_once(' ').context("not a name and a number")?;
                Ok((name.to_owned(), number.parse()?))
            })
            .collect()
    }

    /// Waits until this number of threads are blocked.
    pub(super) fn expect_blocked(&self, count: usize) -> Result<()> {
        let deadline = Instant::now() + FAULT_LIMIT;
        loop {
            let state = self.state()?;
            if state.get("asleep") == Some(&count) {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "{count} threads should be blocked: {state:?}"
            );
            sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // If it cannot be removed, the next test fails to load it.
        let _ = run("rmmod", &[Module::NAME]);
    }
}
