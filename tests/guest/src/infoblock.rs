// SPDX-License-Identifier: GPL-2.0

//! The block at the start of an fsdax namespace that says how it is laid out.
//!
//! C: `struct nd_pfn_sb` in `drivers/nvdimm/pfn.h`. Tests change it to something that no tool would
//! write.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::Result;

const LEN: usize = 4096;
/// Where it lies in the namespace.
const OFFSET: u64 = 4096;
const CHECKSUM: usize = LEN - 8;

/// A field, by its place and size.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// The namespace that the block was written for.
    ParentUuid,
    /// Where the data start.
    DataOffset,
    /// Where the struct pages are: in RAM or on the media.
    Mode,
    /// What is left unused at the start.
    StartPad,
    /// What is left unused at the end.
    EndTruncated,
    /// What the data are aligned to.
    Align,
    /// The size of `struct page` that the layout has room for.
    PageStructSize,
}

impl Field {
    fn range(self) -> std::ops::Range<usize> {
        match self {
            Field::ParentUuid => 32..48,
            Field::DataOffset => 56..64,
            Field::Mode => 72..76,
            Field::StartPad => 76..80,
            Field::EndTruncated => 80..84,
            Field::Align => 84..88,
            Field::PageStructSize => 92..94,
        }
    }
}

/// An info block in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct InfoBlock([u8; LEN]);

impl InfoBlock {
    /// Reads it from a disk that shows the whole namespace.
    pub fn read(disk: &File) -> Result<InfoBlock> {
        let mut bytes = [0; LEN];
        disk.read_exact_at(&mut bytes, OFFSET)?;
        Ok(InfoBlock(bytes))
    }

    /// Writes it back.
    pub fn write(&self, disk: &File) -> Result<()> {
        disk.write_all_at(&self.0, OFFSET)?;
        Ok(disk.sync_all()?)
    }

    /// Reads a field of up to eight bytes.
    pub fn get(&self, field: Field) -> u64 {
        let bytes = &self.0[field.range()];
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte))
    }

    /// Changes a field and makes the checksum right again.
    pub fn with(&self, field: Field, value: u64) -> InfoBlock {
        let mut block = self.clone();
        let place = &mut block.0[field.range()];
        place.fill(0);
        for (to, from) in place.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        let checksum = block.checksum();
        block.0[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Changes nothing but the checksum.
    pub fn with_wrong_checksum(&self) -> InfoBlock {
        let mut block = self.clone();
        block.0[CHECKSUM] ^= 1;
        block
    }

    /// Fletcher's checksum of 32-bit words, of all but the checksum itself.
    fn checksum(&self) -> u64 {
        let (mut low, mut high) = (0_u32, 0_u64);
        for word in self.0[..CHECKSUM].chunks_exact(4) {
            low = low.wrapping_add(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
            high = high.wrapping_add(low.into());
        }
        // The checksum counts as two words of zero.
        high = high.wrapping_add(u64::from(low) * 2);
        (high << 32) | u64::from(low)
    }
}
