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
use portwatch_common::{Report, known};

use crate::{image, maps::{reserve, submit}};

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

/// Reports `kind` of `socket`; a full ring is counted.
#[inline(always)]
pub fn emit<C: EbpfContext>(ctx: &C, kind: u8, socket: &Socket, asks: Asks) {
    // 0 for none, and no Option: older verifiers refuse to read what that leaves unset.
    let (mut pid_tgid, mut start_ns) = (0, 0);
    if asks.task {
        // SAFETY: takes no argument.
        pid_tgid = unsafe { bpf_get_current_pid_tgid() };
        if !socket.kernels {
            start_ns = image::tell((pid_tgid >> 32) as u32);
        }
    }
    let Some(mut entry) = reserve() else {
        return;
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
        (&raw mut (*report).local_address)
            .cast::<[u32; 4]>()
            .write(socket.local_address);
        (&raw mut (*report).local_port).write(socket.local_port);
        (&raw mut (*report).kind).write(kind);
        (&raw mut (*report).family).write(socket.family);
        (&raw mut (*report).protocol).write(socket.protocol);

        let (remote_address, remote_port) = match socket.remote {
            Some(remote) => {
                knows |= known::REMOTE;
                remote
            }
            None => ([0; 4], 0),
        };
        (&raw mut (*report).remote_address)
            .cast::<[u32; 4]>()
            .write(remote_address);
        (&raw mut (*report).remote_port).write(remote_port);

        let mut netns_cookie = 0;
        if asks.netns {
            knows |= known::NETNS;
            netns_cookie = bpf_get_netns_cookie(ctx.as_ptr());
        }
        (&raw mut (*report).netns_cookie).write(netns_cookie);

        (&raw mut (*report).comm).write([0; 16]);
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
        (&raw mut (*report).tgid).write((pid_tgid >> 32) as u32);
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

    #[cfg(feature = "debug")]
    aya_log_ebpf::debug!(
        ctx,
        "kind {} port {} protocol {}",
        kind,
        socket.local_port,
        socket.protocol
    );
}
