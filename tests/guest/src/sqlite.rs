// SPDX-License-Identifier: GPL-2.0

//! A SQLite database under `sqlite3`, with a write-ahead log and with reads through a mapping.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::command::{command, expect_failed, run};
use crate::process::{Child, await_mapping};

/// Each commit is durable before it is acknowledged.
const SETUP: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA mmap_size=16777216;\n\
     CREATE TABLE rows(number INTEGER PRIMARY KEY, text TEXT);\n";
/// What the setup prints.
const SETUP_SAYS: [&str; 2] = ["wal", "16777216"];
/// The number of rows in the database file, when the log has been copied into it.
const FIRST: u64 = 200;
/// The number of rows that are inserted one by one before the device may go.
const MORE: u64 = 20;
/// Between two rows.
const PAUSE: Duration = Duration::from_millis(2);
/// The word before the number of acknowledged rows.
const ACKNOWLEDGED: &str = "acknowledged ";
const ENDED: &str = "ended with ";

/// A process that inserts rows until `sqlite3` ends.
pub struct Inserts(Child);

impl Inserts {
    /// Makes a database, and starts to insert rows, each in a transaction of its own.
    pub fn start(database: &Path) -> Result<Inserts> {
        let inserts = Child::start_ready("the process that inserts rows", |link| {
            let mut sqlite = command("sqlite3")
                .args(["-batch", "-bail"])
                .arg(database)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("starting sqlite3")?;
            let mut talk = Talk {
                input: sqlite.stdin.take().context("sqlite3 takes no input")?,
                output: BufReader::new(sqlite.stdout.take().context("sqlite3 says nothing")?),
            };
            talk.set_up()?;
            for number in FIRST + 1.. {
                if !talk.insert(number) {
                    break;
                }
                link.say(&format!("{ACKNOWLEDGED}{number}"))?;
                if number == FIRST + MORE {
                    await_mapping(sqlite.id(), database)?;
                    link.say("ready")?;
                }
                sleep(PAUSE);
            }
            drop(talk);
            let status = sqlite.wait()?;
            link.say(&format!("{ENDED}{status}"))?;
            expect_failed("sqlite3", status)
        })?;
        Ok(Inserts(inserts))
    }

    /// After the device has gone: returns how `sqlite3` has ended, and the number of rows that it
    /// had acknowledged.
    pub fn expect_ended(&mut self, limit: Duration) -> Result<(String, u64)> {
        self.0.expect_done(limit)?;
        let ended = self.0.hear_value(ENDED, limit)?;
        let rows = self.0.hear_value(ACKNOWLEDGED, limit)?;
        Ok((ended, rows.parse()?))
    }
}

/// The conversation with `sqlite3`.
struct Talk {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Talk {
    /// Returns the next line, or none if `sqlite3` has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let len = self.output.read_line(&mut line).ok()?;
        (len > 0).then(|| line.trim_end().to_owned())
    }

    fn set_up(&mut self) -> Result<()> {
        self.input.write_all(SETUP.as_bytes())?;
        for right in SETUP_SAYS {
            let line = self.line();
            ensure!(
                line.as_deref() == Some(right),
                "sqlite3 said {line:?}, expected `{right}`"
            );
        }
        self.input.write_all(b"BEGIN;\n")?;
        for number in 1..=FIRST {
            let text = text(number);
            writeln!(self.input, "INSERT INTO rows VALUES({number}, '{text}');")?;
        }
        self.input
            .write_all(b"COMMIT; PRAGMA wal_checkpoint(TRUNCATE);\n")?;
        let line = self.line();
        ensure!(
            line.as_deref() == Some("0|0|0"),
            "sqlite3 said {line:?} about the checkpoint"
        );
        Ok(())
    }

    /// Inserts a row, and reads an older one. Returns whether `sqlite3` has acknowledged it.
    fn insert(&mut self, number: u64) -> bool {
        let text = text(number);
        let older = format!("SELECT length(text) FROM rows WHERE number = {number} % {FIRST} + 1");
        let statement =
            format!("INSERT INTO rows VALUES({number}, '{text}'); SELECT {number}, ({older});\n");
        self.input.write_all(statement.as_bytes()).is_ok()
            && self.line() == Some(format!("{number}|{}", text.len()))
    }
}

/// The text of a row.
fn text(number: u64) -> String {
    format!("{number:0>200}")
}

/// Checks that a database is sound, that it has all rows that were acknowledged, and at most one
/// more. Returns their number.
pub fn expect_rows(database: &Path, acknowledged: u64) -> Result<u64> {
    let database = database.to_string_lossy();
    let check = "PRAGMA integrity_check; SELECT number, text FROM rows ORDER BY number;";
    let said = run("sqlite3", &["-batch", "-bail", &database, check])?;
    let mut lines = said.lines();
    let verdict = lines.next();
    ensure!(verdict == Some("ok"), "{database}: {verdict:?}");
    let mut found = 0;
    for (number, line) in (1..).zip(lines) {
        ensure!(
            line == format!("{number}|{}", text(number)),
            "{database}: row {number} is `{line}`"
        );
        found = number;
    }
    ensure!(
        (acknowledged..=acknowledged + 1).contains(&found),
        "{database} has {found} rows, and {acknowledged} were acknowledged"
    );
    Ok(found)
}
