// SPDX-License-Identifier: GPL-2.0

//! Info blocks with flipped bits and hostile values: the driver refuses them with one line in the
//! log, or binds a range within the namespace. Neighbouring namespaces are never touched, and the
//! data are intact with the right block.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::{cases, hostile, share};
use crate::command::run;
use crate::disk::{Access, Disk};
use crate::infoblock::{self, Field, InfoBlock, SIGNATURES};
use crate::lab::{Lab, holder};
use crate::mapping::PAGE;
use crate::messages::Messages;
use crate::nd::{Device, settle};
use crate::ndctl::{self, Mode};
use crate::sectors::{Buffer, expect_same};
use crate::suites::probe::BlockTest;

const MODES: [Mode; 4] = [Mode::FsdaxMem, Mode::FsdaxDev, Mode::Sector, Mode::Devdax];
const MIB: u64 = 1 << 20;
/// How many bytes of a neighbour are checked after each case, next to the victim.
const EDGE: usize = 1 << 20;
/// The offset in the data of the victim from which on the first page of each MiB has a mark.
const MARKS_FROM: u64 = 16 * MIB;
/// After this many cases the right block is restored.
const CASES_PER_RECOVERY: u64 = 8;

/// The number of cases by result.
#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    bound: u64,
    left_idle: u64,
}

pub fn fuzz(lab: &mut Lab) -> Result<()> {
    let namespaces = Namespaces::make(lab)?;
    let result = fuzz_on(lab, &namespaces);
    // Other tests expect a single namespace.
    namespaces.destroy(lab)?;
    result
}

fn fuzz_on(lab: &mut Lab, namespaces: &Namespaces) -> Result<()> {
    let mut tally = Tally::default();
    let mut all = 0;
    for mode in MODES.into_iter().filter(|mode| mode.is_supported()) {
        let mut victim = Victim::make(lab, namespaces, mode)?;
        let mut since = 0;
        let time = share(lab) / MODES.len() as u32;
        all += cases(lab, &format!("{mode:?}"), time, |lab, random| {
            let block = victim.mutant(random);
            let outcome = victim.case(lab, &block);
            outcome.with_context(|| block.what.clone())?;
            namespaces.expect_untouched()?;
            since += 1;
            if since % CASES_PER_RECOVERY == 0 {
                victim.recover(lab)?;
            }
            Ok(())
        })?;
        victim.recover(lab)?;
        let Tally {
            refused,
            bound,
            left_idle,
        } = victim.tally;
        tally.refused += refused;
        tally.bound += bound;
        tally.left_idle += left_idle;
    }
    println!("measured: {all} info blocks: {tally:?}");
    Ok(())
}

/// Three adjacent namespaces, the middle one of which is the victim.
struct Namespaces {
    before: Disk,
    victim: Device,
    after: Disk,
}

impl Namespaces {
    fn make(lab: &Lab) -> Result<Namespaces> {
        let region = lab.region(0)?;
        // A region can have several namespaces if it has labels. It gets them with the first
        // namespace that is created.
        lab.prepare(Mode::FsdaxMem)?;
        destroy_all(lab)?;
        let mut made = Vec::new();
        for mib in ["64M", "256M", "64M"] {
            let created = ndctl::create(&region, Mode::Raw, &["-s", mib, "-l", "512"])?;
            made.push(created.show()?);
        }
        let mut places = Vec::new();
        for namespace in &made {
            let device = Device::named(namespace.dev.clone());
            let start = device.resource()?;
            places.push(start..start + namespace.size);
        }
        ensure!(
            places.windows(2).all(|pair| pair[0].end == pair[1].start),
            "the namespaces are at {places:x?}"
        );
        let disk = |number: usize| {
            let name = made[number].blockdev.clone();
            name.map(Disk::named).context("a namespace without a disk")
        };
        let namespaces = Namespaces {
            before: disk(0)?,
            victim: Device::named(made[1].dev.clone()),
            after: disk(2)?,
        };
        for (disk, at, tag) in namespaces.edges()? {
            disk.open(Access::Direct)?
                .write_all_at(&Buffer::stamped(EDGE, tag), at)?;
        }
        Ok(namespaces)
    }

    /// The parts of the neighbours next to the victim, and the tags of their contents.
    fn edges(&self) -> Result<[(&Disk, u64, u64); 2]> {
        let end = self.before.bytes()? - EDGE as u64;
        Ok([(&self.before, end, 1), (&self.after, 0, 2)])
    }

    fn expect_untouched(&self) -> Result<()> {
        for (disk, at, tag) in self.edges()? {
            let mut found = Buffer::new(EDGE);
            disk.open(Access::Direct)?.read_exact_at(&mut found, at)?;
            let right = Buffer::stamped(EDGE, tag);
            expect_same("the namespace beside it", &found, &right)?;
        }
        Ok(())
    }

    fn destroy(self, lab: &Lab) -> Result<()> {
        destroy_all(lab)?;
        ndctl::create(&lab.region(0)?, Mode::Raw, &["-l", "512"]).map(drop)
    }
}

fn destroy_all(lab: &Lab) -> Result<()> {
    let region = lab.region(0)?;
    let all = ["destroy-namespace", "-f", "-r", region.name(), "all"];
    run("ndctl", &all).map(drop)
}

/// A changed info block, and a description of the changes.
struct Mutant {
    block: InfoBlock,
    what: String,
}

/// The namespace whose info block is changed.
struct Victim {
    mode: Mode,
    namespace: Device,
    place: Range<u64>,
    good: InfoBlock,
    /// The ranges of the data that the last case may have changed, as offsets in the namespace.
    changed: Vec<Range<u64>>,
    /// Whether any data may have changed, so that the namespace has to be created again.
    all_changed: bool,
    tally: Tally,
}

impl Victim {
    fn make(lab: &Lab, namespaces: &Namespaces, mode: Mode) -> Result<Victim> {
        let namespace = namespaces.victim.clone();
        let start = namespace.resource()?;
        let place = start..start + namespace.get("size")?.parse::<u64>()?;
        let good = recreate(lab, &namespace, mode)?;
        ensure!(
            namespace.resource()? == place.start,
            "{namespace} has moved"
        );
        let victim = Victim {
            mode,
            namespace,
            place,
            good,
            changed: Vec::new(),
            all_changed: false,
            tally: Tally::default(),
        };
        BlockTest::with_whole_range(lab, &victim.namespace, |disk| victim.stamp_all(disk))?;
        Ok(victim)
    }

    fn size(&self) -> u64 {
        self.place.end - self.place.start
    }

    /// The offsets of marks. Those of a btt are in its sectors, wherever these are: see
    /// [`recreate`].
    fn marks(&self) -> impl Iterator<Item = u64> + use<> {
        let end = if self.mode == Mode::Sector {
            0
        } else {
            self.size()
        };
        (MARKS_FROM..end).step_by(MIB as usize)
    }

    fn stamp_all(&self, disk: &Disk) -> Result<()> {
        let file = disk.open(Access::Direct)?;
        for at in self.marks() {
            file.write_all_at(&Buffer::of_pages(PAGE, at), at)?;
        }
        Ok(())
    }

    /// Checks the marks, and renews those that a case may have changed.
    fn check_marks(&mut self, disk: &Disk) -> Result<()> {
        let file = disk.open(Access::Direct)?;
        let changed = std::mem::take(&mut self.changed);
        for at in self.marks() {
            let right = Buffer::of_pages(PAGE, at);
            if changed
                .iter()
                .any(|part| part.start < at + PAGE as u64 && at < part.end)
            {
                file.write_all_at(&right, at)?;
                continue;
            }
            let mut found = Buffer::of_pages(PAGE, 0);
            file.read_exact_at(&mut found, at)?;
            expect_same(&format!("the mark at {at:#x}"), &found, &right)?;
        }
        Ok(())
    }

    /// Changes the right block, in one to three places.
    fn mutant(&self, random: &mut ChaCha8Rng) -> Mutant {
        let mut block = self.good.clone();
        let mut what = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            match random.random_range(0..10) {
                0 => {
                    let bit = random.random_range(0..infoblock::LEN * 8);
                    block.flip(bit);
                    what.push(format!("bit {bit} changed"));
                }
                1 => {
                    // The bits of the fields.
                    let bit = random.random_range(0..120 * 8);
                    block.flip(bit);
                    what.push(format!("bit {bit} changed"));
                }
                2 => {
                    let signature = SIGNATURES.choose(random).copied();
                    let signature = signature.unwrap_or(SIGNATURES[0]);
                    block.set_signature(signature);
                    what.push(String::from_utf8_lossy(signature).into_owned());
                }
                _ => {
                    let fields = Field::all_of(self.mode);
                    let field = *fields.choose(random).unwrap_or(&Field::Flags);
                    let value = hostile(random, block.get(field), self.size());
                    block.set(field, value);
                    what.push(format!("{field:?} {:#x}", block.get(field)));
                }
            }
        }
        if random.random_ratio(3, 4) {
            block.seal();
            what.push("right checksum".to_owned());
        }
        Mutant {
            block,
            what: format!("{:?}: {}", self.mode, what.join(", ")),
        }
    }

    /// Writes a block, probes it, and checks the result. The namespace is idle afterwards.
    fn case(&mut self, lab: &Lab, mutant: &Mutant) -> Result<()> {
        let namespace = self.namespace.clone();
        BlockTest::with_whole_range(lab, &namespace, |disk| {
            self.check_marks(disk)?;
            mutant.block.write(&disk.open(Access::Buffered)?)
        })?;
        let mut messages = Messages::from_now()?;
        let result = namespace.try_bind(lab.driver);
        settle()?;
        match result.map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
            // The label says that there is a block.
            Ok(()) => bail!("it is bound as if it was raw"),
            Err(Some(Errno::EOPNOTSUPP)) => {
                self.tally.refused += 1;
                ensure!(namespace.driver().is_none(), "refused, and bound");
                expect_one_message(&mut messages)
            }
            Err(Some(Errno::ENXIO)) => self.check_claimed(lab, mutant),
            Err(errno) => bail!("binding it failed with {errno:?}"),
        }
    }

    /// Checks the device that libnvdimm has created for the kind of info block.
    fn check_claimed(&mut self, lab: &Lab, mutant: &Mutant) -> Result<()> {
        let claim = holder(&self.namespace)?;
        ensure!(claim != self.namespace, "neither refused nor claimed");
        // Other fields have the values of the right block.
        let changed = Field::of_layout(self.mode)
            .iter()
            .any(|&field| mutant.block.get(field) != self.good.get(field));
        match claim.driver() {
            None => self.tally.left_idle += 1,
            Some(driver) if driver == lab.driver.name() => {
                self.tally.bound += 1;
                let disk = Disk::named(claim.disk_name()?);
                if claim.name().starts_with("btt") {
                    self.all_changed |= changed;
                    self.check_sectors(&disk)?;
                } else {
                    self.check_data(&claim, &disk)?;
                }
                claim.unbind()?;
            }
            Some(driver) => {
                ensure!(driver == "dax_pmem", "{claim} is bound to {driver}");
                self.tally.bound += 1;
                // Binding initialises the struct pages, which may be on the medium.
                let before_data =
                    mutant.block.get(Field::StartPad) + mutant.block.get(Field::DataOffset);
                self.changed.push(0..before_data);
                claim.unbind()?;
            }
        }
        claim.give_up_namespace()
    }

    /// The disk of a pfn device is within the namespace and behind the info block.
    fn check_data(&mut self, pfn: &Device, disk: &Disk) -> Result<()> {
        let (start, bytes) = (pfn.resource()?, disk.bytes()?);
        let within = start >= self.place.start + 2 * PAGE as u64
            && start
                .checked_add(bytes)
                .is_some_and(|end| end <= self.place.end);
        ensure!(
            within && bytes > 0,
            "{disk} is at {start:#x}, of {bytes:#x} bytes; the namespace is at {:#x?}",
            self.place
        );
        let data = start - self.place.start;
        if pfn.get("mode")? == "pmem" {
            self.changed.push(0..data);
        }
        let file = disk.open(Access::Direct)?;
        for at in [0, bytes.saturating_sub(PAGE as u64)] {
            let right = Buffer::of_pages(PAGE, 5);
            let mut found = Buffer::of_pages(PAGE, 0);
            file.write_all_at(&right, at)?;
            file.read_exact_at(&mut found, at)?;
            expect_same("what was just written", &found, &right)?;
            self.changed.push(data + at..data + at + PAGE as u64);
        }
        Ok(())
    }

    /// The disk of a btt is not larger than the namespace. With other parameters its map is
    /// arbitrary, so reads may fail.
    fn check_sectors(&self, disk: &Disk) -> Result<()> {
        let bytes = disk.bytes()?;
        ensure!(
            bytes < self.size(),
            "{disk} has {bytes:#x} bytes of {:#x}",
            self.size()
        );
        let file = disk.open(Access::Direct)?;
        for at in [0, bytes.saturating_sub(PAGE as u64)] {
            let mut found = Buffer::of_pages(PAGE, 0);
            match file.read_at(&mut found, at) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                Err(error) => return Err(error).context("reading a sector"),
            }
        }
        Ok(())
    }

    /// Restores the right block and checks that the namespace has its former contents.
    fn recover(&mut self, lab: &Lab) -> Result<()> {
        if std::mem::take(&mut self.all_changed) {
            // With another layout the map and the log were overwritten.
            self.good = recreate(lab, &self.namespace, self.mode)?;
            return Ok(());
        }
        let namespace = self.namespace.clone();
        let good = self.good.clone();
        BlockTest::with_whole_range(lab, &namespace, |disk| {
            self.check_marks(disk)?;
            good.write(&disk.open(Access::Buffered)?)
        })?;
        let claimed = namespace.try_bind(lab.driver);
        settle()?;
        crate::errno::expect("binding the namespace", claimed, &[Errno::ENXIO])?;
        let claim = holder(&namespace)?;
        let driver = claim.driver();
        let right = match self.mode {
            Mode::Devdax => "dax_pmem",
            _ => lab.driver.name(),
        };
        ensure!(
            driver.as_deref() == Some(right),
            "with the right block, {claim} is bound to {driver:?}"
        );
        if self.mode == Mode::Sector {
            expect_marks_in_sectors(&Disk::named(claim.disk_name()?))?;
        }
        claim.unbind()?;
        claim.give_up_namespace()
    }
}

/// Creates the namespace again, leaves it idle, and returns its info block.
fn recreate(lab: &Lab, namespace: &Device, mode: Mode) -> Result<InfoBlock> {
    let made = ndctl::reconfigure(namespace, mode)?;
    let claim = holder(namespace)?;
    if mode == Mode::Sector {
        let disk = Disk::named(made.blockdev.context("no disk")?);
        let file = disk.open(Access::Direct)?;
        file.write_all_at(&Buffer::of_pages(SECTOR_MARK, 3), 0)?;
        expect_marks_in_sectors(&disk)?;
    }
    claim.unbind()?;
    claim.give_up_namespace()?;
    BlockTest::with_whole_range(lab, namespace, |disk| {
        InfoBlock::read(&disk.open(Access::Buffered)?, mode)
    })
}

const SECTOR_MARK: usize = 1 << 20;

fn expect_marks_in_sectors(disk: &Disk) -> Result<()> {
    let mut found = Buffer::of_pages(SECTOR_MARK, 0);
    disk.open(Access::Direct)?.read_exact_at(&mut found, 0)?;
    let right = Buffer::of_pages(SECTOR_MARK, 3);
    expect_same("what is in the sectors", &found, &right)
}

/// A refusal is one line of the driver, which includes the remedy.
fn expect_one_message(messages: &mut Messages) -> Result<()> {
    messages.expect(&["the info block for mode"])?;
    let lines: Vec<&String> = messages
        .so_far()?
        .iter()
        // The driver core adds a line of its own.
        .filter(|line| line.contains("pmem_rs") && !line.contains("probe with driver"))
        .collect();
    ensure!(
        lines.len() == 1 && lines[0].contains("force_raw"),
        "the driver says {lines:#?}"
    );
    Ok(())
}
