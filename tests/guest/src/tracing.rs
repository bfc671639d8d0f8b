// SPDX-License-Identifier: GPL-2.0

//! Kernel tracing: faults on DAX files, and calls of a function.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

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
