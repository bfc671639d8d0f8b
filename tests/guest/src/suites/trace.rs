// SPDX-License-Identifier: GPL-2.0

//! The tracepoints of the driver, through tracefs, and the questions of `docs/tracing.md`.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::except;
use super::platform::only_for_pmem_rs;
use super::revoke::{FREE_LIMIT, Fixture, Fs, UNBIND_LIMIT, Under, User, Way, back_to_normal};
use super::{Suite, Test};
use crate::command::run;
use crate::disk::Access;
use crate::errno;
use crate::filesystem::FileSystem::Ext4;
use crate::lab::Lab;
use crate::mapping::PMD;
use crate::ndctl::Mode;
use crate::retired::{self, TIMEOUT};
use crate::sectors::Buffer;
use crate::sysfs;
use crate::tracing::{Events, Trigger};

pub const SUITE: Suite = Suite {
    name: "trace",
    tests: &[
        Test::new("each_event_has_fields", fields),
        Test::new("bind", bind),
        Test::new("which_program_exposed_what", which_program_exposed_what),
        Test::new("why_unbind_takes_long", why_unbind_takes_long),
        Test::new("which_flushes_are_slow", which_flushes_are_slow),
        Test::new("module_goes_while_recording", module_goes_while_recording),
    ],
};

/// The events and their fields, as in `docs/tracing.md`.
const EVENTS: &[(&str, &[&str])] = &[
    ("pmem_bind", &["dev", "mode", "start", "len", "error"]),
    ("pmem_leaving", &["dev", "notice_ms", "timeout_ms"]),
    ("pmem_step", &["dev", "step", "duration_us", "age_us"]),
    ("pmem_wait", &["dev", "user", "duration_us", "age_us"]),
    ("pmem_revoked", &["dev", "inodes", "pages", "age_us"]),
    ("pmem_retire", &["dev", "referenced", "cached", "age_us"]),
    ("pmem_free", &["dev", "retired", "age_us"]),
    ("pmem_expose", &["dev", "offset", "len"]),
    ("pmem_flush", &["dev", "duration_ns", "error"]),
    ("pmem_memory_failure", &["dev", "offset", "len", "error"]),
    ("pmem_repair", &["dev", "offset", "len", "error"]),
    ("pmem_refuse", &["dev", "op", "offset", "len", "error"]),
];

/// There are these events and no others, and scripts find their fields.
fn fields(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let mut found = sysfs::names(Events::file("", ""))?;
    found.retain(|name| name.starts_with("pmem_"));
    let mut events: Vec<_> = EVENTS.iter().map(|(name, _)| *name).collect();
    events.sort_unstable();
    ensure!(found == events, "the events are {found:?}");
    for (event, fields) in EVENTS {
        let format = fs::read_to_string(Events::file(event, "format"))?;
        let found: Vec<_> = format
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix("field:")?.split(';').next())
            .filter_map(|declaration| {
                declaration
                    .split([' ', '['])
                    .rfind(|word| !word.is_empty() && *word != "]")
            })
            .filter(|name| !name.starts_with("common_"))
            .collect();
        ensure!(found == *fields, "{event} has {found:?}");
    }
    Ok(())
}

fn bind(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let bound = lab.prepare(Mode::FsdaxMem)?.bound;
    let dev = format!("dev={}", bound.name());
    bound.unbind()?;
    let events = Events::start()?;
    except::try_set(&bound.get("uuid")?)?;
    let result = bound.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::ENODEV])?;
    let refused = format!("error={}", -(Errno::ENODEV as i32));
    events.expect("pmem_bind", &[&dev, "mode=\"\"", &refused])?;
    except::reset()?;
    bound.bind(lab.driver)?;
    let record = events.expect("pmem_bind", &[&dev, "map=mem\"", "error=0"])?;
    let start = format!("start={:#x}", lab.namespace(0)?.resource()?);
    ensure!(record.fields.contains(&start), "{record:?} has no {start}");
    Ok(())
}

/// The first recipe. What was exposed before is not reported again.
fn which_program_exposed_what(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let prepared = lab.prepare(Mode::FsdaxMem)?;
    let node = prepared.disk.node_str();
    Ext4.make(&node)?;
    let mount = Ext4.mount(&node, "dax=always")?;
    let path = mount.path("file");
    fs::write(&path, vec![7; 2 * PMD])?;
    let name = path.to_string_lossy().into_owned();
    let read = || {
        run(
            "xfs_io",
            &["-r", "-c", "mmap -r 0 4m", "-c", "mread -v 0 8", &name],
        )
    };

    let histogram =
        Trigger::histogram("pmem_expose", "hist:keys=common_pid.execname,dev:vals=len")?;
    read()?;
    let entries = histogram.entries()?;
    println!("{entries:#?}");
    let dev = format!("dev: {}", prepared.bound.name());
    let of_reader = |entry: &&String| entry.contains("common_pid: xfs_io") && entry.contains(&dev);
    ensure!(
        entries.iter().filter(of_reader).count() == 1,
        "the histogram has {entries:?}"
    );
    drop(histogram);

    let events = Events::start()?;
    read()?;
    let again = events.so_far("pmem_expose")?;
    ensure!(again.is_empty(), "exposed again: {again:?}");
    drop(events);
    mount.unmount()
}

/// The second recipe: pages in a pipe delay an unbind until its limit. The steps and the waits are
/// the time that it took.
fn why_unbind_takes_long(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let mut user = User::ClosedPipe.start(&fixture)?;
    let dev = format!("dev={}", fixture.bound()?.name());
    let events = Events::start()?;
    Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    for step in [
        "close_to_mappings",
        "remove_disk",
        "close",
        "kill_dax",
        "revoke",
        "flush",
    ] {
        let record = events.expect("pmem_step", &[&dev, &format!("step={step}")])?;
        println!("{}", record.fields);
    }
    let record = events.expect("pmem_revoked", &[&dev, "inodes=1"])?;
    ensure!(record.number("pages")? > 0, "{record:?} has no pages");
    let retired = events.expect("pmem_retire", &[&dev])?;
    ensure!(retired.number("referenced")? > 0, "{retired:?} has no user");
    let age = retired.number("age_us")?;
    ensure!(
        Duration::from_micros(age) >= TIMEOUT,
        "retired after {age} us"
    );
    user.unpin()?;
    user.expect_gone()?;
    retired::await_none(FREE_LIMIT)?;

    // Waits are reported when they have ended.
    let mut of_pins = 0;
    for record in events.so_far("pmem_wait")? {
        println!("{}", record.fields);
        if record.fields.contains("user=pin ") {
            of_pins += record.number("duration_us")?;
        }
    }
    ensure!(
        of_pins >= age / 2,
        "of {age} us until it was retired, {of_pins} us were waits for pins"
    );
    events.expect("pmem_step", &[&dev, "step=free"])?;
    let free = events.expect("pmem_free", &[&dev, "retired=1"])?;
    ensure!(free.number("age_us")? > age, "{free:?} is not after {age}");
    drop(events);
    back_to_normal(fixture, Way::Unbind)
}

/// The third recipe.
fn which_flushes_are_slow(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for mode in [Mode::Raw, Mode::FsdaxMem] {
        let prepared = lab.prepare(mode)?;
        let dev = format!("dev={}", prepared.bound.name());
        let file = prepared.disk.open(Access::Direct)?;
        let events = Events::start()?;
        file.write_all_at(&Buffer::stamped(4096, 1), 0)?;
        let none = events.so_far("pmem_flush")?;
        ensure!(none.is_empty(), "a write has flushed: {none:?}");
        file.sync_all()?;
        let record = events.expect("pmem_flush", &[&dev, "error=0"])?;
        let duration = record.number("duration_ns")?;
        ensure!(duration > 0, "the flush took no time: {record:?}");
        println!("{}", record.fields);

        for (filter, passes) in [
            ("duration_ns > 60000000000".to_owned(), false),
            (format!("dev != \"{}\"", prepared.bound.name()), false),
            ("error != 0".to_owned(), false),
            (
                format!("duration_ns > 0 && dev == \"{}\"", prepared.bound.name()),
                true,
            ),
        ] {
            drop(Events::start()?);
            let events = Events::start()?;
            let trigger = Trigger::filter("pmem_flush", &filter)?;
            file.sync_all()?;
            let records = events.so_far("pmem_flush")?;
            ensure!(
                records.is_empty() != passes,
                "after `{filter}` there are {records:?}"
            );
            drop(trigger);
        }
        let histogram =
            Trigger::histogram("pmem_flush", "hist:keys=duration_ns.log2:vals=hitcount")?;
        file.sync_all()?;
        let entries = histogram.entries()?;
        ensure!(!entries.is_empty(), "the histogram is empty");
        println!("{entries:?}");
    }
    Ok(())
}

/// Recording does not keep the module, and the events are there when it has come back.
fn module_goes_while_recording(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let file = lab.prepare(Mode::Raw)?.disk.open(Access::Direct)?;
    let events = Events::start()?;
    file.sync_all()?;
    events.expect("pmem_flush", &["error=0"])?;
    drop(file);
    lab.driver.unload()?;
    ensure!(!Events::file("", "").exists(), "the events have stayed");
    lab.driver.load()?;

    let file = lab.prepare(Mode::Raw)?.disk.open(Access::Direct)?;
    file.sync_all()?;
    let records = events.so_far("pmem_flush")?;
    ensure!(records.is_empty(), "still recorded: {records:?}");
    drop(events);
    let events = Events::start()?;
    file.sync_all()?;
    events.expect("pmem_flush", &["error=0"])?;
    Ok(())
}
