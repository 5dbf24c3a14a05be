//! Where a kernel keeps what an [`ExecInfo`](super::ExecInfo) is read from.

use bytemuck::{Pod, Zeroable};

/// Offsets in bytes, of the members that [`KernelOffsets::MEMBERS`] names.
///
/// They differ from kernel to kernel: the agent takes them from the running one's type information
/// and sets them as a read-only global. Without it all are zero, and no exec info is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct KernelOffsets {
    /// Not 0 when all the others are set but those that say otherwise.
    pub known: u32,
    /// `task_struct.loginuid`; 0 where the kernel has no audit. Those up to `sock_v6only` can be 0: what
    /// is read through them is then unknown.
    pub task_loginuid: u32,
    /// `sock.__sk_common.skc_net.net`.
    pub sock_net: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `task_struct.self_exec_id`: 64 bits from Linux 5.7 on, 32 before.
    pub task_exec_id: u32,
    /// `file.f_inode`.
    pub file_inode: u32,
    /// `inode.i_ino`.
    pub inode_number: u32,
    /// `inode.i_sb`.
    pub inode_super: u32,
    /// `super_block.s_dev`.
    pub super_device: u32,
    /// `task_struct.real_cred`.
    pub task_cred: u32,
    /// `cred.user_ns`.
    pub cred_user_ns: u32,
    /// `user_namespace.ns.inum`.
    pub user_ns_inum: u32,
    /// `task_struct.nsproxy`.
    pub task_nsproxy: u32,
    /// `nsproxy.mnt_ns`.
    pub nsproxy_mount_ns: u32,
    /// `mnt_namespace.ns.inum`.
    pub mount_ns_inum: u32,
    /// `mount.mnt_ns`.
    pub mount_ns: u32,
    /// `sock.__sk_common.skc_prot`.
    pub sock_prot: u32,
    /// `proto.put_port`, from Linux 5.17 on.
    pub proto_put_port: u32,
    /// `inet_connection_sock.icsk_ulp_data`.
    pub sock_ulp_data: u32,
    /// `mptcp_subflow_context.conn`; 0 without MPTCP.
    pub subflow_conn: u32,
    /// `tcp_sock.is_mptcp`, in bits; 0 without MPTCP.
    pub sock_is_mptcp: u32,
    /// `mptcp_subflow_context.mp_join`, in bits; 0 without MPTCP.
    pub subflow_join: u32,
    /// `task_struct.cgroups`.
    pub task_cgroups: u32,
    /// `css_set.dfl_cgrp`.
    pub css_set_cgroup: u32,
    /// `cgroup.level`.
    pub cgroup_level: u32,
    /// `cgroup.self.parent`.
    pub cgroup_parent: u32,
    /// `cgroup.kn`.
    pub cgroup_kernfs: u32,
    /// `kernfs_node.name`.
    pub kernfs_name: u32,
    /// `sock.__sk_common.skc_flags`.
    pub sock_flags: u32,
    /// `sock.sk_err`.
    pub sock_error: u32,
    /// `sock.__sk_common.skc_bound_dev_if`.
    pub sock_device: u32,
    /// `sock.__sk_common.skc_ipv6only`, in bits.
    pub sock_v6only: u32,
    /// `task_struct.mm`.
    pub task_mm: u32,
    /// `task_struct.real_parent`.
    pub task_parent: u32,
    /// `task_struct.tgid`.
    pub task_tgid: u32,
    /// `task_struct.group_leader`.
    pub task_leader: u32,
    /// `task_struct.start_boottime`.
    pub task_start: u32,
    /// `mm_struct.arg_start`.
    pub mm_arg_start: u32,
    /// `mm_struct.arg_end`.
    pub mm_arg_end: u32,
    /// `mm_struct.env_end`.
    pub mm_env_end: u32,
    /// `mm_struct.exe_file`.
    pub mm_exe_file: u32,
    /// `file.f_path.mnt`.
    pub file_mount: u32,
    /// `file.f_path.dentry`.
    pub file_dentry: u32,
    /// `dentry.d_parent`.
    pub dentry_parent: u32,
    /// `dentry.d_name.name`.
    pub dentry_name: u32,
    /// `dentry.d_hash.pprev`.
    pub dentry_hash: u32,
    /// `vfsmount.mnt_root`.
    pub vfsmount_root: u32,
    /// `mount.mnt`.
    pub mount_vfsmount: u32,
    /// `mount.mnt_parent`.
    pub mount_parent: u32,
    /// `mount.mnt_mountpoint`.
    pub mount_point: u32,
    /// `sock.sk_socket`.
    pub sock_socket: u32,
    /// `socket.file`.
    pub socket_file: u32,
    /// `inet_connection_sock.icsk_ulp_ops`.
    pub sock_ulp: u32,
}

const _: () = assert!(size_of::<KernelOffsets>() == (KernelOffsets::MEMBERS.len() + 1) * 4);

impl KernelOffsets {
    /// The offsets of a kernel without type information.
    pub const UNKNOWN: Self = Self {
        known: 0,
        task_loginuid: 0,
        sock_net: 0,
        net_inum: 0,
        task_exec_id: 0,
        file_inode: 0,
        inode_number: 0,
        inode_super: 0,
        super_device: 0,
        task_cred: 0,
        cred_user_ns: 0,
        user_ns_inum: 0,
        task_nsproxy: 0,
        nsproxy_mount_ns: 0,
        mount_ns_inum: 0,
        mount_ns: 0,
        sock_prot: 0,
        proto_put_port: 0,
        sock_ulp_data: 0,
        subflow_conn: 0,
        sock_is_mptcp: 0,
        subflow_join: 0,
        task_cgroups: 0,
        css_set_cgroup: 0,
        cgroup_level: 0,
        cgroup_parent: 0,
        cgroup_kernfs: 0,
        kernfs_name: 0,
        sock_flags: 0,
        sock_error: 0,
        sock_device: 0,
        sock_v6only: 0,
        task_mm: 0,
        task_parent: 0,
        task_tgid: 0,
        task_leader: 0,
        task_start: 0,
        mm_arg_start: 0,
        mm_arg_end: 0,
        mm_env_end: 0,
        mm_exe_file: 0,
        file_mount: 0,
        file_dentry: 0,
        dentry_parent: 0,
        dentry_name: 0,
        dentry_hash: 0,
        vfsmount_root: 0,
        mount_vfsmount: 0,
        mount_parent: 0,
        mount_point: 0,
        sock_socket: 0,
        socket_file: 0,
        sock_ulp: 0,
    };

    /// Structure and member behind each field from `task_loginuid` on, in their order.
    pub const MEMBERS: [(&'static str, &'static str); 52] = [
        ("task_struct", "loginuid"),
        ("sock", "__sk_common.skc_net.net"),
        ("net", "ns.inum"),
        ("task_struct", "self_exec_id"),
        ("file", "f_inode"),
        ("inode", "i_ino"),
        ("inode", "i_sb"),
        ("super_block", "s_dev"),
        ("task_struct", "real_cred"),
        ("cred", "user_ns"),
        ("user_namespace", "ns.inum"),
        ("task_struct", "nsproxy"),
        ("nsproxy", "mnt_ns"),
        ("mnt_namespace", "ns.inum"),
        ("mount", "mnt_ns"),
        ("sock", "__sk_common.skc_prot"),
        ("proto", "put_port"),
        ("inet_connection_sock", "icsk_ulp_data"),
        ("mptcp_subflow_context", "conn"),
        ("tcp_sock", "is_mptcp"),
        ("mptcp_subflow_context", "mp_join"),
        ("task_struct", "cgroups"),
        ("css_set", "dfl_cgrp"),
        ("cgroup", "level"),
        ("cgroup", "self.parent"),
        ("cgroup", "kn"),
        ("kernfs_node", "name"),
        ("sock", "__sk_common.skc_flags"),
        ("sock", "sk_err"),
        ("sock", "__sk_common.skc_bound_dev_if"),
        ("sock", "__sk_common.skc_ipv6only"),
        ("task_struct", "mm"),
        ("task_struct", "real_parent"),
        ("task_struct", "tgid"),
        ("task_struct", "group_leader"),
        ("task_struct", "start_boottime"),
        ("mm_struct", "arg_start"),
        ("mm_struct", "arg_end"),
        ("mm_struct", "env_end"),
        ("mm_struct", "exe_file"),
        ("file", "f_path.mnt"),
        ("file", "f_path.dentry"),
        ("dentry", "d_parent"),
        ("dentry", "d_name.name"),
        ("dentry", "d_hash.pprev"),
        ("vfsmount", "mnt_root"),
        ("mount", "mnt"),
        ("mount", "mnt_parent"),
        ("mount", "mnt_mountpoint"),
        ("sock", "sk_socket"),
        ("socket", "file"),
        ("inet_connection_sock", "icsk_ulp_ops"),
    ];

    /// How many of [`Self::MEMBERS`], from the first on, a kernel may lack.
    pub const OPTIONAL: usize = 31;

    /// Those of [`Self::MEMBERS`] that can be bit fields: their offsets are in bits.
    pub const IN_BITS: [&'static str; 3] = ["is_mptcp", "mp_join", "__sk_common.skc_ipv6only"];

    /// The offsets of these [`Self::MEMBERS`].
    #[must_use]
    pub fn from_offsets(offsets: [u32; Self::MEMBERS.len()]) -> Self {
        let mut words = [1; Self::MEMBERS.len() + 1];
        words[1..].copy_from_slice(&offsets);
        bytemuck::cast(words)
    }
}
