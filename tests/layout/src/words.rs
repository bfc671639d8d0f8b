// SPDX-License-Identifier: GPL-2.0

//! The words and the lines of all files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The most columns of a line.
const MOST_COLUMNS: usize = 100;

/// Words for persons. Threads, locks, callers and devices are not persons.
const PERSONS: [&str; 14] = [
    "he",
    "him",
    "himself",
    "his",
    "nobody",
    "she",
    "somebody",
    "someone",
    "anybody",
    "anyone",
    "who",
    "whoever",
    "whom",
    "everybody",
];

/// The syntax of a file, by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `//` begins a comment.
    Rust,
    /// `/*` and `*` begin lines of comments.
    C,
    /// `#` begins a comment.
    Script,
    /// All is prose except blocks of code.
    Markdown,
    /// All is prose.
    Prose,
}

/// A file that is written by hand.
pub struct File {
    path: PathBuf,
    kind: Kind,
}

/// Folders of build results, and of files that are not part of the project.
const SKIPPED: [&str; 4] = ["./.git", "./build", "./.library", "./target"];

/// Finds the files below a folder.
pub fn files(folder: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let walk = walkdir::WalkDir::new(folder)
        .sort_by_file_name()
        .into_iter();
    for entry in
        walk.filter_entry(|entry| SKIPPED.iter().all(|name| entry.path() != Path::new(name)))
    {
        let entry = entry?;
        if !entry.file_type().is_file() {
            continue;
        }
        if let Some(kind) = kind(entry.path())? {
            files.push(File {
                path: entry.into_path(),
                kind,
            });
        }
    }
    Ok(files)
}

fn kind(path: &Path) -> Result<Option<Kind>> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if path.file_name().is_some_and(|name| name == "cover") {
        return Ok(Some(Kind::Prose));
    }
    Ok(match extension {
        Some("rs") => Some(Kind::Rust),
        Some("c" | "h" | "dts") => Some(Kind::C),
        Some("md") => Some(Kind::Markdown),
        Some("sh" | "awk" | "conf" | "service") => Some(Kind::Script),
        Some("4" | "export" | "templates") => Some(Kind::Prose),
        Some(_) => None,
        None => {
            let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let is_script =
                text.starts_with(b"#!") || text.starts_with(b"# ") || text.starts_with(b"//");
            is_script.then_some(Kind::Script)
        }
    })
}

/// Calls `f` for each line of all files.
fn each_line(files: &[File], mut f: impl FnMut(&File, usize, &str)) -> Result<()> {
    for file in files {
        let text = fs::read_to_string(&file.path)
            .with_context(|| format!("reading {}", file.path.display()))?;
        let mut in_code = false;
        for (index, line) in text.lines().enumerate() {
            if file.kind == Kind::Markdown {
                in_code ^= line.trim_start().starts_with("```");
                if in_code {
                    continue;
                }
            }
            // The message of a patch ends here.
            if file.kind == Kind::Prose && line == "---" {
                break;
            }
            f(file, index + 1, line);
        }
    }
    Ok(())
}

/// Returns the lines that are too long. Lines that cannot be broken are allowed: rows of tables and
/// links, string literals in code, and commands in scripts.
pub fn long_lines(files: &[File]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    each_line(files, |file, number, line| {
        let columns = line.replace('\t', "        ").chars().count();
        if columns > MOST_COLUMNS && !may_be_long(file.kind, line) {
            found.push(format!(
                "{}:{number}: {columns} columns",
                file.path.display()
            ));
        }
    })?;
    Ok(found)
}

fn may_be_long(kind: Kind, line: &str) -> bool {
    let line = line.trim_start();
    match kind {
        Kind::Markdown => line.starts_with('|') || line.contains("](") || line.contains("://"),
        Kind::Rust | Kind::C if line.starts_with("//") => {
            let text = line.trim_start_matches(['/', '!', ' ']);
            text.starts_with('|')
                || text.contains("](")
                || text.contains("]: ")
                || text.contains("://")
        }
        Kind::Rust | Kind::C => line.contains('"'),
        Kind::Script => !line.starts_with('#'),
        Kind::Prose => line.contains("://"),
    }
}

/// Returns the lines of comments and documents with words for persons.
pub fn persons(files: &[File]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    each_line(files, |file, number, line| {
        let Some(text) = prose(file.kind, line) else {
            return;
        };
        if let Some(word) = person(text) {
            found.push(format!(
                "{}:{number}: `{word}`: {}",
                file.path.display(),
                line.trim()
            ));
        }
    })?;
    Ok(found)
}

/// Returns the part of a line that is prose.
fn prose(kind: Kind, line: &str) -> Option<&str> {
    match kind {
        Kind::Markdown | Kind::Prose => Some(line),
        Kind::Rust => line.find("//").map(|at| &line[at..]),
        Kind::C => ["/*", " * ", "//"]
            .iter()
            .find_map(|mark| line.find(mark))
            .map(|at| &line[at..]),
        Kind::Script => line.find("# ").map(|at| &line[at..]),
    }
}

/// Returns the first word for a person outside of code.
fn person(text: &str) -> Option<&'static str> {
    text.split('`').step_by(2).find_map(|text| {
        text.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'')
            .find_map(|word| {
                PERSONS
                    .into_iter()
                    .find(|person| word.eq_ignore_ascii_case(person))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persons_are_found_in_prose_only() {
        assert_eq!(person("Wakes whoever waits."), Some("whoever"));
        assert_eq!(person("Nobody waits."), Some("nobody"));
        assert_eq!(person("Runs `who` in the header."), None);
        assert_eq!(prose(Kind::Rust, "let who = 1;"), None);
        assert_eq!(prose(Kind::Rust, "let who = 1; // it"), Some("// it"));
        assert_eq!(prose(Kind::C, "int who; /* one */"), Some("/* one */"));
        assert_eq!(prose(Kind::Script, "echo who"), None);
        assert_eq!(prose(Kind::Prose, "who"), Some("who"));
    }

    #[test]
    fn only_what_can_be_broken_is_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let long = "x".repeat(101);
        let lines = format!(
            "// {long}\nlet a = \"{long}\";\nlet {long};\n/// | {long} |\n//! | {long} |\n"
        );
        fs::write(folder.path().join("a.rs"), lines).unwrap();
        fs::write(
            folder.path().join("b.md"),
            format!("| {long} |\n{long}\n```\n{long}\n```\n"),
        )
        .unwrap();
        let found = long_lines(&files(folder.path()).unwrap()).unwrap();
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
