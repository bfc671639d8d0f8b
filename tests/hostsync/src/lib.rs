// SPDX-License-Identifier: GPL-2.0

//! An `fsync` that blocks or fails at the request of a test.
//!
//! QEMU is started with this library in front of the C library (`LD_PRELOAD`). It calls `fsync`
//! only for the flushes of virtio-pmem devices, on threads of its own. The last line of the file
//! that [`CONTROL`] names controls `fsync`. It is the line that the guest has last written to its
//! fourth serial port:
//!
//! - `hold`: blocks until the line changes;
//! - `fail`: fails with `EIO`;
//! - `slow`: takes 5 ms longer;
//! - `late`: takes 3 s longer;
//! - anything else: works normally.

use std::env;
use std::ffi::{c_int, c_long};
use std::fs;
use std::thread::sleep;
use std::time::Duration;

/// The environment variable with the name of the file.
const CONTROL: &str = "PMEM_RS_FSYNC";

/// How often the file is read.
const INTERVAL: Duration = Duration::from_millis(10);

/// How much longer a slow `fsync` takes.
const SLOW: Duration = Duration::from_millis(5);
/// How much longer a late one takes.
const LATE: Duration = Duration::from_secs(3);

/// The last complete line; none before the guest has written one.
fn order() -> Option<String> {
    let text = fs::read_to_string(env::var_os(CONTROL)?).ok()?;
    let (complete, _) = text.rsplit_once('\n')?;
    Some(complete.lines().last()?.trim().to_owned())
}

fn fail() -> c_int {
    // SAFETY: the C library's `errno` of this thread always exists.
    unsafe { *libc::__errno_location() = libc::EIO };
    -1
}

/// Replaces the function of the C library.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(file: c_int) -> c_int {
    loop {
        match order().as_deref() {
            Some("hold") => sleep(INTERVAL),
            Some("fail") => return fail(),
            order => {
                match order {
                    Some("slow") => sleep(SLOW),
                    Some("late") => sleep(LATE),
                    _ => {}
                }
                // SAFETY: the call takes a number, checks it, and touches no memory.
                return unsafe { libc::syscall(libc::SYS_fsync, c_long::from(file)) as c_int };
            }
        }
    }
}
