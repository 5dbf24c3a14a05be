//! Empty programs on portwatch's hooks: the time that the kernel measures for them is the cost of calling
//! and measuring a program.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, Result};

use super::bpf::{ATTACH, DETACH, LOAD, call};

/// `BPF_F_ALLOW_MULTI`.
const MULTI: u32 = 2;

/// Name, program type and attach type of each.
const HOOKS: [(&str, u32, u32); 3] = [
    ("empty_post_bind", 9, 12),
    ("empty_sock_ops", 13, 3),
    ("empty_release", 9, 34),
];

/// r0 = 1; exit.
const INSTRUCTIONS: [u64; 2] = [0x1_0000_00b7, 0x95];

/// The fields of `union bpf_attr` that `BPF_PROG_LOAD` reads (include/uapi/linux/bpf.h).
#[repr(C)]
struct Program {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
}

/// The fields that `BPF_PROG_ATTACH` and `BPF_PROG_DETACH` read.
#[repr(C)]
struct Attachment {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// The programs, attached until this is dropped.
pub(super) struct Empty {
    cgroup: File,
    programs: Vec<(OwnedFd, u32)>,
}

impl Empty {
    /// Attaches them to the root cgroup.
    pub(super) fn attach() -> Result<Self> {
        let root = cgroup_root()?;
        let cgroup = File::open(&root).with_context(|| format!("opening {root}"))?;
        let mut empty = Self {
            cgroup,
            programs: Vec::new(),
        };
        for (name, kind, attach_type) in HOOKS {
            let program =
                load(name, kind, attach_type).with_context(|| format!("loading {name}"))?;
            call(ATTACH, &mut empty.attachment(&program, attach_type))
                .with_context(|| format!("attaching {name}"))?;
            empty.programs.push((program, attach_type));
        }
        Ok(empty)
    }

    fn attachment(&self, program: &OwnedFd, kind: u32) -> Attachment {
        Attachment {
            target: self.cgroup.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind,
            flags: MULTI,
        }
    }
}

impl Drop for Empty {
    fn drop(&mut self) {
        for (program, kind) in &self.programs {
            let mut attachment = self.attachment(program, *kind);
            attachment.flags = 0;
            let _ = call(DETACH, &mut attachment);
        }
    }
}

/// Where cgroup v2 is mounted.
pub(super) fn cgroup_root() -> Result<String> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    let mut points = mounts
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.split_once(" cgroup2 "));
    let (root, _) = points.next().context("no cgroup v2 is mounted")?;
    Ok(root.to_owned())
}

fn load(name: &str, kind: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut padded = [0; 16];
    for (to, from) in padded.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    let mut program = Program {
        kind,
        instructions: INSTRUCTIONS.len() as u32,
        code: INSTRUCTIONS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: padded,
        interface: 0,
        attach_type,
    };
    let fd = call(LOAD, &mut program)?;
    // SAFETY: a new descriptor from the kernel, owned by nothing else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
