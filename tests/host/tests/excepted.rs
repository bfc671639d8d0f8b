// SPDX-License-Identifier: GPL-2.0

//! The syntax of `except=`.

use host::excepted::{entries, Excepted};
use proptest::prelude::*;

fn formatted(uuid: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(uuid));
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| digits[part].to_owned());
    parts.join("-")
}

#[test]
fn what_is_neither_is_an_error() {
    for entry in [
        "foo",
        "0x",
        "+1",
        "0x+1",
        "-1",
        "0x10000000000000000",
        "4f2d8f9e-7e8b-4a3a-9c9d-0123456789a",
        "4f2d8f9e-7e8b-4a3a-9c9d-0123456789abc",
        "4f2d8f9e07e8b-4a3a-9c9d-0123456789ab",
        "4f2d8f9e-7e8b-4a3a-9c9d-0123456789ag",
        "4f2d8f9e-7e8b-4a3a-9c9d--123456789ab",
    ] {
        let found: Vec<_> = entries(entry.as_bytes()).collect();
        assert_eq!(found, [Err(entry.as_bytes())]);
    }
    assert_eq!(entries(b" ,\n,").count(), 0);
}

proptest! {
    #[test]
    fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        for entry in entries(&bytes) {
            let _ = entry;
        }
    }

    #[test]
    fn what_is_written_is_found(
        uuid in any::<[u8; 16]>(),
        start in any::<u64>(),
        upper in any::<bool>(),
        between in ",|, |\n",
    ) {
        let mut text = formatted(uuid);
        if upper {
            text = text.to_uppercase();
        }
        let list = format!("{text}{between}{start:#x}{between}{start}\n");
        let found: Vec<_> = entries(list.as_bytes()).collect();
        let (uuid, start) = (Excepted::Uuid(uuid), Excepted::Start(start));
        prop_assert_eq!(found, [Ok(uuid), Ok(start), Ok(start)]);
    }
}
