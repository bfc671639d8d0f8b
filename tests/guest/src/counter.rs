// SPDX-License-Identifier: GPL-2.0

//! Talks to the plugin that counts instructions (`tests/counter`), on machines that have it.

#[cfg(target_arch = "x86_64")]
pub mod known;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::kallsyms::{Symbol, symbols};
use crate::plugin;
use crate::sysfs;

/// Functions of the kernel that copy, clear or flush memory. Their instructions are counted
/// separately.
const COPIES: &[&str] = &[
    "__memcpy_flushcache",
    "_copy_from_iter_flushcache",
    "__copy_user_flushcache",
    "arch_wb_cache_pmem",
    "clean_cache_range",
    "clear_page_erms",
    "clear_page_orig",
    "clear_page_rep",
    "copy_mc_enhanced_fast_string",
    "copy_mc_fragile",
    "copy_mc_to_kernel",
    "memcpy",
    "__memcpy",
    "memcpy_orig",
    "memmove",
    "__memmove",
    "memset",
    "__memset",
    "memset_orig",
    "rep_movs_alternative",
    "rep_stos_alternative",
];
/// The function of pmem_rs that writes zeroes.
const ZEROES: &str = "16zero_past_caches";
/// The name under which [`IO_URING_CODE`] is learnt, as if it was a module.
pub const IO_URING: &str = "io_uring";
/// The functions of the kernel that call all others for requests of io_uring: the system call, and
/// the thread that executes a request which must not wait and would.
const IO_URING_CODE: &[&str] = &["__x64_sys_io_uring_enter", "io_wq_worker"];
/// The section with the kernel's entry points for interrupts and exceptions.
const ENTRY: [&str; 2] = ["__entry_text_start", "__entry_text_end"];

/// The file in which [`learn`] stores the lines for the plugin, one set for each module, for other
/// processes.
const LEARNT: &str = "/run/counter";

fn say(line: &str) {
    plugin::say("counter", line);
}

/// Counts what `work` makes the driver do, under a label.
pub fn counted<T>(label: &str, work: impl FnOnce() -> T) -> T {
    say("start");
    let result = work();
    say(&format!("stop {label}"));
    result
}

/// Looks up where the code of these modules is, and what else [`watch`] needs. The modules must
/// stay loaded.
pub fn learn(modules: &[&str]) -> Result<()> {
    // What begins at each address: code of a module, a copy function, or another symbol that ends
    // the preceding one.
    let symbols = symbols()?;
    let mut starts: Vec<(u64, Option<&str>)> = Vec::new();
    let mut entry = [None; 2];
    for Symbol {
        address,
        name,
        module,
    } in &symbols
    {
        let what = match module {
            None if COPIES.contains(&name.as_str()) => Some("copy"),
            None if IO_URING_CODE.contains(&name.as_str()) => Some(IO_URING),
            None => None,
            // Its name is mangled.
            Some(_) if name.contains(ZEROES) => Some("copy"),
            Some(module) => modules.iter().find(|wanted| *wanted == module).copied(),
        };
        starts.push((*address, what));
        for (found, wanted) in entry.iter_mut().zip(ENTRY) {
            if name == wanted {
                *found = Some(*address);
            }
        }
    }
    // Several names may have one address.
    starts.sort_by_key(|&(address, what)| (address, what.is_none()));
    starts.dedup_by_key(|&mut (address, _)| address);
    let ranges = |wanted: &str, kind: &str| -> Result<String> {
        let mut orders = String::new();
        for pair in starts.windows(2) {
            match *pair {
                [(start, Some(what)), (end, _)] if what == wanted => {
                    writeln!(orders, "{kind} {start:x} {end:x}")?;
                }
                _ => {}
            }
        }
        ensure!(!orders.is_empty(), "the kernel has no code of {wanted}");
        Ok(orders)
    };
    let [Some(start), Some(end)] = entry else {
        anyhow::bail!("the kernel has no {ENTRY:?}");
    };
    let copies = ranges("copy", "copy")?;
    fs::create_dir_all(LEARNT)?;
    for module in modules {
        let driver = ranges(module, "driver")?;
        let orders = format!("entry {start:x} {end:x}\n{copies}{driver}");
        fs::write(Path::new(LEARNT).join(module), orders)?;
    }
    Ok(())
}

/// Tells the plugin that the driver is this module, of those that were given to [`learn`].
pub fn watch(module: &str) -> Result<()> {
    let orders = sysfs::read(Path::new(LEARNT).join(module))?;
    say("forget");
    orders.lines().for_each(say);
    Ok(())
}
