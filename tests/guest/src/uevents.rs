// SPDX-License-Identifier: GPL-2.0

//! The kernel's uevents since a given moment, as udev receives them.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::syscall::uevent_socket;

/// Receives all uevents.
pub struct Uevents {
    socket: File,
    heard: Vec<String>,
}

impl Uevents {
    /// Starts to listen.
    pub fn from_now() -> Result<Uevents> {
        Ok(Uevents {
            socket: uevent_socket().context("listening to uevents")?,
            heard: Vec::new(),
        })
    }

    /// Checks that an event with all of `pieces` has arrived or arrives within a moment. Returns it
    /// with spaces between its variables.
    pub fn expect(&mut self, pieces: &[&str]) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            self.listen()?;
            let fits = |event: &&String| pieces.iter().all(|piece| event.contains(piece));
            if let Some(event) = self.heard.iter().find(fits) {
                return Ok(event.clone());
            }
            if Instant::now() > deadline {
                bail!("no uevent has {pieces:?}; there were: {:#?}", self.heard);
            }
            sleep(Duration::from_millis(20));
        }
    }

    /// All events so far, with spaces between their variables.
    pub fn so_far(&mut self) -> Result<&[String]> {
        self.listen()?;
        Ok(&self.heard)
    }

    fn listen(&mut self) -> Result<()> {
        let mut event = [0; 8192];
        loop {
            match self.socket.read(&mut event) {
                Ok(len) => {
                    let text = String::from_utf8_lossy(&event[..len]).replace('\0', " ");
                    self.heard.push(text);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // Some events were lost. Go on with the next one.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error).context("receiving uevents"),
            }
        }
    }
}
