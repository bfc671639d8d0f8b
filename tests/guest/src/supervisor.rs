// SPDX-License-Identifier: GPL-2.0

//! Runs tests one after the other, each in a process of its own, and checks the kernel in between.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use klog::Taint;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};

use crate::checkers;
use crate::cli::{SKIP_CODE, SKIP_MARK, TestArgs};
use crate::command::command;
use crate::kmemleak;
use crate::ktap::{Ktap, Outcome};
use crate::kunit;
use crate::messages::Messages;
use crate::suites::{Suite, Test};
use crate::sysfs;

/// How long a killed process may take to end.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long the cleanup after a test may take.
const TIDY_LIMIT: Duration = Duration::from_secs(120);
/// How many kernel messages a failed test is reported with.
const TAIL: usize = 30;

/// How a process that was given a limit ended.
#[derive(Debug)]
enum End {
    Exited(i32),
    Killed(Signal),
    TimedOut,
    /// The process did not end when it was killed: it hangs in the kernel.
    Stuck,
}

/// How much longer everything takes on a debug kernel. The runner has the same factor.
const DEBUG_PATIENCE: u32 = 4;
/// The tests that come last on a debug kernel, in this order.
const LEAKS_NOTHING: &str = "leaks_nothing";
const CHECKERS_ARE_ON: &str = "checkers_are_on";
/// A test after all others. Returns the problems that it found.
type Closing = fn() -> Result<String>;

/// Runs the tests of a suite, or `only` some of them, and its closing tests. Returns after the last
/// result was written.
pub fn run(suite: &Suite, args: &TestArgs, only: &[String], ktap: &mut Ktap) -> Result<bool> {
    let wanted = |test: &&Test| only.is_empty() || only.iter().any(|name| name == test.name);
    let tests: Vec<&Test> = suite.tests.iter().filter(wanted).collect();
    let mut cases = match kunit::prefix(suite) {
        Some(prefix) => kunit::cases(prefix)?,
        None => Vec::new(),
    };
    cases.retain(|case| only.is_empty() || only.contains(&case.name));
    let (mut patience, mut closing): (_, Vec<(&str, Closing)>) = (1, Vec::new());
    if !checkers::configured()?.is_empty() {
        patience = DEBUG_PATIENCE;
        if suite.name != kunit::MISUSE {
            // Only `misuse` leaks on purpose.
            closing.push((LEAKS_NOTHING, || Ok(leaks())));
        }
        closing.push((CHECKERS_ARE_ON, checkers_off));
    }
    ktap.begin(suite.name, cases.len() + tests.len() + closing.len())?;
    for case in &cases {
        case.report(ktap)?;
    }
    run_tests(suite, &tests, args, ktap, patience)?;
    for (test, complaints) in closing {
        let complaints = complaints()?;
        ktap.note(&complaints)?;
        let outcome = if complaints.is_empty() {
            Outcome::Passed
        } else {
            Outcome::Failed
        };
        ktap.result(test, &outcome)?;
    }
    ktap.end(suite.name)
}

/// Returns the leaks that a debug kernel reports.
fn leaks() -> String {
    kmemleak::suspects().unwrap_or_else(|error| format!("kmemleak failed: {error:#}"))
}

/// Returns the checkers of a debug kernel that are off.
fn checkers_off() -> Result<String> {
    Ok(checkers::off()?.join("\n"))
}

fn run_tests(
    suite: &Suite,
    tests: &[&Test],
    args: &TestArgs,
    ktap: &mut Ktap,
    patience: u32,
) -> Result<()> {
    let mut stuck = None;
    for test in tests {
        if let Some(culprit) = stuck {
            ktap.note(&format!("not run: {culprit} is stuck in the kernel"))?;
            ktap.result(test.name, &Outcome::Failed)?;
            continue;
        }
        let mut limit = test.limit * patience;
        if test.as_long_as_asked {
            limit += args.stress();
        }
        ktap.note(&format!(
            "running {} (limit {} s)",
            test.name,
            limit.as_secs()
        ))?;
        let mut messages = Messages::from_now()?;
        let before = taint()?;
        let (end, last_line) = run_process(suite, test, limit, args, ktap)?;
        let mut outcome = judge(&end, last_line, ktap)?;
        if matches!(end, End::Stuck) {
            stuck = Some(test.name);
        } else if !test.leaves_state && !tidy(ktap)? {
            outcome = Outcome::Failed;
        }
        if !kernel_is_clean(before, &mut messages, ktap)? {
            outcome = Outcome::Failed;
        }
        if outcome == Outcome::Failed {
            let messages = messages.so_far()?;
            for message in &messages[messages.len().saturating_sub(TAIL)..] {
                ktap.note(&format!("kernel: {message}"))?;
            }
        }
        ktap.result(test.name, &outcome)?;
    }
    Ok(())
}

fn judge(end: &End, last_line: String, ktap: &mut Ktap) -> Result<Outcome> {
    let output = match end {
        End::Exited(0) => return Ok(Outcome::Passed),
        End::Exited(SKIP_CODE) => {
            let reason = last_line.strip_prefix(SKIP_MARK).unwrap_or(&last_line);
            return Ok(Outcome::Skipped(reason.to_owned()));
        }
        End::Exited(1) => return Ok(Outcome::Failed),
        End::Exited(code) => format!("the test exited with code {code}"),
        End::Killed(signal) => format!("the test was killed by {signal}"),
        End::TimedOut => "the test took too long and was killed".to_owned(),
        End::Stuck => "the test took too long and cannot be killed".to_owned(),
    };
    ktap.note(&output)?;
    Ok(Outcome::Failed)
}

/// Looks for warnings and taints of the kernel that the test may not have noticed.
fn kernel_is_clean(before: Taint, messages: &mut Messages, ktap: &mut Ktap) -> Result<bool> {
    let mut clean = true;
    let new = taint()?.since(before).unexpected();
    if !new.is_clean() {
        ktap.note(&format!("the kernel became tainted: {new}"))?;
        clean = false;
    }
    for (_, message) in klog::troubles(messages.so_far()?, String::as_str) {
        ktap.note(&format!("the kernel complains: {message}"))?;
        clean = false;
    }
    Ok(clean)
}

fn taint() -> Result<Taint> {
    let text = sysfs::read("/proc/sys/kernel/tainted")?;
    Taint::parse(&text).with_context(|| format!("taint is `{text}`"))
}

fn run_process(
    suite: &Suite,
    test: &Test,
    limit: Duration,
    args: &TestArgs,
    ktap: &mut Ktap,
) -> Result<(End, String)> {
    let mut words = vec!["test".to_owned()];
    words.extend(args.words());
    words.extend([suite.name.to_owned(), test.name.to_owned()]);
    supervise(&words, limit, ktap)
}

/// Undoes what a test may have left behind: mounts, mapped devices, unbound drivers.
fn tidy(ktap: &mut Ktap) -> Result<bool> {
    let (end, _) = supervise(&["tidy".to_owned()], TIDY_LIMIT, ktap)?;
    let done = matches!(end, End::Exited(0));
    if !done {
        ktap.note(&format!("could not clean up after the test: {end:?}"))?;
    }
    Ok(done)
}

/// Starts this program again, forwards its output, and kills it after `limit`. Returns how it ended
/// and its last line.
fn supervise(words: &[String], limit: Duration, ktap: &mut Ktap) -> Result<(End, String)> {
    let deadline = Instant::now() + limit;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let child = command("/proc/self/exe")
        .args(words)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .context("starting a process for the test")?;
    let pid = Pid::from_raw(child.id().try_into()?);
    let mut output = Output::of(reader.into())?;

    let mut end = None;
    while end.is_none() && Instant::now() < deadline {
        output.forward(Duration::from_millis(50), ktap)?;
        end = reap(pid)?;
    }
    let end = match end {
        Some(end) => end,
        None => {
            let _ = kill(pid, Signal::SIGKILL);
            wait_for_end(pid)?
        }
    };
    // No process that the test started may live on. From PID 1 this reaches all other processes. It
    // is no error if there are none.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    output.forward(Duration::ZERO, ktap)?;
    output.finish(ktap)?;
    Ok((end, output.last_line))
}

fn wait_for_end(pid: Pid) -> Result<End> {
    let deadline = Instant::now() + KILL_GRACE;
    while Instant::now() < deadline {
        if reap(pid)?.is_some() {
            return Ok(End::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The stacks of blocked tasks go to the console, for debugging.
    sysfs::write("/proc/sysrq-trigger", "w")?;
    Ok(End::Stuck)
}

/// Reaps dead processes, as PID 1 must, and returns how `pid` ended if it was among them.
fn reap(pid: Pid) -> Result<Option<End>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(dead, code)) if dead == pid => {
                return Ok(Some(End::Exited(code)));
            }
            Ok(WaitStatus::Signaled(dead, signal, _)) if dead == pid => {
                return Ok(Some(End::Killed(signal)));
            }
            Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error).context("waiting for the test"),
        }
    }
}

/// The output of a test, which is forwarded to the KTAP stream.
struct Output {
    pipe: File,
    partial: Vec<u8>,
    last_line: String,
}

impl Output {
    fn of(pipe: File) -> Result<Output> {
        // The end of file may never come: a child of the test may keep the pipe open.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Output {
            pipe,
            partial: Vec::new(),
            last_line: String::new(),
        })
    }

    /// Forwards the available output, and waits a little if there is none.
    fn forward(&mut self, patience: Duration, ktap: &mut Ktap) -> Result<()> {
        let timeout = PollTimeout::try_from(patience)?;
        poll(
            &mut [PollFd::new(self.pipe.as_fd(), PollFlags::POLLIN)],
            timeout,
        )?;
        let mut chunk = [0; 4096];
        loop {
            match self.pipe.read(&mut chunk) {
                Ok(0) => {
                    // The test has closed its output and is about to end.
                    std::thread::sleep(patience.min(Duration::from_millis(5)));
                    return Ok(());
                }
                Ok(len) => self.partial.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("reading the output of the test"),
            }
            while let Some(end) = self.partial.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                self.line(&line, ktap)?;
            }
        }
    }

    fn finish(&mut self, ktap: &mut Ktap) -> Result<()> {
        let rest = std::mem::take(&mut self.partial);
        if rest.is_empty() {
            Ok(())
        } else {
            self.line(&rest, ktap)
        }
    }

    fn line(&mut self, line: &[u8], ktap: &mut Ktap) -> Result<()> {
        self.last_line = String::from_utf8_lossy(line).trim_end().to_owned();
        ktap.note(&self.last_line)
    }
}
