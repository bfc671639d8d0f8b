// SPDX-License-Identifier: GPL-2.0

//! The messages to the host while a guest may be killed at any time. The host records what arrives
//! and evaluates it (`ledger.rs` of the runner).
//!
//! The lines share a port with the results. Each is written with one call, so that it is not
//! interrupted.

use std::fs::{File, OpenOptions};
use std::io::Write;

use anyhow::{Context, Result};

use crate::arch::RESULTS;

/// The port to the host.
pub struct Port(File);

impl Port {
    /// Opens the port.
    pub fn open() -> Result<Port> {
        let port = OpenOptions::new()
            .write(true)
            .open(RESULTS)
            .with_context(|| format!("opening {RESULTS}"))?;
        Ok(Port(port))
    }

    /// Announces a writer, and what is expected of it.
    pub fn writer(&mut self, id: usize, name: &str, duty: &str) -> Result<()> {
        self.say(&format!("writer {id} {name} {duty}"))
    }

    /// Announces a check of everything on the medium.
    pub fn checking(&mut self) -> Result<()> {
        self.say("checking")
    }

    /// Reports the contents of a block.
    pub fn found(&mut self, id: usize, block: u32, oldest: u32, newest: u32) -> Result<()> {
        self.say(&format!("found {id} {block} {oldest} {newest}"))
    }

    /// Reports a block that contains what no writer has written.
    pub fn damaged(&mut self, id: usize, block: u32, at: usize) -> Result<()> {
        self.say(&format!("damaged {id} {block} {at}"))
    }

    /// Reports that the check is complete.
    pub fn checked(&mut self) -> Result<()> {
        self.say("checked")
    }

    /// Reports that the earlier writes of a writer may disappear.
    pub fn forget(&mut self, id: usize) -> Result<()> {
        self.say(&format!("forget {id}"))
    }

    /// Reports that all writers are running.
    pub fn at_work(&mut self) -> Result<()> {
        self.say("at work")
    }

    /// Reports that `count` blocks of a write are durable.
    pub fn durable(&mut self, id: usize, first: u32, count: u32, write: u32) -> Result<()> {
        self.say(&format!("durable {id} {first} {count} {write}"))
    }

    fn say(&mut self, words: &str) -> Result<()> {
        self.0
            .write_all(format!("# {words}\n").as_bytes())
            .context("talking to the host")
    }
}
