//! `sock_release`: the last close of any inet socket on the host (`inet_release` in
//! net/ipv4/af_inet.c), so the way out for an unwatched one must be short. The context's port
//! fields are refused here: what the socket carries since its bind says where it was.

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock,
    programs::SockContext,
};
use portwatch_common::{Occupant, kind};

use crate::{
    emit::{Asks, Key, Socket, emit},
    maps::occupant,
};

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    // SAFETY: the context of a cgroup_sock program.
    if let Some(stored) = unsafe { occupant(ctx.sock.cast()) } {
        // SAFETY: the helper takes this program type's context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // SAFETY: the kernel's pointer to a live value, valid for the whole run.
        closed(&ctx, unsafe { &mut *stored.as_ptr() }, cookie, true);
    }
    1
}

/// Reports the close of `occupant` once, and not that of a child that inherited it.
#[inline(always)]
pub fn closed<C: EbpfContext>(ctx: &C, occupant: &mut Occupant, cookie: u64, netns: bool) {
    if occupant.cookie != cookie || occupant.closed != 0 {
        return;
    }
    occupant.closed = 1;
    let socket = Socket {
        key: Key::Cookie(cookie),
        family: occupant.family,
        protocol: occupant.protocol,
        local_address: occupant.address,
        local_port: occupant.port,
        remote: None,
        netns_inode: 0,
        kernels: false,
        taker: occupant.tgid,
        untold: occupant.untold != 0,
    };
    emit(ctx, kind::CLOSE, &socket, Asks { task: false, netns });
}
