//! A connection on a watched port from its handshake to its end. The mark of its socket, which is a
//! copy of the listener's own where it was accepted, keeps what was seen of it.
//!
//! `bytes_received` counts the peer's FIN as one byte, `bytes_acked` this host's FIN and, where it
//! connected, its SYN (`tcp_rcv_nxt_update` and `tcp_snd_una_update` in net/ipv4/tcp_input.c, 5.10 to
//! 6.18).

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING, BPF_TCP_ESTABLISHED, BPF_TCP_FIN_WAIT1,
        BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_RECV, bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    },
    programs::SockOpsContext,
};
use portwatch_common::{
    FAMILY_IPV6, PROTOCOL_TCP, RepeatKey, SocketMark, end, kind, known, session, session_flags,
};

use crate::{
    control::{count_lost, wakes_for_sessions},
    field::put,
    globals::AvailableHelpers,
    kernel::ending,
    repeats,
    ring::{reserve_session_end, submit_session_end},
};

/// `ETIMEDOUT` and so on are a timeout; these three a reset (include/uapi/asm-generic/errno.h).
const ECONNRESET: u32 = 104;
const EPIPE: u32 = 32;
const ECONNABORTED: u32 = 103;

/// The connection of the socket with that mark is established.
#[inline(always)]
pub fn begin(mark: NonNull<SocketMark>, flags: u8) {
    let mark = mark.as_ptr();
    // SAFETY: the kernel's pointer to a live value, valid for the whole run.
    unsafe {
        (&raw mut (*mark).opened_ns).write_volatile(bpf_ktime_get_ns());
        (&raw mut (*mark).session).write_volatile(session::OPEN | flags);
    }
}

/// The socket with that mark changes its state; `sk` is the context's.
#[inline(always)]
pub fn changed(
    ctx: &SockOpsContext,
    mark: NonNull<SocketMark>,
    sk: *mut c_void,
    helpers: AvailableHelpers,
) {
    let mark = mark.as_ptr();
    let seen = field!(mark, session);
    if seen & session::OPEN == 0 {
        return;
    }
    let is_first = seen & (session::BY_US | session::BY_PEER) == 0;
    let now = match field!(ctx.ops, __bindgen_anon_1.args[1]) {
        BPF_TCP_CLOSE => {
            set_seen(mark, 0);
            ended(ctx, mark, seen, sk, helpers);
            return;
        }
        BPF_TCP_FIN_WAIT1 if is_first => seen | session::BY_US,
        BPF_TCP_FIN_WAIT2 => seen | session::FIN_ACKED,
        BPF_TCP_CLOSE_WAIT if is_first => seen | session::BY_PEER | session::PEER_FIN,
        BPF_TCP_CLOSE_WAIT | BPF_TCP_CLOSING => seen | session::PEER_FIN,
        _ => return,
    };
    set_seen(mark, now);
}

#[inline(always)]
fn set_seen(mark: *mut SocketMark, seen: u8) {
    // SAFETY: the kernel's pointer to a live value, valid for the whole run.
    unsafe { (&raw mut (*mark).session).write_volatile(seen) };
}

/// What a connection that ends has carried, and how it ended.
struct Sums {
    bytes_in: u64,
    bytes_out: u64,
    end: u8,
}

#[inline(always)]
fn sums(ops: *mut bpf_sock_ops, seen: u8, sk: *mut c_void) -> Sums {
    let old = field!(ops, __bindgen_anon_1.args[0]);
    let ending = ending(sk);
    let mut has_peer_fin = seen & session::PEER_FIN != 0;
    if ending.is_known {
        has_peer_fin = ending.has_peer_fin;
    }
    let mut error = ending.error;
    // The peer's reset of what is closed and acknowledged meets only a socket that the kernel has not
    // yet made a `TIME_WAIT` of.
    if old == BPF_TCP_FIN_WAIT2 && ending.is_orphan {
        error = 0;
    }
    let is_acked = error == 0 && field!(ops, snd_una) == field!(ops, snd_nxt);
    let is_last_ack = old == BPF_TCP_LAST_ACK || old == BPF_TCP_CLOSING;
    let has_fin_acked = seen & session::FIN_ACKED != 0 || is_last_ack && is_acked;
    let is_cut = match old {
        BPF_TCP_ESTABLISHED | BPF_TCP_SYN_RECV | BPF_TCP_CLOSE_WAIT | BPF_TCP_FIN_WAIT1 => true,
        _ => is_last_ack && !is_acked,
    };
    let end = if error != 0 && error != ECONNRESET && error != EPIPE && error != ECONNABORTED {
        end::TIMEOUT
    } else if error != 0 || is_cut && ending.is_known {
        end::RESET
    } else if is_cut {
        end::UNKNOWN
    } else if seen & session::BY_PEER != 0 {
        end::BY_PEER
    } else {
        end::BY_US
    };
    let sent = u64::from(has_fin_acked) + u64::from(seen & session::OUTGOING != 0);
    Sums {
        bytes_in: field!(ops, bytes_received).saturating_sub(has_peer_fin.into()),
        bytes_out: field!(ops, bytes_acked).saturating_sub(sent),
        end,
    }
}

/// Reports the end of a connection, or counts it in sums.
#[inline(always)]
fn ended(
    ctx: &SockOpsContext,
    mark: *mut SocketMark,
    seen: u8,
    sk: *mut c_void,
    helpers: AvailableHelpers,
) {
    let sums = sums(ctx.ops, seen, sk);
    let mut flags = 0;
    if seen & session::OUTGOING != 0 {
        flags |= session_flags::OUTGOING;
    }
    if seen & session::JOINED != 0 {
        flags |= session_flags::JOINED;
    }
    let mut netns_cookie = 0;
    if helpers.netns {
        // SAFETY: the helper takes this program type's context.
        netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    }
    let epoch = repeats::epoch();
    if epoch != 0 && count(mark, &sums, flags, netns_cookie, epoch) {
        return;
    }
    let Some(mut entry) = reserve_session_end() else {
        let epoch = repeats::epoch_of_closed();
        if epoch == 0 || !count(mark, &sums, flags, netns_cookie, epoch) {
            count_lost();
        }
        return;
    };
    // SAFETY: the helper takes this program type's context.
    let own = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let ops = ctx.ops;
    let (local, remote) = addresses(ops);
    let local_port = field!(ops, local_port) as u16;
    let remote_port = u32::from_be(field!(ops, remote_port)) as u16;
    let family = field!(ops, family) as u8;
    let opened_ns = field!(mark, opened_ns);
    let cookie = field!(mark, cookie);
    // SAFETY: `entry` is a `SessionEnd` that was just reserved, 8-byte aligned. Every field is written
    // exactly once, and the record has no padding.
    unsafe {
        let to = entry.as_mut_ptr();
        (&raw mut (*to).time_ns).write(bpf_ktime_get_ns());
        (&raw mut (*to).opened_ns).write(opened_ns);
        (&raw mut (*to).cookie).write(cookie);
        (&raw mut (*to).own).write(own);
        (&raw mut (*to).netns_cookie).write(netns_cookie);
        (&raw mut (*to).bytes_in).write(sums.bytes_in);
        (&raw mut (*to).bytes_out).write(sums.bytes_out);
        put((&raw mut (*to).local_address).cast(), local);
        put((&raw mut (*to).remote_address).cast(), remote);
        (&raw mut (*to).local_port).write(local_port);
        (&raw mut (*to).remote_port).write(remote_port);
        (&raw mut (*to).family).write(family);
        (&raw mut (*to).end).write(sums.end);
        (&raw mut (*to).flags).write(flags);
        (&raw mut (*to).reserved).write(0);
    }
    submit_session_end(entry, wakes_for_sessions());
}

#[inline(always)]
fn addresses(ops: *mut bpf_sock_ops) -> ([u32; 4], [u32; 4]) {
    if field!(ops, family) != u32::from(FAMILY_IPV6) {
        let (local, remote) = (field!(ops, local_ip4), field!(ops, remote_ip4));
        return ([local, 0, 0, 0], [remote, 0, 0, 0]);
    }
    let local = [
        field!(ops, local_ip6[0]),
        field!(ops, local_ip6[1]),
        field!(ops, local_ip6[2]),
        field!(ops, local_ip6[3]),
    ];
    let remote = [
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ];
    (local, remote)
}

/// Adds it to the sums of its listener, or of all that its process made from there; false where there
/// is no room.
#[inline(always)]
fn count(mark: *mut SocketMark, sums: &Sums, flags: u8, netns_cookie: u64, epoch: u32) -> bool {
    let is_outgoing = flags & session_flags::OUTGOING != 0;
    let mut key = RepeatKey {
        cookie: if is_outgoing { 0 } else { field!(mark, cookie) },
        netns_cookie,
        local_address: field!(mark, address),
        remote_address: [0; 4],
        binder: field!(mark, binder),
        epoch,
        local_port: field!(mark, port),
        kind: kind::SESSION,
        family: field!(mark, family),
        protocol: PROTOCOL_TCP,
        known: if netns_cookie == 0 { 0 } else { known::NETNS },
        session: (flags & session_flags::OUTGOING).into(),
    };
    let ended = u64::from(flags & session_flags::JOINED == 0);
    if !repeats::has_room(&key) {
        return false;
    }
    key.kind = kind::SESSION_IN;
    if !repeats::has_room(&key) {
        return false;
    }
    key.kind = kind::SESSION_OUT;
    if !repeats::count(&key, sums.bytes_out) {
        return false;
    }
    key.kind = kind::SESSION_IN;
    repeats::count(&key, sums.bytes_in);
    key.kind = kind::SESSION;
    repeats::count(&key, ended)
}
