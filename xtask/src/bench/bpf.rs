//! bpf(2) commands that aya does not offer.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

/// `BPF_PROG_LOAD` and others of `enum bpf_cmd` (include/uapi/linux/bpf.h).
pub(super) const LOAD: libc::c_long = 5;
pub(super) const ATTACH: libc::c_long = 8;
pub(super) const DETACH: libc::c_long = 9;
const INFO: libc::c_long = 15;

pub(super) fn call<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` begins as `union bpf_attr` does for this command, and has that size; what
    // it points at lives until the call returns.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

/// The fields of `union bpf_attr` that `BPF_OBJ_GET_INFO_BY_FD` reads.
#[repr(C)]
struct InfoRequest {
    program: u32,
    length: u32,
    answer: u64,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: u64,
    native_length: u32,
    length: u32,
    native: u64,
    instructions: u64,
}

/// Bytes of stack that the deepest function of a loaded program uses: the lowest address below the
/// frame pointer in its instructions.
pub(super) fn stack(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = Info::default();
    read_info(program, &mut info)?;
    let mut instructions = vec![[0_u8; 8]; info.length as usize / 8];
    info = Info {
        length: info.length,
        instructions: instructions.as_mut_ptr() as u64,
        ..Info::default()
    };
    read_info(program, &mut info)?;
    let mut deepest = 0;
    // The register that holds a copy of the frame pointer, from the instruction before.
    let mut copy = None;
    for [code, registers, low, high, immediate @ ..] in instructions {
        let (to, from) = (registers & 15, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([low, high]));
        let immediate = i32::from_le_bytes(immediate);
        let below = match code & 7 {
            LOAD_FROM if from == FRAME => -offset,
            STORE | STORE_REGISTER if to == FRAME => -offset,
            _ if code == ADD && copy == Some(to) => -immediate,
            _ => 0,
        };
        copy = (code == MOVE && from == FRAME).then_some(to);
        deepest = deepest.max(below);
    }
    Ok(deepest.unsigned_abs())
}

/// Instruction classes and opcodes (RFC 9669, sections 3 and 4), and the frame pointer's register.
const LOAD_FROM: u8 = 1;
const STORE: u8 = 2;
const STORE_REGISTER: u8 = 3;
const ADD: u8 = 0x07;
const MOVE: u8 = 0xbf;
const FRAME: u8 = 10;

fn read_info(program: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    let mut request = InfoRequest {
        program: program.as_raw_fd() as u32,
        length: size_of::<Info>() as u32,
        answer: std::ptr::from_mut(info) as u64,
    };
    call(INFO, &mut request).map(drop)
}
