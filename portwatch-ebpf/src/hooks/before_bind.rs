//! `bind4` and `bind6`: before the kernel looks for the port, in the binder's context
//! (`inet_bind_sk` in net/ipv4/af_inet.c, `inet6_bind_sk` in net/ipv6/af_inet6.c; the hooks since
//! Linux 4.17). They only deny: what is denied here has never been on the port. The port that the
//! kernel chooses for port 0 is known in `post_bind` alone, which evaluates the rules again.
//!
//! Attached only while there are rules that deny.

use aya_ebpf::{
    EbpfContext as _, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, kind};

use super::{ALLOW, DENY};
use crate::{
    deny::is_denied,
    globals::AvailableHelpers,
    kernel::{address_of, is_kernel_socket, netns_inode},
    report::{Key, Local, Socket, report},
    watched::is_watched,
};

#[cgroup_sock_addr(bind4)]
pub fn bind4(ctx: SockAddrContext) -> i32 {
    let (port, protocol) = (port(&ctx), protocol(&ctx));
    if !is_watched(port.into(), protocol) {
        return ALLOW;
    }
    let local = Local {
        family: FAMILY_IPV4,
        protocol,
        address: [field!(ctx.sock_addr, user_ip4), 0, 0, 0],
        port,
    };
    decide(&ctx, local)
}

#[cgroup_sock_addr(bind6)]
pub fn bind6(ctx: SockAddrContext) -> i32 {
    let (port, protocol) = (port(&ctx), protocol(&ctx));
    if !is_watched(port.into(), protocol) {
        return ALLOW;
    }
    let local = Local {
        family: FAMILY_IPV6,
        protocol,
        address: [
            field!(ctx.sock_addr, user_ip6[0]),
            field!(ctx.sock_addr, user_ip6[1]),
            field!(ctx.sock_addr, user_ip6[2]),
            field!(ctx.sock_addr, user_ip6[3]),
        ],
        port,
    };
    decide(&ctx, local)
}

#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    // Network byte order in the word that holds it.
    u16::from_be(field!(ctx.sock_addr, user_port) as u16)
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> u8 {
    // Of IPPROTO_MPTCP (262) that leaves TCP's number.
    field!(ctx.sock_addr, protocol) as u8
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, local: Local) -> i32 {
    let sock = address_of(field!(ctx.sock_addr, __bindgen_anon_1.sk));
    let is_kernel_socket = is_kernel_socket(sock, local.protocol);
    if !is_denied(is_kernel_socket, local.port.into(), local.protocol) {
        return ALLOW;
    }
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let socket = Socket {
        netns_inode: netns_inode(sock),
        ..Socket::new(Key::Cookie(cookie), local)
    };
    report(ctx, kind::DENY, &socket, AvailableHelpers::CGROUP_SOCK);
    DENY
}
