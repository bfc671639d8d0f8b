// SPDX-License-Identifier: GPL-2.0

//! What is changed on the machine, and how it is changed back.

use std::fs::{self, File};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::target::Target;
use crate::command::run;
use crate::driver::Driver;
use crate::nd::settle;
use crate::suites::bench::{HUGE_PAGES, NULL};
use crate::sysfs;

/// The modules that may be loaded. They are removed in this order.
const MODULES: [&str; 3] = ["pmem_rs", "nd_pmem", NULL];
/// The modules that pmem_rs needs.
const NEEDED: [&str; 3] = ["-a", "libnvdimm", "nd_btt"];
/// How many huge pages the cases need.
const SPARE_HUGE_PAGES: u64 = 4;
/// How long a module may be in use after the last case: udev looks at its disks.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state of the machine before.
pub struct Former {
    /// Those of [`MODULES`] that were not loaded.
    absent: Vec<&'static str>,
    huge_pages: u64,
}

fn is_loaded(module: &str) -> bool {
    Path::new("/sys/module").join(module).exists()
}

/// Checks that pmem_rs is loaded or can be.
pub fn check_module(module: &Path) -> Result<()> {
    ensure!(
        Driver::PmemRs.is_loaded() || module.exists(),
        "pmem_rs is not loaded, and there is no {}: `make modules` builds it for Debian's kernel, \
         `make modules KDIR=/lib/modules/$(uname -r)/build` for another one",
        module.display()
    );
    Ok(())
}

/// Loads both drivers.
pub fn load(module: &Path) -> Result<()> {
    run("modprobe", &[Driver::NdPmem.name()])?;
    if !Driver::PmemRs.is_loaded() {
        run("modprobe", &NEEDED)?;
        let file = File::open(module)?;
        if let Err(error) = finit_module(&file, c"", ModuleInitFlags::empty()) {
            let remedy = match error {
                Errno::EKEYREJECTED | Errno::EPERM => "Secure Boot demands a signature: sign it",
                Errno::ENOEXEC | Errno::EINVAL => "it is for another kernel: build it again",
                _ => "the kernel's log says why",
            };
            bail!("{} cannot be loaded ({error}): {remedy}", module.display());
        }
    }
    settle()
}

impl Former {
    /// Records the state, and reserves huge pages.
    pub fn record() -> Result<Former> {
        let huge_pages = sysfs::read(HUGE_PAGES)?.parse()?;
        sysfs::write(HUGE_PAGES, &format!("{}", huge_pages + SPARE_HUGE_PAGES))?;
        Ok(Former {
            absent: MODULES
                .into_iter()
                .filter(|module| !is_loaded(module))
                .collect(),
            huge_pages,
        })
    }

    /// Restores the state. A failed step does not prevent the next ones. Returns whether all have
    /// succeeded.
    pub fn restore(&self, targets: &[Target; 2]) -> bool {
        let drivers = targets.iter().map(give_back);
        let modules = self.absent.iter().map(|module| remove(module));
        let pages = sysfs::write(HUGE_PAGES, &self.huge_pages.to_string());
        let mut restored = true;
        for error in drivers
            .chain(modules)
            .chain([pages])
            .filter_map(Result::err)
        {
            eprintln!("bench-metal: not restored: {error:#}");
            restored = false;
        }
        if restored {
            println!("\nThe namespaces have their former drivers again.");
        }
        restored
    }
}

/// Binds the former driver. A device in use stays as it is: nd_pmem does not survive that.
fn give_back(target: &Target) -> Result<()> {
    settle()?;
    let (device, driver) = (&target.bound, target.driver);
    let bound = device.driver();
    if bound.as_deref() == Some(driver.name()) {
        return Ok(());
    }
    if bound.is_some() {
        target.await_idle()?;
        device.unbind()?;
    }
    device.bind(driver)
}

fn remove(module: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while is_loaded(module) {
        match run("rmmod", &[module]) {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(100)),
            result => return result.map(drop),
        }
    }
    Ok(())
}

/// The name of the CPU.
pub fn processor() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let name = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    name.context("/proc/cpuinfo has no model name")
}
