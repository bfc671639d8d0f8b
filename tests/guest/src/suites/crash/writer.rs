// SPDX-License-Identifier: GPL-2.0

//! Writers: each is a process with blocks of its own, which tells the host which writes are
//! durable.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::block::{BLOCK, Slot, filled};
use super::port::Port;
use crate::mapping::{Mapping, Sharing};
use crate::process::Link;

/// How many blocks each writer has.
pub const BLOCKS: u32 = 256;
/// The same in bytes.
pub const LEN: usize = BLOCKS as usize * BLOCK;
/// How many blocks a write has, at most.
const MOST: u32 = 8;
/// The pause between the writes of a writer that does not sync.
const LIARS_PAUSE: Duration = Duration::from_millis(20);

/// How a writer makes its data durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `write`, and then `fsync`.
    Fsync,
    /// `write`, and then `fdatasync`.
    Fdatasync,
    /// `write` to a file that is open with `O_DSYNC`.
    Dsync,
    /// The same with `O_DIRECT`: a disk gets the data and a flush with one request.
    DirectDsync,
    /// `write` with `O_DIRECT`, and then `fdatasync`.
    DirectFdatasync,
    /// Stores into a mapping, and then `msync`.
    Msync,
    /// Stores into a mapping with `MAP_SYNC`, and instructions that flush the CPU cache.
    MapSync,
    /// A new file for each block, which is written, synced, and takes the place of the old one.
    Rename,
    /// Not at all, but the writer claims that it did.
    Lie,
}

impl Way {
    /// Whether the writer uses a mapping.
    pub fn maps(self) -> bool {
        matches!(self, Way::Msync | Way::MapSync)
    }

    fn flags(self) -> i32 {
        match self {
            Way::Dsync => libc::O_DSYNC,
            Way::DirectDsync => libc::O_DIRECT | libc::O_DSYNC,
            Way::DirectFdatasync => libc::O_DIRECT,
            _ => 0,
        }
    }
}

/// The location of a writer's blocks.
#[derive(Clone, Debug)]
pub enum Home {
    /// In a file or on a disk, from this offset on.
    File { path: PathBuf, start: u64 },
    /// Each block in a file of its own, in this directory.
    Directory(PathBuf),
}

impl Home {
    /// Makes it, empty and durable.
    pub fn make(&self) -> Result<()> {
        let path = match self {
            Home::File { path, .. } => {
                let file = File::create(path)?;
                file.set_len(LEN as u64)?;
                file.sync_all()?;
                path
            }
            Home::Directory(path) => {
                fs::create_dir(path)?;
                path
            }
        };
        Ok(File::open(path.parent().context("a file of no directory")?)?.sync_all()?)
    }

    /// Removes it.
    pub fn remove(&self) -> Result<()> {
        match self {
            Home::File { path, .. } => fs::remove_file(path)?,
            Home::Directory(path) => fs::remove_dir_all(path)?,
        }
        Ok(())
    }

    /// The contents of all blocks, with zeros for blocks that do not exist.
    pub fn read(&self) -> Result<Vec<u8>> {
        match self {
            Home::File { path, start } => {
                // The page cache may differ from the medium.
                let disk = path.starts_with("/dev");
                let flags = if disk { libc::O_DIRECT } else { 0 };
                let file = OpenOptions::new()
                    .read(true)
                    .custom_flags(flags)
                    .open(path)?;
                let mut bytes = crate::sectors::Buffer::of_pages(LEN, 0);
                file.read_exact_at(&mut bytes, *start)?;
                Ok(bytes.to_vec())
            }
            Home::Directory(path) => {
                let mut bytes = vec![0; LEN];
                for (block, bytes) in bytes.chunks_exact_mut(BLOCK).enumerate() {
                    match fs::read(path.join(block.to_string())) {
                        Ok(found) => {
                            ensure!(
                                found.len() == BLOCK,
                                "{}/{block} has {} bytes",
                                path.display(),
                                found.len()
                            );
                            bytes.copy_from_slice(&found);
                        }
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Ok(bytes)
            }
        }
    }
}

/// A writer that is ready to run.
pub struct Writer {
    pub id: usize,
    pub seed: u64,
    pub way: Way,
    pub home: Home,
    /// The last write that is on the medium.
    pub last: u32,
    pub random: ChaCha8Rng,
}

/// The open file or directory of a writer.
enum Target {
    File(File, u64),
    Mapping(Mapping),
    Directory(PathBuf),
}

impl Writer {
    /// Writes until it is told to stop or its device is gone, and returns which.
    pub fn work(mut self, link: &mut Link) -> Result<()> {
        let mut port = Port::open()?;
        let target = self.open()?;
        link.say("ready")?;
        while !link.is_told_to_go()? {
            self.last += 1;
            let most = if self.way == Way::Rename { 1 } else { MOST };
            let count = self.random.random_range(1..=most);
            let first = self.random.random_range(0..=BLOCKS - count);
            let slots = (first..first + count).map(|block| Slot {
                seed: self.seed,
                writer: self.id as u32,
                block,
            });
            match self.write(&target, first, &filled(slots, self.last)) {
                Ok(()) => port.durable(self.id, first, count, self.last)?,
                Err(error) if is_gone(&error) => return link.say("gone"),
                Err(error) => return Err(error).context("writing"),
            }
        }
        link.say("stopped")
    }

    fn open(&self) -> Result<Target> {
        let (path, start) = match &self.home {
            Home::Directory(path) => return Ok(Target::Directory(path.clone())),
            Home::File { path, start } => (path, *start),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(self.way.flags())
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let sharing = match self.way {
            Way::Msync => Sharing::Shared,
            Way::MapSync => Sharing::Synchronous,
            _ => return Ok(Target::File(file, start)),
        };
        Ok(Target::Mapping(Mapping::new(&file, LEN, sharing)?))
    }

    fn write(&self, target: &Target, first: u32, bytes: &[u8]) -> io::Result<()> {
        let at = first as usize * BLOCK;
        match target {
            Target::File(file, start) => {
                file.write_all_at(bytes, start + at as u64)?;
                match self.way {
                    Way::Fsync => file.sync_all(),
                    Way::Fdatasync | Way::DirectFdatasync => file.sync_data(),
                    Way::Lie => {
                        sleep(LIARS_PAUSE);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            }
            Target::Mapping(mapping) => {
                mapping.write(at, bytes);
                if self.way == Way::Msync {
                    return mapping.sync_part(at, bytes.len());
                }
                mapping.flush_part(at, bytes.len());
                Ok(())
            }
            Target::Directory(path) => replace(path, first, bytes),
        }
    }
}

/// Replaces a file by a new one, as editors and databases do.
fn replace(dir: &Path, block: u32, bytes: &[u8]) -> io::Result<()> {
    let (new, old) = (dir.join("new"), dir.join(block.to_string()));
    let file = File::create(&new)?;
    file.write_all_at(bytes, 0)?;
    file.sync_all()?;
    fs::rename(new, old)?;
    File::open(dir)?.sync_all()
}

/// Whether an error means that the device is gone.
fn is_gone(error: &io::Error) -> bool {
    // Writes to a removed disk report that no space is left.
    let gone = [
        Errno::EIO,
        Errno::ENXIO,
        Errno::ENODEV,
        Errno::EROFS,
        Errno::ENOSPC,
    ];
    let errno = error.raw_os_error().map(Errno::from_raw);
    errno.is_some_and(|errno| gone.contains(&errno))
}
