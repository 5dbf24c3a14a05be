//! What is attached to the hooks that the sensor sits on, by anyone.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `BPF_CGROUP_*` of `enum bpf_attach_type` (include/uapi/linux/bpf.h),
/// on which the sensor sits, by the names of its programs.
pub(in crate::sensor) const HOOKS: [(&str, u32); 6] = [
    ("sock_ops", 3),
    ("bind4", 8),
    ("bind6", 9),
    ("post_bind4", 12),
    ("post_bind6", 13),
    ("sock_release", 34),
];

/// `union bpf_attr` as far as `BPF_PROG_QUERY` reaches.
#[repr(C)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

const BPF_PROG_QUERY: libc::c_long = 16;

/// The ids of the programs that are attached to a cgroup's hook.
pub(in crate::sensor) fn attached(
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<Vec<u32>> {
    // A cgroup's hook takes 64 programs (BPF_CGROUP_MAX_PROGS in kernel/bpf/cgroup.c).
    let mut ids = vec![0_u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        padding: 0,
    };
    // SAFETY: the kernel reads and writes `query`, and at most `count` ids; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_QUERY,
            &raw mut query,
            size_of::<Query>(),
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    ids.truncate(query.count as usize);
    Ok(ids)
}
