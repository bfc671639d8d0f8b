// SPDX-License-Identifier: GPL-2.0

//! Leases: another module holds a disk, and is told before the device goes.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::platform::only_for_pmem_rs;
use super::revoke::{FREE_LIMIT, UNBIND_LIMIT};
use super::{Suite, Test, notice};
use crate::command::run_expecting_failure;
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::injector::Injector;
use crate::lab::{Lab, Prepared};
use crate::lessee::{self, Answer, Lessee};
use crate::mapping::PAGE;
use crate::messages::Messages;
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::retired::{self, TIMEOUT};
use crate::sectors::Buffer;
use crate::sysfs;
use crate::uevents::Uevents;

pub const SUITE: Suite = Suite {
    name: "lease",
    tests: &[
        Test::new("told_and_quiesced", told),
        Test::new("disk_works_in_the_callback", works_in_callback),
        Test::new("told_with_the_notice", with_notice),
        Test::new("claims", claims),
        Test::new("what_cannot_be_leased", refused),
        Test::new("two_partitions", partitions),
        Test::new("holder_does_not_answer", silent),
        Test::new("killed_writer", killed),
        Test::new("without_a_limit", without_limit).within(120),
        Test::new("struct_pages_on_the_medium", on_medium),
        Test::new("holder_is_unloaded", unloaded),
        Test::new("region_goes", region_goes),
        Test::new("below_linear", below_linear),
        Test::new("read_only_below_linear", read_only_below),
        Test::new("below_stripe", below_stripe),
        Test::new("too_many_pages", too_many),
        Test::new("foreign_piece", foreign),
        // From here on the first region is the injector's.
        Test::new("failing_memory", failing),
        Test::new(
            "failing_memory_without_a_callback",
            failing_without_callback,
        ),
    ],
};

const LONG: Duration = Duration::from_secs(30);
/// How messages name the holder.
const KEEPER: &str = "(a lease of the module lessee)";
const VALUE: u64 = 0x1122_3344_5566_7788;
const HALVES: &str = "label: gpt\nstart=4096, size=204800\nstart=409600, size=204800\n";

/// The first disk, and the holders.
fn build(lab: &Lab) -> Result<(Prepared, [Lessee; 2])> {
    only_for_pmem_rs(lab)?;
    retired::set_timeout(lab.driver, TIMEOUT)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    Ok((prepared, Lessee::load()?))
}

fn start_unbind(bound: &Device) -> Result<Child> {
    Child::start("the unbinding process", |_| bound.unbind())
}

fn number_at(disk: &Disk, offset: u64) -> Result<u64> {
    let mut page = Buffer::of_pages(PAGE, 0);
    let page_offset = offset / PAGE as u64 * PAGE as u64;
    disk.open(Access::Direct)?
        .read_exact_at(&mut page, page_offset)?;
    let at = (offset - page_offset) as usize;
    Ok(u64::from_ne_bytes(page[at..at + 8].try_into()?))
}

fn expect_number(disk: &Disk, offset: u64, right: u64) -> Result<()> {
    let found = number_at(disk, offset)?;
    ensure!(
        found == right,
        "{disk} has {found:#x} at {offset}, not {right:#x}"
    );
    Ok(())
}

/// Checks that a message names the holder.
fn expect_named(messages: &mut Messages, text: &str) -> Result<()> {
    let line = messages.expect(&[text])?;
    ensure!(line.contains(KEEPER), "the message says: {line}");
    println!("{line}");
    Ok(())
}

/// A write cache writes while the device goes. All that it has flushed is there.
fn told(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    cache.get(&prepared.disk)?;
    let size = cache.state()?.size;
    ensure!(size == prepared.disk.bytes()?, "it has {size} bytes");
    let mut writer = Child::start("the writer", |_| Ok(cache.write_until_told()?))?;
    cache.await_state("nothing is written", |state| state.flushed > 0)?;

    let mut messages = Messages::from_now()?;
    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT)?;
    writer.expect_done(UNBIND_LIMIT)?;
    cache.expect_returned()?;
    retired::expect(0)?;
    let kept = messages.so_far()?.iter().any(|line| line.contains("lease"));
    ensure!(!kept, "it says that a lease is kept");

    prepared.bound.bind(lab.driver)?;
    let last = cache.state()?.flushed;
    println!("{last} pages were written");
    let places = 256;
    for number in last.saturating_sub(places - 1).max(1)..=last {
        expect_number(&prepared.disk, number % places * PAGE as u64, number)?;
    }
    // And again.
    cache.get(&prepared.disk)?;
    cache.put()
}

/// While the holder is in its callback, the disk is as before.
fn works_in_callback(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, other]) = build(lab)?;
    retired::set_timeout(lab.driver, LONG)?;
    cache.set_answer(Answer::Returns(Duration::from_secs(2)))?;
    cache.get(&prepared.disk)?;
    let mut unbind = start_unbind(&prepared.bound)?;
    cache.await_state("not told", |state| state.told == 1)?;

    let file = prepared.disk.open(Access::Direct)?;
    let page = Buffer::of_pages(PAGE, 7);
    file.write_all_at(&page, 0)?;
    file.sync_all()?;
    let mut found = Buffer::of_pages(PAGE, 0);
    file.read_exact_at(&mut found, 0)?;
    ensure!(*found == *page, "the disk has something else");
    cache.store(PAGE as u64, VALUE)?;
    expect_number(&prepared.disk, PAGE as u64, VALUE)?;
    // It is claimed, and there are no new leases.
    other.expect_refused(&prepared.disk, Errno::EBUSY)?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    ensure!(cache.state()?.answered == 0, "the callback has ended");
    drop(file);
    unbind.expect_done(UNBIND_LIMIT)?;
    cache.expect_returned()?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)?;
    expect_number(&prepared.disk, PAGE as u64, VALUE)
}

/// The holder is told when the notice begins, and the unbind does not wait longer than for it.
fn with_notice(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, other]) = build(lab)?;
    sysfs::write(notice::PARAMETER, "45000")?;
    cache.set_answer(Answer::Returns(Duration::from_secs(1)))?;
    cache.get(&prepared.disk)?;
    let mut unbind = start_unbind(&prepared.bound)?;
    cache.await_state("not told", |state| state.told == 1)?;
    let state = prepared.bound.get("pmem_rs/state")?;
    ensure!(state == "leaving", "the device is {state}");
    cache.store(0, VALUE)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    cache.expect_returned()?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)?;
    expect_number(&prepared.disk, 0, VALUE)?;

    // A device that is leaving cannot be leased.
    // The unbinding process must not have it open.
    let mut opener = Child::start_ready("the opener", |link: &mut Link| {
        let _file = prepared.disk.open_read_only()?;
        link.say("ready")?;
        link.wait()
    })?;
    let mut unbind = start_unbind(&prepared.bound)?;
    sleep(Duration::from_millis(500));
    other.expect_refused(&prepared.disk, Errno::ENXIO)?;
    opener.go()?;
    opener.expect_done(UNBIND_LIMIT)?;
    unbind.expect_done(UNBIND_LIMIT)?;
    notice::reset()?;
    prepared.bound.bind(lab.driver)
}

/// A lease is an exclusive claim.
fn claims(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, other]) = build(lab)?;
    let disk = &prepared.disk;
    let node = disk.node_str();
    Ext4.make(&node)?;
    let exclusive = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL);
        options.open(disk.node())
    };

    cache.get(disk)?;
    errno::expect("O_EXCL", exclusive(), &[Errno::EBUSY])?;
    let mount = run_expecting_failure("mount", &["-t", "ext4", &node, "/mnt"])?;
    println!("mount: {mount}");
    run_expecting_failure("mkfs.ext4", &["-q", &node])?;
    other.expect_refused(disk, Errno::EBUSY)?;
    // The claim ends with the lease.
    cache.put()?;
    other.get(disk)?;
    other.put()?;
    drop(exclusive()?);

    let mount = Ext4.mount(&node, "dax=always")?;
    cache.expect_refused(disk, Errno::EBUSY)?;
    mount.unmount()?;
    let open = exclusive()?;
    cache.expect_refused(disk, Errno::EBUSY)?;
    drop(open);
    cache.get(disk)?;
    cache.put()?;
    Ext4.check(&node)
}

fn refused(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    let (disk, page) = (&prepared.disk, PAGE as u64);
    let size = disk.bytes()?;
    let expect = |offset, len, right| {
        let result = cache.try_get_part(disk, offset, len);
        errno::expect(&format!("{len} bytes from {offset} on"), result, &[right])
    };
    expect(512, page, Errno::EINVAL)?;
    expect(0, 512, Errno::EINVAL)?;
    expect(size, page, Errno::ERANGE)?;
    expect(size, 0, Errno::ERANGE)?;
    expect(size - page, 2 * page, Errno::ERANGE)?;
    expect(0, u64::MAX - page + 1, Errno::ERANGE)?;
    expect(u64::MAX - page + 1, 0, Errno::ERANGE)?;

    cache.try_get_part(disk, size - page, 0)?;
    cache.store(page - 8, VALUE)?;
    expect_number(disk, size - 8, VALUE)?;
    for offset in [page - 7, page, u64::MAX, u64::MAX - 7] {
        for result in [cache.store(offset, 1), cache.load_number(offset, 1)] {
            errno::expect("beyond the end", result, &[Errno::ERANGE])?;
        }
    }
    cache.put()?;

    let region = lab.region(0)?;
    cache.get(disk)?;
    region.set("read_only", "1")?;
    errno::expect(
        "a write to a read-only disk",
        cache.store(0, 1),
        &[Errno::EROFS],
    )?;
    cache.put()?;
    cache.expect_refused(disk, Errno::EACCES)?;
    region.set("read_only", "0")?;
    cache.get(disk)?;
    cache.put()?;

    let number = disk.get("dev")?;
    prepared.bound.unbind()?;
    let (major, minor) = number.split_once(':').context("no device number")?;
    errno::expect(
        "a lease of no device",
        sysfs::try_write(
            "/sys/kernel/debug/lessee/command",
            &format!("get 0 {major} {minor} 0 0"),
        ),
        &[Errno::ENXIO],
    )?;
    prepared.bound.bind(lab.driver)?;
    for mode in [Mode::Raw, Mode::Sector] {
        let other = lab.prepare(mode)?;
        cache.expect_refused(&other.disk, Errno::EOPNOTSUPP)?;
    }
    Ok(())
}

fn partitions(lab: &mut Lab) -> Result<()> {
    let (prepared, [first, second]) = build(lab)?;
    let disk = &prepared.disk;
    disk.cut(HALVES)?;
    let (one, two) = (disk.partition(1), disk.partition(2));
    first.get(&one)?;
    second.expect_refused(disk, Errno::EBUSY)?;
    second.get(&two)?;
    first.store(0, VALUE)?;
    second.store(0, VALUE + 1)?;
    expect_number(disk, 4096 * 512, VALUE)?;
    expect_number(disk, 409_600 * 512, VALUE + 1)?;

    second.set_answer(Answer::Returns(Duration::from_millis(500)))?;
    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT)?;
    first.expect_returned()?;
    second.expect_returned()?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)
}

/// The range of a holder that keeps its lease is retired. Its memory stays until then.
fn silent(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    cache.set_answer(Answer::Keeps)?;
    cache.get(&prepared.disk)?;
    cache.store(0, VALUE)?;
    let mut messages = Messages::from_now()?;
    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    println!(
        "{}",
        messages.expect(&["its lease is kept by the module lessee"])?
    );
    expect_named(&mut messages, "retired ")?;
    for line in retired::expect(1)? {
        ensure!(line.contains(KEEPER), "the list says: {line}");
    }
    // The memory is there, but there is no way to make it durable.
    cache.load_number(0, VALUE)?;
    errno::expect("a flush", cache.store(8, VALUE), &[Errno::EIO])?;
    cache.load_number(8, VALUE)?;
    cache.peek(8, VALUE)?;
    let busy = prepared.bound.try_bind(lab.driver);
    errno::expect("binding", busy, &[Errno::EBUSY, Errno::ENODEV])?;

    let mut uevents = Uevents::from_now()?;
    cache.put()?;
    retired::await_none(FREE_LIMIT)?;
    let event = uevents.expect(&[
        "ACTION=change",
        "DEVPATH=/module/pmem_rs ",
        &format!("PMEM_RS_FREE={} ", prepared.bound.name()),
        &format!("PMEM_RS_RANGE={:#x}-", prepared.namespace.resource()?),
    ])?;
    println!("uevent: {event}");
    prepared.bound.bind(lab.driver)?;
    expect_number(&prepared.disk, 0, VALUE)
}

/// A fatal signal ends the wait for a holder.
fn killed(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    retired::set_timeout(lab.driver, LONG)?;
    cache.set_answer(Answer::Keeps)?;
    cache.get(&prepared.disk)?;
    let mut messages = Messages::from_now()?;
    let mut unbind = start_unbind(&prepared.bound)?;
    cache.await_state("not told", |state| state.answered == 1)?;
    sleep(Duration::from_millis(500));
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    nix::sys::signal::kill(unbind.pid(), nix::sys::signal::Signal::SIGKILL)?;
    unbind.expect_signal(nix::sys::signal::Signal::SIGKILL, UNBIND_LIMIT)?;
    expect_named(&mut messages, "retired ")?;
    retired::expect(1)?;
    cache.put()?;
    retired::await_none(FREE_LIMIT)?;
    prepared.bound.bind(lab.driver)
}

/// Without a limit the unbind waits for the holder, and says so.
fn without_limit(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    retired::set_timeout(lab.driver, Duration::ZERO)?;
    cache.set_answer(Answer::Keeps)?;
    cache.get(&prepared.disk)?;
    let mut messages = Messages::from_now()?;
    let mut unbind = start_unbind(&prepared.bound)?;
    // The time between two messages.
    sleep(Duration::from_secs(33));
    expect_named(&mut messages, "still waiting to unbind")?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    cache.put()?;
    unbind.expect_done(UNBIND_LIMIT)?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)
}

/// A range whose `struct page`s are on the medium is not retired. Unbind waits for the holder, with
/// the disk removed after the limit.
fn on_medium(lab: &mut Lab) -> Result<()> {
    let (_, [cache, _]) = build(lab)?;
    let prepared = lab.prepare(Mode::FsdaxDev)?;
    cache.set_answer(Answer::Keeps)?;
    cache.get(&prepared.disk)?;
    cache.store(0, VALUE)?;
    let mut messages = Messages::from_now()?;
    let mut unbind = start_unbind(&prepared.bound)?;
    sleep(2 * TIMEOUT);
    messages.expect(&["its lease is kept by the module lessee"])?;
    ensure!(unbind.try_end()?.is_none(), "unbind has not waited");
    ensure!(!prepared.disk.exists(), "the disk was not removed");
    cache.load_number(0, VALUE)?;
    cache.put()?;
    unbind.expect_done(UNBIND_LIMIT)?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)?;
    expect_number(&prepared.disk, 0, VALUE)
}

/// The module of the holder cannot be unloaded in a callback. Its exit gives the lease back.
fn unloaded(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    retired::set_timeout(lab.driver, LONG)?;
    cache.get(&prepared.disk)?;
    run_expecting_failure("rmmod", &["pmem_rs"])?;
    lessee::unload()?;
    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT)?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)?;

    let [cache, _] = Lessee::load()?;
    cache.set_answer(Answer::Returns(Duration::from_secs(2)))?;
    cache.get(&prepared.disk)?;
    let mut unbind = start_unbind(&prepared.bound)?;
    cache.await_state("not told", |state| state.told == 1)?;
    let busy = run_expecting_failure("rmmod", &["lessee"])?;
    println!("rmmod: {busy}");
    ensure!(lessee::is_loaded(), "it was unloaded in a callback");
    unbind.expect_done(UNBIND_LIMIT)?;
    cache.expect_returned()?;
    retired::expect(0)?;
    prepared.bound.bind(lab.driver)?;

    // After its range was retired.
    retired::set_timeout(lab.driver, TIMEOUT)?;
    cache.set_answer(Answer::Keeps)?;
    cache.get(&prepared.disk)?;
    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT + TIMEOUT)?;
    retired::expect(1)?;
    lessee::unload()?;
    retired::await_none(FREE_LIMIT)?;
    prepared.bound.bind(lab.driver)
}

/// The removal of the region tells the holder too, and waits no longer than an unbind.
fn region_goes(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    let region = lab.region(0)?;
    for answer in [Answer::Returns(Duration::from_millis(300)), Answer::Keeps] {
        cache.set_answer(answer)?;
        cache.get(&prepared.disk)?;
        let mut remove = Child::start("removing the region", |_| region.unbind())?;
        remove.expect_done(UNBIND_LIMIT + TIMEOUT)?;
        let state = cache.state()?;
        ensure!((state.told, state.answered) == (1, 1), "{state:?}");
        retired::expect(state.held as usize)?;
        cache.put()?;
        retired::await_none(FREE_LIMIT)?;
        region.enable_region()?;
    }
    Ok(())
}

/// A mapped device of one piece has the linear address.
fn below_linear(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, other]) = build(lab)?;
    let below = &prepared.disk;
    let table = format!("0 204800 linear {} 4096", below.node_str());
    let over = Mapped::new("over", &table)?;
    cache.get(over.disk())?;
    other.expect_refused(below, Errno::EBUSY)?;
    let size = cache.state()?.size;
    ensure!(size == 204_800 * 512, "it has {size} bytes");
    cache.store(PAGE as u64, VALUE)?;
    cache.load_number(PAGE as u64, VALUE)?;
    cache.peek(PAGE as u64, VALUE)?;
    expect_number(below, 4096 * 512 + PAGE as u64, VALUE)?;

    start_unbind(&prepared.bound)?.expect_done(UNBIND_LIMIT)?;
    cache.expect_returned()?;
    retired::expect(0)?;
    over.remove()?;
    prepared.bound.bind(lab.driver)?;
    expect_number(below, 4096 * 512 + PAGE as u64, VALUE)
}

/// A region that becomes read-only below a mapped device, which does not.
fn read_only_below(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    let node = prepared.disk.node_str();
    let over = Mapped::new("over", &format!("0 8192 linear {node} 4096"))?;
    let region = lab.region(0)?;
    cache.get(over.disk())?;
    cache.store(0, VALUE)?;
    region.set("read_only", "1")?;
    over.disk().expect("ro", "0")?;
    errno::expect("a write", cache.store(0, 1), &[Errno::EROFS])?;
    cache.load_number(0, VALUE)?;
    cache.put()?;
    cache.expect_refused(over.disk(), Errno::EACCES)?;
    region.set("read_only", "0")?;
    cache.get(over.disk())?;
    cache.store(0, VALUE + 1)?;
    cache.put()?;
    over.remove()?;
    expect_number(&prepared.disk, 4096 * 512, VALUE + 1)
}

/// The pieces of a stripe are at one address. Whichever disk goes, the holder is told once.
fn below_stripe(lab: &mut Lab) -> Result<()> {
    const CHUNK: u64 = 128;
    let (first, [cache, _]) = build(lab)?;
    let second = lab.prepare_in(1, Mode::FsdaxMem)?;
    let (low, high) = (first.disk.node_str(), second.disk.node_str());
    let table = format!("0 262144 striped 2 {CHUNK} {low} 4096 {high} 8192");
    for going in [&first.bound, &second.bound] {
        let over = Mapped::new("over", &table)?;
        cache.get(over.disk())?;
        for chunk in [0, 1, 2, 1000, 2047] {
            let offset = chunk * CHUNK * 512 + PAGE as u64;
            cache.store(offset, VALUE + chunk)?;
            cache.load_number(offset, VALUE + chunk)?;
            cache.peek(offset, VALUE + chunk)?;
            expect_number(over.disk(), offset, VALUE + chunk)?;
        }
        // A number on both sides of a border.
        let border = CHUNK * 512 - 4;
        cache.store(border, VALUE)?;
        cache.load_number(border, VALUE)?;
        ensure!(
            number_at(&first.disk, 4096 * 512 + border - 4)? >> 32 == VALUE & 0xffff_ffff,
            "the first half is elsewhere"
        );
        start_unbind(going)?.expect_done(UNBIND_LIMIT)?;
        cache.expect_returned()?;
        retired::expect(0)?;
        over.remove()?;
        going.bind(lab.driver)?;
    }
    // All pieces are given back: the other one can go, too.
    second.bound.unbind()?;
    second.bound.bind(lab.driver)
}

/// A table with more pages than the machine has.
fn too_many(lab: &mut Lab) -> Result<()> {
    let (prepared, [cache, _]) = build(lab)?;
    let sectors = prepared.disk.bytes()? / 512 / 4096 * 4096;
    let node = prepared.disk.node_str();
    let memory = sysfs::read("/proc/meminfo")?;
    let total: u64 = memory
        .split_whitespace()
        .nth(1)
        .context("no MemTotal")?
        .parse()?;
    let targets = total * 2 / sectors + 2;
    let table: Vec<String> = (0..targets)
        .map(|target| format!("{} {sectors} linear {node} 0", target * sectors))
        .collect();
    let over = Mapped::new("over", &table.join("\n"))?;
    cache.expect_refused(over.disk(), Errno::E2BIG)?;
    // Two of them are mapped.
    cache.try_get_part(over.disk(), 0, 2 * sectors * 512)?;
    cache.store(0, VALUE)?;
    cache.peek(sectors * 512, VALUE)?;
    cache.put()?;
    over.remove()
}

/// A piece of another driver cannot be leased.
fn foreign(lab: &mut Lab) -> Result<()> {
    let (first, [cache, _]) = build(lab)?;
    let second = lab.prepare_in(1, Mode::FsdaxMem)?;
    let other = lab.driver.other();
    second.bound.unbind()?;
    other.load()?;
    second
        .bound
        .expect_driver(Some(other))
        .or_else(|_| second.bound.bind(other))?;
    let foreign = Disk::named(second.bound.disk_name()?);
    cache.expect_refused(&foreign, Errno::EOPNOTSUPP)?;
    let (low, high) = (first.disk.node_str(), foreign.node_str());
    let table = format!("0 8192 linear {low} 4096\n8192 8192 linear {high} 4096");
    let over = Mapped::new("over", &table)?;
    cache.expect_refused(over.disk(), Errno::EOPNOTSUPP)?;
    // The claims were given up, and the piece of this driver can be leased.
    cache.try_get_part(over.disk(), 0, 8192 * 512)?;
    cache.store(0, VALUE)?;
    cache.put()?;
    over.remove()?;
    second.bound.unbind()?;
    other.unload()?;
    second.bound.bind(lab.driver)
}

/// Memory that fails is reported with its place in the lease.
fn failing(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let injector = Injector::new()?;
    let (prepared, [cache, other]) = build(lab)?;
    let page = PAGE as u64;
    let disk = &prepared.disk;
    disk.cut(HALVES)?;
    let (one, two) = (disk.partition(1), disk.partition(2));
    let start = prepared.bound.resource()? + 409_600 * 512;
    other.get(&one)?;
    cache.get(&two)?;
    cache.store(4 * page, VALUE)?;
    cache.store(6 * page, VALUE)?;
    injector.fail(start + 5 * page)?;
    let state = cache.await_state("not told", |state| state.failures == 1)?;
    ensure!(
        (state.failed_offset, state.failed_len) == (5 * page, page),
        "{state:?}"
    );
    ensure!(other.state()?.failures == 0, "another holder was told");
    for offset in [5 * page, 5 * page - 4] {
        errno::expect("a load", cache.load_number(offset, 0), &[Errno::EIO])?;
        errno::expect("a store", cache.store(offset, 0), &[Errno::EIO])?;
    }
    cache.load_number(4 * page, VALUE)?;
    cache.load_number(6 * page, VALUE)?;
    let sectors = page / 512;
    disk.expect("badblocks", &format!("{} {sectors}", 409_600 + 5 * sectors))?;

    // A write to the disk repairs it.
    let repaired = Buffer::of_pages(PAGE, 3);
    let file = two.open(Access::Direct)?;
    file.write_all_at(&repaired, 5 * page)?;
    drop(file);
    cache.store(5 * page, VALUE)?;
    cache.load_number(5 * page, VALUE)?;

    // A known error is no obstacle for a lease, but cannot be read.
    cache.put()?;
    injector.inject(start + 7 * page, 512)?;
    cache.get(&two)?;
    errno::expect("a load", cache.load_number(7 * page, 0), &[Errno::EIO])?;
    cache.load_number(6 * page, VALUE)?;
    cache.put()?;
    other.put()?;
    prepared.bound.unbind()?;
    prepared.bound.bind(lab.driver)
}

/// A failure of which the holder is not told is not handled.
fn failing_without_callback(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let injector = Injector::new()?;
    let (prepared, [cache, _]) = build(lab)?;
    let page = PAGE as u64;
    let start = prepared.bound.resource()?;
    for handles in [true, false] {
        cache.set_handles_bad_memory(handles)?;
        cache.get(&prepared.disk)?;
        let failed = injector.fail(start + 5 * page);
        if handles {
            failed?;
            cache.await_state("not told", |state| state.failures == 1)?;
        } else {
            ensure!(errno::is(&failed, libc::EBUSY), "it gave {failed:?}");
            ensure!(cache.state()?.failures == 0, "it was told");
        }
        cache.put()?;
        // A write to the disk repairs it.
        let repaired = Buffer::of_pages(PAGE, 3);
        prepared
            .disk
            .open(Access::Direct)?
            .write_all_at(&repaired, 5 * page)?;
    }
    prepared.bound.unbind()?;
    prepared.bound.bind(lab.driver)
}
