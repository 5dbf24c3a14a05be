//! Why the sensor could not be armed.
#![forbid(unsafe_code)]

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError, programs::ProgramError};

use crate::model::Printable;

/// Why the sensor could not be armed. Each message is one line and says the way out.
#[derive(Debug, thiserror::Error)]
pub enum SensorError {
    /// The process may not load BPF programs.
    #[error(
        "loading BPF programs needs {missing}: run portwatch as root of the host, or give it \
         CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (and CAP_SYS_PTRACE to name other users' \
         programs, CAP_SYS_ADMIN to name network namespaces)"
    )]
    Privilege {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The ring buffer's size is not one that the kernel takes.
    #[error(
        "--ring-size {size}: must be a power of two, at least {minimum} and at most 1073741824"
    )]
    RingSize {
        /// Bytes asked for.
        size: u32,
        /// Bytes of a memory page.
        minimum: u32,
    },
    /// There is no cgroup v2 hierarchy and none could be mounted.
    #[error(
        "no cgroup v2: none is mounted and the kernel does not mount one ({source}); \
         portwatch needs a kernel with CONFIG_CGROUPS and CONFIG_CGROUP_BPF"
    )]
    NoCgroup {
        /// What the kernel returned.
        source: io::Error,
    },
    /// The cgroup that was asked for is none.
    #[error("--cgroup {}: {problem}", path.display())]
    Cgroup {
        /// The path that was given.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The kernel rejected a program.
    #[error(
        "this kernel ({release}) rejected the program {program}: {source}; verifier log ends: {verifier_log}"
    )]
    Rejected {
        /// The program's name.
        program: String,
        /// The kernel's release.
        release: String,
        /// What the system call returned.
        source: io::Error,
        /// The end of the verifier's log.
        verifier_log: String,
    },
    /// The kernel did not attach a program.
    #[error("this kernel ({release}) did not attach the program {program}: {problem}")]
    Attach {
        /// The program's name.
        program: String,
        /// The kernel's release.
        release: String,
        /// What the kernel returned.
        problem: String,
    },
    /// The kernel did not take something else that the sensor needs.
    #[error(
        "this kernel ({release}) did not take {what}: {problem}; portwatch needs Linux 5.10 or later"
    )]
    Kernel {
        /// What was asked of it.
        what: String,
        /// The kernel's release.
        release: String,
        /// What the kernel returned.
        problem: String,
    },
}

impl SensorError {
    /// The error for a program that did not load.
    pub(super) fn program(program: &str, error: ProgramError) -> Self {
        match error {
            ProgramError::LoadError {
                io_error,
                verifier_log: log,
            } => Self::Rejected {
                program: program.into(),
                release: release(),
                source: io_error,
                verifier_log: reason(&log.to_string()),
            },
            other => Self::kernel(&format!("the program {program}"), &other),
        }
    }

    /// The error for a program that did not attach.
    pub(super) fn attach(program: &str, error: &ProgramError) -> Self {
        Self::Attach {
            program: program.into(),
            release: release(),
            problem: chain(error),
        }
    }

    /// The error for an object that did not load.
    pub(super) fn object(error: &EbpfError) -> Self {
        match error {
            EbpfError::MapError(MapError::CreateError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EPERM) =>
            {
                // The capabilities were there, so they are not those of the host.
                Self::Privilege {
                    missing: "root outside of any user namespace".into(),
                }
            }
            EbpfError::MapError(MapError::CreateError { name, io_error }) => {
                Self::kernel(&format!("the map {name}"), io_error)
            }
            other => Self::kernel("the eBPF object", other),
        }
    }

    /// The error for anything else.
    pub(super) fn kernel(what: &str, error: &dyn std::error::Error) -> Self {
        Self::Kernel {
            what: what.into(),
            release: release(),
            problem: chain(error),
        }
    }
}

/// An error and its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    one_line(&text)
}

/// The kernel's release, for people.
pub(super) fn release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_else(|_| "unknown release".into())
}

/// The end of the verifier's log without its statistics: the line that says why, on one line.
fn reason(log: &str) -> String {
    const STATISTICS: [&str; 5] = [
        "processed ",
        "verification time",
        "stack depth",
        "mark_precise:",
        "max_states",
    ];
    let reason = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .rfind(|line| !STATISTICS.iter().any(|start| line.starts_with(start)));
    reason.map_or_else(|| "none".into(), one_line)
}

fn one_line(text: &str) -> String {
    Printable::from(text.trim()).replace("\\n", " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_the_verifier_log_is_its_reason() {
        let log = "func#0 @0\n0: R1=ctx() R10=fp0\n14: (85) call bpf_foo#9999\n\
                   invalid func unknown#9999\n\
                   verification time 81 usec\nstack depth 0\n\
                   processed 15 insns (limit 1000000) max_states_per_insn 0\n\n";
        assert_eq!(reason(log), "invalid func unknown#9999");
        assert_eq!(reason(""), "none");
        assert_eq!(reason("bad\x1b[2J"), "bad\\u{1b}[2J");
    }
}
