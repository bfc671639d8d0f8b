// SPDX-License-Identifier: GPL-2.0

//! Sends commands to the plugin that records executed instructions (`tests/coverage`), if the
//! machine has it.

use std::path::Path;

use anyhow::Result;

use crate::driver::Driver;
use crate::plugin;
use crate::sysfs;

/// Sections with code that lives as long as the module.
const LASTING: &[&str] = &[".text", ".exit.text"];
/// The section with code that is freed after the module was loaded.
const INIT: &str = ".init.text";

fn say(line: &str) {
    plugin::say("coverage", line);
}

/// Loads the driver, and tells the plugin where its code is.
pub fn loading<T>(load: impl FnOnce() -> Result<T>) -> Result<T> {
    say("forget");
    let result = load()?;
    // `load` may have loaded another driver.
    if Driver::PmemRs.is_loaded() {
        let sections = Path::new("/sys/module")
            .join(Driver::PmemRs.name())
            .join("sections");
        say(&format!(
            "past {INIT} {}",
            sysfs::read(sections.join(INIT))?
        ));
        for name in LASTING {
            say(&format!(
                "section {name} {}",
                sysfs::read(sections.join(name))?
            ));
        }
    }
    Ok(result)
}

/// Tells the plugin that a driver was removed, if it was the driver under test.
pub fn unloaded() {
    if !Driver::PmemRs.is_loaded() {
        say("forget");
    }
}

/// Makes the plugin write its results to the host, because the power may be cut.
pub fn keep() {
    say("write");
}
