// SPDX-License-Identifier: GPL-2.0

//! Compares both drivers: each cell removes a device while it is in use, and judges the users and
//! the kernel.
//!
//! A cell that fails on the in-tree driver usually crashes the kernel. Therefore every cell has its
//! own guest there, which ends with the first oops.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::boot::Bench;
use crate::guest::Limits;
use crate::ktap::{Event, event};
use crate::machine::MAX_COMMAND_LINE;
use crate::needs::Platform;
use crate::report::{Report, Subject};
use crate::suites::{self, Boot};
use crate::tool::run as run_tool;
use crate::{Driver, Setup};

/// The suites whose tests are the cells.
const SUITES: &[&str] = &[
    "revoke_ext4",
    "revoke_ext4_nojournal",
    "revoke_xfs",
    "revoke_xfs_rmap",
    "revoke_xfs_reflink",
    "revoke_erofs",
    "revoke_special",
    "revoke_cxl",
];
/// The suite whose tests are the reproducers of `docs/kernel-bugs.md`.
const BUGS: &str = "kernel_bugs";

/// The prefix of the reason why a test failed.
const FAILURE_MARK: &str = "failed: ";

/// The first oops has all information, so the guest ends with it.
const UNTIL_OOPS: &str = "oops=panic";
/// The in-tree driver hangs if there is no line for so long. A test detects a hang itself after 45
/// s, but cleaning up after the test may hang as well.
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(60),
    total: Duration::from_secs(180),
};

/// How many guests of the in-tree driver run in parallel. Most of them wait for something that
/// hangs.
const GUESTS: usize = 2;
const NO_PANIC: &str = "no worker panics";

/// The largest sum of the lengths of the names of the cells of a guest. They are in its command
/// line, which has other words, too.
const NAMES: usize = MAX_COMMAND_LINE / 2;

/// The result of a cell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "verdict", content = "reason")]
enum Verdict {
    Holds,
    Fails(String),
    /// The removal waits for users of the memory, and names them on the console.
    Waits(String),
    /// The driver lacks the feature that the cell is about.
    DoesNotApply(String),
}

impl Verdict {
    /// Returns the text for the table.
    fn markdown(&self) -> String {
        match self {
            Verdict::Holds => "holds".to_owned(),
            Verdict::Fails(reason) => {
                // The table leaves out in which kernel function a process waits.
                let reason = reason.split("; its state is").next().unwrap_or_default();
                format!("**{}**", reason.replace('|', "\\|"))
            }
            Verdict::Waits(message) => format!("waits: \"{message}\""),
            Verdict::DoesNotApply(_) => "–".to_owned(),
        }
    }
}

/// The result of a cell on both drivers.
#[derive(Serialize)]
struct Row {
    suite: &'static str,
    cell: String,
    nd_pmem: Option<Verdict>,
    pmem_rs: Option<Verdict>,
}

#[derive(Serialize)]
struct Comparison<'a> {
    subjects: &'a [Subject; 2],
    rows: &'a [Row],
}

fn bench(setup: &Setup, driver: Driver, command: &str, seed: u64) -> Result<Bench> {
    let setup = Setup {
        driver,
        results: setup.results.join(command),
        ..setup.clone()
    };
    Bench::new(&setup, driver.name(), seed)
}

/// Makes a bench for guests that run one test and are expected to die.
fn fragile_bench(setup: &Setup, command: &str, seed: u64) -> Result<Bench> {
    let mut bench = bench(setup, Driver::NdPmem, command, seed)?;
    bench.kernel_words = UNTIL_OOPS;
    bench.limits = LIMITS;
    Ok(bench)
}

/// Returns the tests of a suite, as the guest's program lists them.
pub fn tests_of(suite: &str) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.with_file_name("guest");
    let output = run_tool(Command::new(program).args(["list", suite]))?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Runs the `compare` command: all cells, or those whose names contain one of `wanted`. Returns
/// whether all of them hold with pmem_rs. If nothing was left out, the table is also written to
/// `docs`. On the kernel with the patches of `upstream/` the table is another document.
pub fn run(setup: &Setup, seed: u64, docs: &Path, wanted: &[String]) -> Result<bool> {
    let start = Instant::now();
    let mut rows = Vec::new();
    let ours = bench(setup, Driver::PmemRs, "compare", seed)?;
    ensure!(
        ours.env.planted.is_none(),
        "the debug kernel is too slow for the cells; leave out KERNEL_BUILD=debug"
    );
    let platform = Platform::of(&ours.env)?;
    for &suite in SUITES {
        if let Some(reason) = platform.reason_to_skip(suite) {
            println!("{suite} is left out: {reason}");
            continue;
        }
        for cell in tests_of(suite)? {
            if wanted.is_empty() || wanted.iter().any(|word| cell.contains(word.as_str())) {
                rows.push(Row {
                    suite,
                    cell,
                    nd_pmem: None,
                    pmem_rs: None,
                });
            }
        }
    }
    ensure!(!rows.is_empty(), "no cell is called like {wanted:?}");
    let mut theirs = fragile_bench(setup, "compare", seed)?;
    let [document, introduction] = if is_patched(&ours.subject) {
        ["compare-patched.md", INTRODUCTION_OF_PATCHED]
    } else {
        ["compare.md", INTRODUCTION]
    };
    let results = fs::canonicalize(&setup.results)?;
    println!(
        "{} cells on {}, seed {seed}, results in {}/{document}",
        rows.len(),
        ours.subject.release,
        results.display()
    );
    let subjects = [&theirs.subject, &ours.subject].map(Subject::clone);
    let keep = |rows: &[Row]| -> Result<()> {
        let text = markdown(&ours.subject, rows)?;
        fs::write(results.join(document), format!("{introduction}\n{text}"))?;
        let comparison = Comparison {
            subjects: &subjects,
            rows,
        };
        let json = File::create(results.join("compare.json"))?;
        Ok(serde_json::to_writer_pretty(json, &comparison)?)
    };

    for &suite in SUITES {
        let mut suites = rows.chunk_by_mut(|a, b| a.suite == b.suite);
        let cells = suites.find(|cells| cells[0].suite == suite);
        let batches = batches(cells.unwrap_or_default());
        for (number, batch) in batches.into_iter().enumerate() {
            // Each guest keeps its logs.
            let mut ours = ours.clone();
            ours.results.push(format!("pmem_rs/{number}"));
            many(&ours, suite, batch)?;
        }
        keep(&rows)?;
    }
    theirs.results.push("nd_pmem");
    let (next, shared) = (AtomicUsize::new(0), Mutex::new(&mut rows));
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let (suite, cell) = match shared.lock().expect(NO_PANIC).get(index) {
                Some(row) => (row.suite, row.cell.clone()),
                None => return Ok(()),
            };
            let mut theirs = theirs.clone();
            theirs.results.push(&cell);
            let verdict = one(&theirs, suite, &cell)?;
            println!("{cell:<44} {}", verdict.markdown());
            let mut rows = shared.lock().expect(NO_PANIC);
            rows[index].nd_pmem = Some(verdict);
            keep(&rows)?;
        }
    };
    thread::scope(|scope| {
        let workers = [(); GUESTS].map(|()| scope.spawn(work));
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect(NO_PANIC))
    })?;
    let text = markdown(&ours.subject, &rows)?;
    println!("\n{text}");
    if wanted.is_empty() {
        fs::write(docs.join(document), format!("{introduction}\n{text}"))?;
    }
    println!("It took {} minutes.", start.elapsed().as_secs() / 60);
    Ok(rows
        .iter()
        .all(|row| !matches!(row.pmem_rs, Some(Verdict::Fails(_)))))
}

/// Splits the cells of a suite into those of one guest each.
fn batches(mut cells: &mut [Row]) -> Vec<&mut [Row]> {
    let mut batches = Vec::new();
    while !cells.is_empty() {
        let mut bytes = 0;
        let fits = |row: &&Row| {
            bytes += row.cell.len() + ",".len();
            bytes <= NAMES
        };
        let count = cells.iter().take_while(fits).count().max(1);
        let (batch, rest) = cells.split_at_mut(count);
        batches.push(batch);
        cells = rest;
    }
    batches
}

/// Runs cells of a suite in one guest, on pmem_rs, which survives them.
fn many(bench: &Bench, suite: &'static str, rows: &mut [Row]) -> Result<()> {
    let only: Vec<String> = rows.iter().map(|row| row.cell.clone()).collect();
    let (report, mut outcomes) = boot(bench, suite, &only)?;
    for row in rows.iter_mut() {
        let reason = "the guest died in an earlier cell";
        let outcome = outcomes
            .remove(&row.cell)
            .unwrap_or_else(|| Verdict::Fails(reason.to_owned()));
        row.pmem_rs = Some(outcome);
    }
    // A failure that no test detected happened after the last one.
    if let (true, Some(trouble)) = (report.failures.is_empty(), report.troubles.first()) {
        if let Some(last) = rows.last_mut() {
            last.pmem_rs = Some(Verdict::Fails(first_line(trouble)));
        }
    }
    for row in rows {
        if let Some(verdict) = &row.pmem_rs {
            println!("{:<44} {}", row.cell, verdict.markdown());
        }
    }
    Ok(())
}

/// Runs a cell in a separate guest.
fn one(bench: &Bench, suite: &'static str, cell: &str) -> Result<Verdict> {
    let (report, mut outcomes) = boot(bench, suite, &[cell.to_owned()])?;
    if let (Some(verdict), 0) = (outcomes.remove(cell), report.failed()) {
        return Ok(verdict);
    }
    let reason = reason(bench, &report, suite)?;
    let console = fs::read(bench.results.join(suite).join("console.log"))?;
    Ok(match wait(&String::from_utf8_lossy(&console)) {
        Some(message) if is_about_removal(&reason) => Verdict::Waits(message),
        _ => Verdict::Fails(reason),
    })
}

/// Whether a test failed because the removal of the device has not ended (`Way::go` of the guest's
/// program).
fn is_about_removal(reason: &str) -> bool {
    reason.starts_with("going away (") && reason.contains("has not ended within")
}

/// Returns what a removal waited for last, as nd_pmem says it with the patches of `upstream/`.
fn wait(console: &str) -> Option<String> {
    let messages = console
        .lines()
        .filter_map(|line| line.split_once("removal waits for "));
    messages.last().map(|(_, what)| what.trim().to_owned())
}

/// Boots, and returns the result of each test that began.
fn boot(
    bench: &Bench,
    suite: &'static str,
    only: &[String],
) -> Result<(Report, HashMap<String, Verdict>)> {
    let machine = suites::find(suite).map_or(&suites::RESERVED, |known| &known.machine);
    let mut outcomes = HashMap::new();
    let backing = bench.results.join(suite);
    let report = bench.boot_some(machine, &backing, &Boot::off(suite), only, |line| {
        if let Some(Event::Result { passed: true, name }) = event(line) {
            let verdict = match line.split_once(" # SKIP ") {
                Some((_, why)) => Verdict::DoesNotApply(why.to_owned()),
                None => Verdict::Holds,
            };
            outcomes.insert(name.to_owned(), verdict);
        }
    })?;
    for failure in &report.failures {
        let reason = said(&failure.diagnostics).unwrap_or("it gave no reason".to_owned());
        outcomes.insert(failure.test.clone(), Verdict::Fails(reason));
    }
    Ok((report, outcomes))
}

/// Returns why a guest with a single cell failed: the first complaint of its kernel, or else of the
/// test.
fn reason(bench: &Bench, report: &Report, suite: &str) -> Result<String> {
    let console = fs::read(bench.results.join(suite).join("console.log"))?;
    let failure = report.failures.first();
    let test = failure.and_then(|failure| said(&failure.diagnostics));
    if let Some(complaint) = complaint(&String::from_utf8_lossy(&console)) {
        return Ok(complaint);
    }
    Ok(match (test, report.troubles.first()) {
        (Some(test), _) => test,
        (None, Some(trouble)) => first_line(trouble),
        (None, None) => "it gave no reason".to_owned(),
    })
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Returns why a test failed: its own reason, or the one that the guest's program gives.
fn said(diagnostics: &[String]) -> Option<String> {
    let mut notes = diagnostics.iter();
    if let Some(reason) = notes.find_map(|note| note.strip_prefix(FAILURE_MARK)) {
        let mut more = notes.skip_while(|note| *note != "Caused by:").skip(1);
        return Some(match more.next() {
            Some(cause) => format!("{reason}: {}", cause.trim()),
            None => reason.to_owned(),
        });
    }
    let mut notes = diagnostics.iter();
    notes
        .find(|note| note.starts_with("the test ") || note.starts_with("the kernel "))
        .cloned()
}

/// Whether a line of a console is a complaint of the kernel. Reports of long waits are excluded,
/// because the test describes them better, and so is the answer to the runner's NMI.
fn is_complaint(line: &str) -> bool {
    let waits = [
        "blocked for more than",
        "Call Trace:",
        "Tainted:",
        "NMI: Not continuing",
    ];
    klog::is_trouble(line) && !waits.iter().any(|piece| line.contains(piece))
}

/// Returns the first complaint of a kernel on its console, and the function in which it happened.
fn complaint(console: &str) -> Option<String> {
    let mut lines = console.lines().skip_while(|line| !is_complaint(line));
    let first = lines.next()?;
    let text = first
        .split_once("] ")
        .map_or(first, |(_, text)| text)
        .trim();
    let place = lines
        .find_map(|line| line.split_once("RIP: 0010:"))
        .and_then(|(_, place)| place.split('+').next());
    Some(match place {
        Some(place) => format!("{}, in {place}", without_numbers(text)),
        None => without_numbers(text),
    })
}

/// Removes addresses, which differ from run to run.
fn without_numbers(text: &str) -> String {
    let words = text.split(' ');
    let words = words.take_while(|word| *word != "address:" && *word != "CPU:");
    let text = words.collect::<Vec<_>>().join(" ");
    text.trim_end_matches(" for")
        .trim_end_matches(',')
        .to_owned()
}

/// The head of the document.
const INTRODUCTION: &str = include_str!("compare.md");
/// The same for the kernel with the patches of `upstream/`.
const INTRODUCTION_OF_PATCHED: &str = include_str!("compare_patched.md");

/// Returns the table and its sums.
fn markdown(subject: &Subject, rows: &[Row]) -> Result<String> {
    let mut text = format!(
        "Measured with commit {} on Linux {}.\n\n| cell | nd_pmem | pmem_rs |\n|---|---|---|\n",
        subject.commit, subject.release
    );
    let word = |verdict: &Option<Verdict>| {
        let verdict = verdict.as_ref();
        verdict.map_or("not run".to_owned(), Verdict::markdown)
    };
    for row in rows {
        let (theirs, ours) = (word(&row.nd_pmem), word(&row.pmem_rs));
        writeln!(text, "| {} | {theirs} | {ours} |", row.cell)?;
    }
    text.push('\n');
    let theirs = rows.iter().filter_map(|row| row.nd_pmem.as_ref());
    writeln!(text, "{}", summary("nd_pmem", theirs))?;
    let ours = rows.iter().filter_map(|row| row.pmem_rs.as_ref());
    writeln!(text, "{}", summary("pmem_rs", ours))?;
    Ok(text)
}

fn summary<'a>(driver: &str, verdicts: impl Iterator<Item = &'a Verdict>) -> String {
    let (mut hold, mut wait, mut all) = (0, 0, 0);
    for verdict in verdicts {
        hold += u32::from(*verdict == Verdict::Holds);
        wait += u32::from(matches!(verdict, Verdict::Waits(_)));
        all += u32::from(!matches!(verdict, Verdict::DoesNotApply(_)));
    }
    let mut text = format!("{driver}: {hold} of {all} cells hold");
    if wait > 0 {
        text += &format!(", and in {wait} the removal waits, and says for what");
    }
    text
}

/// A bug, and how it is detected.
struct Bug {
    test: &'static str,
    /// Whether `upstream/` has a patch for it.
    has_patch: bool,
    what: &'static str,
    shows: fn(&Report, &str) -> bool,
}

const KNOWN_BUGS: &[Bug] = &[
    Bug {
        test: "memory_map_is_freed_under_mappings",
        has_patch: true,
        what: "an oops after unbind, when a process unmaps",
        shows: |_, console| console.contains("Oops"),
    },
    Bug {
        test: "entries_outlive_the_memory_map",
        has_patch: true,
        what: "an oops in dax_layout_busy_page_range, at umount",
        shows: |_, console| {
            complaint(console).is_some_and(|text| text.contains("in dax_layout_busy_page"))
        },
    },
    Bug {
        test: "xfs_hangs_with_rmap",
        has_patch: true,
        what: "unbind does not return",
        shows: |report, _| says(report, "unbind has not ended"),
    },
    Bug {
        test: "labels_make_the_kernel_warn",
        has_patch: false,
        what: "a warning when a namespace is bound",
        shows: |_, console| console.contains("unsupported sector size: 520"),
    },
    Bug {
        test: "name_of_a_disk_that_is_gone",
        has_patch: false,
        what: "a warning when the disk that came back is mounted",
        shows: |_, console| console.contains("cannot create duplicate filename '/fs/ext4/"),
    },
    Bug {
        test: "namespace_comes_after_its_region_went",
        has_patch: false,
        what: "a namespace of a region without driver",
        shows: |report, _| says(report, "came after the region had gone"),
    },
    Bug {
        test: "cachestat_reads_dax_entries",
        has_patch: true,
        what: "an oops in cachestat",
        shows: |_, console| console.contains("Oops") && console.contains("cachestat+"),
    },
    Bug {
        test: "dax_device_stays_for_a_second_holder",
        has_patch: true,
        what: "a DAX device with another number",
        shows: |report, _| says(report, "the old DAX device still exists"),
    },
    Bug {
        test: "write_to_a_shared_page_that_is_mapped",
        has_patch: false,
        what: "a warning of the DAX core during the write",
        shows: |_, console| warns(console, "fs/dax.c:", "dax_iomap_rw"),
    },
    Bug {
        test: "page_takes_the_place_of_a_shared_pmd",
        has_patch: false,
        what: "a BUG when the file is evicted",
        shows: |_, console| console.contains("kernel BUG at fs/inode.c"),
    },
    Bug {
        test: "extents_are_swapped_under_a_mapping",
        has_patch: false,
        what: "a warning when page caches are truncated",
        shows: |_, console| warns(console, "mm/truncate.c:", "xfs_swap_extents"),
    },
    Bug {
        test: "boot_loader_is_swapped_under_a_mapping",
        has_patch: false,
        what: "a warning when page caches are truncated",
        shows: |_, console| warns(console, "mm/truncate.c:", "__ext4_ioctl"),
    },
    Bug {
        test: "file_is_closed_after_its_module_went",
        has_patch: true,
        what: "an oops when a debugfs file is closed",
        shows: |_, console| console.contains("Oops") && console.contains("full_proxy_release+"),
    },
    Bug {
        test: "copy_of_a_shared_block_is_too_long",
        has_patch: false,
        what: "bytes of the old blocks behind the new ones",
        shows: |report, _| says(report, "behind the new blocks were overwritten"),
    },
];

/// Whether the kernel has warned in a file, called by a function.
fn warns(console: &str, file: &str, caller: &str) -> bool {
    let warned = |line: &str| line.contains("WARNING: ") && line.contains(file);
    let mut lines = console.lines().skip_while(|line| !warned(line));
    lines.any(|line| line.contains(&format!(" {caller}+")))
}

/// Whether a test failed with these words.
fn says(report: &Report, words: &str) -> bool {
    let mut notes = report
        .failures
        .iter()
        .flat_map(|failure| &failure.diagnostics);
    notes.any(|note| note.contains(words))
}

/// Whether the kernel has the patches of `upstream/`.
fn is_patched(subject: &Subject) -> bool {
    subject.release.ends_with("-patched")
}

/// Runs the `kernel-bugs` command. Returns whether the in-tree driver has all bugs, but for those
/// that the kernel has patches for.
pub fn bugs(setup: &Setup, seed: u64) -> Result<bool> {
    let mut bench = fragile_bench(setup, BUGS, seed)?;
    let results = bench.results.clone();
    println!(
        "bugs of nd_pmem on {}, see docs/kernel-bugs.md",
        bench.subject.release
    );
    let mut all = true;
    for (number, bug) in (1..).zip(KNOWN_BUGS) {
        bench.results = results.join(bug.test);
        let (report, _) = boot(&bench, BUGS, &[bug.test.to_owned()])?;
        let console = fs::read(bench.results.join(BUGS).join("console.log"))?;
        let console = String::from_utf8_lossy(&console);
        let is_there = (bug.shows)(&report, &console);
        let seen = if is_there {
            let more = complaint(&console).map_or(String::new(), |text| format!(" ({text})"));
            format!("{}{more}", bug.what)
        } else if report.failed() == 0 {
            "the bug is not there".to_owned()
        } else {
            reason(&bench, &report, BUGS)?
        };
        // Without the bug the test has to pass.
        let (is_right, expected) = if bug.has_patch && is_patched(&bench.subject) {
            (report.failed() == 0, "no bug")
        } else {
            (is_there, bug.what)
        };
        if is_right {
            println!("ok {number} {}: {seen}", bug.test);
        } else {
            all = false;
            println!(
                "not ok {number} {}: expected {expected}, but {seen}",
                bug.test
            );
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_names_its_place() {
        let console = "[    1.0] fine\n\
            [    9.5] BUG: unable to handle page fault for address: ffffea0004008034\n\
            [    9.6] #PF: supervisor read access in kernel mode\n\
            [    9.7] RIP: 0010:dax_layout_busy_page_range+0x1b4/0x350\n";
        assert_eq!(
            complaint(console).unwrap(),
            "BUG: unable to handle page fault, in dax_layout_busy_page_range"
        );
        assert_eq!(complaint("[    1.0] fine\n"), None);
    }

    #[test]
    fn the_cells_of_a_guest_fit_in_its_command_line() {
        let row = |letters: usize| Row {
            suite: "revoke_special",
            cell: "x".repeat(letters),
            nd_pmem: None,
            pmem_rs: None,
        };
        let lengths = |letters: &[usize]| {
            let mut rows: Vec<Row> = letters.iter().copied().map(row).collect();
            let mut lengths = Vec::new();
            for batch in batches(&mut rows) {
                lengths.push(batch.len());
            }
            lengths
        };
        assert!(lengths(&[]).is_empty());
        assert_eq!(lengths(&[9, NAMES - 11]), [2]);
        assert_eq!(lengths(&[9, NAMES - 10, 1, 9]), [1, 2, 1]);
        assert_eq!(lengths(&[NAMES, 1]), [1, 1]);
    }

    #[test]
    fn a_wait_is_told_from_a_hang() {
        let console = "[    1.0] fine\n\
            [   35.2] nd_pmem pfn0.0: removal waits for 1 pinned pages\r\n\
            [   65.2] nd_pmem pfn0.0: removal waits for 2 pinned pages\r\n";
        assert_eq!(wait(console).unwrap(), "2 pinned pages");
        assert!(is_about_removal(
            "going away (Unbind) has not ended within 45s; its state is D"
        ));
        assert!(!is_about_removal("the reader has not ended within 5s"));
        assert_eq!(wait("[    1.0] fine\n"), None);
        let verdicts = [
            Verdict::Holds,
            Verdict::Waits("1 pinned pages".to_owned()),
            Verdict::Fails("it hangs".to_owned()),
            Verdict::DoesNotApply("nd_pmem has none".to_owned()),
        ];
        assert_eq!(
            summary("nd_pmem", verdicts.iter()),
            "nd_pmem: 1 of 3 cells hold, and in 1 the removal waits, and says for what"
        );
    }

    #[test]
    fn reasons_come_with_their_causes() {
        let notes = |text: &str| -> Vec<String> { text.lines().map(str::to_owned).collect() };
        let notes = |text| said(&notes(text));
        assert_eq!(
            notes("gone after 12 ms\nfailed: it hangs\nkernel: x").unwrap(),
            "it hangs"
        );
        let text = "failed: in cycle 1\nCaused by:\n    no space\nkernel: x";
        assert_eq!(notes(text).unwrap(), "in cycle 1: no space");
        assert_eq!(
            notes("gone\nthe test was killed by SIGBUS").unwrap(),
            "the test was killed by SIGBUS"
        );
        assert_eq!(notes("gone"), None);
    }
}
