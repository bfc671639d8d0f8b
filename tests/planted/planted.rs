// SPDX-License-Identifier: GPL-2.0

//! Bugs planted on purpose, one for each checker of the debug kernel.
//!
//! Loading the module with `bug=N` commits one of them, and the test harness must notice. It shows
//! that the checkers are on, and that those that need the compiler's help see Rust code. Not a part
//! of the driver.

use core::{
    hint::black_box,
    ptr, //
};
use kernel::{
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

struct Planted;

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
            _ => return Err(EINVAL),
        }
        Ok(Planted)
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

/// For lockdep: no deadlock, but the order of one.
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
            description: "1: use after free, 2: sleep in atomic context, 3: lock inversion, 4: leak, 5: overflow",
        },
    },
}
