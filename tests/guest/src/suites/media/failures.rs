// SPDX-License-Identifier: GPL-2.0

//! Hardware memory errors (`memory_failure()`): processes that use the page are killed, or notified
//! if they asked for it, and the kernel removes the page from its linear mapping.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::{Bench, open};
use crate::bus_error;
use crate::disk::Access;
use crate::errno;
use crate::filesystem::FileSystem::{self, Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, PMD, Sharing, need_huge_pages};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sectors::{Buffer, SECTOR, expect_same, stamped};
use crate::syscall;
use crate::sysfs;
use crate::tracing::FaultTrace;

const LIMIT: Duration = Duration::from_secs(20);

/// A file of two PMDs, on a file system that finds the users of a page if its type supports that.
struct Fixture {
    bench: Bench,
    fs: FileSystem,
    mount: Mount,
    file: File,
}

const LEN: usize = 2 * PMD;

impl Fixture {
    fn new(lab: &Lab, fs: FileSystem) -> Result<Fixture> {
        let bench = Bench::new(lab, Mode::FsdaxMem)?;
        let node = bench.disk.node_str();
        match fs {
            Ext4 => fs.make(&node)?,
            Xfs => fs.make_with(&node, &["-m", "rmapbt=1,reflink=0"])?,
        }
        let mount = fs.mount(&node, "dax=always")?;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(mount.path("file"))?;
        // Space is allocated first, so that xfs aligns it for PMDs.
        nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, LEN as i64)?;
        file.write_all_at(&stamped(LEN, 1), 0)?;
        file.sync_all()?;
        Ok(Fixture {
            bench,
            fs,
            mount,
            file,
        })
    }

    /// Starts a process that maps the file and uses one page of it, and reports its virtual and
    /// physical address.
    fn user(&self, name: &'static str, page: usize, size: usize) -> Result<User> {
        let path = self.mount.path("file");
        self.start(name, |link| {
            let file = open(&path)?;
            let mapping = if size == PMD {
                Mapping::new(&file, LEN, Sharing::Shared)?
            } else {
                Mapping::of_pages(&file, LEN, Sharing::Shared, true)?
            };
            use_page(link, &mapping, page)
        })
    }

    /// Starts a process whose work calls [`use_page`].
    fn start(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Link) -> Result<()>,
    ) -> Result<User> {
        let mut child = Child::start_ready(name, work)?;
        let address = child.hear_value("address ", LIMIT)?.parse()?;
        let physical = child.hear_value("physical ", LIMIT)?.parse()?;
        Ok(User {
            child,
            address,
            physical,
        })
    }

    fn finish(self) -> Result<()> {
        drop(self.file);
        self.mount.unmount()?;
        self.fs.check(&self.bench.disk.node_str())
    }
}

struct User {
    child: Child,
    address: u64,
    physical: u64,
}

/// Reads a page, waits for a word from the parent, reports any SIGBUS that came meanwhile, waits
/// for another word, and reads the page again.
fn use_page(link: &mut Link, mapping: &Mapping, page: usize) -> Result<()> {
    let mut sigbus = SigSet::empty();
    sigbus.add(Signal::SIGBUS);
    sigbus.thread_block()?;
    let signals = SignalFd::with_flags(&sigbus, SfdFlags::SFD_NONBLOCK)?;
    // Requests the signal even without an access to the page.
    syscall::request_early_memory_failure_signals()?;
    mapping.load(page * PAGE);
    link.say(&format!("address {}", mapping.address() + page * PAGE))?;
    link.say(&format!("physical {}", mapping.physical(page * PAGE)?))?;
    link.say("ready")?;

    link.wait()?;
    let signal = signals.read_signal()?;
    link.say(&match signal {
        Some(signal) => format!("signal {} {}", signal.ssi_code, signal.ssi_addr),
        None => "signal none".to_owned(),
    })?;
    link.wait()?;
    let mut right = stamped(LEN, 1)[page * PAGE..][..PAGE].to_vec();
    if signal.is_some() {
        right = stamped(PAGE, 2);
    }
    expect_same("at last", &mapping.to_vec(page * PAGE, PAGE), &right)
}

impl User {
    /// Checks which signal the process has received.
    fn expect_signal(&mut self, right: &str) -> Result<()> {
        self.child.go()?;
        let found = self.child.hear_value("signal ", LIMIT)?;
        ensure!(found == right, "the signal was {found}, expected {right}");
        Ok(())
    }

    fn expect_told(&mut self, address: u64) -> Result<()> {
        self.expect_signal(&format!("{} {address}", libc::BUS_MCEERR_AO))
    }

    fn finish(&mut self) -> Result<()> {
        self.child.go()?;
        self.child.expect_done(LIMIT)
    }
}

/// Of two processes that use different pages of a file, only the one whose page fails is notified.
/// The page cannot be read or partly written; a write to the whole page clears it, also for
/// existing mappings.
pub fn page_fails(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const BAD: usize = 3;
    let fixture = Fixture::new(lab, fs)?;
    let mut victim = fixture.user("the victim", BAD, PAGE)?;
    let mut other = fixture.user("the other", BAD + 1, PAGE)?;
    fixture.bench.injector.fail(victim.physical)?;
    victim.expect_told(victim.address)?;
    other.expect_signal("none")?;

    let sector = (victim.physical - fixture.bench.start) / SECTOR as u64;
    fixture.bench.expect_bad(&format!("{sector} 8"))?;
    let at = (BAD * PAGE) as u64;
    let result = fixture.file.read_exact_at(&mut [0; PAGE], at);
    errno::expect("reading the page", result, &[Errno::EIO])?;
    let disk = fixture.bench.disk.open(Access::Direct)?;
    let result = disk.read_at(&mut Buffer::new(SECTOR), (sector + 1) * SECTOR as u64);
    errno::expect("reading a sector of it", result, &[Errno::ENODATA])?;

    // The page is not in the linear mapping, so a write to a part of it would be an oops.
    let result = disk.write_at(&Buffer::stamped(SECTOR, 9), (sector + 1) * SECTOR as u64);
    errno::expect("writing a sector of it", result, &[Errno::ENODATA])?;
    let result = fixture.file.write_at(&[9; 512], at);
    errno::expect("writing a part of it", result, &[Errno::EFAULT])?;
    fixture.bench.expect_clears(&[])?;

    fixture.file.write_all_at(&stamped(PAGE, 2), at)?;
    fixture.bench.expect_bad("")?;
    fixture.bench.expect_clears(&[(sector, 8)])?;
    // Now a partial write succeeds. The sector has its former contents.
    let mut part = Buffer::new(SECTOR);
    disk.read_exact_at(&mut part, (sector + 1) * SECTOR as u64)?;
    disk.write_all_at(&part, (sector + 1) * SECTOR as u64)?;
    drop(disk);
    victim.finish()?;
    other.finish()?;
    let mut right = stamped(LEN, 1);
    right[BAD * PAGE..][..PAGE].copy_from_slice(&stamped(PAGE, 2));
    expect_same("the file", &fs::read(fixture.mount.path("file"))?, &right)?;
    fixture.finish()
}

/// A page fails that a process has mapped twice: the process is notified, and not killed. Processes
/// that access the page later get `BUS_MCEERR_AR`.
pub fn next_process(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const BAD: usize = 3;
    let fixture = Fixture::new(lab, fs)?;
    let path = fixture.mount.path("file");
    let mut victim = fixture.start("the victim", |link| {
        let file = open(&path)?;
        let again = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
        again.load(BAD * PAGE);
        link.say(&format!("again {}", again.address() + BAD * PAGE))?;
        let mapping = Mapping::of_pages(&file, LEN, Sharing::Shared, true)?;
        use_page(link, &mapping, BAD)?;
        expect_same("again", &again.to_vec(BAD * PAGE, PAGE), &stamped(PAGE, 2))
    })?;
    let again = victim.child.hear_value("again ", LIMIT)?;
    fixture.bench.injector.fail(victim.physical)?;
    victim.child.go()?;
    let signal = victim.child.hear_value("signal ", LIMIT)?;
    let right = [victim.address.to_string(), again];
    let right = right.map(|address| format!("{} {address}", libc::BUS_MCEERR_AO));
    ensure!(right.contains(&signal), "the signal was {signal}");

    for mapping in [
        Mapping::of_pages(&fixture.file, LEN, Sharing::Shared, true)?,
        Mapping::new(&fixture.file, LEN, Sharing::Shared)?,
    ] {
        for (page, right) in [
            (BAD - 1, 0),
            (BAD, libc::BUS_MCEERR_AR),
            (BAD, libc::BUS_MCEERR_AR),
            (BAD + 1, 0),
        ] {
            let code = bus_error::code_of_load(&mapping, page * PAGE)?;
            ensure!(code == right, "page {page}: si_code {code}, not {right}");
        }
    }
    let at = (BAD * PAGE) as u64;
    fixture.file.write_all_at(&stamped(PAGE, 2), at)?;
    victim.finish()?;
    fixture.finish()
}

/// A page in the middle of a PMD fails. The memory management marks the first page instead, and
/// without the help of the file system reports that one; but this page is the one that is removed
/// from the linear mapping.
pub fn page_of_pmd_fails(lab: &mut Lab, fs: FileSystem) -> Result<()> {
    const BAD: usize = 100;
    need_huge_pages()?;
    let fixture = Fixture::new(lab, fs)?;
    let trace = FaultTrace::start()?;
    let mut victim = fixture.user("the victim", BAD, PMD)?;
    let mut other = fixture.user("the other", PMD / PAGE + 1, PMD)?;
    ensure!(
        trace.pmds_installed()? == 2,
        "the file is not mapped by PMDs"
    );
    drop(trace);
    fixture.bench.injector.fail(victim.physical)?;
    other.expect_signal("none")?;
    victim.expect_told(match fs {
        Ext4 => victim.address - (BAD * PAGE) as u64,
        Xfs => victim.address,
    })?;

    let at = (BAD * PAGE) as u64;
    fixture.file.write_all_at(&stamped(PAGE, 2), at)?;
    fixture.bench.expect_bad("")?;
    let sector = (victim.physical - fixture.bench.start) / SECTOR as u64;
    fixture.bench.expect_clears(&[(sector, 8)])?;
    victim.finish()?;
    other.finish()?;
    fixture.finish()
}

/// A page that was never cleared is mapped again when the device is bound again.
pub fn rebind(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::new(lab, Xfs)?;
    let mut victim = fixture.user("the victim", 7, PAGE)?;
    fixture.bench.injector.fail(victim.physical)?;
    victim.expect_told(victim.address)?;
    // A process that reads it anyway is killed.
    victim.child.go()?;
    victim.child.expect_signal(Signal::SIGBUS, LIMIT)?;
    let sector = (victim.physical - fixture.bench.start) / SECTOR as u64;
    let Fixture {
        bench, mount, file, ..
    } = fixture;
    drop(file);
    mount.unmount()?;
    bench.bound.unbind()?;
    bench.bound.bind(lab.driver)?;

    // The provider has no record of the error.
    bench.expect_bad("")?;
    let disk = bench.disk.open(Access::Direct)?;
    let place = (sector + 1) * SECTOR as u64;
    disk.write_all_at(&Buffer::stamped(SECTOR, 3), place)?;
    let mut found = Buffer::new(SECTOR);
    disk.read_exact_at(&mut found, place)?;
    expect_same("the sector", &found, &Buffer::stamped(SECTOR, 3))
}

/// badblocks is full. Sectors that were cleared, but could not be removed from it, are reported in
/// the log. A failed page cannot be written before it is in badblocks, or a read would return what
/// the firmware has put there.
pub fn list_is_full(lab: &mut Lab) -> Result<()> {
    const BAD: usize = 3;
    const TAIL: u64 = 4096;
    let fixture = Fixture::new(lab, Ext4)?;
    let disk = fixture.bench.disk.open(Access::Direct)?;
    let write = |sector: u64, len: usize, seed: u64| {
        disk.write_at(&Buffer::stamped(len, seed), sector * SECTOR as u64)
    };
    // The end of the disk is unused.
    let run = fixture.bench.disk.bytes()? / SECTOR as u64 - TAIL;
    let single = |number: u64| run + 64 + number * 4;
    let list = fixture.bench.disk.path("badblocks");
    sysfs::write(&list, &format!("{run} 24"))?;
    for number in 0..511 {
        sysfs::write(&list, &format!("{} 1", single(number)))?;
    }

    let mut messages = Messages::from_now()?;
    write(run + 8, PAGE, 2)?;
    messages.expect(&[&format!("at sector {} is still listed as bad", run + 8)])?;
    let mut found = Buffer::new(PAGE);
    let at = (run + 8) * SECTOR as u64;
    let result = disk.read_at(&mut found, at);
    errno::expect("reading it", result, &[Errno::ENODATA])?;
    // The remedy in the message works.
    write(single(0), SECTOR, 3)?;
    write(run + 8, PAGE, 2)?;
    disk.read_exact_at(&mut found, at)?;
    expect_same("it", &found, &Buffer::stamped(PAGE, 2))?;

    let mut victim = fixture.user("the victim", BAD, PAGE)?;
    fixture.bench.injector.fail(victim.physical)?;
    victim.expect_told(victim.address)?;
    let clears = fixture.bench.injector.clears()?;
    let sector = (victim.physical - fixture.bench.start) / SECTOR as u64;
    let result = write(sector, PAGE, 2);
    errno::expect("writing the page", result, &[Errno::ENODATA])?;
    messages.expect(&["its page has failed, and the list of bad blocks is full"])?;
    ensure!(fixture.bench.injector.clears()? == clears, "it was cleared");
    write(single(1), SECTOR, 3)?;
    fixture
        .file
        .write_all_at(&stamped(PAGE, 2), (BAD * PAGE) as u64)?;
    victim.finish()?;

    write(run, TAIL as usize * SECTOR, 4)?;
    fixture.bench.expect_bad("")?;
    drop(disk);
    fixture.finish()
}

/// `madvise(MADV_HWPOISON)` simulates a failure: the processes that map the page are killed, and no
/// other. The memory is good, so the next process can use it, until it injects a failure itself.
pub fn simulated(lab: &mut Lab) -> Result<()> {
    for fs in [Ext4, Xfs] {
        let fixture = Fixture::new(lab, fs)?;
        let mut other = fixture.user("the other", 2, PAGE)?;
        let path = fixture.mount.path("file");
        for (pages, injected) in [(0..1, 0), (0..2, 0), (0..2, 1)] {
            let mut messages = Messages::from_now()?;
            let mut victim = Child::start("the victim", |link| {
                bus_error::ends_process()?;
                let mapping = Mapping::of_pages(&open(&path)?, LEN, Sharing::Shared, true)?;
                let bytes = pages.len() * PAGE;
                expect_same("it", &mapping.to_vec(0, bytes), &stamped(LEN, 1)[..bytes])?;
                link.say("has read them")?;
                mapping.poison(injected * PAGE).context("MADV_HWPOISON")
            })?;
            victim.hear_value("has read them", LIMIT)?;
            victim.expect_signal(Signal::SIGBUS, LIMIT)?;
            let said = messages.expect(&["recovery action for dax page: Recovered"])?;
            println!("the kernel says: {said}");
            fixture.bench.expect_bad("")?;
        }
        other.expect_signal("none")?;

        let mut found = vec![0; LEN];
        fixture.file.read_exact_at(&mut found, 0)?;
        expect_same("the file", &found, &stamped(LEN, 1))?;
        // A part of a page can be written.
        fixture.file.write_all_at(&stamped(LEN, 1)[..SECTOR], 0)?;
        fixture.bench.expect_clears(&[])?;
        other.finish()?;
        fixture.finish()?;
    }
    Ok(())
}

/// A page for which a failure was simulated fails really later: that failure is recorded, and
/// simulating another does not remove it.
pub fn simulated_and_real(lab: &mut Lab) -> Result<()> {
    const BAD: usize = 3;
    let fixture = Fixture::new(lab, Xfs)?;
    let path = fixture.mount.path("file");
    let simulate = |page: usize| -> Result<()> {
        let mut victim = Child::start("the victim", |_| {
            bus_error::ends_process()?;
            let mapping = Mapping::of_pages(&open(&path)?, LEN, Sharing::Shared, true)?;
            mapping.load(page * PAGE);
            mapping.poison(page * PAGE).context("MADV_HWPOISON")
        })?;
        victim.expect_signal(Signal::SIGBUS, LIMIT)
    };
    simulate(BAD)?;
    let mut victim = fixture.user("the victim of the real failure", BAD, PAGE)?;
    fixture.bench.injector.fail(victim.physical)?;
    victim.expect_told(victim.address)?;
    let sector = (victim.physical - fixture.bench.start) / SECTOR as u64;
    let listed = format!("{sector} 8");
    fixture.bench.expect_bad(&listed)?;
    simulate(BAD + 1)?;
    fixture.bench.expect_bad(&listed)?;

    let at = (BAD * PAGE) as u64;
    fixture.file.write_all_at(&stamped(PAGE, 2), at)?;
    fixture.bench.expect_bad("")?;
    victim.finish()?;
    fixture.finish()
}
