//! BPF programs of other tools, as a scenario loads them: some instructions and bpf(2).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

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

/// The part of `union bpf_attr` that BPF_MAP_CREATE needs.
#[repr(C)]
struct Map {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
}

/// The part of `union bpf_attr` that BPF_MAP_UPDATE_ELEM needs.
#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

const BPF_MAP_CREATE: i64 = 0;
const BPF_MAP_UPDATE_ELEM: i64 = 2;
const BPF_PROG_LOAD: i64 = 5;
const BPF_LINK_CREATE: i64 = 28;

const BPF_MAP_TYPE_SOCKMAP: u32 = 15;

/// Encodes one instruction.
pub(super) const fn instruction(opcode: u64, registers: u64, offset: u64, immediate: u32) -> u64 {
    opcode | registers << 8 | offset << 16 | (immediate as u64) << 32
}

/// Before Linux 5.11 programs count as locked memory. Later kernels ignore the limit, so a failure
/// shows when the program is loaded.
pub(super) fn lift_memory_limit() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
}

/// Loads a program.
pub(super) fn load(
    program_type: u32,
    expected_attach_type: u32,
    program: &[u64],
) -> io::Result<OwnedFd> {
    let load = Load {
        program_type,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        expected_attach_type,
        ..Load::default()
    };
    new_descriptor(BPF_PROG_LOAD, &load)
}

/// Attaches a program for as long as the link lives.
pub(super) fn link(
    program: &impl AsFd,
    target: &impl AsFd,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let raw = |fd: &dyn AsFd| fd.as_fd().as_raw_fd() as u32;
    let link = Link {
        program: raw(program),
        target: raw(target),
        attach_type,
        flags: 0,
    };
    new_descriptor(BPF_LINK_CREATE, &link)
}

/// A map of one socket, under the key 0.
pub(super) fn socket_map(socket: &impl AsFd) -> io::Result<OwnedFd> {
    let map = new_descriptor(
        BPF_MAP_CREATE,
        &Map {
            map_type: BPF_MAP_TYPE_SOCKMAP,
            key_size: 4,
            value_size: 8,
            max_entries: 1,
        },
    )?;
    let (key, value) = (0_u32, socket.as_fd().as_raw_fd() as u64);
    let update = Update {
        map: map.as_raw_fd() as u32,
        padding: 0,
        key: (&raw const key) as u64,
        value: (&raw const value) as u64,
        flags: 0,
    };
    bpf(BPF_MAP_UPDATE_ELEM, &update)?;
    Ok(map)
}

/// A command that returns a new descriptor.
fn new_descriptor<T>(command: i64, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: a new descriptor, which this process owns alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: i64, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size` bytes of `attributes`, whose pointers live as long as they do.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
