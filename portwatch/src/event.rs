//! What happened to a socket on a watched port, as the rooms after the sensor see it.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::process::Process;

/// A transport protocol with ports. MPTCP is [`Tcp`](Self::Tcp).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP and MPTCP.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite (RFC 3828).
    UdpLite,
    /// SCTP.
    Sctp,
    /// DCCP.
    Dccp,
}

impl Transport {
    /// Every transport, in the order in which they are listed to people.
    pub const ALL: [Self; 5] = [Self::Tcp, Self::Udp, Self::UdpLite, Self::Sctp, Self::Dccp];

    /// The name in the output and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::UdpLite => "udplite",
            Self::Sctp => "sctp",
            Self::Dccp => "dccp",
        }
    }

    /// The transport of that [`name`](Self::name), in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|transport| transport.name().eq_ignore_ascii_case(name))
    }
}

/// What the event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The kernel accepted a bind.
    Bind,
    /// A TCP socket began to listen.
    Listen,
    /// A handshake on a listener completed.
    Accept,
    /// A TCP socket on the port began to connect outwards.
    Connect,
    /// The socket left the port.
    Close,
    /// A rule refused a bind.
    Deny,
    /// Reports found the ring buffer full.
    Loss,
    /// A part of the sensor was lost or regained.
    Health,
    /// Of what happened often, what was not told one by one.
    Summary,
}

impl EventKind {
    /// Those that are about a socket.
    pub const OF_SOCKETS: [Self; 6] = [
        Self::Bind,
        Self::Listen,
        Self::Accept,
        Self::Connect,
        Self::Close,
        Self::Deny,
    ];

    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Close => "close",
            Self::Deny => "deny",
            Self::Loss => "loss",
            Self::Health => "health",
            Self::Summary => "summary",
        }
    }
}

/// The task that acted, as the kernel named it at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Process id (thread group id) in the initial pid namespace.
    pub pid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// The thread's name: any bytes but NUL, 15 at most.
    pub comm: Vec<u8>,
    /// Id of its cgroup in the v2 hierarchy; None when it is not known.
    pub cgroup_id: Option<u64>,
    /// When its process started, in nanoseconds of `CLOCK_BOOTTIME`, where the kernel side can tell.
    pub start_ns: Option<u64>,
    /// What its process ran at that moment, where the kernel side can tell.
    pub image: Option<Rc<Image>>,
}

/// What a process ran when it took a port, as the kernel side read it: any bytes, the user's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Process id of the parent.
    pub parent: u32,
    /// The audit login user; None when nobody logged in, or without audit.
    pub loginuid: Option<u32>,
    /// Path of the executable; None when it was too long to read.
    pub exe: Option<Vec<u8>>,
    /// Whether the executable had been unlinked.
    pub deleted: bool,
    /// The name that was given to execve(2).
    pub execfn: Option<Vec<u8>>,
    /// The arguments.
    pub args: Option<Vec<Vec<u8>>>,
}

/// Sets the keys of sockets that have no cookie apart from cookies, which the kernel counts up from 0.
pub const WITHOUT_COOKIE: u64 = 1 << 63;

/// One fact about one socket on a watched port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened: one of [`EventKind::OF_SOCKETS`].
    pub kind: EventKind,
    /// When, by the host's clock.
    pub time: Timestamp,
    /// Tells the socket from others among events; an accept has its listener's. None as `cookie`.
    pub key: Option<u64>,
    /// Socket cookie, the listener's on an accept. None on an accept of a listener that was there
    /// before the kernel side was, and where the hook knows none (SCTP, DCCP).
    pub cookie: Option<u64>,
    /// Cookie of the socket's network namespace, where the kernel tells it.
    pub netns_cookie: Option<u64>,
    /// Inode of the socket's network namespace, where the kernel side can tell.
    pub netns: Option<u64>,
    /// The socket's transport.
    pub transport: Transport,
    /// The address that was taken, where the hook knows it (not for SCTP, which can have many). An
    /// IPv4-mapped one is given as IPv4.
    pub address: Option<IpAddr>,
    /// The port that was taken.
    pub port: u16,
    /// The other end, on accept and connect, in the same form.
    pub peer: Option<SocketAddr>,
    /// Who acted, where the kernel tells it; for a socket of the kernel's own, who happened to run.
    pub task: Option<Task>,
    /// Whether the socket is the kernel's own, where that is known.
    pub kernels: Option<bool>,
    /// Process id of who took the port, where that was counted and not told.
    pub taker: Option<u32>,
}

/// A socket that a snapshot found on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What would have been told when it came to be as it is; without task.
    pub event: Event,
    /// Inode of its network namespace.
    pub netns: u64,
    /// The processes that have it open, the oldest first.
    pub holders: Vec<Rc<Process>>,
    /// Whether the kernel side reports its close from now on.
    pub marked: bool,
}

/// What a snapshot covers: of what it does not show, it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Inodes of the network namespaces that could not be read.
    pub unread: Vec<u64>,
    /// Transports that are not shown at all.
    pub unshown: Vec<Transport>,
    /// Whether TCP sockets are shown that are bound and do nothing else.
    pub bound: bool,
}
