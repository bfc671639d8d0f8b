// SPDX-License-Identifier: GPL-2.0

//! What is on the media beside the data: the block at the start of a namespace that says what it is and
//! how it is laid out, and the label of the namespace in the label area of its NVDIMM.
//!
//! C: `struct nd_pfn_sb` in `drivers/nvdimm/pfn.h`, `struct btt_sb` in `drivers/nvdimm/btt.h`, which start
//! alike, and `struct nvdimm_efi_label` in `drivers/nvdimm/label.h`. Tests change them to something that no
//! tool would write.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use crate::ndctl::Mode;

const LEN: usize = 4096;
const CHECKSUM: usize = LEN - 8;

/// A field, by its place and size.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// The namespace that the block was written for.
    ParentUuid,
    /// The first part of the version.
    MajorVersion,
    /// The second part of the version.
    MinorVersion,
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
    /// The size of the pages that the layout is for.
    PageSize,
    /// The size of `struct page` that the layout has room for.
    PageStructSize,
}

impl Field {
    fn range(self) -> std::ops::Range<usize> {
        match self {
            Field::ParentUuid => 32..48,
            Field::MajorVersion => 52..54,
            Field::MinorVersion => 54..56,
            Field::DataOffset => 56..64,
            Field::Mode => 72..76,
            Field::StartPad => 76..80,
            Field::EndTruncated => 80..84,
            Field::Align => 84..88,
            Field::PageSize => 88..92,
            Field::PageStructSize => 92..94,
        }
    }
}

/// An info block in memory, and where it lies in the namespace.
#[derive(Clone, PartialEq, Eq)]
pub struct InfoBlock {
    bytes: [u8; LEN],
    place: u64,
}

impl InfoBlock {
    /// Reads it from a disk that shows the whole namespace, of a mode. Where the label can say that it is a
    /// btt, that has no block before its own.
    pub fn read(disk: &File, mode: Mode) -> Result<InfoBlock> {
        let place = if mode == Mode::Sector { 0 } else { 4096 };
        let mut bytes = [0; LEN];
        disk.read_exact_at(&mut bytes, place)?;
        ensure!(
            bytes[..16] != [0; 16],
            "there is no info block at {place:#x}"
        );
        Ok(InfoBlock { bytes, place })
    }

    /// Writes it back.
    pub fn write(&self, disk: &File) -> Result<()> {
        disk.write_all_at(&self.bytes, self.place)?;
        Ok(disk.sync_all()?)
    }

    /// Reads a field of up to eight bytes.
    pub fn get(&self, field: Field) -> u64 {
        let bytes = &self.bytes[field.range()];
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| (value << 8) | u64::from(byte))
    }

    /// Changes a field and makes the checksum right again.
    pub fn with(&self, field: Field, value: u64) -> InfoBlock {
        let mut block = self.clone();
        let place = &mut block.bytes[field.range()];
        place.fill(0);
        for (to, from) in place.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        let checksum = block.checksum();
        block.bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        block
    }

    /// Changes nothing but the checksum.
    pub fn with_wrong_checksum(&self) -> InfoBlock {
        let mut block = self.clone();
        block.bytes[CHECKSUM] ^= 1;
        block
    }

    fn checksum(&self) -> u64 {
        checksum(&self.bytes[..CHECKSUM])
    }
}

/// Fletcher's checksum of 32-bit words, and of two words of zero after them: what it is stored in
/// counts as that.
fn checksum(bytes: &[u8]) -> u64 {
    let (mut low, mut high) = (0_u32, 0_u64);
    for word in bytes.chunks_exact(4) {
        low = low.wrapping_add(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        high = high.wrapping_add(low.into());
    }
    high = high.wrapping_add(u64::from(low) * 2);
    (high << 32) | u64::from(low)
}

const LABEL_LEN: usize = 256;

/// Makes all labels of a namespace in a label area ask for sectors of another size.
pub fn set_sector_size(area: &mut [u8], namespace: &str, bytes: u64) -> Result<()> {
    const SECTOR_SIZE: usize = 96;
    let digits: String = namespace.chars().filter(|&digit| digit != '-').collect();
    let uuid = u128::from_str_radix(&digits, 16)?.to_be_bytes();
    let labels: Vec<usize> = (0..area.len() - LABEL_LEN)
        .step_by(LABEL_LEN)
        .filter(|&at| area[at..].starts_with(&uuid))
        .collect();
    ensure!(!labels.is_empty(), "there is no label of {namespace}");
    for at in labels {
        let label = &mut area[at..at + LABEL_LEN];
        let end = LABEL_LEN - 8;
        ensure!(
            label[end..] == checksum(&label[..end]).to_le_bytes(),
            "the label at {at:#x} is not as expected"
        );
        label[SECTOR_SIZE..SECTOR_SIZE + 8].copy_from_slice(&bytes.to_le_bytes());
        let right = checksum(&label[..end]).to_le_bytes();
        label[end..].copy_from_slice(&right);
    }
    Ok(())
}
