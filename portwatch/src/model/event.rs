//! Events on watched ports, as the modules after `sensor` see them.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{PortKey, SocketKey, Transport};

/// The kind of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventKind {
    /// The kernel accepted a bind.
    Bind,
    /// A TCP socket started to listen.
    Listen,
    /// A handshake on a listener completed.
    Accept,
    /// A TCP socket on the port started an outgoing connection.
    Connect,
    /// The socket left the port.
    Close,
    /// A rule denied a bind.
    Deny,
    /// Reports found the ring buffer full.
    Loss,
    /// A part of the sensor was lost or restored.
    Health,
    /// Aggregated events.
    Summary,
}

impl EventKind {
    /// The kinds that concern a socket.
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

/// The task that caused an event, as the kernel knew it at that moment.
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
    /// Id of its cgroup in the v2 hierarchy; None when unknown.
    pub cgroup_id: Option<u64>,
    /// Start time of its process in nanoseconds of `CLOCK_BOOTTIME`, where the BPF programs can
    /// read it.
    pub start_ns: Option<u64>,
    /// What its process was executing, where the BPF programs can read it.
    pub exec_info: Option<Rc<ExecInfo>>,
}

/// What a process was executing when it took a port, as the BPF programs read it: arbitrary bytes
/// under the control of that process's user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecInfo {
    /// Process id of the parent.
    pub parent: u32,
    /// The audit login user; None without login or without audit.
    pub loginuid: Option<u32>,
    /// Path of the executable; None when it was too long to read.
    pub exe: Option<Vec<u8>>,
    /// Whether the executable had been unlinked.
    pub deleted: bool,
    /// The file name that was passed to execve(2).
    pub execfn: Option<Vec<u8>>,
    /// The arguments.
    pub args: Option<Vec<Vec<u8>>>,
    /// Bytes of the arguments that were not read, with one for each separator.
    pub args_unread: u64,
}

/// One event of one socket on a watched port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// One of [`EventKind::OF_SOCKETS`].
    pub kind: EventKind,
    /// By the host's clock.
    pub time: Timestamp,
    /// Identifies the socket; on an accept, the listener. None for an accept on a listener that has
    /// no socket mark.
    pub key: Option<SocketKey>,
    /// Cookie of the socket's network namespace, where the kernel provides it.
    pub netns_cookie: Option<u64>,
    /// Inode of the socket's network namespace, where the BPF programs can read it.
    pub netns: Option<u64>,
    /// The socket's transport.
    pub transport: Transport,
    /// The local address, where the hook knows it (not for SCTP, which can have many). An
    /// IPv4-mapped address is given as IPv4.
    pub address: Option<IpAddr>,
    /// The local port.
    pub port: u16,
    /// The remote end of an accept or connect, in the same form.
    pub peer: Option<SocketAddr>,
    /// Who caused it, where the kernel says so. For a kernel socket, whichever task was running.
    pub task: Option<Task>,
    /// Whether it is a kernel socket, where that is known.
    pub is_kernel_socket: Option<bool>,
    /// Process id of the binder, where the bind was counted and not reported.
    pub binder: Option<u32>,
}

impl Event {
    /// The socket's cookie; on an accept, the listener's.
    #[must_use]
    pub fn cookie(&self) -> Option<u64> {
        self.key.and_then(SocketKey::cookie)
    }

    /// The port and its transport.
    #[must_use]
    pub const fn port_key(&self) -> PortKey {
        PortKey {
            transport: self.transport,
            port: self.port,
        }
    }
}
