//! Who sends datagrams to sockets on watched ports, as the BPF programs count it.

use bytemuck::{Pod, Zeroable};

/// Sockets that are counted for: some 100 bytes each, which are allocated when used.
pub const MAX_RECEIVERS: u32 = 65_536;

/// Peers of all sockets: some 120 bytes each, which are allocated when used, so 2 MB at most.
pub const MAX_PEERS: u32 = 16_384;

/// Addresses of one socket that have a [`PeerKey`] of their own; sender addresses can be forged, so
/// that one host can use any number.
pub const MAX_ADDRESSES: u64 = 1024;

/// Prefixes of one socket that have a [`PeerKey`], for the addresses beyond [`MAX_ADDRESSES`].
pub const MAX_PREFIXES: u64 = 1024;

/// Bits of the prefixes by which further addresses are counted.
pub const IPV4_PREFIX: u32 = 24;
/// As [`IPV4_PREFIX`].
pub const IPV6_PREFIX: u32 = 64;

/// What one socket has received since its cgroup had the hook.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Receiver {
    /// Datagrams: those that the kernel gave the socket's filter.
    pub datagrams: u64,
    /// Bytes in them, without headers.
    pub bytes: u64,
    /// [`PeerKey`]s for whole addresses.
    pub addresses: u64,
    /// [`PeerKey`]s for prefixes.
    pub prefixes: u64,
    /// Datagrams for whose sender there was no [`PeerKey`].
    pub others: u64,
    /// Not 0 once a datagram from another host was reported.
    pub is_reached: u64,
}

/// A peer of a socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PeerKey {
    /// The socket's.
    pub cookie: u64,
    /// As in [`Report`](super::Report); of a prefix, with zeros behind it.
    pub address: [u32; 4],
    /// [`FAMILY_IPV4`](super::FAMILY_IPV4) or [`FAMILY_IPV6`](super::FAMILY_IPV6).
    pub family: u32,
    /// Bits of the prefix; 0 for a whole address.
    pub prefix: u32,
}

impl PeerKey {
    /// The prefix that this address is counted by.
    #[inline(always)]
    #[must_use]
    pub const fn prefix(self) -> Self {
        let [first, second, ..] = self.address;
        if self.family == super::FAMILY_IPV6 as u32 {
            Self {
                address: [first, second, 0, 0],
                prefix: IPV6_PREFIX,
                ..self
            }
        } else {
            // The first three bytes of a word in network byte order.
            Self {
                address: [first & u32::from_ne_bytes([0xff, 0xff, 0xff, 0]), 0, 0, 0],
                prefix: IPV4_PREFIX,
                ..self
            }
        }
    }
}

/// What came from one peer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Peer {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes in them, without headers.
    pub bytes: u64,
    /// When the first came: `CLOCK_MONOTONIC` nanoseconds.
    pub first_ns: u64,
    /// When the last came.
    pub last_ns: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_beyond_the_limit_is_counted_by_its_prefix() {
        let key = |family, address: [u8; 16]| PeerKey {
            cookie: 1,
            address: bytemuck::cast(address),
            family,
            prefix: 0,
        };
        let mut address = [7; 16];
        let ipv6 = key(10, address).prefix();
        address[8..].fill(0);
        assert_eq!((ipv6.address, ipv6.prefix), (bytemuck::cast(address), 64));
        let ipv4 = key(2, [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).prefix();
        let expected: [u8; 16] = [10, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((ipv4.address, ipv4.prefix), (bytemuck::cast(expected), 24));
        assert_eq!(ipv4.cookie, 1);
    }
}
