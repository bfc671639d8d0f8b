// SPDX-License-Identifier: GPL-2.0

//! Connects the callbacks of QEMU with the state of lines.

use std::ops::Range;

use plugin::{Block, Cpu, Out, Piece, Plugin, Register};

use crate::instruction::{Effect, Operand, effect};
use crate::lines::Lines;
use crate::order::Order;
use crate::paging::physical;

plugin::export!("ordering", 1, Watching::new);

/// The start of the linear mapping of Linux without KASLR and with page tables of four levels
/// (`nokaslr no5lvl`).
const LINEAR: u64 = 0xffff_8880_0000_0000;

/// The tokens of callbacks: the kind of a store, or the number of an instruction.
const STORE: usize = 0;
const STORE_PAST_CACHES: usize = 1;

const NOTHING: &str = "nothing is watched";

/// An instruction that flushes or fences.
struct Flush {
    effect: Effect,
    /// The addresses of the instruction.
    place: Range<u64>,
}

struct Watching {
    out: Out,
    /// The state of the watched range, if there is one. Callbacks for stores are slow, so there are
    /// none otherwise.
    lines: Option<Lines>,
    /// The code in which fences count; if it is empty, all of them do.
    fences: Vec<Range<u64>>,
    /// The ranges to write down when the machine is off, and their labels.
    last: Vec<(Range<u64>, String)>,
    /// The known instructions. The index of an instruction is its token.
    flushes: Vec<Flush>,
}

impl Watching {
    fn new(out: Out) -> Watching {
        Watching {
            out,
            lines: None,
            fences: Vec::new(),
            last: Vec::new(),
            flushes: Vec::new(),
        }
    }

    fn obey(&mut self, cpu: &Cpu<'_>, order: Order) -> Result<(), String> {
        match order {
            Order::Watch(range) => {
                self.fences.clear();
                if self.lines.replace(Lines::new(range)).is_none() {
                    cpu.retranslate();
                }
            }
            Order::Rest => {
                if self.lines.take().is_some() {
                    cpu.retranslate();
                }
            }
            Order::FencesIn(code) => self.fences.push(code),
            Order::AllFences => self.fences.clear(),
            Order::Begin => self.lines.as_mut().ok_or(NOTHING)?.begin(),
            Order::Look(range, label) => self.look(range, &label)?,
            Order::Finally(range, label) => self.last.push((range, label)),
        }
        Ok(())
    }

    fn look(&mut self, range: Range<u64>, label: &str) -> Result<(), String> {
        let found = self.lines.as_ref().ok_or(NOTHING)?.summary(range);
        self.out.write(&format!(
            "{}\t{}\t{}\t{}\t{label}\n",
            found.lines, found.written, found.dirty, found.pending
        ))
    }
}

/// The physical address of an operand.
fn target(cpu: &Cpu<'_>, operand: &Operand, next: u64) -> Option<u64> {
    let register = |number| cpu.register(Register::General(number));
    let address = operand.address(register, next)?;
    physical(cpu.register(Register::Cr3)?, address, |at| {
        let entry = cpu.memory(LINEAR + at, size_of::<u64>())?;
        Some(u64::from_le_bytes(entry.try_into().ok()?))
    })
}

impl Plugin for Watching {
    fn translated(&mut self, block: &Block<'_>) {
        if self.lines.is_none() {
            return;
        }
        for instruction in block.instructions() {
            let bytes = instruction.bytes();
            match effect(&bytes) {
                Effect::StorePastCaches => instruction.notify_stores(STORE_PAST_CACHES),
                Effect::Other => instruction.notify_stores(STORE),
                effect => {
                    instruction.notify(self.flushes.len());
                    let address = instruction.address();
                    let place = address..address + bytes.len() as u64;
                    self.flushes.push(Flush { effect, place });
                }
            }
        }
    }

    fn executed(&mut self, cpu: &Cpu<'_>, token: usize) {
        let (Some(lines), Some(Flush { effect, place })) =
            (self.lines.as_mut(), self.flushes.get(token))
        else {
            return;
        };
        match effect {
            Effect::Fence => {
                let counts = |code: &Range<u64>| code.contains(&place.start);
                if self.fences.is_empty() || self.fences.iter().any(counts) {
                    lines.fence();
                }
            }
            // If the address is unknown, the line stays dirty.
            Effect::WriteBack(operand) => {
                if let Some(address) = target(cpu, operand, place.end) {
                    lines.write_back(address);
                }
            }
            Effect::WriteBackAndWait(operand) => {
                if let Some(address) = target(cpu, operand, place.end) {
                    lines.write_back_and_wait(address);
                }
            }
            Effect::StorePastCaches | Effect::Other => {}
        }
    }

    fn stored(&mut self, piece: &Piece, token: usize) {
        let Some(lines) = self.lines.as_mut() else {
            return;
        };
        let range = piece.physical..piece.physical + piece.len;
        if token == STORE_PAST_CACHES {
            lines.store_past_caches(range);
        } else {
            lines.store(range);
        }
    }

    fn ending(&mut self) -> Result<(), String> {
        for (range, label) in std::mem::take(&mut self.last) {
            self.look(range, &label)?;
        }
        Ok(())
    }

    fn received(&mut self, cpu: &Cpu<'_>, line: &str) -> Result<(), String> {
        let order = Order::parse(line).ok_or_else(|| format!("cannot parse `{line}`"))?;
        self.obey(cpu, order)
    }
}
