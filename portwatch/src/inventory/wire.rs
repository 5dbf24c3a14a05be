//! Requests and messages of sock_diag(7) in the kernel's layout (include/uapi/linux/inet_diag.h,
//! Linux 6.18).

use std::ops::RangeInclusive;

use bytemuck::{Pod, Zeroable, bytes_of};

use crate::model::Transport;

/// `struct inet_diag_sockid`. Ports and addresses in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct SocketId {
    pub(super) local_port: [u8; 2],
    pub(super) remote_port: [u8; 2],
    pub(super) local: [u8; 16],
    pub(super) remote: [u8; 16],
    pub(super) interface: u32,
    pub(super) cookie: [u32; 2],
}

/// `struct nlmsghdr`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    pub(super) port_id: u32,
}

/// `struct inet_diag_req_v2`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OneFamily {
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// `struct inet_diag_req`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct BothFamilies {
    family: u8,
    source_length: u8,
    destination_length: u8,
    extensions: u8,
    id: SocketId,
    states: u32,
    tables: u32,
}

/// `struct nlattr`, before the steps of a filter.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Attribute {
    length: u16,
    kind: u16,
}

/// `struct inet_diag_bc_op`: a comparison takes two, the second with the operand.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Step {
    code: u8,
    /// Offset in bytes of the next operation when the comparison is true.
    yes: u8,
    /// Offset when it is false; past the end rejects the socket. In an operand: the port, in host
    /// byte order.
    no: u16,
}

/// `struct inet_diag_msg`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct Message {
    pub(super) family: u8,
    pub(super) state: u8,
    pub(super) timer: u8,
    pub(super) retransmits: u8,
    pub(super) id: SocketId,
    pub(super) expires: u32,
    pub(super) receive_queue: u32,
    pub(super) send_queue: u32,
    pub(super) uid: u32,
    pub(super) inode: u32,
}

/// The first fields of `struct tcp_info` (include/uapi/linux/tcp.h), those that Linux 5.10 has.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct TcpInfo {
    states_and_timers: [u32; 11],
    /// Milliseconds since data was sent; since the handshake when none was.
    pub(super) last_data_sent: u32,
    last_ack_sent: u32,
    /// Milliseconds since data came; since the handshake when none did.
    pub(super) last_data_received: u32,
    last_ack_received: u32,
    metrics: [u32; 11],
    rates: [u64; 2],
    pub(super) bytes_acked: u64,
    pub(super) bytes_received: u64,
    segments: [u32; 6],
    limits: [u64; 4],
    delivered: [u32; 2],
    /// Bytes of data sent, repeated ones included; no SYN and no FIN.
    pub(super) bytes_sent: u64,
}

pub(super) const HEADER: usize = size_of::<Header>();
/// The request type from before `SOCK_DIAG_BY_FAMILY`.
const TCPDIAG_GETSOCK: u16 = 18;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_BYTECODE: u16 = 1;
const JUMP: u8 = 1;
const PORT_AT_LEAST: u8 = 2;
const PORT_AT_MOST: u8 = 3;
/// `INET_DIAG_BC_AUTO`: nobody bound the socket to its port.
const IS_AUTOBOUND: u8 = 6;
/// All states except `TCP_TIME_WAIT` (6), `TCP_SYN_RECV` (3) and `TCP_NEW_SYN_RECV` (12), whose
/// sockets no process has open. `TCP_BOUND_INACTIVE` (13) selects sockets that are only bound
/// (Linux 6.8).
const STATES: u32 = 0x3fff & !(1 << 6) & !(1 << 3) & !(1 << 12);
/// `TCP_LISTEN` in include/net/tcp_states.h.
pub(super) const LISTEN: u8 = 10;
/// `TCP_LISTEN` and `TCP_BOUND_INACTIVE`.
const UNCONNECTED: u32 = 1 << LISTEN | 1 << 13;
/// A connection is open from `TCP_ESTABLISHED` until both ends have closed it (the states of
/// [`TcpState`](super::connections::TcpState)).
const OPEN: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;
/// `INET_DIAG_INFO`: the attribute with `struct tcp_info`.
pub(super) const INFO: u16 = 2;

/// A dump request for the sockets of one address family.
pub(super) fn one_family(
    transport: Transport,
    family: i32,
    ports: &RangeInclusive<u16>,
) -> Vec<u8> {
    let payload = OneFamily {
        family: family as u8,
        protocol: transport.protocol(),
        states: STATES,
        ..Zeroable::zeroed()
    };
    request(SOCK_DIAG_BY_FAMILY, bytes_of(&payload), ports, Bound::Any)
}

/// A dump request for the TCP sockets of both families: the older request
/// (`inet_diag_dump_compat` in net/ipv4/inet_diag.c), since the newer one must name a family.
pub(super) fn both_families(ports: &RangeInclusive<u16>) -> Vec<u8> {
    let payload = BothFamilies {
        states: STATES,
        ..Zeroable::zeroed()
    };
    request(TCPDIAG_GETSOCK, bytes_of(&payload), ports, Bound::Any)
}

/// As [`both_families`], but only connections whose socket was bound to its port: these are outgoing,
/// since an accepted one does not inherit that it was (`sk_clone` in net/core/sock.c clears
/// `SOCK_BINDPORT_LOCK`, Linux 5.10 to 6.18).
pub(super) fn bound_connections(ports: &RangeInclusive<u16>) -> Vec<u8> {
    let payload = BothFamilies {
        states: STATES & !UNCONNECTED,
        ..Zeroable::zeroed()
    };
    request(TCPDIAG_GETSOCK, bytes_of(&payload), ports, Bound::Only)
}

/// The TCP listeners of both families.
pub(super) fn listeners(ports: &RangeInclusive<u16>) -> Vec<u8> {
    let payload = BothFamilies {
        states: 1 << LISTEN,
        ..Zeroable::zeroed()
    };
    request(TCPDIAG_GETSOCK, bytes_of(&payload), ports, Bound::Any)
}

/// The TCP connections of both families that are open, with their counters: those whose socket was
/// bound to its port, or the others. A connection is in one of the two, whenever they are asked for.
pub(super) fn open_connections(ports: &RangeInclusive<u16>, is_bound: bool) -> Vec<u8> {
    /// `INET_DIAG_INFO` in include/uapi/linux/inet_diag.h; the request has a bit for each, from 1 on.
    const WITH_INFO: u8 = 1 << (INFO - 1);
    let payload = BothFamilies {
        extensions: WITH_INFO,
        states: OPEN,
        ..Zeroable::zeroed()
    };
    let bound = if is_bound { Bound::Only } else { Bound::Never };
    request(TCPDIAG_GETSOCK, bytes_of(&payload), ports, bound)
}

/// What a request selects by whether the socket was bound to its port.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bound {
    Any,
    Only,
    Never,
}

fn request(kind: u16, payload: &[u8], ports: &RangeInclusive<u16>, bound: Bound) -> Vec<u8> {
    let compare = |code, port, left: u16| {
        let test = Step {
            code,
            yes: 8,
            no: left + 4,
        };
        let operand = Step {
            code: 0,
            yes: 0,
            no: port,
        };
        [test, operand]
    };
    let after = match bound {
        Bound::Any => 0,
        Bound::Never => 4,
        Bound::Only => 8,
    };
    let mut steps = Vec::from(compare(PORT_AT_LEAST, *ports.start(), after + 16));
    steps.extend(compare(PORT_AT_MOST, *ports.end(), after + 8));
    let is_autobound = |no| Step {
        code: IS_AUTOBOUND,
        yes: 4,
        no,
    };
    if bound == Bound::Never {
        steps.push(is_autobound(8));
    }
    if bound == Bound::Only {
        // The kernel follows `yes` to check that it ends (`inet_diag_bc_audit`); a jump takes `no`.
        let reject = Step {
            code: JUMP,
            yes: 4,
            no: 8,
        };
        steps.extend([is_autobound(8), reject]);
    }
    let steps: &[u8] = bytemuck::cast_slice(&steps);
    let length = size_of::<Attribute>() + steps.len();
    let attribute = Attribute {
        length: length as u16,
        kind: REQUEST_BYTECODE,
    };
    let header = Header {
        length: (HEADER + payload.len() + length) as u32,
        kind,
        flags: (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16,
        ..Zeroable::zeroed()
    };
    [bytes_of(&header), payload, bytes_of(&attribute), steps].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_size_of_the_kernels() {
        assert_eq!(size_of::<Header>(), 16);
        assert_eq!(size_of::<SocketId>(), 48);
        assert_eq!(size_of::<OneFamily>(), 56);
        assert_eq!(size_of::<BothFamilies>(), 60);
        assert_eq!((size_of::<Attribute>(), size_of::<Step>()), (4, 4));
        assert_eq!(size_of::<Message>(), 72);
        let offsets = [
            std::mem::offset_of!(TcpInfo, last_data_sent),
            std::mem::offset_of!(TcpInfo, last_data_received),
            std::mem::offset_of!(TcpInfo, bytes_acked),
            std::mem::offset_of!(TcpInfo, bytes_received),
            std::mem::offset_of!(TcpInfo, bytes_sent),
        ];
        assert_eq!(offsets, [44, 52, 120, 128, 200]);
    }
}
