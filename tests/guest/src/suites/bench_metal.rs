// SPDX-License-Identifier: GPL-2.0

//! `make bench-metal` on a machine with persistent memory that `memmap=` declares: two ranges of
//! the same size, and a smaller one.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::bench::HUGE_PAGES;
use super::{Suite, Test};
use crate::command::{command, run};
use crate::disk::Disk;
use crate::dm::Mapped;
use crate::driver::Driver;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::{Lab, Skip, holder};
use crate::nd::Device;
use crate::ndctl::{self, Mode};
use crate::platform::LEGACY_MODULE;
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "bench_metal",
    tests: &[
        Test::new("measures_and_gives_the_drivers_back", measures),
        Test::new("loads_the_module_and_removes_it", loads_the_module),
        Test::new("interrupt_gives_the_drivers_back", interrupt),
        Test::new("refuses_what_would_do_harm", refusals),
    ],
};

const RESULTS: &str = "/tmp/metal";
/// The cases that are measured here, one of each kind.
const CASES: [&str; 3] = ["read_4k_sequential", "dax_read_4k", "unbind_whole"];
/// A case that is left out.
const LEFT_OUT: &str = "bind_64m";

/// The machine, with the namespaces of its two large ranges.
struct Metal {
    namespaces: [Device; 2],
    disks: [Disk; 2],
}

impl Metal {
    fn new(lab: &Lab) -> Result<Metal> {
        if lab.driver != Driver::PmemRs {
            return Err(Skip("the drivers are given back to pmem_rs").into());
        }
        let namespaces = [lab.namespace(0)?, lab.namespace(1)?];
        let disk = |namespace: &Device| -> Result<Disk> {
            Ok(Disk::named(holder(namespace)?.disk_name()?))
        };
        let disks = [disk(&namespaces[0])?, disk(&namespaces[1])?];
        Ok(Metal { namespaces, disks })
    }

    fn names(&self) -> String {
        self.namespaces.each_ref().map(Device::name).join(" ")
    }

    fn expect_driver(&self, driver: Driver) -> Result<()> {
        let mut namespaces = self.namespaces.iter();
        namespaces.try_for_each(|namespace| namespace.expect_driver(Some(driver)))
    }
}

/// The command that `make bench-metal` runs.
fn bench(namespaces: &str, overwrite: bool, module: &str) -> Command {
    let mut bench = command("/proc/self/exe");
    bench.args(["metal", "--namespaces", namespaces, "--results", RESULTS]);
    bench.args(["--module", module]);
    bench.args(["--overwrite", if overwrite { "yes" } else { "" }]);
    bench
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr]
        .map(|text| String::from_utf8_lossy(text).into_owned())
        .concat()
}

/// Measures some cases, and checks the results.
fn measure(metal: &Metal, module: &str) -> Result<()> {
    let mut bench = bench(&metal.names(), true, module);
    let output = bench.args(CASES).arg(LEFT_OUT).output()?;
    let said = said(&output);
    ensure!(output.status.success(), "{}: {said}", output.status);
    for line in [
        "This CPU gives no counters",
        "pmem_rs has namespace0.0, nd_pmem has namespace1.0",
        "pmem_rs has namespace1.0, nd_pmem has namespace0.0",
        "left out: the namespaces keep their size",
        "| case | nd_pmem | pmem_rs | ratio | low | high |",
        "The namespaces have their former drivers again.",
    ] {
        ensure!(said.contains(line), "`{line}` is missing: {said}");
    }
    let text = fs::read_to_string(Path::new(RESULTS).join("bench.md"))?;
    let rows = fs::read_to_string(Path::new(RESULTS).join("bench.json"))?;
    let rows: Value = serde_json::from_str(&rows)?;
    for case in CASES {
        let row = rows.as_array().context("no rows")?.iter();
        let row = row.into_iter().find(|row| row["case"] == case);
        let row = row.with_context(|| format!("{case} was not measured: {said}"))?;
        for figure in ["nd_pmem", "pmem_rs", "low", "ratio", "high"] {
            let figure = row[figure].as_f64();
            ensure!(figure.is_some_and(|figure| figure > 0.0), "{row}");
        }
        ensure!(text.contains(&format!("\n| {case} | ")), "{case}: {text}");
    }
    let mounts = fs::read_to_string("/proc/mounts")?;
    ensure!(!mounts.contains("/dev/pmem"), "left mounted: {mounts}");
    Ok(())
}

fn measures(lab: &mut Lab) -> Result<()> {
    let metal = Metal::new(lab)?;
    sysfs::write(HUGE_PAGES, "1")?;
    measure(&metal, "/nowhere.ko")?;
    metal.expect_driver(Driver::PmemRs)?;
    ensure!(!Driver::NdPmem.is_loaded(), "nd_pmem is still loaded");
    let pages = sysfs::read(HUGE_PAGES)?;
    ensure!(pages == "1", "{pages} huge pages are left");
    sysfs::write(HUGE_PAGES, "0")
}

/// With the drivers that a machine has without this project.
fn loads_the_module(lab: &mut Lab) -> Result<()> {
    let names = Metal::new(lab)?.names();
    lab.driver.unload()?;
    run("modprobe", &["-a", LEGACY_MODULE, "nd_pmem"])?;
    crate::nd::settle()?;
    let metal = Metal::new(lab)?;
    ensure!(metal.names() == names, "{names} are {}", metal.names());
    metal.expect_driver(Driver::NdPmem)?;
    refused(
        bench(&names, true, "/nowhere.ko"),
        "pmem_rs is not loaded, and there is no /nowhere.ko: `make modules` builds it",
    )?;
    let release = sysfs::read("/proc/sys/kernel/osrelease")?;
    let module = format!("/lib/modules/{release}/updates/pmem_rs.ko");
    measure(&metal, &module)?;
    metal.expect_driver(Driver::NdPmem)?;
    ensure!(!Driver::PmemRs.is_loaded(), "pmem_rs is still loaded");
    Ok(())
}

fn interrupt(lab: &mut Lab) -> Result<()> {
    let metal = Metal::new(lab)?;
    let mut bench = bench(&metal.names(), true, "/nowhere.ko")
        .arg("dax_read")
        .stdout(Stdio::piped())
        .spawn()?;
    let output = bench.stdout.take().context("no output")?;
    let mut lines = BufReader::new(output).lines();
    let first = lines.find(|line| {
        let line = line.as_ref();
        line.is_ok_and(|line| line.starts_with(CASES[1]))
    });
    first.context("nothing was measured")??;
    kill(Pid::from_raw(bench.id().try_into()?), Signal::SIGINT)?;
    let rest = lines.collect::<std::io::Result<Vec<String>>>()?;
    let status = bench.wait()?;
    ensure!(status.code() == Some(130), "{status}: {rest:?}");
    ensure!(rest.iter().any(|line| line == "interrupted"), "{rest:?}");
    ensure!(rest.iter().all(|line| !line.starts_with('|')), "{rest:?}");
    metal.expect_driver(Driver::PmemRs)?;
    ensure!(!Driver::NdPmem.is_loaded(), "nd_pmem is still loaded");
    Ok(())
}

/// Checks that the command refuses, with one line that has this text.
fn refused(mut bench: Command, text: &str) -> Result<()> {
    let output = bench.output()?;
    let said = said(&output);
    println!("{}", said.trim_end());
    ensure!(output.status.code() == Some(1), "{}", output.status);
    ensure!(
        said.starts_with("bench-metal: ") && said.lines().count() == 1 && said.contains(text),
        "`{text}` was expected"
    );
    Ok(())
}

fn refusals(lab: &mut Lab) -> Result<()> {
    let metal = Metal::new(lab)?;
    let names = metal.names();
    let [first, second] = metal.namespaces.each_ref().map(Device::name);
    let bench = |names: &str, overwrite| bench(names, overwrite, "/nowhere.ko");

    let mut as_nobody = bench(&names, true);
    as_nobody.uid(65534);
    refused(
        as_nobody,
        "root rights are needed to bind drivers: sudo make",
    )?;
    refused(bench(first, true), "two namespaces are needed")?;
    let same = format!("{first} {first}");
    refused(bench(&same, true), "two different namespaces are needed")?;
    let missing = format!("{first} namespace7.0");
    refused(
        bench(&missing, true),
        "there is no namespace7.0: `ndctl list",
    )?;

    let node = metal.disks[0].node_str();
    Ext4.make(&node)?;
    let has_data = format!("{first} ({node}) has data in its first MiB");
    refused(bench(&names, false), &has_data)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let point = mount.point().display();
    let is_mounted = format!("{first} ({node}) is mounted: umount {point}");
    refused(bench(&names, true), &is_mounted)?;
    mount.unmount()?;

    let other = metal.disks[1].node_str();
    let mapped = Mapped::new("above", &format!("0 8192 linear {other} 0"))?;
    let has_holders = format!("{second} ({other}) has the holders dm-");
    refused(bench(&names, true), &has_holders)?;
    mapped.remove()?;

    let region = lab.region(1)?;
    region.set("read_only", "1")?;
    refused(bench(&names, true), &format!("{second} is read-only"))?;
    region.set("read_only", "0")?;

    metal.namespaces[1].unbind()?;
    let has_no_driver = format!("{second} is bound to neither nd_pmem nor pmem_rs");
    refused(bench(&names, true), &has_no_driver)?;
    metal.namespaces[1].bind(lab.driver)?;

    let small = lab.namespace(2)?;
    let unequal = format!("{first} {small}");
    let sizes = "namespaces of the same size and mode are needed";
    refused(bench(&unequal, true), sizes)?;
    ndctl::reconfigure(&small, Mode::Sector)?;
    let mode = format!("{small} is in the mode `safe`, not fsdax");
    refused(bench(&unequal, true), &mode)?;
    metal.expect_driver(lab.driver)
}
