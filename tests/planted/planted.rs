// SPDX-License-Identifier: GPL-2.0

//! Bugs planted on purpose, one for each checker of the debug kernel.
//!
//! Loading the module with `bug=N` runs one of them, and the test harness must detect it. This
//! shows that the checkers are on, and that those that need the compiler's help work for Rust code.
//! One more is not for a checker: it prevents grace periods of `synchronize_rcu_tasks()` from
//! ending while the module is loaded. Not a part of the driver.

use core::{
    ffi::{
        c_char,
        c_int,
        c_long,
        c_void, //
    },
    hint::{
        black_box,
        spin_loop, //
    },
    ptr, //
};
use kernel::{
    error::from_err_ptr,
    new_mutex, new_spinlock,
    prelude::*,
    sync::{
        Mutex,
        SpinLock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

struct Planted {
    _busy: Option<Busy>,
}

/// `struct task_struct`, only the address of which is used.
#[repr(C)]
struct TaskStruct([u8; 0]);

extern "C" {
    fn kthread_create_on_node(
        threadfn: unsafe extern "C" fn(*mut c_void) -> c_int,
        data: *mut c_void,
        node: c_int,
        name: *const c_char,
        ...
    ) -> *mut TaskStruct;
    fn kthread_should_stop() -> bool;
    fn kthread_stop(task: *mut TaskStruct) -> c_int;
    fn set_user_nice(task: *mut TaskStruct, nice: c_long);
    fn wake_up_process(task: *mut TaskStruct) -> c_int;
}

/// `NUMA_NO_NODE`.
const NO_NODE: c_int = -1;
/// The lowest priority.
const NICE: c_long = 19;

/// A thread that never schedules voluntarily.
///
/// # Invariants
///
/// The thread runs, and only `drop` stops it.
struct Busy(*mut TaskStruct);

// SAFETY: Any thread may stop another one.
unsafe impl Send for Busy {}
// SAFETY: A shared reference has no methods.
unsafe impl Sync for Busy {}

impl Busy {
    fn start() -> Result<Self> {
        // SAFETY: The function takes no data, and exists until the thread has ended: `drop` waits
        // for that. The name has no format specifiers.
        let task = from_err_ptr(unsafe {
            kthread_create_on_node(spin, ptr::null_mut(), NO_NODE, c"planted".as_ptr())
        })?;

        // SAFETY: The thread was just made, and waits to be woken up.
        unsafe {
            set_user_nice(task, NICE);
            wake_up_process(task);
        }
        // INVARIANT: The thread runs now.
        Ok(Self(task))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the thread runs, and is stopped only here. May sleep.
        unsafe { kthread_stop(self.0) };
    }
}

/// # Safety
///
/// For the thread only.
unsafe extern "C" fn spin(_data: *mut c_void) -> c_int {
    // SAFETY: By the safety requirement this is a kernel thread.
    while !unsafe { kthread_should_stop() } {
        spin_loop();
    }
    0
}

#[pin_data]
struct Locks {
    #[pin]
    first: Mutex<u32>,
    #[pin]
    second: Mutex<u32>,
    #[pin]
    spin: SpinLock<u32>,
}

impl kernel::Module for Planted {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let locks = KBox::pin_init(
            pin_init!(Locks {
                first <- new_mutex!(0, "planted::first"),
                second <- new_mutex!(0, "planted::second"),
                spin <- new_spinlock!(0, "planted::spin"),
            }),
            GFP_KERNEL,
        )?;

        match module_parameters::bug.value() {
            1 => use_after_free()?,
            2 => sleep_in_atomic(&locks),
            3 => lock_inversion(&locks),
            4 => leak()?,
            5 => overflow(),
            6 => {
                return Ok(Planted {
                    _busy: Some(Busy::start()?),
                })
            }
            _ => return Err(EINVAL),
        }
        Ok(Planted { _busy: None })
    }
}

/// For KASAN.
fn use_after_free() -> Result {
    let memory = KBox::into_raw(KBox::new([0x11_u8; 64], GFP_KERNEL)?);

    // SAFETY: The pointer comes from `into_raw`.
    drop(unsafe { KBox::from_raw(memory) });
    // SAFETY: None. This is the bug.
    black_box(unsafe { ptr::read_volatile(memory.cast::<u8>()) });
    Ok(())
}

/// For DEBUG_ATOMIC_SLEEP.
fn sleep_in_atomic(locks: &Locks) {
    let _guard = locks.spin.lock();

    fsleep(Delta::from_millis(20));
}

/// For lockdep: locks are taken in both orders, without a deadlock.
fn lock_inversion(locks: &Locks) {
    {
        let _first = locks.first.lock();
        let _second = locks.second.lock();
    }
    let _second = locks.second.lock();
    let _first = locks.first.lock();
}

/// For kmemleak: memory that nothing points to.
fn leak() -> Result {
    for _ in 0..16 {
        let memory = KBox::into_raw(KBox::new([0x22_u8; 512], GFP_KERNEL)?);
        black_box(memory as usize);
    }
    Ok(())
}

/// For Rust's own overflow checks: a panic.
fn overflow() {
    let large = black_box(u32::MAX);

    black_box(large + 1);
}

module! {
    type: Planted,
    name: "planted",
    authors: ["The pmem-rs authors"],
    description: "Bugs planted on purpose",
    license: "GPL v2",
    params: {
        bug: u8 {
            default: 0,
            description: "1: use after free, 2: sleep in atomic context, 3: lock inversion, 4: leak, 5: overflow, 6: a busy thread",
        },
    },
}
