// SPDX-License-Identifier: GPL-2.0

//! Brings together what QEMU tells and what was executed.

use std::fs::File;
use std::io::Write;

use plugin::{Block, Cpu, Plugin};

use crate::reached::{Order, Reached};

plugin::export!("coverage", 64, Seeing::new);

struct Seeing {
    out: File,
    reached: Reached,
}

impl Seeing {
    fn new(out: File) -> Seeing {
        Seeing {
            out,
            reached: Reached::default(),
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), String> {
        let lines: Vec<String> = self
            .reached
            .obey(order)
            .into_iter()
            .map(|(section, offset)| format!("{section}\t{offset:x}\n"))
            .collect();
        self.out
            .write_all(lines.concat().as_bytes())
            .map_err(|error| format!("cannot write what was executed: {error}"))
    }
}

impl Plugin for Seeing {
    fn translated(&mut self, block: &Block<'_>) {
        for instruction in block.instructions() {
            self.reached.executed(instruction.address());
        }
    }

    fn told(&mut self, _: &Cpu<'_>, line: &str) -> Result<(), String> {
        let order = Order::parse(line).ok_or_else(|| format!("does not understand `{line}`"))?;
        self.obey(order)
    }

    fn ending(&mut self) -> Result<(), String> {
        self.obey(Order::Write)
    }
}
