//! `sock_release`: the last close of any inet socket on the host that is no kernel socket
//! (`inet_release` in net/ipv4/af_inet.c, since Linux 5.9), so the way out for an unwatched one must
//! be short. The context's port fields are not available here: the mark has them.

use core::ptr::NonNull;

use aya_ebpf::{
    EbpfContext, helpers::generated::bpf_get_socket_cookie, macros::cgroup_sock,
    programs::SockContext,
};
use portwatch_common::{SocketMark, closed, counted, kind};

use crate::{
    control::{has_marked_sockets, uncount_marked_socket},
    counted::settle,
    globals::AvailableHelpers,
    marks::mark_of,
    report::{Key, Local, Socket, report},
};

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    if has_marked_sockets() {
        released(&ctx);
    }
    1
}

#[inline(always)]
fn released(ctx: &SockContext) {
    // SAFETY: the context of a cgroup_sock program.
    let Some(mark) = (unsafe { mark_of(ctx.sock.cast()) }) else {
        return;
    };
    // SAFETY: the helper takes this program type's context.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if field!(mark.as_ptr(), cookie) == cookie {
        uncount_marked_socket();
        let mark = mark.as_ptr();
        let (kind, counted) = match field!(mark, closed) {
            closed::NO => (kind::CLOSE, settled(mark)),
            // Whatever became of the close, the agent may know the socket.
            closed::SHUT_DOWN => (kind::RELEASE, 0),
            _ => return,
        };
        set_closed(mark, closed::RELEASED);
        let helpers = AvailableHelpers::CGROUP_SOCK.without_task();
        report(ctx, kind, &socket(mark, counted), helpers);
    }
}

/// Reports that the listener that has `mark` for its own stops listening, unless it is being released:
/// close(2) runs `sock_release` first (`inet_release` in net/ipv4/af_inet.c, Linux 6.18). After
/// shutdown(2) the socket keeps its port.
#[inline(always)]
pub fn shut_down<C: EbpfContext>(ctx: &C, mark: NonNull<SocketMark>, helpers: AvailableHelpers) {
    let mark = mark.as_ptr();
    if field!(mark, closed) != closed::NO {
        return;
    }
    set_closed(mark, closed::SHUT_DOWN);
    let socket = Socket {
        is_shut_down: true,
        ..socket(mark, settled(mark))
    };
    report(ctx, kind::CLOSE, &socket, helpers);
}

/// The socket's `counted` bits once what is kept of it is counted, or in the ring before its close.
#[inline(always)]
fn settled(mark: *mut SocketMark) -> u16 {
    let mut counted = field!(mark, counted);
    if counted & !counted::COUNTED != 0 {
        counted = if settle(field!(mark, cookie), counted) {
            counted::COUNTED
        } else {
            0
        };
        // Should it listen again.
        // SAFETY: the kernel's pointer to a live value, valid for the whole run.
        unsafe { (&raw mut (*mark).counted).write_volatile(counted) };
    }
    counted
}

#[inline(always)]
fn set_closed(mark: *mut SocketMark, closed: u16) {
    // SAFETY: the kernel's pointer to a live value, valid for the whole run.
    unsafe { (&raw mut (*mark).closed).write_volatile(closed) };
}

#[inline(always)]
fn socket(mark: *const SocketMark, counted: u16) -> Socket {
    let local = Local {
        family: field!(mark, family),
        protocol: field!(mark, protocol),
        address: field!(mark, address),
        port: field!(mark, port),
    };
    Socket {
        binder: field!(mark, binder),
        counted,
        connection: field!(mark, connection),
        ..Socket::new(Key::Cookie(field!(mark, cookie)), local)
    }
}
