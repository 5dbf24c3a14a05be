//! `post_bind4` and `post_bind6`: the kernel has accepted a bind, in the binder's context
//! (`__inet_bind` in net/ipv4/af_inet.c, `__inet6_bind` in net/ipv6/af_inet6.c, since Linux 4.17).

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_socket_cookie},
    macros::cgroup_sock,
    programs::SockContext,
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, kind};

use super::{ALLOW, DENY};
use crate::{
    deny::is_denied,
    globals::AvailableHelpers,
    kernel::{address_of, is_kernel_socket, keeps_port, netns_inode, place_of},
    marks::mark,
    report::{Key, Local, Socket, report},
    watched::is_watched,
};

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    let port = field!(sock, src_port);
    let protocol = field!(sock, protocol) as u8;
    if !is_watched(port, protocol) {
        return ALLOW;
    }
    let local = Local {
        family: FAMILY_IPV4,
        protocol,
        address: [field!(sock, src_ip4), 0, 0, 0],
        port: port as u16,
    };
    bound(&ctx, local)
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    let port = field!(sock, src_port);
    let protocol = field!(sock, protocol) as u8;
    if !is_watched(port, protocol) {
        return ALLOW;
    }
    let local = Local {
        family: FAMILY_IPV6,
        protocol,
        address: [
            field!(sock, src_ip6[0]),
            field!(sock, src_ip6[1]),
            field!(sock, src_ip6[2]),
            field!(sock, src_ip6[3]),
        ],
        port: port as u16,
    };
    bound(&ctx, local)
}

#[inline(always)]
fn bound(ctx: &SockContext, local: Local) -> i32 {
    let helpers = AvailableHelpers::CGROUP_SOCK;
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let sock = address_of(ctx.sock);
    let mut socket = socket(sock, cookie, local);
    let denied = is_denied(socket.is_kernel_socket, local.port.into(), local.protocol);
    if denied && !keeps_port(sock, local.protocol) {
        // The task that asked for it is named.
        socket.is_kernel_socket = false;
        report(ctx, kind::DENY, &socket, helpers);
        return DENY;
    }
    // Although bind(2) fails, a socket that keeps the port is on it and receives.
    let counted = report(ctx, kind::BIND, &socket, helpers);
    // SAFETY: takes no argument.
    let binder = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    // SAFETY: the context of a cgroup_sock program.
    unsafe { mark(ctx.sock.cast(), cookie, local, counted, binder) };
    if denied { DENY } else { ALLOW }
}

#[inline(always)]
fn socket(sock: u64, cookie: u64, local: Local) -> Socket {
    Socket {
        is_kernel_socket: is_kernel_socket(sock, local.protocol),
        netns_inode: netns_inode(sock),
        place: place_of(sock),
        ..Socket::new(Key::Cookie(cookie), local)
    }
}
