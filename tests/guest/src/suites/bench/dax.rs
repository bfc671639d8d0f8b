// SPDX-License-Identifier: GPL-2.0

//! Files on ext4 with DAX.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use super::measure::Work;
use super::pair::Side;
use crate::filesystem::FileSystem::Ext4;
use crate::filesystem::Mount;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::syscall::is_dax;

/// The size of the file.
const LEN: usize = 64 << 20;

/// A mounted file system with a file that was completely written once.
struct Fixture {
    // Fields are in the order in which they must be dropped.
    file: File,
    mount: Mount,
}

impl Fixture {
    fn new(side: &Side) -> Result<Fixture> {
        let node = side.disk.node_str();
        // An earlier case may have made it.
        let mount = match Ext4.mount(&node, "dax=always") {
            Ok(mount) => mount,
            Err(_) => {
                Ext4.make(&node)?;
                Ext4.mount(&node, "dax=always")?
            }
        };
        let path = mount.path("file");
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        ensure!(is_dax(&path)?, "{} is not a DAX file", path.display());
        if file.metadata()?.len() != LEN as u64 {
            fallocate(&file, FallocateFlags::empty(), 0, LEN as i64)?;
            let bytes = vec![1; PMD];
            for offset in (0..LEN).step_by(PMD) {
                file.write_all_at(&bytes, offset as u64)?;
            }
        }
        file.sync_all()?;
        Ok(Fixture { file, mount })
    }
}

/// Makes the file, unless an earlier case has.
pub fn make_file(side: &Side) -> Result<()> {
    Fixture::new(side).map(drop)
}

struct Calls {
    fixture: Fixture,
    write: bool,
    bytes: Vec<u8>,
    done: usize,
}

impl Work for Calls {
    fn run(&mut self, operations: u32) -> Result<()> {
        for _ in 0..operations {
            let offset = (self.done * self.bytes.len() % LEN) as u64;
            if self.write {
                self.fixture.file.write_all_at(&self.bytes, offset)?;
            } else {
                self.fixture.file.read_exact_at(&mut self.bytes, offset)?;
            }
            self.done += 1;
        }
        Ok(())
    }
}

/// `read(2)` and `write(2)` of the file, sequentially.
pub fn calls(side: &Side, write: bool, len: usize) -> Result<Box<dyn Work>> {
    Ok(Box::new(Calls {
        fixture: Fixture::new(side)?,
        write,
        bytes: vec![1; len],
        done: 0,
    }))
}

/// The pages that one fault maps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Page,
    Pmd,
}

struct Faults {
    // The mapping must be dropped before the file.
    mapping: Option<Mapping>,
    fixture: Fixture,
    unit: Unit,
    write: bool,
}

impl Work for Faults {
    fn prepare(&mut self) -> Result<()> {
        self.mapping = None;
        let file = &self.fixture.file;
        self.mapping = Some(match self.unit {
            Unit::Page => Mapping::of_pages(file, LEN, Sharing::Shared, self.write)?,
            Unit::Pmd if self.write => Mapping::new(file, LEN, Sharing::Shared)?,
            Unit::Pmd => Mapping::read_only(file, LEN, Sharing::Shared)?,
        });
        Ok(())
    }

    fn run(&mut self, operations: u32) -> Result<()> {
        let step = match self.unit {
            Unit::Page => PAGE,
            Unit::Pmd => PMD,
        };
        if let Some(mapping) = &self.mapping {
            for offset in (0..operations as usize).map(|index| index * step) {
                if self.write {
                    mapping.store(offset, 1);
                } else {
                    black_box(mapping.load(offset));
                }
            }
        }
        Ok(())
    }
}

/// The first access to each page of the file through a mapping, which is a fault.
pub fn faults(side: &Side, unit: Unit, write: bool) -> Result<Box<dyn Work>> {
    Ok(Box::new(Faults {
        mapping: None,
        fixture: Fixture::new(side)?,
        unit,
        write,
    }))
}

struct SyncFaults {
    mapping: Option<Mapping>,
    fixture: Fixture,
    path: PathBuf,
}

/// The size of the file that is recreated for each run of faults.
const FRESH: usize = 4 << 20;

impl Work for SyncFaults {
    fn prepare(&mut self) -> Result<()> {
        self.mapping = None;
        if self.path.exists() {
            fs::remove_file(&self.path)?;
        }
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .open(&self.path)?;
        fallocate(&file, FallocateFlags::empty(), 0, FRESH as i64)?;
        self.fixture.file.sync_all()?;
        self.mapping = Some(Mapping::of_pages(&file, FRESH, Sharing::Synchronous, true)?);
        Ok(())
    }

    fn run(&mut self, operations: u32) -> Result<()> {
        if let Some(mapping) = &self.mapping {
            (0..operations as usize).for_each(|page| mapping.store(page * PAGE, 1));
        }
        Ok(())
    }
}

/// The first write to allocated pages of a file that were never written, with `MAP_SYNC`: each
/// makes the file system write its metadata.
pub fn sync_faults(side: &Side) -> Result<Box<dyn Work>> {
    let fixture = Fixture::new(side)?;
    let path = fixture.mount.path("fresh");
    Ok(Box::new(SyncFaults {
        mapping: None,
        fixture,
        path,
    }))
}

struct Fsync {
    mapping: Mapping,
    fixture: Fixture,
}

/// The number of dirty pages.
const DIRTY: usize = 256;

impl Work for Fsync {
    fn prepare(&mut self) -> Result<()> {
        (0..DIRTY).for_each(|page| self.mapping.store(page * PAGE, 1));
        Ok(())
    }

    fn run(&mut self, _: u32) -> Result<()> {
        Ok(self.fixture.file.sync_all()?)
    }
}

/// `fsync` after 256 pages were written to through a mapping.
pub fn fsync(side: &Side) -> Result<Box<dyn Work>> {
    let fixture = Fixture::new(side)?;
    let mapping = Mapping::of_pages(&fixture.file, LEN, Sharing::Shared, true)?;
    Ok(Box::new(Fsync { mapping, fixture }))
}

struct Copies {
    mapping: Mapping,
    _site: Fixture,
    bytes: Vec<u8>,
}

impl Work for Copies {
    fn prepare(&mut self) -> Result<()> {
        // Avoids faults later.
        self.mapping.read(0, &mut self.bytes);
        Ok(())
    }

    fn run(&mut self, operations: u32) -> Result<()> {
        (0..operations).for_each(|_| self.mapping.read(0, black_box(&mut self.bytes)));
        Ok(())
    }
}

/// Copies bytes out of a mapping of the file. No driver is involved.
pub fn copies(side: &Side, len: usize) -> Result<Box<dyn Work>> {
    let fixture = Fixture::new(side)?;
    let mapping = Mapping::read_only(&fixture.file, LEN, Sharing::Shared)?;
    Ok(Box::new(Copies {
        mapping,
        _site: fixture,
        bytes: vec![0; len],
    }))
}
