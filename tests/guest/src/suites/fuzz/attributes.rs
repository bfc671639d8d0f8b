// SPDX-License-Identifier: GPL-2.0

//! Random bytes for every writable attribute of the module, the driver, the disk and its parents,
//! and reads of every readable one. Afterwards the driver works, and the data are intact.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::seq::IndexedRandom;
use rand::{Rng, RngCore};
use rand_chacha::ChaCha8Rng;

use super::{cases, share};
use crate::disk::Access;
use crate::lab::{Lab, Prepared};
use crate::mapping::PAGE;
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};
use crate::retired;
use crate::sectors::{Buffer, expect_same};

const MARK: usize = 1 << 20;
/// The maximum depth of the search for attributes.
const DEPTH: u32 = 3;
/// After this many cases the device is bound again, if necessary, and checked.
const CASES_PER_CHECK: u64 = 40;
/// How long a range may stay busy after its last user.
const FREE_LIMIT: Duration = Duration::from_secs(5);

/// Values that a user may write.
const WORDS: &[&str] = &[
    "",
    "\n",
    "0",
    "1",
    "-1",
    "2",
    "8",
    "511",
    "4096",
    "65536",
    "4294967295",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775808",
    "0x1000",
    "1e9",
    "yes",
    "N",
    "on",
    "write back",
    "write through",
    "none",
    "raw",
    "ram",
    "pmem",
    "add",
    "change",
    "remove",
    "suspended",
    "live",
    "leaving",
    "0 1",
    "64 2",
    "-64 2",
    "18446744073709551615 1",
    "0 2147483648",
    "pmem0",
    "pmem_rs",
    "namespace0.0",
    "pfn0.0",
    "pfn0.1",
    "btt0.0",
    "dax0.0",
    "region0",
    "e820_pmem",
    "5a3b1c9e-0d7f-4a63-9a57-0c2f6c1d8e42",
    "%s%n",
    "../../etc",
];

/// Attributes that are not written, because values that they accept would end the test.
const NOT_WRITTEN: &[&str] = &[
    // Traces every request, into a buffer that is never read.
    "trace",
    // Makes allocations fail, on the debug kernel.
    "fail_make_request",
    "make-it-fail",
];

pub fn fuzz(lab: &mut Lab) -> Result<()> {
    let region = lab.region(0)?;
    let align = region.get("align")?;
    let mut subject = Subject::make(lab)?;
    let mut made_anew = 0;
    let (mut accepted, mut refused, mut read, mut number) = (0_u64, 0_u64, 0_u64, 0);
    let time = share(lab);
    let all = cases(lab, "attributes", time, |lab, random| {
        let attributes = attributes(lab, &subject, &region)?;
        let writable: Vec<&PathBuf> = attributes
            .iter()
            .filter(|attribute| allows(attribute, 0o222))
            .collect();
        let attribute = *writable.choose(random).context("no attributes")?;
        let bytes = bytes(random);
        let what = || {
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
            format!("{shown:?} to {}", attribute.display())
        };
        match write(attribute, &bytes) {
            Ok(()) => accepted += 1,
            Err(_) => refused += 1,
        }
        settle().with_context(what)?;
        number += 1;
        if number % CASES_PER_CHECK == 0 {
            read += read_all(&attributes);
            region.set("align", &align)?;
            region.set("read_only", "0")?;
            if subject.identity()? == subject.identity {
                subject.reset_and_check(lab).with_context(what)?;
            } else {
                // A device that was unbound could be reconfigured, and was.
                made_anew += 1;
                subject = Subject::make(lab).with_context(what)?;
            }
        }
        Ok(())
    })?;
    region.set("align", &align)?;
    println!(
        "measured: {all} writes to attributes: {accepted} accepted, {refused} refused; {read} reads; \
         the namespace was made anew {made_anew} times"
    );
    Ok(())
}

/// A device, and its attributes while it is bound.
struct Subject {
    region: Prepared,
    identity: Vec<String>,
}

impl Subject {
    fn make(lab: &Lab) -> Result<Subject> {
        for namespace in Device::all_of("namespace")? {
            namespace.set("force_raw", "0")?;
        }
        if lab.namespace(0).is_err() {
            ndctl::create(&lab.region(0)?, Mode::Raw, &["-l", "512"])?;
        }
        let region = lab.prepare(Mode::FsdaxMem)?;
        region
            .disk
            .open(Access::Direct)?
            .write_all_at(&Buffer::stamped(MARK, 9), 4096)?;
        let mut subject = Subject {
            region,
            identity: Vec::new(),
        };
        subject.identity = subject.identity()?;
        Ok(subject)
    }

    fn identity(&self) -> Result<Vec<String>> {
        let Prepared {
            namespace, bound, ..
        } = &self.region;
        let mut identity = Vec::new();
        for attribute in ["size", "uuid", "sector_size", "holder"] {
            identity.push(namespace.get(attribute)?);
        }
        for attribute in ["namespace", "uuid", "mode", "align"] {
            identity.push(bound.get(attribute)?);
        }
        Ok(identity)
    }

    /// Resets the attributes with a lasting effect, binds the device again, and checks its
    /// contents.
    fn reset_and_check(&self, lab: &Lab) -> Result<()> {
        let Prepared {
            namespace,
            bound,
            disk,
        } = &self.region;
        namespace.set("force_raw", "0")?;
        if bound.driver().is_some() {
            bound.unbind()?;
        }
        retired::await_none(FREE_LIMIT)?;
        bound.bind(lab.driver)?;
        disk.expect("ro", "0")?;
        disk.expect("badblocks", "")?;
        let file = disk.open(Access::Direct)?;
        let mut found = Buffer::new(MARK);
        file.read_exact_at(&mut found, 4096)?;
        expect_same("what was written", &found, &Buffer::stamped(MARK, 9))?;
        file.write_all_at(&found, 4096)?;
        Ok(())
    }
}

/// Finds the attribute files each time, since a write may remove some.
fn attributes(lab: &Lab, subject: &Subject, region: &Device) -> Result<Vec<PathBuf>> {
    let name = lab.driver.name();
    let Prepared {
        namespace,
        bound,
        disk,
    } = &subject.region;
    let mut dirs = vec![
        PathBuf::from(format!("/sys/module/{name}")),
        PathBuf::from(format!("/sys/bus/nd/drivers/{name}")),
        PathBuf::from(format!("/sys/bus/platform/drivers/{name}")),
        PathBuf::from(format!("/sys/kernel/debug/{name}")),
        PathBuf::from("/sys/block").join(disk.name()),
    ];
    dirs.extend([region, namespace, bound].map(|device| device.path("")));
    let mut found = Vec::new();
    for dir in dirs {
        let Ok(dir) = fs::canonicalize(dir) else {
            continue;
        };
        find(&dir, DEPTH, &mut found);
    }
    // The result must not depend on the order of directory entries.
    found.sort();
    found.dedup();
    ensure!(found.len() > 50, "there are only {found:?}");
    Ok(found)
}

fn find(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    // The directory may be removed meanwhile.
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if NOT_WRITTEN
            .iter()
            .any(|left| name.to_string_lossy() == *left)
        {
            continue;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => find(&entry.path(), depth - 1, found),
            Ok(kind) if kind.is_file() => found.push(entry.path()),
            _ => {}
        }
    }
}

/// Random bytes, or variations of plausible values.
pub fn bytes(random: &mut ChaCha8Rng) -> Vec<u8> {
    match random.random_range(0..8) {
        0 => {
            let mut bytes = vec![0; random.random_range(0..2 * PAGE)];
            random.fill_bytes(&mut bytes);
            bytes
        }
        1 => vec![random.random(); random.random_range(0..2 * PAGE)],
        2 => random.random::<i64>().to_string().into_bytes(),
        _ => WORDS.choose(random).unwrap_or(&"").as_bytes().to_vec(),
    }
}

fn write(attribute: &Path, bytes: &[u8]) -> std::io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(attribute)?
        .write_all(bytes)
}

/// Whether the mode of a file has one of these bits for any user. Root can open files without them.
fn allows(attribute: &Path, rights: u32) -> bool {
    fs::metadata(attribute).is_ok_and(|found| found.permissions().mode() & rights != 0)
}

/// Reads all readable attributes, and returns how many reads succeeded.
fn read_all(attributes: &[PathBuf]) -> u64 {
    let mut count = 0;
    for attribute in attributes {
        let mut bytes = Vec::new();
        let mut read = |file: fs::File| file.take(1 << 20).read_to_end(&mut bytes).is_ok();
        if allows(attribute, 0o444) && fs::File::open(attribute).is_ok_and(&mut read) {
            count += 1;
        }
    }
    count
}
