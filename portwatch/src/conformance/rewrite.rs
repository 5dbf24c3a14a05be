//! Another cgroup program moves a bind to another port: the alert has the port that was bound.

use std::{
    fs, io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::PathBuf,
};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{
    handover::in_child,
    plain::{at, stream},
    script::{PORT, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// The part of `union bpf_attr` that BPF_PROG_LOAD needs (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE needs.
#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_BIND: u32 = 8;

/// Offset of `user_port` in `struct bpf_sock_addr`, in bytes.
const USER_PORT: u64 = 24;

/// Encodes one instruction.
const fn instruction(opcode: u64, registers: u64, offset: u64, immediate: u32) -> u64 {
    opcode | registers << 8 | offset << 16 | (immediate as u64) << 32
}

/// Loads `ctx->user_port = htons(port); return 1`.
fn load(port: u16) -> io::Result<OwnedFd> {
    let program = [
        // r2 = htons(port); *(u32 *)(r1 + user_port) = r2; r0 = 1; exit
        instruction(0xb7, 0x02, 0, u32::from(port.to_be())),
        instruction(0x63, 0x21, USER_PORT, 0),
        instruction(0xb7, 0x00, 0, 1),
        instruction(0x95, 0, 0, 0),
    ];
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET4_BIND,
        ..Load::default()
    };
    bpf(BPF_PROG_LOAD, &load)
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size` bytes of `attributes`, whose pointers live as long as they
    // do; both commands return a new descriptor.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor, which this process owns alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A cgroup that is removed when dropped.
struct Cgroup(PathBuf);

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

pub(super) fn rewritten_bind(script: &mut Script) -> Result<(), Stop> {
    let root = crate::linux::cgroup::root()
        .ok_or_else(|| Stop::unavailable("no cgroup v2 hierarchy is mounted"))?;
    // Before Linux 5.11 programs count as locked memory. Later kernels ignore the limit, so a
    // failure shows when the program is loaded.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let cgroup = Cgroup(root.join(format!("portwatch-scenario-{}", std::process::id())));
    fs::create_dir(&cgroup.0)
        .map_err(|error| Stop::unavailable(format!("cannot create a cgroup: {error}")))?;
    let directory = fs::File::open(&cgroup.0)?;
    let program = load(PORT)
        .map_err(|error| Stop::unavailable(format!("cannot load a bind program: {error}")))?;
    let link = bpf(
        BPF_LINK_CREATE,
        &Link {
            program: program.as_raw_fd() as u32,
            target: directory.as_raw_fd() as u32,
            attach_type: BPF_CGROUP_INET4_BIND,
            flags: 0,
        },
    )?;
    let alerts = script.socket(Transport::Tcp, at("127.0.0.1")?);
    let members = cgroup.0.join("cgroup.procs");
    let child = in_child(|| {
        fs::write(&members, std::process::id().to_string())?;
        let mut requested = at("127.0.0.1")?;
        requested.set_port(8080);
        let socket = stream(requested)?;
        socket.bind(&requested.into())?;
        Ok(socket.listen(8)?)
    })?;
    for event in [Bind, Listen, Close] {
        alerts.of_process(child).expect(event);
    }
    drop(link);
    Ok(())
}
