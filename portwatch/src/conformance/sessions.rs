//! Connections from beginning to end: their bytes, and who ended them.

#![forbid(unsafe_code)]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use socket2::SockRef;

use super::{
    plain::{at, listener, needs_type_information, stream},
    script::{ExpectedSession, Script, Stop},
};
use crate::model::{
    ConnectOutcome::Established,
    Direction, EndedBy,
    EventKind::{Bind, Close},
    Transport,
};

/// What the client sends, and what the server does.
const TO_SERVER: &[u8] = b"12345";
const TO_CLIENT: &[u8] = b"123";

/// Exchanges a few bytes.
fn exchange(client: &mut TcpStream, server: &mut TcpStream) -> Result<(), Stop> {
    client.write_all(TO_SERVER)?;
    server.read_exact(&mut [0; TO_SERVER.len()])?;
    server.write_all(TO_CLIENT)?;
    client.read_exact(&mut [0; TO_CLIENT.len()])?;
    Ok(())
}

/// Waits until the other end has closed or reset the connection.
fn wait_for_end(stream: &mut TcpStream) {
    while stream.read(&mut [0]).is_ok_and(|read| read > 0) {}
}

/// A connection that was accepted, and that one of the two ends.
fn accepted(script: &mut Script, ended_by: EndedBy, is_ended_here: bool) -> Result<(), Stop> {
    needs_type_information()?;
    script.compare_sessions();
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = listener(script, &socket, local)?;
    let mut client = TcpStream::connect(local)?;
    let peer = client.local_addr()?;
    alerts.expect_accept(local.ip(), peer);
    let mut server = TcpStream::from(socket.accept()?.0);
    exchange(&mut client, &mut server)?;
    let (first, mut second) = match is_ended_here {
        true => (server, client),
        false => (client, server),
    };
    if ended_by == EndedBy::Reset {
        SockRef::from(&first).set_linger(Some(Duration::ZERO))?;
    }
    drop(first);
    wait_for_end(&mut second);
    drop(second);
    let session = ExpectedSession {
        direction: Direction::In,
        bytes_in: TO_SERVER.len() as u64,
        bytes_out: TO_CLIENT.len() as u64,
        ended_by: Some(ended_by),
    };
    alerts.expect_session(peer, session);
    script.wait()?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn closed_by_peer(script: &mut Script) -> Result<(), Stop> {
    accepted(script, EndedBy::Peer, false)
}

pub(super) fn closed_by_us(script: &mut Script) -> Result<(), Stop> {
    accepted(script, EndedBy::Us, true)
}

pub(super) fn reset_by_peer(script: &mut Script) -> Result<(), Stop> {
    accepted(script, EndedBy::Reset, false)
}

pub(super) fn reset_by_us(script: &mut Script) -> Result<(), Stop> {
    accepted(script, EndedBy::Reset, true)
}

/// A connection from the port to another one. The peer closes it: the socket is on the port until then.
pub(super) fn outgoing(script: &mut Script) -> Result<(), Stop> {
    needs_type_information()?;
    script.compare_sessions();
    let local = at("127.0.0.1")?;
    let listener = TcpListener::bind(SocketAddr::new(local.ip(), 0))?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    let peer = listener.local_addr()?;
    socket.connect(&peer.into())?;
    alerts.expect_connect(peer);
    let mut client = TcpStream::from(socket);
    let mut server = listener.accept()?.0;
    exchange(&mut client, &mut server)?;
    drop(server);
    wait_for_end(&mut client);
    drop(client);
    alerts.expect_close_of_connection(Established);
    let session = ExpectedSession {
        direction: Direction::Out,
        bytes_in: TO_CLIENT.len() as u64,
        bytes_out: TO_SERVER.len() as u64,
        ended_by: Some(EndedBy::Peer),
    };
    alerts.expect_session(peer, session);
    script.wait()
}
