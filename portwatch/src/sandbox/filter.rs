//! The filter of system calls (seccomp(2)).
#![cfg_attr(not(test), forbid(unsafe_code))]

use std::env::consts::ARCH;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter, apply_filter_all_threads,
};

use super::calls::{self, Call, Condition};

/// Filters for one process, to be installed in this order.
pub(super) struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Those of the monitor; whether it `keeps_pins` of programs.
    pub(super) fn of_monitor(keeps_pins: bool) -> Result<Self, String> {
        Ok(Self(vec![
            // The kernel takes the more severe of two filters' answers.
            compile(
                calls::any(calls::ABSENT),
                SeccompAction::Errno(libc::ENOSYS as u32),
                SeccompAction::Allow,
            )?,
            compile(
                calls::of_monitor(std::process::id(), keeps_pins),
                SeccompAction::Allow,
                SeccompAction::Trap,
            )?,
        ]))
    }

    /// That of the helper, which has nobody to report a denied call to.
    pub(super) fn of_helper() -> Result<Self, String> {
        Self::of_child(calls::of_helper())
    }

    /// That of the canary, which has nobody either.
    pub(super) fn of_canary() -> Result<Self, String> {
        Self::of_child(calls::of_canary())
    }

    fn of_child(calls: Vec<Call>) -> Result<Self, String> {
        compile(calls, SeccompAction::Allow, SeccompAction::KillProcess)
            .map(|filter| Self(vec![filter]))
    }

    /// Filters the calling thread and those that it starts. Sets no_new_privs.
    pub(super) fn install(&self) -> Result<(), String> {
        self.0
            .iter()
            .try_for_each(|filter| apply_filter(filter).map_err(text))
    }

    fn install_in_all_threads(&self) -> Result<(), String> {
        self.0
            .iter()
            .try_for_each(|filter| apply_filter_all_threads(filter).map_err(text))
    }
}

/// Filters this process for good.
pub(super) fn install_in_all_threads(keeps_pins: bool) -> Result<(), String> {
    Filters::of_monitor(keeps_pins)?.install_in_all_threads()
}

/// The crate's error names its source only in its own text.
fn text(error: Error) -> String {
    error.to_string()
}

fn compile(
    calls: Vec<Call>,
    matched: SeccompAction,
    other: SeccompAction,
) -> Result<BpfProgram, String> {
    let arch = TargetArch::try_from(ARCH).map_err(|error| error.to_string())?;
    let rules = calls.into_iter().map(|(number, alternatives)| {
        let rules: Result<Vec<_>, _> = alternatives.into_iter().map(rule).collect();
        Ok((number, rules?))
    });
    let rules: Result<_, seccompiler::BackendError> = rules.collect();
    rules
        .and_then(|rules| SeccompFilter::new(rules, other, matched, arch))
        .and_then(TryInto::try_into)
        .map_err(|error| error.to_string())
}

fn rule(conditions: Vec<Condition>) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<_>, _> = conditions
        .into_iter()
        .map(|(argument, mask, value)| {
            let operator = SeccompCmpOp::MaskedEq(mask);
            SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)
        })
        .collect();
    SeccompRule::new(conditions?)
}

#[cfg(test)]
mod tests {
    use std::{io, thread};

    use libc::c_long;

    use crate::sandbox::{confine_thread, denied};

    /// errno(3) of a system call; 0 where it succeeded.
    fn errno(number: c_long, arguments: [u64; 4]) -> i32 {
        let [first, second, third, fourth] = arguments;
        // SAFETY: the table below passes numbers, null pointers, and paths that live as long.
        match unsafe { libc::syscall(number, first, second, third, fourth, 0, 0) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn a_filtered_thread_can_call_what_it_needs_and_nothing_else() {
        /// In include/uapi/asm-generic/ioctls.h.
        const TIOCSTI: u64 = 0x5412;
        const PATH: &std::ffi::CStr = c"/proc/self/mem";
        let path = PATH.as_ptr() as u64;
        let at = libc::AT_FDCWD as u64;
        let value = |value: i32| value as u64;
        let write = value(libc::PROT_READ | libc::PROT_WRITE);
        let execute = value(libc::PROT_READ | libc::PROT_EXEC);
        let anonymous = value(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let open = |flags| [at, path, value(flags), 0];
        let socket = |family, kind, protocol| [value(family), value(kind), value(protocol), 0];
        let (dgram, raw) = (libc::SOCK_DGRAM, libc::SOCK_RAW);
        let none = [0; 4];
        let denied = Some(libc::EPERM);
        // None: anything but EPERM.
        let table: [(&str, c_long, [u64; 4], Option<i32>); 34] = [
            ("execve", libc::SYS_execve, none, denied),
            ("execveat", libc::SYS_execveat, none, denied),
            (
                "fork",
                libc::SYS_clone,
                [value(libc::SIGCHLD), 0, 0, 0],
                denied,
            ),
            (
                "a namespace",
                libc::SYS_clone,
                [value(libc::CLONE_NEWUSER | libc::SIGCHLD), 0, 0, 0],
                denied,
            ),
            ("clone3", libc::SYS_clone3, none, Some(libc::ENOSYS)),
            ("openat2", libc::SYS_openat2, none, Some(libc::ENOSYS)),
            ("unshare", libc::SYS_unshare, none, denied),
            ("setns", libc::SYS_setns, none, denied),
            ("mount", libc::SYS_mount, none, denied),
            ("fsopen", libc::SYS_fsopen, none, denied),
            ("ptrace", libc::SYS_ptrace, [16, 1, 0, 0], denied),
            ("writing memory", libc::SYS_process_vm_writev, none, denied),
            ("kill", libc::SYS_kill, none, denied),
            ("another's thread", libc::SYS_tgkill, [1, 1, 0, 0], denied),
            ("a kernel module", libc::SYS_init_module, none, denied),
            ("io_uring", libc::SYS_io_uring_setup, none, denied),
            ("unlink", libc::SYS_unlinkat, open(0), denied),
            ("chmod", libc::SYS_fchmodat, open(0), denied),
            ("setuid", libc::SYS_setuid, none, denied),
            ("capset", libc::SYS_capset, none, denied),
            ("loading a program", libc::SYS_bpf, [5, 0, 0, 0], denied),
            ("making a map", libc::SYS_bpf, [0, 0, 0, 0], denied),
            ("a program by its id", libc::SYS_bpf, [13, 0, 0, 0], denied),
            ("map look-up", libc::SYS_bpf, [1, 0, 0, 0], None),
            (
                "open for reading",
                libc::SYS_openat,
                open(libc::O_RDONLY),
                Some(0),
            ),
            (
                "open for writing",
                libc::SYS_openat,
                open(libc::O_RDWR),
                denied,
            ),
            ("creating", libc::SYS_openat, open(libc::O_CREAT), denied),
            (
                "a packet socket",
                libc::SYS_socket,
                socket(libc::AF_PACKET, raw, 0),
                denied,
            ),
            (
                "netfilter",
                libc::SYS_socket,
                socket(libc::AF_NETLINK, raw, libc::NETLINK_NETFILTER),
                denied,
            ),
            (
                "sock_diag",
                libc::SYS_socket,
                socket(libc::AF_NETLINK, raw, libc::NETLINK_SOCK_DIAG),
                Some(0),
            ),
            (
                "udp",
                libc::SYS_socket,
                socket(libc::AF_INET, dgram, 0),
                Some(0),
            ),
            ("listen", libc::SYS_listen, none, denied),
            (
                "writable code",
                libc::SYS_mmap,
                [0, 4096, write | execute, anonymous],
                denied,
            ),
            (
                "a terminal's input",
                libc::SYS_ioctl,
                [0, TIOCSTI, path, 0],
                denied,
            ),
        ];
        let thread = thread::spawn(move || {
            confine_thread().unwrap();
            // A thread of it is allowed, and as narrow.
            let results = thread::spawn(move || {
                table.map(|(name, number, arguments, expected)| {
                    (name, errno(number, arguments), expected)
                })
            });
            results.join().unwrap()
        });
        for (name, found, expected) in thread.join().unwrap() {
            match expected {
                Some(expected) => assert_eq!(found, expected, "{name}"),
                None => assert_ne!(found, libc::EPERM, "{name}"),
            }
        }
        assert!(denied::take().is_some());
    }
}
