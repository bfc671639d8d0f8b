// SPDX-License-Identifier: GPL-2.0

//! Instructions of x86-64: prefixes before the opcode.

/// The maximum length of an instruction.
pub const LONGEST: usize = 15;

/// A decoded instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts<'a> {
    /// Prefix 66, which is a part of many opcodes.
    pub operand_size: bool,
    /// Prefix 67: addresses have 32 bits.
    pub address_size: bool,
    /// Prefix F2 or F3, which is a part of many opcodes; other instructions are repeated by it.
    pub repeat: Option<u8>,
    /// A prefix that adds the base of FS or GS to the address. Other segment prefixes have no
    /// effect.
    pub segment: bool,
    /// The REX prefix, or 0.
    pub rex: u8,
    /// The opcode and the bytes after it.
    pub rest: &'a [u8],
}

/// Decodes the prefixes of an instruction.
pub fn split(bytes: &[u8]) -> Parts<'_> {
    let mut parts = Parts {
        operand_size: false,
        address_size: false,
        repeat: None,
        segment: false,
        rex: 0,
        rest: bytes,
    };
    while let [first, rest @ ..] = parts.rest {
        match first {
            0x66 => parts.operand_size = true,
            0x67 => parts.address_size = true,
            0xf2 | 0xf3 => parts.repeat = Some(*first),
            0x64 | 0x65 => parts.segment = true,
            0x26 | 0x2e | 0x36 | 0x3e | 0xf0 => {}
            // It is the last prefix.
            0x40..=0x4f => {
                parts.rex = *first;
                parts.rest = rest;
                break;
            }
            _ => break,
        }
        parts.rest = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_come_in_any_order() {
        for bytes in [[0x66, 0xf3, 0x48, 0xa5], [0xf3, 0x66, 0x48, 0xa5]] {
            let parts = split(&bytes);
            assert!(parts.operand_size && !parts.address_size && !parts.segment);
            assert_eq!(
                (parts.repeat, parts.rex, parts.rest),
                (Some(0xf3), 0x48, &[0xa5][..])
            );
        }
    }

    #[test]
    fn rex_is_the_last_prefix() {
        assert_eq!(split(&[0x48, 0x66, 0x90]).rest, [0x66, 0x90]);
    }

    #[test]
    fn an_instruction_may_have_no_prefix_or_be_cut_off() {
        assert_eq!(split(&[0x0f, 0xae, 0xf8]).rest, [0x0f, 0xae, 0xf8]);
        assert_eq!(split(&[0x66]).rest, []);
    }
}
