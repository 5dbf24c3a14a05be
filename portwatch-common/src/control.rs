//! What the BPF programs and the agent share while both run: the control page, the keys of repeated
//! events, and the statistics.

use bytemuck::{Pod, Zeroable};

/// One page that both sides have mapped. Each word is read and written as a whole.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Control {
    /// Not 0 while the agent polls the ring: it need not be woken. Written by the agent.
    pub polling: u32,
    /// The epoch in which [`RepeatKey`]s are counted; 0 while none are, and each event is reported.
    /// Written by the agent.
    pub epoch: u32,
    /// Bytes in the ring from which on repeated events are counted. Written by the agent.
    pub high_watermark: u64,
    /// At least the number of sockets with a [`SocketMark`](super::SocketMark) of their own, whose
    /// close is to be reported: while it is 0, a close needs no look-up. Both sides add to it.
    pub marked_sockets: u64,
    /// Not 0 while the agent is to be woken for the end of a connection. Written by the agent.
    pub sessions: u32,
    /// Zero.
    pub reserved: u32,
}

/// Events that are counted as one and the same while the ring is filling; the first is reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RepeatKey {
    /// The listener's, on an accept and for connections that it accepted; 0 otherwise.
    pub cookie: u64,
    /// As in [`Report`](super::Report); 0 when it is not known.
    pub netns_cookie: u64,
    /// As in [`Report`](super::Report).
    pub local_address: [u32; 4],
    /// As in [`Report`](super::Report); 0 except on an accept.
    pub remote_address: [u32; 4],
    /// Process id of the binder; 0 when it is not known.
    pub binder: u32,
    /// The [`Control::epoch`] in which it was counted.
    pub epoch: u32,
    /// Host byte order.
    pub local_port: u16,
    /// One of [`kind`](super::kind).
    pub kind: u8,
    /// As in [`Report`](super::Report).
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// As in [`Report`](super::Report): which of these the BPF programs know.
    pub known: u8,
    /// Of connections that ended: bits of [`session_flags`](super::session_flags).
    pub session: u16,
}

const _: () = assert!(size_of::<RepeatKey>() == 64 && align_of::<RepeatKey>() == 8);

/// Identifies an entry of the table of counted sockets: each event by which a socket takes its port
/// has one of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct CountedKey {
    /// The socket's.
    pub cookie: u64,
    /// One of [`kind`](super::kind): `BIND`, `LISTEN` or `CONNECT`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

/// Entries of the table of counted sockets: some 200 bytes each, which are allocated when used, so
/// 3.3 MB at most.
pub const MAX_COUNTED_SOCKETS: u32 = 16_384;

/// Bits of [`SocketMark::counted`](super::SocketMark::counted).
pub mod counted {
    /// An event by which the socket took its port was not reported.
    pub const COUNTED: u16 = 1;
    /// Its bind is in the table of counted sockets, or the agent has taken it out.
    pub const BIND: u16 = 1 << 1;
    /// The same of its listen.
    pub const LISTEN: u16 = 1 << 2;
    /// The same of its connect.
    pub const CONNECT: u16 = 1 << 3;

    /// The bit of a [`kind`](crate::kind); 0 for one by which a socket takes no port.
    #[inline(always)]
    #[must_use]
    pub const fn bit(kind: u8) -> u16 {
        match kind {
            crate::kind::BIND => BIND,
            crate::kind::LISTEN => LISTEN,
            crate::kind::CONNECT => CONNECT,
            _ => 0,
        }
    }
}

/// Statistics of one CPU since the BPF programs were loaded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Stats {
    /// Reports that found the ring full.
    pub lost: u64,
    /// [`RepeatKey`]s that began to be counted.
    pub repeats: u64,
    /// Entries that were added to the table of counted sockets.
    pub counted_sockets: u64,
    /// Entries for which that table had no room.
    pub overflowed: u64,
    /// [`Report`](super::Report)s and [`SessionEnd`](super::SessionEnd)s that were put into the ring: what the agent has not taken once the
    /// ring is empty is lost.
    pub submitted: u64,
    /// What the BPF programs added to [`Control::marked_sockets`], wrapping: one CPU can take away
    /// what another added.
    pub marked_sockets: u64,
}
