// SPDX-License-Identifier: GPL-2.0

//! Resources that a driver may leak.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::sysfs;

/// The resources that a bound driver holds at one moment.
pub struct Holdings {
    iomem: String,
    mappings: Vec<String>,
    available_kib: u64,
    /// The number of objects in each slab cache.
    objects: BTreeMap<String, u64>,
}

/// How much less memory may be available after a loop: the caches of the kernel vary by that much.
/// The struct pages of a 512 MiB namespace take 8 MiB, so a loop that leaks them is detected.
const TOLERANCE_KIB: u64 = 24 << 10;

/// How long resources may take to be freed, and how often they are looked at.
const FREED_LATE: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// How many more objects a slab cache may have without a leak: the count includes objects in the
/// slabs of each CPU. 62 were seen, after 35 cycles as well as after 113.
const NOISE: u64 = 128;
/// Slab caches that are ignored. Virtual address areas of stacks are freed in batches. kmemleak has
/// an entry for each of them and for the objects of all other caches, so its caches vary as much as
/// all of these together.
const NOISY_CACHES: &[&str] = &["vmap_area", "kmemleak_object", "kmemleak_scan_area"];

const SLAB_CACHES: &str = "/sys/kernel/slab";

impl Holdings {
    /// Records the current resources.
    pub fn now() -> Result<Holdings> {
        // Caches are dropped before the measurement. So is the memory that KASAN keeps in
        // quarantine, up to a 32nd of all memory: it is released when the cache that it belongs to
        // is shrunk. The first round keeps recently used objects.
        for _ in 0..2 {
            sysfs::write("/proc/sys/vm/drop_caches", "3")?;
        }
        for cache in sysfs::names(SLAB_CACHES)? {
            let path = format!("{SLAB_CACHES}/{cache}/shrink");
            match sysfs::try_write(&path, "1") {
                // A module has destroyed the cache. The kernel leaves links with its other names.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                result => result.with_context(|| format!("writing to {path}"))?,
            }
        }
        let mut mappings: Vec<String> = fs::read_to_string("/proc/vmallocinfo")?
            .lines()
            .filter(|line| line.contains(" phys="))
            .map(|line| {
                line.split_whitespace()
                    .skip(1)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        // Mappings are listed in the order of virtual addresses, which may differ the next time.
        mappings.sort();
        Ok(Holdings {
            iomem: fs::read_to_string("/proc/iomem")?,
            mappings,
            available_kib: available()?,
            objects: objects()?,
        })
    }

    /// Checks that no more resources are held than at the time of this record. Some are freed late,
    /// after a grace period; what is leaked stays.
    pub fn expect_unchanged(&self) -> Result<()> {
        let deadline = Instant::now() + FREED_LATE;
        loop {
            match self.compare(&Holdings::now()?) {
                Err(_) if Instant::now() < deadline => sleep(POLL_INTERVAL),
                result => return result,
            }
        }
    }

    fn compare(&self, now: &Holdings) -> Result<()> {
        ensure!(
            now.iomem == self.iomem,
            "/proc/iomem was\n{}and is\n{}",
            self.iomem,
            now.iomem
        );
        ensure!(
            now.mappings == self.mappings,
            "device memory was mapped by {:#?} and is by {:#?}",
            self.mappings,
            now.mappings,
        );
        let lost = self.available_kib.saturating_sub(now.available_kib);
        ensure!(lost < TOLERANCE_KIB, "{lost} KiB of memory are gone");
        Ok(())
    }

    /// Checks that no slab cache has grown as if each of `cycles` cycles had leaked an object. Some
    /// objects are freed late, such as inodes of processes that have ended.
    pub fn expect_no_objects_of(&self, cycles: u64) -> Result<()> {
        let deadline = Instant::now() + FREED_LATE;
        loop {
            let grown = self.grown(&Holdings::now()?, NOISE + cycles / 4);
            if grown.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "slab caches have grown in {cycles} cycles: {}",
                grown.join(", ")
            );
            sleep(POLL_INTERVAL);
        }
    }

    /// The slab caches that have more than `limit` objects more than at the time of this record.
    fn grown(&self, now: &Holdings, limit: u64) -> Vec<String> {
        now.objects
            .iter()
            .filter(|(cache, _)| !NOISY_CACHES.contains(&cache.as_str()))
            .map(|(cache, count)| (cache, self.objects.get(cache).copied().unwrap_or(0), count))
            .filter(|(_, before, now)| now.saturating_sub(*before) > limit)
            .map(|(cache, before, now)| format!("{cache} from {before} to {now}"))
            .collect()
    }
}

/// The number of objects in use in each slab cache.
fn objects() -> Result<BTreeMap<String, u64>> {
    let text = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
    // The first two lines are headings.
    let caches = text.lines().skip(2).map(|line| {
        let mut words = line.split_whitespace();
        let name = words.next().context("a line without a name")?;
        let count = words.next().context("a line without a number")?;
        Ok((name.to_owned(), count.parse()?))
    });
    caches.collect()
}

fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let number = line
        .and_then(|rest| rest.split_whitespace().next())
        .context("no MemAvailable")?;
    Ok(number.parse()?)
}

/// The name in `/proc/iomem` of the reservation that starts at this physical address, inside of the
/// persistent memory that the firmware describes.
pub fn reservation(start: u64) -> Result<Option<String>> {
    let iomem = fs::read_to_string("/proc/iomem")?;
    let prefix = format!("{start:08x}-");
    // A resource within another one follows it.
    let innermost = iomem
        .lines()
        .rev()
        .filter_map(|line| line.trim_start().strip_prefix(&prefix))
        .find_map(|rest| rest.split_once(" : "));
    let name = innermost.map(|(_, name)| name.to_owned());
    Ok(name.filter(|name| !name.starts_with("Persistent Memory")))
}
