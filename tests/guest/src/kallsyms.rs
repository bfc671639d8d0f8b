// SPDX-License-Identifier: GPL-2.0

//! The addresses of code in the kernel and its modules.

use std::fs;
use std::ops::Range;

use anyhow::{Context, Result, ensure};

/// A symbol. Several symbols may have the same address.
pub struct Symbol {
    pub address: u64,
    pub name: String,
    /// The module of the symbol; none for the kernel itself.
    pub module: Option<String>,
}

/// All symbols.
pub fn symbols() -> Result<Vec<Symbol>> {
    let text = fs::read_to_string("/proc/kallsyms").context("reading /proc/kallsyms")?;
    let mut symbols = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(address), Some(_), Some(name)) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let address = u64::from_str_radix(address, 16)?;
        ensure!(address != 0, "/proc/kallsyms does not tell addresses");
        let module = words.next().map(|word| word.trim_matches(['[', ']']));
        symbols.push(Symbol {
            address,
            name: name.to_owned(),
            module: module.map(str::to_owned),
        });
    }
    Ok(symbols)
}

/// The address range of a function: it ends where the next symbol begins.
pub fn code_of(symbols: &[Symbol], function: &str) -> Result<Range<u64>> {
    let named = symbols.iter().find(|symbol| symbol.name == function);
    let start = named
        .with_context(|| format!("there is no {function}"))?
        .address;
    let later = symbols.iter().map(|symbol| symbol.address);
    let end = later.filter(|address| *address > start).min();
    Ok(start..end.with_context(|| format!("{function} has no end"))?)
}
