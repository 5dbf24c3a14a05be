//! What is read of a datagram's headers.

use core::{ffi::c_void, ptr};

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_UDP, PROTOCOL_UDPLITE};

/// `LOOPBACK_IFINDEX` in include/net/flow.h: the index of `lo` in every network namespace. The kernel
/// drops packets from outside with a loopback address, but not with another one of this host.
const LOOPBACK: u32 = 1;

/// `PACKET_LOOPBACK` in include/uapi/linux/if_packet.h: what this host sent to a multicast or
/// broadcast address and gets itself.
const PACKET_LOOPBACK: u32 = 5;

/// `ETH_P_IP` and `ETH_P_IPV6` in include/uapi/linux/if_ether.h.
const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;

/// Bytes of a UDP header.
const UDP_HEADER: u32 = 8;

/// Extension headers that are skipped to find the sender's port.
const HEADERS: u32 = 12;

/// What the hook reads of a packet.
pub struct Packet {
    pub family: u8,
    /// Network byte order; an IPv4 address takes the first word.
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// The sender's, in host byte order; 0 if it has none, or behind too many headers.
    pub port: u16,
    pub datagrams: u64,
    /// Without headers.
    pub bytes: u64,
    pub is_from_host: bool,
}

impl Packet {
    /// To be [`read`]; no Option: see `report::Actor`.
    pub const EMPTY: Self = Self {
        family: 0,
        source: [0; 4],
        destination: [0; 4],
        port: 0,
        datagrams: 1,
        bytes: 0,
        is_from_host: false,
    };
}

/// False for what is neither IPv4 nor IPv6.
#[inline(always)]
pub fn read(skb: *mut __sk_buff, packet: &mut Packet) -> bool {
    packet.is_from_host =
        field!(skb, ifindex) == LOOPBACK || field!(skb, pkt_type) == PACKET_LOOPBACK;
    let header = match u16::from_be(field!(skb, protocol) as u16).into() {
        IPV4 => {
            let mut words = [0_u32; 5];
            if !load(skb, 0, &mut words) {
                return false;
            }
            packet.family = FAMILY_IPV4;
            packet.source = [words[3], 0, 0, 0];
            packet.destination = [words[4], 0, 0, 0];
            // The header's length, in words: the lower half of the first byte.
            u32::from(words[0].to_ne_bytes()[0] & 0xf) * 4
        }
        IPV6 => {
            packet.family = FAMILY_IPV6;
            if !load(skb, 8, &mut packet.source) || !load(skb, 24, &mut packet.destination) {
                return false;
            }
            transport_header(skb)
        }
        _ => return false,
    };
    let mut port = [0_u8; 2];
    if header != 0 && load(skb, header, &mut port) {
        packet.port = u16::from_be_bytes(port);
    }
    let len = field!(skb, len);
    let headers = header + UDP_HEADER;
    if header != 0 && len > headers {
        packet.bytes = (len - headers).into();
    }
    // Several datagrams that were joined, for a socket that asked for it (`UDP_GRO`).
    let segments = field!(skb, gso_segs);
    if segments > 1 {
        packet.datagrams = segments.into();
    }
    true
}

/// Where the header of the transport is in an IPv6 packet; 0 where that is behind too many others.
#[inline(always)]
fn transport_header(skb: *mut __sk_buff) -> u32 {
    /// Protocol numbers of IANA: hop-by-hop and destination options, routing, fragment, authentication.
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    let mut next = 0_u8;
    if !load(skb, 6, &mut next) {
        return 0;
    }
    let mut at = 40;
    for _ in 0..HEADERS {
        if next == PROTOCOL_UDP || next == PROTOCOL_UDPLITE {
            return at;
        }
        // Number of the next header, and the length of this one.
        let mut header = [0_u8; 2];
        if !load(skb, at, &mut header) {
            return 0;
        }
        at += match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (u32::from(header[1]) + 1) * 8,
            FRAGMENT => 8,
            // RFC 4302 section 2.2.
            AUTHENTICATION => (u32::from(header[1]) + 2) * 4,
            _ => return 0,
        };
        next = header[0];
    }
    0
}

/// Reads bytes of the packet, from the network header on; false where it has none there.
#[inline(always)]
fn load<T>(skb: *mut __sk_buff, offset: u32, value: &mut T) -> bool {
    // SAFETY: the destination is a local of that size; the kernel checks the offset.
    let result = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            offset,
            ptr::from_mut(value).cast::<c_void>(),
            size_of::<T>() as u32,
        )
    };
    result == 0
}
