// SPDX-License-Identifier: GPL-2.0

//! Which lines of the driver the guest tests reach.
//!
//! A plugin (`tests/coverage`) sees which instructions of the module are executed; the debug information of the
//! module says which lines they come from. Code that was inlined counts for the line that it was written in, and for
//! those that called it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::Setup;
use crate::check::{Bench, seen};
use crate::report::Total;
use crate::suites;
use crate::tool::run as tool;

/// The sections of the module that have code.
const SECTIONS: [&str; 3] = [".text", ".init.text", ".exit.text"];
/// What paths of the driver's source begin with.
const SOURCES: [&str; 3] = ["src/driver/", "src/abstractions/", "src/pmem_rs.rs"];

/// An instruction: its section, and the offset in it.
type Place = (String, u64);

/// What an instruction was made of, one of the lines.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Origin {
    file: String,
    line: u32,
    function: String,
}

/// A line that has code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Line {
    reached: bool,
    /// The function that it is in.
    function: String,
}

/// The lines of each file.
#[derive(Default)]
struct Lines(BTreeMap<String, BTreeMap<u32, Line>>);

impl Lines {
    /// Takes note of an instruction.
    fn add(&mut self, origins: &[Origin], reached: bool) {
        for origin in origins {
            let file = self.0.entry(origin.file.clone()).or_default();
            let line = file.entry(origin.line).or_default();
            line.reached |= reached;
            // A line may be in several, such as a function and a closure in it. Always take the same one.
            if line.function.is_empty() || origin.function < line.function {
                line.function.clone_from(&origin.function);
            }
        }
    }
}

/// How many of how many lines.
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

/// The runs of lines that were not reached, by function in the order of their first lines. Lines without code
/// between them do not interrupt a run.
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

/// Makes the text for people.
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

/// What precedes the numbers in the document.
const INTRODUCTION: &str = include_str!("coverage.md");

/// Boots suites, and says which lines they reach: all, or those that are named. With all of them the document is
/// written anew.
pub fn run(setup: &Setup, seed: u64, docs: &Path, names: &[String]) -> Result<bool> {
    let start = Instant::now();
    let bench = Bench::new(setup, "coverage", seed)?.with_plugin("coverage")?;
    ensure!(
        bench.env.planted.is_none(),
        "coverage is of the stock kernel: the debug kernel's module has tests in it"
    );
    let mut code = Vec::new();
    for section in SECTIONS {
        code.extend(read_code(&bench.env.module, section)?);
    }

    let mut total = Total::default();
    let mut reached: BTreeSet<Place> = BTreeSet::new();
    let suites = suites::select(names, false)?.suites;
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

    let mut lines = Lines::default();
    for (place, origins) in &code {
        lines.add(origins, reached.contains(place));
    }
    let suites: Vec<&str> = suites.iter().map(|suite| suite.name).collect();
    let text = describe(&lines, &bench.env.release, &suites);
    println!("\n{text}");
    let mut places = vec![bench.results.join("coverage.md")];
    if names.is_empty() && total.failed == 0 {
        places.push(docs.join("coverage.md"));
    }
    for place in &places {
        fs::write(place, format!("{INTRODUCTION}{text}"))
            .with_context(|| format!("writing {}", place.display()))?;
    }
    Ok(total.failed == 0)
}

/// Reads a line of the plugin.
fn parse_place(line: &str) -> Result<Place> {
    let wrong = || format!("not an instruction: `{line}`");
    let (section, offset) = line.split_once('\t').with_context(wrong)?;
    let offset = u64::from_str_radix(offset, 16).with_context(wrong)?;
    Ok((section.to_owned(), offset))
}

/// All instructions of a section that come from lines of the driver.
fn read_code(module: &Path, section: &str) -> Result<Vec<(Place, Vec<Origin>)>> {
    let mut disassembler = Command::new("objdump");
    disassembler.args(["--disassemble", "--no-show-raw-insn", "--section", section]);
    let listing = tool(disassembler.arg(module))?.stdout;
    let offsets = offsets(&String::from_utf8_lossy(&listing));
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
    // It answers while it reads, so that both must go on.
    let asking = std::thread::spawn(move || questions.write_all(text.as_bytes()));
    let answers = reader.wait_with_output()?;
    asking.join().ok().context("asking addr2line")??;
    ensure!(answers.status.success(), "addr2line: {}", answers.status);
    let found = origins(&String::from_utf8_lossy(&answers.stdout))?;
    ensure!(
        found.len() == offsets.len(),
        "addr2line knows {} of {} instructions",
        found.len(),
        offsets.len()
    );
    let place = |offset| (section.to_owned(), offset);
    Ok(found
        .into_iter()
        .map(|(offset, origins)| (place(offset), origins))
        .collect())
}

/// The offsets of the instructions in what `objdump` prints, but for the room before functions, which is not to be
/// executed.
fn offsets(listing: &str) -> Vec<u64> {
    const ROOM: &str = "<__pfx_";
    let mut is_room = false;
    let mut offsets = Vec::new();
    for line in listing.lines() {
        if line.ends_with(">:") {
            is_room = line.contains(ROOM);
        }
        let instruction = line
            .strip_prefix(' ')
            .and_then(|line| line.split_once(":\t"));
        let offset =
            instruction.and_then(|(offset, _)| u64::from_str_radix(offset.trim(), 16).ok());
        offsets.extend(offset.filter(|_| !is_room));
    }
    offsets
}

/// Reads what `addr2line` answers: for each address that, and then two lines for each function, the innermost
/// first.
fn origins(text: &str) -> Result<Vec<(u64, Vec<Origin>)>> {
    let mut all: Vec<(u64, Vec<Origin>)> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(address) = line.strip_prefix("0x") {
            all.push((u64::from_str_radix(address, 16)?, Vec::new()));
            continue;
        }
        let place = lines.next().context("a function without a line")?;
        let (_, origins) = all.last_mut().context("a function without an address")?;
        origins.extend(origin(line, place));
    }
    Ok(all)
}

/// What a function and a place in a file are, if the file is of the driver and the line is known.
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
        function: short_name(function),
    })
}

/// The name of a function without types, modules and closures.
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
            ("<pmem_rs::driver::pmem::Pmem>::heal", "heal"),
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
        assert_eq!(offsets(listing), [0x10, 0x11]);
    }

    #[test]
    fn only_lines_of_the_driver_are_origins() -> Result<()> {
        let text = "0x0000000000000010\n\
            core::ptr::read\n/usr/lib/rustlib/src/rust/library/core/src/ptr/mod.rs:523\n\
            <pmem_rs::driver::range::PmemRange>::new\n/home/me/src/driver/range.rs:12 (discriminator 3)\n\
            probe\n/home/me/src/driver/binding.rs:?\n\
            0x0000000000000011\n??\n??:0\n";
        let found = origins(text)?;
        let new = Origin {
            file: "src/driver/range.rs".to_owned(),
            line: 12,
            function: "new".to_owned(),
        };
        assert_eq!(found, [(0x10, vec![new]), (0x11, vec![])]);
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

    /// However often it is not reached elsewhere.
    #[test]
    fn a_line_is_reached_if_one_of_its_instructions_is() {
        let origin = Origin {
            file: "src/driver/dax.rs".to_owned(),
            line: 3,
            function: "f".to_owned(),
        };
        let mut lines = Lines::default();
        for reached in [false, true, false] {
            lines.add(std::slice::from_ref(&origin), reached);
        }
        let share = Share::of(&lines.0["src/driver/dax.rs"]);
        assert_eq!((share.reached, share.lines), (1, 1));
    }
}
