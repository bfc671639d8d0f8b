// SPDX-License-Identifier: GPL-2.0

//! Users of a file during the removal of its device, each a process, and how each must end.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::fixture::{Fixture, LEN, contents};
use super::{Fs, User};
use crate::command::run;
use crate::disk::{self, Access, Disk};
use crate::dm::Mapped;
use crate::mapping::{Mapping, PAGE, PMD, Sharing};
use crate::process::{Child, Link};
use crate::sectors::{Buffer, expect_same, stamped};
use crate::tracing::FaultTrace;

/// How long a user may take to get a signal or an error after the removal.
pub const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// How many bytes go into a pipe from each of two offsets; a pipe has room for both.
const PIPED: usize = 8 * PAGE;
/// The size of one `read` or `write`.
const CALL: usize = 16 * PAGE;
/// The tag of data in private pages.
const PRIVATE_TAG: u64 = 77;

/// A running user, and its resources.
pub struct Running {
    user: User,
    child: Child,
    slow: Option<Slow>,
}

impl User {
    /// Whether it uses the file through a mapping.
    pub fn maps(self) -> bool {
        self != User::Calls
    }

    /// Whether it has pinned pages that only it can unpin.
    pub fn pins(self) -> bool {
        matches!(self, User::Pipe | User::ClosedPipe | User::Direct)
    }

    /// Starts the user, and waits until it is running.
    pub fn start(self, fixture: &Fixture<'_>) -> Result<Running> {
        let slow = (self == User::Direct).then(Slow::new).transpose()?;
        let trace = (self == User::Pmd).then(FaultTrace::start).transpose()?;
        let target = slow.as_ref().map(Slow::disk);
        let mut child = Child::start_ready(format!("the user ({self:?})"), |link| {
            work(self, fixture, target, link)
        })?;
        if let Some(trace) = trace {
            let (pmds, pages) = (trace.pmds_installed()?, trace.pages_installed()?);
            // The other file with the same blocks is mapped by PTEs.
            let others = if fixture.fs == Fs::XfsReflink {
                LEN / PAGE
            } else {
                0
            };
            ensure!(
                pmds == LEN / PMD && pages == others,
                "{pmds} PMDs and {pages} pages were mapped, expected only PMDs"
            );
        }
        if self == User::Direct {
            child.await_uninterruptible()?;
        }
        Ok(Running {
            user: self,
            child,
            slow,
        })
    }
}

impl Running {
    /// After the removal: makes a user with pinned pages unpin them, and check their contents
    /// before.
    pub fn unpin(&mut self) -> Result<()> {
        match &self.slow {
            Some(slow) => slow.resume()?,
            None => self.child.go()?,
        }
        self.child.hear("released", SIGNAL_LIMIT)
    }

    /// After the removal and the unpin: checks that the user gets a signal or an error, and that
    /// its process can end.
    pub fn expect_gone(mut self) -> Result<()> {
        match self.user {
            User::Idle => self.child.go()?,
            User::Private => {
                self.child.go()?;
                self.child
                    .hear("its private pages are intact", SIGNAL_LIMIT)?;
            }
            _ => {}
        }
        match self.user {
            User::Calls | User::ClosedPipe => self.child.expect_done(SIGNAL_LIMIT)?,
            _ => self.child.expect_signal(Signal::SIGBUS, SIGNAL_LIMIT)?,
        }
        if let Some(slow) = self.slow {
            slow.expect_written()?;
        }
        Ok(())
    }
}

/// The work of the user's process. Users with a mapping end by a signal.
fn work(user: User, fixture: &Fixture<'_>, target: Option<&Disk>, link: &mut Link) -> Result<()> {
    if user == User::Calls {
        return calls(fixture, link);
    }
    let original = fixture.map_original()?;
    if let Some(original) = &original {
        read_all(original);
    }
    let mapping = match user {
        User::Private => fixture.map(Sharing::Private)?,
        User::Pmd => fixture.map_large()?,
        _ => fixture.map(Sharing::Shared)?,
    };
    match user {
        User::Private => {
            private(&mapping, link)?;
            read_all(&mapping);
        }
        User::Idle => {
            read_all(&mapping);
            link.say("ready")?;
            link.wait()?;
            read_all(&mapping);
        }
        User::Fork => {
            read_all(&mapping);
            let mut child =
                Child::start_ready("the user's child", |link| read_for_ever(&mapping, link))?;
            link.say("ready")?;
            child.expect_signal(Signal::SIGBUS, 4 * SIGNAL_LIMIT)?;
            read_all(&mapping);
        }
        User::Mlock => {
            mapping.lock()?;
            read_for_ever(&mapping, link)?;
        }
        User::Pipe | User::ClosedPipe => {
            let (reader, writer) = nix::unistd::pipe()?;
            for from in [0, PMD] {
                let given = mapping.give_to_pipe(from, PIPED, &writer)?;
                ensure!(given == PIPED, "{given} bytes were put into the pipe");
            }
            if user == User::ClosedPipe {
                drop((mapping, original));
                link.say("ready")?;
                link.wait()?;
                return drain(reader, link);
            }
            link.say("ready")?;
            link.wait()?;
            drain(reader, link)?;
            read_all(&mapping);
        }
        User::Direct => {
            let target = target
                .context("no disk to write to")?
                .open(Access::Direct)?;
            read_all(&mapping);
            link.say("ready")?;
            mapping
                .write_to(0, LEN, &target, 0)
                .context("O_DIRECT from the mapping to another disk")?;
            link.say("released")?;
            read_all(&mapping);
        }
        User::Writer => write_for_ever(&mapping, link)?,
        User::Pmd if fixture.fs.is_writable() => write_for_ever(&mapping, link)?,
        User::Reader | User::Pmd => read_for_ever(&mapping, link)?,
        User::Calls => {}
    }
    bail!("the file can still be read through the mapping");
}

pub fn read_all(mapping: &Mapping) {
    for page in (0..LEN).step_by(PAGE) {
        mapping.load(page);
    }
}

pub fn read_for_ever(mapping: &Mapping, link: &mut Link) -> Result<()> {
    read_all(mapping);
    link.say("ready")?;
    loop {
        read_all(mapping);
    }
}

/// Stores the existing contents, so that the file stays the same.
pub fn write_for_ever(mapping: &Mapping, link: &mut Link) -> Result<()> {
    let contents = contents();
    let write_all = || {
        for page in (0..LEN).step_by(PAGE) {
            mapping.store(page, contents[page]);
        }
    };
    write_all();
    link.say("ready")?;
    loop {
        write_all();
    }
}

/// Writes to every other page, which makes it private; these pages survive the removal.
fn private(mapping: &Mapping, link: &mut Link) -> Result<()> {
    let own = (0..LEN).step_by(2 * PAGE);
    for page in own.clone() {
        mapping.write(page, &stamped(PAGE, PRIVATE_TAG));
        mapping.load(page + PAGE);
    }
    link.say("ready")?;
    link.wait()?;
    for page in own {
        let found = mapping.to_vec(page, PAGE);
        expect_same(
            "a page that was copied",
            &found,
            &stamped(PAGE, PRIVATE_TAG),
        )?;
    }
    link.say("its private pages are intact")
}

/// Reads the pages out of the pipe.
fn drain(reader: OwnedFd, link: &mut Link) -> Result<()> {
    let contents = contents();
    let mut reader = File::from(reader);
    for from in [0, PMD] {
        let mut found = vec![0; PIPED];
        reader.read_exact(&mut found)?;
        expect_same("what is in the pipe", &found, &contents[from..][..PIPED])?;
    }
    drop(reader);
    link.say("released")
}

/// Reads and writes with system calls until one fails. All later calls must fail, too.
fn calls(fixture: &Fixture<'_>, link: &mut Link) -> Result<()> {
    let file = fixture.open()?;
    let contents = contents();
    let round = |bytes: &mut [u8]| -> io::Result<()> {
        for from in (0..LEN).step_by(CALL) {
            file.read_exact_at(bytes, from as u64)?;
            if fixture.fs.is_writable() {
                file.write_all_at(&contents[from..][..CALL], from as u64)?;
            }
        }
        Ok(())
    };
    let mut bytes = vec![0; CALL];
    round(&mut bytes)?;
    link.say("ready")?;
    let first = loop {
        if let Err(error) = round(&mut bytes) {
            break error;
        }
    };
    let read = (0..LEN)
        .step_by(CALL)
        .find_map(|from| file.read_exact_at(&mut bytes, from as u64).err());
    for error in [Some(first), read] {
        let error = error.context("the file can still be read")?;
        let errno = error.raw_os_error().map(Errno::from_raw);
        // A file system that could not write its journal is read-only.
        let right = [Errno::EIO, Errno::ENXIO, Errno::ENODEV, Errno::EROFS];
        ensure!(
            errno.is_some_and(|errno| right.contains(&errno)),
            "a call failed with `{error}`, expected one of {right:?}"
        );
    }
    Ok(())
}

/// A RAM disk whose requests are suspended.
pub struct Slow {
    device: Mapped,
}

impl Slow {
    pub fn new() -> Result<Slow> {
        run("modprobe", &disk::IN_MEMORY)?;
        let table = format!("0 {} linear /dev/nullb0 0", LEN / 512);
        let device = Mapped::new("slow", &table)?;
        device.suspend()?;
        Ok(Slow { device })
    }

    pub fn disk(&self) -> &Disk {
        self.device.disk()
    }

    /// Executes the requests.
    pub fn resume(&self) -> Result<()> {
        self.device.resume()
    }

    /// Checks that the disk has the contents of the file, and removes it.
    pub fn expect_written(self) -> Result<()> {
        let mut found = Buffer::of_pages(LEN, 0);
        self.disk()
            .open(Access::Direct)?
            .read_exact_at(&mut found, 0)?;
        expect_same("what was written from the mapping", &found, &contents())?;
        self.device.remove()
    }
}
