//! The helper process. A sock_diag(7) socket shows the namespace that it was opened in, and entering
//! another namespace takes `CAP_SYS_ADMIN`. So that the monitor can give this up, a process of its
//! own keeps it, which does nothing but open such sockets: it gets a namespace's descriptor over a
//! socket and sends the new socket's descriptor back. It also reads the `trusted.` attributes of a
//! directory that it gets, which takes the same capability.
#![forbid(unsafe_code)]

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use caps::Capability;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
};
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{capabilities, child, filter::Filters};
use crate::linux::{clock::monotonic_ns, hierarchy::Trusted, netns};

/// What the helper needs: to enter namespaces, and for what its sockets shall show.
pub(super) const KEPT: [Capability; 2] = [Capability::CAP_SYS_ADMIN, Capability::CAP_NET_ADMIN];

/// For how many milliseconds it waits where it reads the ring as well.
const SHORT_TIMEOUT_MS: u16 = 200;

/// For how many nanoseconds it is not asked for attributes after that.
const RETRY_NS: u64 = 2_000_000_000;

/// A message: a request's number, what it asks for, and 0; or an answer's number, errno(3) or 0, and the
/// result. Descriptors come beside it.
type Message = [u32; 3];

/// What a request asks for: a socket in the namespace that comes with it.
const SOCK_DIAG: u32 = 0;
/// The attributes of the directory that comes with it.
const TRUSTED: u32 = 1;

/// Bits of an answer about attributes.
const DELEGATED: u32 = 1;
const INVOCATION_ID: u32 = 1 << 1;

/// A running helper, as the monitor sees it.
#[derive(Debug)]
pub(super) struct Helper {
    /// The number of the last request, and the socket. One request at a time.
    socket: Mutex<(u32, OwnedFd)>,
    /// When it did not answer in time; 0 if it did.
    stalled_ns: AtomicU64,
}

impl Helper {
    /// Starts one. To be called while this process has one thread.
    ///
    /// # Errors
    ///
    /// When this process may not enter namespaces, or the kernel's.
    pub(super) fn start() -> io::Result<Self> {
        if !capabilities::has(Capability::CAP_SYS_ADMIN) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        // Here, since the child allocates nothing.
        let filters = Filters::of_helper().map_err(io::Error::other)?;
        let own = std::fs::File::open("/proc/self/ns/net")?;
        let (_, socket) = child::start(|socket| serve(&socket, &own.into(), &filters))?;
        Ok(Self {
            socket: Mutex::new((0, socket)),
            stalled_ns: AtomicU64::new(0),
        })
    }

    /// A new sock_diag(7) socket in the network namespace that the file refers to.
    ///
    /// # Errors
    ///
    /// The kernel's, also when the helper has ended or does not answer in time.
    pub(super) fn sock_diag_in(&self, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let (_, opened) = self.ask(SOCK_DIAG, namespace, None)?;
        self.stalled_ns.store(0, Relaxed);
        opened.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The `trusted.` attributes of an open directory. None when the helper has ended or does not answer
    /// soon; then it is not asked again for a while, unless it has answered something else.
    pub(super) fn trusted(&self, directory: BorrowedFd<'_>) -> Option<Trusted> {
        let stalled = self.stalled_ns.load(Relaxed);
        if stalled != 0 && monotonic_ns().saturating_sub(stalled) < RETRY_NS {
            return None;
        }
        match self.ask(TRUSTED, directory, Some(SHORT_TIMEOUT_MS)) {
            Ok((bits, _)) => Some(Trusted {
                is_delegated: bits & DELEGATED != 0,
                has_invocation_id: bits & INVOCATION_ID != 0,
            }),
            Err(_) => {
                self.stalled_ns.store(monotonic_ns(), Relaxed);
                None
            }
        }
    }

    /// The result of a request, and the descriptor that comes beside it.
    fn ask(
        &self,
        request: u32,
        about: BorrowedFd<'_>,
        timeout_ms: Option<u16>,
    ) -> io::Result<(u32, Option<OwnedFd>)> {
        let mut guard = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let (number, socket) = &mut *guard;
        *number = number.wrapping_add(1);
        send(socket.as_fd(), [*number, request, 0], Some(about))?;
        loop {
            if let Some(timeout) = timeout_ms {
                let mut answered = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut answered, PollTimeout::from(timeout)) {
                    Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                    Ok(_) => {}
                    // A signal of the monitor's.
                    Err(Errno::EINTR) => continue,
                    Err(error) => return Err(error.into()),
                }
            }
            let (answer, opened) = receive(socket.as_fd())?;
            match answer {
                // To a request that timed out.
                [other, ..] if other != *number => {}
                [_, 0, result] => return Ok((result, opened)),
                [_, error, _] => return Err(io::Error::from_raw_os_error(error as i32)),
            }
        }
    }

    /// Whether the helper is there.
    pub(super) fn is_running(&self) -> bool {
        let guard = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ended = [PollFd::new(guard.1.as_fd(), PollFlags::empty())];
        let polled = poll(&mut ended, PollTimeout::ZERO);
        let gone = ended[0].revents().is_some_and(|events| !events.is_empty());
        !(polled.is_ok() && gone)
    }
}

/// Answers until the monitor ends. Returns what went wrong.
fn serve(socket: &OwnedFd, own: &OwnedFd, filters: &Filters) -> Result<(), String> {
    let kept = &mut [socket.as_fd(), own.as_fd()];
    child::confine(c"portwatch-netns", kept, &KEPT, filters)?;
    loop {
        let Ok(([number, request, _], about)) = receive(socket.as_fd()) else {
            return Ok(());
        };
        if request == TRUSTED {
            let found = about.map(|directory| Trusted::read(directory.as_fd()));
            let found = found.unwrap_or_default();
            let delegated = u32::from(found.is_delegated) * DELEGATED;
            let bits = delegated | (u32::from(found.has_invocation_id) * INVOCATION_ID);
            if send(socket.as_fd(), [number, 0, bits], None).is_err() {
                return Ok(());
            }
            continue;
        }
        let opened = about.ok_or(Errno::EBADF).and_then(sock_diag_in);
        // Back, or the namespace would live as long as this process is in it.
        setns(own.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|error| error.to_string())?;
        let error = opened.as_ref().err().map_or(0, |error| *error as u32);
        let opened = opened.as_ref().ok().map(OwnedFd::as_fd);
        if send(socket.as_fd(), [number, error, 0], opened).is_err() {
            return Ok(());
        }
    }
}

/// A sock_diag(7) socket in the namespace; this process stays there.
fn sock_diag_in(namespace: OwnedFd) -> Result<OwnedFd, Errno> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    netns::sock_diag()
}

fn send(to: BorrowedFd<'_>, message: Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    let fds: [BorrowedFd<'_>; 1];
    if let Some(fd) = fd {
        fds = [fd];
        beside.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = bytemuck::bytes_of(&message);
    sendmsg(to, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message and its descriptor; fails with `UnexpectedEof` when there are no more.
fn receive(from: BorrowedFd<'_>) -> io::Result<(Message, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let mut message = Message::default();
    let bytes = bytemuck::bytes_of_mut(&mut message);
    let size = bytes.len();
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received =
        retry_on_intr(|| recvmsg(from, &mut [IoSliceMut::new(bytes)], &mut beside, flags))?;
    if received.bytes != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let fd = beside.drain().find_map(|one| match one {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok((message, fd))
}
