// SPDX-License-Identifier: GPL-2.0

//! Random sequences: several processes use, unbind and bind three devices concurrently. Each step
//! is drawn from the seed. The errors that a step may have are listed with the step ([`steps`]).
//! Any other error is a failure, and so is a step that does not end.
//!
//! At the end of a round nothing is in use. Then nothing is retired, all devices can be bound, all
//! file systems can be mounted, and all durable data are intact.

mod operations;
mod outcome;
mod steps;
mod target;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::steps::{Step, Worker};
use self::target::{PATIENCE, Provider, Target};
use super::{Suite, Test, notice, suspend};
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::injector::Injector;
use crate::lab::Lab;
use crate::leaks::Holdings;
use crate::process::{Child, expect_no_thread_stuck};
use crate::retired;

pub const SUITE: Suite = Suite {
    name: "sequences",
    tests: &[Test::new("everything_at_once", everything_at_once)
        .within(300)
        .or_as_long_as_asked()],
};

/// The steps of each worker of a round. Besides these there are three workers that write a log
/// each.
const WORKERS: &[&[Step]] = &[
    steps::OF_USERS,
    steps::OF_USERS,
    steps::OF_OWNERS,
    steps::OF_OWNERS,
];
const STEPS: u32 = 12;
/// The providers of the regions, in the order of addresses, and their file systems. There is no xfs
/// where memory fails: the kernel crashes if that happens during its unmount (docs/kernel-bugs.md).
const TARGETS: [(Provider, FileSystem); 3] = [
    (Provider::Injector, Ext4),
    (Provider::Firmware, Ext4),
    (Provider::Virtio, Xfs),
];
/// How long a round may take on a busy machine: all steps of all workers, one after the other.
const ROUND_LIMIT: Duration = Duration::from_secs(240);
/// How long the driver waits for pinned pages, which is less than some are pinned.
const TIMEOUT: Duration = Duration::from_millis(100);

fn everything_at_once(lab: &mut Lab) -> Result<()> {
    let mut targets = Vec::new();
    Injector::new()?;
    for (place, (provider, fs)) in (0..).zip(TARGETS) {
        targets.push(Target::make(lab, place, provider, fs)?);
    }
    // ndctl binds a namespace again at once, which would fail while its range is being freed.
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let (mut rounds, mut tally, mut warm) = (0, Tally::default(), None);
    let start = Instant::now();
    while start.elapsed() < lab.stress || warm.is_none() {
        round(lab, &mut targets, &mut tally).with_context(|| format!("in round {rounds}"))?;
        rounds += 1;
        // In the first half the caches of the kernel reach their size.
        if warm.is_none() && start.elapsed() >= lab.stress / 2 {
            warm = Some((Holdings::now()?, tally.unbinds()));
        }
    }
    println!(
        "measured: {} steps in {rounds} rounds in {} s",
        tally.steps(),
        start.elapsed().as_secs()
    );
    tally.print();
    tally.expect_success()?;
    let (warm, before) = warm.context("there was no round")?;
    warm.expect_no_objects_of(tally.unbinds() - before)?;
    targets.iter().try_for_each(Target::check)
}

/// The number of steps by kind and result.
#[derive(Default)]
struct Tally(BTreeMap<String, BTreeMap<String, u64>>);

impl Tally {
    /// A step that ran fewer times may have found only absent devices.
    const RARE: u64 = 200;

    /// Adds the steps of a worker's log.
    fn add(&mut self, step_log: &str) -> Result<()> {
        for line in step_log.lines() {
            // `12 ms Touch /mnt/0: SIGBUS`
            let (step, end) = line.split_once(": ").context("a step without an end")?;
            let step = step
                .split_whitespace()
                .nth(2)
                .context("an end without a step")?;
            let ends = self.0.entry(step.to_owned()).or_default();
            *ends.entry(end.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.0.values().flat_map(BTreeMap::values).sum()
    }

    /// The number of unbinds.
    fn unbinds(&self) -> u64 {
        ["Unbind", "DisableRegion", "Replug", "Reload"]
            .iter()
            .filter_map(|step| self.0.get(*step)?.get("done"))
            .sum()
    }

    fn expect_success(&self) -> Result<()> {
        for (step, ends) in &self.0 {
            let all: u64 = ends.values().sum();
            ensure!(
                all < Self::RARE || ends.contains_key("done"),
                "none of {all} {step} succeeded"
            );
        }
        Ok(())
    }

    fn print(&self) {
        for (step, ends) in &self.0 {
            let ends: Vec<String> = ends
                .iter()
                .map(|(end, count)| format!("{count} {end}"))
                .collect();
            println!("measured: {step}: {}", ends.join(", "));
        }
    }
}

fn round(lab: &mut Lab, targets: &mut [Target], tally: &mut Tally) -> Result<()> {
    for target in targets.iter() {
        target.mount()?;
    }
    let mut loggers = Vec::new();
    for target in targets.iter() {
        let logged = target.logged;
        let what = format!("the log of {}", target.name());
        loggers.push(Child::start(what, |link| target.log(logged, link))?);
    }
    let mut workers = Vec::new();
    for (worker, steps) in WORKERS.iter().enumerate() {
        let worker = Worker {
            driver: lab.driver,
            targets: &*targets,
            random: ChaCha8Rng::seed_from_u64(lab.random.random()),
            step_log: PathBuf::from(format!("/tmp/worker{worker}")),
        };
        fs::write(&worker.step_log, "")?;
        let what = format!("the worker with the log {}", worker.step_log.display());
        let step_log = worker.step_log.clone();
        let child = Child::start(what, move |_| worker.work(steps, STEPS))?;
        workers.push((child, step_log));
    }
    let deadline = Instant::now() + ROUND_LIMIT;
    let rest = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
    let mut result = Ok(());
    for (child, _) in &mut workers {
        result = result.and(child.expect_done(rest(deadline)));
    }
    let mut logged = Vec::new();
    for logger in &mut loggers {
        let last = logger
            .go()
            .and_then(|()| logger.hear_value("logged ", rest(deadline).max(PATIENCE)))
            .and_then(|last| {
                logger.expect_done(PATIENCE)?;
                Ok(last.parse()?)
            });
        match last {
            Ok(last) => logged.push(last),
            Err(error) => result = result.and(Err(error)),
        }
    }
    result = result.and_then(|()| settle(lab, targets, &logged));
    if let Err(error) = result {
        for (_, step_log) in &workers {
            println!("{}:", step_log.display());
            print!("{}", fs::read_to_string(step_log)?);
        }
        return Err(error).context("its steps are above");
    }
    for (_, step_log) in &workers {
        tally.add(&fs::read_to_string(step_log)?)?;
    }
    expect_no_thread_stuck()
}

/// Releases everything, and checks the final state.
fn settle(lab: &Lab, targets: &mut [Target], logged: &[u64]) -> Result<()> {
    notice::reset()?;
    suspend::reset()?;
    for target in targets.iter() {
        target.unmount_all()?;
    }
    retired::await_none(Duration::from_secs(20))?;
    target::bring_back(lab)?;
    for (target, logged) in targets.iter_mut().zip(logged) {
        target.bind(lab)?;
        ensure!(*logged >= target.logged, "the log has gone backwards");
        target.logged = *logged;
        target.expect_intact()?;
    }
    Ok(())
}
