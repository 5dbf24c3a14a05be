//! io_uring, whose operations no system call tracer sees.

use std::os::fd::AsRawFd as _;

use io_uring::{IoUring, Probe, opcode, squeue, types::Fd};
use socket2::{SockAddr, Socket};

use super::{
    plain::{at, connect_and_accept, stream},
    script::{ExpectedSocket, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// A ring with these operations; [`Stop::Unavailable`] if the kernel lacks one.
fn ring(sqpoll: bool, operations: &[(u8, &str)]) -> Result<IoUring, Stop> {
    let mut builder = IoUring::builder();
    if sqpoll {
        builder.setup_sqpoll(1000);
    }
    let ring = builder
        .build(8)
        .map_err(|error| Stop::unavailable(format!("io_uring is not available: {error}")))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    for (code, name) in operations {
        if !probe.is_supported(*code) {
            return Err(Stop::unavailable(format!(
                "this kernel's io_uring has no {name}"
            )));
        }
    }
    Ok(ring)
}

/// Submits one operation and waits for its result.
///
/// # Safety
///
/// Everything that the entry points to must live until this returns.
unsafe fn submit(ring: &mut IoUring, entry: &squeue::Entry) -> Result<i32, Stop> {
    // SAFETY: the caller's promise; the result is waited for below.
    unsafe { ring.submission().push(entry) }?;
    ring.submit_and_wait(1)?;
    let result = ring
        .completion()
        .next()
        .map(|completion| completion.result());
    match result {
        Some(result) if result >= 0 => Ok(result),
        Some(error) => Err(std::io::Error::from_raw_os_error(-error).into()),
        None => Err(Stop::Failed("io_uring completed nothing".into())),
    }
}

fn listen_through(
    script: &mut Script,
    ring: &mut IoUring,
) -> Result<(Socket, ExpectedSocket), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let address = SockAddr::from(local);
    let fd = Fd(socket.as_raw_fd());
    let alerts = script.socket(Transport::Tcp, local);
    let bind = opcode::Bind::new(fd, address.as_ptr().cast(), address.len()).build();
    // SAFETY: `address` lives to the end of this function.
    unsafe { submit(ring, &bind) }?;
    alerts.expect(Bind);
    // SAFETY: the operation points to nothing.
    unsafe { submit(ring, &opcode::Listen::new(fd, 8).build()) }?;
    alerts.expect(Listen);
    Ok((socket, alerts))
}

const BIND_AND_LISTEN: [(u8, &str); 2] = [
    (opcode::Bind::CODE, "IORING_OP_BIND"),
    (opcode::Listen::CODE, "IORING_OP_LISTEN"),
];

pub(super) fn bind_and_listen(script: &mut Script) -> Result<(), Stop> {
    with_ring(script, false)
}

pub(super) fn bind_and_listen_sqpoll(script: &mut Script) -> Result<(), Stop> {
    with_ring(script, true)
}

fn with_ring(script: &mut Script, sqpoll: bool) -> Result<(), Stop> {
    let mut ring = ring(sqpoll, &BIND_AND_LISTEN)?;
    let (socket, alerts) = listen_through(script, &mut ring)?;
    connect_and_accept(alerts, &socket, at("127.0.0.1")?)?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// Binds and listens by system call; accepts through the ring.
pub(super) fn accept(script: &mut Script) -> Result<(), Stop> {
    let mut ring = ring(false, &[(opcode::Accept::CODE, "IORING_OP_ACCEPT")])?;
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    socket.listen(8)?;
    alerts.expect(Listen);
    let client = std::net::TcpStream::connect(local)?;
    alerts.expect_accept(local.ip(), client.local_addr()?);
    let (address, length) = (std::ptr::null_mut(), std::ptr::null_mut());
    let accept = opcode::Accept::new(Fd(socket.as_raw_fd()), address, length).build();
    // SAFETY: the operation points to nothing.
    let accepted = unsafe { submit(&mut ring, &accept) }?;
    nix::unistd::close(accepted)?;
    drop(client);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}
