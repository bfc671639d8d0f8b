// SPDX-License-Identifier: GPL-2.0

//! Which instructions make stores durable, or go past the caches.

use plugin::instruction::{Parts, split};

/// The effect of an instruction on the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// `sfence` or `mfence`.
    Fence,
    /// `clwb` or `clflushopt`.
    WriteBack(Operand),
    /// `clflush`.
    WriteBackAndWait(Operand),
    /// A non-temporal store.
    StorePastCaches,
    /// None of these.
    Other,
}

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operand {
    /// The number of a register.
    pub base: Option<u8>,
    /// The number of a register, and its scale.
    pub index: Option<(u8, u64)>,
    /// The constant part; relative to the next instruction if that is the base.
    pub displacement: i64,
    pub from_next_instruction: bool,
}

impl Operand {
    /// The address, given the contents of registers and the address of the next instruction.
    pub fn address(&self, register: impl Fn(u8) -> Option<u64>, next: u64) -> Option<u64> {
        let mut address = self.displacement as u64;
        if self.from_next_instruction {
            address = address.wrapping_add(next);
        }
        if let Some(base) = self.base {
            address = address.wrapping_add(register(base)?);
        }
        if let Some((index, scale)) = self.index {
            address = address.wrapping_add(register(index)?.wrapping_mul(scale));
        }
        Some(address)
    }
}

/// Returns the effect of an instruction.
///
/// A flush with an address that depends on FS or GS, or has 32 bits, is not decoded: its line stays
/// dirty, which is detected.
pub fn effect(bytes: &[u8]) -> Effect {
    let parts = split(bytes);
    match parts.rest {
        [0x0f, opcode, rest @ ..] => two_bytes(&parts, *opcode, rest),
        // The two forms of VEX: inverted bits of REX and more, then the prefix that is a part of
        // the opcode.
        [0xc5, bits, opcode, ..] => with_vex(bits & 3, *opcode),
        [0xc4, map, bits, opcode, ..] if map & 0x1f == 1 => with_vex(bits & 3, *opcode),
        _ => Effect::Other,
    }
}

fn two_bytes(parts: &Parts<'_>, opcode: u8, rest: &[u8]) -> Effect {
    let Some(&modrm) = rest.first() else {
        return Effect::Other;
    };
    let (in_memory, register) = (modrm >> 6 != 3, (modrm >> 3) & 7);
    match (opcode, register) {
        // movntps and movntpd, movnti, movntq and movntdq
        (0x2b | 0xc3 | 0xe7, _) if in_memory && parts.repeat.is_none() => Effect::StorePastCaches,
        (0xae, _) if parts.repeat.is_some() => Effect::Other,
        (0xae, 6 | 7) if !in_memory => Effect::Fence,
        (0xae, 6) if parts.operand_size => flush(parts, rest, Effect::WriteBack),
        (0xae, 7) if parts.operand_size => flush(parts, rest, Effect::WriteBack),
        (0xae, 7) => flush(parts, rest, Effect::WriteBackAndWait),
        _ => Effect::Other,
    }
}

fn with_vex(prefix: u8, opcode: u8) -> Effect {
    match (prefix, opcode) {
        // vmovntps, vmovntpd, vmovntdq
        (0 | 1, 0x2b) | (1, 0xe7) => Effect::StorePastCaches,
        _ => Effect::Other,
    }
}

fn flush(parts: &Parts<'_>, rest: &[u8], effect: fn(Operand) -> Effect) -> Effect {
    if parts.segment || parts.address_size {
        return Effect::Other;
    }
    operand(parts.rex, rest).map_or(Effect::Other, effect)
}

/// Decodes the operand from ModRM, SIB and displacement.
fn operand(rex: u8, bytes: &[u8]) -> Option<Operand> {
    let extend = |bits: u8, flag: u8| bits & 7 | if rex & flag != 0 { 8 } else { 0 };
    let (&modrm, mut rest) = bytes.split_first()?;
    let mode = modrm >> 6;
    let mut operand = Operand::default();
    let mut displacement = match mode {
        0 => 0,
        1 => 1,
        2 => 4,
        _ => return None,
    };
    match (mode, modrm & 7) {
        (_, 4) => {
            let (&sib, after) = rest.split_first()?;
            rest = after;
            let index = extend(sib >> 3, 2);
            if index != 4 {
                operand.index = Some((index, 1 << (sib >> 6)));
            }
            if mode == 0 && sib & 7 == 5 {
                displacement = 4;
            } else {
                operand.base = Some(extend(sib, 1));
            }
        }
        (0, 5) => {
            operand.from_next_instruction = true;
            displacement = 4;
        }
        (_, base) => operand.base = Some(extend(base, 1)),
    }
    operand.displacement = match displacement {
        0 => 0,
        1 => i64::from(*rest.first()? as i8),
        _ => i64::from(i32::from_le_bytes(rest.get(..4)?.try_into().ok()?)),
    };
    Some(operand)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn based(base: u8, displacement: i64) -> Operand {
        Operand {
            base: Some(base),
            displacement,
            ..Operand::default()
        }
    }

    /// Instructions as assembled.
    #[test]
    fn instructions_are_known() {
        let cases: &[(&[u8], Effect)] = &[
            // sfence, mfence; lfence is none
            (&[0x0f, 0xae, 0xf8], Effect::Fence),
            (&[0x0f, 0xae, 0xf0], Effect::Fence),
            (&[0x0f, 0xae, 0xe8], Effect::Other),
            // clwb (%rax), and clwb 0x40(%r13)
            (&[0x66, 0x0f, 0xae, 0x30], Effect::WriteBack(based(0, 0))),
            (
                &[0x66, 0x41, 0x0f, 0xae, 0x75, 0x40],
                Effect::WriteBack(based(13, 0x40)),
            ),
            // clflushopt -8(%rdi); ds clflush (%rdi)
            (
                &[0x66, 0x0f, 0xae, 0x7f, 0xf8],
                Effect::WriteBack(based(7, -8)),
            ),
            (
                &[0x3e, 0x0f, 0xae, 0x3f],
                Effect::WriteBackAndWait(based(7, 0)),
            ),
            // clflush 0x12345678(%rip)
            (
                &[0x0f, 0xae, 0x3d, 0x78, 0x56, 0x34, 0x12],
                Effect::WriteBackAndWait(Operand {
                    displacement: 0x1234_5678,
                    from_next_instruction: true,
                    ..Operand::default()
                }),
            ),
            // clwb 0x10(%rbx,%r12,8); clwb (%rsp); clwb 0x10(,%rcx,4)
            (
                &[0x66, 0x42, 0x0f, 0xae, 0x74, 0xe3, 0x10],
                Effect::WriteBack(Operand {
                    index: Some((12, 8)),
                    ..based(3, 0x10)
                }),
            ),
            (
                &[0x66, 0x0f, 0xae, 0x34, 0x24],
                Effect::WriteBack(based(4, 0)),
            ),
            (
                &[0x66, 0x0f, 0xae, 0x34, 0x8d, 0x10, 0, 0, 0],
                Effect::WriteBack(Operand {
                    index: Some((1, 4)),
                    displacement: 0x10,
                    ..Operand::default()
                }),
            ),
            // clwb %gs:(%rax); xsaveopt (%rax); tpause %eax
            (&[0x65, 0x66, 0x0f, 0xae, 0x30], Effect::Other),
            (&[0x0f, 0xae, 0x30], Effect::Other),
            (&[0xf3, 0x0f, 0xae, 0xf0], Effect::Other),
            // movnti %r8,(%rdi); movntdq %xmm0,(%rdi); movntps
            // vmovntdq %ymm0,(%rdi); vmovntdq %ymm8,(%r8)
            (&[0x4c, 0x0f, 0xc3, 0x07], Effect::StorePastCaches),
            (&[0x66, 0x0f, 0xe7, 0x07], Effect::StorePastCaches),
            (&[0x0f, 0x2b, 0x07], Effect::StorePastCaches),
            (&[0xc5, 0xfd, 0xe7, 0x07], Effect::StorePastCaches),
            (&[0xc4, 0x41, 0x7d, 0xe7, 0x00], Effect::StorePastCaches),
            // cvtdq2pd and mov %rax,(%rdi) are ordinary
            (&[0xf3, 0x0f, 0xe6, 0x07], Effect::Other),
            (&[0x48, 0x89, 0x07], Effect::Other),
        ];
        for (bytes, expected) in cases {
            assert_eq!(effect(bytes), *expected, "{bytes:02x?}");
        }
    }

    #[test]
    fn addresses_are_sums() {
        let operand = Operand {
            index: Some((2, 4)),
            ..based(1, -16)
        };
        let register = |number| Some(u64::from(number) * 0x100);
        assert_eq!(operand.address(register, 7), Some(0x100 + 4 * 0x200 - 16));
        let operand = Operand {
            displacement: -1,
            from_next_instruction: true,
            ..Operand::default()
        };
        assert_eq!(operand.address(|_| None, 7), Some(6));
        assert_eq!(based(1, 0).address(|_| None, 7), None);
    }
}
