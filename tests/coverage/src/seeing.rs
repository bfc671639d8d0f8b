// SPDX-License-Identifier: GPL-2.0

//! Connects the callbacks of QEMU with the record.

use plugin::{Block, Cpu, Out, Plugin};

use crate::reached::{Order, Reached};

plugin::export!("coverage", 64, Seeing::new);

struct Seeing {
    out: Out,
    reached: Reached,
}

impl Seeing {
    fn new(out: Out) -> Seeing {
        Seeing {
            out,
            reached: Reached::default(),
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), String> {
        let mut lines = String::new();
        for (section, offset) in self.reached.obey(order) {
            lines.push_str(&format!("{section}\t{offset:x}\n"));
        }
        self.out.write(&lines)
    }
}

impl Plugin for Seeing {
    fn translated(&mut self, block: &Block<'_>) {
        for instruction in block.instructions() {
            self.reached.executed(instruction.address());
        }
    }

    fn received(&mut self, _: &Cpu<'_>, line: &str) -> Result<(), String> {
        let order = Order::parse(line).ok_or_else(|| format!("cannot parse `{line}`"))?;
        self.obey(order)
    }

    fn ending(&mut self) -> Result<(), String> {
        self.obey(Order::Write)
    }
}
