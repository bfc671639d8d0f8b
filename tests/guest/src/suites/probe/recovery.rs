// SPDX-License-Identifier: GPL-2.0

//! The remedies in the messages about refused info blocks.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::block_test::BlockTest;
use super::claims::{UUID, claim};
use crate::command::run;
use crate::disk::Access;
use crate::errno;
use crate::infoblock::Field;
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::ndctl::Mode;
use crate::sectors::{Buffer, expect_same};

/// The remedies in the log work.
pub fn refused_is_not_lost(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::FsdaxMem)?;
    let block = target.good.with_wrong_checksum();
    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;
    let data = target.good.get(Field::DataOffset);
    let right = Buffer::of_pages(1 << 20, 77);
    let found = BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        let mut found = Buffer::of_pages(right.len(), 0);
        disk.open(Access::Direct)?
            .read_exact_at(&mut found, data + 4096)?;
        Ok(found)
    })?;
    expect_same("what the namespace holds", &found, &right)?;

    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;
    let name = target.namespace.name();
    run(
        "ndctl",
        &["create-namespace", "-f", "-e", name, "-m", "fsdax"],
    )?;
    let bound = holder(&target.namespace)?;
    bound.expect_driver(Some(lab.driver))?;
    ensure!(bound.name().starts_with("pfn"), "{bound} is not fsdax");
    Ok(())
}

/// A pfn device that is refused still has the namespace, and the log says how to release it.
pub fn refused_pfn_can_be_saved(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::FsdaxMem)?;
    let namespace = &target.namespace;
    let block = target.good.with(Field::MajorVersion, 2);
    let refused = target.probe_with(lab, &block)?;
    errno::expect("binding it", refused, &[Errno::EOPNOTSUPP])?;

    let pfn = claim(namespace, &[("mode", "ram"), ("uuid", UUID)])?;
    let mut messages = Messages::from_now()?;
    let result = pfn.try_bind(lab.driver);
    errno::expect("binding its pfn device", result, &[Errno::EOPNOTSUPP])?;
    let line = messages.expect(&["the info block for mode"])?;
    ensure!(
        line.contains("write an empty line to the attribute `namespace` of this device"),
        "the log says only `{line}`"
    );
    namespace.set("force_raw", "1")?;
    let result = namespace.try_bind(lab.driver);
    errno::expect("binding a claimed namespace", result, &[Errno::ENXIO])?;
    pfn.give_up_namespace()?;
    namespace.bind(lab.driver)?;
    namespace.unbind()?;
    namespace.set("force_raw", "0")?;
    target.recover(lab)
}
