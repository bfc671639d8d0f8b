// SPDX-License-Identifier: GPL-2.0

//! Compares the writes that a guest acknowledged as durable with the data after the guest was
//! killed.
//!
//! The guest's part is `tests/guest/src/suites/crash`. A block has one writer, which numbers its
//! writes. An acknowledged write, or a newer one of the same writer, must be there. A write that
//! was not acknowledged may be there, be missing, or be torn, unless the writer guarantees blocks
//! that are never torn.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// The guarantee of a writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Duty {
    /// Acknowledged writes are durable.
    Torn,
    /// In addition, blocks are never torn.
    Whole,
    /// The writer acknowledges writes that are not durable. The check must detect it.
    Lies,
}

/// The state of a writer.
#[derive(Debug)]
struct Writer {
    name: String,
    duty: Duty,
    /// The oldest write that each block may hold.
    owed: BTreeMap<u32, u32>,
    /// The result of the current check: the oldest and the newest write in each block.
    found: BTreeMap<u32, (u32, u32)>,
    /// Acknowledged writes to blocks since the last check.
    unchecked: u64,
}

/// The sums of a campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks with an acknowledged write, or a newer one.
    pub verified: u64,
    /// Blocks that are torn and may be.
    pub torn: u64,
    /// Lost writes of lying writers.
    pub lies: u64,
    /// Complete checks.
    pub checks: u64,
}

/// All acknowledgements of a campaign, and the results of its checks.
#[derive(Debug, Default)]
pub struct Ledger {
    writers: BTreeMap<u32, Writer>,
    pub tally: Tally,
    /// The losses and other failures, one line each.
    pub losses: Vec<String>,
}

impl Ledger {
    /// Processes a line of a guest. Other lines are ignored. Fails if a line about a writer is
    /// invalid.
    pub fn line(&mut self, line: &str) -> Result<()> {
        let Some(words) = line.strip_prefix("# ") else {
            return Ok(());
        };
        self.words(words)
            .with_context(|| format!("the guest says `{line}`"))
    }

    fn words(&mut self, words: &str) -> Result<()> {
        let words: Vec<&str> = words.split(' ').collect();
        match words[..] {
            ["writer", id, name, duty] => self.add_writer(id.parse()?, name, duty)?,
            ["checking"] => self.writers.values_mut().for_each(|writer| {
                writer.found.clear();
            }),
            ["found", id, block, oldest, newest] => {
                let writer = self.writer(id)?;
                let seen = (oldest.parse()?, newest.parse()?);
                writer.found.insert(block.parse()?, seen);
            }
            ["damaged", id, block, at] => {
                let name = self.writer(id)?.name.clone();
                self.losses.push(format!(
                    "{name}: block {block} holds at {at} data that was never written"
                ));
            }
            ["checked"] => self.compare(),
            ["forget", id] => self.writer(id)?.owed.clear(),
            ["durable", id, first, count, write] => {
                let (first, count, write): (u32, u32, u32) =
                    (first.parse()?, count.parse()?, write.parse()?);
                let writer = self.writer(id)?;
                let end = first.checked_add(count).context("there is no such block")?;
                for block in first..end {
                    let before = writer.owed.insert(block, write);
                    ensure!(
                        before.is_none_or(|before| before < write),
                        "{}: write {write} is acknowledged after write {before:?}",
                        writer.name
                    );
                    writer.unchecked += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn writer(&mut self, id: &str) -> Result<&mut Writer> {
        self.writers
            .get_mut(&id.parse()?)
            .context("there is no such writer")
    }

    /// Adds a writer. It must be the same in all boots.
    fn add_writer(&mut self, id: u32, name: &str, duty: &str) -> Result<()> {
        let duty = match duty {
            "torn" => Duty::Torn,
            "whole" => Duty::Whole,
            "lies" => Duty::Lies,
            _ => bail!("unknown duty"),
        };
        let writer = self.writers.entry(id).or_insert_with(|| Writer {
            name: name.to_owned(),
            duty,
            owed: BTreeMap::new(),
            found: BTreeMap::new(),
            unchecked: 0,
        });
        ensure!(
            writer.name == name && writer.duty == duty,
            "it was {} before",
            writer.name
        );
        Ok(())
    }

    /// Compares the blocks that were found with the acknowledged writes. From then on the writes
    /// that were found count as acknowledged, because they were read from the medium.
    fn compare(&mut self) {
        self.tally.checks += 1;
        for writer in self.writers.values_mut() {
            let found = std::mem::take(&mut writer.found);
            for (block, owed) in &writer.owed {
                let (oldest, newest) = found.get(block).copied().unwrap_or_default();
                if oldest >= *owed {
                    continue;
                }
                match writer.duty {
                    Duty::Lies => self.tally.lies += 1,
                    _ => self.losses.push(format!(
                        "{}: write {owed} of block {block} was acknowledged, and there are writes {oldest} to {newest}",
                        writer.name
                    )),
                }
            }
            for (block, (oldest, newest)) in &found {
                if oldest == newest {
                    continue;
                }
                match writer.duty {
                    Duty::Whole => self.losses.push(format!(
                        "{}: block {block} is torn between writes {oldest} and {newest}",
                        writer.name
                    )),
                    _ => self.tally.torn += 1,
                }
            }
            if writer.duty != Duty::Lies {
                self.tally.verified += writer.unchecked;
            }
            writer.unchecked = 0;
            writer.owed = found
                .into_iter()
                .map(|(block, (oldest, _))| (block, oldest))
                .collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the losses of a writer with this duty after these lines of a guest.
    fn ledger(duty: &str, lines: &str) -> Ledger {
        let mut ledger = Ledger::default();
        ledger
            .line(&format!("# writer 3 ext4_fsync {duty}"))
            .unwrap();
        for line in lines.split("; ") {
            ledger.line(&format!("# {line}")).unwrap();
        }
        ledger
    }

    fn losses(duty: &str, lines: &str) -> Vec<String> {
        ledger(duty, lines).losses
    }

    #[test]
    fn what_is_there_or_was_replaced_is_verified() {
        let seen = ledger(
            "torn",
            "durable 3 10 2 1; durable 3 10 1 2; at work; \
             checking; found 3 10 2 2; found 3 11 4 4; found 3 12 4 4; checked",
        );
        assert!(seen.losses.is_empty());
        assert_eq!(seen.tally.verified, 3);
        assert_eq!(seen.tally.checks, 1);
    }

    #[test]
    fn an_older_block_and_one_that_is_missing_are_lost() {
        let old = losses(
            "torn",
            "durable 3 10 1 5; checking; found 3 10 4 4; checked",
        );
        assert_eq!(
            old,
            ["ext4_fsync: write 5 of block 10 was acknowledged, and there are writes 4 to 4"]
        );
        let missing = losses("torn", "durable 3 10 1 5; checking; checked");
        assert_eq!(missing.len(), 1);
    }

    #[test]
    fn what_was_lost_stays_lost_until_a_check_is_complete() {
        let lines = "durable 3 10 1 5; checking; found 3 10 5 5; checking; checked";
        assert_eq!(losses("torn", lines).len(), 1);
        assert!(
            losses(
                "torn",
                "durable 3 10 1 5; checking; writer 3 ext4_fsync torn"
            )
            .is_empty()
        );
    }

    #[test]
    fn only_what_was_not_acknowledged_may_be_torn() {
        let torn = ledger(
            "torn",
            "durable 3 10 1 5; checking; found 3 10 5 6; checked",
        );
        assert!(torn.losses.is_empty());
        assert_eq!(torn.tally.torn, 1);
        let acknowledged = "durable 3 10 1 6; checking; found 3 10 5 6; checked";
        assert_eq!(losses("torn", acknowledged).len(), 1);
        assert_eq!(
            losses("whole", "checking; found 3 10 5 6; checked"),
            ["ext4_fsync: block 10 is torn between writes 5 and 6"]
        );
    }

    #[test]
    fn what_a_check_has_found_does_not_go_again() {
        let lines = "checking; found 3 10 7 7; checked; checking; found 3 10 6 6; checked";
        assert_eq!(losses("torn", lines).len(), 1);
    }

    #[test]
    fn what_nobody_has_written_is_a_loss() {
        assert_eq!(
            losses("lies", "damaged 3 10 64"),
            ["ext4_fsync: block 10 holds at 64 data that was never written"]
        );
    }

    #[test]
    fn who_lies_is_found_out_and_told_from_the_others() {
        let seen = ledger(
            "lies",
            "durable 3 10 2 5; checking; found 3 10 4 4; checked",
        );
        assert!(seen.losses.is_empty());
        assert_eq!((seen.tally.lies, seen.tally.verified), (2, 0));
    }

    #[test]
    fn what_may_go_is_not_missed() {
        assert!(losses("torn", "durable 3 10 1 5; forget 3; checking; checked").is_empty());
    }

    #[test]
    fn nonsense_is_noticed() {
        let mut ledger = ledger("torn", "durable 3 10 1 5");
        for line in [
            "# durable 4 10 1 6",
            "# durable 3 10 1 5",
            "# durable 3 x 1 6",
            "# writer 3 xfs_fsync torn",
            "# writer 5 xfs_fsync perhaps",
        ] {
            assert!(ledger.line(line).is_err(), "{line}");
        }
        // Other lines are ignored.
        ledger.line("    # running checks_and_writes").unwrap();
        ledger.line("# checkers: KASAN").unwrap();
    }
}
