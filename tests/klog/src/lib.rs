// SPDX-License-Identifier: GPL-2.0

//! The meaning of kernel messages and taint flags for a test run.
//!
//! The guest reads `/dev/kmsg` after every test, and the runner reads the whole console of a guest,
//! also of one that crashed. Both use this classification.

#![forbid(unsafe_code)]

use std::fmt;

/// Parts of a kernel message that mean that something went wrong.
///
/// In case of doubt a message is listed: one that turns out to be harmless belongs into
/// [`HARMLESS`], with the reason.
const TROUBLE: &[&str] = &[
    "WARNING:",
    "BUG:",
    "Oops",
    "kernel BUG at",
    "Kernel panic",
    "panicked at",
    "general protection fault",
    "Unable to handle kernel",
    "unable to handle page fault",
    "Call Trace:",
    "blocked for more than",
    "detected stall",
    "self-detected stall",
    "soft lockup",
    "hard LOCKUP",
    "sleeping function called from invalid context",
    "possible circular locking",
    "possible recursive locking",
    "suspicious RCU usage",
    "inconsistent lock state",
    "lockdep is turned off",
    "DEBUG_LOCKS_WARN_ON",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
    "UBSAN:",
    "KASAN:",
    "kmemleak:",
    "Bad page",
    "cannot create duplicate filename",
    "Busy inodes after unmount",
];

/// Parts of messages that match [`TROUBLE`] but are harmless, with the reason.
const HARMLESS: &[&str] = &[
    // Boot-time announcements of what the kernel can check, not findings.
    "kmemleak: Kernel memory leak detector",
    "page_poison:",
];

/// Returns whether a kernel message says that something went wrong.
///
/// Continuation lines of a report (registers, frames of a trace) do not count: the line that opens
/// the report does.
pub fn is_trouble(message: &str) -> bool {
    TROUBLE.iter().any(|piece| message.contains(piece))
        && !HARMLESS.iter().any(|piece| message.contains(piece))
}

/// The line that a test writes to the kernel's log before it makes allocations fail.
pub const NO_MEMORY_FROM_HERE: &str = "pmem-rs: allocations are made to fail";
/// The line that a test writes to the kernel's log after allocations have failed.
pub const NO_MEMORY_UNTIL_HERE: &str = "pmem-rs: allocations are not made to fail any more";

/// The line that is written to the kernel's log before memory is leaked on purpose.
pub const LEAKS_FROM_HERE: &str = "pmem-rs: memory is leaked on purpose";

/// The kernel's message about leaked memory.
const LEAKS: &str = "new suspected memory leaks";

/// The kernel's messages about a failed allocation. Some have a stack trace.
const NO_MEMORY: &[&str] = &[
    "page allocation failure:",
    "vmalloc error:",
    "vmemmap alloc failure:",
    "kmemleak: Cannot allocate a scan area",
];

/// Returns the messages in a row that say that something went wrong, and their indices.
///
/// Where allocations are made to fail, the kernel's messages about that are ignored. So are those
/// about leaks where memory is leaked on purpose.
pub fn troubles<'a, T>(
    messages: &'a [T],
    text: impl Fn(&'a T) -> &'a str,
) -> impl Iterator<Item = (usize, &'a T)> {
    let mut made_to_fail = false;
    let mut has_trace = false;
    let mut leaks = false;
    messages.iter().enumerate().filter(move |(_, message)| {
        let message = text(message);
        if message.contains(NO_MEMORY_FROM_HERE) {
            made_to_fail = true;
        } else if message.contains(NO_MEMORY_UNTIL_HERE) {
            made_to_fail = false;
        } else if message.contains(LEAKS_FROM_HERE) {
            leaks = true;
        }
        if leaks && message.contains(LEAKS) {
            return false;
        }
        if made_to_fail && NO_MEMORY.iter().any(|piece| message.contains(piece)) {
            has_trace = true;
            return false;
        }
        if has_trace && message.contains("Call Trace:") {
            has_trace = false;
            return false;
        }
        is_trouble(message)
    })
}

/// The reasons for a taint of the kernel: the bits of `/proc/sys/kernel/tainted`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taint(u64);

impl Taint {
    /// A module was unloaded by force. Expected: only one test does that.
    pub const UNLOADED_BY_FORCE: Taint = Taint(1 << 3);
    /// An out-of-tree module was loaded. Expected: the driver is one.
    pub const OUT_OF_TREE: Taint = Taint(1 << 12);
    /// An unsigned module was loaded. Expected: a test build is not signed.
    pub const UNSIGNED: Taint = Taint(1 << 13);

    /// KUnit has run. Expected of a kernel that has it.
    pub const TEST: Taint = Taint(1 << 18);

    /// The letters that the kernel prints in reports, by bit number.
    const LETTERS: &'static str = "PFSRMBUDAWCIOELKXTNJ";

    /// Parses the contents of `/proc/sys/kernel/tainted`.
    pub fn parse(text: &str) -> Option<Taint> {
        text.trim().parse().ok().map(Taint)
    }

    /// Returns the flags that loading the module under test does not explain.
    pub fn unexpected(self) -> Taint {
        let module = Self::OUT_OF_TREE.0 | Self::UNSIGNED.0 | Self::UNLOADED_BY_FORCE.0;
        Taint(self.0 & !(module | Self::TEST.0))
    }

    /// Returns the flags that are set here and were not set in `before`.
    pub fn since(self, before: Taint) -> Taint {
        Taint(self.0 & !before.0)
    }

    /// Returns whether no flag is set.
    pub fn is_clean(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for Taint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = Self::LETTERS
            .char_indices()
            .filter(|(bit, _)| self.0 & (1 << bit) != 0);
        write!(f, "{} (", self.0)?;
        for (_, letter) in letters {
            write!(f, "{letter}")?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_trouble() {
        for line in [
            "[   19.1] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[   19.1] WARNING: CPU: 0 PID: 1 at mm/memremap.c:116 memunmap_pages+0x1/0x2",
            "INFO: task umount:123 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rust_kernel: panicked at src/lib.rs:3:5:",
        ] {
            assert!(is_trouble(line), "{line}");
        }
    }

    #[test]
    fn everyday_messages_are_not() {
        for line in [
            "pmem_rs: loading out-of-tree module taints kernel.",
            "pmem_rs: module verification failed: signature and/or required key missing - tainting kernel",
            "nd_pmem btt0.0: No existing arenas",
            "EXT4-fs (pmem0): mounted filesystem r/w with ordered data mode.",
            "kmemleak: Kernel memory leak detector initialized (mem pool available: 15667)",
        ] {
            assert!(!is_trouble(line), "{line}");
        }
    }

    #[test]
    fn a_lack_of_memory_is_trouble_unless_it_is_made() {
        let failure = [
            "ndctl: page allocation failure: order:0, mode:0xcc0(GFP_KERNEL)",
            "Call Trace:",
            "Call Trace:",
        ];
        let log = [
            &failure[..],
            &[NO_MEMORY_FROM_HERE],
            &failure[..],
            &[NO_MEMORY_UNTIL_HERE],
            &failure[..],
        ]
        .concat();
        let places: Vec<usize> = troubles(&log, |line| line)
            .map(|(place, _)| place)
            .collect();
        assert_eq!(places, [1, 2, 6, 9, 10]);
    }

    #[test]
    fn leaks_are_trouble_unless_they_are_planned() {
        let leak = "kmemleak: 145 new suspected memory leaks (see /sys/kernel/debug/kmemleak)";
        let log = [leak, LEAKS_FROM_HERE, leak, "BUG: something else"];
        let places: Vec<usize> = troubles(&log, |line| line)
            .map(|(place, _)| place)
            .collect();
        assert_eq!(places, [0, 3]);
    }

    #[test]
    fn only_the_module_itself_may_taint() {
        let loaded = Taint::parse("12288\n").unwrap();
        assert!(loaded.unexpected().is_clean());
        let warned = Taint::parse("12800").unwrap();
        assert_eq!(warned.unexpected().to_string(), "512 (W)");
        assert!(warned.since(warned).is_clean());
    }
}
