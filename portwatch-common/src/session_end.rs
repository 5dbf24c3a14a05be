//! The end of a TCP connection on a watched port.

use bytemuck::{Pod, Zeroable};

/// What was seen of a connection: bits of [`SocketMark::session`](super::SocketMark::session).
pub mod session {
    /// It is established, and its end is to be reported.
    pub const OPEN: u8 = 1;
    /// This host closed its side first.
    pub const BY_US: u8 = 1 << 1;
    /// The peer closed its side first.
    pub const BY_PEER: u8 = 1 << 2;
    /// The peer's FIN was received.
    pub const PEER_FIN: u8 = 1 << 3;
    /// The peer acknowledged this host's FIN.
    pub const FIN_ACKED: u8 = 1 << 4;
    /// One more path of an MPTCP connection.
    pub const JOINED: u8 = 1 << 5;
    /// This host connected.
    pub const OUTGOING: u8 = 1 << 6;
}

/// How a connection ended: the values of [`SessionEnd::end`].
pub mod end {
    /// The kernel does not show it.
    pub const UNKNOWN: u8 = 0;
    /// This host closed it first.
    pub const BY_US: u8 = 1;
    /// The peer closed it first.
    pub const BY_PEER: u8 = 2;
    /// One of them reset it.
    pub const RESET: u8 = 3;
    /// The peer did not answer any more.
    pub const TIMEOUT: u8 = 4;
}

/// Bits of [`SessionEnd::flags`].
pub mod session_flags {
    /// This host connected.
    pub const OUTGOING: u8 = 1;
    /// One more path of an MPTCP connection: only its bytes count.
    pub const JOINED: u8 = 1 << 1;
}

/// The third kind of record in the ring: a connection ended. Distinguished by its size.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SessionEnd {
    /// When it ended: `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
    /// When it was established: `CLOCK_MONOTONIC` nanoseconds.
    pub opened_ns: u64,
    /// Cookie of the listener, or of the socket itself where that connected; 0 when unknown.
    pub cookie: u64,
    /// Cookie of the connection's own socket.
    pub own: u64,
    /// Cookie of the socket's network namespace; 0 when unknown.
    pub netns_cookie: u64,
    /// Bytes that were received in order, without the FIN.
    pub bytes_in: u64,
    /// Bytes that the peer acknowledged, without SYN and FIN.
    pub bytes_out: u64,
    /// As in [`Report`](super::Report), as words.
    pub local_address: [u32; 4],
    /// As in [`Report`](super::Report), as words.
    pub remote_address: [u32; 4],
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// As in [`Report`](super::Report).
    pub family: u8,
    /// One of [`end`].
    pub end: u8,
    /// Bits of [`session_flags`].
    pub flags: u8,
    /// Zero.
    pub reserved: u8,
}

const _: () = assert!(size_of::<SessionEnd>() == 96 && align_of::<SessionEnd>() == 8);
