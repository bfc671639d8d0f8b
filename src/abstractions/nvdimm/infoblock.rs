// SPDX-License-Identifier: GPL-2.0

//! Checks of the info block at the start of a namespace.
//!
//! libnvdimm reads info blocks too, and makes the devices for them. But it handles a namespace
//! whose block is damaged, or belongs to another namespace, as raw, and it accepts blocks that
//! cannot be used. What it and the btt driver then do with the numbers in a block may be undefined
//! behaviour. So blocks are checked here first.
//!
//! The medium is untrusted: nothing here overflows or panics. This file uses only `core`:
//! `tests/host/tests/infoblock.rs` compiles it for the host.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used
)]

use core::ops::Range;

/// The size of an info block in bytes.
pub(super) const LEN: usize = 4096;

/// The mode of a namespace that is not raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamespaceMode {
    /// A block device on which writes of a sector are atomic.
    Sector,
    /// A block device with `struct page`s.
    Fsdax,
    /// A character device with `struct page`s.
    Devdax,
}

impl NamespaceMode {
    /// Returns the name that `ndctl` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sector => "sector",
            Self::Fsdax => "fsdax",
            Self::Devdax => "devdax",
        }
    }
}

/// The reason why an info block cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InfoBlockError {
    /// The checksum is wrong.
    Checksum,
    /// The uuid is that of another namespace.
    Foreign,
    /// The version is unknown.
    Version,
    /// `mode` is neither `PFN_MODE_RAM` nor `PFN_MODE_PMEM`.
    PfnMode,
    /// The `struct page`s on the medium are for larger pages.
    PageSize,
    /// The medium has too little room for the `struct page`s.
    PageStructSize,
    /// The data overlap the info block, are not in the namespace, do not begin at a page, or begin
    /// too far away (`TOO_FAR_FOR_MEMMAP`).
    DataOffset,
    /// The data do not have the alignment in the block.
    Alignment,
    /// The range does not have the alignment that its `struct page`s need.
    StartAlignment,
    /// The parts of an arena are not within it, or are too small.
    Arena,
    /// A further arena cannot be read, is damaged, or belongs to another namespace.
    FurtherArena,
    /// The log of an arena names blocks or sectors that the arena does not have.
    Log,
    /// The log of an arena cannot be read.
    UnreadableLog,
    /// The sector size is unknown.
    SectorSize,
    /// The sectors have metadata.
    SectorMetadata,
    /// The sector size is not that of the device.
    OtherSectorSize,
    /// The mode is not the one in the label.
    OtherMode,
    /// libnvdimm refuses a block that has passed all checks. `__nd_btt_probe()` also does so if it
    /// cannot allocate a buffer.
    Refused,
}

impl InfoBlockError {
    /// Returns the reason as a clause for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Checksum => "its checksum is wrong",
            Self::Foreign => "it belongs to another namespace",
            Self::Version => "its version is not known",
            Self::PfnMode => "it does not say where the struct pages are",
            Self::PageSize => "its struct pages are for larger pages than this kernel has",
            Self::PageStructSize => "it has too little room for the struct pages of this kernel",
            Self::DataOffset => "the data cannot be where it says",
            Self::Alignment => "the data are not aligned as it says",
            Self::StartAlignment => {
                "its range does not start where a page of struct pages does, so it can only be raw \
                 or in mode sector"
            }
            Self::Arena => "the parts of its arena cannot be where it says",
            Self::FurtherArena => {
                "one of its further arenas is damaged or unreadable, or belongs to another namespace"
            }
            Self::Log => "the log of an arena names blocks that the arena does not have",
            Self::UnreadableLog => "the log of an arena cannot be read",
            Self::SectorSize => "its sectors are of a size that does not exist",
            Self::SectorMetadata => {
                "its sectors have metadata, with which nd_btt overwrites memory if a request is \
                 large (sectors of 512 or 4096 bytes have none)"
            }
            Self::OtherSectorSize => "its sectors are not of the sector_size of this device",
            Self::OtherMode => "the label says that the namespace has another mode",
            Self::Refused => {
                "libnvdimm does not accept it, or was out of memory, so bind the device again first"
            }
        }
    }

    /// Returns whether the block is damaged or of another namespace. libnvdimm may overwrite it.
    pub fn is_damaged_or_foreign(self) -> bool {
        matches!(self, Self::Checksum | Self::Foreign)
    }
}

/// The properties of a namespace that its info block must match.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// The uuid of the namespace; all zeroes if it has no label.
    pub uuid: [u8; 16],
    /// The physical address of the namespace.
    pub start: u64,
    /// The size of the namespace in bytes.
    pub size: u64,
    /// The offset of the info block in the namespace. An arena of a btt starts there.
    pub offset: u64,
    /// How many bytes at the start of the namespace are reserved for info blocks.
    pub reserve: u64,
    /// The size of a page in bytes.
    pub page_size: u64,
    /// The size of a `struct page` in bytes.
    pub page_struct_size: u64,
    /// The alignment that the start of a range with `struct page`s needs.
    pub start_align: u64,
    /// The alignment that libnvdimm gives to such a range (`memremap_compat_align()`). At most the
    /// other one.
    pub compat_align: u64,
    /// The size of a memory section in bytes. A range may start or end within a section. On arm64
    /// the kernel allocates the `struct page`s of such a part on the medium too. [`None`] on x86,
    /// where it allocates them in RAM.
    pub section: Option<u64>,
    /// The configured sector size of a btt device, with metadata, in bytes.
    pub sector_size: Option<usize>,
}

/// The limit of the offset of the data, if the `struct page`s are on the medium. libnvdimm cannot
/// handle offsets from 8 KiB above this on: `nd_pfn_clear_memmap_errors()` counts the sectors
/// between the info block and the data with an `int`.
pub(super) const TOO_FAR_FOR_MEMMAP: u64 = 1 << 40;

/// The size of an arena of a btt that is followed by another one (`ARENA_MAX_SIZE`).
const LARGEST_ARENA: u64 = 512 << 30;

/// The size of a group of entries in the log of a btt (`LOG_GRP_SIZE`).
pub(super) const LOG_GROUP: u64 = 64;

/// Checks the size of the sectors of a btt, with metadata (`btt_lbasize_supported`).
///
/// If there are metadata, the block layer allocates memory for those of a whole request
/// (`bio_integrity_alloc_buf()`). If there are more than 2 MiB of them, it may overwrite other
/// memory with zeroes. It relies on drivers to split requests, which `btt_submit_bio()` does not.
pub(super) fn check_sector_size(size: u64) -> Result<(), InfoBlockError> {
    match size {
        512 | 4096 => Ok(()),
        520 | 528 | 4104 | 4160 | 4224 => Err(InfoBlockError::SectorMetadata),
        _ => Err(InfoBlockError::SectorSize),
    }
}

/// Reads a little-endian number of at most eight bytes. It is 0 outside of the block.
pub(super) fn number(bytes: &[u8], offset: usize, len: usize) -> u64 {
    let end = offset.saturating_add(len);
    let bytes = bytes.get(offset..end).unwrap_or(&[]);

    bytes
        .iter()
        .rev()
        .fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// An info block that was not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct InfoBlock<'a> {
    bytes: &'a [u8; LEN],
    mode: NamespaceMode,
}

impl<'a> InfoBlock<'a> {
    /// Returns `bytes` as an info block, if they have a signature.
    pub fn of(bytes: &'a [u8; LEN]) -> Option<Self> {
        let mode = match bytes.first_chunk::<16>()? {
            b"BTT_ARENA_INFO\0\0" => NamespaceMode::Sector,
            b"NVDIMM_PFN_INFO\0" => NamespaceMode::Fsdax,
            b"NVDIMM_DAX_INFO\0" => NamespaceMode::Devdax,
            _ => return None,
        };

        Some(Self { bytes, mode })
    }

    /// Returns the mode that the signature stands for.
    pub fn mode(&self) -> NamespaceMode {
        self.mode
    }

    /// Returns the uuid of the block itself, all zeroes if it has none.
    pub fn uuid(&self) -> [u8; 16] {
        let uuid = self.bytes.get(16..).and_then(|rest| rest.first_chunk());

        uuid.copied().unwrap_or_default()
    }

    /// Reads a little-endian number of at most eight bytes. It is 0 outside of the block.
    pub(super) fn number(&self, offset: usize, len: usize) -> u64 {
        number(self.bytes, offset, len)
    }

    /// Returns whether the namespace that the block belongs to has this uuid (`parent_uuid`).
    fn is_parent(&self, uuid: &[u8; 16]) -> bool {
        self.bytes.get(32..).and_then(|rest| rest.first_chunk()) == Some(uuid)
    }

    /// Checks that the block is undamaged, belongs to this namespace, and can be used.
    ///
    /// `struct nd_pfn_sb` and `struct btt_sb` in `drivers/nvdimm` have the fields. Both begin with
    /// the same fields.
    pub fn check(&self, expected: &Expected) -> Result<(), InfoBlockError> {
        const CHECKSUM: usize = LEN - 8;
        const NO_UUID: &[u8; 16] = &[0; 16];

        if self.number(CHECKSUM, 8) != self.checksum() {
            return Err(InfoBlockError::Checksum);
        }
        // A btt may be without a `parent_uuid`.
        let has_no_parent = self.mode == NamespaceMode::Sector && self.is_parent(NO_UUID);
        if !has_no_parent && !self.is_parent(&expected.uuid) {
            return Err(InfoBlockError::Foreign);
        }

        self.check_contents(expected)
    }

    /// As [`Self::check`], for a block that libnvdimm has accepted: it changes fields of old
    /// versions in its copy, and the checksum stays.
    pub(super) fn check_contents(&self, expected: &Expected) -> Result<(), InfoBlockError> {
        let (major, minor) = (self.number(52, 2), self.number(54, 2));

        match (self.mode, major) {
            (NamespaceMode::Sector, 1) if minor == 1 => self.check_arena(expected),
            (NamespaceMode::Sector, 2) if minor == 0 => self.check_arena(expected),
            // libnvdimm accepts any version. The images of container runtimes have 0.2.
            (NamespaceMode::Fsdax | NamespaceMode::Devdax, 0 | 1) => {
                self.check_layout(expected, minor)
            }
            _ => Err(InfoBlockError::Version),
        }
    }

    /// Returns how far the next arena of a btt is away; 0 if there is none.
    pub(super) fn next_arena(&self) -> u64 {
        self.number(80, 8)
    }

    /// Checks that the parts of a btt's arena follow each other within the namespace, and are large
    /// enough. The btt driver does not check the offsets.
    fn check_arena(&self, expected: &Expected) -> Result<(), InfoBlockError> {
        const SMALLEST: u64 = 16 << 20;
        const ALIGNMENT: u64 = 512;
        const MAP_ENTRY: u64 = 4;
        // The btt driver makes one allocation with 64 bytes for each, and creates arenas with 256.
        const MAX_NFREE: u64 = 1 << 14;
        let [external_lbasize, external_nlba] = [56, 60].map(|offset| self.number(offset, 4));
        let [internal_lbasize, internal_nlba] = [64, 68].map(|offset| self.number(offset, 4));
        let nfree = self.number(72, 4);
        let nextoff = self.next_arena();
        let [dataoff, mapoff, logoff, info2off] =
            [88, 96, 104, 112].map(|offset| self.number(offset, 8));

        check_sector_size(external_lbasize)?;
        if internal_lbasize < external_lbasize {
            return Err(InfoBlockError::SectorSize);
        }
        // The btt driver would write sectors of the configured size into blocks of this size.
        if expected
            .sector_size
            .is_some_and(|size| size as u64 != external_lbasize)
        {
            return Err(InfoBlockError::OtherSectorSize);
        }
        let room = expected
            .size
            .checked_sub(expected.offset)
            .ok_or(InfoBlockError::Arena)?;
        // The last arena ends within the namespace. Any other one has the largest size.
        let has_end =
            nextoff == 0 || (nextoff == LARGEST_ARENA && nextoff <= room.saturating_sub(SMALLEST));
        let end = if nextoff == 0 { room } else { nextoff };
        // Saturation is never reached by a part that fits.
        let fits = |start: u64, end: u64, count: u64, size: u64| {
            end.checked_sub(start)
                .is_some_and(|len| count.saturating_mul(size) <= len)
        };
        let is_valid = has_end
            && fits(0, dataoff, 1, LEN as u64)
            && fits(dataoff, mapoff, internal_nlba, internal_lbasize)
            && fits(mapoff, logoff, external_nlba, MAP_ENTRY)
            && fits(logoff, info2off, nfree, LOG_GROUP)
            // No arena is larger. A map entry has 30 bits, for 512 GiB of blocks of 512 bytes.
            && fits(info2off, end.min(LARGEST_ARENA), 1, LEN as u64)
            && [dataoff, mapoff, logoff, info2off]
                .iter()
                .all(|offset| offset & ALIGNMENT.saturating_sub(1) == 0)
            // A write goes to a free block. The block that it replaces is free then.
            && external_nlba > 0
            && (1..=MAX_NFREE).contains(&nfree)
            && external_nlba.saturating_add(nfree) <= internal_nlba;
        if is_valid {
            Ok(())
        } else {
            Err(InfoBlockError::Arena)
        }
    }

    /// Checks the offset and the alignment of the data, and the room for the memory map. Older
    /// versions have fewer fields.
    fn check_layout(&self, expected: &Expected, minor: u64) -> Result<(), InfoBlockError> {
        const PFN_MODE_RAM: u64 = 1;
        const PFN_MODE_PMEM: u64 = 2;
        let since = |version, offset, len| {
            if minor >= version {
                self.number(offset, len)
            } else {
                0
            }
        };
        let data_offset = self.data_offset();
        let mode = self.number(72, 4);
        let start_pad = since(1, 76, 4);
        let end_trunc = since(1, 80, 4);
        let align = since(2, 84, 4);

        if mode != PFN_MODE_RAM && mode != PFN_MODE_PMEM {
            return Err(InfoBlockError::PfnMode);
        }
        if mode == PFN_MODE_PMEM {
            // Before version 1.4 the size was always 64.
            let page_struct_size = if minor >= 4 { self.number(92, 2) } else { 64 };
            if since(4, 88, 4) > expected.page_size {
                return Err(InfoBlockError::PageSize);
            }
            if page_struct_size < expected.page_struct_size {
                return Err(InfoBlockError::PageStructSize);
            }
        }
        let usable = expected
            .size
            .checked_sub(start_pad)
            .and_then(|rest| rest.checked_sub(end_trunc))
            .ok_or(InfoBlockError::DataOffset)?;
        let in_page = expected
            .page_size
            .checked_sub(1)
            .ok_or(InfoBlockError::DataOffset)?;
        if data_offset < expected.reserve || data_offset >= usable || data_offset & in_page != 0 {
            return Err(InfoBlockError::DataOffset);
        }
        let start = expected
            .start
            .checked_add(start_pad)
            .ok_or(InfoBlockError::DataOffset)?;
        // libnvdimm checks only `memremap_compat_align()`.
        if start & expected.start_align.saturating_sub(1) != 0 {
            return Err(InfoBlockError::StartAlignment);
        }
        if mode == PFN_MODE_PMEM && data_offset >= TOO_FAR_FOR_MEMMAP {
            return Err(InfoBlockError::DataOffset);
        }
        if mode == PFN_MODE_PMEM && !expected.has_room_for_memmap(start, usable, data_offset) {
            return Err(InfoBlockError::PageStructSize);
        }
        if align != 0 {
            let data = start
                .checked_add(data_offset)
                .ok_or(InfoBlockError::DataOffset)?;
            if !align.is_power_of_two()
                || align > expected.size
                || data & align.saturating_sub(1) != 0
            {
                return Err(InfoBlockError::Alignment);
            }
        }

        Ok(())
    }

    /// Returns the offset of the data of a pfn device.
    pub(super) fn data_offset(&self) -> u64 {
        self.number(56, 8)
    }

    /// Returns the addresses of the data of a pfn device whose block has passed [`Self::check`], as
    /// `__nvdimm_setup_pfn()` does. [`None`] if there are none.
    pub fn data(&self, expected: &Expected) -> Option<Range<u64>> {
        let (start_pad, end_trunc) = match self.number(54, 2) {
            0 => (0, 0),
            _ => (self.number(76, 4), self.number(80, 4)),
        };
        let start = expected
            .start
            .checked_add(start_pad)?
            .checked_add(self.data_offset())?;
        let end = expected
            .start
            .checked_add(expected.size)?
            .checked_sub(end_trunc)?;

        (start < end).then_some(start..end)
    }

    /// Computes the Fletcher checksum of 32-bit words. The checksum field counts as zero.
    fn checksum(&self) -> u64 {
        let words = self.bytes.len() / 4;
        let (mut low, mut high) = (0_u32, 0_u64);

        for (index, word) in self.bytes.chunks_exact(4).enumerate() {
            let word = match <[u8; 4]>::try_from(word) {
                Ok(word) if index < words.saturating_sub(2) => u32::from_le_bytes(word),
                _ => 0,
            };
            low = low.wrapping_add(word);
            high = high.wrapping_add(low.into());
        }
        (high << 32) | u64::from(low)
    }
}
