// SPDX-License-Identifier: GPL-2.0

//! Unbinding while asynchronous I/O uses pages of a file that is neither mapped nor open any more.
//! No process waits for the I/O in the kernel.

use std::io::Read;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::fixture::{Fixture, LEN, contents};
use super::special::back_to_normal;
use super::users::{SIGNAL_LIMIT, Slow, read_all};
use super::{Fs, UNBIND_LIMIT, Under, Way};
use crate::aio::Pending;
use crate::command::run;
use crate::disk::Access;
use crate::driver::Driver;
use crate::lab::{Lab, Skip};
use crate::mapping::{PAGE, Sharing};
use crate::messages::Messages;
use crate::process::{Child, Link};
use crate::retired::{self, TIMEOUT};
use crate::sectors::expect_same;
use crate::syscall::set_socket_option;

/// Unbinds the device, and expects that it waits for pinned pages until the timeout, names them,
/// and frees the range after `end` and the end of the user.
fn unbind_beside(
    fixture: Fixture<'_>,
    mut user: Child,
    end: impl FnOnce(&mut Child) -> Result<()>,
) -> Result<()> {
    let mut messages = Messages::from_now()?;
    let took = Way::Unbind.go(&fixture, UNBIND_LIMIT + TIMEOUT)?;
    if fixture.lab.driver == Driver::PmemRs {
        ensure!(took >= TIMEOUT, "it returned after {took:?}");
        for line in retired::expect(1)? {
            ensure!(line.contains("pins: "), "no pins are named: {line}");
            println!("retired: {line}");
        }
        println!("kernel: {}", messages.expect(&["pins: "])?);
    }
    end(&mut user)?;
    user.expect_done(4 * SIGNAL_LIMIT)?;
    back_to_normal(fixture, Way::Unbind)
}

/// A write to a disk that does not answer, submitted by `io_submit`.
pub fn write_in_flight(lab: &mut Lab) -> Result<()> {
    let fixture = Fixture::build(lab, Fs::XfsRmap, Under::Whole)?;
    let slow = Slow::new()?;
    let user = Child::start_ready("the process with a write in flight", |link| {
        let mapping = fixture.map(Sharing::Shared)?;
        read_all(&mapping);
        let disk = slow.disk().open(Access::Direct)?;
        let write = Pending::write(&mapping, 0, LEN, &disk)?;
        drop(mapping);
        link.say("ready")?;
        let written = write.wait()?;
        ensure!(written == LEN, "only {written} bytes were written");
        Ok(())
    })?;
    unbind_beside(fixture, user, |_| slow.resume())?;
    slow.expect_written()
}

/// How much is sent: more than the sockets take in, and less than RLIMIT_MEMLOCK.
const SENT: usize = 64 * PAGE;
/// The socket buffer of the receiver at first, so that most pages wait to be sent.
const RECEIVED: libc::c_int = 4096;

/// Connects two sockets. Pages that the first one sends are not copied.
fn connect() -> Result<[TcpStream; 2]> {
    run("busybox", &["ifconfig", "lo", "up"])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    set_socket_option(&listener, libc::SO_RCVBUF, RECEIVED)?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    set_socket_option(&sender, libc::SO_SNDBUFFORCE, 2 * SENT as libc::c_int)?;
    set_socket_option(&sender, libc::SO_ZEROCOPY, 1).context("no zero copy")?;
    let (receiver, _) = listener.accept()?;
    Ok([sender, receiver])
}

fn send(fixture: &Fixture<'_>, link: &mut Link) -> Result<()> {
    let [sender, mut receiver] = connect()?;
    let mapping = fixture.map(Sharing::Shared)?;
    let sent = mapping.send(0, SENT, &sender)?;
    println!("{sent} bytes were sent");
    drop((mapping, sender));
    link.say("ready")?;
    link.wait()?;
    set_socket_option(&receiver, libc::SO_RCVBUF, SENT as libc::c_int)?;
    let mut found = Vec::new();
    receiver.read_to_end(&mut found)?;
    expect_same("what was received", &found, &contents()[..sent])
}

/// A connection whose other side does not receive. The loopback device copies pages when it
/// delivers them, but not those that wait until there is room.
pub fn pages_to_be_sent(lab: &mut Lab) -> Result<()> {
    if !Path::new("/proc/net/tcp").exists() {
        return Err(Skip("the kernel has no TCP").into());
    }
    let fixture = Fixture::build(lab, Fs::Ext4, Under::Whole)?;
    let user = Child::start_ready("the process with a connection", |link| send(&fixture, link))?;
    unbind_beside(fixture, user, Child::go)
}
