// SPDX-License-Identifier: GPL-2.0

//! Kernel tracing: faults on DAX files, calls of a function, and events of the driver.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::lab::Skip;
use crate::sysfs;

const TRACEFS: &str = "/sys/kernel/tracing";

/// Records the DAX faults of all processes until it is dropped.
pub struct FaultTrace(());

impl FaultTrace {
    /// Clears earlier records and starts.
    pub fn start() -> Result<FaultTrace> {
        let tracefs = Path::new(TRACEFS);
        // Truncating the file clears the trace, whatever is written.
        fs::write(tracefs.join("trace"), "").context("emptying the trace")?;
        sysfs::write(tracefs.join("events/fs_dax/enable"), "1")?;
        Ok(FaultTrace(()))
    }

    /// The number of faults that installed a PMD.
    ///
    /// `VM_FAULT_NOPAGE` is what the file system returns when the entry is in the page table.
    pub fn pmds_installed(&self) -> Result<usize> {
        self.count("dax_pmd_fault_done:", "NOPAGE")
    }

    /// The number of faults that installed a PTE.
    pub fn pages_installed(&self) -> Result<usize> {
        self.count("dax_pte_fault_done:", "NOPAGE")
    }

    fn count(&self, event: &str, result: &str) -> Result<usize> {
        let trace =
            fs::read_to_string(Path::new(TRACEFS).join("trace")).context("reading the trace")?;
        Ok(trace
            .lines()
            .filter(|line| line.contains(event) && line.contains(result))
            .count())
    }
}

impl Drop for FaultTrace {
    fn drop(&mut self) {
        // If this fails, recording goes on, which costs only time.
        let _ = sysfs::write(Path::new(TRACEFS).join("events/fs_dax/enable"), "0");
    }
}

/// Counts the calls of functions of the kernel, in all threads, until it is dropped.
pub struct CallCount(());

impl CallCount {
    const EVENT: &str = "pmem_rs/counted";

    /// Starts counting the calls of `functions`, with one counter for all.
    pub fn of(functions: &[&str]) -> Result<CallCount> {
        let tracefs = Path::new(TRACEFS);
        let probes: Vec<String> = functions
            .iter()
            .map(|function| format!("p:{} {function}\n", Self::EVENT))
            .collect();
        fs::write(tracefs.join("kprobe_events"), probes.concat())
            .with_context(|| format!("placing probes on {functions:?}"))?;
        let count = CallCount(());
        fs::write(tracefs.join("trace"), "").context("emptying the trace")?;
        sysfs::write(tracefs.join("events").join(Self::EVENT).join("enable"), "1")?;
        Ok(count)
    }

    /// The number of calls so far.
    pub fn so_far(&self) -> Result<usize> {
        let trace =
            fs::read_to_string(Path::new(TRACEFS).join("trace")).context("reading the trace")?;
        Ok(trace
            .lines()
            .filter(|line| line.contains(": counted:"))
            .count())
    }
}

impl Drop for CallCount {
    fn drop(&mut self) {
        let tracefs = Path::new(TRACEFS);
        // The next test replaces a probe that is left behind.
        let _ = sysfs::write(tracefs.join("events").join(Self::EVENT).join("enable"), "0");
        let _ = fs::write(tracefs.join("kprobe_events"), "");
    }
}

/// Records events of the driver, in all threads, until it is dropped.
pub struct Events(());

impl Events {
    /// Clears earlier records and starts to record all events.
    pub fn start() -> Result<Events> {
        let tracefs = Path::new(TRACEFS);
        fs::write(tracefs.join("trace"), "").context("emptying the trace")?;
        sysfs::write(Events::file("", "enable"), "1")?;
        Ok(Events(()))
    }

    /// The path of a file of an event, or of all events.
    pub fn file(event: &str, file: &str) -> PathBuf {
        Path::new(TRACEFS)
            .join("events/pmem_rs")
            .join(event)
            .join(file)
    }

    /// The records so far of an event.
    pub fn so_far(&self, event: &str) -> Result<Vec<Record>> {
        let trace =
            fs::read_to_string(Path::new(TRACEFS).join("trace")).context("reading the trace")?;
        let mark = format!(": {event}: ");
        Ok(trace
            .lines()
            .filter_map(|line| {
                let (_, fields) = line.split_once(&mark)?;
                Some(Record {
                    fields: fields.to_owned(),
                })
            })
            .collect())
    }

    /// Checks that there is a record of an event with all of `pieces`, and returns the first one.
    pub fn expect(&self, event: &str, pieces: &[&str]) -> Result<Record> {
        let records = self.so_far(event)?;
        let fits = |record: &&Record| {
            let fields = format!(" {} ", record.fields);
            pieces
                .iter()
                .all(|piece| fields.contains(&format!(" {piece} ")))
        };
        match records.iter().find(fits) {
            Some(record) => Ok(record.clone()),
            None => bail!("no {event} has {pieces:?}; there were: {records:#?}"),
        }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // If this fails, recording goes on, which costs only time.
        let _ = sysfs::write(Events::file("", "enable"), "0");
    }
}

/// A record of an event.
#[derive(Clone, Debug)]
pub struct Record {
    /// The fields, as `name=value`.
    pub fields: String,
}

impl Record {
    /// The value of a numeric field.
    pub fn number(&self, field: &str) -> Result<u64> {
        self.fields
            .split(' ')
            .find_map(|word| word.strip_prefix(field)?.strip_prefix('='))
            .with_context(|| format!("`{}` has no {field}", self.fields))?
            .parse()
            .with_context(|| format!("{field} in `{}`", self.fields))
    }
}

/// A filter or a histogram of an event, until it is dropped.
pub struct Trigger {
    event: &'static str,
    file: &'static str,
    text: String,
}

impl Trigger {
    /// Records only those that pass the filter.
    pub fn filter(event: &'static str, filter: &str) -> Result<Trigger> {
        Trigger::set(event, "filter", filter, "0")
    }

    /// Counts in a histogram. Not every kernel can do so.
    pub fn histogram(event: &'static str, text: &str) -> Result<Trigger> {
        if !Events::file(event, "hist").exists() {
            return Err(Skip("the kernel has no histograms of events").into());
        }
        Trigger::set(event, "trigger", text, &format!("!{text}"))
    }

    fn set(event: &'static str, file: &'static str, text: &str, undo: &str) -> Result<Trigger> {
        sysfs::write(Events::file(event, file), text)?;
        Ok(Trigger {
            event,
            file,
            text: undo.to_owned(),
        })
    }

    /// The entries of the histogram.
    pub fn entries(&self) -> Result<Vec<String>> {
        let text = sysfs::read(Events::file(self.event, "hist"))?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect())
    }
}

impl Drop for Trigger {
    fn drop(&mut self) {
        // If this fails, the next test finds it.
        let _ = sysfs::write(Events::file(self.event, self.file), &self.text);
    }
}
