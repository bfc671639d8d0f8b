// SPDX-License-Identifier: GPL-2.0

//! Random bytes as module parameters. The module is loaded with the value that the bytes stand for,
//! and works, or it is not loaded.

use std::ffi::CString;
use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};
use rand::seq::IndexedRandom;

use super::attributes::bytes;
use super::{cases, share};
use crate::command::run;
use crate::disk::Access;
use crate::errno;
use crate::lab::Lab;
use crate::nd::settle;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};
use crate::sysfs;

const LEN: usize = 1 << 20;
const PARAMETERS: [&str; 3] = ["revoke_timeout_ms", "revoke_notice_ms", "suspend_limit_ms"];

pub fn fuzz(lab: &mut Lab) -> Result<()> {
    let disk = lab.prepare(Mode::FsdaxMem)?.disk;
    let right = Buffer::stamped(LEN, 10);
    disk.open(Access::Direct)?.write_all_at(&right, 0)?;
    let name = lab.driver.name();
    lab.driver.unload()?;
    let said = run("modprobe", &["--dry-run", "--verbose", name])?;
    // Options of the configuration follow the path.
    let path = said
        .lines()
        .filter_map(|line| line.strip_prefix("insmod ")?.split_whitespace().next())
        .next_back()
        .with_context(|| format!("modprobe says `{said}`"))?
        .to_owned();

    let (mut loaded, mut refused) = (0_u64, 0_u64);
    let time = share(lab);
    let all = cases(lab, "parameters", time, |lab, random| {
        let mut value = bytes(random);
        value.retain(|byte| *byte != 0);
        let parameter = *PARAMETERS.choose(random).context("no parameters")?;
        let words = [parameter.as_bytes(), b"=", &value].concat();
        let module = File::open(&path)?;
        let result = finit_module(module, &CString::new(words)?, ModuleInitFlags::empty());
        if result.is_err() {
            refused += 1;
            errno::expect(
                "loading the module",
                result.map_err(std::io::Error::from),
                &[Errno::EINVAL, Errno::ERANGE],
            )?;
            ensure!(!lab.driver.is_loaded(), "it is there nevertheless");
            return Ok(());
        }
        loaded += 1;
        settle()?;
        let found: u32 =
            sysfs::read(format!("/sys/module/{name}/parameters/{parameter}"))?.parse()?;
        // Other notations of numbers may be accepted too; these are not checked.
        let text = String::from_utf8_lossy(&value);
        if let Ok(meant) = text.trim().parse::<i128>() {
            ensure!(
                meant == i128::from(found),
                "{meant} was meant, and {found} is there"
            );
        }
        lab.holder_in(0)?.expect_driver(Some(lab.driver))?;
        lab.driver.unload()
    })?;
    println!("measured: {all} times with parameters: {loaded} loaded, {refused} refused");

    lab.driver.load()?;
    let mut found = Buffer::new(LEN);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    expect_same("what was written", &found, &right)
}
