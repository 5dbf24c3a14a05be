//! `sock_ops`: listen, accept, outgoing connect and the end of a listener, for TCP and MPTCP's
//! subflows (`tcp_call_bpf` in include/net/tcp.h and its callers).

use aya_ebpf::{
    EbpfContext,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_LISTEN, bpf_sock_ops,
    },
    helpers::generated::{
        bpf_get_current_pid_tgid, bpf_get_socket_cookie, bpf_sock_ops_cb_flags_set,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, Occupant, PROTOCOL_TCP, kind};

use crate::{
    emit::{Asks, Key, Socket, emit},
    maps::{is_watched, occupant, occupy, sock_ops_sees_netns, sock_ops_sees_task},
    release::closed,
};

/// Tells the kernel that no program objected; the ops that ask for a value keep their default.
const OK: u32 = 1;

/// Reads a context field on its own: the verifier refuses two that were merged into one load.
macro_rules! field {
    ($ops:expr, $($field:tt)+) => {
        // SAFETY: the context is valid for the whole run, and the verifier checks the offset.
        unsafe { core::ptr::read_volatile(&raw const (*$ops).$($field)+) }
    };
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    let ops = ctx.ops;
    match field!(ops, op) {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listening(&ctx, ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(&ctx, ops),
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx, ops),
        BPF_SOCK_OPS_STATE_CB => changed(&ctx, ops),
        _ => {}
    }
    OK
}

#[inline(always)]
fn listening(ctx: &SockOpsContext, ops: *mut bpf_sock_ops) {
    if !is_watched(field!(ops, local_port), PROTOCOL_TCP) {
        return;
    }
    take(ctx, ops, kind::LISTEN, None);
    // Other programs' flags stay; without the flag, only an MPTCP listener's close goes unseen.
    let flags = field!(ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the helper takes this program type's context.
    let _ = unsafe { bpf_sock_ops_cb_flags_set(ops, flags as i32) };
}

#[inline(always)]
fn connecting(ctx: &SockOpsContext, ops: *mut bpf_sock_ops) {
    if !is_watched(field!(ops, local_port), PROTOCOL_TCP) {
        return;
    }
    take(ctx, ops, kind::CONNECT, Some(remote(ops)));
}

/// A handshake is complete: runs in softirq, so the current task is anybody.
#[inline(always)]
fn established(ctx: &SockOpsContext, ops: *mut bpf_sock_ops) {
    if !is_watched(field!(ops, local_port), PROTOCOL_TCP) {
        return;
    }
    let sk = field!(ops, __bindgen_anon_2.sk);
    let mut cookie = 0;
    if !sk.is_null() {
        // SAFETY: the non-null `sk` of a sock_ops context.
        if let Some(inherited) = unsafe { occupant(sk.cast()) } {
            // SAFETY: the kernel's pointer to a live value, valid for the whole run.
            cookie = unsafe { (*inherited.as_ptr()).cookie };
            // Two that connect to each other at once: no listener is there to accept.
            // SAFETY: the helper takes this program type's context.
            if cookie == unsafe { bpf_get_socket_cookie(ctx.as_ptr()) } {
                return;
            }
        }
    }
    let socket = socket(ops, cookie, Some(remote(ops)), 0, true);
    emit(
        ctx,
        kind::ACCEPT,
        &socket,
        Asks {
            task: false,
            netns: sock_ops_sees_netns(),
        },
    );
}

/// A flagged socket changes state. Children inherit the flag, so only a listener's end counts.
#[inline(always)]
fn changed(ctx: &SockOpsContext, ops: *mut bpf_sock_ops) {
    if field!(ops, __bindgen_anon_1.args[0]) != BPF_TCP_LISTEN {
        return;
    }
    let sk = field!(ops, __bindgen_anon_2.sk);
    if sk.is_null() {
        return;
    }
    // SAFETY: the non-null `sk` of a sock_ops context.
    if let Some(stored) = unsafe { occupant(sk.cast()) } {
        // SAFETY: the helper takes this program type's context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // SAFETY: the kernel's pointer to a live value, valid for the whole run.
        closed(
            ctx,
            unsafe { &mut *stored.as_ptr() },
            cookie,
            sock_ops_sees_netns(),
        );
    }
}

/// Reports `kind` of the socket of `ops`, and marks it as the occupant of its local port.
#[inline(always)]
fn take(ctx: &SockOpsContext, ops: *mut bpf_sock_ops, kind: u8, remote: Option<([u32; 4], u16)>) {
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let sk = field!(ops, __bindgen_anon_2.sk);
    // Without a bind it has taken the port now.
    let (mut taker, mut untold) = (0, true);
    if !sk.is_null() {
        // SAFETY: the non-null `sk` of a sock_ops context.
        if let Some(stored) = unsafe { occupant(sk.cast()) } {
            // SAFETY: the kernel's pointer to a live value, valid for the whole run.
            let before = unsafe { &*stored.as_ptr() };
            if before.cookie == cookie {
                taker = before.tgid;
                untold = before.untold != 0;
            }
        }
    }
    let socket = socket(ops, cookie, remote, taker, untold);
    let told = emit(ctx, kind, &socket, in_task_context());
    if sk.is_null() {
        return;
    }
    if sock_ops_sees_task() && taker == 0 {
        // SAFETY: takes no argument.
        taker = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    }
    let occupant = Occupant {
        cookie,
        address: socket.local_address,
        port: socket.local_port,
        family: socket.family,
        protocol: PROTOCOL_TCP,
        closed: 0,
        untold: (!told).into(),
        tgid: taker,
        reserved: 0,
    };
    // SAFETY: the non-null `sk` of a sock_ops context.
    unsafe { occupy(sk.cast(), occupant) };
}

#[inline(always)]
fn socket(
    ops: *mut bpf_sock_ops,
    cookie: u64,
    remote: Option<([u32; 4], u16)>,
    taker: u32,
    untold: bool,
) -> Socket {
    let (family, local_address) = if is_ipv6(ops) {
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
    Socket {
        key: Key::Cookie(cookie),
        family,
        protocol: PROTOCOL_TCP,
        local_address,
        local_port: field!(ops, local_port) as u16,
        remote,
        netns_inode: 0,
        kernels: false,
        taker,
        untold,
    }
}

#[inline(always)]
fn remote(ops: *mut bpf_sock_ops) -> ([u32; 4], u16) {
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
    (address, u32::from_be(field!(ops, remote_port)) as u16)
}

#[inline(always)]
fn is_ipv6(ops: *mut bpf_sock_ops) -> bool {
    field!(ops, family) == FAMILY_IPV6 as u32
}

#[inline(always)]
fn in_task_context() -> Asks {
    Asks {
        task: sock_ops_sees_task(),
        netns: sock_ops_sees_netns(),
    }
}
