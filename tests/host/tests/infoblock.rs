// SPDX-License-Identifier: GPL-2.0

//! Validation of info blocks. A valid one of each kind is accepted for any namespace; a change of
//! any byte is detected by the checksum; and a changed one with a valid checksum describes a range
//! within the namespace or is refused.

use arenas::check_arenas;
use infoblock::{Expected, InfoBlock, InfoBlockError, NamespaceMode, LEN};
use proptest::prelude::*;

#[path = "../../../src/abstractions/nvdimm/arenas.rs"]
mod arenas;
#[path = "../../../src/abstractions/nvdimm/infoblock.rs"]
#[allow(dead_code)] // The driver uses more of it.
mod infoblock;
#[path = "../../../src/abstractions/nvdimm/memmap_room.rs"]
mod memmap_room;

const MIB: u64 = 1 << 20;
const UUID: [u8; 16] = *b"sixteen letters!";
const EXPECTED: Expected = Expected {
    uuid: UUID,
    start: 1 << 32,
    size: 512 * MIB,
    offset: 4096,
    reserve: 8192,
    page_size: 4096,
    page_struct_size: 64,
    start_align: 2 * MIB,
    compat_align: 2 * MIB,
    section: None,
    sector_size: None,
};

const PARENT: usize = 32;
const MAJOR: usize = 52;
const MINOR: usize = 54;
const DATA_OFFSET: usize = 56;
const MODE: usize = 72;
const START_PAD: usize = 76;
const END_TRUNC: usize = 80;
const ALIGN: usize = 84;
const PAGE_SIZE: usize = 88;
const PAGE_STRUCT_SIZE: usize = 92;
/// Fields of a btt, with their sizes.
const SECTOR_SIZE: (usize, usize) = (56, 4);
const SECTORS: (usize, usize) = (60, 4);
const BLOCK_SIZE: (usize, usize) = (64, 4);
const BLOCKS: (usize, usize) = (68, 4);
const SPARE: (usize, usize) = (72, 4);
const NEXT: (usize, usize) = (80, 8);
const DATA: (usize, usize) = (88, 8);
const MAP: (usize, usize) = (96, 8);
const LOG: (usize, usize) = (104, 8);
const COPY: (usize, usize) = (112, 8);
const ARENA_FIELDS: [(usize, usize); 10] = [
    SECTOR_SIZE,
    SECTORS,
    BLOCK_SIZE,
    BLOCKS,
    SPARE,
    NEXT,
    DATA,
    MAP,
    LOG,
    COPY,
];
const CHECKSUM: usize = LEN - 8;

/// A block that can be changed; its checksum is added last.
#[derive(Clone)]
struct Draft([u8; LEN]);

impl Draft {
    fn of(signature: &[u8; 16], major: u16, minor: u16) -> Draft {
        let mut draft = Draft([0; LEN]);
        draft.0[..16].copy_from_slice(signature);
        draft
            .with(PARENT, &UUID)
            .with(MAJOR, &major.to_le_bytes())
            .with(MINOR, &minor.to_le_bytes())
    }

    /// As made by ndctl, with the struct pages on the medium.
    fn fsdax() -> Draft {
        Draft::of(b"NVDIMM_PFN_INFO\0", 1, 4)
            .with(DATA_OFFSET, &(10 * MIB).to_le_bytes())
            .with(MODE, &2_u32.to_le_bytes())
            .with(ALIGN, &(2_u32 << 20).to_le_bytes())
            .with(PAGE_SIZE, &4096_u32.to_le_bytes())
            .with(PAGE_STRUCT_SIZE, &64_u16.to_le_bytes())
    }

    /// As made by the btt driver for sectors of 4 KiB.
    fn sector(major: u16, minor: u16) -> Draft {
        let end = EXPECTED.size - EXPECTED.offset;
        let log = end - 4096 - 256 * 64;
        let map = log - MIB;
        let blocks = (map - 4096) / 4096;
        Draft::of(b"BTT_ARENA_INFO\0\0", major, minor)
            .having(SECTOR_SIZE, 4096)
            .having(SECTORS, blocks - 256)
            .having(BLOCK_SIZE, 4096)
            .having(BLOCKS, blocks)
            .having(SPARE, 256)
            .having(DATA, 4096)
            .having(MAP, map)
            .having(LOG, log)
            .having(COPY, end - 4096)
    }

    /// One arena of a btt of version 1.1 in so many bytes, of which the next one is `next` away.
    fn arena(room: u64, next: u64) -> Draft {
        let end = if next == 0 { room } else { next };
        let log = end - 4096 - 256 * 64;
        let map = (log - end / 1024) & !4095;
        let blocks = (map - 4096) / 4096;
        Draft::sector(1, 1)
            .having(SECTORS, blocks - 256)
            .having(BLOCKS, blocks)
            .having(NEXT, next)
            .having(MAP, map)
            .having(LOG, log)
            .having(COPY, end - 4096)
    }

    fn having(self, (at, len): (usize, usize), value: u64) -> Draft {
        self.with(at, &value.to_le_bytes()[..len])
    }

    fn number(&self, (at, len): (usize, usize)) -> u128 {
        let bytes = self.0[at..at + len].iter().rev();
        bytes.fold(0, |number, byte| (number << 8) | u128::from(*byte))
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Draft {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Adds the checksum, computed word by word as in the kernel.
    fn sealed(self) -> Draft {
        let (mut low, mut high) = (0_u32, 0_u64);
        let blank = self.with(CHECKSUM, &[0; 8]);
        for word in blank.0.chunks(4) {
            low = low.wrapping_add(u32::from_le_bytes(word.try_into().unwrap()));
            high = high.wrapping_add(u64::from(low));
        }
        blank.with(CHECKSUM, &((high << 32) | u64::from(low)).to_le_bytes())
    }

    fn check(&self, expected: &Expected) -> Result<(), InfoBlockError> {
        InfoBlock::of(&self.0).expect("a signature").check(expected)
    }
}

fn error_of(draft: Draft) -> Option<InfoBlockError> {
    draft.sealed().check(&EXPECTED).err()
}

#[test]
fn a_signature_has_a_mode() {
    for (signature, mode) in [
        (b"BTT_ARENA_INFO\0\0", NamespaceMode::Sector),
        (b"NVDIMM_PFN_INFO\0", NamespaceMode::Fsdax),
        (b"NVDIMM_DAX_INFO\0", NamespaceMode::Devdax),
    ] {
        let block = Draft::of(signature, 1, 1);
        let found = InfoBlock::of(&block.0).map(|block| block.mode());
        assert_eq!(found, Some(mode));
    }
    assert!(InfoBlock::of(&[0; LEN]).is_none());
    assert!(InfoBlock::of(&Draft::of(b"NVDIMM_PFN_INFOs", 1, 1).0).is_none());
}

#[test]
fn good_blocks_are_good() {
    assert_eq!(error_of(Draft::fsdax()), None);
    assert_eq!(error_of(Draft::sector(1, 1)), None);
    assert_eq!(error_of(Draft::sector(2, 0)), None);
    let padded = Draft::fsdax()
        .with(START_PAD, &(4_u32 << 20).to_le_bytes())
        .with(END_TRUNC, &(6_u32 << 20).to_le_bytes());
    assert_eq!(error_of(padded), None);
}

#[test]
fn only_a_btt_may_lack_a_parent_uuid() {
    let nobodys = [0; 16];
    let btt = Draft::sector(1, 1);
    assert_eq!(error_of(btt.clone().with(PARENT, &nobodys)), None);
    assert_eq!(
        error_of(btt.with(PARENT, &[7; 16])),
        Some(InfoBlockError::Foreign)
    );
    let fsdax = Draft::fsdax().with(PARENT, &nobodys);
    assert_eq!(error_of(fsdax), Some(InfoBlockError::Foreign));
}

#[test]
fn older_versions_lack_later_fields() {
    // Each field has a value that would be refused.
    let draft = Draft::fsdax()
        .with(PAGE_SIZE, &65536_u32.to_le_bytes())
        .with(PAGE_STRUCT_SIZE, &32_u16.to_le_bytes());
    assert_eq!(error_of(draft.clone()), Some(InfoBlockError::PageSize));
    assert_eq!(error_of(draft.clone().with(MINOR, &[3, 0])), None);
    let draft = draft.with(ALIGN, &3_u32.to_le_bytes());
    assert_eq!(
        error_of(draft.clone().with(MINOR, &[2, 0])),
        Some(InfoBlockError::Alignment)
    );
    assert_eq!(error_of(draft.clone().with(MINOR, &[1, 0])), None);
    let draft = draft.with(START_PAD, &u32::MAX.to_le_bytes());
    assert_eq!(
        error_of(draft.clone().with(MINOR, &[1, 0])),
        Some(InfoBlockError::DataOffset)
    );
    assert_eq!(error_of(draft.with(MINOR, &[0, 0])), None);
}

/// With pages of 16 KiB, 2 MiB have half a page of struct pages.
#[test]
fn the_range_starts_with_a_page_of_struct_pages() {
    let large = Expected {
        page_size: 16384,
        reserve: 16384,
        start_align: 4 * MIB,
        ..EXPECTED
    };
    for (pad, end, error) in [
        (0, 0, None),
        (0, 2, None),
        (4, 2, None),
        (2, 0, Some(InfoBlockError::StartAlignment)),
        (2, 2, Some(InfoBlockError::StartAlignment)),
    ] {
        let draft = Draft::fsdax()
            .with(START_PAD, &u32::to_le_bytes(pad << 20))
            .with(END_TRUNC, &u32::to_le_bytes(end << 20));
        let block = draft.sealed();
        assert_eq!(block.check(&large).err(), error, "{pad} and {end} MiB");
        assert_eq!(block.check(&EXPECTED), Ok(()));
    }
}

/// libnvdimm counts the sectors before the data with an `int` if the struct pages are there.
#[test]
fn struct_pages_on_the_medium_take_less_than_a_tib() {
    let huge = Expected {
        size: 2 << 40,
        ..EXPECTED
    };
    for (mode, offset, error) in [
        (2, (1 << 40) - 2 * MIB, None),
        (2, 1 << 40, Some(InfoBlockError::DataOffset)),
        (1, 1 << 40, None),
    ] {
        let block = Draft::fsdax()
            .having((MODE, 4), mode)
            .having((DATA_OFFSET, 8), offset);
        assert_eq!(
            block.sealed().check(&huge).err(),
            error,
            "{mode} {offset:#x}"
        );
    }
}

/// As `nd_pfn_init()` computes it.
#[test]
fn new_data_begin_behind_their_struct_pages() {
    for (start, size, align, offset) in [
        (1 << 32, 512 * MIB, 2 * MIB, Some(10 * MIB)),
        ((1 << 32) + 4 * MIB, 508 * MIB, 2 * MIB, Some(8 * MIB)),
        (1 << 32, 4096 * MIB, 1024 * MIB, Some(1024 * MIB)),
        // The start is aligned, whatever the alignment of the device is.
        (1 << 32, 64 * MIB, 4096, Some(2 * MIB)),
        // No room.
        (1 << 32, 2 * MIB, 2 * MIB, None),
        // What is behind the last multiple of the alignment is not used.
        (1 << 32, 4 * MIB - 4096, 2 * MIB, None),
        (1 << 32, 4096, 2 * MIB, None),
        (u64::MAX - MIB, 512 * MIB, 2 * MIB, None),
    ] {
        let expected = Expected {
            start,
            size,
            ..EXPECTED
        };
        assert_eq!(
            expected.new_data_offset(align),
            offset,
            "{size:#x} from {start:#x}"
        );
        // The block that libnvdimm writes there is accepted.
        if let Some(offset) = offset {
            let block = Draft::fsdax()
                .having((MODE, 4), 2)
                .having((DATA_OFFSET, 8), offset)
                .having((ALIGN, 4), align);
            assert_eq!(block.sealed().check(&expected), Ok(()));
            assert_eq!(expected.check_new(align, true), Ok(()));
        }
    }
}

/// libnvdimm writes the block of a new device before it is known whether the kernel can map it.
#[test]
fn a_new_device_is_refused_if_its_block_would_be() {
    let section = Some(128 * MIB);
    for (start, size, section, start_align, on_medium, in_ram) in [
        (0, 256 * MIB, section, 2 * MIB, Ok(()), Ok(())),
        (
            0,
            320 * MIB,
            section,
            2 * MIB,
            Err(InfoBlockError::PageStructSize),
            Ok(()),
        ),
        (0, 320 * MIB, None, 2 * MIB, Ok(()), Ok(())),
        // The part at the end is not used.
        (0, 257 * MIB, section, 2 * MIB, Ok(()), Ok(())),
        (
            2 * MIB,
            256 * MIB,
            None,
            4 * MIB,
            Err(InfoBlockError::StartAlignment),
            Err(InfoBlockError::StartAlignment),
        ),
        // libnvdimm refuses these.
        (0, 2 * MIB, section, 2 * MIB, Ok(()), Ok(())),
        (0, 0, section, 2 * MIB, Ok(()), Ok(())),
    ] {
        let expected = Expected {
            start: (1 << 32) + start,
            size,
            section,
            start_align,
            ..EXPECTED
        };
        assert_eq!(expected.check_new(2 * MIB, true), on_medium, "{size:#x}");
        assert_eq!(expected.check_new(2 * MIB, false), in_ram, "{size:#x}");

        // The block itself is judged in the same way.
        let (Some(offset), Ok(())) = (expected.new_data_offset(2 * MIB), in_ram) else {
            continue;
        };
        let block = Draft::fsdax()
            .having((MODE, 4), 2)
            .having((DATA_OFFSET, 8), offset)
            .having((END_TRUNC, 4), size % (2 * MIB))
            .having((ALIGN, 4), 2 * MIB);
        assert_eq!(block.sealed().check(&expected), on_medium, "{size:#x}");
    }
}

/// arm64 allocates the struct pages of parts of sections on the medium, as single pages before and
/// behind the blocks of 2 MiB for whole sections. x86 allocates those of parts in RAM.
#[test]
fn struct_pages_of_parts_of_sections_need_room_on_arm64() {
    const SECTION: u64 = 128 * MIB;
    const KIB: u64 = 1 << 10;
    let needs = |expected: Expected, room: u64| {
        let offset = room.next_multiple_of(expected.page_size);
        let error_at = |offset: u64| {
            let block = Draft::fsdax()
                .having((DATA_OFFSET, 8), offset)
                .having((ALIGN, 4), 0);
            block.sealed().check(&expected).err()
        };
        assert_eq!(error_at(offset), None, "{room:#x} in {expected:x?}");
        assert_eq!(
            error_at(offset - expected.page_size),
            Some(InfoBlockError::PageStructSize),
            "less than {room:#x} in {expected:x?}"
        );
    };
    let at = |before: u64, size| Expected {
        start: (1 << 32) - before,
        size,
        ..EXPECTED
    };

    for (before, size, on_x86, on_arm64) in [
        // Whole sections.
        (0, SECTION, 4 * MIB, 4 * MIB),
        (0, 4 * SECTION, 10 * MIB, 10 * MIB),
        // With a part at the end.
        (0, 2 * SECTION + 64 * MIB, 6 * MIB, 7 * MIB),
        (0, 2 * SECTION + 2 * MIB, 6 * MIB, 6 * MIB + 32 * KIB),
        (0, 8 * SECTION + 64 * MIB, 18 * MIB, 19 * MIB),
        // With a part at the start, which has room before the first block.
        (64 * MIB, 2 * SECTION + 64 * MIB, 6 * MIB, 6 * MIB),
        (126 * MIB, 2 * SECTION + 126 * MIB, 6 * MIB, 6 * MIB),
        // With both.
        (64 * MIB, 2 * SECTION + 128 * MIB, 8 * MIB, 7 * MIB),
        // A part only, or two of them.
        (0, 64 * MIB, 2 * MIB, 8 * KIB + MIB),
        (96 * MIB, 64 * MIB, 2 * MIB, 8 * KIB + MIB),
        (32 * MIB, 64 * MIB, 2 * MIB, 8 * KIB + MIB),
    ] {
        needs(at(before, size), on_x86);
        let on_arm64_too = Expected {
            section: Some(SECTION),
            ..at(before, size)
        };
        needs(on_arm64_too, on_arm64);
    }

    // There are only single pages if they are larger.
    let of_16_kib = |before, size| Expected {
        reserve: 16 * KIB,
        page_size: 16 * KIB,
        start_align: 4 * MIB,
        section: Some(SECTION),
        ..at(before, size)
    };
    needs(of_16_kib(0, SECTION), 16 * KIB + 512 * KIB);
    needs(of_16_kib(64 * MIB, 2 * SECTION), 16 * KIB + 1024 * KIB);
    // The parts of 2 MiB need 8 KiB, and get a page.
    needs(of_16_kib(0, SECTION + 2 * MIB), 32 * KIB + 512 * KIB);
}

/// libnvdimm aligns the data of a new device to 2 MiB, also where a range has to start at a
/// multiple of 4 MiB. With the greater alignment there would be room.
#[test]
fn a_new_device_has_the_alignment_of_libnvdimm() {
    let expected = Expected {
        start: 4 << 30,
        size: 510 * MIB,
        page_size: 16384,
        reserve: 16384,
        start_align: 4 * MIB,
        section: Some(128 * MIB),
        ..EXPECTED
    };
    assert_eq!(expected.new_data_offset(16384), Some(2 * MIB));
    assert_eq!(
        expected.check_new(16384, true),
        Err(InfoBlockError::PageStructSize)
    );
}

/// Kata Containers and pmem-csi write version 0.2, without uuids, npfns and sizes of pages.
#[test]
fn fsdax_and_devdax_have_major_version_0_or_1() {
    let unlabelled = Expected {
        uuid: [0; 16],
        size: 256 * MIB,
        ..EXPECTED
    };
    for signature in [b"NVDIMM_PFN_INFO\0", b"NVDIMM_DAX_INFO\0"] {
        let image = |major, minor| {
            Draft::of(signature, major, minor)
                .with(PARENT, &[0; 16])
                .with(DATA_OFFSET, &(2 * MIB).to_le_bytes())
                .with(MODE, &1_u32.to_le_bytes())
                .with(ALIGN, &(2_u32 << 20).to_le_bytes())
                .sealed()
        };
        for major in [0, 1] {
            for minor in [0, 1, 2, 3, 4, 5, u16::MAX] {
                let result = image(major, minor).check(&unlabelled);
                assert_eq!(result, Ok(()), "{major}.{minor}");
            }
        }
        for major in [2, 3, 256, u16::MAX] {
            let result = image(major, 2).check(&unlabelled);
            assert_eq!(result, Err(InfoBlockError::Version), "{major}.2");
        }
    }
    for (major, minor) in [(0, 0), (0, 1), (1, 0), (1, 2), (2, 1), (3, 0)] {
        let error = error_of(Draft::sector(major, minor));
        assert_eq!(error, Some(InfoBlockError::Version), "{major}.{minor}");
    }
}

#[test]
fn each_error_is_distinct() {
    let draft = Draft::fsdax;
    for (changed, error) in [
        (draft().with(MAJOR, &[2, 0]), InfoBlockError::Version),
        (Draft::sector(1, 2), InfoBlockError::Version),
        (draft().with(MODE, &[0]), InfoBlockError::PfnMode),
        (draft().with(MODE, &[7]), InfoBlockError::PfnMode),
        (
            draft().with(PAGE_SIZE, &8192_u32.to_le_bytes()),
            InfoBlockError::PageSize,
        ),
        (
            draft().with(PAGE_STRUCT_SIZE, &[63]),
            InfoBlockError::PageStructSize,
        ),
        // 8 MiB of struct pages from 8 KiB on, in whole blocks.
        (
            draft().with(DATA_OFFSET, &(10 * MIB - 4096).to_le_bytes()),
            InfoBlockError::PageStructSize,
        ),
        (
            draft().with(DATA_OFFSET, &0_u64.to_le_bytes()),
            InfoBlockError::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &4096_u64.to_le_bytes()),
            InfoBlockError::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &(10 * MIB + 512).to_le_bytes()),
            InfoBlockError::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &EXPECTED.size.to_le_bytes()),
            InfoBlockError::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &u64::MAX.to_le_bytes()),
            InfoBlockError::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &(11 * MIB).to_le_bytes()),
            InfoBlockError::Alignment,
        ),
        (
            draft().with(ALIGN, &3_u32.to_le_bytes()),
            InfoBlockError::Alignment,
        ),
        (
            draft().with(ALIGN, &(1_u32 << 31).to_le_bytes()),
            InfoBlockError::Alignment,
        ),
    ] {
        assert_eq!(error_of(changed), Some(error));
    }
    // In RAM there is room for any struct page.
    let in_ram = draft().with(MODE, &[1]).with(PAGE_STRUCT_SIZE, &[16]);
    assert_eq!(error_of(in_ram), None);
}

#[test]
fn an_arena_that_reaches_beyond_its_parts_is_refused() {
    let draft = || Draft::sector(1, 1);
    let of = |field| draft().number(field) as u64;
    for (field, value) in [
        (SECTORS, 0),
        (SECTORS, of(SECTORS) + 1),
        (SECTORS, u32::MAX.into()),
        (BLOCK_SIZE, 8192),
        (BLOCK_SIZE, u32::MAX.into()),
        (BLOCKS, of(BLOCKS) + 1),
        (SPARE, 0),
        (SPARE, 257),
        (SPARE, u32::MAX.into()),
        // Only an arena of 512 GiB is followed by another one.
        (NEXT, 4096),
        (NEXT, 64 * MIB),
        (NEXT, 512 << 30),
        (NEXT, u64::MAX),
        (DATA, 0),
        (DATA, of(MAP)),
        (MAP, of(MAP) + 1),
        (MAP, of(LOG)),
        (LOG, of(LOG) + 4096),
        (LOG, u64::MAX - 16),
        (COPY, of(COPY) + 512),
        (COPY, u64::MAX),
    ] {
        let error = error_of(draft().having(field, value));
        assert_eq!(error, Some(InfoBlockError::Arena), "{field:?} {value:#x}");
    }
    for size in [0, 256, 513, 8192] {
        let error = error_of(draft().having(SECTOR_SIZE, size));
        assert_eq!(error, Some(InfoBlockError::SectorSize), "{size}");
    }
    // The sectors of libnvdimm that have metadata.
    for size in [520, 528, 4104, 4160, 4224] {
        let error = error_of(draft().having(SECTOR_SIZE, size));
        assert_eq!(error, Some(InfoBlockError::SectorMetadata), "{size}");
    }
    let narrow = error_of(draft().having(BLOCK_SIZE, 4095));
    assert_eq!(narrow, Some(InfoBlockError::SectorSize));
    // A device with another sector size would write beyond these.
    for (size, error) in [(512, Some(InfoBlockError::OtherSectorSize)), (4096, None)] {
        let expected = Expected {
            sector_size: Some(size),
            ..EXPECTED
        };
        assert_eq!(draft().sealed().check(&expected).err(), error, "{size}");
    }
    // The same block on a namespace that has become smaller.
    let smaller = Expected {
        size: EXPECTED.size - 4096,
        ..EXPECTED
    };
    assert_eq!(draft().sealed().check(&smaller), Err(InfoBlockError::Arena));
}

#[test]
fn spare_blocks_are_limited_by_memory() {
    let with_spare = |spare: u64| {
        let blocks = 1000 + spare;
        let map = 4096 + blocks * 4096;
        let draft = Draft::sector(1, 1);
        error_of(
            draft
                .having(BLOCK_SIZE, 4096)
                .having(SECTORS, 1000)
                .having(BLOCKS, blocks)
                .having(SPARE, spare)
                .having(MAP, map)
                .having(LOG, map + 4096),
        )
    };
    assert_eq!(with_spare(1 << 14), None);
    assert_eq!(with_spare((1 << 14) + 1), Some(InfoBlockError::Arena));
}

#[test]
fn an_arena_that_is_alone_is_no_larger_than_others() {
    let large = Expected {
        size: 1 << 40,
        ..EXPECTED
    };
    let draft = |copy| Draft::sector(1, 1).having(COPY, copy).sealed();
    assert_eq!(draft((512 << 30) - 4096).check(&large), Ok(()));
    assert_eq!(draft(512 << 30).check(&large), Err(InfoBlockError::Arena));
}

#[test]
fn an_arena_of_512_gib_may_have_another_one_after_it() {
    let draft = Draft::sector(1, 1).having(NEXT, 512 << 30);
    let with_room = |bytes| Expected {
        size: EXPECTED.offset + (512 << 30) + bytes,
        ..EXPECTED
    };
    assert_eq!(draft.clone().sealed().check(&with_room(16 * MIB)), Ok(()));
    assert_eq!(
        draft.sealed().check(&with_room(16 * MIB - 1)),
        Err(InfoBlockError::Arena)
    );
}

const LARGEST: u64 = 512 << 30;
/// Room for three arenas.
const THREE: Expected = Expected {
    size: 2 * LARGEST + 64 * MIB + EXPECTED.offset,
    sector_size: Some(4096),
    ..EXPECTED
};

/// What is read from a medium: the block of an arena, nothing, or an error (`None`).
type Medium = Vec<(u64, Option<Draft>)>;

/// Returns three arenas that follow each other.
fn three_arenas() -> Medium {
    let arenas = [(0, LARGEST), (LARGEST, LARGEST), (2 * LARGEST, 0)];
    arenas
        .into_iter()
        .map(|(at, next)| {
            let room = THREE.size - THREE.offset - at;
            (THREE.offset + at, Some(Draft::arena(room, next).sealed()))
        })
        .collect()
}

#[derive(Debug, PartialEq)]
enum ChainError {
    Unreadable,
    Block(InfoBlockError),
}

impl From<InfoBlockError> for ChainError {
    fn from(error: InfoBlockError) -> Self {
        Self::Block(error)
    }
}

/// Checks all arenas, whose logs are zero, and returns also the offsets of the info blocks that it
/// has read.
fn check_all(expected: &Expected, medium: &Medium) -> (Result<(), ChainError>, Vec<u64>) {
    let mut offsets = Vec::new();
    let result = check_arenas(expected, &mut [0; LEN], |offset, block| {
        if (offset - expected.offset) % LARGEST == 0 {
            offsets.push(offset);
        }
        assert!(offset + LEN as u64 <= expected.size, "{offset:#x}");
        *block = match medium.iter().find(|(at, _)| *at == offset) {
            Some((_, Some(draft))) => draft.0,
            Some((_, None)) => return Err(ChainError::Unreadable),
            None => [0; LEN],
        };
        Ok(())
    });
    (result, offsets)
}

#[test]
fn all_arenas_are_checked() {
    let offset = THREE.offset;
    let all = vec![offset, offset + LARGEST, offset + 2 * LARGEST];
    assert_eq!(check_all(&THREE, &three_arenas()), (Ok(()), all));

    for nth in [0, 1, 2] {
        for (field, value) in [
            (SECTORS, 0),
            (BLOCKS, u32::MAX.into()),
            (SPARE, u32::MAX.into()),
            (NEXT, 4096),
            (NEXT, LARGEST - 512),
            (NEXT, LARGEST + 512),
            (NEXT, 2 * LARGEST),
            (NEXT, LARGEST.wrapping_neg()),
            (NEXT, u64::MAX),
            (DATA, 0),
            (MAP, u64::MAX - 511),
            (LOG, (64 + THREE.offset).wrapping_neg()),
            (LOG, THREE.size),
            (COPY, THREE.size),
        ] {
            let mut medium = three_arenas();
            let draft = medium[nth].1.take().unwrap();
            medium[nth].1 = Some(draft.having(field, value).sealed());
            let (result, offsets) = check_all(&THREE, &medium);
            let refused = Err(ChainError::Block(InfoBlockError::Arena));
            assert_eq!(result, refused, "arena {nth}: {field:?} {value:#x}");
            assert_eq!(offsets.len(), nth + 1);
        }
    }
    // The last arena cannot be followed by another one.
    let mut medium = three_arenas();
    medium[2].1 = Some(Draft::arena(LARGEST, LARGEST).sealed());
    let refused = Err(ChainError::Block(InfoBlockError::Arena));
    assert_eq!(check_all(&THREE, &medium).0, refused);
    // All arenas have sectors of the size of the device.
    let mut medium = three_arenas();
    let draft = medium[1].1.take().unwrap();
    medium[1].1 = Some(draft.having(SECTOR_SIZE, 512).sealed());
    let refused = Err(ChainError::Block(InfoBlockError::OtherSectorSize));
    assert_eq!(check_all(&THREE, &medium).0, refused);
}

#[test]
fn only_the_first_arena_may_be_missing() {
    let damaged = |draft: Draft| draft.having(SECTORS, 1);
    let foreign = |draft: Draft| draft.with(PARENT, &[7; 16]).sealed();
    let replaced = |_| Draft::fsdax().sealed();
    for change in [damaged, foreign, replaced] {
        for nth in [0, 1, 2] {
            let mut medium = three_arenas();
            medium[nth].1 = medium[nth].1.take().map(change);
            let (result, offsets) = check_all(&THREE, &medium);
            let expected = match nth {
                0 => Ok(()),
                _ => Err(ChainError::Block(InfoBlockError::FurtherArena)),
            };
            assert_eq!((result, offsets.len()), (expected, nth + 1));
        }
    }
    for nth in [0, 1, 2] {
        let mut medium = three_arenas();
        medium[nth].1 = None;
        let expected = match nth {
            0 => ChainError::Unreadable,
            _ => ChainError::Block(InfoBlockError::FurtherArena),
        };
        assert_eq!(check_all(&THREE, &medium).0, Err(expected));
    }
}

/// The btt driver makes new arenas with sectors of the configured size.
#[test]
fn new_arenas_have_a_known_sector_size() {
    for (size, result) in [
        (512, Ok(())),
        (4096, Ok(())),
        (520, Err(ChainError::Block(InfoBlockError::SectorMetadata))),
        (4224, Err(ChainError::Block(InfoBlockError::SectorMetadata))),
        (100, Err(ChainError::Block(InfoBlockError::SectorSize))),
        (8192, Err(ChainError::Block(InfoBlockError::SectorSize))),
    ] {
        let expected = Expected {
            sector_size: Some(size),
            ..THREE
        };
        assert_eq!(check_all(&expected, &Vec::new()).0, result, "{size}");
    }
}

/// An entry of a log: sector, old block, new block, sequence number.
type Entry = [u32; 4];

/// The flags of a block in a log: an error, and "contents are zero". Both mean neither.
const FLAGS: [u32; 4] = [0, 1 << 30, 1 << 31, 3 << 30];

/// Checks three arenas, with these entries in the log of the arena `nth`.
fn check_log(nth: usize, entries: &[(usize, Entry)]) -> Result<(), ChainError> {
    let medium = three_arenas();
    let log = |(at, draft): &(u64, Option<Draft>)| {
        at + u64::try_from(draft.as_ref().unwrap().number(LOG)).unwrap()
    };
    let start = log(&medium[nth]);
    check_arenas(&THREE, &mut [0; LEN], |offset, block| {
        *block = match medium.iter().find(|(at, _)| *at == offset) {
            Some((_, draft)) => draft.as_ref().unwrap().0,
            None => [0xff; LEN],
        };
        if medium
            .iter()
            .any(|arena| (log(arena)..log(arena) + 256 * 64).contains(&offset))
        {
            block.fill(0);
        }
        for (index, entry) in entries {
            let bytes: Vec<u8> = entry.iter().flat_map(|word| word.to_le_bytes()).collect();
            let at = start + *index as u64 * 16;
            if at >= offset && at < offset + LEN as u64 {
                let at = (at - offset) as usize;
                block[at..at + 16].copy_from_slice(&bytes);
            }
        }
        Ok(())
    })
}

/// The number of sectors and of blocks of an arena of [`THREE`].
fn sizes(nth: usize) -> [u32; 2] {
    let arenas = three_arenas();
    let draft = arenas[nth].1.as_ref().unwrap();
    [SECTORS, BLOCKS].map(|field| draft.number(field).try_into().unwrap())
}

#[test]
fn logs_of_good_arenas_are_good() {
    for nth in [0, 1, 2] {
        let [sectors, blocks] = sizes(nth);
        // As btt_log_init() writes it.
        let fresh = |lane: u32| [lane, sectors + lane, sectors + lane, 1];
        let first = |lane: u32| (lane as usize * 4, fresh(lane));
        let all: Vec<_> = (0..256).map(first).collect();
        assert_eq!(check_log(nth, &all), Ok(()));
        // The second entry of each lane, at its place in the new and in the old layout.
        for slot in [1, 2] {
            for flags in FLAGS {
                let written = |lane: u32| [sectors - 1, flags | (blocks - 1), sectors + lane, 2];
                let mut all = all.clone();
                all.extend((0..256).map(|lane| (lane as usize * 4 + slot, written(lane))));
                assert_eq!(check_log(nth, &all), Ok(()));
            }
        }
        // The sector does not count if nothing was written.
        assert_eq!(check_log(nth, &[(0, [u32::MAX, 7, 7, 1])]), Ok(()));
        // Behind the last lane is the copy of the info block.
        assert_eq!(check_log(nth, &[(256 * 4, [u32::MAX; 4])]), Ok(()));
    }
}

#[test]
fn logs_that_lead_out_of_their_arena_are_refused() {
    let refused = Err(ChainError::Block(InfoBlockError::Log));
    for nth in [0, 1, 2] {
        let [sectors, blocks] = sizes(nth);
        for slot in [0, 1, 2, 3, 255, 256, 1023] {
            for flags in FLAGS {
                for entry in [
                    [0, flags | blocks, 0, 1],
                    [0, 0, flags | blocks, 1],
                    [0, flags | blocks, flags | blocks, 1],
                    [sectors, 0, flags | 1, 1],
                    [u32::MAX, flags | 1, 0, 0],
                    [0, flags | ((1 << 30) - 1), 0, 1],
                ] {
                    let result = check_log(nth, &[(slot, entry)]);
                    assert_eq!(result, refused, "arena {nth}, {slot}: {entry:x?}");
                }
            }
        }
    }
}

/// The log is read in blocks, and all of them are in the namespace.
#[test]
fn logs_are_read_completely_and_may_be_unreadable() {
    let medium = three_arenas();
    let logs: Vec<u64> = medium
        .iter()
        .map(|(at, draft)| at + draft.as_ref().unwrap().number(LOG) as u64)
        .collect();
    let blocks: Vec<u64> = logs
        .iter()
        .flat_map(|log| (0..4).map(move |nth| log + nth * LEN as u64))
        .collect();
    for bad in &blocks {
        let mut found = Vec::new();
        let result = check_arenas(&THREE, &mut [0; LEN], |offset, block| {
            block.fill(0);
            if let Some((_, draft)) = medium.iter().find(|(at, _)| *at == offset) {
                *block = draft.as_ref().unwrap().0;
                return Ok(());
            }
            assert!(offset + LEN as u64 <= THREE.size);
            found.push(offset);
            if offset == *bad {
                return Err(ChainError::Unreadable);
            }
            Ok(())
        });
        assert_eq!(
            result,
            Err(ChainError::Block(InfoBlockError::UnreadableLog))
        );
        assert!(blocks.starts_with(&found) && found.ends_with(&[*bad]));
    }
}

/// As `discover_arenas()` does. Returns the parts of all arenas: where they begin and end.
fn discover(expected: &Expected, medium: &Medium) -> Vec<(u128, u128)> {
    let size = u128::from(expected.size);
    let (mut at, mut parts) = (u128::from(expected.offset), Vec::new());
    let mut remaining = size - at;
    while remaining > 0 {
        assert!(parts.len() <= 100, "it does not end");
        let found = medium.iter().find(|(offset, _)| u128::from(*offset) == at);
        let Some((_, Some(draft))) = found else {
            assert!(parts.is_empty());
            break;
        };
        let of = |field| draft.number(field);
        parts.extend([
            (at, at + 4096),
            (at + of(DATA), at + of(DATA) + of(BLOCKS) * of(BLOCK_SIZE)),
            (at + of(MAP), at + of(MAP) + of(SECTORS) * 4),
            (at + of(LOG), at + of(LOG) + of(SPARE) * 64),
            (at + of(COPY), at + of(COPY) + 4096),
        ]);
        if of(NEXT) == 0 {
            break;
        }
        remaining = remaining.checked_sub(of(NEXT)).expect("room");
        at += of(NEXT);
    }
    parts
}

proptest! {
    #[test]
    fn all_parts_of_accepted_arenas_are_in_the_namespace(
        changes in prop::collection::vec(
            (0_usize..3, prop::sample::select(&ARENA_FIELDS[..]), prop_oneof![
                any::<u64>(),
                Just(0),
                Just(LARGEST),
                (0..3 * LARGEST).prop_map(|at| at & !511),
                (0_u32..64).prop_map(|bit| 1 << bit),
            ]),
            0..3,
        ),
        size in prop_oneof![Just(THREE.size), LARGEST..4 * LARGEST],
    ) {
        let mut medium = three_arenas();
        for (nth, field, value) in changes {
            medium[nth].1 = medium[nth].1.take().map(|draft| draft.having(field, value).sealed());
        }
        let expected = Expected { size, ..THREE };
        let (result, offsets) = check_all(&expected, &medium);
        prop_assert!(offsets.is_sorted());
        prop_assert!(offsets.len() as u64 <= size / LARGEST + 1);
        if result.is_ok() {
            for (start, end) in discover(&expected, &medium) {
                prop_assert!(start <= end && end <= size.into());
            }
        }
    }

    #[test]
    fn the_parts_of_an_accepted_arena_do_not_overlap(
        changes in prop::collection::vec(
            (prop::sample::select(&ARENA_FIELDS[..]), prop_oneof![
                any::<u64>(),
                0_u64..8192,
                (0_u64..512 * MIB).prop_map(|at| at & !511),
                (0_u32..64).prop_map(|bit| 1 << bit),
            ]),
            0..4,
        ),
        size in prop_oneof![any::<u64>(), Just(EXPECTED.size)],
    ) {
        let block = changes
            .into_iter()
            .fold(Draft::sector(1, 1), |draft, (field, value)| draft.having(field, value))
            .sealed();
        if block.check(&Expected { size, ..EXPECTED }).is_ok() {
            let of = |field| block.number(field);
            let end = u128::from(size - EXPECTED.offset);
            prop_assert!(4096 <= of(DATA));
            prop_assert!(of(DATA) + of(BLOCKS) * of(BLOCK_SIZE) <= of(MAP));
            prop_assert!(of(MAP) + of(SECTORS) * 4 <= of(LOG));
            prop_assert!(of(LOG) + of(SPARE) * 64 <= of(COPY));
            prop_assert!(of(COPY) + 4096 <= end);
            prop_assert!(of(SECTORS) + of(SPARE) <= of(BLOCKS));
            prop_assert!(of(SPARE) <= 1 << 14);
            prop_assert!(of(COPY) < 512 << 30);
        }
    }

    #[test]
    fn every_changed_byte_is_detected(at in 16..LEN, by in 1_u8..) {
        let mut block = Draft::fsdax().sealed();
        block.0[at] ^= by;
        prop_assert_eq!(block.check(&EXPECTED), Err(InfoBlockError::Checksum));
    }

    #[test]
    fn what_is_accepted_lies_within_the_namespace(
        minor in 0_u16..6,
        data_offset in prop_oneof![any::<u64>(), (0_u64..600).prop_map(|mib| mib * MIB)],
        mode in 0_u32..4,
        start_pad in prop_oneof![any::<u32>(), (0_u32..600).prop_map(|mib| mib << 20)],
        end_trunc in prop_oneof![any::<u32>(), (0_u32..600).prop_map(|mib| mib << 20)],
        align in prop_oneof![any::<u32>(), (0_u32..32).prop_map(|shift| 1 << shift)],
        start in prop_oneof![any::<u64>(), Just(EXPECTED.start)],
        size in prop_oneof![any::<u64>(), Just(EXPECTED.size)],
    ) {
        let block = Draft::fsdax()
            .with(MINOR, &minor.to_le_bytes())
            .with(DATA_OFFSET, &data_offset.to_le_bytes())
            .with(MODE, &mode.to_le_bytes())
            .with(START_PAD, &start_pad.to_le_bytes())
            .with(END_TRUNC, &end_trunc.to_le_bytes())
            .with(ALIGN, &align.to_le_bytes())
            .sealed();
        let expected = Expected { start, size, ..EXPECTED };
        let data = InfoBlock::of(&block.0).expect("a signature").data(&expected);
        if block.check(&expected).is_ok() {
            let [front, back] = if minor >= 1 { [start_pad, end_trunc] } else { [0, 0] };
            let first = u128::from(start) + u128::from(front) + u128::from(data_offset);
            let end = u128::from(start) + u128::from(size) - u128::from(back);
            let found = data.map(|data| (data.start.into(), data.end.into()));
            prop_assert_eq!(found, u64::try_from(end).is_ok().then_some((first, end)));
            let pads = if minor >= 1 { u128::from(start_pad) + u128::from(end_trunc) } else { 0 };
            prop_assert!(u128::from(data_offset) + pads < u128::from(size));
            prop_assert!(data_offset >= EXPECTED.reserve && data_offset % 4096 == 0);
            prop_assert!(mode == 1 || mode == 2);
            let pages = (u128::from(size) - pads) / 4096;
            prop_assert!(mode == 1 || u128::from(data_offset) >= (pages - 2) * 64 + 8192);
        }
    }
}
