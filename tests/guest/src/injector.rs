// SPDX-License-Identifier: GPL-2.0

//! The module `injector`: persistent memory that goes bad on demand.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::command::run;
use crate::nd::{Device, settle};
use crate::sysfs;

const DEBUGFS: &str = "/sys/kernel/debug/injector";
/// What the machine has reserved for it (`memmap=512M$1G`).
const START: u64 = 1 << 30;
const SIZE: u64 = 512 << 20;

/// A request to clear an error that has reached the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clear {
    pub address: u64,
    pub len: u64,
}

/// The provider.
pub struct Injector(());

impl Injector {
    /// The name of the module.
    pub const NAME: &str = "injector";

    /// The provider if it is there; else everything that is asked of it fails.
    pub fn attach() -> Injector {
        Injector(())
    }

    pub fn is_loaded() -> bool {
        Path::new("/sys/module").join(Self::NAME).exists()
    }

    /// Brings the provider, and brings it back if it was there: nothing of its memory is bad then.
    pub fn new() -> Result<Injector> {
        if Self::is_loaded() {
            // What is bound keeps the provider.
            for region in Device::all_of("region")? {
                region.unbind()?;
            }
            run("rmmod", &[Self::NAME])?;
        }
        let (start, size) = (format!("start={START}"), format!("size={SIZE}"));
        run("modprobe", &[Self::NAME, &start, &size])?;
        settle()?;
        Ok(Injector(()))
    }

    /// The provider finds out, and says, that memory is bad.
    pub fn inject(&self, address: u64, len: u64) -> Result<()> {
        sysfs::write(Self::file("inject"), &format!("{address:#x} {len}"))
    }

    /// The CPU finds out that the page at this address is bad: its users are told, and the kernel itself
    /// does not map it any more.
    pub fn fail(&self, address: u64) -> Result<()> {
        sysfs::write(Self::file("fail"), &format!("{address:#x}"))
    }

    /// From now on no request clears more than so many bytes; with 0 all are refused.
    pub fn set_limit(&self, bytes: u64) -> Result<()> {
        sysfs::write(Self::file("limit"), &bytes.to_string())
    }

    /// All requests to clear errors so far.
    pub fn clears(&self) -> Result<Vec<Clear>> {
        sysfs::read(Self::file("clears"))?
            .lines()
            .map(|line| {
                let (address, len) = line.split_once(' ').context("one word in a line")?;
                Ok(Clear {
                    address: u64::from_str_radix(address.trim_start_matches("0x"), 16)?,
                    len: len.parse()?,
                })
            })
            .collect()
    }

    fn file(name: &str) -> PathBuf {
        Path::new(DEBUGFS).join(name)
    }
}

/// Somebody who waits for an attribute to change.
pub struct Watch(File);

impl Watch {
    /// Starts to wait.
    pub fn new(path: &Path) -> Result<Watch> {
        let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        let mut watch = Watch(file);
        watch.read()?;
        Ok(watch)
    }

    fn read(&mut self) -> Result<String> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        Ok(text.trim_end().to_owned())
    }

    fn is_woken(&self, patience: Duration) -> Result<bool> {
        // Without an event, a file in sysfs can be read and written at any time.
        let flags = PollFlags::POLLPRI | PollFlags::POLLERR;
        let mut fds = [PollFd::new(self.0.as_fd(), flags)];
        poll(&mut fds, PollTimeout::try_from(patience)?)?;
        Ok(fds[0].revents().is_some_and(|found| found.contains(flags)))
    }

    /// Checks that it is woken, and by what there is to read then.
    pub fn expect(&mut self, value: &str) -> Result<()> {
        ensure!(
            self.is_woken(Duration::from_secs(2))?,
            "who polls was not woken; it reads `{}`",
            self.read()?
        );
        let found = self.read()?;
        ensure!(found == value, "woken for `{found}`, expected `{value}`");
        Ok(())
    }

    /// Checks that nothing has woken it.
    pub fn expect_asleep(&self) -> Result<()> {
        ensure!(!self.is_woken(Duration::ZERO)?, "who polls was woken");
        Ok(())
    }
}
