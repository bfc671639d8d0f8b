// SPDX-License-Identifier: GPL-2.0

//! What is counted.
//!
//! A *call* of the driver begins when code outside of it jumps to its code, and ends with the
//! return. The stack pointer tells them apart: at the beginning it points to the return address,
//! and once it is above that, the call has ended. All instructions in between **on the same stack**
//! count, whether the code is the driver's or not. So these do not count:
//!
//! - other tasks, if the call sleeps or is preempted, and soft interrupts: they have stacks of
//!   their own (two processes may have the same addresses; their page tables tell them apart);
//! - interrupts and exceptions, which begin in the kernel's entry code and end when the stack
//!   pointer is above the frame that the CPU has pushed.
//!
//! QEMU translates code in blocks, and calls the plugin when one begins. A block is counted as a
//! whole, by its start: as the driver's, as a copy's, or as other code. An instruction with a `rep`
//! prefix is counted **once**, however many bytes it moves: QEMU may begin it several times, which
//! is recognized.
//!
//! For each call the distinct cache lines are counted that the driver's own instructions load from
//! or store to, except those of the stack of the call. A call in the kernel does not count lines of
//! user space.

use std::collections::HashMap;

/// The kind of code at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The driver.
    Driver,
    /// A function that copies, clears or flushes memory.
    Copy,
    /// The entry code of the kernel, for interrupts among others.
    Entry,
    /// Other code.
    Other,
}

/// Addresses from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

/// The kinds of the known address ranges.
#[derive(Default)]
pub struct Map {
    ranges: Vec<(Range, Kind)>,
}

impl Map {
    /// Adds a range.
    pub fn add(&mut self, kind: Kind, range: Range) {
        self.ranges.push((range, kind));
        self.ranges.sort_by_key(|(range, _)| range.start);
    }

    /// The kind of code at an address. Ranges do not overlap.
    pub fn kind(&self, address: u64) -> Kind {
        let after = self
            .ranges
            .partition_point(|(range, _)| range.start <= address);
        match self.ranges[..after].last() {
            Some((range, kind)) if address < range.end => *kind,
            _ => Kind::Other,
        }
    }
}

/// A block of instructions that are executed one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    pub start: u64,
    pub instructions: u64,
    /// The address of the last instruction, if that has a `rep` prefix.
    pub last_repeats: Option<u64>,
}

/// The number of instructions by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The number of calls of the driver.
    pub calls: u64,
    /// In the driver.
    pub driver: u64,
    /// In functions that it has called, except copies.
    pub callees: u64,
    /// In copies.
    pub copies: u64,
    /// The cache lines that each call accesses, of all calls.
    pub lines: u64,
    /// Those of them that the call stores to.
    pub written: u64,
}

/// The size of a cache line.
const LINE: u64 = 64;
/// The size and alignment of kernel stacks.
const STACK: u64 = 16 << 10;
/// The minimum size of the frame that the CPU pushes at an interrupt.
const INTERRUPT_FRAME: u64 = 5 * 8;

/// Identifies a stack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stack {
    /// A stack of the kernel, by its number.
    Kernel(u64),
    /// The stack of a process, by the address of the process's page tables.
    Process(u64),
}

/// The registers of the CPU when a block begins.
#[derive(Clone, Copy, Debug)]
pub struct Registers {
    pub stack_pointer: u64,
    /// The address of the page tables. Only the tables of processes matter.
    pub page_tables: u64,
}

impl Registers {
    fn stack(&self) -> Stack {
        if self.stack_pointer >> 63 == 1 {
            Stack::Kernel(self.stack_pointer / STACK)
        } else {
            Stack::Process(self.page_tables)
        }
    }
}

/// A call of the driver that has not ended.
struct Call {
    stack: Stack,
    /// The stack pointer when it began.
    bottom: u64,
    /// The stack pointer when it was interrupted.
    interrupted: Option<u64>,
    /// The `rep` instruction that was executed last, if nothing came after it.
    repeating: Option<u64>,
    /// The cache lines that the driver has accessed, and whether it has stored to them.
    lines: HashMap<u64, bool>,
}

impl Call {
    /// Whether an address is one of data that count.
    fn is_of_data(&self, address: u64) -> bool {
        match self.stack {
            Stack::Kernel(number) => address >> 63 == 1 && address / STACK != number,
            Stack::Process(_) => address.abs_diff(self.bottom) >= STACK,
        }
    }
}

/// Counts instructions.
#[derive(Default)]
pub struct Counter {
    counts: Counts,
    calls: Vec<Call>,
    /// The call whose code is being executed, if that is the driver's.
    current: Option<usize>,
}

impl Counter {
    /// The result.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Counts a block that is about to be executed.
    pub fn execute(&mut self, map: &Map, block: &Block, registers: &Registers) {
        let kind = map.kind(block.start);
        let stack = registers.stack();
        let pointer = registers.stack_pointer;
        let mut known = self.calls.iter().position(|call| call.stack == stack);
        self.current = None;

        if let Some(index) = known {
            let call = &mut self.calls[index];
            if let Some(interrupted) = call.interrupted {
                if kind == Kind::Entry || pointer < interrupted + INTERRUPT_FRAME {
                    return;
                }
                call.interrupted = None;
            }
            if kind == Kind::Entry {
                call.interrupted = Some(pointer);
                return;
            }
            if pointer > call.bottom {
                let call = self.calls.swap_remove(index);
                self.counts.lines += call.lines.len() as u64;
                let stores = call.lines.values().filter(|is_stored| **is_stored);
                self.counts.written += stores.count() as u64;
                known = None;
            }
        }

        let index = match known {
            Some(index) => index,
            None if kind == Kind::Driver => {
                self.counts.calls += 1;
                self.calls.push(Call {
                    stack,
                    bottom: pointer,
                    interrupted: None,
                    repeating: None,
                    lines: HashMap::new(),
                });
                self.calls.len() - 1
            }
            None => return,
        };
        let call = &mut self.calls[index];
        let goes_on = call.repeating == Some(block.start);
        let new = block.instructions - u64::from(goes_on);
        call.repeating = block.last_repeats;
        match kind {
            Kind::Driver => {
                self.counts.driver += new;
                self.current = Some(index);
            }
            Kind::Copy => self.counts.copies += new,
            Kind::Entry | Kind::Other => self.counts.callees += new,
        }
    }

    /// Counts a load from or a store to the bytes from `address` to before `end`, by an instruction
    /// of the latest block.
    pub fn access(&mut self, address: u64, end: u64, is_store: bool) {
        let Some(call) = self.current.and_then(|index| self.calls.get_mut(index)) else {
            return;
        };
        if call.is_of_data(address) {
            for line in address / LINE..end.div_ceil(LINE) {
                *call.lines.entry(line).or_default() |= is_store;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: u64 = 0xffff_c900_0000_3f00;
    const OTHER_STACK: u64 = 0xffff_c900_0001_3f00;
    const PROCESS: u64 = 0x7ffc_0000_3f00;

    const DRIVER: u64 = 0x1000;
    const COPY: u64 = 0x2000;
    const ENTRY: u64 = 0x3000;
    const KERNEL: u64 = 0x4000;

    fn map() -> Map {
        let mut map = Map::default();
        for (kind, start) in [
            (Kind::Entry, ENTRY),
            (Kind::Driver, DRIVER),
            (Kind::Copy, COPY),
        ] {
            let end = start + 0x1000;
            map.add(kind, Range { start, end });
        }
        map
    }

    /// Registers in the kernel.
    fn at(stack_pointer: u64) -> Registers {
        let page_tables = 0;
        Registers {
            stack_pointer,
            page_tables,
        }
    }

    /// Executes blocks of ten instructions, and returns calls and instructions of driver, callees
    /// and copies.
    fn run(blocks: &[(u64, u64)]) -> (u64, [u64; 3]) {
        let map = map();
        let mut counter = Counter::default();
        for &(start, pointer) in blocks {
            let block = Block {
                start,
                instructions: 10,
                last_repeats: None,
            };
            counter.execute(&map, &block, &at(pointer));
        }
        let counts = counter.counts();
        (counts.calls, [counts.driver, counts.callees, counts.copies])
    }

    #[test]
    fn ranges_end_before_their_end() {
        let map = map();
        assert_eq!(map.kind(DRIVER - 1), Kind::Other);
        assert_eq!(map.kind(DRIVER), Kind::Driver);
        assert_eq!(map.kind(DRIVER + 0xfff), Kind::Driver);
        assert_eq!(map.kind(DRIVER + 0x1000), Kind::Copy);
        assert_eq!(map.kind(KERNEL), Kind::Other);
    }

    #[test]
    fn a_call_ends_with_its_return() {
        let counts = run(&[
            (KERNEL, TOP + 8),
            (DRIVER, TOP),
            (KERNEL, TOP - 64),
            (COPY, TOP - 72),
            (DRIVER, TOP - 56),
            (KERNEL, TOP + 8),
            (COPY, TOP),
        ]);
        assert_eq!(counts, (1, [20, 10, 10]));
    }

    /// A function that ends in a jump to another one returns from there.
    #[test]
    fn a_tail_call_is_part_of_the_call() {
        let counts = run(&[(DRIVER, TOP), (KERNEL, TOP), (KERNEL, TOP + 8)]);
        assert_eq!(counts, (1, [10, 10, 0]));
    }

    #[test]
    fn one_call_follows_another() {
        let counts = run(&[(DRIVER, TOP), (DRIVER, TOP + 8), (KERNEL, TOP + 16)]);
        assert_eq!(counts, (2, [20, 0, 0]));
    }

    #[test]
    fn interrupts_do_not_count() {
        let frame = TOP - 100 - INTERRUPT_FRAME;
        let counts = run(&[
            (DRIVER, TOP),
            (KERNEL, TOP - 100),
            (ENTRY, frame),
            (KERNEL, frame - 200),
            (ENTRY, frame - 8),
            (KERNEL, TOP - 100),
            (KERNEL, TOP + 8),
        ]);
        assert_eq!(counts, (1, [10, 20, 0]));
    }

    /// The other task may call the driver, too.
    #[test]
    fn another_task_is_counted_apart() {
        let counts = run(&[
            (DRIVER, TOP),
            (KERNEL, OTHER_STACK),
            (DRIVER, OTHER_STACK - 8),
            (KERNEL, OTHER_STACK),
            (KERNEL, TOP - 8),
            (KERNEL, TOP + 8),
        ]);
        assert_eq!(counts, (2, [20, 10, 0]));
    }

    #[test]
    fn another_process_is_counted_apart() {
        let map = map();
        let mut counter = Counter::default();
        let mut execute = |start, last_repeats, stack_pointer, page_tables| {
            let block = Block {
                start,
                instructions: 1,
                last_repeats,
            };
            let registers = Registers {
                stack_pointer,
                page_tables,
            };
            counter.execute(&map, &block, &registers);
        };
        execute(DRIVER, None, PROCESS, 0x1000);
        execute(COPY, Some(COPY), PROCESS - 8, 0x1000);
        execute(KERNEL, None, PROCESS - 16, 0x2000);
        execute(COPY, Some(COPY), PROCESS - 8, 0x1000);
        execute(KERNEL, None, PROCESS - 16, 0x1000);
        let Counts {
            calls,
            driver,
            callees,
            copies,
            ..
        } = counter.counts();
        assert_eq!((calls, driver, callees, copies), (1, 1, 1, 1));
    }

    #[test]
    fn lines_count_once_in_each_call() {
        let map = map();
        let mut counter = Counter::default();
        let run = |counter: &mut Counter, start, pointer| {
            let block = Block {
                start,
                instructions: 1,
                last_repeats: None,
            };
            counter.execute(&map, &block, &at(pointer));
        };
        const DATA: u64 = 0xffff_8880_0000_1000;
        for _ in 0..2 {
            run(&mut counter, DRIVER, TOP);
            counter.access(DATA, DATA + 8, false);
            counter.access(DATA + 60, DATA + 68, true);
            counter.access(DATA + 128, DATA + 136, false);
            // The stack, and user space.
            counter.access(TOP - 8, TOP, true);
            counter.access(PROCESS, PROCESS + 8, true);
            // What the driver calls.
            run(&mut counter, KERNEL, TOP - 64);
            counter.access(DATA + 512, DATA + 520, true);
            run(&mut counter, KERNEL, TOP + 8);
        }
        let Counts { lines, written, .. } = counter.counts();
        assert_eq!((lines, written), (6, 4));
    }

    #[test]
    fn a_repeated_instruction_counts_once() {
        let map = map();
        let mut counter = Counter::default();
        let mut execute = |start, instructions, repeats, pointer| {
            let block = Block {
                start,
                instructions,
                last_repeats: repeats,
            };
            counter.execute(&map, &block, &at(pointer));
        };
        execute(DRIVER, 1, None, TOP);
        execute(COPY, 4, Some(COPY + 9), TOP - 8);
        execute(COPY + 9, 1, Some(COPY + 9), TOP - 8);
        // An interrupt in between changes nothing.
        execute(ENTRY, 5, None, TOP - 8 - INTERRUPT_FRAME);
        execute(COPY + 9, 1, Some(COPY + 9), TOP - 8);
        execute(COPY + 11, 2, None, TOP - 8);
        // A new execution counts again.
        execute(COPY + 9, 1, Some(COPY + 9), TOP - 8);
        assert_eq!(counter.counts().copies, 7);
    }
}
