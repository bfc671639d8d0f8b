// SPDX-License-Identifier: GPL-2.0

//! Stress: devices are unbound and bound for as long as the command line says, with users of every
//! kind, and nothing is leaked. Some are suspended meanwhile, and some are leased before.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use rand::Rng;

use super::fixture::{LEN, contents, write_files};
use super::users::{read_all, read_for_ever, write_for_ever};
use super::{FREE_LIMIT, Fs, UNBIND_LIMIT};
use crate::disk::Access;
use crate::driver::Driver;
use crate::errno;
use crate::filesystem::Mount;
use crate::lab::{Lab, Prepared};
use crate::leaks::Holdings;
use crate::lessee::Lessee;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::nd::Device;
use crate::process::{Child, Link, expect_no_thread_stuck};
use crate::retired::{self, TIMEOUT};
use crate::sectors::expect_same;
use crate::suites::suspend::STATE;
use crate::suites::{Suite, Test};
use crate::sysfs;

pub const SUITE: Suite = Suite {
    name: "revoke_stress",
    tests: &[Test::new("goes_and_comes_back", goes_and_comes_back)
        .within(120)
        .or_as_long_as_asked()],
};

/// How long users may take to get an error after the removal. They compete for two emulated CPUs.
const USERS_LIMIT: Duration = Duration::from_secs(20);
/// How long users run before the device is removed, at most.
const MOST_WORK_MS: u64 = 150;
/// The number of cycles after which the caches of the kernel have reached their size.
const WARM_UP: u64 = 6;
/// How often progress is reported.
const REPORT_INTERVAL: Duration = Duration::from_secs(60);

/// The share of the cycles in which the device is suspended while it is used.
const SUSPENDED: f64 = 0.5;
/// The share of the cycles before which a holder of a lease is told that the device goes.
const LEASED: f64 = 0.25;
/// How long the device is suspended, and how long it is live in between.
const SUSPENDED_FOR: Duration = Duration::from_millis(10);

/// How many bytes are in a pipe at a time, and for how long.
const PIPED: usize = 4 * PAGE;
const PINNED_FOR: Duration = Duration::from_millis(10);

/// A file system on a device of its own.
struct Target {
    fs: Fs,
    region: Prepared,
    node: String,
    /// The last number that is durable in the file `log`.
    logged: u64,
}

fn goes_and_comes_back(lab: &mut Lab) -> Result<()> {
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let mut targets = Vec::new();
    for (region, fs) in [(0, Fs::Ext4), (1, Fs::XfsRmap)] {
        targets.push(Target::make(lab, region, fs)?);
    }
    let holder = match lab.driver {
        Driver::PmemRs => Some(Lessee::load()?[0]),
        Driver::NdPmem => None,
    };
    let (mut cycles, mut warm) = (0, None);
    let (start, mut reported) = (Instant::now(), Instant::now());
    while start.elapsed() < lab.stress || warm.is_none() {
        let target = &mut targets[(cycles % 2) as usize];
        target
            .cycle(lab, holder)
            .with_context(|| format!("in cycle {cycles}, on {:?}", target.fs))?;
        cycles += 1;
        if cycles == WARM_UP {
            warm = Some(Holdings::now()?);
        }
        if reported.elapsed() > REPORT_INTERVAL {
            println!("{cycles} cycles in {} s", start.elapsed().as_secs());
            reported = Instant::now();
        }
    }
    println!(
        "measured: {cycles} cycles in {} s",
        start.elapsed().as_secs()
    );
    expect_no_thread_stuck()?;
    let warm = warm.context("there was no cycle")?;
    warm.expect_unchanged()?;
    warm.expect_no_objects_of(cycles - WARM_UP)?;
    targets.iter().try_for_each(Target::expect_intact)
}

impl Target {
    fn make(lab: &Lab, region: u32, fs: Fs) -> Result<Target> {
        let region = lab.ready(region)?;
        let node = region.disk.node_str();
        let mount = fs.make_and_mount(&node)?;
        write_files(&mount.path(""))?;
        fs::write(mount.path("log"), [0; 8])?;
        mount.unmount()?;
        Ok(Target {
            fs,
            region,
            node,
            logged: 0,
        })
    }

    /// One cycle: the device is mounted and used, removed, all users get an error, and the device
    /// is added again.
    fn cycle(&mut self, lab: &mut Lab, holder: Option<Lessee>) -> Result<()> {
        if let Some(holder) = holder.filter(|_| lab.random.random_bool(LEASED)) {
            self.go_under_lease(lab, holder)
                .context("with a holder of a lease")?;
        }
        let (mount, logged) = self.mount_intact()?;
        let used = mount.path("used");

        let mut mapped = vec![
            Child::start_ready("the reader", |link| read_for_ever(&map(&used)?, link))?,
            Child::start_ready("the writer", |link| write_for_ever(&map(&used)?, link))?,
            Child::start_ready("the forking process", |link| fork(&used, link))?,
        ];
        let log = mount.path("log");
        let mut logger = Child::start_ready("the process that calls fsync", |link| {
            write_log(&log, logged, link)
        })?;
        let mut pinner =
            Child::start_ready("the process that pins pages", |link| pin(&used, link))?;
        let bound = &self.region.bound;
        let mut suspender = None;
        if holder.is_some() && lab.random.random_bool(SUSPENDED) {
            suspender = Some(Child::start_ready("the suspending process", |link| {
                suspend_for_ever(bound, link)
            })?);
        }
        let work = lab.random.random_range(0..MOST_WORK_MS);
        sleep(Duration::from_millis(work));

        let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
        unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
        for user in &mut mapped {
            user.expect_signal(Signal::SIGBUS, USERS_LIMIT)?;
        }
        pinner.expect_done(USERS_LIMIT)?;
        self.logged = logger.hear_value("logged ", USERS_LIMIT)?.parse()?;
        logger.expect_done(USERS_LIMIT)?;
        if let Some(mut suspender) = suspender {
            suspender.expect_done(USERS_LIMIT)?;
        }

        mount.unmount()?;
        retired::await_none(FREE_LIMIT)?;
        bound.bind(lab.driver)
    }

    /// The device is removed while another module has a lease of it, and added again.
    fn go_under_lease(&self, lab: &Lab, holder: Lessee) -> Result<()> {
        let bound = &self.region.bound;
        holder.get(&self.region.disk)?;
        let mut unbind = Child::start("the unbinding process", |_| bound.unbind())?;
        unbind.expect_done(UNBIND_LIMIT + TIMEOUT)?;
        holder.expect_returned()?;
        retired::await_none(FREE_LIMIT)?;
        bound.bind(lab.driver)
    }

    /// Mounts the file system, and checks the contents of the last cycle. Returns the last number
    /// in its log.
    fn mount_intact(&self) -> Result<(Mount, u64)> {
        let mount = self.fs.mount(&self.node)?;
        expect_same(
            "the file `used`",
            &fs::read(mount.path("used"))?,
            &contents(),
        )?;
        let logged = last_logged(&mount.path("log"))?;
        ensure!(
            logged >= self.logged,
            "the log ends with {logged}, and {} was acknowledged as durable",
            self.logged
        );
        Ok((mount, logged))
    }

    /// Checks the file system by fsck, after it has replayed its journal.
    fn expect_intact(&self) -> Result<()> {
        self.mount_intact()?.0.unmount()?;
        self.fs.check(&self.node)
    }
}

fn map(used: &Path) -> Result<Mapping> {
    let file = Access::Buffered.open(used)?;
    Ok(Mapping::of_pages(&file, LEN, Sharing::Shared, true)?)
}

fn fork(used: &Path, link: &mut Link) -> Result<()> {
    let mapping = map(used)?;
    let mut child = Child::start_ready("the child", |link| read_for_ever(&mapping, link))?;
    link.say("ready")?;
    child.expect_signal(Signal::SIGBUS, USERS_LIMIT)?;
    // Its private pages are gone as well.
    read_all(&mapping);
    bail!("the file can still be read through the mapping")
}

/// Puts pages into a pipe and takes them out, until this fails.
fn pin(used: &Path, link: &mut Link) -> Result<()> {
    let mapping = map(used)?;
    let right = contents();
    let (reader, writer) = nix::unistd::pipe()?;
    let mut reader = File::from(reader);
    for (round, from) in (0..LEN).step_by(PIPED).cycle().enumerate() {
        match mapping.give_to_pipe(from, PIPED, &writer) {
            Ok(given) => {
                sleep(PINNED_FOR);
                let mut found = vec![0; given];
                reader.read_exact(&mut found)?;
                expect_same("what is in the pipe", &found, &right[from..][..given])?;
            }
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => return Ok(()),
            Err(error) => return Err(error).context("putting pages into a pipe"),
        }
        if round == 0 {
            link.say("ready")?;
        }
    }
    Ok(())
}

/// Suspends and resumes a device until it leaves.
fn suspend_for_ever(bound: &Device, link: &mut Link) -> Result<()> {
    let left = [Errno::ENODEV, Errno::ENOENT];
    link.say("ready")?;
    loop {
        // A page is pinned; or the device leaves, which ends a suspension.
        for (state, right) in [("suspended", Errno::EBUSY), ("live", Errno::EINVAL)] {
            if let Err(error) = sysfs::try_write(bound.path(STATE), state) {
                let right = [&[right][..], &left].concat();
                let errno = errno::expect::<()>(state, Err(error), &right)?;
                if left.contains(&errno) {
                    return Ok(());
                }
            }
            sleep(SUSPENDED_FOR);
        }
    }
}

/// Writes increasing numbers durably, and reports the last one that is.
fn write_log(log: &Path, mut number: u64, link: &mut Link) -> Result<()> {
    let file = Access::Buffered.open(log)?;
    let right = [Errno::EIO, Errno::ENXIO, Errno::ENODEV, Errno::EROFS];
    link.say("ready")?;
    loop {
        let next = number + 1;
        let written = file
            .write_all_at(&next.to_le_bytes(), 0)
            .and_then(|()| file.sync_all());
        match written {
            Ok(()) => number = next,
            Err(error) => {
                let errno = error.raw_os_error().map(Errno::from_raw);
                ensure!(
                    errno.is_some_and(|errno| right.contains(&errno)),
                    "fsync failed with `{error}`, expected one of {right:?}"
                );
                return link.say(&format!("logged {number}"));
            }
        }
    }
}

fn last_logged(log: &Path) -> Result<u64> {
    let bytes = fs::read(log)?;
    let bytes = bytes
        .try_into()
        .map_err(|_| std::io::Error::from(ErrorKind::InvalidData))
        .context("the log is not a number")?;
    Ok(u64::from_le_bytes(bytes))
}
