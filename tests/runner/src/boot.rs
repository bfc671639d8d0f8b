// SPDX-License-Identifier: GPL-2.0

//! Boots a machine once, follows the guest, and makes a report for each suite that ran.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::arch::Arch;
use crate::device_tree::{self, DeviceTree};
use crate::env::Env;
use crate::guest::{End, Guest, HUNG, Limits};
use crate::ktap::{self, Section, Stream};
use crate::machine::{Machine, Plugin, Serial, Software};
use crate::report::{GuestTime, Report, Subject};
use crate::suites::{Boot, Power};
use crate::{Setup, image};

/// How many lines of the console are shown when a guest died or hung.
const CONSOLE_TAIL: usize = 40;
/// How many complaints of the kernel are shown.
const COMPLAINTS: usize = 10;
/// How long a CPU has been silent at least, in seconds of the guest, when RCU complains about it:
/// `CONFIG_RCU_CPU_STALL_TIMEOUT` of all kernels that are booted here.
const RCU_STALL_TIMEOUT: f64 = 21.0;

/// Parses a line of numbers and a text, separated by tabs.
pub fn numbers_and_text<const N: usize>(line: &str) -> Result<([u64; N], &str)> {
    let wrong = || format!("not {N} numbers and a text: `{line}`");
    let mut fields = line.splitn(N + 1, '\t');
    let mut numbers = [0; N];
    for number in &mut numbers {
        *number = fields
            .next()
            .with_context(wrong)?
            .parse()
            .with_context(wrong)?;
    }
    Ok((numbers, fields.next().with_context(wrong)?))
}

/// The settings that all boots of a run share.
#[derive(Clone)]
pub struct Bench {
    pub env: Env,
    /// The kernel that guests boot.
    pub kernel: PathBuf,
    pub image: PathBuf,
    pub results: PathBuf,
    pub subject: Subject,
    /// Additional parameters of the kernel.
    pub kernel_words: &'static str,
    /// The time limits of guests.
    pub limits: Limits,
    /// The duration of tests without an end of their own, if not the guest's default.
    pub stress_seconds: Option<u64>,
    /// The number of earlier boots of the same campaign.
    pub round: u64,
    /// The library of the QEMU plugin that watches guests, if one is wanted.
    pub plugin: Option<PathBuf>,
    /// Whether the second NVDIMM is bound to the driver under test, where both drivers are
    /// compared.
    pub swapped: bool,
    /// Whether the host's CPUs run the guest.
    pub kvm: bool,
}

/// The file that the plugin writes in a boot.
const SEEN: &str = "plugin.tsv";

/// Parses the lines that the plugin wrote in a boot.
pub fn seen<T>(dir: &Path, parse: impl Fn(&str) -> Result<T>) -> Result<Vec<T>> {
    let path = dir.join(SEEN);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    text.lines().map(parse).collect()
}

impl Bench {
    /// Prepares the image, in a separate folder for each command.
    pub fn new(setup: &Setup, command: &str, seed: u64) -> Result<Bench> {
        let env = Env::read(&setup.env)?;
        fs::create_dir_all(&setup.results)?;
        let results = fs::canonicalize(&setup.results)?;
        let image = image::build(
            &env,
            setup.driver,
            &results.join(format!("{command}-image")),
        )?;
        let kernel = image::kernel(&env, &results)?;
        let subject = Subject::of(&env, setup.driver.name(), &image, seed)?;
        let limits = Limits::of(env.patience());
        Ok(Bench {
            env,
            kernel_words: "",
            limits,
            kernel,
            image,
            results,
            subject,
            stress_seconds: None,
            round: 0,
            plugin: None,
            swapped: false,
            kvm: false,
        })
    }

    /// Returns the same bench with a plugin, which is built together with this program.
    pub fn with_plugin(&self, name: &str) -> Result<Bench> {
        let library = std::env::current_exe()?.with_file_name(format!("lib{name}.so"));
        ensure!(library.exists(), "{} is not built", library.display());
        Ok(Bench {
            plugin: Some(library),
            ..self.clone()
        })
    }

    /// Returns the same bench for a later boot of a campaign.
    pub fn in_round(&self, round: u64) -> Bench {
        Bench {
            round,
            ..self.clone()
        }
    }

    /// Boots once, and again if the guest dies before its init runs, if QEMU itself no longer
    /// answers, or if a guest hangs whose kernel stalled before the driver was loaded. The emulator
    /// is known to fail while the guest boots, in about one of a hundred boots. Any other failure
    /// is a result.
    pub fn boot(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        on_line: impl FnMut(&str),
    ) -> Result<Report> {
        self.boot_some(machine, backing, boot, &[], on_line)
    }

    /// Like [`Bench::boot`], but runs only some of the tests.
    pub fn boot_some(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        only: &[String],
        on_line: impl FnMut(&str),
    ) -> Result<Report> {
        let reports = self.boot_suites(machine, backing, boot, &[boot.suite], only, on_line)?;
        reports.into_iter().next().context("no suite was run")
    }

    /// Like [`Bench::boot_some`], but runs several suites, of which the first is the one of `boot`.
    /// Returns a report of the first suite and of each other suite that the guest began.
    pub fn boot_suites(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        suites: &[&'static str],
        only: &[String],
        mut on_line: impl FnMut(&str),
    ) -> Result<Vec<Report>> {
        let dir = self.results.join(boot.suite);
        fs::create_dir_all(&dir)?;
        let mut boots = 0;
        loop {
            boots += 1;
            let (end, mut reports) =
                self.boot_once(machine, backing, boot, suites, only, &mut on_line)?;
            let failure = match end {
                End::DiedBooting => Some("died-booting"),
                End::EmulatorHung(_) => Some("emulator-hung"),
                End::Hung(_) if self.subject.driver == "pmem_rs" => {
                    let console = read(&dir.join("console.log"))?;
                    stalled_without_driver(&console).then_some("stalled-booting")
                }
                _ => None,
            };
            if let Some(failure) = failure.filter(|_| boots == 1) {
                for file in ["console.log", "ktap.log", HUNG] {
                    let log = dir.join(file);
                    // A guest that ended by itself was not examined.
                    if log.exists() {
                        fs::rename(log, dir.join(format!("{failure}-{file}")))?;
                    }
                }
                continue;
            }
            for report in &mut reports {
                report.boots = boots;
                let dir = self.results.join(report.suite);
                fs::create_dir_all(&dir)?;
                report.keep(&dir.join("results.json"))?;
            }
            return Ok(reports);
        }
    }

    /// The arguments of the guest's program.
    fn guest_words(&self, boot: &Boot, suites: &[&str], only: &[String]) -> Vec<String> {
        let mut words = vec!["run".to_owned(), suites.join(",")];
        let mut option = |name: &str, value: Option<String>| {
            words.push(format!("--{name}"));
            words.extend(value);
        };
        option("driver", Some(self.subject.driver.to_owned()));
        option("seed", Some(self.subject.seed.to_string()));
        option("round", Some(self.round.to_string()));
        match boot.end {
            Power::Off | Power::Lost(_) => {}
            Power::InUse => option("in-use", None),
            Power::Unbinding => option("unbinding", None),
            Power::Hibernated => option("hibernate", None),
            Power::Rebooted => option("reboot", None),
            Power::Kexec => option("kexec", None),
            Power::Resumed => option("resume", None),
            Power::Cut => option("hold", None),
        }
        if let Some(seconds) = self.stress_seconds {
            option("stress-seconds", Some(seconds.to_string()));
        }
        if !only.is_empty() {
            option("only", Some(only.join(",")));
        }
        if self.swapped {
            option("swapped", None);
        }
        words
    }

    fn boot_once(
        &self,
        machine: &Machine,
        backing: &Path,
        boot: &Boot,
        suites: &[&'static str],
        only: &[String],
        on_line: &mut impl FnMut(&str),
    ) -> Result<(End, Vec<Report>)> {
        let dir = &self.results.join(boot.suite);
        let [console, stream] = ["console.log", "ktap.log"].map(|name| dir.join(name));
        for log in [&console, &stream] {
            fs::write(log, "")?;
        }
        let cut = match boot.end {
            Power::Lost(when) => Some(when),
            _ => None,
        };
        let words = self.guest_words(boot, suites, only);
        let plugin = self.plugin.clone().map(|library| Plugin {
            library,
            out: dir.join(SEEN),
        });
        let kernel_words = [self.kernel_words, boot.kernel_words()].join(" ");
        let mut software = Software {
            arch: self.env.arch,
            firmware: self.env.firmware.as_deref(),
            // The firmware does not resume a kernel that was started directly (PVH) from S3.
            kernel: match machine.disk {
                None => &self.kernel,
                Some(_) => &self.env.kernel,
            },
            packed_kernel: &self.env.kernel,
            image: &self.image,
            device_tree: None,
            loaded: None,
            kernel_words: &kernel_words,
            words: &words,
            plugin: plugin.as_ref(),
            kvm: self.kvm,
        };
        let (tree, extended);
        match (machine.device_tree, self.env.arch) {
            (true, Arch::Amd64) => {
                tree = DeviceTree::make(&self.env, dir)?;
                software.kernel = &tree.kernel;
                software.loaded = Some((&tree.list, device_tree::ADDRESS));
            }
            (true, Arch::Arm64) => {
                software.firmware = None;
                let ports = [Serial::Nowhere, Serial::Nowhere];
                let qemu = machine.command(&software, backing, ports)?;
                extended = device_tree::extend(&self.env, qemu, dir)?;
                software.device_tree = Some(&extended);
            }
            (false, _) => {}
        }
        let ports = [Serial::File(&console), Serial::File(&stream)];
        let command = machine.command(&software, backing, ports)?;
        let line: Vec<String> = command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();

        let start = Instant::now();
        let mut followed = Stream::default();
        let guest = Guest::start(command, &console, &stream, self.limits, cut)?;
        let (end, cpu) = guest.follow(|line| {
            followed.line(line);
            on_line(line);
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let mut sections = followed.sections(suites[0]);
        let mut results = if cut.is_some() {
            // The test was interrupted. Only an earlier failure counts.
            ktap::Parsed::of_failures(suites[0], &sections[0].failures.found)
        } else {
            for section in &mut sections {
                section.failures.end();
            }
            ktap::parse(&self.env, &stream, &dir.join("ktap.json"))?
        };
        let mut troubles = complaints(&console)?;
        match &end {
            End::Orderly => {}
            End::Hung(reason) | End::EmulatorHung(reason) => {
                troubles.push(format!("{reason} and was ended{}", tail(&console)?))
            }
            End::Died => troubles.push(format!("the guest died{}", tail(&console)?)),
            End::DiedBooting => {
                troubles.push(format!("the guest did not come up{}", tail(&console)?))
            }
        }
        let errors = if sections.len() < suites.len() {
            results.errors_in_suites()
        } else {
            results.errors
        };
        if end == End::Orderly && errors > 0 {
            troubles.push(format!("the results have {errors} format errors"));
        }
        let in_sections: f64 = sections.iter().map(Section::seconds).sum();
        let mut reports = Vec::new();
        for section in sections {
            let suite = suites.iter().copied().find(|name| *name == section.suite);
            let suite = suite.with_context(|| format!("`{}` was not asked for", section.suite))?;
            let results = results.take(suite);
            let mut troubles = Vec::new();
            if end == End::Orderly && cut.is_none() && results.tests.is_empty() {
                troubles.push("the guest ran no tests".to_owned());
            }
            reports.push(Report {
                suite,
                subject: self.subject.clone(),
                boots: 1,
                seconds: section.seconds(),
                guest: None,
                counts: results.counts,
                times: section.times,
                failures: section.failures.found,
                troubles,
                machine: line.clone(),
                checkers: followed.checkers.clone(),
                measured: section.measured,
                tests: results.tests,
            });
        }
        // Results outside of suites are reported with the first suite. Trouble is reported with the
        // suite during which it happened.
        reports[0].seconds += seconds - in_sections;
        reports[0].guest = Some(GuestTime {
            suites: reports.len(),
            seconds,
            cpu_seconds: cpu.as_secs_f64(),
        });
        let last = reports.last_mut().context("nothing was run")?;
        last.troubles.append(&mut troubles);
        Ok((end, reports))
    }
}

/// Whether RCU has complained about a CPU that was silent since before the driver was loaded. The
/// kernel says when it was if it is the first module from outside of the kernel's tree.
fn stalled_without_driver(console: &str) -> bool {
    // A line begins with the seconds since the kernel has started, in brackets.
    let first = |texts: &[&str]| {
        let mut lines = console.lines();
        let line = lines.find(|line| texts.iter().all(|text| line.contains(text)))?;
        let (seconds, _) = line.trim_start().strip_prefix('[')?.split_once(']')?;
        seconds.trim().parse::<f64>().ok()
    };
    let loaded = first(&["pmem_rs: loading out-of-tree module"]);
    let seen = first(&["rcu: INFO:", "stall"]);
    seen.zip(loaded)
        .is_some_and(|(seen, loaded)| seen - RCU_STALL_TIMEOUT < loaded)
}

/// Returns the complaints of the kernel on the console.
fn complaints(console: &Path) -> Result<Vec<String>> {
    let text = read(console)?;
    let lines: Vec<&str> = text.lines().collect();
    Ok(klog::troubles(&lines, |line| line)
        .take(COMPLAINTS)
        .map(|(_, line)| format!("kernel: {}", line.trim()))
        .collect())
}

fn tail(console: &Path) -> Result<String> {
    let text = read(console)?;
    if text.trim().is_empty() {
        return Ok(" without output on its console".to_owned());
    }
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    let shown = lines[lines.len().saturating_sub(CONSOLE_TAIL)..].join("\n    | ");
    Ok(format!(
        "; its console, {}, ends with\n    | {shown}",
        console.display()
    ))
}

fn read(console: &Path) -> Result<String> {
    let bytes = fs::read(console).with_context(|| format!("reading {}", console.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOADED: &str = "[    2.689788] pmem_rs: loading out-of-tree module taints kernel.\n";

    #[test]
    fn a_guest_stalls_before_the_driver_is_loaded() {
        let stalled = "[   23.137516] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:\n";
        assert!(stalled_without_driver(&format!("{LOADED}{stalled}")));
        assert!(stalled_without_driver(&format!("{stalled}{LOADED}")));
        let expedited = "[   23.5] rcu: INFO: rcu_preempt detected expedited stalls on CPUs: { 1 }";
        assert!(stalled_without_driver(&format!("{LOADED}{expedited}")));
    }

    #[test]
    fn a_guest_stalls_after_the_driver_was_loaded() {
        let stalled = "[   23.8] rcu: INFO: rcu_preempt self-detected stall on CPU\n";
        assert!(!stalled_without_driver(&format!("{LOADED}{stalled}")));
        let other = "[   23.1] rcu: INFO: rcu_tasks changed its mode";
        assert!(!stalled_without_driver(&format!("{LOADED}{other}")));
        assert!(!stalled_without_driver(LOADED));
        assert!(!stalled_without_driver(stalled));
    }
}
