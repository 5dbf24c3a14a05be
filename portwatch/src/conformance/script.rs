//! What a path does and expects, told line by line to the [`runner`](super::runner).

use std::{
    fmt,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use crate::{
    linux::netns::inode_of,
    model::{EventKind, Transport},
};

/// The port that every path is about.
pub(super) const PORT: u16 = 976;

/// The port whose bind tells that all alerts before it have come: reserved, on UDP.
pub(super) const SENTINEL: u16 = 1023;

/// An alert that must come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Stands for the socket's cookie.
    pub socket: u32,
    /// The alert's event.
    pub event: EventKind,
    /// The alert's transport.
    pub transport: Transport,
    /// The alert's address.
    pub address: Option<IpAddr>,
    /// The alert's port.
    pub port: u16,
    /// The alert's peer.
    pub peer: Option<SocketAddr>,
    /// The alert's process.
    pub pid: Option<u32>,
}

/// One line from the path's process to the runner.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Line {
    /// The path takes place in this network namespace, by inode.
    Netns(u64),
    /// This alert must come.
    Expect(Expected),
    /// The kernel or the host does not have this path, and why.
    Unavailable(String),
    /// The host does not have this program, which the path needs.
    Missing(String),
    /// The path went wrong by itself, and how.
    Failed(String),
    /// Waits for a line on stdin until every alert so far has come.
    Wait,
    /// All is done, and the sentinel is bound.
    Done,
}

/// Why a path ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The kernel or the host does not have it.
    Unavailable(String),
    /// The host does not have this program.
    Missing(&'static str),
    /// It went wrong.
    Failed(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Stop {
    pub(super) fn unavailable(what: impl fmt::Display) -> Self {
        Self::Unavailable(what.to_string())
    }
}

/// The running path's side of the talk.
pub(super) struct Script {
    sockets: u32,
}

impl Script {
    /// A socket that the alerts will be about.
    pub(super) fn socket(&mut self, transport: Transport, local: SocketAddr) -> Actor {
        self.sockets += 1;
        let local = SocketAddr::new(local.ip().to_canonical(), local.port());
        Actor {
            socket: self.sockets,
            transport,
            address: Some(local.ip()),
            port: local.port(),
            pid: Some(std::process::id()),
        }
    }

    /// Waits until every alert so far has come: what the monitor looks up meanwhile is there.
    pub(super) fn wait(&mut self) -> Result<(), Stop> {
        say(&Line::Wait);
        match io::stdin().read(&mut [0])? {
            0 => Err(Stop::Failed("the alerts before did not come".into())),
            _ => Ok(()),
        }
    }

    /// Says that the path also takes place in the current network namespace.
    pub(super) fn enter(&mut self) {
        if let Some(inode) = inode_of(std::process::id()) {
            say(&Line::Netns(inode));
        }
    }
}

/// A socket and the process that its alerts must name.
#[derive(Clone, Copy)]
pub(super) struct Actor {
    socket: u32,
    transport: Transport,
    address: Option<IpAddr>,
    port: u16,
    pid: Option<u32>,
}

impl Actor {
    /// The same socket, with alerts that cannot know its address.
    pub(super) fn without_address(self) -> Self {
        Self {
            address: None,
            ..self
        }
    }

    /// The same socket, with alerts that must name another process.
    pub(super) fn of(self, pid: u32) -> Self {
        Self {
            pid: Some(pid),
            ..self
        }
    }

    /// The same socket, with alerts that must name no process.
    pub(super) fn of_nobody(self) -> Self {
        Self { pid: None, ..self }
    }

    /// This event must be told, about the address that was taken.
    pub(super) fn expect(self, event: EventKind) {
        self.tell(event, self.address, None);
    }

    /// An accept on that address from `peer` must be told.
    pub(super) fn expect_accept(self, on: IpAddr, peer: SocketAddr) {
        self.tell(EventKind::Accept, Some(on.to_canonical()), Some(peer));
    }

    /// A connect to `peer` must be told.
    pub(super) fn expect_connect(self, peer: SocketAddr) {
        self.tell(EventKind::Connect, self.address, Some(peer));
    }

    fn tell(self, event: EventKind, address: Option<IpAddr>, peer: Option<SocketAddr>) {
        let Self {
            socket,
            transport,
            port,
            pid,
            ..
        } = self;
        let canonical = |peer: SocketAddr| SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let peer = peer.map(canonical);
        say(&Line::Expect(Expected {
            socket,
            event,
            transport,
            address,
            port,
            peer,
            pid,
        }));
    }
}

/// Writes a line to stdout at once; the runner notices when that fails.
pub(super) fn say(line: &Line) {
    let mut text = serde_json::to_string(line).unwrap_or_default();
    text.push('\n');
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Goes the path of that name in this process: a network namespace of its own, the sentinel, the
/// path, the sentinel again; then waits for the end of stdin, so that /proc still shows it.
pub fn drive(name: &str) {
    let mut script = Script { sockets: 0 };
    let outcome = match super::ALL.iter().find(|path| path.name == name) {
        Some(path) => enter_namespace().and_then(|()| {
            script.enter();
            sentinel()?;
            let outcome = (path.drive)(&mut script);
            sentinel()?;
            outcome
        }),
        None => Err(Stop::Failed(format!("there is no path {name:?}"))),
    };
    match outcome {
        Ok(()) => {}
        Err(Stop::Unavailable(why)) => say(&Line::Unavailable(why)),
        Err(Stop::Missing(program)) => say(&Line::Missing(program.into())),
        Err(Stop::Failed(how)) => say(&Line::Failed(how)),
    }
    say(&Line::Done);
    let _ = io::stdin().read(&mut [0]);
}

fn sentinel() -> Result<(), Stop> {
    drop(UdpSocket::bind(("127.0.0.1", SENTINEL))?);
    Ok(())
}

/// A network namespace of this process's own, with loopback up.
pub(super) fn enter_namespace() -> Result<(), Stop> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    loopback_up()
}

/// netdevice(7): sets IFF_UP on `lo`.
pub(super) fn loopback_up() -> Result<(), Stop> {
    let probe = UdpSocket::bind(("0.0.0.0", 0))?;
    // SAFETY: all-zero bytes are a valid `ifreq`, which is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the ioctl reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(probe.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(())
}
