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
use portwatch_common::{Repeat, Report, kind, known};

use crate::{
    image,
    maps::{count_on, epoch_under_pressure, is_counted, put, reserve, submit},
};

/// What the hooks know of a socket, whichever context they have it from.
pub struct Socket {
    pub key: Key,
    pub family: u8,
    pub protocol: u8,
    /// Network byte order; an IPv4 address takes the first word.
    pub local_address: [u32; 4],
    /// Host byte order.
    pub local_port: u16,
    /// Address and port in the same forms.
    pub remote: Option<([u32; 4], u16)>,
    /// Inode of its network namespace; 0 when the hook cannot tell.
    pub netns_inode: u32,
    /// Whether the hook saw that it is the kernel's own.
    pub kernels: bool,
    /// Process id of who took the port, where the current task did not; 0 when unknown.
    pub taker: u32,
    /// Whether nothing was reported of it yet: what repeats itself may then be counted instead.
    pub untold: bool,
}

/// What tells a socket from others.
#[derive(Clone, Copy)]
pub enum Key {
    /// Its cookie; 0 when unknown.
    Cookie(u64),
    /// The kernel's address of it, for as long as it lives.
    Address(u64),
}

/// Which helpers the hook may call: the verifier must not meet the others.
#[derive(Clone, Copy)]
pub struct Asks {
    /// The current task is the one that acts, and the kernel lets the program ask for it.
    pub task: bool,
    pub netns: bool,
}

/// Reports `kind` of `socket`; a full ring is counted. False if this was counted as a repeat.
#[inline(always)]
pub fn emit<C: EbpfContext>(ctx: &C, kind: u8, socket: &Socket, asks: Asks) -> bool {
    // 0 for none, and no Option: older verifiers refuse to read what that leaves unset.
    let (mut pid_tgid, mut start_ns) = (0, 0);
    let mut tgid = socket.taker;
    if asks.task {
        // SAFETY: takes no argument.
        pid_tgid = unsafe { bpf_get_current_pid_tgid() };
        tgid = (pid_tgid >> 32) as u32;
    }
    let mut netns_cookie = 0;
    if asks.netns {
        // SAFETY: the helper takes this program type's context.
        netns_cookie = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    }
    let mut epoch = 0;
    if socket.untold {
        epoch = epoch_under_pressure();
    }
    if epoch != 0 && is_counted(&repeat(kind, socket, netns_cookie, tgid, epoch)) {
        return false;
    }
    if asks.task && !socket.kernels {
        start_ns = image::tell(tgid);
    }
    let Some(mut entry) = reserve() else {
        return true;
    };
    let report: *mut Report = entry.as_mut_ptr();
    let mut knows = 0;
    // SAFETY: `report` points at the `Report` that was just reserved, 8-byte aligned; every field
    // is written exactly once on each path, and the record has no padding.
    unsafe {
        (&raw mut (*report).time_ns).write(bpf_ktime_get_ns());
        let key = match socket.key {
            Key::Cookie(cookie) => cookie,
            Key::Address(address) => {
                knows |= known::ADDRESS;
                address
            }
        };
        (&raw mut (*report).cookie).write(key);
        put(
            (&raw mut (*report).local_address).cast(),
            socket.local_address,
        );
        (&raw mut (*report).local_port).write(socket.local_port);
        (&raw mut (*report).kind).write(kind);
        (&raw mut (*report).family).write(socket.family);
        (&raw mut (*report).protocol).write(socket.protocol);

        let remote: *mut u32 = (&raw mut (*report).remote_address).cast();
        let mut remote_port = 0;
        if let Some((address, port)) = socket.remote {
            knows |= known::REMOTE;
            remote_port = port;
            put(remote, address);
        } else {
            put(remote, [0; 4]);
        }
        (&raw mut (*report).remote_port).write(remote_port);

        if asks.netns {
            knows |= known::NETNS;
        }
        if kind == kind::CLOSE && socket.untold {
            knows |= known::UNTOLD;
        }
        (&raw mut (*report).netns_cookie).write(netns_cookie);

        put((&raw mut (*report).comm).cast(), [0; 4]);
        let (mut uid_gid, mut cgroup_id) = (0, 0);
        if start_ns != 0 {
            knows |= known::START;
        }
        if socket.kernels {
            knows |= known::KERNEL;
        }
        if asks.task {
            knows |= known::TASK;
            uid_gid = bpf_get_current_uid_gid();
            cgroup_id = bpf_get_current_cgroup_id();
            // Fails only for a null task; the name is zero then.
            let _ = bpf_get_current_comm((&raw mut (*report).comm).cast::<c_void>(), 16);
        }
        (&raw mut (*report).tgid).write(tgid);
        (&raw mut (*report).tid).write(pid_tgid as u32);
        (&raw mut (*report).uid).write(uid_gid as u32);
        (&raw mut (*report).gid).write((uid_gid >> 32) as u32);
        (&raw mut (*report).cgroup_id).write(cgroup_id);
        (&raw mut (*report).netns_inode).write(socket.netns_inode);
        (&raw mut (*report).reserved).write(0);
        (&raw mut (*report).start_ns).write(start_ns);
        (&raw mut (*report).known).write(knows);
    }
    submit(entry);
    if epoch != 0 {
        count_on(&repeat(kind, socket, netns_cookie, tgid, epoch));
    }

    #[cfg(feature = "debug")]
    aya_log_ebpf::debug!(
        ctx,
        "kind {} port {} protocol {}",
        kind,
        socket.local_port,
        socket.protocol
    );
    true
}

#[inline(always)]
fn repeat(kind: u8, socket: &Socket, netns_cookie: u64, tgid: u32, epoch: u32) -> Repeat {
    let mut repeat = Repeat {
        cookie: 0,
        netns_cookie,
        local_address: socket.local_address,
        remote_address: [0; 4],
        tgid,
        epoch,
        local_port: socket.local_port,
        kind,
        family: socket.family,
        protocol: socket.protocol,
        known: 0,
        reserved: 0,
    };
    if netns_cookie != 0 {
        repeat.known |= known::NETNS;
    }
    if socket.kernels {
        repeat.known |= known::KERNEL;
    }
    if kind == kind::ACCEPT {
        // Each listener and each peer on its own.
        if let Key::Cookie(cookie) = socket.key {
            repeat.cookie = cookie;
        }
        if let Some((address, _)) = socket.remote {
            repeat.known |= known::REMOTE;
            repeat.remote_address = address;
        }
    }
    repeat
}
