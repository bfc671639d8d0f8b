// SPDX-License-Identifier: GPL-2.0

//! The syntax of `except=`: which namespaces are left to other drivers.

/// An entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excepted {
    /// The UUID in the label or in the info block.
    Uuid([u8; 16]),
    /// The physical address at which the namespace starts.
    Start(u64),
}

/// Returns the entries of a list: UUIDs as `ndctl` shows them, and addresses in decimal digits, or
/// in hexadecimal digits after `0x`. Commas and white space separate them. An entry that is neither
/// is returned as an error.
///
/// Searching and parsing by `core` is not used, since it can panic in a kernel with overflow
/// checks.
pub fn entries(list: &[u8]) -> impl Iterator<Item = Result<Excepted, &[u8]>> {
    let mut rest = list;

    core::iter::from_fn(move || {
        let (entry, after) = first_entry(rest)?;
        rest = after;

        let uuid = || uuid(entry).map(Excepted::Uuid);
        let start = start(entry).map(Excepted::Start);
        Some(start.or_else(uuid).ok_or(entry))
    })
}

fn is_separator(byte: u8) -> bool {
    byte == b',' || byte.is_ascii_whitespace()
}

/// Returns the first entry of a list, and what follows it.
fn first_entry(mut list: &[u8]) -> Option<(&[u8], &[u8])> {
    while let Some((_, after)) = list.split_first().filter(|(byte, _)| is_separator(**byte)) {
        list = after;
    }

    let (mut len, mut after) = (0_usize, list);
    while let Some((_, rest)) = after
        .split_first()
        .filter(|(byte, _)| !is_separator(**byte))
    {
        len = len.saturating_add(1);
        after = rest;
    }
    let entry = list.get(..len)?;
    (!entry.is_empty()).then_some((entry, after))
}

/// Returns the value of a hexadecimal digit.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(byte.wrapping_sub(b'a').wrapping_add(10)),
        b'A'..=b'F' => Some(byte.wrapping_sub(b'A').wrapping_add(10)),
        _ => None,
    }
}

/// Parses an address.
fn start(entry: &[u8]) -> Option<u64> {
    let (digits, radix) = match entry.strip_prefix(b"0x") {
        Some(digits) => (digits, 16),
        None => (entry, 10),
    };
    if digits.is_empty() {
        return None;
    }

    digits.iter().try_fold(0_u64, |address, byte| {
        let digit = digit(*byte).map(u64::from).filter(|digit| *digit < radix)?;

        address.checked_mul(radix)?.checked_add(digit)
    })
}

/// Parses a UUID of the form `8-4-4-4-12`.
fn uuid(entry: &[u8]) -> Option<[u8; 16]> {
    // The number of bytes between the dashes.
    const GROUPS: [usize; 5] = [4, 2, 2, 2, 6];
    let mut uuid = [0; 16];
    let mut bytes = uuid.iter_mut();
    let mut rest = entry;
    let mut is_first = true;

    for len in GROUPS {
        if !is_first {
            rest = rest.strip_prefix(b"-")?;
        }
        is_first = false;
        for byte in bytes.by_ref().take(len) {
            let [high, low, after @ ..] = rest else {
                return None;
            };
            *byte = (digit(*high)? << 4) | digit(*low)?;
            rest = after;
        }
    }
    rest.is_empty().then_some(uuid)
}
