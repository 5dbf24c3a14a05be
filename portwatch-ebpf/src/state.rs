//! The tracepoint `sock:inet_sock_set_state`, for SCTP and DCCP: they have a bind of their own,
//! which no cgroup hook sees. It fires at every change of state of any TCP socket too, so the agent
//! attaches it only where one of the two protocols is there, and the way out must be short.
//!
//! Offsets are those of `events/sock/inet_sock_set_state/format` in tracefs, the same since 5.6.

use aya_ebpf::{EbpfContext, macros::tracepoint, programs::TracePointContext};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_DCCP, PROTOCOL_SCTP, kind};

use crate::{
    emit::{Asks, Key, Socket, emit},
    maps::is_watched,
};

const SOCKET: usize = 8;
const OLD_STATE: usize = 16;
const NEW_STATE: usize = 20;
const LOCAL_PORT: usize = 24;
const FAMILY: usize = 28;
const PROTOCOL: usize = 30;
const LOCAL_IPV4: usize = 32;
const LOCAL_IPV6: usize = 40;

/// `TCP_LISTEN` in include/net/tcp_states.h, which all protocols share.
const LISTEN: u32 = 10;

/// Reads a field of the record.
macro_rules! field {
    ($ctx:expr, $offset:expr, $type:ty) => {
        // SAFETY: the record is valid for the whole run, and the verifier checks the offset.
        unsafe { core::ptr::read_volatile($ctx.as_ptr().byte_add($offset).cast::<$type>()) }
    };
}

#[tracepoint]
pub fn inet_sock_set_state(ctx: TracePointContext) -> u32 {
    let protocol = field!(ctx, PROTOCOL, u16);
    if protocol == PROTOCOL_SCTP as u16 || protocol == PROTOCOL_DCCP as u16 {
        changed(&ctx, protocol as u8);
    }
    0
}

#[inline(always)]
fn changed(ctx: &TracePointContext, protocol: u8) {
    let kind = if field!(ctx, NEW_STATE, u32) == LISTEN {
        kind::LISTEN
    } else if field!(ctx, OLD_STATE, u32) == LISTEN {
        kind::CLOSE
    } else {
        return;
    };
    let port = field!(ctx, LOCAL_PORT, u16);
    if !is_watched(port.into(), protocol) {
        return;
    }
    let (family, local_address) = if field!(ctx, FAMILY, u16) == FAMILY_IPV6 as u16 {
        let address = [
            field!(ctx, LOCAL_IPV6, u32),
            field!(ctx, LOCAL_IPV6 + 4, u32),
            field!(ctx, LOCAL_IPV6 + 8, u32),
            field!(ctx, LOCAL_IPV6 + 12, u32),
        ];
        (FAMILY_IPV6, address)
    } else {
        (FAMILY_IPV4, [field!(ctx, LOCAL_IPV4, u32), 0, 0, 0])
    };
    let socket = Socket {
        key: Key::Address(field!(ctx, SOCKET, u64)),
        family,
        protocol,
        local_address,
        local_port: port,
        remote: None,
        netns_inode: 0,
        kernels: false,
        taker: 0,
        untold: false,
    };
    // A listener's end can come from anywhere; who began to listen is the current task.
    let asks = Asks {
        task: kind == kind::LISTEN,
        netns: false,
    };
    emit(ctx, kind, &socket, asks);
}
