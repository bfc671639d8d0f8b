// SPDX-License-Identifier: GPL-2.0

//! How this process handles SIGBUS.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use nix::Result;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::wait::WaitStatus;

use crate::mapping::Mapping;
use crate::syscall::{exit_at_once, in_child};

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

/// Reads a byte of a mapping in a child process. Returns the `si_code` of the SIGBUS that this
/// raises, or 0 if it raises none.
pub fn code_of_load(mapping: &Mapping, offset: usize) -> anyhow::Result<i32> {
    let end = in_child(|| {
        set(SigHandler::SigAction(exit_with_code)).expect("the handler is set");
        ADDRESS.store(mapping.address() + offset, Ordering::SeqCst);
        mapping.load(offset);
    })?;
    match end {
        WaitStatus::Exited(_, code) => Ok(code),
        end => bail!("reading a byte ended with {end:?}"),
    }
}

/// The address whose access may raise a signal.
static ADDRESS: AtomicUsize = AtomicUsize::new(0);
/// The exit code if the signal is for another address.
const OTHER_ADDRESS: i32 = 100;

extern "C" fn exit_with_code(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: The kernel passes the description of a SIGBUS, which has an address.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr()) };
    let is_right = address as usize == ADDRESS.load(Ordering::SeqCst);
    exit_at_once(if is_right { code } else { OTHER_ADDRESS })
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
