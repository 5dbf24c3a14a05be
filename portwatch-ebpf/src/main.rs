//! portwatch's kernel side: reports what happens to sockets on watched ports.
//!
//! Every program sits on a cgroup hook whose context is stable kernel ABI
//! (`include/uapi/linux/bpf.h`), so that one object runs from Linux 5.10 on without kernel BTF. What
//! a process runs is the exception: see `image`.

#![no_std]
#![no_main]
// `AtomicU64::fetch_add` does not exist on BPF targets; the intrinsic behind it does.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod bind;
mod emit;
mod image;
mod maps;
mod refuse;
mod release;
mod state;
mod tcp;

/// BPF programs cannot unwind, and nothing here panics.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
