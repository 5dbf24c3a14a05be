//! The exec info of the current process: executable, arguments and parent, read while it takes a
//! port, since it can be gone before the agent looks.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::LruHashMap,
    helpers::generated::{
        bpf_get_current_task, bpf_probe_read_kernel_str, bpf_probe_read_user,
        bpf_probe_read_user_str,
    },
    macros::btf_map,
};
use portwatch_common::{
    ARGS_BYTES, EXE_BYTES, EXECFN_BYTES, ExecInfo, NAME_BYTES, exec_info_flags as flags,
};

use crate::{
    globals::offset,
    kernel::{read, word},
    ring::{reserve_exec_info, submit},
};

/// Steps from a file up to its root, through directories and mounts.
const STEPS: u32 = 40;

/// The exec info that was reported last, by process id. A power of two; the agent keeps twice as
/// many.
#[btf_map]
static REPORTED_EXECS: LruHashMap<u32, Exec, 1024> = LruHashMap::new();

/// Distinguishes one execution of a process from the next, and from what prctl(2) makes of it
/// (`PR_SET_MM`): when the process started, how often it has called execve(2), where its arguments
/// are, and its executable.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Exec {
    start_ns: u64,
    exec_id: u64,
    args: u64,
    args_end: u64,
    /// The address of the open file.
    exe: u64,
}

/// When the current process, `tgid`, started, after its exec info was reported if it was not before.
/// 0 where the kernel's offsets are not known, for a kernel thread, and where the exec info does not
/// fit into the ring: the agent must not take an earlier one for it.
#[inline(always)]
pub fn report_exec_info(tgid: u32) -> u64 {
    portwatch_exec(tgid)
}

/// As [`report_exec_info`]. A function of its own for the verifier too, which then checks it once
/// and not once for each path that leads here.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn portwatch_exec(tgid: u32) -> u64 {
    if offset!(known) == 0 {
        return 0;
    }
    // SAFETY: takes no argument.
    let task = unsafe { bpf_get_current_task() };
    // A process starts with its first thread.
    let start_ns = word(word(task + offset!(task_leader)) + offset!(task_start));
    let mm = word(task + offset!(task_mm));
    if start_ns == 0 || mm == 0 {
        return 0;
    }
    let exec = Exec {
        start_ns,
        exec_id: exec_id(task),
        args: word(mm + offset!(mm_arg_start)),
        args_end: word(mm + offset!(mm_arg_end)),
        exe: word(mm + offset!(mm_exe_file)),
    };
    // SAFETY: another CPU can write the value meanwhile; at worst it is reported twice.
    let is_new = unsafe { REPORTED_EXECS.get(tgid) }.is_none_or(|reported| *reported != exec);
    if is_new && !read_exec_info(tgid, task, mm, exec) {
        return 0;
    }
    start_ns
}

/// How often the current process has called execve(2), itself and those that it was forked from; the
/// same in all its threads (`begin_new_exec` in fs/exec.c, Linux 6.18). Arguments lie at the same
/// address after each execve(2) when addresses are not randomized.
#[inline(always)]
fn exec_id(task: u64) -> u64 {
    if offset!(task_exec_id) == 0 {
        return 0;
    }
    // The lower half, which is all of it before Linux 5.7.
    u64::from(read::<u32>((task + offset!(task_exec_id)) as *const c_void))
}

/// Inode of the user namespace of the current process; 0 when unknown. By the credentials that it
/// has itself: the others are those it uses for a while, as io_uring does.
#[inline(always)]
fn user_ns(task: u64) -> u32 {
    if offset!(task_cred) == 0 || offset!(cred_user_ns) == 0 || offset!(user_ns_inum) == 0 {
        return 0;
    }
    let user_ns = word(word(task + offset!(task_cred)) + offset!(cred_user_ns));
    read((user_ns + offset!(user_ns_inum)) as *const c_void)
}

/// Inode of the mount namespace of the current process; 0 when unknown.
#[inline(always)]
fn mount_ns(task: u64) -> u32 {
    if offset!(task_nsproxy) == 0 || offset!(nsproxy_mount_ns) == 0 {
        return 0;
    }
    mount_ns_inode(word(
        word(task + offset!(task_nsproxy)) + offset!(nsproxy_mount_ns),
    ))
}

/// Inode of the mount namespace that an open file's mount is in; 0 when in none, or unknown.
#[inline(always)]
fn mount_ns_of_file(file: u64) -> u32 {
    if offset!(mount_ns) == 0 {
        return 0;
    }
    let mount = word(file + offset!(file_mount)).wrapping_sub(offset!(mount_vfsmount));
    mount_ns_inode(word(mount + offset!(mount_ns)))
}

#[inline(always)]
fn mount_ns_inode(mount_ns: u64) -> u32 {
    if offset!(mount_ns_inum) == 0 {
        return 0;
    }
    read((mount_ns + offset!(mount_ns_inum)) as *const c_void)
}

/// Device and inode number of an open file; 0 where unknown.
#[inline(always)]
fn identity(file: u64) -> (u32, u64) {
    if offset!(file_inode) == 0
        || offset!(inode_number) == 0
        || offset!(inode_super) == 0
        || offset!(super_device) == 0
    {
        return (0, 0);
    }
    let inode = word(file + offset!(file_inode));
    let file_system = word(inode + offset!(inode_super));
    let device = read((file_system + offset!(super_device)) as *const c_void);
    (device, word(inode + offset!(inode_number)))
}

/// Whether it was reported.
#[inline(always)]
fn read_exec_info(tgid: u32, task: u64, mm: u64, exec: Exec) -> bool {
    let parent = word(task + offset!(task_parent));
    let parent = read::<u32>((parent + offset!(task_tgid)) as *const c_void);
    let (mut set, mut loginuid) = (0, 0);
    if offset!(task_loginuid) != 0 {
        set |= flags::LOGINUID;
        loginuid = read::<u32>((task + offset!(task_loginuid)) as *const c_void);
    }
    // execve(2) leaves the name it was given above the environment (fs/binfmt_elf.c).
    let name = word(mm + offset!(mm_env_end));
    let args_whole = exec.args_end.wrapping_sub(exec.args);
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

    let Some(mut entry) = reserve_exec_info() else {
        return false;
    };
    let info: *mut ExecInfo = entry.as_mut_ptr();
    // SAFETY: `info` points at the `ExecInfo` that was just reserved, 8-byte aligned; every field but
    // the arrays is written, and those up to the lengths that are written with them.
    unsafe {
        (&raw mut (*info).start_ns).write(exec.start_ns);
        (&raw mut (*info).tgid).write(tgid);
        (&raw mut (*info).parent).write(parent);
        (&raw mut (*info).loginuid).write(loginuid);

        let (exe_device, exe_inode) = identity(exec.exe);
        (&raw mut (*info).exe_device).write(exe_device);
        (&raw mut (*info).exe_inode).write(exe_inode);
        (&raw mut (*info).exe_mount_ns).write(mount_ns_of_file(exec.exe));
        (&raw mut (*info).mount_ns).write(mount_ns(task));
        (&raw mut (*info).user_ns).write(user_ns(task));

        let (exe_len, exe_set) = read_exe(info, exec.exe);
        (&raw mut (*info).exe_len).write(exe_len);
        (&raw mut (*info).flags).write(set | exe_set);

        let to = (&raw mut (*info).execfn).cast::<c_void>();
        let got = bpf_probe_read_user_str(to, EXECFN_BYTES as u32, name as *const c_void);
        let got = if got > 0 { got as u32 } else { 0 };
        (&raw mut (*info).execfn_len).write(got);

        let to = (&raw mut (*info).args).cast::<c_void>();
        let failed = bpf_probe_read_user(to, kept, exec.args as *const c_void);
        (&raw mut (*info).args_len).write(if failed == 0 { kept } else { 0 });
        (&raw mut (*info).args_whole).write(args_whole);
    }
    submit(entry);
    // Without memory it is reported once more.
    let _ = REPORTED_EXECS.insert(tgid, exec, 0);
    true
}

/// Writes the path's components, the last one first; their length and the flags of the path.
///
/// # Safety
///
/// `info` points at a reserved `ExecInfo`.
#[inline(always)]
unsafe fn read_exe(info: *mut ExecInfo, file: u64) -> (u32, u32) {
    if file == 0 {
        return (0, 0);
    }
    let mut dentry = word(file + offset!(file_dentry));
    let mut mount = word(file + offset!(file_mount)).wrapping_sub(offset!(mount_vfsmount));
    let mut root = word(mount + offset!(mount_vfsmount) + offset!(vfsmount_root));
    let mut set = 0;
    // In no directory's table of names, and not a root, which never is (`d_unlinked`).
    let parent = word(dentry + offset!(dentry_parent));
    if parent != dentry && word(dentry + offset!(dentry_hash)) == 0 {
        set |= flags::DELETED;
    }
    let mut len = 0_u32;
    for _ in 0..STEPS {
        let mut last = false;
        if dentry == root {
            let above = word(mount + offset!(mount_parent));
            if above == mount || above == 0 {
                set |= flags::EXE;
                break;
            }
            dentry = word(mount + offset!(mount_point));
            mount = above;
            root = word(mount + offset!(mount_vfsmount) + offset!(vfsmount_root));
            continue;
        }
        let parent = word(dentry + offset!(dentry_parent));
        if parent == dentry {
            if len != 0 {
                // Cut off from its root: what is above it is unknown.
                break;
            }
            set |= flags::EXE | flags::DETACHED;
            last = true;
        }
        if len >= EXE_BYTES as u32 {
            break;
        }
        let name = word(dentry + offset!(dentry_name));
        // SAFETY: a local. Volatile, so that the compiler leaves in the bound that the verifier
        // wants to see.
        let at = unsafe { core::ptr::read_volatile(&raw const len) } & (EXE_BYTES as u32 - 1);
        // SAFETY: `exe` has room for a component of any length behind each offset below EXE_BYTES.
        let got = unsafe {
            let to = (&raw mut (*info).exe).cast::<u8>().add(at as usize);
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
