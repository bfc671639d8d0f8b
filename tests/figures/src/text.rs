// SPDX-License-Identifier: GPL-2.0

//! Results as text.

use crate::{
    CACHE_MISSES, COPIES, COUNTER, CYCLES, DRIVER, INSTRUCTIONS, LINES, Row, Series,
    WITHOUT_COPIES, WRITTEN,
};

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
        if row.mode == "time" { "" } else { &row.unit }
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

/// Returns the tables of all figures.
pub fn tables(rows: &[Row]) -> String {
    let mut text = String::new();
    counts(&mut text, rows);
    times(&mut text, rows);
    counters(&mut text, rows);
    others(&mut text, rows);
    text
}

/// The figure of a case in one unit.
fn find<'a>(rows: &'a [Row], case: &str, unit: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.case == case && row.unit == unit)
}

/// The columns of a case in one unit.
fn columns(rows: &[Row], case: &str, unit: &str, with_ratio: bool) -> String {
    let row = find(rows, case, unit);
    let mut columns = match row {
        Some(row) => vec![figure(row.nd_pmem, unit), figure(row.pmem_rs, unit)],
        None => vec!["0".to_owned(), "0".to_owned()],
    };
    if with_ratio {
        columns.push(ratio(row.and_then(|row| row.ratio)));
    }
    columns.join(" | ")
}

/// Adds a line for each case that was counted.
fn counts(text: &mut String, rows: &[Row]) {
    for (index, row) in rows.iter().filter(|row| row.unit == DRIVER).enumerate() {
        if index == 0 {
            text.push_str(
                "## Instructions for each operation\n\n\
                 | case | driver: nd_pmem | pmem_rs | ratio \
                 | with what it calls: nd_pmem | pmem_rs | ratio \
                 | copies: nd_pmem | pmem_rs | lines: nd_pmem | pmem_rs \
                 | written: nd_pmem | pmem_rs |\n\
                 |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            );
        }
        let columns = |unit, with_ratio| columns(rows, &row.case, unit, with_ratio);
        let cells = [
            columns(DRIVER, true),
            columns(WITHOUT_COPIES, true),
            columns(COPIES, false),
            columns(LINES, false),
            columns(WRITTEN, false),
        ];
        *text += &format!("| {} | {} |\n", row.case, cells.join(" | "));
    }
    end(text);
}

/// Ends a table, if there is one.
fn end(text: &mut String) {
    if !text.is_empty() && !text.ends_with("\n\n") {
        text.push('\n');
    }
}

/// Adds a line for each case in which counters of the CPU were read.
fn counters(text: &mut String, rows: &[Row]) {
    let mut cases: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.mode == COUNTER) {
        if !cases.contains(&row.case.as_str()) {
            cases.push(&row.case);
        }
    }
    for (index, case) in cases.iter().enumerate() {
        if index == 0 {
            text.push_str(
                "## Counters of the CPU for each operation, in the kernel\n\n\
                 | case | cycles: nd_pmem | pmem_rs | ratio \
                 | cache misses: nd_pmem | pmem_rs | ratio \
                 | instructions: nd_pmem | pmem_rs | ratio |\n\
                 |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            );
        }
        let cells = [CYCLES, CACHE_MISSES, INSTRUCTIONS].map(|unit| match find(rows, case, unit) {
            Some(_) => columns(rows, case, unit, true),
            None => "– | – | –".to_owned(),
        });
        *text += &format!("| {case} | {} |\n", cells.join(" | "));
    }
    end(text);
}

/// Adds a line for each case that was timed.
fn times(text: &mut String, rows: &[Row]) {
    let times = rows.iter().filter(|row| row.mode == "time");
    for (index, row) in times.enumerate() {
        if index == 0 {
            text.push_str(
                "## Time for each operation\n\n\
                 | case | nd_pmem | pmem_rs | ratio | low | high |\n\
                 |---|---:|---:|---:|---:|---:|\n",
            );
        }
        *text += &format!("| {} |\n", cells(row));
    }
    end(text);
}

/// Adds a line for each other case.
fn others(text: &mut String, rows: &[Row]) {
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
        *text += &format!("| {} | {} |\n", cells(row), row.unit);
    }
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

    fn row(mode: &str, unit: &str, figures: [f64; 2]) -> Row {
        let series = Series {
            rounds: vec![figures.map(Some); 6],
            ..Series::new("flush", mode, unit)
        };
        series.row().expect("there are figures")
    }

    #[test]
    fn each_kind_of_figure_has_a_table() {
        let rows = [
            row("time", "ns", [2000.0, 1000.0]),
            row(COUNTER, CYCLES, [400.0, 300.0]),
            row(COUNTER, INSTRUCTIONS, [800.0, 400.0]),
            row("count", "KiB", [4.0, 8.0]),
        ];
        let text = tables(&rows);
        for line in [
            "| flush | 2.00 µs | 1.00 µs | 0.500 | 0.500 | 0.500 |",
            "| flush | 400 | 300 | 0.750 | – | – | – | 800 | 400 | 0.500 |",
            "| flush | 4 | 8 | 2.000 | 2.000 | 2.000 | KiB |",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert_eq!(text.matches("## ").count(), 3, "{text}");
        assert_eq!(text.matches("\n\n## ").count(), 2, "{text}");
    }

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
