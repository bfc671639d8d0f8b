// SPDX-License-Identifier: GPL-2.0

//! Processes of a test: those that use a device, and those that remove it.
//!
//! They may be killed by what they do or never return, so a test starts them, talks with them over
//! pipes, and always waits with a limit.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::syscall::{exit_at_once, start_child};

const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long a process may take to start.
const START_LIMIT: Duration = Duration::from_secs(50);

/// The child's end of the connection.
pub struct Link {
    from: File,
    to: File,
}

impl Link {
    /// Sends a word to the parent.
    pub fn say(&mut self, word: &str) -> Result<()> {
        self.to
            .write_all(format!("{word}\n").as_bytes())
            .context("talking to the parent")
    }

    /// Waits until the parent calls [`Child::go`].
    pub fn wait(&mut self) -> Result<()> {
        self.from
            .read_exact(&mut [0])
            .context("waiting for the parent")
    }

    /// Whether the parent has called [`Child::go`], without waiting for it.
    pub fn is_told_to_go(&self) -> Result<bool> {
        let mut ends = [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut ends, PollTimeout::ZERO)? > 0)
    }
}

/// A process that this one has started.
pub struct Child {
    what: String,
    pid: Pid,
    from: File,
    to: File,
    heard: Vec<u8>,
    end: Option<WaitStatus>,
}

impl Child {
    /// Starts a process that runs `work`. `what` is its name in messages. It exits with code 0 if
    /// `work` succeeds; else it prints the error and exits with code 1.
    pub fn start(what: impl Display, work: impl FnOnce(&mut Link) -> Result<()>) -> Result<Child> {
        let what = what.to_string();
        let (from, child_to) = pipe2(OFlag::O_CLOEXEC)?;
        let (child_from, to) = pipe2(OFlag::O_CLOEXEC)?;
        let mut link = Link {
            from: child_from.into(),
            to: child_to.into(),
        };
        let name = what.clone();
        let pid = start_child(move || {
            if let Err(error) = work(&mut link) {
                println!("{name}: {error:?}");
                exit_at_once(1);
            }
        })?;
        fcntl(&from, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Child {
            what,
            pid,
            from: from.into(),
            to: to.into(),
            heard: Vec::new(),
            end: None,
        })
    }

    /// As [`Child::start`], and waits until the child has sent `ready`.
    pub fn start_ready(
        what: impl Display,
        work: impl FnOnce(&mut Link) -> Result<()>,
    ) -> Result<Child> {
        let mut child = Child::start(what, work)?;
        child.hear("ready", START_LIMIT)?;
        Ok(child)
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Lets a child in [`Link::wait`] continue.
    pub fn go(&mut self) -> Result<()> {
        self.to
            .write_all(&[0])
            .with_context(|| format!("talking to {}", self.what))
    }

    /// Waits until the child has sent a word.
    pub fn hear(&mut self, word: &str, limit: Duration) -> Result<()> {
        self.hear_line(word, |line| line == word.as_bytes(), limit)?;
        Ok(())
    }

    /// Waits until the child has sent a word that starts with `key`, and returns the rest of it.
    pub fn hear_value(&mut self, key: &str, limit: Duration) -> Result<String> {
        let said = self.hear_line(key, |line| line.starts_with(key.as_bytes()), limit)?;
        Ok(said[key.len()..].to_owned())
    }

    /// Waits for a line for which `fits` returns true; `what` is its name in messages.
    fn hear_line(
        &mut self,
        what: &str,
        fits: impl Fn(&[u8]) -> bool,
        limit: Duration,
    ) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            // First look whether the child is alive, then read: this way its last words are read
            // too.
            let ended = self.try_end()?;
            self.listen()?;
            // The last piece is an incomplete line.
            let lines = self.heard.rsplit(|&byte| byte == b'\n').skip(1);
            if let Some(line) = lines.into_iter().find(|line| fits(line)) {
                return Ok(String::from_utf8_lossy(line).into_owned());
            }
            if let Some(end) = ended {
                bail!("{} ended before it said `{what}`: {end:?}", self.what);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} has not said `{what}` within {limit:?}; {}",
                    self.what,
                    self.whereabouts()
                );
            }
            poll(
                &mut [PollFd::new(self.from.as_fd(), PollFlags::POLLIN)],
                PollTimeout::try_from(POLL_INTERVAL)?,
            )?;
        }
    }

    /// How often the child has sent a word.
    pub fn count_heard(&mut self, word: &str) -> Result<usize> {
        self.listen()?;
        let lines = self.heard.split(|&byte| byte == b'\n');
        Ok(lines.filter(|line| *line == word.as_bytes()).count())
    }

    fn listen(&mut self) -> Result<()> {
        match self.from.read_to_end(&mut self.heard) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => {
                Err(error).with_context(|| format!("listening to {}", self.what))
            }
            _ => Ok(()),
        }
    }

    /// Waits until the child is in an uninterruptible sleep, as during disk I/O.
    pub fn await_uninterruptible(&mut self) -> Result<()> {
        self.await_sleep("for I/O", |pid| state(pid) == Some('D'))
    }

    /// Waits until the child sleeps in a function of the kernel with such a name.
    pub fn await_sleep_in(&mut self, function: &str) -> Result<()> {
        self.await_sleep(&format!("in {function}"), |pid| {
            let place = fs::read_to_string(format!("/proc/{pid}/wchan"));
            place.is_ok_and(|place| place.contains(function))
        })
    }

    fn await_sleep(&mut self, how: &str, sleeps: impl Fn(Pid) -> bool) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !sleeps(self.pid) {
            ensure!(self.try_end()?.is_none(), "{} has ended", self.what);
            ensure!(
                Instant::now() < deadline,
                "{} does not wait {how}; {}",
                self.what,
                self.whereabouts()
            );
            sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// How the child has ended, if it has.
    pub fn try_end(&mut self) -> Result<Option<WaitStatus>> {
        if self.end.is_none() {
            match waitpid(self.pid, Some(WaitPidFlag::WNOHANG))? {
                WaitStatus::StillAlive => {}
                end => self.end = Some(end),
            }
        }
        Ok(self.end)
    }

    /// Waits for the end of the child.
    pub fn end(&mut self, limit: Duration) -> Result<WaitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.try_end()? {
                return Ok(end);
            }
            ensure!(
                Instant::now() < deadline,
                "{} has not ended within {limit:?}; {}",
                self.what,
                self.whereabouts()
            );
            sleep(POLL_INTERVAL);
        }
    }

    /// Waits until the child has exited successfully.
    pub fn expect_done(&mut self, limit: Duration) -> Result<()> {
        let end = self.end(limit)?;
        ensure!(
            matches!(end, WaitStatus::Exited(_, 0)),
            "{} ended with {end:?}",
            self.what
        );
        Ok(())
    }

    /// Waits until the child is killed by a signal.
    pub fn expect_signal(&mut self, signal: Signal, limit: Duration) -> Result<()> {
        let end = self.end(limit)?;
        ensure!(
            matches!(end, WaitStatus::Signaled(_, by, _) if by == signal),
            "{} ended with {end:?}, expected {signal}",
            self.what
        );
        Ok(())
    }

    /// The state of the child and its kernel stack, for messages.
    fn whereabouts(&self) -> String {
        whereabouts(self.pid)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // The child may hang in the kernel, so it is not waited for. If it still exists when the
        // test ends, the supervisor notices.
        if self.end.is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

/// The state of a process and its kernel stack.
fn whereabouts(pid: Pid) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let state = state(pid).unwrap_or('?');
    let stack: Vec<String> = read("stack")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned))
        .collect();
    format!("its state is {state}, in {}", stack.join(" < "))
}

/// Waits until a process has mapped a file.
pub fn await_mapping(pid: u32, file: &Path) -> Result<()> {
    let deadline = Instant::now() + START_LIMIT;
    let name = file.to_string_lossy();
    loop {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        if maps.lines().any(|line| line.ends_with(&*name)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{name} is not mapped: {maps}");
        sleep(POLL_INTERVAL);
    }
}

/// The state of a process, as `ps` shows it.
fn state(pid: Pid) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain any character.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Checks that no process is stuck in an uninterruptible sleep. Ordinary I/O leaves it within a
/// moment.
pub fn expect_no_process_stuck() -> Result<()> {
    expect_none_stuck(|pid| !is_kernel_thread(pid))
}

/// Checks that neither a process nor a kernel thread is stuck in an uninterruptible sleep.
pub fn expect_no_thread_stuck() -> Result<()> {
    expect_none_stuck(|_| true)
}

fn expect_none_stuck(wanted: fn(Pid) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let stuck: Vec<Pid> = all()?
            .into_iter()
            .filter(|&pid| wanted(pid) && state(pid) == Some('D'))
            .collect();
        if stuck.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let stuck: Vec<String> = stuck
                .into_iter()
                .map(|pid| {
                    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                    format!("{} ({pid}): {}", name.trim_end(), whereabouts(pid))
                })
                .collect();
            bail!("stuck in the kernel: {}", stuck.join("; "));
        }
        sleep(Duration::from_millis(50));
    }
}

/// Kernel threads have no executable.
fn is_kernel_thread(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_err()
}

fn all() -> io::Result<Vec<Pid>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        if let Ok(pid) = entry?.file_name().to_string_lossy().parse() {
            pids.push(Pid::from_raw(pid));
        }
    }
    Ok(pids)
}
