//! The wire between portwatch's BPF programs and its agent: the records that go through the ring
//! buffer, the types of the maps' values, and the names of maps and globals.

#![no_std]
#![forbid(unsafe_code)]

use bytemuck::{Pod, Zeroable};

/// Ports from here up are never watched: 0-1023 are the system ports (RFC 6335 section 6).
pub const SYSTEM_PORTS: u32 = 1024;

/// `IPPROTO_TCP`.
pub const PROTOCOL_TCP: u8 = 6;
/// `IPPROTO_UDP`.
pub const PROTOCOL_UDP: u8 = 17;
/// `IPPROTO_DCCP`.
pub const PROTOCOL_DCCP: u8 = 33;
/// `IPPROTO_SCTP`.
pub const PROTOCOL_SCTP: u8 = 132;
/// `IPPROTO_UDPLITE`.
pub const PROTOCOL_UDPLITE: u8 = 136;

/// `AF_INET`.
pub const FAMILY_IPV4: u8 = 2;
/// `AF_INET6`.
pub const FAMILY_IPV6: u8 = 10;

/// Names of the maps and read-only globals, as they stand in the eBPF object.
pub mod names {
    /// The ring buffer that carries [`Report`](super::Report)s.
    pub const RING: &str = "RING";
    /// Per-CPU array of one [`Stats`](super::Stats).
    pub const STATS: &str = "STATS";
    /// Hash from [`RepeatKey`](super::RepeatKey) to `u64`: how often it was counted.
    pub const REPEATS: &str = "REPEATS";
    /// Hash from [`CountedKey`](super::CountedKey) to [`Report`](super::Report): what was neither
    /// reported nor counted yet of sockets that are open.
    pub const COUNTED_SOCKETS: &str = "COUNTED_SOCKETS";
    /// Array of [`SYSTEM_PORTS`](super::SYSTEM_PORTS) `u32`: the
    /// [`watch_bit`](super::watch_bit)s of each port.
    pub const WATCHED: &str = "WATCHED";
    /// The program on the tracepoint, which is attached only where it is of use.
    pub const TRACEPOINT: &str = "inet_sock_set_state";
    /// The programs that deny before the kernel looks for the port, attached only while rules deny.
    pub const BEFORE_BIND: [&str; 2] = ["bind4", "bind6"];
    /// `u8`: whether `sock_ops` programs may ask for the current task (not before Linux 6.18).
    pub const SOCK_OPS_TASK: &str = "SOCK_OPS_TASK";
    /// `u8`: whether `sock_ops` programs may ask for the netns cookie (not on Linux 5.10).
    pub const SOCK_OPS_NETNS: &str = "SOCK_OPS_NETNS";
    /// Array of one [`Control`](super::Control), which the agent maps into its memory.
    pub const CONTROL: &str = "CONTROL";
    /// The [`KernelOffsets`](super::KernelOffsets) of the running kernel.
    pub const KERNEL_OFFSETS: &str = "KERNEL_OFFSETS";
    /// Socket storage: the [`SocketMark`](super::SocketMark) of each socket on a watched port.
    pub const SOCKET_MARKS: &str = "SOCKET_MARKS";
    /// Array of one `u32`: the bank of the deny rules in force, from 1 on; 0 for none.
    pub const DENY_BANK: &str = "DENY_BANK";
    /// Array of `u64` by [`deny_slot`](super::deny_slot): the rules that apply to a port, as bits
    /// of their indices.
    pub const DENY_PORTS: &str = "DENY_PORTS";
    /// Array of [`MAX_DENY_RULES`](super::MAX_DENY_RULES) [`DenyRule`](super::DenyRule)s for each
    /// bank.
    pub const DENY_RULES: &str = "DENY_RULES";
    /// The program that sees datagrams, which is attached only while a socket is on a watched port.
    pub const RECEIVE: &str = "receive";
    /// Hash from a socket's cookie to its [`Receiver`](super::Receiver).
    pub const RECEIVERS: &str = "RECEIVERS";
    /// Hash from [`PeerKey`](super::PeerKey) to [`Peer`](super::Peer).
    pub const PEERS: &str = "PEERS";
    /// Per-CPU array of one `u64`: datagrams and segments for other ports.
    pub const UNWATCHED_PACKETS: &str = "UNWATCHED_PACKETS";
    /// LRU hash from the id of a socket's cgroup to `u64`: a sample of [`UNWATCHED_PACKETS`].
    pub const BUSY_CGROUPS: &str = "BUSY_CGROUPS";
}

/// The bit that stands for an IP protocol number in the watched map; 0 for one that is never watched.
#[inline(always)]
#[must_use]
pub const fn watch_bit(protocol: u8) -> u32 {
    match protocol {
        PROTOCOL_TCP => 1,
        PROTOCOL_UDP => 1 << 1,
        PROTOCOL_UDPLITE => 1 << 2,
        PROTOCOL_SCTP => 1 << 3,
        PROTOCOL_DCCP => 1 << 4,
        _ => 0,
    }
}

/// What happened to the socket: the values of [`Report::kind`].
pub mod kind {
    /// The kernel accepted a bind.
    pub const BIND: u8 = 1;
    /// A TCP socket began to listen.
    pub const LISTEN: u8 = 2;
    /// A handshake on a listener completed.
    pub const ACCEPT: u8 = 3;
    /// A TCP socket on a watched port began to connect outwards.
    pub const CONNECT: u8 = 4;
    /// The socket left the port.
    pub const CLOSE: u8 = 5;
    /// A rule denied a bind.
    pub const DENY: u8 = 6;
    /// A socket left the port whose [`CLOSE`] had [`known::SHUT_DOWN`](super::known::SHUT_DOWN), or
    /// was counted.
    pub const RELEASE: u8 = 7;
    /// The first datagram that a socket got from an address.
    pub const RECEIVE: u8 = 9;
    /// In a [`RepeatKey`](super::RepeatKey) only: connections that ended.
    pub const SESSION: u8 = 16;
    /// The same: bytes that they received.
    pub const SESSION_IN: u8 = 17;
    /// The same: bytes that they sent and the peers acknowledged.
    pub const SESSION_OUT: u8 = 18;
}

/// Which optional parts of a [`Report`] the kernel filled: bits of [`Report::known`].
pub mod known {
    /// `tgid`, `tid`, `uid`, `gid`, `comm` and `cgroup_id` are the acting task's.
    pub const TASK: u8 = 1;
    /// `netns_cookie` is set.
    pub const NETNS: u8 = 1 << 1;
    /// `remote_address` and `remote_port` are set.
    pub const REMOTE: u8 = 1 << 2;
    /// `cookie` is no cookie but the kernel's address of the socket, where the hook knows no better.
    pub const ADDRESS: u8 = 1 << 3;
    /// `start_ns` is set.
    pub const START: u8 = 1 << 4;
    /// The socket is the kernel's own: the acting task is whichever happened to run.
    pub const KERNEL: u8 = 1 << 5;
    /// On a close: that the socket took the port was counted and not reported. `tgid` is the
    /// binder's.
    pub const COUNTED: u8 = 1 << 6;
    /// On a receive: the datagram came from this host.
    pub const FROM_HOST: u8 = 1 << 6;
    /// On an accept: `cookie` is the accepted socket's, since its listener has no mark.
    pub const ACCEPTED: u8 = 1 << 7;
    /// On a close: the socket has stopped listening, and may still exist and have its port.
    pub const SHUT_DOWN: u8 = 1 << 7;
}

/// How far an outgoing connection has come: the values of [`Report::connection`] and
/// [`SocketMark::connection`].
pub mod connection {
    /// The socket did not connect outwards.
    pub const NONE: u8 = 0;
    /// It began to connect; at its close, that failed.
    pub const STARTED: u8 = 1;
    /// The handshake completed.
    pub const ESTABLISHED: u8 = 2;
}

/// What the BPF programs see of where a socket can be reached: the second word of
/// [`Report::remote_address`].
pub mod place {
    /// These words are set.
    pub const KNOWN: u32 = 1;
    /// The socket takes no IPv4.
    pub const V6ONLY: u32 = 1 << 1;
}

/// Which end of a socket was reported: the values of [`SocketMark::closed`].
pub mod closed {
    /// None.
    pub const NO: u16 = 0;
    /// It left the port.
    pub const RELEASED: u16 = 1;
    /// It stopped listening.
    pub const SHUT_DOWN: u16 = 2;
}

mod control;
mod deny;
mod exec_info;
mod kernel_offsets;
pub mod protocol;
mod receive;
mod session_end;

pub use control::{Control, CountedKey, MAX_COUNTED_SOCKETS, RepeatKey, Stats, counted};
pub use deny::{
    CGROUP_NAME_BYTES, DENY_BANKS, DENY_SLOTS, DenyRule, MAX_DENY_RULES, deny_flags, deny_slot,
};
pub use exec_info::{ARGS_BYTES, EXE_BYTES, EXECFN_BYTES, ExecInfo, NAME_BYTES, exec_info_flags};
pub use kernel_offsets::KernelOffsets;
pub use receive::{
    IPV4_PREFIX, IPV6_PREFIX, MAX_ADDRESSES, MAX_PEERS, MAX_PREFIXES, MAX_RECEIVERS, Peer, PeerKey,
    Receiver,
};
pub use session_end::{SessionEnd, end, session, session_flags};

/// One event as a BPF program writes it into the ring buffer, in the host's byte order but for
/// the addresses. Without padding, so that every byte is written before it is submitted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Report {
    /// `CLOCK_MONOTONIC` nanoseconds (`bpf_ktime_get_ns`).
    pub time_ns: u64,
    /// Socket cookie, the listener's on an accept; 0 when the BPF program does not know it. See
    /// [`known::ADDRESS`].
    pub cookie: u64,
    /// Cookie of the socket's network namespace.
    pub netns_cookie: u64,
    /// Id of the task's cgroup in the v2 hierarchy.
    pub cgroup_id: u64,
    /// When the task's process started: `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Process id (thread group id) in the initial pid namespace.
    pub tgid: u32,
    /// Thread id in the initial pid namespace.
    pub tid: u32,
    /// Real user id in the initial user namespace.
    pub uid: u32,
    /// Real group id in the initial user namespace.
    pub gid: u32,
    /// Network byte order; an IPv4 address takes the first four bytes, the rest is zero.
    pub local_address: [u8; 16],
    /// As `local_address`. Without [`known::REMOTE`], on a bind or listen: two words, the index of the
    /// device that the socket is bound to and bits of [`place`].
    pub remote_address: [u8; 16],
    /// Inode of the socket's network namespace; 0 when it is not known.
    pub netns_inode: u32,
    /// On a close, one of [`connection`].
    pub connection: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Host byte order.
    pub local_port: u16,
    /// Host byte order.
    pub remote_port: u16,
    /// One of [`kind`].
    pub kind: u8,
    /// [`FAMILY_IPV4`] or [`FAMILY_IPV6`]: the socket's.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Bits of [`known`].
    pub known: u8,
    /// The thread's name, padded with NULs.
    pub comm: [u8; 16],
}

/// The mark of a socket on a watched port, stored in the socket itself: it goes when the socket
/// goes. A listener's children inherit a copy, which is how an accept names its listener.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SocketMark {
    /// Cookie of the marked socket; in a child that inherited it, its listener's; 0 in an accepted
    /// socket whose listener has no mark.
    pub cookie: u64,
    /// The same bytes as in [`Report`], as words.
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u16,
    /// As in [`Report`].
    pub family: u8,
    /// As in [`Report`].
    pub protocol: u8,
    /// One of [`closed`], since two hooks can see the same close.
    pub closed: u16,
    /// Bits of [`counted`]; 0 if that it took the port was reported.
    pub counted: u16,
    /// Process id of the binder; 0 when unknown.
    pub binder: u32,
    /// One of [`connection`].
    pub connection: u8,
    /// Bits of [`session`]: this socket's own, also in a child that inherited the rest.
    pub session: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// When the connection was established: `CLOCK_MONOTONIC` nanoseconds; 0 without one.
    pub opened_ns: u64,
}

impl SocketMark {
    /// Of a socket whose bind was reported, by an unknown process, and that has not connected.
    #[inline(always)]
    #[must_use]
    pub const fn new(cookie: u64, address: [u32; 4], port: u16, family: u8, protocol: u8) -> Self {
        Self {
            cookie,
            address,
            port,
            family,
            protocol,
            closed: closed::NO,
            counted: 0,
            binder: 0,
            connection: connection::NONE,
            session: 0,
            reserved: [0; 2],
            opened_ns: 0,
        }
    }
}

const _: () = assert!(size_of::<Report>() == 120 && align_of::<Report>() == 8);

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    #[test]
    fn the_layout_is_the_wire_format() {
        let offsets = [
            (offset_of!(Report, time_ns), 0),
            (offset_of!(Report, cookie), 8),
            (offset_of!(Report, netns_cookie), 16),
            (offset_of!(Report, cgroup_id), 24),
            (offset_of!(Report, start_ns), 32),
            (offset_of!(Report, tgid), 40),
            (offset_of!(Report, tid), 44),
            (offset_of!(Report, uid), 48),
            (offset_of!(Report, gid), 52),
            (offset_of!(Report, local_address), 56),
            (offset_of!(Report, remote_address), 72),
            (offset_of!(Report, netns_inode), 88),
            (offset_of!(Report, connection), 92),
            (offset_of!(Report, reserved), 93),
            (offset_of!(Report, local_port), 96),
            (offset_of!(Report, remote_port), 98),
            (offset_of!(Report, kind), 100),
            (offset_of!(Report, family), 101),
            (offset_of!(Report, protocol), 102),
            (offset_of!(Report, known), 103),
            (offset_of!(Report, comm), 104),
        ];
        for (actual, wire) in offsets {
            assert_eq!(actual, wire);
        }
        assert_eq!(size_of::<Report>(), 120);
    }

    #[test]
    fn every_watched_protocol_has_a_bit_of_its_own() {
        let protocols = [
            PROTOCOL_TCP,
            PROTOCOL_UDP,
            PROTOCOL_UDPLITE,
            PROTOCOL_SCTP,
            PROTOCOL_DCCP,
        ];
        let bits = protocols.map(watch_bit);
        assert_eq!(bits.iter().fold(0, |all, bit| all | bit).count_ones(), 5);
        assert_eq!(watch_bit(1), 0);
    }
}
