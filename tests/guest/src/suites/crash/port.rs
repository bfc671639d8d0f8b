// SPDX-License-Identifier: GPL-2.0

//! What the host is told while a guest may be killed at any time. The host keeps what arrives, and
//! judges it (`ledger.rs` of the runner).
//!
//! The lines go between those of the results, each with one call, so that they are whole.

use std::fs::{File, OpenOptions};
use std::io::Write;

use anyhow::{Context, Result};

use crate::init::RESULTS;

/// The way to the host.
pub struct Port(File);

impl Port {
    /// Opens it.
    pub fn open() -> Result<Port> {
        let port = OpenOptions::new()
            .write(true)
            .open(RESULTS)
            .with_context(|| format!("opening {RESULTS}"))?;
        Ok(Port(port))
    }

    /// Says who writes, and what is to be expected of it.
    pub fn writer(&mut self, id: usize, name: &str, duty: &str) -> Result<()> {
        self.say(&format!("writer {id} {name} {duty}"))
    }

    /// Says that a check of all that is on the media begins.
    pub fn checking(&mut self) -> Result<()> {
        self.say("checking")
    }

    /// Says what a block holds.
    pub fn found(&mut self, id: usize, block: u32, oldest: u32, newest: u32) -> Result<()> {
        self.say(&format!("found {id} {block} {oldest} {newest}"))
    }

    /// Says that a block holds what nobody has written.
    pub fn damaged(&mut self, id: usize, block: u32, at: usize) -> Result<()> {
        self.say(&format!("damaged {id} {block} {at}"))
    }

    /// Says that the check is complete.
    pub fn checked(&mut self) -> Result<()> {
        self.say("checked")
    }

    /// Says that what a writer has written so far may go.
    pub fn forget(&mut self, id: usize) -> Result<()> {
        self.say(&format!("forget {id}"))
    }

    /// Says that all writers are at work.
    pub fn at_work(&mut self) -> Result<()> {
        self.say("at work")
    }

    /// Says that `count` blocks are durable as a write has left them.
    pub fn durable(&mut self, id: usize, first: u32, count: u32, write: u32) -> Result<()> {
        self.say(&format!("durable {id} {first} {count} {write}"))
    }

    fn say(&mut self, words: &str) -> Result<()> {
        self.0
            .write_all(format!("# {words}\n").as_bytes())
            .context("talking to the host")
    }
}
