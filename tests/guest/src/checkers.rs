// SPDX-License-Identifier: GPL-2.0

//! The checkers of a debug kernel: which of them the running kernel has, and whether they work.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::command::run;
use crate::kmemleak;

/// The file with the configuration of the running kernel.
const CONFIG: &str = "/proc/config.gz";
const LOCKDEP: &str = "/proc/lockdep_stats";

/// Configuration symbols of the checkers. `qemu/debug.config` sets all of them.
const KNOWN: &[&str] = &[
    "KASAN_GENERIC",
    "KASAN_VMALLOC",
    "UBSAN",
    "PROVE_LOCKING",
    "PROVE_RCU",
    "DEBUG_ATOMIC_SLEEP",
    "DEBUG_KMEMLEAK",
    "DEBUG_VM",
    "DEBUG_LIST",
    "DEBUG_OBJECTS",
    "DETECT_HUNG_TASK",
    "WQ_WATCHDOG",
    "RUST_DEBUG_ASSERTIONS",
    "RUST_OVERFLOW_CHECKS",
    "KUNIT",
];

/// Returns the checkers that the running kernel was built with; none if its configuration cannot be
/// read.
pub fn configured() -> Result<Vec<&'static str>> {
    if !Path::new(CONFIG).exists() {
        return Ok(Vec::new());
    }
    let config = run("busybox", &["zcat", CONFIG])?;
    let is_set = |symbol: &&&str| {
        let line = format!("CONFIG_{symbol}=y");
        config.lines().any(|candidate| candidate == line)
    };
    Ok(KNOWN.iter().filter(is_set).copied().collect())
}

/// Returns the checkers that are missing, and those that have switched themselves off, as some do
/// after their first report.
pub fn off() -> Result<Vec<String>> {
    let configured = configured()?;
    let missing = KNOWN.iter().filter(|symbol| !configured.contains(symbol));
    let mut off: Vec<String> = missing
        .map(|symbol| format!("{symbol} is not configured"))
        .collect();
    let lockdep = fs::read_to_string(LOCKDEP).unwrap_or_default();
    if !is_on(&lockdep) {
        off.push("lockdep does not check locks".to_owned());
    }
    if let Err(error) = kmemleak::scan() {
        off.push(format!("kmemleak does not scan: {error:#}"));
    }
    // Generic KASAN is code that the compiler has added. That code calls this function.
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    if !symbols.lines().any(|line| line.ends_with(" kasan_report")) {
        off.push("KASAN is not built in".to_owned());
    }
    Ok(off)
}

/// Whether the statistics of lockdep say that lockdep is on.
fn is_on(statistics: &str) -> bool {
    statistics
        .lines()
        .filter_map(|line| line.trim().strip_prefix("debug_locks:"))
        .any(|value| value.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdep_state_is_parsed() {
        assert!(is_on(
            " max locking depth:   12\n debug_locks:                             1\n"
        ));
        assert!(!is_on(
            " debug_locks:                             0\n\n zapped classes: 1\n"
        ));
        assert!(!is_on(""));
    }
}
