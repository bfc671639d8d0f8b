// SPDX-License-Identifier: GPL-2.0

//! Runs tests one after the other, each in a process of its own, and looks at the kernel in between.

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

/// How long a killed process may take to go.
const KILL_GRACE: Duration = Duration::from_secs(10);
/// How long putting things back in order after a test may take.
const TIDY_LIMIT: Duration = Duration::from_secs(120);
/// How many kernel messages a failed test is reported with.
const TAIL: usize = 30;

/// How a process that was given a limit ended.
#[derive(Debug)]
enum End {
    Exited(i32),
    Killed(Signal),
    TimedOut,
    /// It did not even go when it was killed: it hangs inside the kernel.
    Stuck,
}

/// How much longer everything takes on a kernel with all checkers; the runner has the same factor.
const DEBUG_PATIENCE: u32 = 4;
/// The tests that come last on such a kernel.
const LEAKS_NOTHING: &str = "leaks_nothing";
const CHECKERS_ARE_ON: &str = "checkers_are_on";
/// A test after all others: returns what it has to complain of.
type Closing = fn() -> Result<String>;

/// Runs the tests of a suite, or `only` some, and what belongs to its end. Returns after the last result was written,
/// and whether all have passed.
pub fn run(suite: &Suite, args: &TestArgs, only: &[String], ktap: &mut Ktap) -> Result<bool> {
    let wanted = |test: &&Test| only.is_empty() || only.iter().any(|name| name == test.name);
    let tests: Vec<&Test> = suite.tests.iter().filter(wanted).collect();
    let mut cases = if kunit::is_run_by(suite) {
        kunit::cases()?
    } else {
        Vec::new()
    };
    cases.retain(|case| only.is_empty() || only.contains(&case.name));
    if checkers::configured()?.is_empty() {
        ktap.begin(suite.name, tests.len())?;
        run_tests(suite, &tests, args, ktap, 1)?;
        return ktap.end(suite.name);
    }

    let mut closing: Vec<(&str, Closing)> = vec![(CHECKERS_ARE_ON, checkers_off)];
    if suite.name != kunit::MISUSE {
        // Others leak nothing on purpose.
        closing.insert(0, (LEAKS_NOTHING, || Ok(leaks())));
    }
    ktap.begin(suite.name, cases.len() + tests.len() + closing.len())?;
    for case in &cases {
        case.report(ktap)?;
    }
    run_tests(suite, &tests, args, ktap, DEBUG_PATIENCE)?;
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

/// What a kernel that has checkers says to have lost.
fn leaks() -> String {
    kmemleak::suspects().unwrap_or_else(|error| format!("nobody can tell: {error:#}"))
}

/// Whether such a kernel would have said the rest.
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
        if !kernel_is_content(before, &mut messages, ktap)? {
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
    let complaint = match end {
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
    ktap.note(&complaint)?;
    Ok(Outcome::Failed)
}

/// Looks for traces of trouble that the test itself may not have noticed.
fn kernel_is_content(before: Taint, messages: &mut Messages, ktap: &mut Ktap) -> Result<bool> {
    let mut content = true;
    let new = taint()?.since(before).unexpected();
    if !new.is_clean() {
        ktap.note(&format!("the kernel became tainted: {new}"))?;
        content = false;
    }
    for (_, message) in klog::troubles(messages.so_far()?, String::as_str) {
        ktap.note(&format!("the kernel complains: {message}"))?;
        content = false;
    }
    Ok(content)
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

/// Puts everything back that a test may have left: mounts, mapped devices, unbound drivers.
fn tidy(ktap: &mut Ktap) -> Result<bool> {
    let (end, _) = supervise(&["tidy".to_owned()], TIDY_LIMIT, ktap)?;
    let done = matches!(end, End::Exited(0));
    if !done {
        ktap.note(&format!("could not clean up after the test: {end:?}"))?;
    }
    Ok(done)
}

/// Starts this program again, passes on what it prints as it comes, and ends it after `limit`.
/// Returns how it ended and the last line that it printed.
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
            wait_for_death(pid)?
        }
    };
    // Nothing that the test started may live on. From PID 1 this reaches all other processes, and it
    // is no error that there are none.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    output.forward(Duration::ZERO, ktap)?;
    output.finish(ktap)?;
    Ok((end, output.last_line))
}

fn wait_for_death(pid: Pid) -> Result<End> {
    let deadline = Instant::now() + KILL_GRACE;
    while Instant::now() < deadline {
        if reap(pid)?.is_some() {
            return Ok(End::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // Where the blocked tasks are goes to the console, for whoever looks into this.
    sysfs::write("/proc/sysrq-trigger", "w")?;
    Ok(End::Stuck)
}

/// Reaps whatever has died, as PID 1 must, and says if `pid` was among it.
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

/// The output of a test on its way into the KTAP stream.
struct Output {
    pipe: File,
    partial: Vec<u8>,
    last_line: String,
}

impl Output {
    fn of(pipe: File) -> Result<Output> {
        // The end of file may never come: what the test has started may hold the pipe open.
        fcntl(&pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(Output {
            pipe,
            partial: Vec::new(),
            last_line: String::new(),
        })
    }

    /// Passes on what there is, and waits a little if there is nothing.
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
