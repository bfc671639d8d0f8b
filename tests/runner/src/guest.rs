// SPDX-License-Identifier: GPL-2.0

//! A running guest: it is followed line by line, and ended when it makes no progress.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The time limits of a guest.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The time without a line on either of its ports.
    pub silence: Duration,
    /// The total time.
    pub total: Duration,
}

impl Limits {
    /// Returns the limits of most guests, multiplied by `patience` for slow kernels.
    pub fn of(patience: u32) -> Limits {
        Limits {
            silence: SILENCE_LIMIT * patience,
            total: TOTAL_LIMIT * patience,
        }
    }
}

/// The time without a line after which the guest counts as hung. The guest itself ends tests that
/// take too long, so this is longer than any test may take. Slow kernels get a multiple of this and
/// of the next limit.
const SILENCE_LIMIT: Duration = Duration::from_secs(250);
/// The total time of a guest.
const TOTAL_LIMIT: Duration = Duration::from_secs(1800);
/// The time in which a guest must switch itself off.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The time in which a hung guest must say where it hangs.
const STACK_LIMIT: Duration = Duration::from_secs(20);
/// What QEMU is asked about a hung guest: the registers of all CPUs, twice, so that a CPU that
/// executes instructions can be told from one that waits. An NMI that nothing in the guest expects
/// makes its kernel panic (see `Machine::command`), with the stack of the CPU on the console.
const QUESTIONS: [&str; 4] = [
    r#"{"execute": "qmp_capabilities"}"#,
    REGISTERS,
    REGISTERS,
    r#"{"execute": "inject-nmi"}"#,
];
const REGISTERS: &str = r#"{"execute": "human-monitor-command",
    "arguments": {"command-line": "info registers -a"}}"#;

/// The file for what QEMU says about a hung guest, beside the console.
pub const HUNG: &str = "hung.log";
/// The line of the guest after the last test.
const DONE: &str = "# done";
/// The line with which the guest asks for a power cut.
const HOLDING: &str = "# waiting for the power to be cut";
/// The line of a test that puts the machine to sleep until its power button is pressed.
const ASLEEP: &str = "    # asleep until the power button is pressed";
/// The time between that line and the first press, in which the machine falls asleep, and between
/// presses. A press that comes too early wakes nothing.
const PRESS_INTERVAL: Duration = Duration::from_secs(15);
const PRESS: [&str; 2] = [
    r#"{"execute": "qmp_capabilities"}"#,
    r#"{"execute": "system_powerdown"}"#,
];

/// When a guest loses its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The line of the guest after which the time runs.
    pub line: &'static str,
    /// The time after that line.
    pub after: Duration,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// It ran all tests, and ended or was ended as planned.
    Orderly,
    /// It ended, or was ended without progress, before its init had run, which can be a failure of
    /// the emulator.
    DiedBooting,
    /// It was ended without progress, and QEMU did not answer either. The reason names the limit.
    EmulatorHung(String),
    /// It ended before it had run all tests.
    Died,
    /// It was ended without progress. The reason names the limit.
    Hung(String),
}

/// A running guest.
pub struct Guest {
    qemu: Child,
    console: Tail,
    results: Tail,
    limits: Limits,
    started: Instant,
    last_line: Instant,
    /// Whether the guest's init has printed its first line.
    up: bool,
    /// When the guest loses its power, if it does.
    cut: Option<Cut>,
    /// The CPU time that it has used so far.
    cpu: Duration,
    /// The file for what QEMU says about a hung guest.
    hung: PathBuf,
}

impl Guest {
    /// Starts the machine. `console` and `results` are the files that its serial ports write to.
    /// What QEMU says about a hung guest is written beside the console.
    pub fn start(
        mut machine: Command,
        console: &Path,
        results: &Path,
        limits: Limits,
        cut: Option<Cut>,
    ) -> Result<Guest> {
        let qemu = machine
            .args(["-qmp", "stdio"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting QEMU")?;
        let now = Instant::now();
        Ok(Guest {
            qemu,
            console: Tail::of(console),
            results: Tail::of(results),
            limits,
            started: now,
            last_line: now,
            up: false,
            cut,
            cpu: Duration::ZERO,
            hung: console.with_file_name(HUNG),
        })
    }

    /// Follows the guest to its end, and passes every line of its results to `f`. Also returns the
    /// CPU time that it used.
    pub fn follow(mut self, on_line: impl FnMut(&str)) -> Result<(End, Duration)> {
        let end = self.follow_to_end(on_line)?;
        Ok((end, self.cpu))
    }

    fn follow_to_end(&mut self, mut on_line: impl FnMut(&str)) -> Result<End> {
        let mut finished = None;
        let mut cut_at = None;
        let mut press_at = None;
        loop {
            self.cpu = cpu_time(self.qemu.id()).unwrap_or(self.cpu);
            // The process is checked first, so that all lines of an ended guest are read after the
            // check.
            let running = self.qemu.try_wait()?.is_none();
            let (results, console) = (self.results.new_lines()?, self.console.new_lines()?);
            if !results.is_empty() || !console.is_empty() {
                self.last_line = Instant::now();
            }
            for line in &results {
                self.up |= line.starts_with("KTAP version");
                if let Some(cut) = self.cut.take_if(|cut| cut.line == line) {
                    cut_at = Some(Instant::now() + cut.after);
                }
                // The next line means that the machine is awake.
                press_at = (line == ASLEEP).then(|| Instant::now() + PRESS_INTERVAL);
                match line.as_str() {
                    DONE => finished = Some(Instant::now()),
                    HOLDING => return Ok(End::Orderly),
                    _ => on_line(line),
                }
            }
            if !running {
                return Ok(match (self.up, finished) {
                    (_, Some(_)) => End::Orderly,
                    (true, None) => End::Died,
                    (false, None) => End::DiedBooting,
                });
            }
            if press_at.is_some_and(|at| at <= Instant::now()) {
                self.order(&PRESS);
                press_at = Some(Instant::now() + PRESS_INTERVAL);
            }
            if let Some(reason) = self.overdue(finished) {
                let answered = self.examine()?;
                return Ok(if !self.up {
                    End::DiedBooting
                } else if answered {
                    End::Hung(reason)
                } else {
                    End::EmulatorHung(reason)
                });
            }
            let left = cut_at.map(|at: Instant| at.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                self.qemu.kill()?;
                self.qemu.wait()?;
                // The lines before the power cut have been read.
                self.results
                    .new_lines()?
                    .iter()
                    .for_each(|line| on_line(line));
                return Ok(End::Orderly);
            }
            sleep(left.unwrap_or(POLL_INTERVAL).min(POLL_INTERVAL));
        }
    }

    /// Sends commands to QEMU's monitor, whose answers nothing reads before the guest hangs.
    fn order(&mut self, commands: &[&str]) {
        if let Some(input) = self.qemu.stdin.as_mut() {
            for command in commands {
                // An error means that QEMU has just ended.
                let _ = writeln!(input, "{command}").and_then(|()| input.flush());
            }
        }
    }

    /// Ends a hung guest, and keeps what its CPUs and the threads of QEMU were doing. Returns
    /// whether QEMU has answered.
    fn examine(&mut self) -> Result<bool> {
        let mut input = self.qemu.stdin.take().context("QEMU has no monitor")?;
        let mut output = self.qemu.stdout.take().context("QEMU has no monitor")?;
        for question in QUESTIONS {
            // An error means that QEMU has just ended.
            let _ = writeln!(input, "{question}").and_then(|()| input.flush());
            sleep(POLL_INTERVAL);
        }
        let asked = Instant::now();
        while self.qemu.try_wait()?.is_none() && asked.elapsed() < STACK_LIMIT {
            sleep(POLL_INTERVAL);
        }
        let threads = threads(self.qemu.id());
        self.qemu.kill()?;
        self.qemu.wait()?;
        let mut answers = String::new();
        output.read_to_string(&mut answers)?;
        let answered = answers.matches("\"return\"").count() >= QUESTIONS.len() - 1;
        fs::write(&self.hung, threads + &answers.replace("\\r\\n", "\n"))
            .with_context(|| format!("writing {}", self.hung.display()))?;
        Ok(answered)
    }

    fn overdue(&self, finished: Option<Instant>) -> Option<String> {
        let Limits { silence, total } = self.limits;
        let checks = [
            (Some(self.last_line), silence, "said nothing"),
            (Some(self.started), total, "was not done"),
            (finished, POWER_OFF_LIMIT, "did not switch itself off"),
        ];
        checks.iter().find_map(|(since, limit, what)| {
            let late = since.is_some_and(|since| since.elapsed() > *limit);
            late.then(|| format!("the guest {what} for {} s", limit.as_secs()))
        })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A guest that has ended by itself is only reaped.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Returns the CPU time that a process has used so far: two fields of its `stat`, in hundredths of
/// seconds.
fn cpu_time(process: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = times.map(str::parse::<u64>).sum::<Result<u64, _>>();
    Some(Duration::from_millis(10 * ticks.ok()?))
}

/// Returns the state of each thread of a process: two files of the kernel, of which the first has
/// the state and the times.
fn threads(process: u32) -> String {
    let Ok(threads) = fs::read_dir(format!("/proc/{process}/task")) else {
        return String::new();
    };
    let files = threads.flatten().flat_map(|thread| {
        ["stat", "wchan"].map(|name| fs::read_to_string(thread.path().join(name)))
    });
    files
        .flatten()
        .map(|text| text.trim().to_owned() + "\n")
        .collect()
}

/// Reads a file that grows.
struct Tail {
    path: PathBuf,
    position: u64,
    partial: Vec<u8>,
}

impl Tail {
    fn of(path: &Path) -> Tail {
        Tail {
            path: path.to_owned(),
            position: 0,
            partial: Vec::new(),
        }
    }

    /// Returns the lines that have been completed since the last call.
    fn new_lines(&mut self) -> Result<Vec<String>> {
        // QEMU creates the file when it starts.
        let Ok(mut file) = File::open(&self.path) else {
            return Ok(Vec::new());
        };
        file.seek(SeekFrom::Start(self.position))?;
        let read = file.read_to_end(&mut self.partial)?;
        self.position += read as u64;
        let Some(end) = self.partial.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let complete: Vec<u8> = self.partial.drain(..=end).collect();
        Ok(String::from_utf8_lossy(&complete)
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect())
    }
}
