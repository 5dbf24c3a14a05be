//! The scenario's side of a run: it writes the alerts that it expects to stdout, one JSON line
//! each, for the [`runner`](super::runner).

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
};
use serde::{Deserialize, Serialize};

use crate::{
    linux::netns::inode_of,
    model::{ConnectOutcome, Direction, EndedBy, EventKind, Transport},
};

/// The port that every scenario binds.
pub(super) const PORT: u16 = 976;

/// A reserved UDP port: once its bind and close are received, so are all alerts before them.
pub(super) const SENTINEL: u16 = 1023;

/// An alert that the monitor must print.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// The scenario's number of the socket; the same number stands for the same cookie, none for no
    /// cookie.
    pub socket: Option<u32>,
    /// The alert's event.
    pub event: EventKind,
    /// The alert's transport.
    pub transport: Transport,
    /// The alert's address; none where the kernel does not report it.
    pub address: Option<IpAddr>,
    /// The alert's port.
    pub port: u16,
    /// The alert's peer, of accepts, connects and receives.
    pub peer: Option<SocketAddr>,
    /// The pid of the alert's process.
    pub pid: Option<u32>,
    /// The alert's outcome, of closes.
    pub outcome: Option<ConnectOutcome>,
    /// How the connection went, of sessions.
    pub session: Option<ExpectedSession>,
    /// The device that the socket is bound to.
    pub device: Option<String>,
}

impl Expected {
    /// Whether it is a connection of which it is not known who ends it.
    pub(super) fn has_unknown_end(&self) -> bool {
        self.session
            .is_some_and(|session| session.ended_by.is_none())
    }
}

/// How a connection must have gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectedSession {
    /// Which end is on the port.
    pub direction: Direction,
    /// Bytes received.
    pub bytes_in: u64,
    /// Bytes sent.
    pub bytes_out: u64,
    /// Who ended it; None if that depends on chance, and is not compared in the scenario.
    pub ended_by: Option<EndedBy>,
}

/// One line from the scenario's process to the runner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// The scenario opens sockets in the network namespace with this inode.
    Netns(u64),
    /// The ends of connections are compared too.
    Sessions,
    /// The monitor must print this alert.
    Expect(Expected),
    /// The kernel or the host cannot run this scenario; the reason.
    Unavailable(String),
    /// The host lacks this program, which the scenario needs.
    MissingProgram(String),
    /// The scenario itself failed; the error.
    Failed(String),
    /// The scenario waits for a line on stdin, until the monitor has printed all alerts so far.
    Wait,
    /// The scenario has ended, and the sentinel has been bound and closed.
    Done,
}

/// Why a scenario ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The kernel or the host cannot run it; the reason.
    Unavailable(String),
    /// The host lacks this program.
    MissingProgram(&'static str),
    /// It failed; the error.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Stop {
    pub(super) fn unavailable(reason: impl fmt::Display) -> Self {
        Self::Unavailable(reason.to_string())
    }
}

/// A running scenario.
pub(super) struct Script {
    sockets: u32,
}

impl Script {
    /// A new socket that alerts are expected of, opened by this process.
    pub(super) fn socket(&mut self, transport: Transport, local: SocketAddr) -> ExpectedSocket {
        self.sockets += 1;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        ExpectedSocket {
            socket: Some(self.sockets),
            transport,
            address: Some(local.ip()),
            port: local.port(),
            pid: Some(std::process::id()),
            device: None,
        }
    }

    /// Also compares the ends of connections.
    pub(super) fn compare_sessions(&mut self) {
        send(&Line::Sessions);
    }

    /// Waits until the monitor has printed all alerts so far, so that what it reads in /proc for
    /// them still exists.
    pub(super) fn wait(&mut self) -> Result<(), Stop> {
        self.wait_while(|| Ok(()))
    }

    /// As [`wait`](Self::wait), and does `again` each millisecond until then.
    pub(super) fn wait_while(
        &mut self,
        mut again: impl FnMut() -> io::Result<()>,
    ) -> Result<(), Stop> {
        send(&Line::Wait);
        let stdin = io::stdin();
        let mut answer = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        loop {
            again()?;
            if poll(&mut answer, PollTimeout::from(1_u8))? > 0 {
                break;
            }
        }
        match stdin.lock().read(&mut [0])? {
            0 => Err(Stop::Failed(
                "the runner stopped waiting for the expected alerts".into(),
            )),
            _ => Ok(()),
        }
    }

    /// Also compares the alerts of this process's current network namespace.
    pub(super) fn add_namespace(&mut self) {
        if let Some(inode) = inode_of(std::process::id()) {
            send(&Line::Netns(inode));
        }
    }
}

/// A socket that alerts are expected of, and the process that they must name.
#[derive(Clone, Copy)]
pub(super) struct ExpectedSocket {
    socket: Option<u32>,
    transport: Transport,
    address: Option<IpAddr>,
    port: u16,
    pid: Option<u32>,
    device: Option<&'static str>,
}

impl ExpectedSocket {
    /// The same socket, bound to a device.
    pub(super) fn on_device(self, device: &'static str) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// The same socket, with alerts without address.
    pub(super) fn without_address(self) -> Self {
        Self {
            address: None,
            ..self
        }
    }

    /// The same socket, with alerts without its cookie.
    pub(super) fn without_cookie(self) -> Self {
        Self {
            socket: None,
            ..self
        }
    }

    /// The same socket, with alerts that name process `pid`.
    pub(super) fn of_process(self, pid: u32) -> Self {
        Self {
            pid: Some(pid),
            ..self
        }
    }

    /// The same socket, with alerts that name no process.
    pub(super) fn without_process(self) -> Self {
        Self { pid: None, ..self }
    }

    /// Expects an alert about `event` at the bound address.
    pub(super) fn expect(self, event: EventKind) {
        send(&Line::Expect(self.alert(event)));
    }

    /// Expects an alert about an accept at address `on` from `peer`.
    pub(super) fn expect_accept(self, on: IpAddr, peer: SocketAddr) {
        send(&Line::Expect(Expected {
            address: Some(on.to_canonical()),
            peer: Some(canonical(peer)),
            ..self.alert(EventKind::Accept)
        }));
    }

    /// Expects an alert about a datagram to address `on` from `peer`.
    pub(super) fn expect_receive(self, on: IpAddr, peer: SocketAddr) {
        send(&Line::Expect(Expected {
            address: Some(on.to_canonical()),
            peer: Some(canonical(peer)),
            ..self.alert(EventKind::Receive)
        }));
    }

    /// Expects an alert about a connect to `peer`.
    pub(super) fn expect_connect(self, peer: SocketAddr) {
        send(&Line::Expect(Expected {
            peer: Some(canonical(peer)),
            ..self.alert(EventKind::Connect)
        }));
    }

    /// Expects an alert about the end of a connection with `peer`.
    pub(super) fn expect_session(self, peer: SocketAddr, session: ExpectedSession) {
        send(&Line::Expect(Expected {
            peer: Some(canonical(peer)),
            session: Some(session),
            ..self.alert(EventKind::Session)
        }));
    }

    /// Expects an alert about the close of a socket that connected.
    pub(super) fn expect_close_of_connection(self, outcome: ConnectOutcome) {
        send(&Line::Expect(Expected {
            outcome: Some(outcome),
            ..self.alert(EventKind::Close)
        }));
    }

    fn alert(self, event: EventKind) -> Expected {
        Expected {
            socket: self.socket,
            event,
            transport: self.transport,
            address: self.address,
            port: self.port,
            peer: None,
            pid: self.pid,
            outcome: None,
            session: None,
            device: self.device.map(Into::into),
        }
    }
}

fn canonical(peer: SocketAddr) -> SocketAddr {
    SocketAddr::new(peer.ip().to_canonical(), peer.port())
}

/// Writes a line to stdout at once. Errors are ignored: the runner fails the scenario without it.
pub(super) fn send(line: &Line) {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Runs the scenario of that name in this process, in a new network namespace, between two binds
/// of the sentinel. Then waits for the end of stdin, so that the monitor still finds this process
/// in /proc.
pub fn run_scenario(name: &str) {
    let mut script = Script { sockets: 0 };
    let outcome = match super::ALL.iter().find(|scenario| scenario.name == name) {
        Some(scenario) => enter_namespace().and_then(|()| {
            script.add_namespace();
            bind_sentinel()?;
            let outcome = (scenario.run)(&mut script);
            bind_sentinel()?;
            outcome
        }),
        None => Err(Stop::Failed(format!("no scenario is named {name:?}"))),
    };
    match outcome {
        Ok(()) => {}
        Err(Stop::Unavailable(reason)) => send(&Line::Unavailable(reason)),
        Err(Stop::MissingProgram(program)) => send(&Line::MissingProgram(program.into())),
        Err(Stop::Failed(error)) => send(&Line::Failed(error)),
    }
    send(&Line::Done);
    let _ = io::stdin().read(&mut [0]);
}

fn bind_sentinel() -> Result<(), Stop> {
    drop(UdpSocket::bind(("127.0.0.1", SENTINEL))?);
    Ok(())
}

/// Moves this process to a new network namespace, with loopback up.
pub(super) fn enter_namespace() -> Result<(), Stop> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()
}

/// Sets IFF_UP on `lo` of the current network namespace (netdevice(7)).
pub(super) fn loopback_up() -> Result<(), Stop> {
    let probe = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the ioctl reads one `ifreq`, which outlives the call.
    let result = unsafe {
        libc::ioctl(
            probe.as_raw_fd(),
            libc::SIOCSIFFLAGS as libc::Ioctl,
            &raw const request,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
