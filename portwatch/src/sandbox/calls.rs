//! The system calls of an armed monitor. Made from a trace of all end-to-end tests; the calls beside
//! those are what another libc uses for the same, and what a name service needs, which
//! getpwuid(3) runs in this process. The end-to-end tests keep the list complete: each of them fails
//! when a call is denied.
#![forbid(unsafe_code)]

use libc::{
    SYS_bind, SYS_bpf, SYS_brk, SYS_capget, SYS_clock_getres, SYS_clock_gettime,
    SYS_clock_nanosleep, SYS_clone, SYS_clone3, SYS_close, SYS_connect, SYS_epoll_ctl,
    SYS_epoll_pwait, SYS_epoll_pwait2, SYS_exit, SYS_exit_group, SYS_faccessat, SYS_faccessat2,
    SYS_fchmod, SYS_fcntl, SYS_fgetxattr, SYS_fstat, SYS_fstatfs, SYS_futex, SYS_getcwd,
    SYS_getdents64, SYS_getegid, SYS_geteuid, SYS_getgid, SYS_getpeername, SYS_getpid, SYS_getppid,
    SYS_getrandom, SYS_getsockname, SYS_getsockopt, SYS_gettid, SYS_gettimeofday, SYS_getuid,
    SYS_getxattr, SYS_inotify_add_watch, SYS_inotify_init1, SYS_inotify_rm_watch, SYS_ioctl,
    SYS_lgetxattr, SYS_lseek, SYS_madvise, SYS_membarrier, SYS_mkdirat, SYS_mmap, SYS_mprotect,
    SYS_mremap, SYS_munmap, SYS_nanosleep, SYS_newfstatat, SYS_open_by_handle_at, SYS_openat,
    SYS_openat2, SYS_perf_event_open, SYS_pidfd_getfd, SYS_pidfd_open, SYS_ppoll, SYS_prctl,
    SYS_pread64, SYS_prlimit64, SYS_read, SYS_readlinkat, SYS_readv, SYS_recvfrom, SYS_recvmmsg,
    SYS_recvmsg, SYS_renameat, SYS_restart_syscall, SYS_rseq, SYS_rt_sigaction, SYS_rt_sigprocmask,
    SYS_rt_sigreturn, SYS_sched_getaffinity, SYS_sched_yield, SYS_sendmmsg, SYS_sendmsg,
    SYS_sendto, SYS_set_robust_list, SYS_setns, SYS_setsockopt, SYS_shutdown, SYS_sigaltstack,
    SYS_socket, SYS_socketpair, SYS_statfs, SYS_statx, SYS_sysinfo, SYS_tgkill,
    SYS_timerfd_settime, SYS_uname, SYS_unlinkat, SYS_write, SYS_writev,
};

/// A condition on an argument: `(argument, mask, value)` holds where `argument & mask == value`.
pub(super) type Condition = (u8, u64, u64);

/// A system call, and the conditions under which it is allowed: one of the lists must hold.
pub(super) type Call = (i64, Vec<Vec<Condition>>);

/// Calls that are allowed with any arguments.
const ANY: [i64; 78] = [
    // Memory.
    SYS_brk,
    SYS_madvise,
    SYS_mremap,
    SYS_munmap,
    // Threads and signals.
    SYS_exit,
    SYS_exit_group,
    SYS_futex,
    SYS_gettid,
    SYS_membarrier,
    SYS_restart_syscall,
    SYS_rseq,
    SYS_rt_sigaction,
    SYS_rt_sigprocmask,
    SYS_rt_sigreturn,
    SYS_sched_getaffinity,
    SYS_sched_yield,
    SYS_set_robust_list,
    SYS_sigaltstack,
    // Time.
    SYS_clock_getres,
    SYS_clock_gettime,
    SYS_clock_nanosleep,
    SYS_gettimeofday,
    SYS_nanosleep,
    SYS_timerfd_settime,
    // Open files.
    SYS_close,
    SYS_epoll_ctl,
    SYS_epoll_pwait,
    SYS_epoll_pwait2,
    SYS_fgetxattr,
    SYS_fstat,
    SYS_fstatfs,
    SYS_getdents64,
    SYS_inotify_add_watch,
    SYS_inotify_init1,
    SYS_inotify_rm_watch,
    SYS_lseek,
    SYS_ppoll,
    SYS_pread64,
    SYS_read,
    SYS_readv,
    SYS_write,
    SYS_writev,
    // Paths.
    SYS_faccessat,
    SYS_faccessat2,
    SYS_getcwd,
    SYS_getxattr,
    SYS_lgetxattr,
    SYS_newfstatat,
    SYS_open_by_handle_at,
    SYS_readlinkat,
    SYS_statfs,
    SYS_statx,
    // Sockets. Not listen(2) and accept(2): the monitor serves nobody.
    SYS_bind,
    SYS_connect,
    SYS_getpeername,
    SYS_getsockname,
    SYS_getsockopt,
    SYS_recvfrom,
    SYS_recvmmsg,
    SYS_recvmsg,
    SYS_sendmmsg,
    SYS_sendmsg,
    SYS_sendto,
    SYS_setsockopt,
    SYS_shutdown,
    // This process and this host.
    SYS_capget,
    SYS_getegid,
    SYS_geteuid,
    SYS_getgid,
    SYS_getpid,
    SYS_getppid,
    SYS_getrandom,
    SYS_getuid,
    SYS_sysinfo,
    SYS_uname,
    // Other processes and the kernel, as far as the kept capabilities go.
    SYS_perf_event_open,
    SYS_pidfd_getfd,
    SYS_pidfd_open,
];

/// Calls that are allowed with any arguments, and that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const LEGACY: [i64; 7] = [
    libc::SYS_access,
    libc::SYS_epoll_wait,
    libc::SYS_lstat,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_stat,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: [i64; 0] = [];

/// Calls that the kernel is said not to have: their arguments are in memory, where no filter sees
/// them, and libc has another call for the same.
pub(super) const ABSENT: [i64; 2] = [SYS_clone3, SYS_openat2];

/// The commands of bpf(2) (`enum bpf_cmd` in include/uapi/linux/bpf.h). No program is loaded, no map
/// made, nothing found by its id.
const BPF_COMMANDS: [u64; 8] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    15, // BPF_OBJ_GET_INFO_BY_FD
    16, // BPF_PROG_QUERY
    24, // BPF_MAP_LOOKUP_BATCH
    28, // BPF_LINK_CREATE
];

/// `BPF_OBJ_PIN`.
const BPF_OBJ_PIN: u64 = 6;

/// What it takes beside that to put pins back, with `--fail-closed` only: their directory can be gone,
/// or somebody else's.
const PINS: [i64; 4] = [SYS_fchmod, SYS_mkdirat, SYS_renameat, SYS_unlinkat];

/// The libc crate has these with another type for each libc (include/uapi/asm-generic/ioctls.h).
const TCGETS: u64 = 0x5401;
const TIOCGWINSZ: u64 = 0x5413;
const FIONREAD: u64 = 0x541b;
const FIONBIO: u64 = 0x5421;
/// `SIOCGIFNAME`: the name of a device.
const DEVICE_NAME: u64 = 0x8910;

/// For the tracepoint on kernels without a link for it (include/uapi/linux/perf_event.h).
const PERF_EVENT_IOC_ENABLE: u64 = 0x2400;
const PERF_EVENT_IOC_DISABLE: u64 = 0x2401;
const PERF_EVENT_IOC_SET_BPF: u64 = 0x4004_2408;

/// `PR_SET_VMA`: some allocators name their memory.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// The lower half of an argument that the kernel takes for an `int`.
const INT: u64 = 0xffff_ffff;

/// All of an argument.
const ALL: u64 = u64::MAX;

/// With any arguments.
pub(super) fn any(numbers: impl IntoIterator<Item = i64>) -> Vec<Call> {
    let calls = numbers.into_iter().map(|number| (number, Vec::new()));
    calls.collect()
}

/// Each of these values of an argument.
fn one_of(argument: u8, values: &[u64]) -> Vec<Vec<Condition>> {
    let conditions = values.iter().map(|value| vec![(argument, INT, *value)]);
    conditions.collect()
}

/// The system calls of an armed monitor, with process id `pid`; whether it `keeps_pins` of programs.
pub(super) fn of_monitor(pid: u32, keeps_pins: bool) -> Vec<Call> {
    let pins: &[i64] = if keeps_pins { &PINS } else { &[] };
    let mut commands = BPF_COMMANDS.to_vec();
    if keeps_pins {
        commands.push(BPF_OBJ_PIN);
    }
    let constant = |value: i32| value as u64;
    let [write, execute] = [libc::PROT_WRITE, libc::PROT_EXEC].map(constant);
    // No file is opened for writing: /proc/PID/mem of another process would be one.
    // (musl's `O_ACCMODE` has `O_PATH`.)
    let writes = constant(libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC);
    let thread = constant(libc::CLONE_THREAD | libc::CLONE_VM);
    let namespaces = constant(
        libc::CLONE_NEWCGROUP
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWUSER
            | libc::CLONE_NEWUTS,
    );
    let netlink = constant(libc::AF_NETLINK);
    let mut sockets = one_of(
        0,
        &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX].map(constant),
    );
    sockets.extend(
        [libc::NETLINK_SOCK_DIAG, libc::NETLINK_ROUTE]
            .map(|protocol| vec![(0, INT, netlink), (2, INT, constant(protocol))]),
    );
    let numbers = ANY.into_iter().chain(LEGACY).chain(ABSENT);
    let mut calls = any(numbers.chain(pins.iter().copied()));
    calls.extend([
        // Memory is writable or executable, never both; libraries of a name service are executable.
        (SYS_mmap, vec![vec![(2, write, 0)], vec![(2, execute, 0)]]),
        (SYS_mprotect, vec![vec![(2, execute, 0)]]),
        (SYS_openat, vec![vec![(2, writes, 0)]]),
        (SYS_clone, vec![vec![(0, thread | namespaces, thread)]]),
        (SYS_socket, sockets),
        (SYS_socketpair, one_of(0, &[constant(libc::AF_UNIX)])),
        (SYS_bpf, one_of(0, &commands)),
        (
            SYS_fcntl,
            one_of(
                1,
                &[
                    libc::F_DUPFD_CLOEXEC,
                    libc::F_GETFD,
                    libc::F_SETFD,
                    libc::F_GETFL,
                    libc::F_SETFL,
                ]
                .map(constant),
            ),
        ),
        (
            SYS_ioctl,
            one_of(
                1,
                &[
                    // isatty(3): glibc's, musl's.
                    TCGETS,
                    TIOCGWINSZ,
                    libc::SIOCGSKNS,
                    FIONBIO,
                    FIONREAD,
                    DEVICE_NAME,
                    PERF_EVENT_IOC_DISABLE,
                    PERF_EVENT_IOC_ENABLE,
                    PERF_EVENT_IOC_SET_BPF,
                ],
            ),
        ),
        (
            SYS_prctl,
            one_of(
                0,
                &[
                    constant(libc::PR_SET_NAME),
                    // libcap, which libraries of a name service bring, when it is loaded.
                    constant(libc::PR_CAPBSET_READ),
                    PR_SET_VMA,
                ],
            ),
        ),
        // Limits are read, not set.
        (SYS_prlimit64, vec![vec![(0, INT, 0), (2, ALL, 0)]]),
        // abort(3).
        (SYS_tgkill, vec![vec![(0, INT, u64::from(pid))]]),
        // The priority of the thread that reads the ring: its own alone, within the resource limits.
        (libc::SYS_sched_setscheduler, one_of(0, &[0])),
        (
            libc::SYS_setpriority,
            vec![vec![(0, INT, libc::PRIO_PROCESS as u64), (1, INT, 0)]],
        ),
    ]);
    #[cfg(target_arch = "x86_64")]
    calls.push((libc::SYS_open, vec![vec![(1, writes, 0)]]));
    calls
}

/// The system calls of the helper process.
pub(super) fn of_helper() -> Vec<Call> {
    let [namespace, netlink, sock_diag] = [
        libc::CLONE_NEWNET,
        libc::AF_NETLINK,
        libc::NETLINK_SOCK_DIAG,
    ]
    .map(|value| value as u64);
    let mut calls = any([
        SYS_close,
        SYS_exit_group,
        // Of a directory that it was given; not by a path.
        SYS_fgetxattr,
        SYS_recvmsg,
        SYS_restart_syscall,
        SYS_rt_sigreturn,
        SYS_sendmsg,
    ]);
    calls.extend([
        // The standard library checks descriptors that it closes, in debug builds.
        (SYS_fcntl, one_of(1, &[libc::F_GETFD as u64])),
        (SYS_setns, vec![vec![(1, INT, namespace)]]),
        (
            SYS_socket,
            vec![vec![(0, INT, netlink), (2, INT, sock_diag)]],
        ),
    ]);
    calls
}

/// The system calls of the canary process.
pub(super) fn of_canary() -> Vec<Call> {
    let mut calls = any([
        SYS_bind,
        SYS_clock_nanosleep,
        SYS_close,
        SYS_connect,
        SYS_exit_group,
        SYS_getsockopt,
        libc::SYS_listen,
        SYS_nanosleep,
        SYS_recvmsg,
        SYS_restart_syscall,
        SYS_rt_sigreturn,
        // Where send(3) is this.
        SYS_sendto,
        SYS_setsockopt,
        // To `cgroup.procs`, the only file that it has open.
        SYS_write,
    ]);
    let families = [libc::AF_INET, libc::AF_INET6].map(|family| family as u64);
    calls.extend([
        // The standard library checks descriptors that it closes, in debug builds.
        (SYS_fcntl, one_of(1, &[libc::F_GETFD as u64])),
        (SYS_socket, one_of(0, &families)),
    ]);
    calls
}
