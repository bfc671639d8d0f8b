// SPDX-License-Identifier: GPL-2.0

//! Kernel messages since a given moment.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A position in the stream of kernel messages.
pub struct Messages {
    device: File,
    seen: Vec<String>,
}

impl Messages {
    /// Starts after the latest message.
    pub fn from_now() -> Result<Messages> {
        let mut device = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("opening /dev/kmsg")?;
        device
            .seek(SeekFrom::End(0))
            .context("skipping old kernel messages")?;
        Ok(Messages {
            device,
            seen: Vec::new(),
        })
    }

    /// All messages since the start, without prefixes.
    pub fn so_far(&mut self) -> Result<&[String]> {
        let mut record = [0; 8192];
        loop {
            match self.device.read(&mut record) {
                Ok(0) => break,
                Ok(len) => self.seen.push(text_of(&record[..len])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Messages were lost because the ring buffer wrapped around. Go on with the oldest
                // one.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error).context("reading /dev/kmsg"),
            }
        }
        Ok(&self.seen)
    }

    /// Checks that a message with one of `pieces` has arrived or arrives within a moment.
    pub fn expect(&mut self, pieces: &[&str]) -> Result<String> {
        self.expect_within(pieces, Duration::from_secs(2))
    }

    /// As [`Messages::expect`], but waits for so long.
    pub fn expect_within(&mut self, pieces: &[&str], limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            let says = |message: &&String| pieces.iter().any(|piece| message.contains(piece));
            if let Some(found) = self.so_far()?.iter().find(says) {
                return Ok(found.clone());
            }
            if Instant::now() > deadline {
                bail!(
                    "no kernel message says {pieces:?}; there were: {:#?}",
                    self.seen
                );
            }
            sleep(Duration::from_millis(20));
        }
    }
}

/// Parses the message out of a record (`priority,sequence,time,flags;message\n KEY=value…`).
fn text_of(record: &[u8]) -> String {
    let record = String::from_utf8_lossy(record);
    let message = record
        .split_once(';')
        .map_or(&*record, |(_, message)| message);
    message.lines().next().unwrap_or_default().to_owned()
}
