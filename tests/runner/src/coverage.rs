// SPDX-License-Identifier: GPL-2.0

//! Which lines of the driver the guest tests reach.
//!
//! A plugin (`tests/coverage`) sees which instructions of the module are executed. The debug
//! information of the module says which lines they come from. Inlined code counts for its own line
//! and for the lines of its callers. The compiler also keeps a copy of most inlined functions,
//! which nothing calls. Such copies do not count.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Setup;
use crate::boot::{Bench, seen};
use crate::needs::Platform;
use crate::report::Total;
use crate::suites::{self, Special};
use crate::tool::run as tool;

/// The sections of the module that contain code.
const SECTIONS: [&str; 3] = [".text", ".init.text", ".exit.text"];
/// Prefixes of the paths of the driver's source.
const SOURCES: [&str; 3] = ["src/driver/", "src/abstractions/", "src/pmem_rs.rs"];

/// An instruction: its section and its offset there.
type Place = (String, u64);

/// A line that an instruction was compiled from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    file: String,
    line: u32,
    /// With types and modules.
    function: String,
}

/// An instruction and its lines, the innermost function first.
struct Instruction {
    place: Place,
    origins: Vec<Origin>,
}

/// A line that contains code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    reached: bool,
    /// The function that contains it.
    function: String,
}

/// The lines of each file.
#[derive(Default)]
struct Lines(BTreeMap<String, BTreeMap<u32, Line>>);

impl Lines {
    /// Adds an instruction.
    fn add(&mut self, origins: &[Origin], reached: bool) {
        for origin in origins {
            let file = self.0.entry(origin.file.clone()).or_default();
            let line = file.entry(origin.line).or_default();
            line.reached |= reached;
            // A line may be in several functions, such as one with a closure. The choice must not
            // depend on the order.
            let function = short_name(&origin.function);
            if line.function.is_empty() || function < line.function {
                line.function = function;
            }
        }
    }

    /// Adds all functions.
    fn of(functions: &[Vec<Instruction>], reached: &BTreeSet<Place>) -> Lines {
        let is_reached = |instruction: &&Instruction| reached.contains(&instruction.place);
        let all = functions.iter().flatten().filter(is_reached);
        let origins = all.flat_map(|instruction| &instruction.origins);
        let executed: BTreeSet<&str> = origins.map(|origin| origin.function.as_str()).collect();

        let mut lines = Lines::default();
        for function in functions {
            let outermost = function.iter().find_map(|first| first.origins.last());
            let inlined = outermost.is_some_and(|origin| executed.contains(&*origin.function));
            if inlined && !function.iter().any(|instruction| is_reached(&instruction)) {
                continue;
            }
            for Instruction { place, origins } in function {
                lines.add(origins, reached.contains(place));
            }
        }
        lines
    }
}

/// The number of lines, and how many of them were reached.
#[derive(Clone, Copy, Default)]
struct Share {
    reached: usize,
    lines: usize,
}

impl Share {
    fn of(lines: &BTreeMap<u32, Line>) -> Share {
        Share {
            reached: lines.values().filter(|line| line.reached).count(),
            lines: lines.len(),
        }
    }

    /// A row of a table.
    fn row(self, name: &str) -> String {
        let percent = self.reached as f64 * 100.0 / self.lines.max(1) as f64;
        let Share { reached, lines } = self;
        format!("| {name} | {lines} | {reached} | {percent:.1} % |\n")
    }
}

/// Returns the ranges of lines that were not reached, by function in the order of their first
/// lines. Lines without code do not interrupt a range.
fn not_reached(lines: &BTreeMap<u32, Line>) -> Vec<(String, String)> {
    let mut runs: Vec<(&str, u32, u32)> = Vec::new();
    let mut goes_on = false;
    for (&number, line) in lines {
        match runs.last_mut() {
            _ if line.reached => {}
            Some((function, _, end)) if goes_on && *function == line.function => *end = number,
            _ => runs.push((&line.function, number, number)),
        }
        goes_on = !line.reached;
    }
    let mut functions: Vec<(String, String)> = Vec::new();
    for (function, start, end) in runs {
        let run = if start == end {
            start.to_string()
        } else {
            format!("{start}–{end}")
        };
        match functions.iter_mut().find(|(known, _)| known == function) {
            Some((_, all)) => {
                all.push_str(", ");
                all.push_str(&run);
            }
            None => functions.push((function.to_owned(), run)),
        }
    }
    functions
}

/// Makes the report.
fn describe(lines: &Lines, release: &str, suites: &[&str]) -> String {
    let mut total = Share::default();
    let mut table = String::new();
    let mut rest = String::new();
    for (file, lines) in &lines.0 {
        let share = Share::of(lines);
        total.reached += share.reached;
        total.lines += share.lines;
        table.push_str(&share.row(&format!("`{file}`")));
        let missed = not_reached(lines);
        if !missed.is_empty() {
            let _ = write!(rest, "\n### `{file}`\n\n");
        }
        for (function, runs) in missed {
            let _ = writeln!(rest, "- `{function}`: {runs}");
        }
    }
    format!(
        "Made by `make coverage` on {release} with the suites {}. KUnit, which only the debug kernel has, is not \
         part of it.\n\n\
         | file | lines with code | reached | |\n|---|--:|--:|--:|\n{table}{}\n## Not reached\n{rest}",
        suites.join(", "),
        total.row("**all**"),
    )
}

/// The head of the report.
const INTRODUCTION: &str = include_str!("coverage.md");

/// Boots suites and reports which lines they reach: all, or those that are named.
pub fn run(setup: &Setup, seed: u64, names: &[String]) -> Result<bool> {
    let start = Instant::now();
    let bench = Bench::new(setup, "coverage", seed)?.with_plugin("coverage")?;
    ensure!(
        bench.env.planted.is_none(),
        "coverage is of the stock kernel: the debug kernel's module has tests in it"
    );
    let mut functions = Vec::new();
    for section in SECTIONS {
        functions.extend(read_code(&bench.env.module, section)?);
    }

    let mut total = Total::default();
    let mut reached: BTreeSet<Place> = BTreeSet::new();
    let selection = suites::select(names, &Platform::of(&bench.env)?)?;
    let mut suites = selection.suites;
    if selection.specials.contains(&Special::Ordering) {
        suites.push(&suites::UNJUDGED_ORDERING);
    }
    for suite in &suites {
        let backing = bench.results.join(suite.name);
        suite.machine.create_backing(&backing)?;
        for boot in suite.boots {
            let report = bench.boot(&suite.machine, &backing, boot, |_| {})?;
            report.print();
            total.add(&report);
            reached.extend(seen(&bench.results.join(boot.suite), parse_place)?);
        }
        suite.machine.remove_backing(&backing)?;
    }
    total.print(start.elapsed());
    ensure!(
        !reached.is_empty(),
        "the plugin has seen nothing of the module"
    );

    let lines = Lines::of(&functions, &reached);
    let suites: Vec<&str> = suites.iter().map(|suite| suite.name).collect();
    let text = describe(&lines, &bench.env.release, &suites);
    println!("\n{text}");
    let document = bench.results.join("coverage.md");
    fs::write(&document, format!("{INTRODUCTION}{text}"))
        .with_context(|| format!("writing {}", document.display()))?;
    Ok(total.failed == 0)
}

/// Parses a line of the plugin.
fn parse_place(line: &str) -> Result<Place> {
    let wrong = || format!("not an instruction: `{line}`");
    let (section, offset) = line.split_once('\t').with_context(wrong)?;
    let offset = u64::from_str_radix(offset, 16).with_context(wrong)?;
    Ok((section.to_owned(), offset))
}

/// Returns the functions of a section.
fn read_code(module: &Path, section: &str) -> Result<Vec<Vec<Instruction>>> {
    let mut disassembler = Command::new("objdump");
    disassembler.args(["--disassemble", "--no-show-raw-insn", "--section", section]);
    let listing = tool(disassembler.arg(module))?.stdout;
    let functions = offsets(&String::from_utf8_lossy(&listing));
    let offsets = functions.concat();
    ensure!(!offsets.is_empty(), "{} has no {section}", module.display());

    let mut reader = Command::new("addr2line")
        .args(["--addresses", "--inlines", "--functions", "--demangle"])
        .args(["--section", section, "--exe"])
        .arg(module)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting addr2line")?;
    let mut questions = reader.stdin.take().context("addr2line takes no input")?;
    let mut text = String::new();
    for offset in &offsets {
        writeln!(text, "{offset:#x}")?;
    }
    // addr2line answers while it reads, so that writing and reading must overlap.
    let asking = std::thread::spawn(move || questions.write_all(text.as_bytes()));
    let answers = reader.wait_with_output()?;
    asking.join().ok().context("asking addr2line")??;
    ensure!(answers.status.success(), "addr2line: {}", answers.status);
    let mut found = origins(&String::from_utf8_lossy(&answers.stdout))?;
    let mut instruction = |offset: &u64| {
        let origins = found.remove(offset);
        Ok(Instruction {
            place: (section.to_owned(), *offset),
            origins: origins.with_context(|| format!("addr2line skips {section}+{offset:#x}"))?,
        })
    };
    let functions = functions.iter();
    functions
        .map(|function| function.iter().map(&mut instruction).collect())
        .collect()
}

/// Parses the output of `objdump` into the offsets of each function's instructions. The padding
/// before functions, which is not executed, is skipped.
fn offsets(listing: &str) -> Vec<Vec<u64>> {
    const ROOM: &str = "<__pfx_";
    let mut functions = Vec::new();
    let mut is_room = false;
    for line in listing.lines() {
        if line.ends_with(">:") {
            is_room = line.contains(ROOM);
            functions.push(Vec::new());
        }
        let instruction = line
            .strip_prefix(' ')
            .and_then(|line| line.split_once(":\t"));
        let offset =
            instruction.and_then(|(offset, _)| u64::from_str_radix(offset.trim(), 16).ok());
        if let (Some(offset), Some(function), false) = (offset, functions.last_mut(), is_room) {
            function.push(offset);
        }
    }
    functions.retain(|function| !function.is_empty());
    functions
}

/// Parses the output of `addr2line`: for each address a line with it, and then two lines for each
/// function, the innermost first.
fn origins(text: &str) -> Result<HashMap<u64, Vec<Origin>>> {
    let mut all = HashMap::new();
    let mut current = None;
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x") {
            let address = u64::from_str_radix(address, 16)?;
            current = Some(all.entry(address).or_insert_with(Vec::new));
            continue;
        }
        let place = lines.next().context("a function without a line")?;
        let origins = current.as_mut().context("a function without an address")?;
        origins.extend(origin(line, place));
    }
    Ok(all)
}

/// Returns the origin for a function and a place in a file, if the file is the driver's and the
/// line is known.
fn origin(function: &str, place: &str) -> Option<Origin> {
    let place = place.split(" (discriminator").next()?;
    let (file, line) = place.rsplit_once(':')?;
    let start = SOURCES.iter().find_map(|source| {
        let at = file.find(source)?;
        (at == 0 || file[..at].ends_with('/')).then_some(at)
    })?;
    Some(Origin {
        file: file[start..].to_owned(),
        line: line.parse().ok().filter(|line| *line > 0)?,
        function: function.to_owned(),
    })
}

/// Returns the name of a function without types, modules and closures.
fn short_name(function: &str) -> String {
    let mut depth = 0;
    let mut plain = String::new();
    for letter in function.chars() {
        match letter {
            '<' | '{' => depth += 1,
            '>' | '}' => depth -= 1,
            _ if depth == 0 => plain.push(letter),
            _ => {}
        }
    }
    let last = plain.rsplit("::").find(|part| !part.is_empty());
    last.unwrap_or(function).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_short_names() {
        for (long, short) in [
            ("<pmem_rs::driver::pmem::Pmem>::zero", "zero"),
            ("<a::B as c::D<e::F>>::new::{closure#0}", "new"),
            ("core::ptr::drop_in_place::<a::b::C>", "drop_in_place"),
            ("init_module", "init_module"),
        ] {
            assert_eq!(short_name(long), short);
        }
    }

    #[test]
    fn instructions_are_found_in_a_listing() {
        let listing = "\npmem.ko:     file format elf64-x86-64\n\n\
            0000000000000000 <__pfx_f>:\n   0:\tnop\n\n\
            0000000000000010 <f>:\n  10:\tpush   %rbp\n  11:\tcall   16 <f+0x6>\n\t...\n";
        assert_eq!(offsets(listing), [[0x10, 0x11]]);
    }

    #[test]
    fn only_lines_of_the_driver_are_origins() -> Result<()> {
        let text = "0x0000000000000010\n\
            core::ptr::read\n/usr/lib/rustlib/src/rust/library/core/src/ptr/mod.rs:523\n\
            <pmem_rs::driver::memory::Memory>::new\n/home/me/src/driver/memory.rs:12 \
            (discriminator 3)\n\
            probe\n/home/me/src/driver/binding.rs:?\n\
            0x0000000000000011\n??\n??:0\n";
        let found = origins(text)?;
        let new = Origin {
            file: "src/driver/memory.rs".to_owned(),
            line: 12,
            function: "<pmem_rs::driver::memory::Memory>::new".to_owned(),
        };
        assert_eq!(found, HashMap::from([(0x10, vec![new]), (0x11, vec![])]));
        Ok(())
    }

    #[test]
    fn a_run_ends_with_a_line_that_was_reached_or_a_function() {
        let lines = [
            (1, true, "f"),
            (2, false, "f"),
            (5, false, "f"),
            (6, true, "f"),
            (7, false, "f"),
            (8, false, "g"),
            (10, false, "g"),
        ];
        let lines = lines
            .map(|(number, reached, function)| {
                let function = function.to_owned();
                (number, Line { reached, function })
            })
            .into_iter()
            .collect();
        let owned = |pair: (&str, &str)| (pair.0.to_owned(), pair.1.to_owned());
        let expected = [("f", "2–5, 7"), ("g", "8–10")].map(owned);
        assert_eq!(not_reached(&lines), expected);
    }

    fn instruction(at: u64, origins: &[(u32, &str)]) -> Instruction {
        let origin = |&(line, function): &(u32, &str)| Origin {
            file: "src/driver/dax_device.rs".to_owned(),
            line,
            function: function.to_owned(),
        };
        Instruction {
            place: (".text".to_owned(), at),
            origins: origins.iter().map(origin).collect(),
        }
    }

    /// Returns the lines of these functions, and whether they were reached by instructions at these
    /// places.
    fn lines(functions: &[Vec<Instruction>], reached: &[u64]) -> Vec<(u32, bool)> {
        let reached = reached.iter().map(|at| (".text".to_owned(), *at)).collect();
        let lines = Lines::of(functions, &reached);
        let lines = lines.0.into_values().flatten();
        lines.map(|(number, line)| (number, line.reached)).collect()
    }

    #[test]
    fn a_line_is_reached_if_one_of_its_instructions_is() {
        let f = [1, 2, 3].map(|at| instruction(at, &[(3, "f")]));
        assert_eq!(lines(&[f.into()], &[2]), [(3, true)]);
    }

    /// Except a copy that nothing calls, because it was inlined.
    #[test]
    fn a_function_that_was_not_executed_counts() {
        let f = vec![
            instruction(1, &[(1, "f")]),
            instruction(2, &[(2, "f")]),
            instruction(3, &[(3, "f")]),
        ];
        let caller = vec![
            instruction(4, &[(9, "caller")]),
            instruction(5, &[(2, "f"), (9, "caller")]),
            instruction(6, &[(3, "f"), (9, "caller")]),
        ];
        let all = [f, caller];
        assert_eq!(
            lines(&all, &[4]),
            [(1, false), (2, false), (3, false), (9, true)]
        );
        assert_eq!(lines(&all, &[4, 5]), [(2, true), (3, false), (9, true)]);
    }
}
