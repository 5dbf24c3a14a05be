//! What happened to a socket on a watched port, as the rooms after the sensor see it.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

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
    /// Reports found the ring buffer full.
    Loss,
    /// A part of the sensor was lost or regained.
    Health,
}

impl EventKind {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Connect => "connect",
            Self::Close => "close",
            Self::Loss => "loss",
            Self::Health => "health",
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
}

/// One fact about one socket on a watched port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened; never [`EventKind::Loss`] or [`EventKind::Health`].
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
    /// The socket's transport.
    pub transport: Transport,
    /// The address that was taken, where the hook knows it (not for SCTP, which can have many). An
    /// IPv4-mapped one is given as IPv4.
    pub address: Option<IpAddr>,
    /// The port that was taken.
    pub port: u16,
    /// The other end, on accept and connect, in the same form.
    pub peer: Option<SocketAddr>,
    /// Who acted, where the kernel tells it.
    pub task: Option<Task>,
}
