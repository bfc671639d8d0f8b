// SPDX-License-Identifier: GPL-2.0

//! Metadata on the medium: the info block at the start of a namespace, which describes its layout,
//! and the label of the namespace in the label area of its NVDIMM.
//!
//! C: `struct nd_pfn_sb` in `drivers/nvdimm/pfn.h`, `struct btt_sb` in `drivers/nvdimm/btt.h` (both
//! start alike), and `struct nvdimm_efi_label` in `drivers/nvdimm/label.h`. Tests write values to
//! them that no tool would write.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Result, bail, ensure};

use crate::ndctl::Mode;

/// The size of an info block.
pub const LEN: usize = 4096;
const CHECKSUM: usize = LEN - 8;

/// A field, given by its offset and size. `Arena` fields belong to a btt; pfn and dax blocks have
/// other fields there.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// Flags. One of them records an error.
    Flags,
    /// The uuid of the namespace that the block was written for.
    ParentUuid,
    /// The major version.
    MajorVersion,
    /// The minor version.
    MinorVersion,
    /// The offset of the data.
    DataOffset,
    /// The number of pages of the data.
    Pages,
    /// Where the struct pages are: in RAM or on the medium.
    Mode,
    /// How many bytes at the start are unused.
    StartPad,
    /// How many bytes at the end are unused.
    EndTruncated,
    /// The alignment of the data.
    Align,
    /// The page size that the layout was made for.
    PageSize,
    /// The size of `struct page` that the layout was made for.
    PageStructSize,
    /// The sector size.
    SectorSize,
    /// The number of sectors.
    Sectors,
    /// The size of the internal blocks.
    BlockSize,
    /// The number of internal blocks.
    Blocks,
    /// The number of free internal blocks.
    SpareBlocks,
    /// The size of an info block.
    InfoSize,
    /// The offset of the next arena.
    NextArena,
    /// The offset of the internal blocks in the arena.
    ArenaData,
    /// The offset of the map.
    ArenaMap,
    /// The offset of the log.
    ArenaLog,
    /// The offset of the copy of the info block.
    ArenaCopy,
}

/// The fields that all kinds of info blocks have.
const COMMON: &[Field] = &[
    Field::ParentUuid,
    Field::Flags,
    Field::MajorVersion,
    Field::MinorVersion,
];
const OF_PAGES: &[Field] = &[
    Field::DataOffset,
    Field::Pages,
    Field::Mode,
    Field::StartPad,
    Field::EndTruncated,
    Field::Align,
    Field::PageSize,
    Field::PageStructSize,
];
const OF_ARENA: &[Field] = &[
    Field::SectorSize,
    Field::Sectors,
    Field::BlockSize,
    Field::Blocks,
    Field::SpareBlocks,
    Field::InfoSize,
    Field::NextArena,
    Field::ArenaData,
    Field::ArenaMap,
    Field::ArenaLog,
    Field::ArenaCopy,
];

/// The signature of the info block of an fsdax namespace.
pub const FSDAX: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
/// The signature of the info block of a devdax namespace.
pub const DEVDAX: &[u8; 16] = b"NVDIMM_DAX_INFO\0";

/// The signatures of the three kinds of info blocks.
pub const SIGNATURES: [&[u8; 16]; 3] = [b"BTT_ARENA_INFO\0\0", FSDAX, DEVDAX];

impl Field {
    fn range(self) -> Range<usize> {
        match self {
            Field::ParentUuid => 32..48,
            Field::MajorVersion => 52..54,
            Field::MinorVersion => 54..56,
            Field::DataOffset => 56..64,
            Field::Pages => 64..72,
            Field::Mode => 72..76,
            Field::StartPad => 76..80,
            Field::EndTruncated => 80..84,
            Field::Align => 84..88,
            Field::PageSize => 88..92,
            Field::PageStructSize => 92..94,
            Field::Flags => 48..52,
            Field::SectorSize => 56..60,
            Field::Sectors => 60..64,
            Field::BlockSize => 64..68,
            Field::Blocks => 68..72,
            Field::SpareBlocks => 72..76,
            Field::InfoSize => 76..80,
            Field::NextArena => 80..88,
            Field::ArenaData => 88..96,
            Field::ArenaMap => 96..104,
            Field::ArenaLog => 104..112,
            Field::ArenaCopy => 112..120,
        }
    }

    /// The fields that determine the layout of a namespace in this mode.
    pub fn of_layout(mode: Mode) -> &'static [Field] {
        if mode == Mode::Sector {
            OF_ARENA
        } else {
            OF_PAGES
        }
    }

    /// All fields of the info block of a mode.
    pub fn all_of(mode: Mode) -> Vec<Field> {
        [COMMON, Field::of_layout(mode)].concat()
    }
}

/// An info block in memory, and its offset in the namespace.
#[derive(Clone, PartialEq, Eq)]
pub struct InfoBlock {
    bytes: [u8; LEN],
    place: u64,
}

impl InfoBlock {
    /// Reads the info block of a namespace in this mode, from a disk that shows the whole
    /// namespace. The info block of a btt is at offset 0 if the label can record that the namespace
    /// is a btt.
    pub fn read(disk: &File, mode: Mode) -> Result<InfoBlock> {
        let places: &[u64] = if mode == Mode::Sector {
            &[0, 4096]
        } else {
            &[4096]
        };
        for &place in places {
            let mut bytes = [0; LEN];
            disk.read_exact_at(&mut bytes, place)?;
            if SIGNATURES
                .iter()
                .any(|signature| bytes.starts_with(*signature))
            {
                return Ok(InfoBlock { bytes, place });
            }
        }
        bail!("there is no info block at {places:?}")
    }

    /// Reads the info block of the arena after this one.
    pub fn next_arena(&self, disk: &File) -> Result<InfoBlock> {
        let place = self.place + self.get(Field::NextArena);
        let mut bytes = [0; LEN];
        disk.read_exact_at(&mut bytes, place)?;
        ensure!(
            place > self.place && bytes.starts_with(SIGNATURES[0]),
            "there is no arena at {place:#x}"
        );
        Ok(InfoBlock { bytes, place })
    }

    /// Makes a block without uuids and of version 0.0, at the place of a pfn's. It is not sealed.
    pub fn blank(signature: &[u8; 16]) -> InfoBlock {
        let mut block = InfoBlock {
            bytes: [0; LEN],
            place: LEN as u64,
        };
        block.set_signature(signature);
        block
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

    /// Where a part of the arena begins in the namespace: what this field has the offset of.
    pub fn part(&self, field: Field) -> u64 {
        self.place + self.get(field)
    }

    /// Returns a copy with one field changed and the checksum updated.
    pub fn with(&self, field: Field, value: u64) -> InfoBlock {
        let mut block = self.clone();
        block.set(field, value);
        block.seal();
        block
    }

    /// Changes a field.
    pub fn set(&mut self, field: Field, value: u64) {
        let place = &mut self.bytes[field.range()];
        place.fill(0);
        for (to, from) in place.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    /// Flips a bit of any byte.
    pub fn flip(&mut self, bit: usize) {
        self.bytes[bit / 8] ^= 1 << (bit % 8);
    }

    /// Replaces the signature.
    pub fn set_signature(&mut self, signature: &[u8; 16]) {
        self.bytes[..16].copy_from_slice(signature);
    }

    /// Updates the checksum.
    pub fn seal(&mut self) {
        let checksum = self.checksum();
        self.bytes[CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// Returns a copy in which only the checksum is wrong.
    pub fn with_wrong_checksum(&self) -> InfoBlock {
        let mut block = self.clone();
        block.bytes[CHECKSUM] ^= 1;
        block
    }

    fn checksum(&self) -> u64 {
        checksum(&self.bytes[..CHECKSUM])
    }
}

/// Fletcher's checksum of 32-bit words, followed by two words of zero: the checksum field itself
/// counts as zero.
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
/// The offsets of the number of the set of NVDIMMs in a label (`isetcookie`).
pub const LABEL_SET: Range<usize> = 88..96;
/// The offsets of the place on the NVDIMM in a label.
pub const LABEL_PLACE: Range<usize> = 104..112;
/// The offsets of the size on the NVDIMM in a label.
pub const LABEL_SIZE: Range<usize> = 112..120;
/// The offsets of the number of the label's own slot.
const LABEL_SLOT: Range<usize> = 120..124;
/// The offsets of the sector size in a label.
pub const LABEL_SECTOR_SIZE: Range<usize> = 96..104;
/// The offsets of the `abstraction_guid` in a label, which has the claim class.
pub const LABEL_CLAIM_CLASS: Range<usize> = 144..160;

/// The uuid of a namespace, as a label stores it.
fn uuid_bytes(namespace: &str) -> Result<[u8; 16]> {
    let digits: String = namespace.chars().filter(|&digit| digit != '-').collect();
    Ok(u128::from_str_radix(&digits, 16)?.to_be_bytes())
}

/// The labels of a namespace in a label area, or in the start of one.
pub fn labels_of(area: &[u8], namespace: &str) -> Result<Vec<Range<usize>>> {
    let uuid = uuid_bytes(namespace)?;
    let labels: Vec<Range<usize>> = (0..area.len() - LABEL_LEN)
        .step_by(LABEL_LEN)
        .filter(|&at| area[at..].starts_with(&uuid))
        .map(|at| at..at + LABEL_LEN)
        .collect();
    ensure!(!labels.is_empty(), "there is no label of {namespace}");
    for label in &labels {
        let (rest, end) = area[label.clone()].split_at(LABEL_LEN - 8);
        ensure!(
            end == checksum(rest).to_le_bytes(),
            "the label at {:#x} is not as expected",
            label.start
        );
    }
    Ok(labels)
}

/// Updates the checksum of a label.
pub fn seal_label(label: &mut [u8]) {
    let (rest, end) = label.split_at_mut(LABEL_LEN - 8);
    end.copy_from_slice(&checksum(rest).to_le_bytes());
}

/// Changes a field in all labels of a namespace in a label area.
pub fn set_in_labels(
    area: &mut [u8],
    namespace: &str,
    field: Range<usize>,
    value: &[u8],
) -> Result<()> {
    for label in labels_of(area, namespace)? {
        let label = &mut area[label];
        label[field.clone()].copy_from_slice(value);
        seal_label(label);
    }
    Ok(())
}

/// The two index blocks at the start of a label area.
pub fn indexes_of(area: &[u8]) -> Result<[Range<usize>; 2]> {
    const SIGNATURE: &[u8; 16] = b"NAMESPACE_INDEX\0";
    const OTHER: Range<usize> = 40..48;
    let number = |range: Range<usize>| -> Result<usize> {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&area[range]);
        Ok(usize::try_from(u64::from_le_bytes(bytes))?)
    };
    let len = number(OTHER)?;
    let indexes = [0..len, len..2 * len];
    for index in &indexes {
        ensure!(
            index.end <= area.len() && area[index.clone()].starts_with(SIGNATURE),
            "there is no index at {:#x}",
            index.start
        );
    }
    Ok(indexes)
}

/// Writes a label into the last slot of a label area, or of the start of one, and marks the slot as
/// used.
pub fn add_label(area: &mut [u8], label: &[u8]) -> Result<()> {
    const FREE: usize = 72;
    let indexes = indexes_of(area)?;
    let labels = indexes[1].end;
    let slot = (area.len() - labels) / LABEL_LEN - 1;
    let at = labels + slot * LABEL_LEN;
    let place = &mut area[at..at + LABEL_LEN];
    place.copy_from_slice(label);
    place[LABEL_SLOT].copy_from_slice(&u32::try_from(slot)?.to_le_bytes());
    seal_label(place);
    for index in indexes {
        let index = &mut area[index];
        index[FREE + slot / 8] &= !(1 << (slot % 8));
        seal_index(index);
    }
    Ok(())
}

/// Updates the checksum of an index block.
pub fn seal_index(index: &mut [u8]) {
    const CHECKSUM: Range<usize> = 64..72;
    index[CHECKSUM].fill(0);
    let (mut low, mut high) = (0_u32, 0_u64);
    for word in index.chunks_exact(4) {
        low = low.wrapping_add(u32::from_le_bytes([word[0], word[1], word[2], word[3]]));
        high = high.wrapping_add(low.into());
    }
    let sum = (high << 32) | u64::from(low);
    index[CHECKSUM].copy_from_slice(&sum.to_le_bytes());
}
