// SPDX-License-Identifier: GPL-2.0

//! Lints of the layout of the code and of its words.
//!
//! Each subcommand is one lint. It prints its findings, and fails if there are any. It runs in the
//! root of the checkout.

mod graph;
mod source;
mod words;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

/// Checks the layout of the sources.
#[derive(Parser)]
enum Lint {
    /// Files in src/ do not use each other in a cycle.
    Cycles,
    /// Print the graph of files that use each other, for Graphviz.
    Graph,
    /// Files in src/ have at most 500 lines without their tests.
    Sizes,
    /// No file name is used in both src/driver and src/abstractions.
    Names,
    /// Lines have at most 100 columns.
    Columns,
    /// Comments and documents have no words for persons.
    Words,
}

fn main() -> Result<ExitCode> {
    let found = match Lint::parse() {
        Lint::Cycles => graph::cycles(&source::modules("src".as_ref())?),
        Lint::Graph => {
            print!("{}", graph::dot(&source::modules("src".as_ref())?));
            Vec::new()
        }
        Lint::Sizes => source::large_files(&source::modules("src".as_ref())?),
        Lint::Names => source::shared_names(&source::modules("src".as_ref())?),
        Lint::Columns => words::long_lines(&words::files(".".as_ref())?)?,
        Lint::Words => words::persons(&words::files(".".as_ref())?)?,
    };
    for line in &found {
        println!("{line}");
    }
    Ok(ExitCode::from(u8::from(!found.is_empty())))
}
