//! `post_bind4` and `post_bind6`: the kernel has accepted a bind, in the binder's context
//! (`__inet_bind` in net/ipv4/af_inet.c, `__inet6_bind` in net/ipv6/af_inet6.c).

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock,
    helpers::generated::{bpf_get_current_pid_tgid, bpf_get_socket_cookie},
    macros::cgroup_sock,
    programs::SockContext,
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, Occupant, kind};

use crate::{
    emit::{Asks, Key, Socket, emit},
    image::{is_kernels, netns_inode},
    maps::{is_watched, occupy},
    refuse::is_refused,
};

/// Lets the bind stand.
const ALLOW: i32 = 1;
/// Makes bind(2) answer EPERM.
const REFUSE: i32 = 0;

/// Reads a context field on its own: the verifier refuses two that were merged into one load.
macro_rules! field {
    ($sock:expr, $($field:tt)+) => {
        // SAFETY: the context is valid for the whole run, and the verifier checks the offset.
        unsafe { core::ptr::read_volatile(&raw const (*$sock).$($field)+) }
    };
}

#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    let port = field!(sock, src_port);
    let protocol = field!(sock, protocol) as u8;
    if is_watched(port, protocol) {
        let address = [field!(sock, src_ip4), 0, 0, 0];
        return bound(&ctx, sock, FAMILY_IPV4, protocol, address, port as u16);
    }
    ALLOW
}

#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    let sock = ctx.sock;
    let port = field!(sock, src_port);
    let protocol = field!(sock, protocol) as u8;
    if is_watched(port, protocol) {
        let address = [
            field!(sock, src_ip6[0]),
            field!(sock, src_ip6[1]),
            field!(sock, src_ip6[2]),
            field!(sock, src_ip6[3]),
        ];
        return bound(&ctx, sock, FAMILY_IPV6, protocol, address, port as u16);
    }
    ALLOW
}

#[inline(always)]
fn bound(
    ctx: &SockContext,
    sock: *mut bpf_sock,
    family: u8,
    protocol: u8,
    address: [u32; 4],
    port: u16,
) -> i32 {
    let kernels = is_kernels(sock, protocol);
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let socket = Socket {
        key: Key::Cookie(cookie),
        family,
        protocol,
        local_address: address,
        local_port: port,
        remote: None,
        netns_inode: netns_inode(sock),
        kernels,
        taker: 0,
        untold: true,
    };
    let asks = Asks {
        task: true,
        netns: true,
    };
    // The kernel asks for its own ports on behalf of whoever happens to run.
    if !kernels && is_refused(port.into(), protocol) {
        emit(ctx, kind::DENY, &socket, asks);
        return REFUSE;
    }
    let told = emit(ctx, kind::BIND, &socket, asks);
    // SAFETY: takes no argument.
    let tgid = unsafe { bpf_get_current_pid_tgid() } >> 32;
    let occupant = Occupant {
        cookie,
        address,
        port,
        family,
        protocol,
        closed: 0,
        untold: (!told).into(),
        tgid: tgid as u32,
        reserved: 0,
    };
    // SAFETY: the context of a cgroup_sock program.
    unsafe { occupy(sock.cast(), occupant) };
    ALLOW
}
