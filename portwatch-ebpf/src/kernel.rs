//! Reads the kernel's own structures.
//!
//! These are no stable ABI. The agent takes the offsets from the running kernel's type information;
//! without it nothing here runs, and every read is checked by the kernel.

use core::ffi::c_void;

use aya_ebpf::{bindings::bpf_sock, helpers::generated::bpf_probe_read_kernel};
use portwatch_common::PROTOCOL_TCP;

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
