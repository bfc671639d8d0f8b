// SPDX-License-Identifier: GPL-2.0

//! A namespace whose info block can be replaced.

use std::io;

use anyhow::{Result, ensure};
use nix::errno::Errno;

use super::{find_mark, leave_mark};
use crate::disk::{Access, Disk};
use crate::errno;
use crate::infoblock::{Field, InfoBlock};
use crate::lab::{Lab, Prepared, holder};
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::Mode;

/// A namespace whose info block can be replaced.
pub struct BlockTest {
    pub namespace: Device,
    mode: Mode,
    pub good: InfoBlock,
}

impl BlockTest {
    /// Makes the namespace and leaves it unclaimed.
    pub fn new(lab: &Lab, mode: Mode) -> Result<BlockTest> {
        BlockTest::of(lab, lab.prepare(mode)?, mode)
    }

    /// As [`BlockTest::new`], with a namespace that has the mode already.
    pub fn of(lab: &Lab, prepared: Prepared, mode: Mode) -> Result<BlockTest> {
        let Prepared {
            namespace,
            bound,
            disk,
        } = prepared;
        leave_mark(&disk)?;
        bound.unbind()?;
        bound.give_up_namespace()?;
        let good = Self::with_whole_range(lab, &namespace, |disk| {
            InfoBlock::read(&disk.open(Access::Buffered)?, mode)
        })?;
        ensure!(
            good.with(Field::Mode, good.get(Field::Mode)) == good,
            "our checksum is wrong"
        );
        Ok(BlockTest {
            namespace,
            mode,
            good,
        })
    }

    /// Runs `work` with a disk of the whole range of an idle namespace, including the info block.
    pub fn with_whole_range<T>(
        lab: &Lab,
        namespace: &Device,
        work: impl FnOnce(&Disk) -> Result<T>,
    ) -> Result<T> {
        namespace.set("force_raw", "1")?;
        namespace.bind(lab.driver)?;
        let result = work(&Disk::named(namespace.disk_name()?));
        namespace.unbind()?;
        namespace.set("force_raw", "0")?;
        result
    }

    /// Writes another info block and probes the namespace again.
    pub fn probe_with(&self, lab: &Lab, block: &InfoBlock) -> Result<io::Result<()>> {
        Self::with_whole_range(lab, &self.namespace, |disk| {
            block.write(&disk.open(Access::Buffered)?)
        })?;
        let result = self.namespace.try_bind(lab.driver);
        settle()?;
        Ok(result)
    }

    /// Writes a valid block, and returns the device that is bound.
    pub fn bind_with(&self, lab: &Lab, block: &InfoBlock) -> Result<Device> {
        let result = self.probe_with(lab, block)?;
        // The namespace itself is refused in favour of the device that was made for it.
        errno::expect("binding the namespace", result, &[Errno::ENXIO])?;
        let bound = holder(&self.namespace)?;
        let kind = if self.mode == Mode::Sector {
            "btt"
        } else {
            "pfn"
        };
        ensure!(
            bound.name().starts_with(kind),
            "{} is held by {bound}",
            self.namespace
        );
        bound.expect_driver(Some(lab.driver))?;
        Ok(bound)
    }

    /// Writes the original block: the namespace is intact, with its contents.
    pub fn recover(&self, lab: &Lab) -> Result<()> {
        let bound = self.bind_with(lab, &self.good)?;
        find_mark(&Disk::named(bound.disk_name()?))?;
        bound.unbind()?;
        bound.give_up_namespace()
    }

    /// Checks that a block is refused with one line in the log, which has the reason and the
    /// remedy.
    pub fn expect_refused(
        &self,
        lab: &Lab,
        what: &str,
        block: &InfoBlock,
        why: &str,
    ) -> Result<()> {
        println!("{:?}: info block with {what}", self.mode);
        let mut messages = Messages::from_now()?;
        let result = self.probe_with(lab, block)?;
        errno::expect(what, result, &[Errno::EOPNOTSUPP])?;
        let line = messages.expect(&["the info block for mode"])?;
        for piece in [why, "force_raw", "ndctl create-namespace -f -e"] {
            ensure!(
                line.contains(piece),
                "the log says `{line}`, and not {piece}"
            );
        }
        self.namespace.expect_driver(None)?;
        ensure!(Disk::all("pmem")?.is_empty(), "there is a disk");
        self.recover(lab)
    }
}
