//! Stdout, written without ever blocking the agent: a reader that stalls must not keep it from
//! reading the ring buffer or from stopping on a signal.

use std::{
    io::{self, ErrorKind, IsTerminal as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::{Mode, SFlag, fstat},
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::util::console;

/// Stdout is closed or full.
#[derive(Debug, thiserror::Error)]
pub enum StdoutGone {
    /// Writing failed; with [`ErrorKind::BrokenPipe`] when the reader went away.
    #[error("stdout")]
    Io(#[from] io::Error),
    /// The reader took nothing for too long while the monitor was to stop.
    #[error("stdout: its reader stalled; at least {lines} alerts are not printed")]
    Stalled {
        /// Alerts that were made and not written; reports that wait in the ring come on top.
        lines: usize,
    },
}

impl StdoutGone {
    /// Whether the reader just went away: then nobody needs a message.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::BrokenPipe)
    }
}

/// What poll(2) returns for a pipe or a socket whose reader went away.
const GONE: PollFlags = PollFlags::POLLERR.union(PollFlags::POLLHUP);

/// A pipe that poll(2) calls writable accepts this many bytes without blocking (pipe(7)).
const CHUNK: usize = libc::PIPE_BUF;

/// The size of a write while more is to come.
const FULL: usize = 8 * CHUNK;

/// Stdout and the lines that are queued for it.
pub struct Stdout {
    target: Target,
    /// The most that goes into one write.
    chunk: usize,
    pending: Vec<u8>,
}

enum Target {
    /// A pipe, a socket, a terminal: its reader can stall or go away.
    Polled(AsyncFd<OwnedFd>),
    /// A file: always ready.
    Ready(OwnedFd),
}

impl Stdout {
    /// Takes the process's stdout. To be called inside a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`] when there is none.
    pub fn take() -> Result<Self, StdoutGone> {
        let stdout = io::stdout();
        let (fd, chunk) = match without_blocking(stdout.as_fd()) {
            Some(fd) => (fd, usize::MAX),
            None => (stdout.as_fd().try_clone_to_owned()?, CHUNK),
        };
        let interest = Interest::WRITABLE | Interest::ERROR;
        // SAFETY: an `OwnedFd` has one descriptor and keeps it open until it is dropped.
        let target = match unsafe { AsyncFd::register_with_interest(fd, interest) } {
            Ok(polled) => Target::Polled(polled),
            Err(error) => match error.into_parts() {
                // epoll(7) rejects what is always ready.
                (fd, cause) if cause.raw_os_error() == Some(libc::EPERM) => Target::Ready(fd),
                (_, cause) => return Err(cause.into()),
            },
        };
        Ok(Self {
            target,
            chunk,
            pending: Vec::new(),
        })
    }

    /// Whether it is a terminal.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.fd().is_terminal()
    }

    /// Whether it is the journal's stream, as `$JOURNAL_STREAM` says (systemd.exec(5)).
    #[must_use]
    pub fn is_journal(&self) -> bool {
        console::is_journal(self.fd())
    }

    /// Where to append what [`flush`](Self::flush) shall write.
    pub const fn pending(&mut self) -> &mut Vec<u8> {
        &mut self.pending
    }

    /// Writes as much of what is queued as is possible without waiting.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`] when it is closed or full.
    pub fn flush_now(&mut self) -> Result<(), StdoutGone> {
        while !self.pending.is_empty() && (self.chunk > CHUNK || self.is_writable()) {
            let chunk = &self.pending[..self.pending.len().min(self.chunk)];
            match nix::unistd::write(self.fd(), chunk) {
                Ok(written) => drop(self.pending.drain(..written)),
                Err(Errno::EINTR) => {}
                // poll(2) shows when it is writable again.
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(StdoutGone::Io(error.into())),
            }
        }
        Ok(())
    }

    /// Writes when enough is queued for a write of full size.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`] when it is closed or full.
    pub fn flush_if_full(&mut self) -> Result<(), StdoutGone> {
        if self.pending.len() >= FULL {
            self.flush_now()?;
        }
        Ok(())
    }

    /// Writes everything that is queued. May be cancelled: what was not written stays queued.
    ///
    /// # Errors
    ///
    /// [`StdoutGone`] when it is closed or full.
    pub async fn flush(&mut self) -> Result<(), StdoutGone> {
        loop {
            self.flush_now()?;
            if self.pending.is_empty() {
                return Ok(());
            }
            let Target::Polled(readiness) = &self.target else {
                continue;
            };
            let mut ready = readiness.ready(Interest::WRITABLE).await?;
            // The descriptor blocks, so no write returns EAGAIN: poll(2) shows whether the readiness is real.
            if !self.is_writable() {
                ready.clear_ready();
                // Should the readiness not go away, a signal must still get through.
                tokio::task::yield_now().await;
            }
        }
    }

    /// Lines that are queued.
    #[must_use]
    pub fn queued_lines(&self) -> usize {
        self.pending.iter().filter(|byte| **byte == b'\n').count()
    }

    /// Waits until the reader has gone away.
    pub async fn gone(&self) -> StdoutGone {
        if let Target::Polled(readiness) = &self.target {
            loop {
                let Ok(mut ready) = readiness.ready(Interest::ERROR).await else {
                    break;
                };
                if self.has(GONE) {
                    return StdoutGone::Io(ErrorKind::BrokenPipe.into());
                }
                ready.clear_ready();
            }
        }
        std::future::pending().await
    }

    /// Whether writing a chunk succeeds or fails without blocking.
    fn is_writable(&self) -> bool {
        matches!(self.target, Target::Ready(_)) || self.has(PollFlags::POLLOUT | GONE)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.target {
            Target::Polled(polled) => polled.get_ref().as_fd(),
            Target::Ready(fd) => fd.as_fd(),
        }
    }

    fn has(&self, events: PollFlags) -> bool {
        let mut fds = [PollFd::new(self.fd(), events)];
        poll(&mut fds, PollTimeout::ZERO).is_ok()
            && fds[0]
                .revents()
                .is_some_and(|found| found.intersects(events))
    }
}

/// The pipe opened once more, so that writes to it do not block: for others who have it open, such
/// as the shell, that must not change.
fn without_blocking(stdout: BorrowedFd<'_>) -> Option<OwnedFd> {
    let kind = SFlag::from_bits_truncate(fstat(stdout).ok()?.st_mode) & SFlag::S_IFMT;
    if kind != SFlag::S_IFIFO {
        return None;
    }
    let path = format!("/proc/self/fd/{}", stdout.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    open(path.as_str(), flags, Mode::empty()).ok()
}
