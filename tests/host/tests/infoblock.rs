// SPDX-License-Identifier: GPL-2.0

//! Which info blocks are believed. A good one of each kind is, whatever the namespace; every change of a
//! byte is noticed; and what a changed one with a right checksum asks for is within the namespace or refused.

use host::infoblock::{Fault, InfoBlock, Personality, Place, LEN};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const UUID: [u8; 16] = *b"sixteen letters!";
const PLACE: Place = Place {
    uuid: UUID,
    start: 1 << 32,
    size: 512 * MIB,
    reserve: 8192,
    page_size: 4096,
    page_struct_size: 64,
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
const CHECKSUM: usize = LEN - 8;

/// A block that can be changed, and gets its checksum last.
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

    /// As ndctl makes it, with the struct pages on the medium.
    fn fsdax() -> Draft {
        Draft::of(b"NVDIMM_PFN_INFO\0", 1, 4)
            .with(DATA_OFFSET, &(10 * MIB).to_le_bytes())
            .with(MODE, &2_u32.to_le_bytes())
            .with(ALIGN, &(2_u32 << 20).to_le_bytes())
            .with(PAGE_SIZE, &4096_u32.to_le_bytes())
            .with(PAGE_STRUCT_SIZE, &64_u16.to_le_bytes())
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> Draft {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Puts the right checksum in: that of the kernel, word by word.
    fn sealed(self) -> Draft {
        let (mut low, mut high) = (0_u32, 0_u64);
        let blank = self.with(CHECKSUM, &[0; 8]);
        for word in blank.0.chunks(4) {
            low = low.wrapping_add(u32::from_le_bytes(word.try_into().unwrap()));
            high = high.wrapping_add(u64::from(low));
        }
        blank.with(CHECKSUM, &((high << 32) | u64::from(low)).to_le_bytes())
    }

    fn check(&self, place: &Place) -> Result<(), Fault> {
        InfoBlock::of(&self.0).expect("a signature").check(place)
    }
}

fn fault_of(draft: Draft) -> Option<Fault> {
    draft.sealed().check(&PLACE).err()
}

#[test]
fn a_signature_tells_the_personality() {
    for (signature, personality) in [
        (b"BTT_ARENA_INFO\0\0", Personality::Sector),
        (b"NVDIMM_PFN_INFO\0", Personality::Fsdax),
        (b"NVDIMM_DAX_INFO\0", Personality::Devdax),
    ] {
        let block = Draft::of(signature, 1, 1);
        let found = InfoBlock::of(&block.0).map(|block| block.personality());
        assert_eq!(found, Some(personality));
    }
    assert!(InfoBlock::of(&[0; LEN]).is_none());
    assert!(InfoBlock::of(&Draft::of(b"NVDIMM_PFN_INFOs", 1, 1).0).is_none());
}

#[test]
fn good_blocks_are_good() {
    assert_eq!(fault_of(Draft::fsdax()), None);
    assert_eq!(fault_of(Draft::of(b"BTT_ARENA_INFO\0\0", 1, 1)), None);
    assert_eq!(fault_of(Draft::of(b"BTT_ARENA_INFO\0\0", 2, 0)), None);
    let padded = Draft::fsdax()
        .with(START_PAD, &(4_u32 << 20).to_le_bytes())
        .with(END_TRUNC, &(6_u32 << 20).to_le_bytes());
    assert_eq!(fault_of(padded), None);
}

#[test]
fn a_btt_may_leave_open_whose_it_is_and_others_may_not() {
    let nobodys = [0; 16];
    let btt = Draft::of(b"BTT_ARENA_INFO\0\0", 1, 1);
    assert_eq!(fault_of(btt.clone().with(PARENT, &nobodys)), None);
    assert_eq!(fault_of(btt.with(PARENT, &[7; 16])), Some(Fault::Foreign));
    let fsdax = Draft::fsdax().with(PARENT, &nobodys);
    assert_eq!(fault_of(fsdax), Some(Fault::Foreign));
}

#[test]
fn versions_before_a_field_do_not_have_it() {
    // Each field has a value that would be refused.
    let draft = Draft::fsdax()
        .with(PAGE_SIZE, &65536_u32.to_le_bytes())
        .with(PAGE_STRUCT_SIZE, &32_u16.to_le_bytes());
    assert_eq!(fault_of(draft.clone()), Some(Fault::PageSize));
    assert_eq!(fault_of(draft.clone().with(MINOR, &[3, 0])), None);
    let draft = draft.with(ALIGN, &3_u32.to_le_bytes());
    assert_eq!(
        fault_of(draft.clone().with(MINOR, &[2, 0])),
        Some(Fault::Alignment)
    );
    assert_eq!(fault_of(draft.clone().with(MINOR, &[1, 0])), None);
    let draft = draft.with(START_PAD, &u32::MAX.to_le_bytes());
    assert_eq!(
        fault_of(draft.clone().with(MINOR, &[1, 0])),
        Some(Fault::DataOffset)
    );
    assert_eq!(fault_of(draft.with(MINOR, &[0, 0])), None);
}

#[test]
fn each_fault_is_told_from_the_others() {
    let draft = Draft::fsdax;
    for (changed, fault) in [
        (draft().with(MAJOR, &[2, 0]), Fault::Version),
        (Draft::of(b"BTT_ARENA_INFO\0\0", 1, 2), Fault::Version),
        (draft().with(MODE, &[0]), Fault::Mode),
        (draft().with(MODE, &[7]), Fault::Mode),
        (
            draft().with(PAGE_SIZE, &8192_u32.to_le_bytes()),
            Fault::PageSize,
        ),
        (draft().with(PAGE_STRUCT_SIZE, &[63]), Fault::PageStructSize),
        (
            draft().with(DATA_OFFSET, &0_u64.to_le_bytes()),
            Fault::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &4096_u64.to_le_bytes()),
            Fault::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &(10 * MIB + 512).to_le_bytes()),
            Fault::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &PLACE.size.to_le_bytes()),
            Fault::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &u64::MAX.to_le_bytes()),
            Fault::DataOffset,
        ),
        (
            draft().with(DATA_OFFSET, &(11 * MIB).to_le_bytes()),
            Fault::Alignment,
        ),
        (draft().with(ALIGN, &3_u32.to_le_bytes()), Fault::Alignment),
        (
            draft().with(ALIGN, &(1_u32 << 31).to_le_bytes()),
            Fault::Alignment,
        ),
    ] {
        assert_eq!(fault_of(changed), Some(fault));
    }
    // In RAM there is room for any struct page.
    let in_ram = draft().with(MODE, &[1]).with(PAGE_STRUCT_SIZE, &[16]);
    assert_eq!(fault_of(in_ram), None);
}

proptest! {
    #[test]
    fn every_changed_byte_is_noticed(at in 16..LEN, by in 1_u8..) {
        let mut block = Draft::fsdax().sealed();
        block.0[at] ^= by;
        prop_assert_eq!(block.check(&PLACE), Err(Fault::Checksum));
    }

    #[test]
    fn what_is_believed_lies_within_the_namespace(
        minor in 0_u16..6,
        data_offset in prop_oneof![any::<u64>(), (0_u64..600).prop_map(|mib| mib * MIB)],
        mode in 0_u32..4,
        start_pad in prop_oneof![any::<u32>(), (0_u32..600).prop_map(|mib| mib << 20)],
        end_trunc in prop_oneof![any::<u32>(), (0_u32..600).prop_map(|mib| mib << 20)],
        align in prop_oneof![any::<u32>(), (0_u32..32).prop_map(|shift| 1 << shift)],
        start in prop_oneof![any::<u64>(), Just(PLACE.start)],
        size in prop_oneof![any::<u64>(), Just(PLACE.size)],
    ) {
        let block = Draft::fsdax()
            .with(MINOR, &minor.to_le_bytes())
            .with(DATA_OFFSET, &data_offset.to_le_bytes())
            .with(MODE, &mode.to_le_bytes())
            .with(START_PAD, &start_pad.to_le_bytes())
            .with(END_TRUNC, &end_trunc.to_le_bytes())
            .with(ALIGN, &align.to_le_bytes())
            .sealed();
        let believed = block.check(&Place { start, size, ..PLACE }).is_ok();
        if believed {
            let pads = if minor >= 1 { u128::from(start_pad) + u128::from(end_trunc) } else { 0 };
            prop_assert!(u128::from(data_offset) + pads < u128::from(size));
            prop_assert!(data_offset >= PLACE.reserve && data_offset % 4096 == 0);
            prop_assert!(mode == 1 || mode == 2);
        }
    }
}
