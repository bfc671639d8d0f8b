// SPDX-License-Identifier: GPL-2.0

//! The demonstration: the guest's messages while it runs, and a table at the end.

use std::time::Instant;

use anyhow::Result;

use crate::Setup;
use crate::boot::Bench;
use crate::ktap::{Event, event};
use crate::machine::{Machine, Nvdimm, PLAIN};
use crate::report::{Report, Total};
use crate::suites::Boot;

/// An NVDIMM for each file system, in files that both boots use.
const MACHINE: Machine = Machine {
    nvdimms: &[Nvdimm::kept(512), Nvdimm::kept(512)],
    ..PLAIN
};
const FILE_SYSTEMS: [&str; 2] = ["ext4", "xfs"];

/// Runs the `demo` command. Returns whether all steps passed.
pub fn run(setup: &Setup, seed: u64) -> Result<bool> {
    let start = Instant::now();
    let bench = Bench::new(setup, "demo", seed)?;
    let backing = bench.results.join("demo");
    MACHINE.create_backing(&backing)?;
    println!(
        "A guest with Debian's kernel {} boots under QEMU.",
        bench.subject.release
    );
    println!(
        "It has two NVDIMMs, which are files in {}.",
        backing.display()
    );
    let first = boot(&bench, &backing, &Boot::off("demo_first_boot"))?;
    println!("\nThe guest is switched off, and boots again with the same two files.");
    let second = boot(&bench, &backing, &Boot::off("demo_second_boot"))?;
    MACHINE.remove_backing(&backing)?;

    print_table(&[&first.tests[..], &second.tests[..]].concat());
    let reports = [first, second];
    let failed = reports.iter().map(Report::failed).sum::<u64>();
    for report in reports.iter().filter(|report| report.failed() > 0) {
        report.print();
    }
    let mut total = Total::default();
    reports.iter().for_each(|report| total.add(report));
    let verdict = if failed == 0 {
        "All of it worked"
    } else {
        "Something FAILED"
    };
    println!(
        "\n{verdict}, with {}, in {:.0} s.",
        bench.subject.driver,
        start.elapsed().as_secs_f64()
    );
    println!("{}", total.line());
    Ok(failed == 0)
}

fn boot(bench: &Bench, backing: &std::path::Path, boot: &Boot) -> Result<Report> {
    bench.boot(&MACHINE, backing, boot, |line| match event(line) {
        Some(Event::Running(test)) => println!("\n{}", heading(test)),
        Some(Event::Note(note)) => println!("  {note}"),
        Some(Event::Result { passed: false, .. }) => println!("  FAILED"),
        Some(Event::Result { passed: true, .. }) | None => {}
    })
}

/// Returns the file system that a step is about, and what the step does.
fn split(test: &str) -> (Option<usize>, String) {
    for (index, name) in FILE_SYSTEMS.iter().enumerate() {
        if let Some(step) = test
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix('_'))
        {
            return (Some(index), step.replace('_', " "));
        }
    }
    (None, test.replace('_', " "))
}

fn heading(test: &str) -> String {
    match split(test) {
        (Some(index), step) => format!("{}: {step}", FILE_SYSTEMS[index]),
        (None, step) => step,
    }
}

/// Prints a line for each step, with a column for each file system.
fn print_table(tests: &[(String, bool)]) {
    let mut rows: Vec<(String, [Option<bool>; 2])> = Vec::new();
    for (test, passed) in tests {
        let (column, step) = split(test);
        let row = match rows.iter().position(|(name, _)| *name == step) {
            Some(row) => row,
            None => {
                rows.push((step, [None; 2]));
                rows.len() - 1
            }
        };
        match column {
            Some(column) => rows[row].1[column] = Some(*passed),
            None => rows[row].1 = [Some(*passed); 2],
        }
    }
    let word = |cell: Option<bool>| match cell {
        Some(true) => "ok",
        Some(false) => "FAILED",
        None => "not run",
    };
    println!("\n{:<32} {:<8} {:<8}", "", FILE_SYSTEMS[0], FILE_SYSTEMS[1]);
    for (step, cells) in rows {
        println!("{step:<32} {:<8} {:<8}", word(cells[0]), word(cells[1]));
    }
}
