// SPDX-License-Identifier: GPL-2.0

//! Kills guests in the middle of writes, at times that derive from the seed, and checks in the next
//! boot that all acknowledged data is there. Every boot but the first checks the data of the
//! previous one, and then writes more.

use std::fs::File;
use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::boot::Bench;
use crate::guest::Cut;
use crate::ledger::{Ledger, Tally};
use crate::report::Report;
use crate::selftest::Findings;
use crate::suites::{self, Boot, Power, Special};

/// How often a guest is killed if no duration is given.
const ROUNDS: u64 = 3;
/// The longest time that a guest writes, and the shortest time that it takes to recover.
const MOST: Duration = Duration::from_millis(2500);
/// In one of so many boots the guest is killed while it recovers and checks.
const EARLY_EVERY: u64 = 8;
/// How many lost writes are shown.
const SHOWN: usize = 20;

/// Returns a random number for a seed and a round, by splitmix64.
fn chance(seed: u64, round: u64) -> u64 {
    let mut mixed = seed ^ round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for factor in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(factor);
    }
    mixed ^ (mixed >> 31)
}

/// Returns when the guest is killed in a round.
fn cut(seed: u64, round: u64, patience: u32) -> Cut {
    let most = MOST * patience;
    let after = Duration::from_millis(chance(seed, round) % (most.as_millis() as u64));
    let early = round % EARLY_EVERY == EARLY_EVERY - 1;
    Cut {
        line: if early { "# checking" } else { "# at work" },
        after,
    }
}

/// Runs the campaign. Every expectation is a test.
pub fn run(bench: &Bench) -> Result<Report> {
    let machine = &suites::FOUR_KEPT;
    let dir = bench.results.join(Special::Crash.name());
    machine.create_backing(&dir)?;
    let mut log = File::create(dir.join("rounds.log"))?;
    let mut ledger = Ledger::default();
    let mut boots = Vec::new();
    let mut troubles = Vec::new();
    let mut nonsense = Vec::new();

    let start = Instant::now();
    let goes_on = |round| match bench.stress_seconds {
        Some(seconds) => start.elapsed() < Duration::from_secs(seconds),
        None => round < ROUNDS,
    };
    let mut round = 0;
    loop {
        let more = round == 0 || goes_on(round);
        let cut = cut(bench.subject.seed, round, bench.env.patience());
        let boot = match (round, more) {
            (0, _) => Boot {
                suite: "crash_first",
                end: Power::Lost(cut),
            },
            (_, true) => Boot {
                suite: "crash_again",
                end: Power::Lost(cut),
            },
            (_, false) => Boot::off("crash_last"),
        };
        let report = bench.in_round(round).boot(machine, &dir, &boot, |line| {
            if let Err(error) = ledger.line(line) {
                nonsense.push(format!("{error:#}"));
            }
        })?;
        writeln!(
            log,
            "round {round}: {} for {:.0} s, killed {:?} after `{}`: {:?}",
            boot.suite, report.seconds, cut.after, cut.line, ledger.tally
        )?;
        let failures = report.failures.iter().map(|failure| {
            let said = failure.diagnostics.join("\n    | ");
            format!("{}: {said}", failure.test)
        });
        troubles.extend(report.troubles.iter().cloned().chain(failures));
        boots.push(report);
        if !more || !troubles.is_empty() || !ledger.losses.is_empty() || !nonsense.is_empty() {
            break;
        }
        round += 1;
    }

    let Tally {
        verified,
        torn,
        lies,
        checks,
    } = ledger.tally;
    let well = troubles.is_empty() && ledger.losses.is_empty() && nonsense.is_empty();
    let reproduce = |mut seen: Vec<String>| {
        seen.truncate(SHOWN);
        seen.push(format!(
            "in round {round} with seed {}; the NVDIMMs are kept in {}",
            bench.subject.seed,
            dir.display()
        ));
        seen
    };
    let mut findings = Findings::default();
    findings.expect(
        "every_boot_recovers",
        troubles.is_empty(),
        reproduce(troubles),
    );
    let lost = std::mem::take(&mut ledger.losses);
    findings.expect(
        "nothing_acknowledged_is_lost",
        lost.is_empty(),
        reproduce(lost),
    );
    findings.expect(
        "the_guest_talks_sense",
        nonsense.is_empty(),
        reproduce(nonsense),
    );
    findings.expect("there_was_something_to_lose", verified > 0, Vec::new());
    findings.expect("a_lie_is_noticed", lies > 0, Vec::new());

    let mut report = findings.report(Special::Crash.name(), boots)?;
    report.measured = vec![format!(
        "{round} guests killed while they wrote: {verified} acknowledged blocks verified in {checks} checks, \
         {torn} torn while they were written, {lies} lies noticed"
    )];
    if well {
        machine.remove_backing(&dir)?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_time_derive_from_the_seed_and_differ() {
        let times = |seed| -> Vec<Duration> { (0..50).map(|n| cut(seed, n, 1).after).collect() };
        assert_eq!(times(1), times(1));
        assert_ne!(times(1), times(2));
        let (shortest, longest) = (times(3).into_iter().min(), times(3).into_iter().max());
        assert!(shortest.unwrap() < MOST / 8 && longest.unwrap() > MOST * 7 / 8);
    }
}
