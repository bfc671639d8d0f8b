// SPDX-License-Identifier: GPL-2.0

//! Copies of the medium that are made while programs write.
//!
//! Three programs write numbers in ascending order, each of them to two places in turn. So at each
//! moment, the number at the second place is that at the first one, or one less:
//!
//! | program | first | second |
//! |---|---|---|
//! | 1 | a file on ext4 | a file on xfs, by `MAP_SYNC` |
//! | 2 | another file on that xfs, by `MAP_SYNC` | a volume of dm-linear, by direct I/O |
//! | 3 | another part of that volume, by direct I/O | and another one |
//!
//! Each number is written to one of several pages. The copy is made from the whole disk, slowly,
//! and the first place before the second one: what is written during the copy is ahead there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

use super::{LIMIT, STATE, expect_state, resume};
use crate::disk::{Access, Disk};
use crate::dm::Mapped;
use crate::filesystem::FileSystem::{Ext4, Xfs};
use crate::filesystem::Mount;
use crate::lab::Lab;
use crate::mapping::{Mapping, PAGE, Sharing};
use crate::nd::Device;
use crate::ndctl::Mode;
use crate::process::{Child, Link};
use crate::sectors::Buffer;
use crate::suites::platform::only_for_pmem_rs;
use crate::syscall::{freeze, thaw};

/// The partitions for ext4, for xfs and for the volume.
const TABLE: &str = "label: gpt\nstart=4096, size=131072\nstart=135168, size=700416\n\
    start=860160, size=8192\n";
/// Where the last one begins, in sectors.
const VOLUME_START: u64 = 860_160;
const VOLUME_SECTORS: u64 = 8192;
/// How many pages each of the places has.
const PAGES: usize = 24;
const LEN: usize = PAGES * PAGE;
/// How long the copy pauses between two places.
const PAUSE: Duration = Duration::from_millis(150);
/// How many copies a check makes.
const COPIES: u32 = 5;

/// A place of numbers: the offsets of its pages on the disk.
struct Place(Vec<u64>);

impl Place {
    /// The pages of a file, on a disk whose data begin at this physical address.
    fn of_file(file: &File, start: u64) -> Result<Place> {
        let mapping = Mapping::of_pages(file, LEN, Sharing::Shared, false)?;
        let page = |page| -> Result<u64> {
            mapping.load(page);
            Ok(mapping.physical(page)? - start)
        };
        Ok(Place(
            (0..LEN).step_by(PAGE).map(page).collect::<Result<_>>()?,
        ))
    }

    /// A part of the volume, which begins this far into it.
    fn of_volume(offset: usize) -> Place {
        let start = VOLUME_START * 512 + offset as u64;
        Place(
            (0..PAGES as u64)
                .map(|page| start + page * PAGE as u64)
                .collect(),
        )
    }

    /// The largest number in a copy of the place.
    fn copy(&self, disk: &File) -> Result<u64> {
        let mut page = Buffer::of_pages(PAGE, 0);
        let mut largest = 0;
        for &offset in &self.0 {
            disk.read_exact_at(&mut page, offset)?;
            let number = page[..8].try_into().context("a short page")?;
            largest = largest.max(u64::from_le_bytes(number));
        }
        Ok(largest)
    }
}

const PROGRAMS: usize = 3;

/// A copy of all numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Copy {
    programs: [[u64; 2]; PROGRAMS],
}

impl Copy {
    fn is_of_one_moment(self) -> bool {
        let follows = |[first, second]: [u64; 2]| first == second || first == second + 1;
        self.programs.into_iter().all(follows)
    }
}

struct Setup {
    bound: Device,
    disk: Disk,
    ext4: Mount,
    xfs: Mount,
    volume: Mapped,
    places: [[Place; 2]; PROGRAMS],
    programs: [Child; PROGRAMS],
}

fn page_of(number: u64) -> usize {
    number as usize % PAGES * PAGE
}

/// Writes numbers by `first` and `second` until it is told to stop.
fn count(
    link: &mut Link,
    mut first: impl FnMut(u64) -> Result<()>,
    mut second: impl FnMut(u64) -> Result<()>,
) -> Result<()> {
    for number in 1.. {
        first(number)?;
        second(number)?;
        if number == PAGES as u64 {
            link.say("ready")?;
        }
        if number % 16 == 0 && link.is_told_to_go()? {
            break;
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)?;
    fallocate(&file, FallocateFlags::empty(), 0, LEN as i64)?;
    file.write_all_at(&vec![0; LEN], 0)?;
    file.sync_all()?;
    Ok(file)
}

fn into(mapping: Mapping) -> impl FnMut(u64) -> Result<()> {
    move |number| {
        mapping.write(page_of(number), &number.to_le_bytes());
        Ok(())
    }
}

impl Setup {
    fn new(lab: &Lab) -> Result<Setup> {
        let prepared = lab.prepare(Mode::FsdaxMem)?;
        let disk = prepared.disk;
        disk.cut(TABLE)?;
        let (first, second) = (disk.partition(1), disk.partition(2));
        Ext4.make(&first.node_str())?;
        Xfs.make_with(&second.node_str(), &["-m", "reflink=0"])?;
        let ext4 = Ext4.mount(&first.node_str(), "dax=always")?;
        let xfs = Xfs.mount(&second.node_str(), "dax=always")?;
        let third = disk.partition(3).node_str();
        let volume = Mapped::new("volume", &format!("0 {VOLUME_SECTORS} linear {third} 0"))?;

        let (one, two) = (create(&ext4.path("one"))?, create(&xfs.path("one"))?);
        let three = create(&xfs.path("two"))?;
        let map = |file: &File, sharing| Mapping::of_pages(file, LEN, sharing, true);
        let raw = volume.disk().open(Access::Direct)?;
        raw.write_all_at(&Buffer::new(3 * LEN), 0)?;
        let write_raw = |offset: usize| {
            let (raw, mut page) = (&raw, Buffer::of_pages(PAGE, 0));
            move |number: u64| {
                page[..8].copy_from_slice(&number.to_le_bytes());
                Ok(raw.write_all_at(&page, (offset + page_of(number)) as u64)?)
            }
        };
        let start = prepared.bound.resource()?;
        let places = [
            [Place::of_file(&one, start)?, Place::of_file(&two, start)?],
            [Place::of_file(&three, start)?, Place::of_volume(0)],
            [Place::of_volume(LEN), Place::of_volume(2 * LEN)],
        ];
        let programs = [
            Child::start_ready("program 1", |link| {
                let first = map(&one, Sharing::Shared)?;
                let second = map(&two, Sharing::Synchronous)?;
                count(link, into(first), into(second))
            })?,
            Child::start_ready("program 2", |link| {
                let first = map(&three, Sharing::Synchronous)?;
                count(link, into(first), write_raw(0))
            })?,
            Child::start_ready("program 3", |link| {
                count(link, write_raw(LEN), write_raw(2 * LEN))
            })?,
        ];
        Ok(Setup {
            bound: prepared.bound,
            disk,
            ext4,
            xfs,
            volume,
            places,
            programs,
        })
    }

    /// Copies what is written first before what is written second.
    fn copy(&self) -> Result<Copy> {
        let disk = self.disk.open(Access::Direct)?;
        let mut programs = [[0; 2]; PROGRAMS];
        for (numbers, places) in programs.iter_mut().zip(&self.places) {
            for (number, place) in numbers.iter_mut().zip(places) {
                *number = place.copy(&disk)?;
                sleep(PAUSE);
            }
        }
        Ok(Copy { programs })
    }

    /// Ends the programs, and checks that the last numbers are there.
    fn end(mut self) -> Result<()> {
        for program in &mut self.programs {
            program.go()?;
            program.expect_done(LIMIT)?;
        }
        let copy = self.copy()?;
        self.xfs.unmount()?;
        self.ext4.unmount()?;
        println!("at the end: {copy:?}");
        for [first, second] in copy.programs {
            ensure!(first == second, "a program has lost numbers: {copy:?}");
        }
        self.volume.remove()?;
        Ext4.check(&self.disk.partition(1).node_str())?;
        Xfs.check(&self.disk.partition(2).node_str())
    }
}

/// File systems that are frozen by programs. The volume is written all the same, and pages of
/// `MAP_SYNC` may be.
pub fn freeze_alone(lab: &mut Lab) -> Result<()> {
    let setup = Setup::new(lab)?;
    let roots = [
        File::open(setup.ext4.point())?,
        File::open(setup.xfs.point())?,
    ];
    for root in &roots {
        freeze(root)?;
    }
    let copy = setup.copy();
    for root in &roots {
        thaw(root)?;
    }
    let copy = copy?;
    println!("with frozen file systems: {copy:?}");
    ensure!(
        !copy.is_of_one_moment(),
        "a copy with frozen file systems is of one moment, so this test proves nothing: {copy:?}"
    );
    drop(roots);
    setup.end()
}

pub fn suspended(lab: &mut Lab) -> Result<()> {
    only_for_pmem_rs(lab)?;
    let setup = Setup::new(lab)?;
    let start = Instant::now();
    let mut before = Copy {
        programs: [[0; 2]; PROGRAMS],
    };
    let mut copies = 0;
    while copies < COPIES || start.elapsed() < lab.stress {
        let mut suspending = Child::start("the suspending process", |_| {
            setup.bound.set(STATE, "suspended")
        })?;
        suspending.expect_done(LIMIT)?;
        let (first, second) = (setup.copy()?, setup.copy()?);
        expect_state(&setup.bound, "suspended")?;
        ensure!(
            first == second,
            "the medium has changed while the disk was suspended: {first:?}, {second:?}"
        );
        ensure!(
            first.is_of_one_moment(),
            "copy {copies} is not of one moment: {first:?}"
        );
        let all = first.programs.iter().flatten();
        ensure!(
            all.zip(before.programs.iter().flatten())
                .all(|(now, before)| now > before),
            "a program has not written since the last copy: {before:?}, {first:?}"
        );
        resume(&setup.bound)?;
        before = first;
        copies += 1;
        sleep(Duration::from_millis(100));
    }
    println!("{copies} copies, the last one {before:?}");
    setup.end()
}
