// SPDX-License-Identifier: GPL-2.0

//! Blocks page faults between translation and insertion, unmounts before their end, and truncates
//! after the wait for a pin, so that tests can unbind the device at that moment.
//!
//! A thread named `window` is blocked in the fault path of `fs/dax.c`, in an unmount, or in a
//! truncate, at the position `place`, until `ms` milliseconds after the first `kill_dax()`, but no
//! longer than `max_ms`. Faults that begin after that are not blocked. The debugfs file
//! `window/state` has the counters. Not a part of the driver.
//!
//! It works like livepatch: ftrace calls back at the entry of a function, and the callback makes
//! the CPU continue in a detour instead, which calls the real function. A call from this module
//! itself is not diverted.

use core::{
    borrow::Borrow,
    ptr::addr_of_mut, //
};
use kernel::{
    debugfs::File,
    error::to_result,
    fmt,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    task::Task,
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    },
};

/// With the patches of `upstream/`, a folder knows the module that its files belong to.
#[cfg(CONFIG_BLK_DEV_PMEM_RUST)]
type Dir = kernel::debugfs::Dir<LocalModule>;
#[cfg(not(CONFIG_BLK_DEV_PMEM_RUST))]
use kernel::debugfs::Dir;

/// The name of the threads that are blocked.
const THREAD_NAME: &[u8] = b"window\0";
/// How often a blocked thread checks whether it may go on.
const TICK: Delta = Delta::from_millis(10);
/// How long the walk is blocked at most, in ticks.
const WALK_TICKS: u32 = 500;
/// How long the walk stays blocked after the last fault was released, so that the fault can end
/// first.
const HEAD_START: Delta = Delta::from_millis(300);
/// After how many rounds over a file's pages the walk is blocked.
const ROUNDS: u32 = 2;

/// Where a fault is blocked.
mod place {
    /// The page is translated, but `dax_read_lock` is still held.
    pub(crate) const TRANSLATING: u8 = 0;
    /// `dax_read_lock` is no longer held; the entry in the page cache is locked, and does not yet
    /// refer to a page if it is new.
    pub(crate) const TRANSLATED: u8 = 1;
    /// A fault of `MAP_SYNC` has unlocked the entry and synced the file, and is about to insert the
    /// page. To show what can happen here, the walk of `dax_layout_busy_page_range` over the file
    /// is blocked too, after its second round, until the fault has ended.
    pub(crate) const SYNCED: u8 = 2;
    /// Not a fault: an unmount has shut down the file system and released its disk, but the file
    /// system still has its DAX device.
    pub(crate) const UNMOUNTED: u8 = 3;
    /// Not a fault: a truncate has waited for a pin, and is about to take the invalidate lock
    /// again.
    pub(crate) const PIN_WAITED_FOR: u8 = 4;
    /// A write fault on a shared block has translated both blocks, and is about to copy. The entry
    /// is locked, and `dax_read_lock` is not held.
    pub(crate) const COPYING: u8 = 5;
}

/// `struct ftrace_ops`, only the address of which is used.
#[repr(C)]
struct FtraceOps([u8; 0]);

/// `struct ftrace_regs`.
#[repr(C)]
struct FtraceRegs([u8; 0]);

extern "C" {
    // From ftrace.c.
    static mut window_dax_read_unlock_ops: FtraceOps;
    static mut window_vfs_fsync_range_ops: FtraceOps;
    static mut window_kill_dax_ops: FtraceOps;
    static mut window_dax_layout_busy_page_range_ops: FtraceOps;
    static mut window_kill_block_super_ops: FtraceOps;
    static mut window_down_write_ops: FtraceOps;
    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
    static mut window_down_write_nested_ops: FtraceOps;
    fn window_is_own(ip: c_ulong) -> bool;
    fn window_go_to(fregs: *mut FtraceRegs, ip: c_ulong);
    fn window_synchronize_rcu_tasks();

    // From the kernel.
    fn ftrace_set_filter_ip(ops: *mut FtraceOps, ip: c_ulong, remove: c_int, reset: c_int)
        -> c_int;
    fn register_ftrace_function(ops: *mut FtraceOps) -> c_int;
    fn unregister_ftrace_function(ops: *mut FtraceOps) -> c_int;
    fn ftrace_free_filter(ops: *mut FtraceOps);
    fn dax_read_unlock(id: c_int);
    fn vfs_fsync_range(file: *mut c_void, start: i64, end: i64, datasync: c_int) -> c_int;
    fn kill_dax(dax_dev: *mut c_void);
    fn dax_layout_busy_page_range(mapping: *mut c_void, start: i64, end: i64) -> *mut c_void;
    fn kill_block_super(sb: *mut c_void);
    fn down_write(sem: *mut c_void);
    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
    fn down_write_nested(sem: *mut c_void, subclass: c_int);
}

/// The counters.
#[derive(Debug)]
struct Count {
    /// Threads that are inside of a detour.
    inside: Atomic<u32>,
    /// Threads that are blocked.
    asleep: Atomic<u32>,
    /// Threads that were blocked so far.
    slept: Atomic<u32>,
    /// Those of them that were released by `max_ms`.
    gave_up: Atomic<u32>,
    /// Set once `kill_dax()` was called.
    killing: Atomic<bool>,
    /// Threads that were blocked at that time.
    at_kill: Atomic<u32>,
    /// Threads that were blocked when `kill_dax()` had returned.
    at_death: Atomic<u32>,
    /// Rounds of the walk since.
    rounds: Atomic<u32>,
    /// Whether the walk was blocked, too.
    walk_held: Atomic<bool>,
    /// Whether a thread that is to be blocked has found a pinned page. It sleeps next.
    pin_found: Atomic<bool>,
    /// Whether a thread that is to be blocked has translated the block that it writes to.
    translated: Atomic<bool>,
}

static COUNT: Count = Count {
    inside: Atomic::new(0),
    asleep: Atomic::new(0),
    slept: Atomic::new(0),
    gave_up: Atomic::new(0),
    killing: Atomic::new(false),
    at_kill: Atomic::new(0),
    at_death: Atomic::new(0),
    rounds: Atomic::new(0),
    walk_held: Atomic::new(false),
    pin_found: Atomic::new(false),
    translated: Atomic::new(false),
};

/// One line each: a name and a number.
fn show(_: &(), f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (name, number) in [
        ("asleep", &COUNT.asleep),
        ("slept", &COUNT.slept),
        ("gave_up", &COUNT.gave_up),
        ("at_kill", &COUNT.at_kill),
        ("at_death", &COUNT.at_death),
        ("rounds", &COUNT.rounds),
    ] {
        writeln!(f, "{name} {}", number.load(Relaxed))?;
    }
    let walk_held = COUNT.walk_held.load(Relaxed);
    writeln!(f, "walk_held {}", u32::from(walk_held))
}

/// Counts a thread as inside of a detour while it exists.
struct Inside;

impl Inside {
    fn new() -> Self {
        COUNT.inside.fetch_add(1, Full);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        COUNT.inside.fetch_sub(1, Full);
    }
}

/// Whether the current thread is to be blocked.
fn is_wanted() -> bool {
    // SAFETY: The current task is valid, and only it changes its name, except by `/proc/PID/comm`,
    // which no test writes to.
    let name = unsafe { &(*Task::current_raw()).comm };

    name.iter().zip(THREAD_NAME).all(|(a, b)| a == b)
}

/// Returns the value of a parameter, which kernel 7.2 gives as a reference.
fn value<T: Copy>(value: impl Borrow<T>) -> T {
    *value.borrow()
}

/// Returns where a fault is blocked.
fn place() -> u8 {
    value(module_parameters::place.value())
}

/// Blocks the current thread, unless it is too late.
fn hold() {
    if COUNT.killing.load(Acquire) {
        return;
    }
    COUNT.slept.fetch_add(1, Full);
    COUNT.asleep.fetch_add(1, Full);

    let place = place();
    let after_kill = Delta::from_millis(value::<u32>(module_parameters::ms.value()).into());
    let limit = Delta::from_millis(value::<u32>(module_parameters::max_ms.value()).into());
    let began = Instant::<Monotonic>::now();
    let mut dying = None;
    loop {
        fsleep(TICK);
        if place == place::SYNCED && COUNT.rounds.load(Acquire) >= ROUNDS {
            break;
        }
        if dying.is_none() && COUNT.killing.load(Acquire) {
            dying = Some(Instant::<Monotonic>::now());
        }
        if dying.is_some_and(|since| since.elapsed() >= after_kill) {
            break;
        }
        if began.elapsed() >= limit {
            COUNT.gave_up.fetch_add(1, Full);
            break;
        }
    }
    COUNT.asleep.fetch_sub(1, Full);
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn read_unlock_detour(id: c_int) {
    let inside = Inside::new();
    let place = place();

    if place == place::TRANSLATING {
        hold();
    }
    // SAFETY: By the safety requirement.
    unsafe { dax_read_unlock(id) };
    if place == place::TRANSLATED || place == place::COPYING && COUNT.translated.xchg(true, Full) {
        hold();
    }
    drop(inside);
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn fsync_detour(
    file: *mut c_void,
    start: i64,
    end: i64,
    datasync: c_int,
) -> c_int {
    let inside = Inside::new();

    // SAFETY: By the safety requirement.
    let result = unsafe { vfs_fsync_range(file, start, end, datasync) };
    if place() == place::SYNCED {
        hold();
    }
    drop(inside);
    result
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn kill_detour(dax_dev: *mut c_void) {
    let inside = Inside::new();

    COUNT.at_kill.store(COUNT.asleep.load(Acquire), Relaxed);
    COUNT.killing.store(true, Release);
    // SAFETY: By the safety requirement.
    unsafe { kill_dax(dax_dev) };
    COUNT.at_death.store(COUNT.asleep.load(Acquire), Relaxed);
    drop(inside);
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn layout_detour(mapping: *mut c_void, start: i64, end: i64) -> *mut c_void {
    let inside = Inside::new();

    // SAFETY: By the safety requirement.
    let page = unsafe { dax_layout_busy_page_range(mapping, start, end) };
    if place() == place::PIN_WAITED_FOR && is_wanted() && !page.is_null() {
        COUNT.pin_found.store(true, Release);
    }
    if place() == place::SYNCED && COUNT.killing.load(Acquire) {
        let asleep = COUNT.asleep.load(Acquire) != 0;
        let rounds = COUNT.rounds.fetch_add(1, Full).wrapping_add(1);
        if rounds >= ROUNDS && asleep {
            COUNT.walk_held.store(true, Release);
            for _ in 0..WALK_TICKS {
                if COUNT.asleep.load(Acquire) == 0 {
                    break;
                }
                fsleep(TICK);
            }
            fsleep(HEAD_START);
        }
    }
    drop(inside);
    page
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn kill_super_detour(sb: *mut c_void) {
    let inside = Inside::new();

    // SAFETY: By the safety requirement.
    unsafe { kill_block_super(sb) };
    if place() == place::UNMOUNTED {
        hold();
    }
    drop(inside);
}

/// # Safety
///
/// The requirements of the function that it replaces.
unsafe extern "C" fn down_write_detour(sem: *mut c_void) {
    let inside = Inside::new();

    if COUNT.pin_found.xchg(false, Full) {
        hold();
    }
    // SAFETY: By the safety requirement.
    unsafe { down_write(sem) };
    drop(inside);
}

/// Without lockdep this is `down_write`.
///
/// # Safety
///
/// The requirements of the function that it replaces.
#[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
unsafe extern "C" fn down_write_nested_detour(sem: *mut c_void, subclass: c_int) {
    let inside = Inside::new();

    if COUNT.pin_found.xchg(false, Full) {
        hold();
    }
    // SAFETY: By the safety requirement.
    unsafe { down_write_nested(sem, subclass) };
    drop(inside);
}

/// Defines a hook's callback, which ftrace calls at the entry of a function.
macro_rules! callback {
    ($name:ident, $detour:ident, $wanted:expr) => {
        /// # Safety
        ///
        /// For ftrace only.
        #[no_mangle]
        unsafe extern "C" fn $name(
            _ip: c_ulong,
            parent_ip: c_ulong,
            _ops: *mut FtraceOps,
            fregs: *mut FtraceRegs,
        ) {
            // SAFETY: By the safety requirement the registers are those at the entry of the
            // function, and the detour takes the same arguments.
            unsafe {
                if $wanted && !window_is_own(parent_ip) {
                    window_go_to(fregs, $detour as usize as c_ulong);
                }
            }
        }
    };
}

callback!(window_dax_read_unlock_at, read_unlock_detour, is_wanted());
callback!(window_vfs_fsync_range_at, fsync_detour, is_wanted());
callback!(window_kill_dax_at, kill_detour, true);
callback!(window_dax_layout_busy_page_range_at, layout_detour, true);
callback!(window_kill_block_super_at, kill_super_detour, is_wanted());
callback!(window_down_write_at, down_write_detour, is_wanted());
#[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
callback!(
    window_down_write_nested_at,
    down_write_nested_detour,
    is_wanted()
);

/// A function that is being detoured.
struct Hook(*mut FtraceOps);

// SAFETY: ftrace does its own locking.
unsafe impl Send for Hook {}
// SAFETY: ftrace does its own locking.
unsafe impl Sync for Hook {}

impl Hook {
    fn new(ops: *mut FtraceOps, function: usize) -> Result<Self> {
        // SAFETY: The struct is one of ftrace.c, and is registered only here. If it cannot be
        // registered, the filter is freed.
        unsafe {
            to_result(ftrace_set_filter_ip(ops, function as c_ulong, 0, 0))?;
            to_result(register_ftrace_function(ops)).inspect_err(|_| ftrace_free_filter(ops))?;
        }
        Ok(Self(ops))
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        // SAFETY: It was registered. Afterwards each diverted thread is inside of the detour or has
        // left it: ftrace waits for threads at its entry.
        unsafe {
            unregister_ftrace_function(self.0);
            ftrace_free_filter(self.0);
        }
    }
}

/// Waits, when it is dropped, until no thread executes the detours.
struct Quiet;

impl Drop for Quiet {
    fn drop(&mut self) {
        while COUNT.inside.load(Acquire) != 0 {
            fsleep(TICK);
        }
        // SAFETY: May sleep here. Waits for threads that have yet to return from a detour.
        unsafe { window_synchronize_rcu_tasks() };
    }
}

/// The module. Fields are in the order in which they must be dropped.
struct Window {
    _hooks: [Hook; 6],
    #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
    _nested: Hook,
    _quiet: Quiet,
    _file: Pin<KBox<File<()>>>,
}

impl kernel::Module for Window {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let file = KBox::pin_init(
            Dir::new(c"window").read_callback_file(c"state", (), &show),
            GFP_KERNEL,
        )?;
        let quiet = Quiet;

        Ok(Self {
            _hooks: [
                Hook::new(
                    addr_of_mut!(window_dax_read_unlock_ops),
                    dax_read_unlock as usize,
                )?,
                Hook::new(
                    addr_of_mut!(window_vfs_fsync_range_ops),
                    vfs_fsync_range as usize,
                )?,
                Hook::new(addr_of_mut!(window_kill_dax_ops), kill_dax as usize)?,
                Hook::new(
                    addr_of_mut!(window_dax_layout_busy_page_range_ops),
                    dax_layout_busy_page_range as usize,
                )?,
                Hook::new(
                    addr_of_mut!(window_kill_block_super_ops),
                    kill_block_super as usize,
                )?,
                Hook::new(addr_of_mut!(window_down_write_ops), down_write as usize)?,
            ],
            #[cfg(CONFIG_DEBUG_LOCK_ALLOC)]
            _nested: Hook::new(
                addr_of_mut!(window_down_write_nested_ops),
                down_write_nested as usize,
            )?,
            _quiet: quiet,
            _file: file,
        })
    }
}

module! {
    type: Window,
    name: "window",
    authors: ["The pmem-rs authors"],
    description: "Blocks DAX page faults, unmounts and truncates",
    license: "GPL v2",
    params: {
        place: u8 {
            default: 1,
            description: "Where threads are blocked: a number of `mod place` in detours.rs",
        },
        ms: u32 {
            default: 1000,
            description: "How long faults are blocked after kill_dax() was called, in milliseconds",
        },
        max_ms: u32 {
            default: 10000,
            description: "How long faults are blocked at most, in milliseconds",
        },
    },
}
