//! What the current process runs: executable, arguments and parent, read while it takes a port,
//! since it can be gone before the agent looks.
//!
//! These structures are no stable ABI. The agent takes their layout from the running kernel's type
//! information; without it nothing here runs, and every read is checked by the kernel.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{
        bpf_get_current_task, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
        bpf_probe_read_user, bpf_probe_read_user_str,
    },
};
use portwatch_common::{
    ARGS_BYTES, EXE_BYTES, EXECFN_BYTES, Image, NAME_BYTES, PROTOCOL_TCP, image_flags as flags,
};

use crate::maps::{Told, is_told, layout, reserve_image, submit, told};

/// Steps from a file up to its root, through folders and mounts.
const STEPS: u32 = 40;

/// Reads a word at an address of the kernel; zero where there is nothing to read.
#[inline(always)]
fn word(address: u64) -> u64 {
    read(address as *const c_void)
}

#[inline(always)]
fn read<T: Default>(address: *const c_void) -> T {
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

/// When the current process, `tgid`, started, after telling the agent what it runs if it does not
/// know yet. 0 where the kernel's layout is not known, and for a thread of the kernel.
#[inline(always)]
pub fn tell(tgid: u32) -> u64 {
    portwatch_tell(tgid)
}

/// As [`tell`]. A function of its own for the verifier too: it looks at it once, not once for each
/// way that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_tell(tgid: u32) -> u64 {
    if layout!(known) == 0 {
        return 0;
    }
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() };
    // A process starts with its first thread.
    let start_ns = word(word(task + layout!(task_leader)) + layout!(task_start));
    let mm = word(task + layout!(task_mm));
    if start_ns == 0 || mm == 0 {
        return 0;
    }
    let args = word(mm + layout!(mm_arg_start));
    let image = Told { start_ns, args };
    if !is_told(tgid, image) {
        read_image(tgid, task, mm, image);
    }
    start_ns
}

#[inline(always)]
fn read_image(tgid: u32, task: u64, mm: u64, known: Told) {
    let parent = word(task + layout!(task_parent));
    let parent = read::<u32>((parent + layout!(task_tgid)) as *const c_void);
    let (mut set, mut loginuid) = (0, 0);
    if layout!(task_loginuid) != 0 {
        set |= flags::LOGINUID;
        loginuid = read::<u32>((task + layout!(task_loginuid)) as *const c_void);
    }
    // execve(2) leaves the name it was given above the environment (fs/binfmt_elf.c).
    let name = word(mm + layout!(mm_env_end));
    let args_whole = word(mm + layout!(mm_arg_end)).wrapping_sub(known.args);
    let args_whole = if args_whole > u32::MAX as u64 {
        0
    } else {
        args_whole as u32
    };
    let kept = if args_whole >= ARGS_BYTES as u32 {
        ARGS_BYTES as u32 - 1
    } else {
        args_whole
    };
    // SAFETY: a local. Volatile, so that the compiler leaves in the bound that the verifier wants to
    // see.
    let kept = unsafe { core::ptr::read_volatile(&raw const kept) } & (ARGS_BYTES as u32 - 1);

    let Some(mut entry) = reserve_image() else {
        return;
    };
    let image: *mut Image = entry.as_mut_ptr();
    // SAFETY: `image` points at the `Image` that was just reserved, 8-byte aligned; every field but
    // the arrays is written, and those up to the lengths that are written with them.
    unsafe {
        (&raw mut (*image).start_ns).write(known.start_ns);
        (&raw mut (*image).tgid).write(tgid);
        (&raw mut (*image).parent).write(parent);
        (&raw mut (*image).loginuid).write(loginuid);

        let (exe_len, exe_set) = read_exe(image, mm);
        (&raw mut (*image).exe_len).write(exe_len);
        (&raw mut (*image).flags).write(set | exe_set);

        let to = (&raw mut (*image).execfn).cast::<c_void>();
        let got = bpf_probe_read_user_str(to, EXECFN_BYTES as u32, name as *const c_void);
        let got = if got > 0 { got as u32 } else { 0 };
        (&raw mut (*image).execfn_len).write(got);

        let to = (&raw mut (*image).args).cast::<c_void>();
        let failed = bpf_probe_read_user(to, kept, known.args as *const c_void);
        (&raw mut (*image).args_len).write(if failed == 0 { kept } else { 0 });
        (&raw mut (*image).args_whole).write(args_whole);
    }
    submit(entry);
    told(tgid, known);
}

/// Writes the path's components, the last one first; their length and the flags of the path.
///
/// # Safety
///
/// `image` points at a reserved `Image`.
#[inline(always)]
unsafe fn read_exe(image: *mut Image, mm: u64) -> (u32, u32) {
    let file = word(mm + layout!(mm_exe_file));
    if file == 0 {
        return (0, 0);
    }
    let mut dentry = word(file + layout!(file_dentry));
    let mut mount = word(file + layout!(file_mount)).wrapping_sub(layout!(mount_vfsmount));
    let mut root = word(mount + layout!(mount_vfsmount) + layout!(vfsmount_root));
    let mut set = 0;
    // In no folder's table of names, and not a root, which never is (`d_unlinked`).
    let parent = word(dentry + layout!(dentry_parent));
    if parent != dentry && word(dentry + layout!(dentry_hash)) == 0 {
        set |= flags::DELETED;
    }
    let mut len = 0_u32;
    for _ in 0..STEPS {
        let mut last = false;
        if dentry == root {
            let above = word(mount + layout!(mount_parent));
            if above == mount || above == 0 {
                set |= flags::EXE;
                break;
            }
            dentry = word(mount + layout!(mount_point));
            mount = above;
            root = word(mount + layout!(mount_vfsmount) + layout!(vfsmount_root));
            continue;
        }
        let parent = word(dentry + layout!(dentry_parent));
        if parent == dentry {
            if len != 0 {
                // Cut off from its root: what is above it cannot be told.
                break;
            }
            set |= flags::EXE | flags::DETACHED;
            last = true;
        }
        if len >= EXE_BYTES as u32 {
            break;
        }
        let name = word(dentry + layout!(dentry_name));
        // SAFETY: a local. Volatile, so that the compiler leaves in the bound that the verifier
        // wants to see.
        let at = unsafe { core::ptr::read_volatile(&raw const len) } & (EXE_BYTES as u32 - 1);
        // SAFETY: `exe` has room for a component of any length behind each offset below EXE_BYTES.
        let got = unsafe {
            let to = (&raw mut (*image).exe).cast::<u8>().add(at as usize);
            bpf_probe_read_kernel_str(to.cast(), NAME_BYTES as u32, name as *const c_void)
        };
        if got <= 0 {
            set &= !flags::EXE;
            break;
        }
        len += got as u32;
        if last {
            break;
        }
        dentry = parent;
    }
    (len, set)
}

/// Whether the socket of a `cgroup_sock` context is the kernel's own: it belongs to no file. Nor
/// does a subflow of MPTCP, which has an upper layer protocol instead.
#[inline(always)]
pub fn is_kernels(sock: *mut bpf_sock, protocol: u8) -> bool {
    if layout!(known) == 0 {
        return false;
    }
    let socket = member(sock, layout!(sock_socket));
    if socket == 0 || word(socket + layout!(socket_file)) != 0 {
        return false;
    }
    protocol != PROTOCOL_TCP || member(sock, layout!(sock_ulp)) == 0
}

/// Inode of the network namespace of the socket of a `cgroup_sock` context; 0 when unknown.
#[inline(always)]
pub fn netns_inode(sock: *mut bpf_sock) -> u32 {
    if layout!(sock_net) == 0 || layout!(net_inum) == 0 {
        return 0;
    }
    let net = member(sock, layout!(sock_net));
    read((net + layout!(net_inum)) as *const c_void)
}

/// A word of the socket behind a `cgroup_sock` context, which is the socket itself: for a helper,
/// its address.
#[inline(always)]
fn member(sock: *mut bpf_sock, offset: u64) -> u64 {
    read(sock.cast::<u8>().wrapping_add(offset as usize).cast())
}
