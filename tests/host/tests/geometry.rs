// SPDX-License-Identifier: GPL-2.0

//! Properties of the driver's arithmetic, checked against the same in 128 bits.
//!
//! The tests are built with overflow checks, so they also check that nothing overflows: inputs are
//! drawn from all values, with a bias to the edges.

use host::geometry::{aligned_inside, Span};
use proptest::prelude::*;

const PAGE_SHIFT: usize = 12;
const PAGE: usize = 1 << PAGE_SHIFT;

/// Any value, with a bias to zero, the middle and the maximum.
fn edgy() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..=0x10000_u64,
        (u64::MAX - 0x10000)..=u64::MAX,
        ((1 << 54) - 0x1000)..=((1 << 55) + 0x1000_u64),
        (0_u32..64, -4096_i64..=4096)
            .prop_map(|(shift, delta)| (1_u64 << shift).wrapping_add_signed(delta)),
    ]
}

fn edgy_size() -> impl Strategy<Value = usize> {
    edgy().prop_map(|value| value as usize)
}

/// Sizes of a device, and requests that often fit.
fn device_and_request() -> impl Strategy<Value = (usize, u64, usize)> {
    prop_oneof![
        (edgy_size(), edgy(), edgy_size()),
        (1_usize..1 << 20)
            .prop_flat_map(|size| { (Just(size), 0..=(size as u64 >> 9) + 1, 0..=size + 1024,) }),
    ]
}

proptest! {
    #[test]
    fn the_aligned_inside_is_the_largest(
        (start, end) in prop_oneof![
            (edgy(), edgy()),
            (0_u64..1 << 52, 0_u64..1 << 24).prop_map(|(start, len)| (start, start + len)),
        ],
        shifts in (0_u32..=30, 0_u32..=30),
    ) {
        let (start_align, end_align) = (1_u128 << shifts.0, 1_u128 << shifts.1);
        let first = u128::from(start).div_ceil(start_align) * start_align;
        let right = first..u128::from(end) / end_align * end_align;

        let found = aligned_inside(&(start..end), 1 << shifts.0, 1 << shifts.1);

        let wide = found.map(|range| range.start.into()..range.end.into());
        prop_assert_eq!(wide, Some(right).filter(|range| !range.is_empty()));
    }

    #[test]
    fn a_request_is_accepted_if_and_only_if_it_is_whole_blocks_within_the_device(
        (size, sector, len) in device_and_request(),
        block_shift in 9_u32..=12,
    ) {
        let block = 1_u32 << block_shift;
        let offset = u128::from(sector) << 9;
        let fits = offset + len as u128 <= size as u128
            && offset % u128::from(block) == 0
            && len as u128 % u128::from(block) == 0;

        let span = Span::of_request(sector, len, block, size);

        prop_assert_eq!(span.is_some(), fits);
        if let Some(span) = span {
            prop_assert_eq!(span.offset as u128, offset);
            prop_assert_eq!(span.len, len);
        }
    }

    #[test]
    fn pages_are_accepted_if_and_only_if_they_are_within_the_device(
        (size, pgoff, nr) in device_and_request(),
    ) {
        let pgoff = pgoff as usize;
        let end = (pgoff as u128 + nr as u128) << PAGE_SHIFT;

        let span = Span::of_pages(pgoff, nr, PAGE_SHIFT, size);

        prop_assert_eq!(span.is_some(), nr > 0 && end <= size as u128);
        if let Some(span) = span {
            prop_assert_eq!(span.offset as u128, (pgoff as u128) << PAGE_SHIFT);
            prop_assert_eq!(span.len as u128, (nr as u128) << PAGE_SHIFT);
        }
    }

    #[test]
    fn the_rest_of_a_device_ends_at_its_last_whole_page(size in edgy_size(), pgoff in edgy_size()) {
        let whole = (size as u128) >> PAGE_SHIFT << PAGE_SHIFT;

        match Span::from_page(pgoff, PAGE_SHIFT, size) {
            Some(span) => {
                prop_assert_eq!(span.offset as u128, (pgoff as u128) << PAGE_SHIFT);
                prop_assert_eq!(span.offset as u128 + span.len as u128, whole);
                prop_assert!(span.len >= PAGE);
            }
            None => prop_assert!((pgoff as u128 + 1) << PAGE_SHIFT > whole),
        }
    }

    #[test]
    fn rounding_to_pages_is_the_smallest_that_covers(offset in edgy_size(), len in edgy_size()) {
        let span = Span { offset, len };
        let end = offset as u128 + len as u128;

        match span.round_to_pages(PAGE_SHIFT) {
            Some(pages) => {
                let pages_end = pages.offset as u128 + pages.len as u128;
                prop_assert_eq!(pages.offset % PAGE, 0);
                prop_assert_eq!(pages.len % PAGE, 0);
                prop_assert!(pages.offset <= offset && offset - pages.offset < PAGE);
                prop_assert!(pages_end >= end && pages_end - end < PAGE as u128);
            }
            None => prop_assert!(end + PAGE as u128 > usize::MAX as u128),
        }
    }

    #[test]
    fn a_part_is_within_the_whole(
        offset in 0..1_usize << 40, len in 0..1_usize << 40,
        skip in edgy_size(), part_len in edgy_size(),
    ) {
        let whole = Span { offset, len };

        match whole.part(skip, part_len) {
            Some(part) => {
                prop_assert_eq!(part.offset, offset + skip);
                prop_assert_eq!(part.len, part_len);
                prop_assert!(skip + part_len <= len);
            }
            None => prop_assert!(skip as u128 + part_len as u128 > len as u128),
        }
    }

    #[test]
    fn sectors_are_all_that_are_touched(offset in 0..1_usize << 50, len in 0..1_usize << 50) {
        let (first, count) = Span { offset, len }.sectors();
        let (first, count) = (first as usize, count as usize);

        prop_assert!(first * 512 <= offset && offset < (first + 1) * 512);
        prop_assert!((first + count) * 512 >= offset + len);
        if len > 0 {
            prop_assert!((first + count - 1) * 512 < offset + len);
        }
    }

    #[test]
    fn whole_sectors_are_all_that_are_covered(offset in 0..1_usize << 50, len in 0..1_usize << 12) {
        let span = Span { offset, len };
        let (first, count) = span.sectors();
        let (first_whole, whole) = span.whole_sectors();

        for sector in first..first + count {
            let start = sector as usize * 512;
            let is_covered = offset <= start && start + 512 <= offset + len;
            let is_whole = first_whole <= sector && sector < first_whole + whole;
            prop_assert_eq!(is_whole, is_covered);
        }
        prop_assert!(whole <= count);
    }

    #[test]
    fn sectors_never_overflow(offset in edgy_size(), len in edgy_size()) {
        let (first, count) = Span { offset, len }.sectors();

        prop_assert_eq!(first as usize, offset >> 9);
        prop_assert!(first.checked_add(count).is_some());
    }

    #[test]
    fn good_parts_end_before_the_bad_page_unless_it_is_the_first(
        pgoff in 0_usize..1 << 20, nr in 1_usize..=4096, bad_sector in edgy(),
    ) {
        let span = Span { offset: pgoff << PAGE_SHIFT, len: nr << PAGE_SHIFT };

        if let Some(good) = span.up_to_bad(bad_sector, PAGE_SHIFT) {
            let bad = u128::from(bad_sector) << 9;
            let end = good.offset as u128 + good.len as u128;

            prop_assert_eq!(good.offset, span.offset);
            prop_assert_eq!(good.len % PAGE, 0);
            prop_assert!(good.len >= PAGE && good.len <= span.len);
            // It is either all good, or one page to be cleared.
            prop_assert!(end <= bad || good.len == PAGE);
            // It is not shorter than necessary.
            prop_assert!(good.len == span.len || good.len == PAGE || end + PAGE as u128 > bad);
        } else {
            prop_assert!(bad_sector > u64::MAX >> 9);
        }
    }

    #[test]
    fn clearing_visits_every_page_with_bad_sectors_once(
        first_sector in 0_usize..64, sectors in 1_usize..128,
        runs in proptest::collection::vec((0_usize..200, 1_usize..24), 0..6),
    ) {
        let whole = Span { offset: first_sector << 9, len: sectors << 9 };
        let end = whole.offset + whole.len;
        // As `badblocks_check`: returns the start of the first run that overlaps, which may be
        // before the span.
        let check = |span: Span| {
            let (first, count) = span.sectors();
            runs.iter()
                .filter(|(start, len)| {
                    count > 0 && (*start as u64) < first + count && (start + len) as u64 > first
                })
                .map(|(start, _)| *start as u64)
                .min()
        };
        let has_bad = |page: usize| {
            let part = (page * PAGE).max(whole.offset)..((page + 1) * PAGE).min(end);
            !part.is_empty()
                && runs.iter().any(|(start, len)| {
                    start << 9 < part.end && (start + len) << 9 > part.start
                })
        };

        let mut healed = Vec::new();
        let mut rest = whole;
        while let Some(bad) = check(rest) {
            let split = rest.split_at_bad(bad, PAGE_SHIFT);
            prop_assert!(split.is_some());
            let (page, after) = split.unwrap();
            // A part of one page, with all of the span that is in it.
            let number = page.offset >> PAGE_SHIFT;
            prop_assert_eq!(page.offset, (number * PAGE).max(whole.offset));
            prop_assert_eq!(page.offset + page.len, ((number + 1) * PAGE).min(end));
            prop_assert!(page.len > 0);
            prop_assert_eq!(after.offset, page.offset + page.len);
            prop_assert_eq!(after.offset + after.len, end);
            healed.push(number);
            rest = after;
        }

        let wanted: Vec<usize> = (0..=end >> PAGE_SHIFT).filter(|page| has_bad(*page)).collect();
        prop_assert_eq!(healed, wanted);
    }

    #[test]
    fn splitting_at_bad_sectors_never_overflows(
        offset in edgy_size(), len in edgy_size(), bad in edgy(),
    ) {
        if let Some((page, rest)) = (Span { offset, len }).split_at_bad(bad, PAGE_SHIFT) {
            prop_assert!(page.len > 0 && page.len <= PAGE);
            prop_assert!(page.offset >= offset);
            prop_assert_eq!(rest.offset, page.offset + page.len);
            prop_assert_eq!(rest.offset as u128 + rest.len as u128, offset as u128 + len as u128);
        }
    }
}

#[test]
fn a_run_of_bad_sectors_that_begins_before_the_span_leaves_one_page() {
    let span = Span {
        offset: 16 * PAGE,
        len: 8 * PAGE,
    };

    // The C driver's subtraction underflows here, and yields the whole span.
    assert_eq!(
        span.up_to_bad(0, PAGE_SHIFT),
        Some(Span {
            offset: 16 * PAGE,
            len: PAGE
        })
    );
}
