//! Reads the kernel's own structures.
//!
//! These are no stable ABI. The agent takes the offsets from the running kernel's type information;
//! without it nothing here runs, and every read is checked by the kernel.

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_probe_read_kernel};
use portwatch_common::{PROTOCOL_TCP, place};

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

/// Whether the socket of a `cgroup_sock` context is a kernel socket: it belongs to no file. Nor does
/// a subflow of MPTCP, which has an upper layer protocol instead.
#[inline(always)]
pub fn is_kernel_socket(sock: *mut bpf_sock, protocol: u8) -> bool {
    if offset!(known) == 0 {
        return false;
    }
    let socket = member(sock, offset!(sock_socket));
    if socket == 0 || word(socket + offset!(socket_file)) != 0 {
        return false;
    }
    protocol != PROTOCOL_TCP || member(sock, offset!(sock_ulp)) == 0
}

/// Inode of the network namespace of the socket of a `cgroup_sock` context; 0 when unknown.
#[inline(always)]
pub fn netns_inode(sock: *mut bpf_sock) -> u32 {
    if offset!(sock_net) == 0 || offset!(net_inum) == 0 {
        return 0;
    }
    let net = member(sock, offset!(sock_net));
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

/// Where the socket of a `cgroup_sock` context can be reached: the words of
/// [`portwatch_common::Report::remote_address`], zero where the kernel has no type information.
#[inline(always)]
pub fn place_of(sock: *mut bpf_sock) -> [u32; 2] {
    if offset!(sock_device) == 0 || offset!(sock_v6only) == 0 {
        return [0; 2];
    }
    let at = |offset: u64| sock.cast::<u8>().wrapping_add(offset as usize).cast();
    let byte: u8 = read(at(offset!(sock_v6only) / 8));
    [read(at(offset!(sock_device))), place_bits(byte)]
}

/// As [`place_of`], by the `sk` of a `sock_ops` context.
#[inline(always)]
pub fn place_of_sk(sk: *mut c_void) -> [u32; 2] {
    if offset!(sock_device) == 0 || offset!(sock_v6only) == 0 {
        return [0; 2];
    }
    let sk = address_of(sk);
    if sk == 0 {
        return [0; 2];
    }
    let byte: u8 = read((sk + offset!(sock_v6only) / 8) as *const c_void);
    let device: u32 = read((sk + offset!(sock_device)) as *const c_void);
    [device, place_bits(byte)]
}

#[inline(always)]
fn place_bits(byte: u8) -> u32 {
    if byte >> (offset!(sock_v6only) % 8) & 1 != 0 {
        place::KNOWN | place::V6ONLY
    } else {
        place::KNOWN
    }
}

/// The number that a pointer is: the verifier allows no arithmetic on a socket's.
#[inline(always)]
fn address_of(pointer: *mut c_void) -> u64 {
    let mut copy: *mut c_void = core::ptr::null_mut();
    // SAFETY: a local of that type; volatile, so that it is in memory.
    unsafe { (&raw mut copy).write_volatile(pointer) };
    read((&raw const copy).cast())
}

/// A bit of the structure at a kernel address. The structure's bit fields begin with the lowest bit
/// of a byte: little-endian, as the machines are that this is built for.
#[inline(always)]
fn bit(address: u64, bits: u64) -> bool {
    let byte: u8 = read((address + bits / 8) as *const c_void);
    byte >> (bits % 8) & 1 != 0
}

/// A word of the socket behind a `cgroup_sock` context, which is the socket itself: for a helper,
/// its address.
#[inline(always)]
fn member(sock: *mut bpf_sock, offset: u64) -> u64 {
    read(sock.cast::<u8>().wrapping_add(offset as usize).cast())
}
