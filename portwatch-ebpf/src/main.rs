//! portwatch's BPF programs: report what happens to sockets on watched ports.
//!
//! Every program sits on a cgroup hook whose context is stable kernel ABI
//! (`include/uapi/linux/bpf.h`), so that one object runs from Linux 5.10 on without kernel BTF. The
//! exec info is the exception: see `kernel`.
//!
//! A hook is one file in `hooks`: it describes the socket, reports, and marks what is to be
//! recognised later.

#![no_std]
#![no_main]
// `AtomicU64::fetch_add` does not exist on BPF targets; the intrinsic behind it does.
#![feature(core_intrinsics)]
#![allow(internal_features)]

#[macro_use]
mod field;

mod control;
mod counted;
mod deny;
mod exec_info;
mod globals;
mod hooks;
mod kernel;
mod marks;
mod packet;
mod repeats;
mod report;
mod ring;
mod sessions;
mod watched;

/// BPF programs cannot unwind, and nothing here panics.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
