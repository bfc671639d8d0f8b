// SPDX-License-Identifier: GPL-2.0

//! What the kernel does, as its own tracing sees it: faults on DAX files, calls of a function.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::sysfs;

const TRACEFS: &str = "/sys/kernel/tracing";

/// Records the faults on DAX files of all processes for as long as it lives.
pub struct FaultTrace(());

impl FaultTrace {
    /// Forgets what was recorded before and starts.
    pub fn start() -> Result<FaultTrace> {
        let tracefs = Path::new(TRACEFS);
        // The file is emptied by being opened for it, not by what is written.
        fs::write(tracefs.join("trace"), "").context("emptying the trace")?;
        sysfs::write(tracefs.join("events/fs_dax/enable"), "1")?;
        Ok(FaultTrace(()))
    }

    /// How many faults were served with a whole PMD.
    ///
    /// `VM_FAULT_NOPAGE` is what the file system returns when the entry is in the page table.
    pub fn pmds_installed(&self) -> Result<usize> {
        self.count("dax_pmd_fault_done:", "NOPAGE")
    }

    /// How many faults were served with a single page.
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
        // Recording costs time but does no harm, so there is nobody to tell.
        let _ = sysfs::write(Path::new(TRACEFS).join("events/fs_dax/enable"), "0");
    }
}

/// Counts how often functions of the kernel are called, by whomever, for as long as it lives.
pub struct CallCount(());

impl CallCount {
    const EVENT: &str = "pmem_rs/counted";

    /// Starts counting the calls of `functions`, all together.
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

    /// How many calls there were.
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
        // A probe that is left behind is replaced by the next one.
        let _ = sysfs::write(tracefs.join("events").join(Self::EVENT).join("enable"), "0");
        let _ = fs::write(tracefs.join("kprobe_events"), "");
    }
}
