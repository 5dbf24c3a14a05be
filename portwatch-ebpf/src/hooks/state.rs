//! The tracepoint `sock:inet_sock_set_state`, for SCTP and DCCP: they have a bind of their own,
//! which no cgroup hook sees. It fires at every change of state of any TCP socket too, so the agent
//! attaches it only where one of the two protocols is there, and the way out must be short.

use aya_ebpf::{EbpfContext as _, macros::tracepoint, programs::TracePointContext};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_DCCP, PROTOCOL_SCTP, kind};

use crate::{
    globals::AvailableHelpers,
    report::{Key, Local, Socket, report},
    watched::is_watched,
};

/// The record, as events/sock/inet_sock_set_state/format in tracefs shows it, the same since Linux
/// 5.6 (include/trace/events/sock.h).
#[repr(C)]
struct Record {
    common: u64,
    socket: u64,
    old_state: u32,
    new_state: u32,
    local_port: u16,
    remote_port: u16,
    family: u16,
    protocol: u16,
    local_ipv4: u32,
    remote_ipv4: u32,
    local_ipv6: [u32; 4],
}

/// `TCP_LISTEN` in include/net/tcp_states.h, which all protocols share.
const LISTEN: u32 = 10;

#[tracepoint]
pub fn inet_sock_set_state(ctx: TracePointContext) -> u32 {
    let record = ctx.as_ptr().cast::<Record>();
    let protocol = field!(record, protocol);
    if protocol == PROTOCOL_SCTP as u16 || protocol == PROTOCOL_DCCP as u16 {
        changed(&ctx, record, protocol as u8);
    }
    0
}

#[inline(always)]
fn changed(ctx: &TracePointContext, record: *const Record, protocol: u8) {
    let kind = if field!(record, new_state) == LISTEN {
        kind::LISTEN
    } else if field!(record, old_state) == LISTEN {
        kind::CLOSE
    } else {
        return;
    };
    if !is_watched(field!(record, local_port).into(), protocol) {
        return;
    }
    let task = AvailableHelpers::TRACEPOINT;
    // A listener's end can come from anywhere; who began to listen is the current task.
    let helpers = if kind == kind::LISTEN {
        task
    } else {
        task.without_task()
    };
    report(ctx, kind, &socket(record, protocol), helpers);
}

#[inline(always)]
fn socket(record: *const Record, protocol: u8) -> Socket {
    let (family, address) = if field!(record, family) == FAMILY_IPV6 as u16 {
        let address = [
            field!(record, local_ipv6[0]),
            field!(record, local_ipv6[1]),
            field!(record, local_ipv6[2]),
            field!(record, local_ipv6[3]),
        ];
        (FAMILY_IPV6, address)
    } else {
        (FAMILY_IPV4, [field!(record, local_ipv4), 0, 0, 0])
    };
    let local = Local {
        family,
        protocol,
        address,
        port: field!(record, local_port),
    };
    Socket {
        counted: 0,
        ..Socket::new(Key::Address(field!(record, socket)), local)
    }
}
