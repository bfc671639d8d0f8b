// SPDX-License-Identifier: GPL-2.0

//! The `check` command: runs suites, several in a boot, and guests side by side.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::boot::Bench;
use crate::needs::Platform;
use crate::report::{Report, Total};
use crate::suites::{self, Selection, Special, Suite};
use crate::{Setup, counting, crash, ktap, ordering, selftest};

/// How many suites share a boot at most. A larger number saves little time, and parallel guests
/// finish less evenly.
const SUITES_PER_BOOT: usize = 4;

/// A unit of work for a worker.
enum Job {
    Special(Special),
    /// The boots of a suite.
    Boots(&'static Suite),
    /// Suites that share a boot.
    Shared(Vec<&'static Suite>),
}

impl Job {
    /// The suites that count as failed if the job is not run.
    fn names(&self) -> Vec<&'static str> {
        match self {
            Job::Special(special) => vec![special.name()],
            Job::Boots(suite) => vec![suite.name],
            Job::Shared(suites) => suites.iter().map(|suite| suite.name).collect(),
        }
    }

    /// A measure of how long the job takes: its suites, or its boots if there are more.
    fn len(&self) -> usize {
        match self {
            Job::Special(_) => 1,
            Job::Boots(suite) => suite.boots.len(),
            Job::Shared(suites) => suites.len(),
        }
    }

    fn is_alone(&self) -> bool {
        matches!(self, Job::Boots(suite) if suite.alone)
    }
}

/// Makes jobs of the selection. Those with more suites or boots come first, because a long job that
/// began last would run alone at the end. A suite that is run in part has its own boot.
fn jobs(selection: Selection, only: &[String]) -> Vec<Job> {
    let mut jobs: Vec<Job> = selection.specials.into_iter().map(Job::Special).collect();
    for suite in selection.suites {
        let fitting = jobs.iter_mut().find_map(|job| match job {
            Job::Shared(suites)
                if suites.len() < SUITES_PER_BOOT && suites[0].can_share_boot(suite) =>
            {
                Some(suites)
            }
            _ => None,
        });
        match fitting {
            Some(suites) => suites.push(suite),
            None if only.is_empty() && suite.can_share_boot(suite) => {
                jobs.push(Job::Shared(vec![suite]));
            }
            None => jobs.push(Job::Boots(suite)),
        }
    }
    jobs.sort_by_key(|job| Reverse(job.len()));
    jobs
}

/// A message of a worker about a suite.
enum Outcome {
    Begun(&'static str),
    Done(Box<Report>),
    NotRun(&'static str),
}

/// The state that all workers share.
struct Run<'a> {
    bench: &'a Bench,
    only: &'a [String],
    /// The time after which no guest starts, and at which running guests are ended.
    deadline: Option<SystemTime>,
}

impl Run<'_> {
    /// Returns the bench for a guest that starts now, or none after the deadline.
    fn bench(&self) -> Option<Bench> {
        let mut bench = self.bench.clone();
        if let Some(deadline) = self.deadline {
            let left = deadline.duration_since(SystemTime::now()).ok()?;
            bench.limits.total = bench.limits.total.min(left);
        }
        Some(bench)
    }

    fn job(&self, job: Job, out: &Sender<Outcome>) -> Result<()> {
        let Some(bench) = self.bench() else {
            for name in job.names() {
                out.send(Outcome::NotRun(name))?;
            }
            return Ok(());
        };
        // A shared boot says itself which suite it begins.
        if let Job::Special(_) | Job::Boots(_) = job {
            for name in job.names() {
                out.send(Outcome::Begun(name))?;
            }
        }
        match job {
            Job::Special(special) => out.send(Outcome::Done(Box::new(match special {
                Special::Selftest => selftest::run(&bench)?,
                Special::Counting => counting::run(&bench)?,
                Special::Ordering => ordering::run(&bench, self.only)?,
                Special::Crash => crash::run(&bench)?,
            })))?,
            Job::Boots(suite) => {
                let backing = bench.results.join(suite.name);
                suite.machine.create_backing(&backing)?;
                for boot in suite.boots {
                    let report =
                        bench.boot_some(&suite.machine, &backing, boot, self.only, |_| {})?;
                    out.send(Outcome::Done(Box::new(report)))?;
                }
                suite.machine.remove_backing(&backing)?;
            }
            Job::Shared(suites) => self.shared(&suites, out)?,
        }
        Ok(())
    }

    /// Boots again for suites that the guest did not begin. It stops after a suite that failed.
    fn shared(&self, mut suites: &[&'static Suite], out: &Sender<Outcome>) -> Result<()> {
        while let [first, ..] = suites {
            let Some(bench) = self.bench() else {
                for suite in suites {
                    out.send(Outcome::NotRun(suite.name))?;
                }
                return Ok(());
            };
            let backing = bench.results.join(first.name);
            first.machine.create_backing(&backing)?;
            let names: Vec<&'static str> = suites.iter().map(|suite| suite.name).collect();
            let (machine, boot) = (&first.machine, &first.boots[0]);
            let begun = |line: &str| {
                let name = ktap::begun(line);
                let name = names.iter().find(|known| name == Some(known));
                // The receiver exists until all workers have ended.
                name.map(|name| out.send(Outcome::Begun(name)));
            };
            let reports = bench.boot_suites(machine, &backing, boot, &names, self.only, begun)?;
            first.machine.remove_backing(&backing)?;
            suites = &suites[reports.len()..];
            for report in reports {
                out.send(Outcome::Done(Box::new(report)))?;
            }
        }
        Ok(())
    }

    /// Runs jobs on the given number of workers, and returns when all are done.
    fn all(&self, jobs: Vec<Job>, workers: usize, out: &Sender<Outcome>) -> Result<()> {
        let queue = Mutex::new(VecDeque::from(jobs));
        let work = || {
            loop {
                let job = queue.lock().expect("no worker panics").pop_front();
                match job {
                    Some(job) => self.job(job, out)?,
                    None => return Ok(()),
                }
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("no worker panics"))
        })
    }
}

/// Set by `tests/stages`: the deadline of this stage, and the file for durations.
const DEADLINE: &str = "PMEM_RS_DEADLINE";
const TIMES: &str = "PMEM_RS_TIMES";

fn deadline() -> Result<Option<SystemTime>> {
    let Ok(seconds) = env::var(DEADLINE) else {
        return Ok(None);
    };
    let seconds = seconds
        .parse()
        .with_context(|| format!("{DEADLINE} is `{seconds}`"))?;
    Ok(Some(UNIX_EPOCH + Duration::from_secs(seconds)))
}

/// Writes down how long a suite and its tests took, if `tests/stages` asks for it.
fn keep_times(report: &Report) -> Result<()> {
    let Ok(path) = env::var(TIMES) else {
        return Ok(());
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("{TIMES} is `{path}`"))?;
    writeln!(file, "suite\t{:.1}\t{}", report.seconds, report.suite)?;
    for (test, seconds) in &report.times {
        writeln!(file, "test\t{seconds:.1}\t{}.{test}", report.suite)?;
    }
    Ok(())
}

/// Runs the named suites, or all. Returns whether all tests passed.
pub fn run(
    setup: &Setup,
    seed: u64,
    stress_seconds: Option<u64>,
    names: &[String],
    only: &[String],
    guests: usize,
) -> Result<bool> {
    let start = Instant::now();
    let mut bench = Bench::new(setup, "check", seed)?;
    bench.stress_seconds = stress_seconds;
    bench.limits.total += Duration::from_secs(stress_seconds.unwrap_or_default());
    let selection = suites::select(names, &Platform::of(&bench.env)?)?;
    println!(
        "guest tests of {} on {}, seed {seed}, results in {}",
        bench.subject.driver,
        bench.subject.release,
        bench.results.display(),
    );
    let mut total = Total::default();
    for (name, reason) in &selection.skipped {
        println!("{name:<28} skipped: {reason}");
        total.skipped += 1;
    }
    let run = Run {
        bench: &bench,
        only,
        deadline: deadline()?,
    };
    let (alone, together) = jobs(selection, only).into_iter().partition(Job::is_alone);
    let mut checkers = None;
    thread::scope(|scope| {
        let (out, outcomes) = channel();
        let workers = scope.spawn(move || {
            run.all(together, guests, &out)?;
            run.all(alone, 1, &out)
        });
        for outcome in outcomes {
            match outcome {
                Outcome::Begun(name) => {
                    println!("[{:3} s] {name} begins", start.elapsed().as_secs());
                }
                Outcome::NotRun(name) => {
                    println!("{name:<28}    0 passed, 1 failed: not run, no time is left");
                    total.failed += 1;
                }
                Outcome::Done(report) => {
                    // All guests should have the same checkers.
                    if report.checkers != checkers {
                        checkers = report.checkers.clone();
                        println!("checkers: {}", checkers.as_deref().unwrap_or("none"));
                    }
                    report.print();
                    total.add(&report);
                    keep_times(&report)?;
                }
            }
        }
        workers.join().expect("no worker panics")
    })?;
    total.print(start.elapsed());
    Ok(total.failed == 0)
}
