// SPDX-License-Identifier: GPL-2.0

//! Signatures at the start of a range.

use host::signature::{find, LEN};
use proptest::prelude::*;

fn with(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut memory = vec![0; LEN];
    memory[offset..offset + bytes.len()].copy_from_slice(bytes);
    memory
}

#[test]
fn what_is_known_is_found() {
    for (offset, bytes, name) in [
        (1080, &[0x53, 0xef][..], "ext4"),
        (0, b"XFSB", "xfs"),
        (1024, &0xe0f5_e1e2_u32.to_le_bytes(), "erofs"),
        (65600, b"_BHRfS_M", "btrfs"),
        (510, &[0x55, 0xaa], "MBR"),
        (512, b"EFI PART", "GPT"),
        (4096, b"NVDIMM_PFN_INFO\0", "info block"),
        (4096, b"NVDIMM_DAX_INFO\0", "info block"),
        (4096, b"BTT_ARENA_INFO\0\0", "info block"),
    ] {
        let found = find(&with(offset, bytes)).unwrap_or("nothing");
        assert!(found.contains(name), "{name}: {found}");
        let elsewhere = with(offset + 8, bytes);
        assert_eq!(find(&elsewhere), None, "{name} at another offset");
    }
    assert_eq!(find(&[0; LEN]), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..LEN)) {
        let _ = find(&bytes);
    }

    #[test]
    fn a_short_range_is_read(len in 0..LEN) {
        let memory = with(0, b"XFSB");
        prop_assert_eq!(find(&memory[..len]).is_some(), len >= 4);
    }
}
