// SPDX-License-Identifier: GPL-2.0

//! The module `injector`: a provider of persistent memory whose media errors are injected.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::arch::UNUSED_MEMORY;
use crate::command::run;
use crate::disk::Disk;
use crate::nd::{Device, settle};
use crate::sysfs;

const DEBUGFS: &str = "/sys/kernel/debug/injector";
/// The start and the size of its memory.
const START: u64 = UNUSED_MEMORY;
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

    /// Uses the provider that is there. Without it every call fails.
    pub fn attach() -> Injector {
        Injector(())
    }

    pub fn is_loaded() -> bool {
        Path::new("/sys/module").join(Self::NAME).exists()
    }

    /// Loads the provider. If it was loaded already, it is reloaded, and its memory has no errors.
    pub fn new() -> Result<Injector> {
        if Self::is_loaded() {
            Injector(()).unload()?;
        }
        let (start, size) = (format!("start={START}"), format!("size={SIZE}"));
        run("modprobe", &[Self::NAME, &start, &size])?;
        settle()?;
        Ok(Injector(()))
    }

    /// Makes the provider find and report a media error.
    pub fn inject(&self, address: u64, len: u64) -> Result<()> {
        sysfs::write(Self::file("inject"), &format!("{address:#x} {len}"))
    }

    /// Makes a provider find and report a media error in the region of any disk.
    pub fn inject_elsewhere(&self, disk: &Disk, address: u64, len: u64) -> Result<()> {
        let command = format!("{address:#x} {len} {}", disk.node().display());
        sysfs::write(Self::file("inject"), &command)
    }

    /// Reports a hardware memory error in the page at this address: its users are notified, and the
    /// kernel removes the page from its linear mapping.
    pub fn fail(&self, address: u64) -> Result<()> {
        sysfs::write(Self::file("fail"), &format!("{address:#x}"))
    }

    /// As [`Self::fail`], but the page is removed only `delay` later. Returns then.
    pub fn fail_slowly(&self, address: u64, delay: Duration) -> Result<()> {
        let millis = delay.as_millis();
        sysfs::write(Self::file("fail"), &format!("{address:#x} {millis}"))
    }

    /// Limits how many bytes a request to clear errors clears; with 0 all requests fail.
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

    /// Opens a file of the module.
    pub fn open_file(&self) -> Result<File> {
        let path = Self::file("clears");
        File::open(&path).with_context(|| format!("opening {}", path.display()))
    }

    /// Unloads the module.
    pub fn unload(&self) -> Result<()> {
        // Bound devices hold a reference to the provider.
        for region in Device::all_of("region")? {
            if region.driver().is_some() {
                region.unbind()?;
            }
        }
        run("rmmod", &[Self::NAME])?;
        Ok(())
    }

    fn file(name: &str) -> PathBuf {
        Path::new(DEBUGFS).join(name)
    }
}

/// Waits for an attribute to change.
pub struct Watch(File);

impl Watch {
    /// Starts to watch an attribute.
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
        // Without a change, a sysfs file is always readable and writable.
        let flags = PollFlags::POLLPRI | PollFlags::POLLERR;
        let mut fds = [PollFd::new(self.0.as_fd(), flags)];
        poll(&mut fds, PollTimeout::try_from(patience)?)?;
        Ok(fds[0].revents().is_some_and(|found| found.contains(flags)))
    }

    /// Checks that the attribute was notified, and its value.
    pub fn expect(&mut self, value: &str) -> Result<()> {
        ensure!(
            self.is_woken(Duration::from_secs(2))?,
            "the poller was not woken; the attribute is `{}`",
            self.read()?
        );
        let found = self.read()?;
        ensure!(found == value, "woken for `{found}`, expected `{value}`");
        Ok(())
    }

    /// Checks that the attribute was not notified.
    pub fn expect_not_notified(&self) -> Result<()> {
        ensure!(!self.is_woken(Duration::ZERO)?, "the poller was woken");
        Ok(())
    }
}
