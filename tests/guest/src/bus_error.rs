// SPDX-License-Identifier: GPL-2.0

//! What a SIGBUS does to this process.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ENDED: AtomicUsize = AtomicUsize::new(0);

/// From now on, it ends the thread whose access caused it, and no other.
pub fn ends_thread() -> Result<()> {
    set(SigHandler::Handler(end_thread))
}

/// From now on, it ends the process.
pub fn ends_process() -> Result<()> {
    set(SigHandler::SigDfl)
}

/// How many threads have ended so.
pub fn ended_threads() -> usize {
    ENDED.load(Ordering::SeqCst)
}

fn set(handler: SigHandler) -> Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing but what is allowed in one.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

extern "C" fn end_thread(_: libc::c_int) {
    ENDED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: the thread ends here, and whoever has started it does not wait for it. What it owns
    // stays for as long as the process.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}
