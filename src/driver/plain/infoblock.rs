// SPDX-License-Identifier: GPL-2.0

//! Info blocks: what stands at the start of a namespace that has a personality.
//!
//! libnvdimm reads them too, and makes the devices for them. But it takes a block that is damaged, or
//! of another namespace, for data, as if the namespace were raw; and there are blocks that it believes
//! and should not. So they are looked at here first.
//!
//! The medium is not to be trusted: nothing here can overflow or panic. Only `core` is used;
//! `tests/host` compiles this file for the host and tests it there.

/// The size of an info block in bytes.
pub const LEN: usize = 4096;

/// What a namespace is used as, when it is not raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Personality {
    /// A block device with sectors that do not tear.
    Sector,
    /// A block device with `struct page`s.
    Fsdax,
    /// A character device with `struct page`s.
    Devdax,
}

impl Personality {
    /// Returns the name that `ndctl` has for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sector => "sector",
            Self::Fsdax => "fsdax",
            Self::Devdax => "devdax",
        }
    }
}

/// Why an info block cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It was not written as it is.
    Checksum,
    /// It was written for another namespace.
    Foreign,
    /// It is in a format that is not known.
    Version,
    /// It does not say where the `struct page`s are.
    Mode,
    /// The `struct page`s on the medium are for larger pages.
    PageSize,
    /// There is too little room on the medium for the `struct page`s.
    PageStructSize,
    /// The data would not be in the namespace, or be where the info block is.
    DataOffset,
    /// The data are not aligned as it says that they are.
    Alignment,
    /// The parts of an arena are not within it, or too small for what they are to hold.
    Arena,
    /// The sectors are of a size that does not exist.
    SectorSize,
    /// The sectors are of another size than those of the device.
    OtherSectorSize,
    /// Nothing is wrong with it that could be told here, but libnvdimm does not take it. It says the same when it
    /// could not allocate a buffer (`__nd_btt_probe()`).
    Refused,
}

impl Fault {
    /// Returns what is wrong with the block, as a clause for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Checksum => "its checksum is wrong",
            Self::Foreign => "it belongs to another namespace",
            Self::Version => "its version is not known",
            Self::Mode => "it does not say where the struct pages are",
            Self::PageSize => "its struct pages are for larger pages than this kernel has",
            Self::PageStructSize => "it has too little room for the struct pages of this kernel",
            Self::DataOffset => "the data cannot be where it says",
            Self::Alignment => "the data are not aligned as it says",
            Self::Arena => "the parts of its arena cannot be where it says",
            Self::SectorSize => "its sectors are of a size that does not exist",
            Self::OtherSectorSize => "its sectors are not of the sector_size of this device",
            Self::Refused => {
                "libnvdimm does not accept it, or was out of memory, so bind the device again first"
            }
        }
    }

    /// Returns whether the block is none of this namespace's, so that nothing is lost with it.
    pub fn is_no_block_of_ours(self) -> bool {
        matches!(self, Self::Checksum | Self::Foreign)
    }
}

/// What an info block has to fit.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The uuid of the namespace; all zeroes if it has no label.
    pub uuid: [u8; 16],
    /// The physical address of the namespace.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// Where in it the block is.
    pub at: u64,
    /// How much at its start is kept for info blocks, in bytes.
    pub reserve: u64,
    /// The size of a page in bytes.
    pub page_size: u64,
    /// The size of a `struct page` in bytes.
    pub page_struct_size: u64,
    /// The size of the sectors that a btt device is to have, with their metadata, in bytes.
    pub sector_size: Option<usize>,
}

impl Place {
    /// Returns whether what is before the data has room for the `struct page`s of so many bytes.
    ///
    /// The kernel takes it in blocks of 2 MiB, and libnvdimm starts the data at a multiple of that
    /// (`nd_pfn_init()`). With less, the kernel warns, and leaves the range half mapped for ever.
    fn has_room_for_pages(&self, start: u64, len: u64, data_offset: u64) -> bool {
        const BLOCK: u64 = 2 << 20;

        let needed = || {
            let pages = len
                .checked_sub(self.reserve)?
                .checked_div(self.page_size)?
                .checked_mul(self.page_struct_size)?;
            let end = start.checked_add(self.reserve)?.checked_add(pages)?;

            end.checked_next_multiple_of(BLOCK)?.checked_sub(start)
        };
        needed().is_some_and(|needed| data_offset >= needed)
    }
}

/// An info block, good or bad.
#[derive(Clone, Copy, Debug)]
pub struct InfoBlock<'a> {
    bytes: &'a [u8; LEN],
    personality: Personality,
}

impl<'a> InfoBlock<'a> {
    /// Returns the info block that `bytes` are, going by their signature.
    pub fn of(bytes: &'a [u8; LEN]) -> Option<Self> {
        let personality = match bytes.first_chunk::<16>()? {
            b"BTT_ARENA_INFO\0\0" => Personality::Sector,
            b"NVDIMM_PFN_INFO\0" => Personality::Fsdax,
            b"NVDIMM_DAX_INFO\0" => Personality::Devdax,
            _ => return None,
        };

        Some(Self { bytes, personality })
    }

    /// Returns what the namespace is used as, if the block is right.
    pub fn personality(&self) -> Personality {
        self.personality
    }

    /// Reads `len` bytes, at most eight, from `at` on; zero if they are not in the block.
    fn number(&self, at: usize, len: usize) -> u64 {
        let bytes = self.bytes.get(at..at.saturating_add(len)).unwrap_or(&[]);

        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| (number << 8) | u64::from(*byte))
    }

    fn is_uuid(&self, at: usize, uuid: &[u8; 16]) -> bool {
        self.bytes.get(at..).and_then(|rest| rest.first_chunk()) == Some(uuid)
    }

    /// Checks that the block is what was written, for this namespace, and can be used there.
    ///
    /// The fields are those of `struct nd_pfn_sb` and `struct btt_sb` in `drivers/nvdimm`, which
    /// start alike.
    pub fn check(&self, place: &Place) -> Result<(), Fault> {
        const CHECKSUM: usize = LEN - 8;
        const NO_UUID: &[u8; 16] = &[0; 16];

        if self.number(CHECKSUM, 8) != self.checksum() {
            return Err(Fault::Checksum);
        }
        // A btt need not say whose it is.
        let is_anybodys = self.personality == Personality::Sector && self.is_uuid(32, NO_UUID);
        if !is_anybodys && !self.is_uuid(32, &place.uuid) {
            return Err(Fault::Foreign);
        }

        let (major, minor) = (self.number(52, 2), self.number(54, 2));
        match (self.personality, major) {
            (Personality::Sector, 1) if minor == 1 => self.check_arena(place),
            (Personality::Sector, 2) if minor == 0 => self.check_arena(place),
            (Personality::Fsdax | Personality::Devdax, 1) => self.check_layout(place, minor),
            _ => Err(Fault::Version),
        }
    }

    /// Checks that the parts of a btt's arena follow each other within the namespace, and that there is
    /// room for what they are to hold. The btt driver computes addresses from them without looking.
    ///
    /// Only a namespace of more than 512 GiB has another arena. That is not looked at.
    fn check_arena(&self, place: &Place) -> Result<(), Fault> {
        const SMALLEST: u64 = 16 << 20;
        const LARGEST: u64 = 512 << 30;
        const SECTOR_SIZES: [u64; 7] = [512, 520, 528, 4096, 4104, 4160, 4224];
        const ALIGNMENT: u64 = 512;
        const MAP_ENTRY: u64 = 4;
        const LOG_GROUP: u64 = 64;
        // The btt driver allocates 64 bytes for each, all at once. Who makes an arena writes 256.
        const MOST_SPARE: u64 = 1 << 14;
        let (sector_size, sectors) = (self.number(56, 4), self.number(60, 4));
        let (block_size, blocks) = (self.number(64, 4), self.number(68, 4));
        let spare = self.number(72, 4);
        let next = self.number(80, 8);
        let [data, map, log, copy] = [88, 96, 104, 112].map(|at| self.number(at, 8));

        if !SECTOR_SIZES.contains(&sector_size) || block_size < sector_size {
            return Err(Fault::SectorSize);
        }
        // The btt driver would write sectors of its size into blocks of this one.
        if place
            .sector_size
            .is_some_and(|size| size as u64 != sector_size)
        {
            return Err(Fault::OtherSectorSize);
        }
        let room = place.size.checked_sub(place.at).ok_or(Fault::Arena)?;
        let end = if next == 0 { room } else { next };
        // An arena ends where the room does, unless it is as large as they get and there is room for another.
        let ends = next == 0 || (next == LARGEST && next <= room.saturating_sub(SMALLEST));
        // The product of two numbers of 32 bits has 64, and none of the others is near that.
        let holds = |start: u64, end: u64, count: u64, each: u64| {
            end.checked_sub(start)
                .is_some_and(|len| count.saturating_mul(each) <= len)
        };
        let fits = ends
            && holds(0, data, 1, LEN as u64)
            && holds(data, map, blocks, block_size)
            && holds(map, log, sectors, MAP_ENTRY)
            && holds(log, copy, spare, LOG_GROUP)
            // The map has no numbers for the blocks of a larger one.
            && holds(copy, end.min(LARGEST), 1, LEN as u64)
            && [data, map, log, copy]
                .iter()
                .all(|at| at & ALIGNMENT.saturating_sub(1) == 0)
            // A spare block is where the next write goes: it replaces a block, which is spare then.
            && sectors > 0
            && (1..=MOST_SPARE).contains(&spare)
            && sectors.saturating_add(spare) <= blocks;
        if fits {
            Ok(())
        } else {
            Err(Fault::Arena)
        }
    }

    /// Checks where the data are to be. Blocks of lower versions lack the later fields.
    fn check_layout(&self, place: &Place, minor: u64) -> Result<(), Fault> {
        const IN_RAM: u64 = 1;
        const ON_MEDIUM: u64 = 2;
        let since = |version, at, len| {
            if minor >= version {
                self.number(at, len)
            } else {
                0
            }
        };
        let data_offset = self.number(56, 8);
        let mode = self.number(72, 4);
        let start_pad = since(1, 76, 4);
        let end_trunc = since(1, 80, 4);
        let align = since(2, 84, 4);

        if mode != IN_RAM && mode != ON_MEDIUM {
            return Err(Fault::Mode);
        }
        if mode == ON_MEDIUM {
            // Before version 1.4 there was but one size.
            let page_struct_size = if minor >= 4 { self.number(92, 2) } else { 64 };
            if since(4, 88, 4) > place.page_size {
                return Err(Fault::PageSize);
            }
            if page_struct_size < place.page_struct_size {
                return Err(Fault::PageStructSize);
            }
        }
        let usable = place
            .size
            .checked_sub(start_pad)
            .and_then(|rest| rest.checked_sub(end_trunc))
            .ok_or(Fault::DataOffset)?;
        let in_page = place.page_size.checked_sub(1).ok_or(Fault::DataOffset)?;
        if data_offset < place.reserve || data_offset >= usable || data_offset & in_page != 0 {
            return Err(Fault::DataOffset);
        }
        let start = place
            .start
            .checked_add(start_pad)
            .ok_or(Fault::DataOffset)?;
        if mode == ON_MEDIUM && !place.has_room_for_pages(start, usable, data_offset) {
            return Err(Fault::PageStructSize);
        }
        if align != 0 {
            let data = start.checked_add(data_offset).ok_or(Fault::DataOffset)?;
            if !align.is_power_of_two() || align > place.size || data & align.saturating_sub(1) != 0
            {
                return Err(Fault::Alignment);
            }
        }

        Ok(())
    }

    /// Fletcher's checksum of 32-bit words, of all but the checksum itself, which counts as zero.
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
