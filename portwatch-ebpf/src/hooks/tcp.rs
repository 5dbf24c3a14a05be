//! `sock_ops`: listen, accept, outgoing connect and the end of a listener, for TCP and MPTCP's
//! subflows (`tcp_call_bpf` in include/net/tcp.h and its callers; `TCP_LISTEN_CB` since Linux 4.19).

use core::{ffi::c_void, ptr::NonNull};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_LISTEN, bpf_sock_ops,
    },
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use portwatch_common::{
    FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_TCP, SocketMark, connection, counted, kind, session,
};

use super::release::shut_down;
use crate::{
    counted::{is_reported, release_events},
    globals::AvailableHelpers,
    kernel::{address_of, is_joined_subflow, place_of},
    marks::{mark, mark_accepted, mark_of},
    report::{Key, Local, Socket, report},
    sessions,
    watched::is_watched,
};

/// No objection; the ops that ask for a value keep their default.
const OK: u32 = 1;

type Remote = Option<([u32; 4], u16)>;

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    match field!(ops, op) {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(&ctx),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => connected(&ctx),
        BPF_SOCK_OPS_STATE_CB => changed(&ctx),
        _ => {}
    }
    OK
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let ops = ctx.ops;
    if !is_watched(field!(ops, local_port), PROTOCOL_TCP) {
        return;
    }
    report_and_mark(ctx, kind::LISTEN, None);
    // Without the flag, an MPTCP listener's close goes unseen.
    ask_for_states(ops);
}

/// Asks for the socket's changes of state. Other programs' flags stay.
#[inline(always)]
fn ask_for_states(ops: *mut bpf_sock_ops) {
    let flags = field!(ops, bpf_sock_ops_cb_flags);
    if flags & BPF_SOCK_OPS_STATE_CB_FLAG == 0 {
        let flags = flags | BPF_SOCK_OPS_STATE_CB_FLAG;
        // SAFETY: the helper takes this program type's context.
        let _ = unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
    }
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    if !is_watched(field!(ctx.ops, local_port), PROTOCOL_TCP) {
        return;
    }
    report_and_mark(ctx, kind::CONNECT, remote(ctx.ops));
    note_connection(ctx, connection::STARTED);
}

/// The handshake of an outgoing connection is complete.
#[inline(always)]
fn connected(ctx: &SockOpsContext) {
    if is_watched(field!(ctx.ops, local_port), PROTOCOL_TCP) {
        connected_out(ctx);
    }
}

#[inline(always)]
fn connected_out(ctx: &SockOpsContext) {
    if let Some(mark) = note_connection(ctx, connection::ESTABLISHED) {
        ask_for_states(ctx.ops);
        sessions::begin(mark, session::OUTGOING);
    }
}

/// Keeps in the socket's own mark how far its connection has come: its close reports that. Returns
/// the mark.
#[inline(always)]
fn note_connection(ctx: &SockOpsContext, reached: u8) -> Option<NonNull<SocketMark>> {
    let mark = own_mark(ctx, cookie(ctx))?;
    // SAFETY: the kernel's pointer to a live value, valid for the whole run.
    unsafe { (&raw mut (*mark.as_ptr()).connection).write_volatile(reached) };
    Some(mark)
}

/// A handshake is complete: runs in softirq, so the current task is any.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    if !is_watched(field!(ctx.ops, local_port), PROTOCOL_TCP) {
        return;
    }
    // One more path of a connection that was accepted before.
    if is_joined_subflow(sk(ctx)) {
        if let Some(inherited) = mark_in(ctx) {
            // That its listener asked for them is inherited, but not from one that the agent marked.
            ask_for_states(ctx.ops);
            sessions::begin(inherited, session::JOINED);
        }
        return;
    }
    let own = cookie(ctx);
    let (mut key, mut counted) = (Key::Accepted(own), counted::COUNTED);
    let inherited = mark_in(ctx);
    if let Some(inherited) = inherited {
        let listener = field!(inherited.as_ptr(), cookie);
        // What is kept of the listener is reported before the accept.
        counted |= field!(inherited.as_ptr(), counted);
        // Two that connect to each other at once: no listener is there to accept.
        if listener == own {
            connected_out(ctx);
            return;
        }
        if listener != 0 {
            key = Key::Cookie(listener);
        }
    }
    let socket = Socket {
        counted,
        ..socket(ctx.ops, key, remote(ctx.ops))
    };
    let helpers = AvailableHelpers::sock_ops().without_task();
    report(ctx, kind::ACCEPT, &socket, helpers);
    ask_for_states(ctx.ops);
    let sk = sk(ctx);
    let mark = match inherited {
        None if sk.is_null() => None,
        // SAFETY: the non-null `sk` of a sock_ops context.
        None => unsafe { mark_accepted(sk, socket.local) },
        inherited => inherited,
    };
    if let Some(mark) = mark {
        sessions::begin(mark, 0);
    }
}

/// A flagged socket changes state. Children inherit the flag.
#[inline(always)]
fn changed(ctx: &SockOpsContext) {
    let Some(mark) = mark_in(ctx) else {
        return;
    };
    let helpers = AvailableHelpers::sock_ops().without_task();
    if field!(ctx.ops, __bindgen_anon_1.args[0]) != BPF_TCP_LISTEN {
        sessions::changed(ctx, mark, sk(ctx), helpers);
    } else if field!(mark.as_ptr(), cookie) == cookie(ctx) {
        shut_down(ctx, mark, helpers);
    }
}

/// Reports `kind` of the context's socket, which is on a watched port, and marks it.
#[inline(always)]
fn report_and_mark(ctx: &SockOpsContext, kind: u8, remote: Remote) {
    let helpers = AvailableHelpers::sock_ops();
    let cookie = cookie(ctx);
    let mut socket = socket(ctx.ops, Key::Cookie(cookie), remote);
    if kind == kind::LISTEN {
        socket.place = place_of(address_of(sk(ctx)));
    }
    // Without a mark of its own it takes the port now, without a bind.
    if let Some(before) = own_mark(ctx, cookie) {
        socket.binder = field!(before.as_ptr(), binder);
        socket.counted = field!(before.as_ptr(), counted);
        if socket.counted != 0 && is_reported(cookie, socket.counted) {
            release_events(cookie, socket.counted);
            socket.counted = 0;
        }
    }
    let counted = report(ctx, kind, &socket, helpers);
    let sk = sk(ctx);
    if sk.is_null() {
        return;
    }
    let mut binder = socket.binder;
    if helpers.task && binder == 0 {
        // SAFETY: takes no argument.
        binder = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    }
    // SAFETY: the non-null `sk` of a sock_ops context.
    unsafe { mark(sk, cookie, socket.local, counted, binder) };
}

#[inline(always)]
fn socket(ops: *mut bpf_sock_ops, key: Key, remote: Remote) -> Socket {
    let (family, address) = if is_ipv6(ops) {
        let address = [
            field!(ops, local_ip6[0]),
            field!(ops, local_ip6[1]),
            field!(ops, local_ip6[2]),
            field!(ops, local_ip6[3]),
        ];
        (FAMILY_IPV6, address)
    } else {
        (FAMILY_IPV4, [field!(ops, local_ip4), 0, 0, 0])
    };
    let local = Local {
        family,
        protocol: PROTOCOL_TCP,
        address,
        port: field!(ops, local_port) as u16,
    };
    Socket {
        remote,
        ..Socket::new(key, local)
    }
}

#[inline(always)]
#[expect(
    clippy::unnecessary_wraps,
    reason = "what its callers pass on, or None"
)]
fn remote(ops: *mut bpf_sock_ops) -> Remote {
    let address = if is_ipv6(ops) {
        [
            field!(ops, remote_ip6[0]),
            field!(ops, remote_ip6[1]),
            field!(ops, remote_ip6[2]),
            field!(ops, remote_ip6[3]),
        ]
    } else {
        [field!(ops, remote_ip4), 0, 0, 0]
    };
    // Network byte order in the word that holds it, unlike local_port.
    Some((address, u32::from_be(field!(ops, remote_port)) as u16))
}

#[inline(always)]
fn is_ipv6(ops: *mut bpf_sock_ops) -> bool {
    field!(ops, family) == FAMILY_IPV6 as u32
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn sk(ctx: &SockOpsContext) -> *mut c_void {
    field!(ctx.ops, __bindgen_anon_2.sk).cast()
}

/// The mark of the context's socket, its own or inherited.
#[inline(always)]
fn mark_in(ctx: &SockOpsContext) -> Option<NonNull<SocketMark>> {
    let sk = sk(ctx);
    if sk.is_null() {
        return None;
    }
    // SAFETY: the non-null `sk` of a sock_ops context.
    unsafe { mark_of(sk) }
}

/// The mark of the context's socket, which has that cookie, if it is its own.
#[inline(always)]
fn own_mark(ctx: &SockOpsContext, cookie: u64) -> Option<NonNull<SocketMark>> {
    mark_in(ctx).filter(|mark| field!(mark.as_ptr(), cookie) == cookie)
}
