//! Events on watched ports, as the modules after `sensor` see them.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Direction, PortKey, Printable, Session, SocketKey, Transport};

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
    /// A scan found that another program has the socket open than was reported.
    Handover,
    /// A rule denied a bind.
    Deny,
    /// Reports found the ring buffer full.
    Loss,
    /// A part of the sensor was lost or restored.
    Health,
    /// Aggregated events.
    Summary,
    /// The first datagram that a socket got from an address.
    Receive,
    /// A TCP connection ended.
    Session,
}

impl EventKind {
    /// The kinds that concern a socket.
    pub const OF_SOCKETS: [Self; 9] = [
        Self::Bind,
        Self::Listen,
        Self::Accept,
        Self::Connect,
        Self::Close,
        Self::Handover,
        Self::Deny,
        Self::Receive,
        Self::Session,
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
            Self::Handover => "handover",
            Self::Deny => "deny",
            Self::Loss => "loss",
            Self::Health => "health",
            Self::Summary => "summary",
            Self::Receive => "receive",
            Self::Session => "session",
        }
    }
}

/// How an outgoing connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectOutcome {
    /// Its handshake never completed: it was denied, timed out or was given up.
    Failed,
    /// It was established.
    Established,
}

impl ConnectOutcome {
    /// The name in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Established => "established",
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

/// Identifies a file on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    /// The device: the major and minor number in the encoding of makedev(3). The BPF programs read the
    /// file system's, which stat(2) shows too, but on btrfs and overlayfs not always.
    pub device: u64,
    /// The inode number.
    pub inode: u64,
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
    /// Which file the executable is; None when unknown.
    pub exe_file: Option<FileId>,
    /// Inode of the mount namespace that the executable's mount is in; None when in none, or unknown.
    pub exe_mount_ns: Option<u64>,
    /// Inode of the mount namespace of the process; None when unknown.
    pub mount_ns: Option<u64>,
    /// Inode of the user namespace of the process; None when unknown.
    pub user_ns: Option<u64>,
    /// The file name that was passed to execve(2).
    pub execfn: Option<Vec<u8>>,
    /// The arguments.
    pub args: Option<Vec<Vec<u8>>>,
    /// Bytes of the arguments that were not read, with one for each separator.
    pub args_unread: u64,
}

/// What a close is the end of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CloseKind {
    /// The socket left the port.
    #[default]
    Released,
    /// It stopped listening, and may still exist and have its port.
    ShutDown,
    /// It left the port some time after it had been shut down.
    ReleasedLater,
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
    /// The remote end of an accept, connect or session, in the same form; of a receive, the sender, with port 0
    /// where it has none.
    pub peer: Option<SocketAddr>,
    /// Who caused it, where the kernel says so. For a kernel socket, whichever task was running.
    pub task: Option<Task>,
    /// Whether it is a kernel socket, where that is known.
    pub is_kernel_socket: Option<bool>,
    /// Process id of the binder, where the bind was counted and not reported.
    pub binder: Option<u32>,
    /// On a close, how the socket's last outgoing connection ended; None without one, and where
    /// the kernel does not show it.
    pub outcome: Option<ConnectOutcome>,
    /// On an accept without key, the cookie of the accepted socket.
    pub accepted: Option<u64>,
    /// Of a close.
    pub close: CloseKind,
    /// On a receive, whether the datagram came from this host: over its loopback device, since the
    /// address can be forged.
    pub is_from_host: bool,
    /// On a connect that a scan found, which way it went; None when unknown.
    pub direction: Option<Direction>,
    /// On a session, how it went.
    pub session: Option<Session>,
    /// The index of the device that the socket is bound to, 0 for none, where the BPF programs can
    /// read it.
    pub interface: Option<u32>,
    /// The name of that device, in a scan.
    pub device: Option<Printable>,
    /// Of an IPv6 wildcard: whether it takes no IPv4. None for others, and where it is unknown.
    pub v6only: Option<bool>,
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

/// What a datagram socket has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Received {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes in them, without headers.
    pub bytes: u64,
    /// From how many addresses; past 1,024, prefixes of addresses (/24, /64), at most 1,024 of these.
    pub peers: u64,
    /// Datagrams from addresses beyond these limits.
    pub others: u64,
}
