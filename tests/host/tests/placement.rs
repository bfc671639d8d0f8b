// SPDX-License-Identifier: GPL-2.0

//! Validation of the place of a namespace. It is within its region, and is what the labels allocate
//! on each NVDIMM.

use placement::{is_within, Part};
use proptest::prelude::*;
use std::ops::Range;

#[path = "../../../src/abstractions/nvdimm/placement.rs"]
mod placement;

const MIB: u64 = 1 << 20;
const START: u64 = 1 << 32;
const REGION: Range<u64> = START..START + 512 * MIB;

/// A range in MiB from the start of the region.
fn mib(range: Range<u64>) -> Range<u64> {
    START + range.start * MIB..START + range.end * MIB
}

/// An allocation in MiB on an NVDIMM.
fn on_nvdimm(range: Range<u64>) -> (u64, u64) {
    (range.start * MIB, range.end * MIB - 1)
}

#[test]
fn a_namespace_is_within_its_region() {
    for (namespace, is_right) in [
        (REGION, true),
        (mib(0..1), true),
        (mib(511..512), true),
        (mib(0..513), false),
        (mib(512..513), false),
        (START - MIB..START + MIB, false),
        (START - MIB..START, false),
        // Empty, and with an end before the start.
        (mib(1..1), false),
        (
            Range {
                start: START + MIB,
                end: START,
            },
            false,
        ),
        (START..u64::MAX, false),
        // As a negative offset makes it.
        (u64::MAX - MIB..u64::MAX, false),
    ] {
        assert_eq!(is_within(&namespace, &REGION), is_right, "{namespace:x?}");
    }
}

#[test]
fn a_namespace_is_what_was_allocated() {
    let check = |namespace, allocations: &[(u64, u64)]| {
        Part::of(&namespace, START, 1)
            .is_some_and(|part| part.is_all_of(0, allocations.iter().copied()))
    };

    assert!(check(mib(16..144), &[on_nvdimm(16..144)]));
    assert!(check(mib(16..144), &[]));
    assert!(!check(mib(16..144), &[on_nvdimm(32..160)]));
    assert!(!check(mib(16..144), &[on_nvdimm(16..143)]));
    // A second label of the same uuid, before the right one.
    assert!(!check(
        mib(0..128),
        &[on_nvdimm(0..16), on_nvdimm(144..272)]
    ));
    assert!(!check(
        mib(0..128),
        &[on_nvdimm(0..128), on_nvdimm(144..272)]
    ));
    assert!(!check(mib(5..5), &[on_nvdimm(5..5)]));
}

#[test]
fn a_region_may_begin_anywhere_on_its_nvdimms() {
    let part = Part::of(&mib(16..144), START, 1).expect("a part");
    assert!(part.is_all_of(64 * MIB, [on_nvdimm(80..208)].into_iter()));
    assert!(!part.is_all_of(64 * MIB, [on_nvdimm(16..144)].into_iter()));
    assert!(!part.is_all_of(u64::MAX - MIB, [on_nvdimm(16..144)].into_iter()));
    // Below its region.
    assert_eq!(Part::of(&(START - MIB..START + MIB), START, 1), None);
}

/// libnvdimm adds the sizes on both NVDIMMs, and takes the offset from the first one.
#[test]
fn interleaved_nvdimms_have_equal_parts() {
    let part = Part::of(&mib(64..128), START, 2).expect("a part");
    assert!(part.is_all_of(0, [on_nvdimm(32..64)].into_iter()));

    let uneven = Part::of(&mib(508..766), START, 2).expect("a part");
    assert!(!uneven.is_all_of(0, [on_nvdimm(254..256)].into_iter()));
    assert_eq!(Part::of(&mib(0..1), START, 0), None);
    assert_eq!(Part::of(&(START + 1..START + 3), START, 2), None);
}

proptest! {
    #[test]
    fn an_accepted_part_leads_back_to_the_namespace(
        start in 0_u64..4,
        offset in 0_u64..4,
        len in 0_u64..4,
        nvdimms in 0_u64..4,
        namespace in (0_u64..16, 0_u64..16).prop_map(|(start, end)| start..end),
        region_start in 0_u64..4,
    ) {
        let (first, next) = (start + offset, start + offset + len);
        let right = region_start + offset * nvdimms..region_start + (offset + len) * nvdimms;
        let accepted = Part::of(&namespace, region_start, nvdimms).is_some_and(|part| {
            next > 0 && part.is_all_of(start, [(first, next - 1)].into_iter())
        });
        let is_right = nvdimms > 0 && len > 0 && namespace == right;
        prop_assert_eq!(accepted, is_right);
    }

    #[test]
    fn no_number_overflows(numbers in prop::array::uniform6(any::<u64>()), nvdimms in 0_u64..17) {
        let [from, to, region_start, start, first, last] = numbers;
        if let Some(part) = Part::of(&(from..to), region_start, nvdimms) {
            part.is_all_of(start, [(first, last)].into_iter());
        }
    }
}
