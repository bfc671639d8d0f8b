// SPDX-License-Identifier: GPL-2.0

//! Code with a known number of instructions, which the plugin must count right.

use std::arch::global_asm;

use super::say;

/// How many rounds the known loop has.
const ROUNDS: u64 = 1000;
/// How many bytes the known copy moves: more than QEMU moves in one step.
const MOVED: usize = 200_000;

// Code with a known number of instructions. Each part is a range of its own.
global_asm!(
    ".globl pmem_rs_known, pmem_rs_known_loop, pmem_rs_known_copy, pmem_rs_known_end",
    "pmem_rs_known:",
    "mov al, [rsi]",
    "mov [rdi], al",
    "call pmem_rs_known_loop",
    "call pmem_rs_known_copy",
    "ret",
    "pmem_rs_known_loop:",
    "mov ecx, {rounds}",
    "2:",
    "dec ecx",
    "jnz 2b",
    "ret",
    "pmem_rs_known_copy:",
    "mov ecx, {moved}",
    "rep movsb",
    "ret",
    "pmem_rs_known_end:",
    rounds = const ROUNDS,
    moved = const MOVED,
);

unsafe extern "C" {
    /// Five instructions, a load and a store among them. Calls the other two.
    fn pmem_rs_known(to: *mut u8, from: *const u8);
    /// Two instructions, and two in each round.
    static pmem_rs_known_loop: u8;
    /// Three instructions, one of which copies.
    static pmem_rs_known_copy: u8;
    static pmem_rs_known_end: u8;
}

fn say_range(kind: &str, (start, end): (u64, u64)) {
    say(&format!("{kind} {start:x} {end:x}"));
}

/// Tells the plugin that the known code is the driver and that the known copy is a copy function.
pub fn watch() {
    let [driver, callee, copy, end] = [
        pmem_rs_known as *const () as usize,
        (&raw const pmem_rs_known_loop) as usize,
        (&raw const pmem_rs_known_copy) as usize,
        (&raw const pmem_rs_known_end) as usize,
    ]
    .map(|address| address as u64);
    say("forget");
    say_range("driver", (driver, callee));
    say_range("copy", (copy, end));
}

/// Executes the known code.
pub fn run() {
    let from = vec![1; MOVED];
    let mut to = vec![0; MOVED];
    // SAFETY: Both have as many bytes as are moved. The code changes no register that a function
    // may not change.
    unsafe { pmem_rs_known(to.as_mut_ptr(), from.as_ptr()) };
    assert_eq!(to, from, "what was moved");
}
