// SPDX-License-Identifier: GPL-2.0

//! Connects the callbacks of QEMU with the counter.

use std::collections::HashMap;

use plugin::instruction::split;
use plugin::{Access, Cpu, Out, Plugin, Register, Switch};

use crate::count::{Block, Counter, Counts, Kind, Map, Registers};
use crate::order::Order;

plugin::export!("counter", 1, Counting::new);

struct Counting {
    out: Out,
    /// Whether counting is on, for QEMU.
    counting: Switch,
    is_counting: bool,
    /// The known blocks. The index of a block is its token.
    blocks: Vec<Block>,
    tokens: HashMap<Block, usize>,
    map: Map,
    counter: Counter,
}

impl Counting {
    fn new(out: Out) -> Counting {
        Counting {
            out,
            counting: Switch::new(),
            is_counting: false,
            blocks: Vec::new(),
            tokens: HashMap::new(),
            map: Map::default(),
            counter: Counter::default(),
        }
    }
}

impl Plugin for Counting {
    /// Requests a callback for each execution of the block while counting is on, and for each
    /// access of the driver.
    fn translated(&mut self, translated: &plugin::Block<'_>) {
        let instructions = translated.instructions();
        let len = instructions.len() as u64;
        let last = instructions.last();
        let block = Block {
            start: translated.start(),
            instructions: len,
            last_repeats: last
                .filter(|last| repeats(&last.bytes()))
                .map(|last| last.address()),
        };
        let token = *self.tokens.entry(block).or_insert_with(|| {
            self.blocks.push(block);
            self.blocks.len() - 1
        });
        translated.notify_if(&self.counting, token);
        for instruction in translated.instructions() {
            if self.map.kind(instruction.address()) == Kind::Driver {
                instruction.notify_accesses();
            }
        }
    }

    fn accessed(&mut self, access: &Access) {
        if self.is_counting {
            let end = access.address.saturating_add(access.len);
            self.counter.access(access.address, end, access.is_store);
        }
    }

    fn executed(&mut self, cpu: &Cpu<'_>, token: usize) {
        let block = self.blocks.get(token);
        let registers = || {
            Some(Registers {
                stack_pointer: cpu.register(Register::RSP)?,
                page_tables: cpu.register(Register::Cr3)?,
            })
        };
        if let (Some(block), Some(registers)) = (block, registers()) {
            self.counter.execute(&self.map, block, &registers);
        }
    }

    fn received(&mut self, cpu: &Cpu<'_>, line: &str) -> Result<(), String> {
        let order = Order::parse(line).ok_or_else(|| format!("cannot parse `{line}`"))?;
        match order {
            Order::Forget => {
                self.map = Map::default();
                // Other code is the driver's now.
                cpu.retranslate();
            }
            Order::Range(kind, range) => self.map.add(kind, range),
            Order::Start => {
                self.counter = Counter::default();
                self.counting.set(cpu, true);
                self.is_counting = true;
            }
            Order::Stop(label) => {
                self.counting.set(cpu, false);
                self.is_counting = false;
                let Counts {
                    calls,
                    driver,
                    callees,
                    copies,
                    lines,
                    written,
                } = self.counter.counts();
                self.out.write(&format!(
                    "{calls}\t{driver}\t{callees}\t{copies}\t{lines}\t{written}\t{label}\n"
                ))?;
            }
        }
        Ok(())
    }
}

/// Whether an instruction is a string instruction with a `rep` prefix.
fn repeats(bytes: &[u8]) -> bool {
    let parts = split(bytes);
    let on_strings = matches!(
        parts.rest.first(),
        Some(0x6c..=0x6f | 0xa4..=0xa7 | 0xaa..=0xaf)
    );
    on_strings && parts.repeat.is_some()
}
