// SPDX-License-Identifier: GPL-2.0

//! What a device says in sysfs about its last probe.

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;

use super::except;
use super::platform::only_for_pmem_rs;
use super::probe::BlockTest;
use super::{Suite, Test};
use crate::disk::Access;
use crate::errno;
use crate::lab::{Lab, Prepared, Skip};
use crate::messages::Messages;
use crate::nd::{Device, disable_provider, enable_provider};
use crate::ndctl::Mode;
use crate::process::Child;
use crate::sectors::Buffer;

pub const SUITE: Suite = Suite {
    name: "status",
    tests: &[
        Test::new("bound_in_each_mode", bound),
        Test::new("claimed_namespace", claimed),
        Test::new("left_by_except", left),
        Test::new("refused_until_it_is_bound", refused),
        Test::new("refused_device_is_deleted", deleted),
        Test::new("files_are_read_meanwhile", read_meanwhile),
    ],
};

/// Checks what the device says.
fn expect_says(device: &Device, status: &str, file: &str, wanted: &str) -> Result<()> {
    let found = device.get("pmem_rs/status")?;
    ensure!(found == status, "{device} says that it is {found}");
    let found = device.get(&format!("pmem_rs/{file}"))?;
    ensure!(
        found.starts_with(wanted),
        "the {file} of {device} is `{found}`"
    );
    let has_state = status == "bound" && wanted != "sector";
    if has_state {
        let found = device.get("pmem_rs/state")?;
        ensure!(found == "live", "the state of {device} is `{found}`");
    }
    let files = fs::read_dir(device.path("pmem_rs"))?.count();
    ensure!(
        files == 2 + usize::from(has_state),
        "{device} has {files} files"
    );
    Ok(())
}

fn expect_nothing(device: &Device) -> Result<()> {
    ensure!(
        !device.path("pmem_rs").exists(),
        "{device} says something about a probe"
    );
    Ok(())
}

fn bound(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    for (mode, name) in [
        (Mode::Raw, "raw"),
        (Mode::FsdaxMem, "fsdax map=mem"),
        (Mode::FsdaxDev, "fsdax map=dev"),
        (Mode::Sector, "sector"),
    ] {
        let device = lab.prepare(mode)?.bound;
        for _ in 0..2 {
            expect_says(&device, "bound", "mode", name)?;
            device.unbind()?;
            expect_nothing(&device)?;
            device.bind(lab.driver)?;
        }
        lab.driver.unload()?;
        expect_nothing(&device)?;
        lab.driver.load()?;
        expect_says(&device, "bound", "mode", name)?;
    }
    Ok(())
}

/// The namespace says why it is not bound itself.
fn claimed(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let Prepared {
        namespace, bound, ..
    } = lab.prepare(Mode::FsdaxMem)?;
    let reason = "another device has claimed the namespace";
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::ENXIO])?;
    expect_says(&namespace, "refused", "reason", reason)?;
    expect_says(&bound, "bound", "mode", "fsdax")
}

fn left(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let device = lab.prepare(Mode::FsdaxMem)?.bound;
    device.unbind()?;
    except::try_set(&device.get("uuid")?)?;
    let result = device.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::ENODEV])?;
    expect_says(&device, "refused", "reason", "left to other drivers")?;
    except::reset()?;
    device.bind(lab.driver)?;
    expect_says(&device, "bound", "mode", "fsdax")
}

/// Makes a namespace without the info block that its label promises, which is refused.
fn lose_block(lab: &Lab) -> Result<Device> {
    let Prepared {
        namespace, bound, ..
    } = lab.prepare(Mode::FsdaxMem)?;
    bound.unbind()?;
    bound.give_up_namespace()?;
    BlockTest::with_whole_range(lab, &namespace, |disk| {
        Ok(disk
            .open(Access::Direct)?
            .write_all_at(&Buffer::new(8192), 0)?)
    })?;

    let mut messages = Messages::from_now()?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding it", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["is missing, but the label"])?;
    let reason = namespace.get("pmem_rs/reason")?;
    ensure!(
        line.ends_with(&reason),
        "the reason is `{reason}`, and the log says `{line}`"
    );
    Ok(namespace)
}

const MISSING: &str = "the info block for mode fsdax is missing";

fn refused(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let other = lab.driver.other();
    if !other.is_available()? {
        return Err(Skip("nd_pmem is not in the image").into());
    }
    let namespace = lose_block(lab)?;
    // Another driver is kept off, which changes nothing.
    other.load()?;
    namespace.expect_driver(None)?;
    expect_says(&namespace, "refused", "reason", MISSING)?;
    // The module is loaded again, and the device is probed again.
    lab.driver.unload()?;
    expect_nothing(&namespace)?;
    other.unload()?;
    lab.driver.load()?;
    expect_says(&namespace, "refused", "reason", MISSING)?;

    namespace.set("force_raw", "1")?;
    other.load()?;
    namespace.expect_driver(Some(other))?;
    expect_nothing(&namespace)?;
    namespace.unbind()?;
    other.unload()?;
    namespace.bind(lab.driver)?;
    expect_says(&namespace, "bound", "mode", "raw")?;
    namespace.unbind()?;
    expect_nothing(&namespace)?;
    namespace.set("force_raw", "0")
}

fn deleted(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    lose_block(lab)?;
    disable_provider()?;
    enable_provider()?;
    let namespace = lab.namespace(0)?;
    expect_says(&namespace, "refused", "reason", MISSING)?;
    // The module goes before the device.
    lab.driver.unload()?;
    disable_provider()?;
    enable_provider()?;
    lab.driver.load()
}

/// The files are removed while they are read.
fn read_meanwhile(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let device = lab.prepare(Mode::Raw)?.bound;
    let mut reader = Child::start_ready("the reader", |link| {
        link.say("ready")?;
        loop {
            for file in ["status", "mode", "reason"] {
                // The file may be gone.
                if let Ok(text) = fs::read_to_string(device.path("pmem_rs").join(file)) {
                    ensure!(
                        matches!(text.as_str(), "bound\n" | "raw\n"),
                        "{file} has `{text}`"
                    );
                }
            }
        }
    })?;
    for _ in 0..20 {
        device.unbind()?;
        device.bind(lab.driver)?;
    }
    for _ in 0..5 {
        lab.driver.unload()?;
        lab.driver.load()?;
    }
    let ended = reader.try_end()?;
    ensure!(ended.is_none(), "the reader has ended");
    expect_says(&device, "bound", "mode", "raw").context("afterwards")
}
