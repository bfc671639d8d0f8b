// SPDX-License-Identifier: GPL-2.0

//! Controls the host. QEMU's monitor is behind one serial port. What is written to another one
//! controls how flushes of virtio-pmem devices behave (`tests/hostsync`). Only machines with
//! such devices have these two ports.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, cfmakeraw, tcdrain, tcgetattr, tcsetattr};
use serde_json::{Value, json};

use crate::arch::{FLUSHES, MONITOR};

/// How long QEMU may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// After a silence of this length, older output of QEMU has all been read.
const QUIET: Duration = Duration::from_millis(200);
/// A byte that no JSON text contains. It makes QEMU discard the input before it.
const RESET: u8 = 0xff;

fn open_raw(port: &str) -> Result<File> {
    let port_file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(port)
        .with_context(|| format!("opening {port}; does this machine have the port?"))?;
    let mut settings = tcgetattr(&port_file)?;
    cfmakeraw(&mut settings);
    tcsetattr(&port_file, SetArg::TCSANOW, &settings)?;
    Ok(port_file)
}

/// How the host flushes the files behind virtio-pmem devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flushes {
    /// Normally.
    Pass,
    /// Flushes block until the mode changes.
    Hold,
    /// Flushes fail.
    Fail,
    /// Flushes take 5 ms longer.
    Slow,
    /// Flushes take 3 s longer.
    Late,
}

fn order_flushes(how: Flushes) -> Result<()> {
    let order = match how {
        Flushes::Pass => "pass\n",
        Flushes::Hold => "hold\n",
        Flushes::Fail => "fail\n",
        Flushes::Slow => "slow\n",
        Flushes::Late => "late\n",
    };
    let mut port = open_raw(FLUSHES)?;
    port.write_all(order.as_bytes())?;
    // Once the byte has left the port, it is in the file that the host reads.
    Ok(tcdrain(&port)?)
}

/// Keeps the flushes of the host blocked, failing or slow until it is dropped.
pub struct Disturbed(());

impl Disturbed {
    /// Makes flushes block.
    pub fn held() -> Result<Disturbed> {
        order_flushes(Flushes::Hold)?;
        Ok(Disturbed(()))
    }

    /// Makes flushes slow.
    pub fn slow() -> Result<Disturbed> {
        order_flushes(Flushes::Slow)?;
        Ok(Disturbed(()))
    }

    /// Makes flushes very slow.
    pub fn late() -> Result<Disturbed> {
        order_flushes(Flushes::Late)?;
        Ok(Disturbed(()))
    }

    /// Makes flushes fail.
    pub fn failing() -> Result<Disturbed> {
        order_flushes(Flushes::Fail)?;
        Ok(Disturbed(()))
    }

    /// Restores flushes. Unlike `drop`, this reports a failure.
    pub fn end(self) -> Result<()> {
        std::mem::forget(self);
        order_flushes(Flushes::Pass)
    }
}

impl Drop for Disturbed {
    fn drop(&mut self) {
        // The test has failed already. If flushes stay broken, the next test fails too.
        let _ = order_flushes(Flushes::Pass);
    }
}

/// A connection to QEMU's monitor (QMP).
pub struct Monitor {
    port: File,
    heard: Vec<u8>,
    asked: u32,
}

impl Monitor {
    /// Opens the connection.
    pub fn open() -> Result<Monitor> {
        let mut monitor = Monitor {
            port: open_raw(MONITOR)?,
            heard: Vec::new(),
            asked: 0,
        };
        // The greeting may be there, or a part of it that was echoed while the port was a terminal.
        while monitor.listen(QUIET)? {}
        monitor.port.write_all(&[RESET])?;
        while monitor.listen(QUIET)? {}
        monitor.heard.clear();
        // Fails if an earlier test has negotiated already.
        let _ = monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    /// Executes a command, which must succeed.
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
                // Events are not answers. What is not JSON is the rest of an older answer.
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

    /// Reads what arrives, and returns whether anything arrived within `limit`.
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
