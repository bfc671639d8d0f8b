// SPDX-License-Identifier: GPL-2.0

//! How this process handles SIGBUS.

use std::sync::atomic::{AtomicUsize, Ordering};

use nix::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ENDED: AtomicUsize = AtomicUsize::new(0);

/// Makes SIGBUS end only the thread whose access raised it.
pub fn ends_thread() -> Result<()> {
    set(SigHandler::Handler(end_thread))
}

/// Makes SIGBUS end the process.
pub fn ends_process() -> Result<()> {
    set(SigHandler::SigDfl)
}

/// Returns the number of threads that SIGBUS has ended.
pub fn ended_threads() -> usize {
    ENDED.load(Ordering::SeqCst)
}

fn set(handler: SigHandler) -> Result<()> {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: The handler does only what is allowed in a signal handler.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}

extern "C" fn end_thread(_: libc::c_int) {
    ENDED.fetch_add(1, Ordering::SeqCst);
    // SAFETY: The thread ends here and is never joined. What it owns lives as long as the process.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
}
