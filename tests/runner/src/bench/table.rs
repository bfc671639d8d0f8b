// SPDX-License-Identifier: GPL-2.0

//! Results as text.

use std::fmt::Write as _;

use anyhow::Result;

use super::figures::{Row, Series};
use super::{COPIES, DRIVER, LINES, WITHOUT_COPIES, WRITTEN};
use crate::report::Subject;

/// The head of the document.
const INTRODUCTION: &str = include_str!("introduction.md");

/// Returns a line for the terminal.
pub fn line(series: &Series) -> String {
    let Some(row) = series.row() else {
        return format!("{:<36} nothing", series.case);
    };
    format!(
        "{:<36} {:>12} {:>12} {:>7}  {}",
        row.case,
        figure(row.nd_pmem, &row.unit),
        figure(row.pmem_rs, &row.unit),
        ratio(row.ratio),
        if row.mode == "count" { &row.unit } else { "" }
    )
}

/// Formats a figure, with its unit if it is a time.
fn figure(figure: Option<f64>, unit: &str) -> String {
    let Some(figure) = figure else {
        return "–".to_owned();
    };
    if unit != "ns" {
        let digits = if figure.fract() == 0.0 { 0 } else { 1 };
        return format!("{figure:.digits$}");
    }
    let (size, unit) = match figure {
        f if f < 1e6 => (f / 1e3, "µs"),
        f if f < 1e9 => (f / 1e6, "ms"),
        f => (f / 1e9, "s"),
    };
    let digits = match size {
        f if f < 10.0 => 2,
        f if f < 100.0 => 1,
        _ => 0,
    };
    format!("{size:.digits$} {unit}")
}

fn ratio(ratio: Option<f64>) -> String {
    ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.3}"))
}

/// Returns the whole document.
pub fn markdown(subject: &Subject, boots: u32, rows: &[Row]) -> Result<String> {
    let mut text = INTRODUCTION.to_owned();
    writeln!(
        text,
        "\nMeasured with commit {} on Linux {}; times in {boots} boots.\n",
        subject.commit, subject.release
    )?;
    counts(&mut text, rows)?;
    times(&mut text, rows)?;
    others(&mut text, rows)?;
    Ok(text)
}

/// Adds a line for each case that was counted.
fn counts(text: &mut String, rows: &[Row]) -> Result<()> {
    let cases: Vec<&str> = rows
        .iter()
        .filter(|row| row.unit == DRIVER)
        .map(|row| row.case.as_str())
        .collect();
    if cases.is_empty() {
        return Ok(());
    }
    text.push_str(
        "## Instructions for each operation\n\n\
         | case | driver: nd_pmem | pmem_rs | ratio \
         | with what it calls: nd_pmem | pmem_rs | ratio \
         | copies: nd_pmem | pmem_rs | lines: nd_pmem | pmem_rs | written: nd_pmem | pmem_rs |\n\
         |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for case in cases {
        let find = |unit: &str| {
            let mut rows = rows.iter();
            rows.find(|row| row.case == case && row.unit == unit)
        };
        let columns = |unit: &str, with_ratio: bool| {
            let row = find(unit);
            let mut columns = match row {
                Some(row) => vec![figure(row.nd_pmem, unit), figure(row.pmem_rs, unit)],
                None => vec!["0".to_owned(), "0".to_owned()],
            };
            if with_ratio {
                columns.push(ratio(row.and_then(|row| row.ratio)));
            }
            columns.join(" | ")
        };
        writeln!(
            text,
            "| {case} | {} | {} | {} | {} | {} |",
            columns(DRIVER, true),
            columns(WITHOUT_COPIES, true),
            columns(COPIES, false),
            columns(LINES, false),
            columns(WRITTEN, false)
        )?;
    }
    text.push('\n');
    Ok(())
}

/// Adds a line for each case that was timed.
fn times(text: &mut String, rows: &[Row]) -> Result<()> {
    if rows.iter().all(|row| row.mode != "time") {
        return Ok(());
    }
    text.push_str(
        "## Time for each operation\n\n| case | nd_pmem | pmem_rs | ratio | low | high |\n\
         |---|---:|---:|---:|---:|---:|\n",
    );
    for row in rows.iter().filter(|row| row.mode == "time") {
        writeln!(text, "| {} |", cells(row))?;
    }
    text.push('\n');
    Ok(())
}

/// Adds a line for each other case.
fn others(text: &mut String, rows: &[Row]) -> Result<()> {
    let known = [DRIVER, WITHOUT_COPIES, COPIES, LINES, WRITTEN];
    let others = rows
        .iter()
        .filter(|row| row.mode == "count" && !known.contains(&row.unit.as_str()));
    for (index, row) in others.enumerate() {
        if index == 0 {
            text.push_str(
                "## Sizes\n\n| case | nd_pmem | pmem_rs | ratio | low | high | unit |\n\
                 |---|---:|---:|---:|---:|---:|---|\n",
            );
        }
        writeln!(text, "| {} | {} |", cells(row), row.unit)?;
    }
    Ok(())
}

fn cells(row: &Row) -> String {
    [
        row.case.clone(),
        figure(row.nd_pmem, &row.unit),
        figure(row.pmem_rs, &row.unit),
        ratio(row.ratio),
        ratio(row.low),
        ratio(row.high),
    ]
    .join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units_for_people() {
        for (time, text) in [
            (512.0, "0.51 µs"),
            (34_567.0, "34.6 µs"),
            (1_234_567.0, "1.23 ms"),
            (2.5e9, "2.50 s"),
        ] {
            assert_eq!(figure(Some(time), "ns"), text);
        }
        assert_eq!(figure(None, "ns"), "–");
        assert_eq!(figure(Some(157.0), DRIVER), "157");
    }
}
