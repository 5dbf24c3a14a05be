//! Another process serves than the one that bound, or the binder exits at once.

use std::{
    net::TcpStream,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
        unix::net::UnixDatagram,
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};
use socket2::Socket;

use super::{
    plain::{at, stream},
    script::{ExpectedSocket, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// Runs `work` in a forked child and waits for it; returns the child's pid.
pub(super) fn in_child(work: impl FnOnce() -> Result<(), Stop>) -> Result<u32, Stop> {
    // SAFETY: this process has one thread, so the child may do what the parent may.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let code = match work() {
                Ok(()) => 0,
                Err(Stop::Unavailable(_)) => 2,
                Err(Stop::MissingProgram(_) | Stop::Failed(_)) => 1,
            };
            // SAFETY: does not return, and runs none of the parent's exit handlers.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(child.as_raw() as u32),
            WaitStatus::Exited(_, 2) => Err(Stop::unavailable("denied in a child process")),
            other => Err(Stop::Failed(format!("the child ended with {other:?}"))),
        },
    }
}

fn listener(script: &mut Script) -> Result<(Socket, ExpectedSocket), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    socket.listen(8)?;
    alerts.expect(Listen);
    Ok((socket, alerts))
}

/// Lets a child accept on the socket that `receive` returns; this process keeps only the client.
fn served_by_child(
    alerts: ExpectedSocket,
    socket: Socket,
    receive: impl FnOnce() -> Result<Socket, Stop>,
) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let client = TcpStream::connect(local)?;
    alerts.expect_accept(local.ip(), client.local_addr()?);
    in_child(|| {
        let socket = receive()?;
        drop(socket.accept()?);
        Ok(())
    })?;
    drop(client);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn exits_at_once(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    for _ in 0..5 {
        let alerts = script.socket(Transport::Tcp, local);
        let child = in_child(|| {
            let socket = stream(local)?;
            socket.bind(&local.into())?;
            socket.listen(8)?;
            // The kernel closes it at exit.
            std::mem::forget(socket);
            Ok(())
        })?;
        for event in [Bind, Listen, Close] {
            alerts.of_process(child).expect(event);
        }
    }
    Ok(())
}

pub(super) fn fork_inherits(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = listener(script)?;
    let inherited = socket.as_raw_fd();
    served_by_child(alerts, socket, || {
        // SAFETY: the child's own copy of the descriptor, which it owns alone.
        Ok(unsafe { Socket::from_raw_fd(inherited) })
    })
}

/// Another program inherits the listener as its stdin and is the last process to have it open.
pub(super) fn exec_inherits(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = listener(script)?;
    let mut program = Command::new("/proc/self/exe")
        .arg("--version")
        .stdin(Stdio::from(OwnedFd::from(socket)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    program.wait()?;
    alerts.expect(Close);
    Ok(())
}

pub(super) fn scm_rights(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = listener(script)?;
    let (ours, theirs) = UnixDatagram::pair()?;
    let fds = [socket.as_raw_fd()];
    let bytes = [std::io::IoSlice::new(b"x")];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(ours.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None)?;
    served_by_child(alerts, socket, || receive(&theirs))
}

fn receive(from: &UnixDatagram) -> Result<Socket, Stop> {
    let mut space = nix::cmsg_space!(RawFd);
    let mut byte = [0];
    let mut bytes = [std::io::IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut bytes,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control
            && let Some(fd) = fds.first()
        {
            // SAFETY: a new descriptor, which this process owns alone.
            return Ok(unsafe { Socket::from_raw_fd(*fd) });
        }
    }
    Err(Stop::Failed("the message carries no descriptor".into()))
}

pub(super) fn pidfd_getfd(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = listener(script)?;
    let (parent, wanted) = (std::process::id(), socket.as_raw_fd());
    served_by_child(alerts, socket, || {
        // SAFETY: both calls take integers only and return a new descriptor or an error.
        let taken = unsafe {
            let pidfd = libc::syscall(libc::SYS_pidfd_open, parent, 0);
            libc::syscall(libc::SYS_pidfd_getfd, pidfd, wanted, 0)
        };
        let taken = RawFd::try_from(taken)?;
        if taken < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        // SAFETY: a new descriptor, which this process owns alone.
        Ok(unsafe { Socket::from_raw_fd(taken) })
    })
}

/// systemd-socket-activate(1) binds, waits for a client, and executes the service.
pub(super) fn socket_activation(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let mut activate = Command::new("systemd-socket-activate")
        .args(["--listen", &local.to_string(), "sleep", "600"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|_| Stop::MissingProgram("systemd-socket-activate"))?;
    let alerts = script
        .socket(Transport::Tcp, local)
        .of_process(activate.id());
    let started = Instant::now();
    let client = loop {
        match TcpStream::connect(local) {
            Ok(client) => break client,
            Err(_) if started.elapsed() < Duration::from_secs(20) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(error.into()),
        }
    };
    alerts.expect(Bind);
    alerts.expect(Listen);
    alerts.expect_accept(local.ip(), client.local_addr()?);
    activate.kill()?;
    activate.wait()?;
    alerts.expect(Close);
    Ok(())
}
