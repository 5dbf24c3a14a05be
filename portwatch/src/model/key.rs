//! What identifies a socket, and a port.

use super::Transport;

/// What identifies a socket among events and scans, for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketKey {
    /// The kernel's socket cookie, which is never used again. Cookies grow with age, so that the
    /// smallest key is about the oldest socket.
    Cookie(u64),
    /// The kernel's address of the socket, where a hook has no cookie (SCTP, DCCP).
    Address(u64),
    /// The inode in the socket file system, where only `/proc/PID/net` could be read.
    Inode(u64),
}

impl SocketKey {
    /// The cookie, if that is the key.
    #[must_use]
    pub const fn cookie(self) -> Option<u64> {
        match self {
            Self::Cookie(cookie) => Some(cookie),
            Self::Address(_) | Self::Inode(_) => None,
        }
    }
}

/// A port of one transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// The transport.
    pub transport: Transport,
    /// The port, in host byte order.
    pub port: u16,
}
