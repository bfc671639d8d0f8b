// SPDX-License-Identifier: GPL-2.0

//! Results as a document.

use figures::Row;
use figures::text::tables;

use crate::report::Subject;

/// The head of the document.
const INTRODUCTION: &str = include_str!("introduction.md");

/// Returns the whole document.
pub fn markdown(subject: &Subject, boots: u32, rows: &[Row]) -> String {
    format!(
        "{INTRODUCTION}\nMeasured with commit {} on Linux {}; times in {boots} boots.\n\n{}",
        subject.commit,
        subject.release,
        tables(rows)
    )
}
