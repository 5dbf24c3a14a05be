//! Scenarios of outgoing connections from the port: made ones, and each way in which one fails.

#![forbid(unsafe_code)]

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd as _, AsRawFd as _},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{MsgFlags, SockaddrStorage, sendto},
};
use socket2::Socket;

use super::{
    plain::{at, stream},
    script::{ExpectedSocket, Script, Stop},
};
use crate::model::{
    ConnectOutcome::{Established, Failed},
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// How long a socket waits for an answer that does not come.
const UNANSWERED: Duration = Duration::from_millis(50);

/// A socket that is bound to the port.
fn bound(script: &mut Script) -> Result<(Socket, ExpectedSocket), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    Ok((socket, alerts))
}

/// An address that nobody listens on: its listener has closed.
fn closed_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// A listener whose queue is full: the kernel drops further requests for a connection.
fn unanswering() -> Result<(Socket, Vec<Socket>, SocketAddr), Stop> {
    let listener = stream(at("127.0.0.1")?)?;
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    listener.listen(0)?;
    let address = super::plain::local_address(&listener)?;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let client = stream(address)?;
        client.set_nonblocking(true)?;
        begin(&client, address)?;
        clients.push(client);
    }
    Ok((listener, clients, address))
}

/// connect(2) on a socket that does not block.
fn begin(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(()),
    }
}

fn connect(socket: &Socket, alerts: ExpectedSocket, to: SocketAddr) -> io::Result<()> {
    let result = socket.connect(&to.into());
    alerts.expect_connect(to);
    result
}

/// Fails unless `result` is an error: the scenario needs one.
fn must_fail<T>(result: io::Result<T>) -> Result<(), Stop> {
    match result {
        Ok(_) => Err(Stop::Failed("the connection was made".into())),
        Err(_) => Ok(()),
    }
}

pub(super) fn made(script: &mut Script) -> Result<(), Stop> {
    let server = TcpListener::bind(("127.0.0.1", 0))?;
    let (socket, alerts) = bound(script)?;
    connect(&socket, alerts, server.local_addr()?)?;
    drop(socket);
    alerts.expect_close_of_connection(Established);
    Ok(())
}

/// The other end answers with a reset.
pub(super) fn rejected(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    must_fail(connect(&socket, alerts, closed_address()?))?;
    drop(socket);
    alerts.expect_close_of_connection(Failed);
    Ok(())
}

/// As most programs connect: connect(2) returns at once, poll(2) shows the end.
pub(super) fn rejected_nonblocking(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    let to = closed_address()?;
    socket.set_nonblocking(true)?;
    let begun = begin(&socket, to);
    alerts.expect_connect(to);
    if begun.is_ok() {
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, PollTimeout::NONE)?;
    }
    drop(socket);
    alerts.expect_close_of_connection(Failed);
    Ok(())
}

/// Nobody answers, until the kernel gives up (`TCP_USER_TIMEOUT`).
pub(super) fn timed_out(script: &mut Script) -> Result<(), Stop> {
    let (_listener, _clients, to) = unanswering()?;
    let (socket, alerts) = bound(script)?;
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    must_fail(connect(&socket, alerts, to))?;
    drop(socket);
    alerts.expect_close_of_connection(Failed);
    Ok(())
}

/// Nobody answers, and the program closes the socket.
pub(super) fn given_up(script: &mut Script) -> Result<(), Stop> {
    let (_listener, _clients, to) = unanswering()?;
    let (socket, alerts) = bound(script)?;
    socket.set_nonblocking(true)?;
    begin(&socket, to)?;
    alerts.expect_connect(to);
    drop(socket);
    alerts.expect_close_of_connection(Failed);
    Ok(())
}

/// sendto(2) with `MSG_FASTOPEN` connects.
pub(super) fn rejected_fast_open(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    let to = closed_address()?;
    let address = SockaddrStorage::from(to);
    let sent = sendto(
        socket.as_raw_fd(),
        b"x",
        &address,
        MsgFlags::from_bits_retain(libc::MSG_FASTOPEN),
    );
    match sent {
        Err(nix::Error::EOPNOTSUPP) => {
            return Err(Stop::unavailable("TCP Fast Open is off in this kernel"));
        }
        sent => must_fail(sent.map_err(Into::into))?,
    }
    alerts.expect_connect(to);
    drop(socket);
    alerts.expect_close_of_connection(Failed);
    Ok(())
}

/// A second attempt of the same socket succeeds: the close has the last one's outcome.
pub(super) fn rejected_then_made(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    must_fail(connect(&socket, alerts, closed_address()?))?;
    let server = TcpListener::bind(("127.0.0.1", 0))?;
    connect(&socket, alerts, server.local_addr()?)?;
    drop(socket);
    alerts.expect_close_of_connection(Established);
    Ok(())
}

/// The socket keeps the port after its connect failed, and serves.
pub(super) fn rejected_then_listening(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    must_fail(connect(&socket, alerts, closed_address()?))?;
    socket.listen(8)?;
    alerts.expect(Listen);
    super::plain::connect_and_accept(alerts, &socket, at("127.0.0.1")?)?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// Two sockets connect to each other: a socket that connects to itself is the simplest pair.
pub(super) fn simultaneous_open(script: &mut Script) -> Result<(), Stop> {
    let (socket, alerts) = bound(script)?;
    connect(&socket, alerts, at("127.0.0.1")?)?;
    drop(socket);
    alerts.expect_close_of_connection(Established);
    Ok(())
}
