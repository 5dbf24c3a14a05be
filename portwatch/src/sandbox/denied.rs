//! System calls that the filter denied. The kernel sends SIGSYS instead of running them; the call
//! then fails with EPERM, and the monitor goes on and reports it: a monitor that the kernel killed
//! would report nothing any more, and an error that nobody sees would hide a fault.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Denied since they were last taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Denied {
    /// The number of the first one.
    pub(super) first: i64,
    /// Its first argument.
    pub(super) argument: u64,
    pub(super) count: u64,
}

static FIRST: AtomicI64 = AtomicI64::new(0);
static ARGUMENT: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

/// What was denied since the last call.
pub(super) fn take() -> Option<Denied> {
    let count = COUNT.swap(0, Relaxed);
    (count > 0).then(|| Denied {
        first: FIRST.load(Relaxed),
        argument: ARGUMENT.load(Relaxed),
        count,
    })
}

/// Counts denied system calls from now on.
pub(super) fn watch() {
    let action = SigAction::new(
        SigHandler::SigAction(on_sigsys),
        SaFlags::SA_SIGINFO | SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    // SAFETY: the handler uses atomics and its own arguments, nothing else.
    let _ = unsafe { sigaction(Signal::SIGSYS, &action) };
}

/// `SYS_SECCOMP` in include/uapi/asm-generic/siginfo.h: the signal is the filter's.
const SYS_SECCOMP: i32 = 1;

/// With `SECCOMP_RET_TRAP` the registers are as they were before the call, except that the program
/// goes on behind it (seccomp(2)): the register of the result gets its error here.
extern "C" fn on_sigsys(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`.
    if unsafe { (*info).si_code } != SYS_SECCOMP {
        return;
    }
    // SAFETY: with SA_SIGINFO the kernel passes a valid `ucontext_t`, which is this handler's alone
    // until it returns.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    let (number, argument) = deny(context);
    if COUNT.fetch_add(1, Relaxed) == 0 {
        FIRST.store(number, Relaxed);
        ARGUMENT.store(argument, Relaxed);
    }
}

/// Makes the call fail with EPERM. Returns its number and its first argument.
#[cfg(target_arch = "x86_64")]
fn deny(context: &mut libc::ucontext_t) -> (i64, u64) {
    let registers = &mut context.uc_mcontext.gregs;
    let argument = registers[libc::REG_RDI as usize] as u64;
    let result = &mut registers[libc::REG_RAX as usize];
    let number = std::mem::replace(result, -i64::from(libc::EPERM));
    (number, argument)
}

/// Makes the call fail with EPERM. Returns its number and its first argument.
#[cfg(target_arch = "aarch64")]
fn deny(context: &mut libc::ucontext_t) -> (i64, u64) {
    let registers = &mut context.uc_mcontext.regs;
    let argument = std::mem::replace(&mut registers[0], -i64::from(libc::EPERM) as u64);
    (registers[8] as i64, argument)
}

/// There is no filter on other processors.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn deny(_: &mut libc::ucontext_t) -> (i64, u64) {
    (0, 0)
}
