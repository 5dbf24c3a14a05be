//! Child processes of the monitor: each keeps a privilege that the monitor gives up, and can do one thing.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
};

use caps::Capability;
use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{SigHandler, Signal, signal},
        socket::{
            AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike as _},
    },
    unistd::{ForkResult, Pid, fork},
};

use super::{capabilities, filter::Filters};

/// How many seconds the monitor waits for a message. A child has one within milliseconds, unless somebody
/// has stopped it.
const TIMEOUT_S: i64 = 1;

/// Starts one that runs `serve` with its end of a socket and ends; returns its process id and the monitor's
/// end. To be called while this process has one thread.
///
/// # Errors
///
/// The kernel's.
pub(super) fn start(
    serve: impl FnOnce(OwnedFd) -> Result<(), String>,
) -> io::Result<(Pid, OwnedFd)> {
    let (socket, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(TIMEOUT_S))?;
    // SAFETY: the child has this thread alone, so no lock is held by another that it lacks.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok((child, socket)),
        ForkResult::Child => {
            drop(socket);
            let _ = serve(theirs);
            // SAFETY: ends the process, and runs nothing that was registered in the monitor.
            unsafe { libc::_exit(0) }
        }
    }
}

/// Gives up, in a child, all but these descriptors, capabilities and system calls.
pub(super) fn confine(
    name: &CStr,
    descriptors: &mut [BorrowedFd<'_>],
    capabilities: &[Capability],
    filters: &Filters,
) -> Result<(), String> {
    let text = |error: Errno| error.to_string();
    // The monitor's stdout must not stay open here, nor anything else that it had open.
    keep_open(descriptors).map_err(|error| error.to_string())?;
    // The monitor's end ends this, whatever stops the monitor.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }.map_err(text)?;
    }
    prctl::set_name(name).map_err(text)?;
    prctl::set_dumpable(false).map_err(text)?;
    // What stays beyond those is the kernel's decision, and seccomp below rules its use out.
    let _ = capabilities::keep(capabilities);
    filters.install()
}

/// Closes all descriptors but these.
fn keep_open(kept: &mut [BorrowedFd<'_>]) -> io::Result<()> {
    kept.sort_unstable_by_key(|fd| fd.as_raw_fd());
    let mut first = 0;
    for fd in kept {
        let fd = fd.as_raw_fd() as u32;
        if first < fd {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: called in the child of a fork, which uses none of these descriptors any more and ends
    // without dropping their owners.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
