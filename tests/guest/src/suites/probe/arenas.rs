// SPDX-License-Identifier: GPL-2.0

//! A btt that is so large that it has a second arena.

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::info_blocks::{FURTHER, NO_ARENA};
use super::{BlockTest, find_mark};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::infoblock::{Field, InfoBlock};
use crate::lab::{Lab, holder};
use crate::messages::Messages;
use crate::ndctl::Mode;

/// The info block of the second arena is checked as well, before the btt driver believes it.
pub fn second_arena(lab: &mut Lab) -> Result<()> {
    let target = BlockTest::new(lab, Mode::Sector)?;
    let namespace = &target.namespace;
    let second = BlockTest::with_whole_range(lab, namespace, |disk| {
        target.good.next_arena(&disk.open(Access::Buffered)?)
    })?;
    target.recover(lab)?;

    for (what, block, why) in [
        ("a wrong checksum", second.with_wrong_checksum(), FURTHER),
        (
            "a log before the namespace",
            second.with(Field::ArenaLog, u64::MAX - (1 << 39) - 0xfff),
            NO_ARENA,
        ),
        (
            "a map behind the end",
            second.with(Field::ArenaMap, 1 << 40),
            NO_ARENA,
        ),
        (
            "a next arena that is itself",
            second.with(Field::NextArena, 1 << 39),
            NO_ARENA,
        ),
    ] {
        println!("second arena with {what}");
        write(lab, &target, &block)?;
        let mut messages = Messages::from_now()?;
        let result = target.probe_with(lab, &target.good)?;
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        let line = messages.expect(&["the info block for mode"])?;
        ensure!(line.contains(why), "the log says `{line}`, and not {why}");
        let btt = holder(namespace)?;
        btt.expect_driver(None)?;
        ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");

        btt.give_up_namespace()?;
        write(lab, &target, &second)?;
        let bound = target.bind_with(lab, &target.good)?;
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()?;
    }
    Ok(())
}

fn write(lab: &Lab, target: &BlockTest, block: &InfoBlock) -> Result<()> {
    BlockTest::with_whole_range(lab, &target.namespace, |disk| {
        block.write(&disk.open(Access::Buffered)?)
    })
}
