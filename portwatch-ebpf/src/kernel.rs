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

/// A word of the socket behind a `cgroup_sock` context, which is the socket itself: for a helper,
/// its address.
#[inline(always)]
fn member(sock: *mut bpf_sock, offset: u64) -> u64 {
    read(sock.cast::<u8>().wrapping_add(offset as usize).cast())
}
