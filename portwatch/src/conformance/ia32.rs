//! A 32-bit program's system calls: `int 0x80`, socketcall(2).

use super::script::{Script, Stop};

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn socketcall(_: &mut Script) -> Result<(), Stop> {
    Err(Stop::unavailable(
        "this architecture has no ia32 system calls",
    ))
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::socketcall;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::{arch::asm, num::NonZeroUsize};

    use nix::{
        sys::{
            mman::{MapFlags, ProtFlags, mmap_anonymous},
            wait::{WaitStatus, waitpid},
        },
        unistd::{ForkResult, fork},
    };

    use super::{Script, Stop};
    use crate::{
        conformance::{plain::at, script::PORT},
        model::{
            EventKind::{Bind, Close, Listen},
            Transport,
        },
    };

    /// Numbers from arch/x86/entry/syscalls/syscall_32.tbl and include/uapi/linux/net.h.
    const SYS_CLOSE: u32 = 6;
    const SYS_GETPID: u32 = 20;
    const SYS_SOCKETCALL: u32 = 102;
    const CALL_SOCKET: u32 = 1;
    const CALL_BIND: u32 = 2;
    const CALL_LISTEN: u32 = 4;

    /// # Safety
    ///
    /// The arguments must be right for the call; pointers among them must lie below 4 GiB.
    unsafe fn call(number: u32, first: u32, second: u32) -> i32 {
        let result: i32;
        // SAFETY: the entry keeps every register but rax and r8-r11
        // (arch/x86/entry/entry_64_compat.S); rbx, which Rust may not name, is put back.
        unsafe {
            asm!(
                "xchg rbx, {first:r}",
                "int 0x80",
                "xchg rbx, {first:r}",
                first = inout(reg) u64::from(first) => _,
                inout("eax") number => result,
                in("ecx") second,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        result
    }

    /// Whether the kernel serves `int 0x80`; one that does not kills the calling process.
    fn is_available() -> Result<bool, Stop> {
        // SAFETY: this process has one thread; the child makes one call and exits.
        match unsafe { fork() }? {
            ForkResult::Child => {
                // SAFETY: getpid takes no arguments; _exit does not return.
                unsafe {
                    let answered = call(SYS_GETPID, 0, 0) > 0;
                    libc::_exit(i32::from(!answered))
                }
            }
            ForkResult::Parent { child } => {
                Ok(matches!(waitpid(child, None)?, WaitStatus::Exited(_, 0)))
            }
        }
    }

    pub(in crate::conformance) fn socketcall(script: &mut Script) -> Result<(), Stop> {
        if !is_available()? {
            return Err(Stop::unavailable("this kernel runs no 32-bit programs"));
        }
        let local = at("127.0.0.1")?;
        let page = NonZeroUsize::MIN.saturating_add(4095);
        let rights = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, which stays until the process ends.
        let memory = unsafe {
            mmap_anonymous(
                None,
                page,
                rights,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_32BIT,
            )
        }?;
        let arguments = memory.cast::<u32>();
        let base = u32::try_from(arguments.as_ptr() as usize)?;
        let port = u32::from(PORT.to_be()) << 16;
        let socketcall = |which: u32, values: [u32; 3]| -> Result<u32, Stop> {
            // SAFETY: the page holds the three words, and the sockaddr_in behind them at 64.
            let result = unsafe {
                arguments.cast::<[u32; 3]>().write(values);
                arguments.add(16).cast::<[u32; 4]>().write([
                    libc::AF_INET as u32 | port,
                    u32::from_ne_bytes([127, 0, 0, 1]),
                    0,
                    0,
                ]);
                call(SYS_SOCKETCALL, which, base)
            };
            u32::try_from(result).map_err(|_| std::io::Error::from_raw_os_error(-result).into())
        };
        let alerts = script.socket(Transport::Tcp, local);
        let socket = socketcall(
            CALL_SOCKET,
            [libc::AF_INET as u32, libc::SOCK_STREAM as u32, 0],
        )?;
        socketcall(CALL_BIND, [socket, base + 64, 16])?;
        alerts.expect(Bind);
        socketcall(CALL_LISTEN, [socket, 8, 0])?;
        alerts.expect(Listen);
        // SAFETY: the descriptor is this function's own.
        unsafe { call(SYS_CLOSE, socket, 0) };
        alerts.expect(Close);
        Ok(())
    }
}
