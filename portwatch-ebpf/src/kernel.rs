//! Reads the kernel's own structures.
//!
//! These are no stable ABI. The agent takes the offsets from the running kernel's type information;
//! without it nothing here runs, and every read is checked by the kernel.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
};
use portwatch_common::{CGROUP_NAME_BYTES, PROTOCOL_TCP, PROTOCOL_UDPLITE, place};

use crate::globals::offset;

/// Reads a word at a kernel address; zero where there is nothing to read.
#[inline(always)]
pub fn word(address: u64) -> u64 {
    read(address as *const c_void)
}

/// Reads a value at a kernel address; its default where there is nothing to read.
#[inline(always)]
pub fn read<T: Default>(address: *const c_void) -> T {
    let mut value = T::default();
    // SAFETY: the destination is a local of that size; the kernel checks the source.
    let _ = unsafe {
        bpf_probe_read_kernel(
            (&raw mut value).cast::<c_void>(),
            size_of::<T>() as u32,
            address,
        )
    };
    value
}

/// Address of the socket behind a pointer that the verifier knows as one: with some it allows no
/// arithmetic, so the number is read back from where the pointer lies on the stack.
#[inline(always)]
pub fn address_of<T>(sock: *mut T) -> u64 {
    let mut copy: *mut T = core::ptr::null_mut();
    // SAFETY: a local of that type; volatile, so that it is in memory.
    unsafe { (&raw mut copy).write_volatile(sock) };
    read((&raw const copy).cast())
}

/// Whether the socket at that address is a kernel socket: it belongs to no file. Nor does a subflow
/// of MPTCP on some kernels: there the socket that it is a part of counts.
#[inline(always)]
pub fn is_kernel_socket(sock: u64, protocol: u8) -> bool {
    if offset!(known) == 0 || !is_fileless(sock) {
        return false;
    }
    if protocol != PROTOCOL_TCP || word(sock + offset!(sock_ulp)) == 0 {
        return true;
    }
    if offset!(sock_ulp_data) == 0 || offset!(subflow_conn) == 0 {
        return false;
    }
    let subflow = word(sock + offset!(sock_ulp_data));
    let whole = word(subflow + offset!(subflow_conn));
    subflow != 0 && whole != 0 && is_fileless(whole)
}

#[inline(always)]
fn is_fileless(sock: u64) -> bool {
    let socket = word(sock + offset!(sock_socket));
    socket != 0 && word(socket + offset!(socket_file)) == 0
}

/// Whether the socket at that address keeps its port when a bind is denied after the kernel has
/// accepted it: TCP and UDP before Linux 5.17, and UDP-Lite, which has no `put_port`
/// (`__inet_bind` in net/ipv4/af_inet.c).
#[inline(always)]
pub fn keeps_port(sock: u64, protocol: u8) -> bool {
    if offset!(known) == 0 || offset!(sock_prot) == 0 {
        return protocol == PROTOCOL_UDPLITE;
    }
    if offset!(proto_put_port) == 0 {
        return true;
    }
    let operations = word(sock + offset!(sock_prot));
    word(operations + offset!(proto_put_port)) == 0
}

/// Inode of the network namespace of the socket at that address; 0 when unknown.
#[inline(always)]
pub fn netns_inode(sock: u64) -> u32 {
    if offset!(sock_net) == 0 || offset!(net_inum) == 0 {
        return 0;
    }
    let net = word(sock + offset!(sock_net));
    read((net + offset!(net_inum)) as *const c_void)
}

/// Whether the socket, the `sk` of a `sock_ops` context or null, is a subflow that joined an MPTCP
/// connection (`subflow_ulp_clone` in net/mptcp/subflow.c, 5.10 to 6.18).
#[inline(always)]
pub fn is_joined_subflow(sk: *mut c_void) -> bool {
    if offset!(sock_ulp_data) == 0 || offset!(sock_is_mptcp) == 0 || offset!(subflow_join) == 0 {
        return false;
    }
    let sk = address_of(sk);
    if sk == 0 || !bit(sk, offset!(sock_is_mptcp)) {
        return false;
    }
    let subflow = word(sk + offset!(sock_ulp_data));
    subflow != 0 && bit(subflow, offset!(subflow_join))
}

/// What the kernel notes of a connection that ends, by the `sk` of a `sock_ops` context.
///
/// No Option: verifiers before Linux 6.3 reject reads of what it leaves unset.
pub struct Ending {
    /// Whether the kernel shows the rest.
    pub is_known: bool,
    /// The peer's FIN was received (`tcp_fin` in net/ipv4/tcp_input.c sets `SOCK_DONE`, 5.10 to 6.18).
    pub has_peer_fin: bool,
    /// No process has the socket open any more (`sock_orphan` in include/net/sock.h sets `SOCK_DEAD`).
    pub is_orphan: bool,
    /// Error number, 0 for none: `sk_err`, which `tcp_reset` and `tcp_write_err` set before they end the
    /// connection.
    pub error: u32,
}

/// As above; not known where the kernel has no type information, or for null.
#[inline(always)]
pub fn ending(sk: *mut c_void) -> Ending {
    /// Bits of `enum sock_flags` in include/net/sock.h.
    const SOCK_DEAD: u64 = 1;
    const SOCK_DONE: u64 = 1 << 1;
    let mut ending = Ending {
        is_known: false,
        has_peer_fin: false,
        is_orphan: false,
        error: 0,
    };
    if offset!(sock_flags) == 0 || offset!(sock_error) == 0 {
        return ending;
    }
    let sk = address_of(sk);
    if sk != 0 {
        let flags = word(sk + offset!(sock_flags));
        ending.is_known = true;
        ending.has_peer_fin = flags & SOCK_DONE != 0;
        ending.is_orphan = flags & SOCK_DEAD != 0;
        ending.error = read((sk + offset!(sock_error)) as *const c_void);
    }
    ending
}

/// Where the socket at that address can be reached: the words of
/// [`portwatch_common::Report::remote_address`], zero for address 0 and where the kernel has no type
/// information.
#[inline(always)]
pub fn place_of(sock: u64) -> [u32; 2] {
    if offset!(sock_device) == 0 || offset!(sock_v6only) == 0 || sock == 0 {
        return [0; 2];
    }
    let device: u32 = read((sock + offset!(sock_device)) as *const c_void);
    if bit(sock, offset!(sock_v6only)) {
        [device, place::KNOWN | place::V6ONLY]
    } else {
        [device, place::KNOWN]
    }
}

/// A bit of the structure at a kernel address. The structure's bit fields begin with the lowest bit
/// of a byte: little-endian, as the machines are that this is built for.
#[inline(always)]
fn bit(address: u64, bits: u64) -> bool {
    let byte: u8 = read((address + bits / 8) as *const c_void);
    byte >> (bits % 8) & 1 != 0
}

/// How far above its own cgroup a task's cgroup may be for its name to be read.
const MAX_STEPS: u32 = 16;

/// Reads the name of the current task's cgroup at that level into `name`, which is all 0. False where it
/// is not known.
#[inline(always)]
pub fn cgroup_name(level: u32, name: &mut [u64; CGROUP_NAME_BYTES / 8]) -> bool {
    if offset!(known) == 0 || offset!(cgroup_level) == 0 || offset!(kernfs_name) == 0 {
        return false;
    }
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() };
    let mut cgroup = word(word(task + offset!(task_cgroups)) + offset!(css_set_cgroup));
    for _ in 0..MAX_STEPS {
        if read::<u32>((cgroup + offset!(cgroup_level)) as *const c_void) == level {
            let from = word(word(cgroup + offset!(cgroup_kernfs)) + offset!(kernfs_name));
            // SAFETY: the destination has that many bytes; the kernel checks the source.
            let read = unsafe {
                bpf_probe_read_kernel_str(
                    name.as_mut_ptr().cast(),
                    CGROUP_NAME_BYTES as u32,
                    from as *const c_void,
                )
            };
            return read > 0;
        }
        // The cgroup's own state is its first member (struct cgroup, Linux 5.10 to 6.18).
        cgroup = word(cgroup + offset!(cgroup_parent));
    }
    false
}
