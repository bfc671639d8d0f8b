// SPDX-License-Identifier: GPL-2.0

//! The syntax of `except=`: which namespaces are left to other drivers.

/// An entry of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// The UUID in the label or in the info block.
    Uuid([u8; 16]),
    /// The physical address at which the namespace starts.
    Start(u64),
}

/// Returns the entries of a list: UUIDs as `ndctl` shows them, and addresses in decimal digits, or
/// in hexadecimal digits after `0x`. Commas and white space separate them. An entry that is neither
/// is returned as an error.
pub fn entries(list: &[u8]) -> impl Iterator<Item = Result<Exception, &[u8]>> {
    list.split(|byte| *byte == b',' || byte.is_ascii_whitespace())
        .filter(|entry| !entry.is_empty())
        .map(|entry| {
            let uuid = || uuid(entry).map(Exception::Uuid);

            start(entry)
                .map(Exception::Start)
                .or_else(uuid)
                .ok_or(entry)
        })
}

fn start(entry: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(entry).ok()?;
    // `from_str_radix` also accepts a sign.
    if text.starts_with('+') {
        return None;
    }

    match text.strip_prefix("0x") {
        Some(digits) if digits.starts_with('+') => None,
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Parses a UUID of the form `8-4-4-4-12`.
fn uuid(entry: &[u8]) -> Option<[u8; 16]> {
    const LEN: usize = 36;
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    if entry.len() != LEN {
        return None;
    }

    let is_dash = |index: &usize| DASHES.contains(index);
    let dashes = entry.iter().enumerate().filter(|(index, _)| is_dash(index));
    if dashes.clone().any(|(_, byte)| *byte != b'-') {
        return None;
    }
    let digits = entry
        .iter()
        .enumerate()
        .filter(|(index, _)| !is_dash(index));
    let mut digits = digits.map(|(_, byte)| char::from(*byte).to_digit(16));
    let mut uuid = [0; 16];
    for byte in &mut uuid {
        let (high, low) = (digits.next()??, digits.next()??);
        *byte = u8::try_from((high << 4) | low).ok()?;
    }
    Some(uuid)
}
