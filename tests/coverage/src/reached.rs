// SPDX-License-Identifier: GPL-2.0

//! The executed instructions, and their offsets in the module.

use std::collections::{BTreeSet, HashMap};

/// Modules are above this address, whether or not addresses are randomised.
const MODULES: u64 = 0xffff_ffff_a000_0000;
/// The maximum size of a section. The reader of the results drops offsets behind the end of a
/// section.
const SECTION_LIMIT: u64 = 1 << 20;

/// A line from the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// `forget`: the module is not loaded, and its addresses have no meaning from here on.
    Forget,
    /// `section NAME START`: since the last `forget` this section of the module is at this address.
    Section(String, u64),
    /// `past NAME START`: the same, but the section has been freed since.
    Past(String, u64),
    /// `write`: writes the results now, as QEMU may be killed.
    Write,
}

impl Order {
    /// Parses a line.
    pub fn parse(line: &str) -> Option<Order> {
        let mut words = line.split(' ');
        let verb = words.next()?;
        let mut section = || {
            let name = words.next()?.to_owned();
            let start = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
            Some((name, start))
        };
        Some(match verb {
            "forget" => Order::Forget,
            "section" => section().map(|(name, start)| Order::Section(name, start))?,
            "past" => section().map(|(name, start)| Order::Past(name, start))?,
            "write" => Order::Write,
            _ => return None,
        })
    }
}

/// The executed instructions.
#[derive(Default)]
pub struct Reached {
    addresses: BTreeSet<u64>,
    sections: HashMap<String, u64>,
    /// The instructions that were returned already.
    known: BTreeSet<(String, u64)>,
}

impl Reached {
    /// Records an instruction.
    pub fn executed(&mut self, address: u64) {
        if address >= MODULES {
            self.addresses.insert(address);
        }
    }

    /// Executes a line, and returns newly executed instructions, by section and offset.
    pub fn obey(&mut self, order: Order) -> Vec<(String, u64)> {
        match order {
            Order::Forget => {
                let new = self.news();
                self.addresses.clear();
                self.sections.clear();
                new
            }
            Order::Section(name, start) => {
                self.sections.insert(name, start);
                Vec::new()
            }
            Order::Past(name, start) => self.of_section(&name, start),
            Order::Write => self.news(),
        }
    }

    fn news(&mut self) -> Vec<(String, u64)> {
        let mut sections: Vec<_> = self.sections.clone().into_iter().collect();
        sections.sort();
        sections
            .iter()
            .flat_map(|(name, start)| self.of_section(name, *start))
            .collect()
    }

    fn of_section(&mut self, name: &str, start: u64) -> Vec<(String, u64)> {
        self.addresses
            .range(start..start.saturating_add(SECTION_LIMIT))
            .map(|address| (name.to_owned(), address - start))
            .filter(|new| self.known.insert(new.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0xffff_ffff_c010_0000;
    const INIT: u64 = 0xffff_ffff_c020_0000;

    fn order(reached: &mut Reached, line: &str) -> Vec<(String, u64)> {
        reached.obey(Order::parse(line).expect(line))
    }

    fn named(name: &str, offsets: &[u64]) -> Vec<(String, u64)> {
        offsets.iter().map(|at| (name.to_owned(), *at)).collect()
    }

    #[test]
    fn executed_code_of_a_loaded_module_counts() {
        let mut reached = Reached::default();
        order(&mut reached, "forget");
        for address in [INIT + 4, TEXT + 8, TEXT + 2] {
            reached.executed(address);
        }
        let past = order(&mut reached, &format!("past .init.text {INIT:#x}"));
        assert_eq!(past, named(".init.text", &[4]));
        assert_eq!(order(&mut reached, &format!("section .text {TEXT:#x}")), []);
        assert_eq!(order(&mut reached, "write"), named(".text", &[2, 8]));
    }

    #[test]
    fn each_instruction_is_returned_once() {
        let mut reached = Reached::default();
        for (start, new) in [(TEXT, vec![1, 2]), (INIT, vec![3])] {
            order(&mut reached, "forget");
            order(&mut reached, &format!("section .text {start:x}"));
            for offset in [1, 2].into_iter().chain(new.clone()) {
                reached.executed(start + offset);
            }
            assert_eq!(order(&mut reached, "write"), named(".text", &new));
        }
    }

    #[test]
    fn code_after_unload_does_not_count() {
        let mut reached = Reached::default();
        order(&mut reached, &format!("section .text {TEXT:x}"));
        reached.executed(TEXT + 1);
        assert_eq!(order(&mut reached, "forget"), named(".text", &[1]));
        reached.executed(TEXT + 2);
        assert_eq!(order(&mut reached, "write"), []);
        order(&mut reached, "forget");
        order(&mut reached, &format!("section .text {TEXT:x}"));
        assert_eq!(order(&mut reached, "write"), []);
    }

    #[test]
    fn invalid_orders_are_refused() {
        for line in ["", "section", "section .text", "past .text x", "read"] {
            assert_eq!(Order::parse(line), None, "{line}");
        }
    }
}
