//! Binds that a rule denies: they fail with EPERM, nothing is left on the port, and the alert is `deny`.
//! The monitor of the suite denies one port to a user that no host has; a scenario is that user, by its
//! real user id, for the length of a bind.

#![forbid(unsafe_code)]

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use nix::unistd::{ROOT, Uid, setresuid};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{
    plain::{MPTCP, connect_and_accept, ephemeral_port, open},
    script::{ExpectedSocket, Script, Stop},
};
use crate::model::{
    ConnectOutcome::Established,
    EventKind::{Bind, Close, Deny, Listen},
    Transport,
};

/// The port that is denied, unassigned as the others' is.
const PORT: u16 = 977;

/// The user to whom it is denied: beyond what is assigned to people, services and containers.
const USER: u32 = 4_294_900_977;

/// The rules of the suite's monitor.
pub(super) fn rules() -> String {
    format!("[[rule]]\nname = \"self-test\"\ndecide = \"deny\"\nport = {PORT}\nuser = {USER}\n")
}

/// Runs `act` as the user to whom the port is denied.
fn as_denied<T>(act: impl FnOnce() -> io::Result<T>) -> Result<io::Result<T>, Stop> {
    setresuid(Uid::from_raw(USER), ROOT, ROOT)
        .map_err(|error| Stop::unavailable(format!("cannot be another user: {error}")))?;
    let result = act();
    setresuid(ROOT, ROOT, ROOT)?;
    Ok(result)
}

fn bind_denied(socket: &Socket, to: SocketAddr) -> Result<(), Stop> {
    match as_denied(|| socket.bind(&to.into()))? {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => Err(Stop::Failed("the bind was not denied".into())),
    }
}

struct Path {
    transport: Transport,
    kind: Type,
    protocol: Option<i32>,
    ip: &'static str,
}

impl Path {
    fn local(&self) -> Result<SocketAddr, Stop> {
        Ok(SocketAddr::new(self.ip.parse()?, PORT))
    }

    fn open(&self) -> Result<Socket, Stop> {
        let socket = open(self.local()?, self.kind, self.protocol)?;
        if self.ip.starts_with("::ffff:") {
            socket.set_only_v6(false)?;
        }
        Ok(socket)
    }

    /// Denied on a port that the program names: the port is free, and what is sent to it reaches another.
    fn denied(self, script: &mut Script) -> Result<(), Stop> {
        let local = self.local()?;
        let denied = self.open()?;
        let alerts = script.socket(self.transport, local);
        bind_denied(&denied, local)?;
        alerts.expect(Deny);
        let (alerts, other) = self.bound(script)?;
        if self.kind == Type::STREAM {
            other.listen(8)?;
            alerts.expect(Listen);
            connect_and_accept(alerts, &other, local)?;
        } else {
            self.open()?.send_to(b"x", &local.into())?;
            other.recv(&mut [std::mem::MaybeUninit::uninit(); 2])?;
            expect_nothing(&denied)?;
        }
        drop(other);
        alerts.expect(Close);
        Ok(())
    }

    /// Another socket on the port, which is not denied.
    fn bound(&self, script: &mut Script) -> Result<(ExpectedSocket, Socket), Stop> {
        let local = self.local()?;
        let socket = self.open()?;
        let alerts = script.socket(self.transport, local);
        socket
            .bind(&local.into())
            .map_err(|error| Stop::Failed(format!("the port is not free again: {error}")))?;
        alerts.expect(Bind);
        Ok((alerts, socket))
    }

    /// Denied on a port that the kernel chooses. Where it cannot take it back, the alert says so.
    fn denied_automatic(self, script: &mut Script) -> Result<(), Stop> {
        ephemeral_port(PORT)?;
        let local = self.local()?;
        let denied = self.open()?;
        let alerts = script.socket(self.transport, local);
        bind_denied(&denied, SocketAddr::new(local.ip(), 0))?;
        let probe = self.open()?;
        match probe.bind(&local.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                alerts.expect(Bind);
                drop(denied);
                alerts.expect(Close);
            }
            Err(error) => return Err(error.into()),
            Ok(()) => {
                alerts.expect(Deny);
                let alerts = script.socket(self.transport, local);
                alerts.expect(Bind);
                drop(probe);
                alerts.expect(Close);
            }
        }
        Ok(())
    }
}

fn expect_nothing(socket: &Socket) -> Result<(), Stop> {
    socket.set_nonblocking(true)?;
    match socket.recv(&mut [std::mem::MaybeUninit::uninit(); 2]) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        received => Err(Stop::Failed(format!("the denied socket: {received:?}"))),
    }
}

const fn tcp(ip: &'static str) -> Path {
    Path {
        transport: Transport::Tcp,
        kind: Type::STREAM,
        protocol: None,
        ip,
    }
}

const fn udp(ip: &'static str) -> Path {
    Path {
        transport: Transport::Udp,
        kind: Type::DGRAM,
        protocol: None,
        ip,
    }
}

const fn udplite(ip: &'static str) -> Path {
    Path {
        transport: Transport::UdpLite,
        kind: Type::DGRAM,
        protocol: Some(libc::IPPROTO_UDPLITE),
        ip,
    }
}

pub(super) fn tcp_ipv4(script: &mut Script) -> Result<(), Stop> {
    tcp("127.0.0.1").denied(script)
}

pub(super) fn tcp_ipv6(script: &mut Script) -> Result<(), Stop> {
    tcp("::1").denied(script)
}

pub(super) fn tcp_mapped(script: &mut Script) -> Result<(), Stop> {
    tcp("::ffff:127.0.0.1").denied(script)
}

pub(super) fn mptcp(script: &mut Script) -> Result<(), Stop> {
    let path = Path {
        protocol: Some(MPTCP),
        ..tcp("127.0.0.1")
    };
    path.denied(script)
}

pub(super) fn udp_ipv4(script: &mut Script) -> Result<(), Stop> {
    udp("127.0.0.1").denied(script)
}

pub(super) fn udp_ipv6(script: &mut Script) -> Result<(), Stop> {
    udp("::1").denied(script)
}

pub(super) fn udplite_ipv4(script: &mut Script) -> Result<(), Stop> {
    udplite("127.0.0.1").denied(script)
}

pub(super) fn udplite_ipv6(script: &mut Script) -> Result<(), Stop> {
    udplite("::1").denied(script)
}

pub(super) fn tcp_automatic(script: &mut Script) -> Result<(), Stop> {
    tcp("127.0.0.1").denied_automatic(script)
}

pub(super) fn udp_automatic(script: &mut Script) -> Result<(), Stop> {
    udp("127.0.0.1").denied_automatic(script)
}

pub(super) fn udplite_automatic(script: &mut Script) -> Result<(), Stop> {
    udplite("127.0.0.1").denied_automatic(script)
}

/// No hook of the kernel's sees the automatic port of connect(2) in time; the alert is `connect`.
pub(super) fn automatic_of_connect(script: &mut Script) -> Result<(), Stop> {
    let server = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let to = server.local_addr()?;
    ephemeral_port(PORT)?;
    let path = tcp("127.0.0.1");
    let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let alerts = script.socket(Transport::Tcp, path.local()?);
    as_denied(|| client.connect(&SockAddr::from(to)))??;
    alerts.expect_connect(to);
    script.wait()?;
    drop(client);
    alerts.expect_close_of_connection(Established);
    Ok(())
}
