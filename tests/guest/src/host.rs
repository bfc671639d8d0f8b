// SPDX-License-Identifier: GPL-2.0

//! The host, as far as a guest may give it orders: QEMU's monitor is behind the third serial port, and what
//! is written to the fourth says how the flushes of virtio-pmem devices go (`tests/hostsync`). Only those
//! machines have the two whose devices need them.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use serde_json::{Value, json};

const MONITOR: &str = "/dev/ttyS2";
const FLUSHES: &str = "/dev/ttyS3";

/// How soon QEMU answers.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// After such a silence, no more is to come of what QEMU has said before.
const QUIET: Duration = Duration::from_millis(200);
/// A byte that is in no JSON text. QEMU forgets what it has read before it.
const RESET: u8 = 0xff;

fn open_raw(port: &str) -> Result<File> {
    let port_file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(port)
        .with_context(|| format!("opening {port}; does this machine take orders?"))?;
    let mut settings = tcgetattr(&port_file)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port_file, SetArg::TCSANOW, &settings)?;
    Ok(port_file)
}

/// How the host flushes the files behind virtio-pmem devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushes {
    /// As ever.
    Pass,
    /// They take until this changes.
    Hold,
    /// They fail.
    Fail,
}

fn order_flushes(how: Flushes) -> Result<()> {
    let order = match how {
        Flushes::Pass => "pass\n",
        Flushes::Hold => "hold\n",
        Flushes::Fail => "fail\n",
    };
    let mut port = open_raw(FLUSHES)?;
    port.write_all(order.as_bytes())?;
    // Once it has left the port, it is in the file that the host looks at.
    Ok(tcdrain(&port)?)
}

/// The host flushes otherwise than it should, for as long as this lives.
pub struct Disturbed(());

impl Disturbed {
    /// Flushes do not end.
    pub fn held() -> Result<Disturbed> {
        order_flushes(Flushes::Hold)?;
        Ok(Disturbed(()))
    }

    /// Flushes fail.
    pub fn failing() -> Result<Disturbed> {
        order_flushes(Flushes::Fail)?;
        Ok(Disturbed(()))
    }

    /// Ends it, and says so if that fails.
    pub fn end(self) -> Result<()> {
        std::mem::forget(self);
        order_flushes(Flushes::Pass)
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        // A test has failed already; the next one will notice.
        let _ = order_flushes(Flushes::Pass);
    }
}

/// A conversation with QEMU's monitor (QMP).
pub struct Monitor {
    port: File,
    heard: Vec<u8>,
    asked: u32,
}

impl Monitor {
    /// Opens it.
    pub fn open() -> Result<Monitor> {
        let mut monitor = Monitor {
            port: open_raw(MONITOR)?,
            heard: Vec::new(),
            asked: 0,
        };
        // Its greeting may be there, or a part of it, echoed while the port was a terminal.
        while monitor.listen(QUIET)? {}
        monitor.port.write_all(&[RESET])?;
        while monitor.listen(QUIET)? {}
        monitor.heard.clear();
        // It fails if an earlier test has said so.
        let _ = monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Carries a command out, which must succeed.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut answer = self.ask(command, arguments)?;
        if let Some(error) = answer.get("error") {
            bail!("QEMU does not {command}: {error}");
        }
        Ok(answer["return"].take())
    }

    fn ask(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.asked += 1;
        let id = format!("{}-{}", std::process::id(), self.asked);
        let question = json!({"execute": command, "arguments": arguments, "id": id});
        self.port.write_all(format!("{question}\n").as_bytes())?;
        let deadline = Instant::now() + ANSWER_LIMIT;
        loop {
            while let Some(end) = self.heard.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.heard.drain(..=end).collect();
                // Events are not answers; what is no JSON is the rest of something older.
                let answer: Option<Value> = serde_json::from_slice(&line).ok();
                if let Some(answer) = answer.filter(|answer| answer["id"] == *id) {
                    return Ok(answer);
                }
            }
            ensure!(
                Instant::now() < deadline,
                "QEMU has not answered {command} within {ANSWER_LIMIT:?}"
            );
            self.listen(QUIET)?;
        }
    }

    /// Takes what comes, and returns whether something came within a time.
    fn listen(&mut self, limit: Duration) -> Result<bool> {
        let timeout = PollTimeout::try_from(limit)?;
        let mut ports = [PollFd::new(self.port.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ports, timeout)? == 0 {
            return Ok(false);
        }
        let mut piece = [0; 256];
        let len = self.port.read(&mut piece)?;
        self.heard.extend_from_slice(&piece[..len]);
        Ok(len > 0)
    }
}
