// SPDX-License-Identifier: GPL-2.0

//! A case as a process of its own. It mounts in a mount namespace of its own, so its mounts go with
//! it, and the user's `/mnt` and `/tmp` are not touched.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, pipe2};

use crate::cli::{SKIP_CODE, SKIP_MARK};
use crate::command::command;

/// How a case ended.
pub enum End {
    Done,
    /// With the reason.
    Skipped(String),
    /// With its last lines.
    Failed(Vec<String>),
    Interrupted,
}

/// How many lines of a failed case are shown.
const TAIL: usize = 6;
/// How long a killed case may take to end.
const KILL_GRACE: Duration = Duration::from_secs(60);

/// The signals that end the program.
pub struct Interrupts(SignalFd);

impl Interrupts {
    /// Blocks them, so that they end only cases.
    pub fn block() -> Result<Interrupts> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        signals.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC;
        Ok(Interrupts(SignalFd::with_flags(&signals, flags)?))
    }
}

/// Prepares the process of a case: it comes first.
pub fn enclose() -> Result<()> {
    SigSet::all().thread_unblock()?;
    set_pdeathsig(Signal::SIGKILL)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("making mounts private")?;
    for point in ["/mnt", "/tmp"] {
        mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), none)
            .with_context(|| format!("mounting on {point}"))?;
    }
    Ok(())
}

/// Starts this program again with these words, and follows it to its end or to an interrupt.
/// Returns also what it has printed.
pub fn run(words: &[String], interrupts: &Interrupts) -> Result<(End, Vec<String>)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut child = command("/proc/self/exe")
        .args(words)
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .context("starting a process for the case")?;
    let group = Pid::from_raw(child.id().try_into()?);
    let followed = follow(reader.into(), interrupts);
    if !matches!(followed, Ok(Some(_))) {
        // The group may have ended.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait()?;
    let Some(text) = followed? else {
        await_end(group)?;
        return Ok((End::Interrupted, Vec::new()));
    };
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let last = lines.last().map_or("", String::as_str);
    let end = match (status.code(), last.strip_prefix(SKIP_MARK)) {
        (Some(0), _) => End::Done,
        (Some(SKIP_CODE), Some(reason)) => End::Skipped(reason.to_owned()),
        _ => End::Failed(lines[lines.len().saturating_sub(TAIL)..].to_vec()),
    };
    Ok((end, lines))
}

/// Reads to the end, or returns nothing if a signal arrives before.
fn follow(mut reader: File, interrupts: &Interrupts) -> Result<Option<String>> {
    let mut text = Vec::new();
    loop {
        let mut ends =
            [reader.as_fd(), interrupts.0.as_fd()].map(|file| PollFd::new(file, PollFlags::POLLIN));
        poll(&mut ends, PollTimeout::NONE)?;
        if ends[1].any().unwrap_or_default() {
            return Ok(None);
        }
        let mut chunk = [0; 4096];
        match reader.read(&mut chunk)? {
            0 => return Ok(Some(String::from_utf8_lossy(&text).into_owned())),
            len => text.extend_from_slice(&chunk[..len]),
        }
    }
}

/// Waits until no process of a killed group is left, with whose last one its mounts go.
fn await_end(group: Pid) -> Result<()> {
    let deadline = Instant::now() + KILL_GRACE;
    while killpg(group, None) != Err(Errno::ESRCH) {
        ensure!(
            Instant::now() < deadline,
            "processes of the group {group} do not end, so their device cannot be given back"
        );
        sleep(Duration::from_millis(50));
    }
    Ok(())
}
