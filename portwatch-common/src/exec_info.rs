//! What a process runs, as the BPF programs read it when the process takes a port: the process can
//! be gone before the agent looks.

use bytemuck::{Pod, Zeroable};

/// Bytes of a path's components that are kept, each with a NUL behind it.
pub const EXE_BYTES: usize = 512;
/// The longest component of a path, with its NUL (`NAME_MAX`).
pub const NAME_BYTES: usize = 256;
/// Bytes of the name that was given to execve(2) that are kept, with its NUL.
pub const EXECFN_BYTES: usize = 256;
/// Fewer bytes of the arguments than this are kept.
pub const ARGS_BYTES: usize = 512;

/// Bits of [`ExecInfo::flags`].
pub mod exec_info_flags {
    /// `exe` is the whole path.
    pub const EXE: u32 = 1;
    /// The executable had no name in its directory any more.
    pub const DELETED: u32 = 1 << 1;
    /// The executable has no directory: `exe` is its own name alone (a memfd).
    pub const DETACHED: u32 = 1 << 2;
    /// `loginuid` is set.
    pub const LOGINUID: u32 = 1 << 3;
}

/// The second kind of record in the ring: it comes before the first [`Report`](super::Report) of
/// its process, and again when that has called execve(2). Distinguished by its size.
///
/// What lies beyond the lengths is what the ring held there before.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ExecInfo {
    /// When the process started: `CLOCK_BOOTTIME` nanoseconds.
    pub start_ns: u64,
    /// Inode number of the executable (`inode.i_ino`); 0 when unknown.
    pub exe_inode: u64,
    /// Process id in the initial pid namespace.
    pub tgid: u32,
    /// The parent's process id.
    pub parent: u32,
    /// The audit login user; `u32::MAX` when nobody logged in.
    pub loginuid: u32,
    /// Bits of [`exec_info_flags`].
    pub flags: u32,
    /// Bytes of `exe` that are set.
    pub exe_len: u32,
    /// Bytes of `execfn` that are set, its NUL included.
    pub execfn_len: u32,
    /// Bytes of `args` that are set.
    pub args_len: u32,
    /// How long the arguments are in the process.
    pub args_whole: u32,
    /// Device of the executable's file system (`super_block.s_dev`) in the kernel's encoding
    /// (include/linux/kdev_t.h, Linux 6.18): 12 bits of major number above 20 bits of minor number.
    /// 0 when unknown.
    pub exe_device: u32,
    /// Inode of the mount namespace that the executable's mount is in; 0 when that is in none
    /// (unmounted, internal to the kernel), or when unknown.
    pub exe_mount_ns: u32,
    /// Inode of the process's mount namespace; 0 when unknown.
    pub mount_ns: u32,
    /// Inode of the process's user namespace; 0 when unknown.
    pub user_ns: u32,
    /// The components of the executable's path, the last one first, each with a NUL behind it; its
    /// end is there so that a component of any length fits.
    pub exe: [u8; EXE_BYTES + NAME_BYTES],
    /// The name that was given to execve(2): a script's, where the executable is its interpreter.
    pub execfn: [u8; EXECFN_BYTES],
    /// The arguments, each with a NUL behind it.
    pub args: [u8; ARGS_BYTES],
}

const _: () = assert!(size_of::<ExecInfo>() == 64 + 768 + 256 + 512);
