// SPDX-License-Identifier: GPL-2.0

//! Everything that a user can learn about a disk, as text, without the names that always differ.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use serde_json::Value;

use super::tables::{PARTITIONS, REQUESTS, RWF_ATOMIC, STORES, VOLATILE};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::driver::Driver;
use crate::lab::{Lab, holder};
use crate::nd::Device;
use crate::sectors::{Buffer, SECTOR};
use crate::syscall::{self, pwritev2};
use crate::sysfs;
use crate::uevents::Uevents;

/// Facts by name. A name is a path: the source of the fact, and its subject.
pub type Facts = BTreeMap<String, String>;

/// A namespace with the device that claims it, and its disk.
pub struct Fixture {
    driver: Driver,
    region: Device,
    namespace: Device,
    bound: Device,
    disk: Option<Disk>,
    start: u64,
    end: u64,
}

impl Fixture {
    /// The namespace of a region.
    pub fn new(lab: &Lab, driver: Driver, region: u32) -> Result<Fixture> {
        let namespace = lab.namespace(region)?;
        let region = lab.region(region)?;
        let start = region.resource()?;
        let size: u64 = region.get("size")?.parse()?;
        Ok(Fixture {
            driver,
            region,
            bound: namespace.clone(),
            namespace,
            disk: None,
            start,
            end: start + size,
        })
    }

    /// Records the new state of the namespace.
    pub fn record_disk(&mut self, disk: Option<String>) -> Result<()> {
        self.bound = holder(&self.namespace)?;
        self.disk = disk.map(Disk::named);
        Ok(())
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    pub fn namespace(&self) -> &Device {
        &self.namespace
    }

    /// Collects all facts.
    pub fn collect(&self, facts: &mut Facts) -> Result<()> {
        self.tree(&self.bound.path(""), "nd", facts)?;
        self.tree(&self.namespace.path(""), "namespace", facts)?;
        self.tools(facts)?;
        self.reservations(facts)?;
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        self.disk(disk, "", facts)?;
        self.stores(disk, facts)?;
        self.requests(disk, facts)?;
        for (kind, work) in [
            (
                "read_only",
                Fixture::read_only as fn(&Fixture, &Disk, &mut Facts) -> Result<()>,
            ),
            ("rebind", Fixture::rebind),
        ] {
            let mut uevents = Uevents::from_now()?;
            work(self, disk, facts)?;
            let mut order = Vec::new();
            for event in uevents.so_far()? {
                let (what, words) = essence(event);
                self.note(facts, &format!("{kind}/uevent/{what}"), &words);
                order.push(what);
            }
            self.note(facts, &format!("{kind}/uevents"), &order.join(", "));
        }

        disk.cut(PARTITIONS)?;
        self.disk(disk, "partitioned/", facts)?;
        self.disk(&disk.partition(1), "partitioned/first/", facts)?;
        run("wipefs", &["-a", "-q", &disk.node_str()])?;
        run("blockdev", &["--rereadpt", &disk.node_str()])?;
        Ok(())
    }

    /// The facts about a disk or a partition, from the kernel and from tools.
    fn disk(&self, disk: &Disk, kind: &str, facts: &mut Facts) -> Result<()> {
        let dir = fs::canonicalize(disk.path(""))?;
        self.tree(&dir, &format!("{kind}sysfs"), facts)?;
        if let Ok(bdi) = fs::canonicalize(dir.join("bdi")) {
            self.tree(&bdi, &format!("{kind}bdi"), facts)?;
        }
        let listed = run("lsblk", &["-O", "-J", "-b", &disk.node_str()])?;
        let listed = serde_json::from_str(&listed).context("reading what lsblk says")?;
        self.json(&format!("{kind}lsblk"), &listed, facts);
        let report = run("blockdev", &["--report", &disk.node_str()])?;
        self.note(facts, &format!("{kind}blockdev"), &report);
        self.ioctls(disk, kind, facts)
    }

    /// All attributes below a directory, with their permissions. Links are recorded, not followed.
    fn tree(&self, dir: &Path, kind: &str, facts: &mut Facts) -> Result<()> {
        for name in sysfs::names(dir)? {
            // The disk is covered separately.
            if name == "block" && ["nd", "namespace"].contains(&kind) {
                continue;
            }
            let path = dir.join(&name);
            let key = format!("{kind}/{name}");
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                self.tree(&path, &key, facts)?;
            } else if meta.is_symlink() {
                let target = fs::read_link(&path)?;
                self.note(facts, &key, &format!("-> {}", target.display()));
            } else {
                let mode = meta.permissions().mode() & 0o777;
                let value = match (VOLATILE.contains(&name.as_str()), fs::read(&path)) {
                    (true, _) => "(changes)".to_owned(),
                    (_, Ok(bytes)) => self.attribute(&name, &String::from_utf8_lossy(&bytes)),
                    (_, Err(error)) => outcome(Err::<(), _>(error)),
                };
                self.note(facts, &key, &format!("{mode:o} {value}"));
            }
        }
        Ok(())
    }

    fn attribute(&self, name: &str, value: &str) -> String {
        let kept = value.lines().filter(|line| {
            name != "uevent" || !(line.starts_with("MINOR=") || line.starts_with("DISKSEQ="))
        });
        kept.collect::<Vec<_>>().join("\n")
    }

    /// The output of `ndctl list` and `daxctl list`.
    fn tools(&self, facts: &mut Facts) -> Result<()> {
        let number = self.number();
        for (program, args) in [
            (
                "ndctl",
                ["list", "-vvv", "-RX", "-n", self.namespace.name()],
            ),
            ("daxctl", ["list", "-DM", "-Ri", "-r", number]),
        ] {
            let listed = run(program, &args)?;
            let listed = match listed.trim() {
                "" => Value::Null,
                text => serde_json::from_str(text)
                    .with_context(|| format!("reading what {program} says: {text}"))?,
            };
            self.json(program, &listed, facts);
        }
        let driver = self.driver.name();
        for field in ["alias", "parm"] {
            let declared = run("modinfo", &["-F", field, driver])?;
            let mut declared: Vec<&str> = declared.lines().collect();
            declared.sort_unstable();
            self.note(facts, &format!("modinfo/{field}"), &declared.join(" "));
        }
        let debugfs = sysfs::names(Path::new("/sys/kernel/debug").join(driver)).unwrap_or_default();
        self.note(facts, "debugfs", &debugfs.join(" "));
        Ok(())
    }

    /// The reservations in the region.
    fn reservations(&self, facts: &mut Facts) -> Result<()> {
        let mut count = 0;
        for line in fs::read_to_string("/proc/iomem")?.lines() {
            let Some((range, name)) = line.trim_start().split_once(" : ") else {
                continue;
            };
            let Some((start, last)) = range.split_once('-') else {
                continue;
            };
            let start = u64::from_str_radix(start, 16)?;
            let last = u64::from_str_radix(last, 16)?;
            if start >= self.start && last < self.end {
                let place = format!(
                    "{:#x} to {:#x}: {name}",
                    start - self.start,
                    last - self.start
                );
                self.note(facts, &format!("iomem/{count}"), &place);
                count += 1;
            }
        }
        Ok(())
    }

    /// The requests of block devices, with an argument of zeros where they take one.
    fn ioctls(&self, disk: &Disk, kind: &str, facts: &mut Facts) -> Result<()> {
        let file = disk.open_read_only()?;
        for &(name, request, bytes) in REQUESTS {
            let answer =
                syscall::ask(&file, request).map(|answer| answer & (u64::MAX >> (64 - 8 * bytes)));
            self.note(facts, &format!("{kind}ioctl/{name}"), &outcome(answer));
        }
        Ok(())
    }

    /// Writes to attributes, and their values afterwards.
    fn stores(&self, disk: &Disk, facts: &mut Facts) -> Result<()> {
        for (attribute, values) in STORES {
            for value in *values {
                let path = disk.path(attribute);
                let result = sysfs::try_write(&path, value);
                let now = fs::read_to_string(&path).unwrap_or_default();
                let fact = format!("{}, then {now:?}", outcome(result));
                self.note(
                    facts,
                    &format!("store/{attribute}/{}", value.escape_default()),
                    &fact,
                );
            }
        }
        // Other writable attributes are given their own value.
        for name in sysfs::names(disk.path("queue"))? {
            let path = disk.path("queue").join(&name);
            if fs::metadata(&path)?.permissions().mode() & 0o200 == 0 {
                continue;
            }
            if let Ok(value) = fs::read_to_string(&path) {
                let result = outcome(sysfs::try_write(&path, &value));
                self.note(facts, &format!("store/queue/{name}"), &result);
            }
        }
        Ok(())
    }

    /// The results of requests of all kinds.
    fn requests(&self, disk: &Disk, facts: &mut Facts) -> Result<()> {
        let file = disk.open(Access::Direct)?;
        let end = disk.bytes()?;
        let mut page = Buffer::of_pages(4096, 1);
        let mut note = |what: &str, fact: String| self.note(facts, &format!("io/{what}"), &fact);

        note("write", outcome(file.write_at(&page, 0)));
        note("read", outcome(file.read_at(&mut page, 0)));
        note(
            "read/sector",
            outcome(file.read_at(&mut page[..SECTOR], 512)),
        );
        note("read/unaligned", outcome(file.read_at(&mut page, 100)));
        note("read/end", outcome(file.read_at(&mut page, end)));
        note("write/end", outcome(file.write_at(&page, end)));
        for (name, flags) in [
            ("dsync", libc::RWF_DSYNC),
            ("nowait", libc::RWF_NOWAIT),
            ("hipri", libc::RWF_HIPRI),
            ("atomic", RWF_ATOMIC),
        ] {
            let written = pwritev2(&file, &[io::IoSlice::new(&page)], 0, flags);
            note(&format!("write/{name}"), outcome(written));
        }
        note("sync", outcome(file.sync_all()));
        note("discard", outcome(syscall::discard(&file, 0, 4096)));
        note("zero_out", outcome(syscall::zero_out(&file, 0, 4096)));
        for (name, flags) in [
            (
                "punch",
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            ),
            ("zero", FallocateFlags::FALLOC_FL_ZERO_RANGE),
            ("allocate", FallocateFlags::empty()),
        ] {
            let result = fallocate(&file, flags, 0, 4096).map_err(io::Error::from);
            note(&format!("fallocate/{name}"), outcome(result));
        }
        // Manual entries; a btt disk has no badblocks.
        if disk.path("badblocks").exists()
            && sysfs::try_write(disk.path("badblocks"), "64 2\n").is_ok()
        {
            note(
                "read/bad",
                outcome(file.read_at(&mut page, 64 * SECTOR as u64)),
            );
            note(
                "read/beside",
                outcome(file.read_at(&mut page, 72 * SECTOR as u64)),
            );
        }
        Ok(())
    }

    /// A read-only region, and a read-only disk.
    fn read_only(&self, disk: &Disk, facts: &mut Facts) -> Result<()> {
        let page = Buffer::of_pages(4096, 1);
        let open = disk.open(Access::Direct)?;
        for value in ["1", "0"] {
            self.region.set("read_only", value)?;
            let kind = format!("read_only/region/{value}");
            self.note(facts, &format!("{kind}/ro"), &disk.get("ro")?);
            self.note(
                facts,
                &format!("{kind}/write"),
                &outcome(open.write_at(&page, 0)),
            );
            let opened = File::options().write(true).open(disk.node());
            self.note(facts, &format!("{kind}/open"), &outcome(opened.map(drop)));
        }
        for value in [true, false] {
            let kind = format!("read_only/disk/{value}");
            let set = syscall::set_read_only(&open, value);
            self.note(facts, &format!("{kind}/set"), &outcome(set));
            self.note(facts, &format!("{kind}/ro"), &disk.get("ro")?);
            self.note(
                facts,
                &format!("{kind}/write"),
                &outcome(open.write_at(&page, 0)),
            );
        }
        Ok(())
    }

    /// Manual changes, after unbind and bind.
    fn rebind(&self, disk: &Disk, facts: &mut Facts) -> Result<()> {
        syscall::set_read_only(&disk.open_read_only()?, true)?;
        for (attribute, value) in [
            ("dax/write_cache", "0"),
            ("badblocks", "128 1"),
            ("queue/read_ahead_kb", "64"),
        ] {
            if disk.path(attribute).exists() {
                let result = sysfs::try_write(disk.path(attribute), value);
                self.note(facts, &format!("rebind/{attribute}/set"), &outcome(result));
            }
        }
        self.bound.unbind()?;
        self.bound.bind(self.driver)?;
        for attribute in [
            "ro",
            "size",
            "dax/write_cache",
            "badblocks",
            "queue/read_ahead_kb",
        ] {
            let now = fs::read_to_string(disk.path(attribute));
            self.note(facts, &format!("rebind/{attribute}"), &outcome(now));
        }
        Ok(())
    }

    /// Records the members of a JSON value.
    fn json(&self, key: &str, value: &Value, facts: &mut Facts) {
        match value {
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(index, item)| self.json(&format!("{key}/{index}"), item, facts)),
            Value::Object(fields) => fields
                .iter()
                .filter(|(name, _)| !VOLATILE.contains(&name.as_str()))
                .for_each(|(name, item)| self.json(&format!("{key}/{name}"), item, facts)),
            other => self.note(facts, key, &other.to_string()),
        }
    }

    fn note(&self, facts: &mut Facts, key: &str, value: &str) {
        facts.insert(self.normalise(key), self.normalise(value.trim_end()));
    }

    /// Replaces names, numbers and addresses that are specific to this fixture.
    fn normalise(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, kind) in self.names() {
            text = text.replace(&name, kind);
        }
        self.without_addresses(&text)
    }

    /// The number in the names of the region and its devices.
    fn number(&self) -> &str {
        self.region.name().trim_start_matches("region")
    }

    fn names(&self) -> Vec<(String, &'static str)> {
        let attribute = |device: &Device, name: &str| device.get(name).unwrap_or_default();
        let mut names = Vec::new();
        if let Some(disk) = &self.disk {
            for (part, kind) in [
                (disk.clone(), "MAJOR:MINOR"),
                (disk.partition(1), "MAJOR:MINOR1"),
                (disk.partition(2), "MAJOR:MINOR2"),
            ] {
                if let Ok(number) = part.get("dev") {
                    names.push((number, kind));
                }
            }
            names.push((disk.name().to_owned(), "DISK"));
        }
        let number = self.number();
        names.extend([
            // A character device, in mode devdax.
            (
                attribute(&self.bound, &format!("{}/dev", self.bound.name())),
                "MAJOR:MINOR",
            ),
            (attribute(&self.bound, "uuid"), "BOUND-UUID"),
            (attribute(&self.namespace, "uuid"), "NAMESPACE-UUID"),
            (self.bound.name().to_owned(), "BOUND"),
            (self.namespace.name().to_owned(), "NAMESPACE"),
            (self.region.name().to_owned(), "REGION"),
            (format!("nmem{number}"), "NMEM"),
        ]);
        for kind in ["namespace", "pfn", "btt", "dax"] {
            names.push((format!("{kind}{number}."), kind));
        }
        names.retain(|(name, _)| !name.is_empty());
        names
    }

    /// Replaces numbers that are addresses within the region by offsets from its start.
    fn without_addresses(&self, text: &str) -> String {
        let parts = text.split_inclusive(|letter: char| !letter.is_ascii_alphanumeric());
        parts
            .map(|part| {
                let word = part.trim_end_matches(|letter: char| !letter.is_ascii_alphanumeric());
                let number = match word.strip_prefix("0x") {
                    Some(digits) => u64::from_str_radix(digits, 16),
                    None => word.parse(),
                };
                match number {
                    Ok(number) if number >= self.start && number <= self.end => {
                        let rest = &part[word.len()..];
                        format!("START+{:#x}{rest}", number - self.start)
                    }
                    _ => part.to_owned(),
                }
            })
            .collect()
    }
}

/// The subject of a uevent, and its variables except numbers.
fn essence(event: &str) -> (String, String) {
    let numbers = ["SEQNUM=", "MINOR=", "DISKSEQ="];
    let mut words = event.split(' ');
    let (action, path) = words
        .next()
        .and_then(|first| first.split_once('@'))
        .unwrap_or_default();
    // The last part of its path is a number, too.
    let path = match path.split_once("/bdi/") {
        Some((parent, _)) => format!("{parent}/bdi"),
        None => path.to_owned(),
    };
    let name = path.rsplit('/').next().unwrap_or_default();
    let words = words.filter(|word| !word.starts_with("DEVPATH="));
    let words = words.filter(|word| !numbers.iter().any(|number| word.starts_with(number)));
    let said = words.collect::<Vec<_>>().join(" ");
    (format!("{action} {name}"), format!("{path} {said}"))
}

/// The result of an operation, or its error.
fn outcome<T: std::fmt::Debug>(result: io::Result<T>) -> String {
    match result {
        Ok(value) => format!("{value:?}"),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => error.to_string(),
        },
    }
}
