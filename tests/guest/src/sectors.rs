// SPDX-License-Identifier: GPL-2.0

//! Test data for disks: aligned buffers, patterns, and a model of what a disk should contain.

use std::fs::File;
use std::ops::{Deref, DerefMut, Range};
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use crate::mapping::PAGE;

/// The unit in which block devices count.
pub const SECTOR: usize = 512;

/// Memory for `O_DIRECT`: aligned to a sector and, on purpose, to nothing more, so that requests
/// do not coincide with pages.
pub struct Buffer {
    store: Vec<u8>,
    range: Range<usize>,
}

impl Buffer {
    /// Makes a buffer of zeros.
    pub fn new(len: usize) -> Buffer {
        let store = vec![0; len + PAGE + SECTOR];
        let to_page = store.as_ptr().align_offset(PAGE);
        let start = to_page + SECTOR;
        Buffer {
            store,
            range: start..start + len,
        }
    }

    /// Makes a buffer aligned to a page, for disks with sectors of a page.
    pub fn of_pages(len: usize, tag: u64) -> Buffer {
        let mut buffer = Buffer::new(len);
        buffer.range = buffer.range.start - SECTOR..buffer.range.end - SECTOR;
        stamp(&mut buffer, tag);
        buffer
    }

    /// Makes a buffer filled by [`stamp`].
    pub fn stamped(len: usize, tag: u64) -> Buffer {
        let mut buffer = Buffer::new(len);
        stamp(&mut buffer, tag);
        buffer
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.store[self.range.clone()]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.store[self.range.clone()]
    }
}

/// Fills bytes with a pattern that identifies the write (`tag`) and the offset in it.
pub fn stamp(bytes: &mut [u8], tag: u64) {
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let value = ((tag << 32) | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let value = (value ^ (value >> 29)).to_le_bytes();
        word.copy_from_slice(&value[..word.len()]);
    }
}

/// Bytes on the heap, filled by [`stamp`].
pub fn stamped(len: usize, tag: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stamp(&mut bytes, tag);
    bytes
}

/// Checks that two slices are equal, and reports where they first differ.
pub fn expect_same(what: &str, found: &[u8], right: &[u8]) -> Result<()> {
    ensure!(
        found.len() == right.len(),
        "{what}: {} bytes, expected {}",
        found.len(),
        right.len()
    );
    if found == right {
        return Ok(());
    }
    let wrong: Vec<usize> = (0..found.len())
        .filter(|&at| found[at] != right[at])
        .collect();
    let (first, last) = (wrong[0], wrong[wrong.len() - 1]);
    let show = |bytes: &[u8]| format!("{:02x?}", &bytes[first..bytes.len().min(first + 16)]);
    anyhow::bail!(
        "{what}: {} of {} bytes differ, from {first:#x} to {last:#x}; there it reads {}, expected {}",
        wrong.len(),
        found.len(),
        show(found),
        show(right),
    )
}

/// The expected contents of a part of a disk.
pub struct Model {
    start: u64,
    bytes: Vec<u8>,
}

impl Model {
    /// Starts with the current contents of a part of a disk.
    pub fn of(disk: &File, start: u64, len: usize) -> Result<Model> {
        let mut bytes = Buffer::new(len);
        disk.read_exact_at(&mut bytes, start)?;
        Ok(Model {
            start,
            bytes: bytes.to_vec(),
        })
    }

    /// The length of the part.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The offset on the disk of a byte of the part.
    pub fn on_disk(&self, offset: usize) -> u64 {
        self.start + offset as u64
    }

    /// Records a write.
    pub fn written(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Records that a range was zeroed.
    pub fn zeroed(&mut self, offset: usize, len: usize) {
        self.bytes[offset..offset + len].fill(0);
    }

    /// Checks bytes that were read.
    pub fn check(&self, what: &str, offset: usize, found: &[u8]) -> Result<()> {
        let place = format!("{what} at {:#x}", self.on_disk(offset));
        expect_same(&place, found, &self.bytes[offset..offset + found.len()])
    }

    /// Reads the whole part again and checks it.
    pub fn check_all(&self, disk: &File) -> Result<()> {
        let mut bytes = Buffer::new(self.len());
        disk.read_exact_at(&mut bytes, self.start)?;
        self.check("reading it all again", 0, &bytes)
    }
}
