//! Writes one report into the ring.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{
        bpf_get_current_cgroup_id, bpf_ktime_get_ns,
        generated::{
            bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
            bpf_get_netns_cookie,
        },
    },
};
use portwatch_common::{RepeatKey, Report, connection, counted, kind, known};

use crate::{
    counted as table,
    exec_info::report_exec_info,
    field::put,
    globals::AvailableHelpers,
    repeats,
    ring::{reserve_report, submit_report},
};

/// A socket as a hook describes it, whichever context it has it from.
pub struct Socket {
    pub key: Key,
    pub local: Local,
    /// Address, in network byte order, and port, in host byte order.
    pub remote: Option<([u32; 4], u16)>,
    /// Inode of its network namespace; 0 when the hook cannot read it.
    pub netns_inode: u32,
    /// Whether the hook saw that it is a kernel socket.
    pub is_kernel_socket: bool,
    /// Process id of the binder, where that is not the current task; 0 when unknown.
    pub binder: u32,
    /// Its [`counted`] bits; 0 if an event of it was reported: this one must be too then.
    pub counted: u16,
    /// One of [`portwatch_common::connection`].
    pub connection: u8,
    /// On a close: whether it may still have its port.
    pub is_shut_down: bool,
    /// On a receive: whether the datagram came from this host.
    pub is_from_host: bool,
    /// Where it can be reached, as in [`Report::remote_address`].
    pub place: [u32; 2],
}

/// Identifies a socket.
#[derive(Clone, Copy)]
pub enum Key {
    /// Its cookie; 0 when unknown.
    Cookie(u64),
    /// Its address in the kernel, for as long as it lives.
    Address(u64),
    /// An accepted socket, by its cookie: that of its listener is unknown.
    Accepted(u64),
}

/// What a socket has taken.
#[derive(Clone, Copy)]
pub struct Local {
    pub family: u8,
    pub protocol: u8,
    /// Network byte order; an IPv4 address takes the first word.
    pub address: [u32; 4],
    /// Host byte order.
    pub port: u16,
}

impl Socket {
    /// One of which no more is known, and nothing was reported yet.
    #[inline(always)]
    pub const fn new(key: Key, local: Local) -> Self {
        Self {
            key,
            local,
            remote: None,
            netns_inode: 0,
            is_kernel_socket: false,
            binder: 0,
            counted: counted::COUNTED,
            connection: connection::NONE,
            is_shut_down: false,
            is_from_host: false,
            place: [0; 2],
        }
    }
}

/// Reports `kind` of `socket`, or counts it, or keeps it until it is one of the two. Returns the
/// socket's [`counted`] bits from now on: 0 when it was reported; or lost, which the statistics count.
#[inline(always)]
pub fn report<C: EbpfContext>(
    ctx: &C,
    kind: u8,
    socket: &Socket,
    helpers: AvailableHelpers,
) -> u16 {
    let mut actor = Actor {
        pid_tgid: 0,
        tgid: socket.binder,
        start_ns: 0,
        netns_cookie: 0,
    };
    if helpers.task {
        // SAFETY: takes no argument.
        actor.pid_tgid = unsafe { bpf_get_current_pid_tgid() };
        actor.tgid = (actor.pid_tgid >> 32) as u32;
    }
    if helpers.netns {
        // SAFETY: the helper takes this program type's context.
        actor.netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    }
    let mut epoch = 0;
    if socket.counted != 0 {
        epoch = repeats::epoch();
    }
    if epoch != 0 {
        let key = repeat_key(kind, socket, actor.netns_cookie, actor.tgid, epoch);
        let bit = counted::bit(kind);
        if bit == 0 {
            if repeats::is_counted(&key) {
                return socket.counted;
            }
        } else if repeats::is_started(&key) {
            if helpers.task && !socket.is_kernel_socket {
                actor.start_ns = report_exec_info(actor.tgid);
            }
            if let Some(entry) = table::entry_for(cookie(socket.key), kind) {
                // SAFETY: a map's value, 8-byte aligned, valid for the whole run.
                unsafe { fill(entry.as_ptr(), kind, socket, &actor, helpers) };
                return socket.counted | bit;
            }
            repeats::count(&key, 1);
            return socket.counted;
        }
    }
    // What came before it of this socket comes before it.
    if kind != kind::CLOSE && socket.counted & !counted::COUNTED != 0 {
        table::release_events(cookie(socket.key), socket.counted);
    }
    if helpers.task && !socket.is_kernel_socket {
        actor.start_ns = report_exec_info(actor.tgid);
    }
    let Some(mut entry) = reserve_report() else {
        return 0;
    };
    // SAFETY: `entry` is a `Report` that was just reserved, 8-byte aligned.
    unsafe { fill(entry.as_mut_ptr(), kind, socket, &actor, helpers) };
    submit_report(entry);
    if epoch != 0 {
        let key = repeat_key(kind, socket, actor.netns_cookie, actor.tgid, epoch);
        repeats::start_counting(&key);
    }

    #[cfg(feature = "debug")]
    aya_log_ebpf::debug!(
        ctx,
        "kind {} port {} protocol {}",
        kind,
        socket.local.port,
        socket.local.protocol
    );
    0
}

/// Reports a receive, by no task. False where the ring is full.
#[inline(always)]
pub fn report_receive(socket: &Socket) -> bool {
    let actor = Actor {
        pid_tgid: 0,
        tgid: 0,
        start_ns: 0,
        netns_cookie: 0,
    };
    let Some(mut entry) = reserve_report() else {
        return false;
    };
    let helpers = AvailableHelpers::NONE;
    // SAFETY: `entry` is a `Report` that was just reserved, 8-byte aligned.
    unsafe { fill(entry.as_mut_ptr(), kind::RECEIVE, socket, &actor, helpers) };
    submit_report(entry);
    true
}

/// Who acts, and where; 0 for none, and no Option: verifiers before Linux 6.3 reject reads of what it
/// leaves unset.
struct Actor {
    pid_tgid: u64,
    tgid: u32,
    start_ns: u64,
    netns_cookie: u64,
}

#[inline(always)]
const fn cookie(key: Key) -> u64 {
    match key {
        Key::Cookie(cookie) => cookie,
        Key::Address(_) | Key::Accepted(_) => 0,
    }
}

/// Writes the report of an event.
///
/// # Safety
///
/// `report` points at a `Report` that may be written, 8-byte aligned. Every field is written exactly
/// once on each path, and the record has no padding.
#[inline(always)]
unsafe fn fill(
    report: *mut Report,
    kind: u8,
    socket: &Socket,
    actor: &Actor,
    helpers: AvailableHelpers,
) {
    let mut knows = 0;
    // SAFETY: the caller's promise.
    unsafe {
        let key = match socket.key {
            Key::Cookie(cookie) => cookie,
            Key::Address(address) => {
                knows |= known::ADDRESS;
                address
            }
            Key::Accepted(cookie) => {
                knows |= known::ACCEPTED;
                cookie
            }
        };
        (&raw mut (*report).cookie).write(key);
        put(
            (&raw mut (*report).local_address).cast(),
            socket.local.address,
        );
        (&raw mut (*report).local_port).write(socket.local.port);
        (&raw mut (*report).kind).write(kind);
        (&raw mut (*report).family).write(socket.local.family);
        (&raw mut (*report).protocol).write(socket.local.protocol);

        let remote: *mut u32 = (&raw mut (*report).remote_address).cast();
        let mut remote_port = 0;
        if let Some((address, port)) = socket.remote {
            knows |= known::REMOTE;
            remote_port = port;
            put(remote, address);
        } else {
            put(remote, [socket.place[0], socket.place[1], 0, 0]);
        }
        (&raw mut (*report).remote_port).write(remote_port);

        if helpers.netns {
            knows |= known::NETNS;
        }
        if kind == kind::CLOSE && socket.counted != 0 {
            knows |= known::COUNTED;
        }
        if socket.is_shut_down {
            knows |= known::SHUT_DOWN;
        }
        if socket.is_from_host {
            knows |= known::FROM_HOST;
        }
        (&raw mut (*report).netns_cookie).write(actor.netns_cookie);

        put((&raw mut (*report).comm).cast(), [0; 4]);
        let (mut uid_gid, mut cgroup_id) = (0, 0);
        if actor.start_ns != 0 {
            knows |= known::START;
        }
        if socket.is_kernel_socket {
            knows |= known::KERNEL;
        }
        if helpers.task {
            knows |= known::TASK;
            uid_gid = bpf_get_current_uid_gid();
            cgroup_id = bpf_get_current_cgroup_id();
            // Fails only for a null task; the name is zero then.
            let _ = bpf_get_current_comm((&raw mut (*report).comm).cast::<c_void>(), 16);
        }
        (&raw mut (*report).tgid).write(actor.tgid);
        (&raw mut (*report).tid).write(actor.pid_tgid as u32);
        (&raw mut (*report).uid).write(uid_gid as u32);
        (&raw mut (*report).gid).write((uid_gid >> 32) as u32);
        (&raw mut (*report).cgroup_id).write(cgroup_id);
        (&raw mut (*report).netns_inode).write(socket.netns_inode);
        (&raw mut (*report).connection).write(socket.connection);
        (&raw mut (*report).reserved).write([0; 3]);
        (&raw mut (*report).start_ns).write(actor.start_ns);
        (&raw mut (*report).known).write(knows);
        // The last: see `counted::entry_for`.
        (&raw mut (*report).time_ns).write_volatile(bpf_ktime_get_ns());
    }
}

#[inline(always)]
fn repeat_key(kind: u8, socket: &Socket, netns_cookie: u64, binder: u32, epoch: u32) -> RepeatKey {
    let mut key = RepeatKey {
        cookie: 0,
        netns_cookie,
        local_address: socket.local.address,
        remote_address: [0; 4],
        binder,
        epoch,
        local_port: socket.local.port,
        kind,
        family: socket.local.family,
        protocol: socket.local.protocol,
        known: 0,
        session: 0,
    };
    if netns_cookie != 0 {
        key.known |= known::NETNS;
    }
    if socket.is_kernel_socket {
        key.known |= known::KERNEL;
    }
    if kind == kind::ACCEPT {
        // Each listener and each peer on its own.
        if let Key::Cookie(cookie) = socket.key {
            key.cookie = cookie;
        }
        if let Some((address, _)) = socket.remote {
            key.known |= known::REMOTE;
            key.remote_address = address;
        }
    }
    key
}
