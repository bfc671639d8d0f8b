// SPDX-License-Identifier: GPL-2.0

//! An `fsync` that waits or fails when a test wants it to.
//!
//! QEMU is started with this library in front of the C library (`LD_PRELOAD`). It calls `fsync` for nothing
//! but the flushes of virtio-pmem devices, on threads of its own. What to do is the last line of the file that
//! [`CONTROL`] names, which is what the guest has written last to its fourth serial port:
//!
//! - `hold`: wait until the line is another one;
//! - `fail`: fail with `EIO`;
//! - anything else: do as ever.

use std::env;
use std::ffi::{c_int, c_long};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

/// The environment variable with the name of the file.
const CONTROL: &str = "PMEM_RS_FSYNC";

/// How often it is looked at the file.
const INTERVAL: Duration = Duration::from_millis(10);

/// The last line that is complete. There is none before the guest has said anything.
fn order() -> Option<String> {
    let text = fs::read_to_string(env::var_os(CONTROL)?).ok()?;
    let (complete, _) = text.rsplit_once('\n')?;
    Some(complete.lines().last()?.trim().to_owned())
}

fn fail() -> c_int {
    // SAFETY: the C library's `errno` of this thread is always there.
    unsafe { *libc::__errno_location() = libc::EIO };
    -1
}

/// Takes the place of the function of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    loop {
        match order().as_deref() {
            Some("hold") => sleep(INTERVAL),
            Some("fail") => return fail(),
            // SAFETY: the call takes a number, checks it, and touches no memory.
            _ => return unsafe { libc::syscall(libc::SYS_fsync, c_long::from(file)) as c_int },
        }
    }
}
