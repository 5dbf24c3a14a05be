//! Paths through the socket calls that every program makes.

use std::{
    fs, io,
    net::{SocketAddr, TcpStream},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::script::{Actor, PORT, Script, Stop};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// Milliseconds that what an idle machine does at once may take.
const PATIENCE: u16 = 5000;

/// `IPPROTO_MPTCP`.
const MPTCP: i32 = 262;

pub(super) fn at(ip: &str) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(ip.parse()?, PORT))
}

/// A socket of that kind; unavailable when the kernel does not know it.
pub(super) fn open(local: SocketAddr, kind: Type, protocol: Option<i32>) -> Result<Socket, Stop> {
    let protocol = protocol.map(Protocol::from);
    Socket::new(Domain::for_address(local), kind, protocol).map_err(|error| {
        match error.raw_os_error() {
            Some(
                libc::EPROTONOSUPPORT
                | libc::ESOCKTNOSUPPORT
                | libc::EAFNOSUPPORT
                | libc::ENOPROTOOPT,
            ) => Stop::unavailable(format!("this kernel has no such socket: {error}")),
            _ => error.into(),
        }
    })
}

pub(super) fn stream(local: SocketAddr) -> Result<Socket, Stop> {
    let socket = open(local, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// Connects to the listener from a client socket, and accepts.
pub(super) fn reach(actor: Actor, listener: &Socket, to: SocketAddr) -> Result<(), Stop> {
    let client = TcpStream::connect(to)?;
    actor.expect_accept(to.ip(), client.local_addr()?);
    drop(listener.accept()?);
    Ok(())
}

fn listener(script: &mut Script, socket: &Socket, local: SocketAddr) -> Result<Actor, Stop> {
    let actor = script.socket(Transport::Tcp, local);
    take(socket, local)?;
    actor.expect(Bind);
    socket.listen(8)?;
    actor.expect(Listen);
    Ok(actor)
}

/// Binds what may have been closed a moment ago: whoever reads /proc/PID/fd just then keeps it in use for a
/// little longer.
fn take(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + Duration::from_millis(PATIENCE.into());
    loop {
        match socket.bind(&local.into()) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                thread::sleep(Duration::from_millis(1));
            }
            bound => return bound,
        }
    }
}

fn tcp(script: &mut Script, local: &str, to: &str) -> Result<(), Stop> {
    let local = at(local)?;
    let socket = stream(local)?;
    if local.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    let actor = listener(script, &socket, local)?;
    reach(actor, &socket, at(to)?)?;
    drop(socket);
    actor.expect(Close);
    Ok(())
}

pub(super) fn tcp_ipv4(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "127.0.0.1", "127.0.0.1")
}

pub(super) fn tcp_ipv4_wildcard(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "0.0.0.0", "127.0.0.1")
}

pub(super) fn tcp_ipv6(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "::1", "::1")
}

pub(super) fn tcp_ipv6_wildcard(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "::", "::1")
}

pub(super) fn tcp_dual_stack(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "::", "127.0.0.1")
}

fn datagram(
    script: &mut Script,
    transport: Transport,
    protocol: Option<i32>,
    local: &str,
) -> Result<(), Stop> {
    let local = at(local)?;
    let socket = open(local, Type::DGRAM, protocol)?;
    let actor = script.socket(transport, local);
    socket.bind(&local.into())?;
    actor.expect(Bind);
    drop(socket);
    actor.expect(Close);
    Ok(())
}

pub(super) fn udp_ipv4(script: &mut Script) -> Result<(), Stop> {
    datagram(script, Transport::Udp, None, "127.0.0.1")
}

pub(super) fn udp_ipv4_wildcard(script: &mut Script) -> Result<(), Stop> {
    datagram(script, Transport::Udp, None, "0.0.0.0")
}

pub(super) fn udp_ipv6(script: &mut Script) -> Result<(), Stop> {
    datagram(script, Transport::Udp, None, "::1")
}

pub(super) fn udp_ipv6_wildcard(script: &mut Script) -> Result<(), Stop> {
    datagram(script, Transport::Udp, None, "::")
}

pub(super) fn udplite_ipv4(script: &mut Script) -> Result<(), Stop> {
    datagram(
        script,
        Transport::UdpLite,
        Some(libc::IPPROTO_UDPLITE),
        "127.0.0.1",
    )
}

pub(super) fn udplite_ipv6(script: &mut Script) -> Result<(), Stop> {
    datagram(
        script,
        Transport::UdpLite,
        Some(libc::IPPROTO_UDPLITE),
        "::1",
    )
}

fn mptcp_listener(script: &mut Script, client: Option<i32>) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = open(local, Type::STREAM, Some(MPTCP))?;
    let actor = listener(script, &socket, local)?;
    let client = open(local, Type::STREAM, client)?;
    client.connect(&local.into())?;
    actor.expect_accept(local.ip(), address_of(&client)?);
    drop(socket.accept()?);
    drop(client);
    drop(socket);
    actor.expect(Close);
    Ok(())
}

pub(super) fn mptcp(script: &mut Script) -> Result<(), Stop> {
    mptcp_listener(script, Some(MPTCP))
}

pub(super) fn mptcp_fallback(script: &mut Script) -> Result<(), Stop> {
    mptcp_listener(script, None)
}

/// SCTP has no bind hook: the tracepoint tells it from listen on, without a cookie.
pub(super) fn sctp(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = open(local, Type::STREAM, Some(libc::IPPROTO_SCTP))?;
    let actor = script.socket(Transport::Sctp, local).without_address();
    socket.bind(&local.into())?;
    socket.listen(8)?;
    actor.expect(Listen);
    drop(socket);
    actor.expect(Close);
    Ok(())
}

fn address_of(socket: &Socket) -> Result<SocketAddr, Stop> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| Stop::Failed("no IP address".into()))
}

/// listen(2) on an unbound socket, with the automatic ports lowered to 976.
pub(super) fn listen_without_bind(script: &mut Script) -> Result<(), Stop> {
    lower_automatic_ports()?;
    let local = at("0.0.0.0")?;
    let socket = stream(local)?;
    let actor = script.socket(Transport::Tcp, local);
    socket.listen(8)?;
    actor.expect(Listen);
    // Older kernels hide who listened: then the monitor looks for who holds it.
    script.wait()?;
    drop(socket);
    actor.expect(Close);
    Ok(())
}

/// In this namespace the kernel itself gives 976 and nothing else.
fn lower_automatic_ports() -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    fs::write(
        "/proc/sys/net/ipv4/ip_local_port_range",
        format!("{PORT} {PORT}"),
    )
}

/// The option only delays an automatic port: a port that is named is taken by bind(2) all the
/// same; an automatic one by connect(2).
pub(super) fn bind_address_no_port(script: &mut Script) -> Result<(), Stop> {
    let server = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let local = at("127.0.0.1")?;
    let open = || -> Result<Socket, Stop> {
        let socket = stream(local)?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        Ok(socket)
    };

    let named = open()?;
    let actor = script.socket(Transport::Tcp, local);
    named.bind(&local.into())?;
    actor.expect(Bind);
    drop(named);
    actor.expect(Close);

    lower_automatic_ports()?;
    let automatic = open()?;
    let actor = script.socket(Transport::Tcp, local);
    automatic.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0))))?;
    automatic.connect(&server.local_addr()?.into())?;
    actor.expect_connect(server.local_addr()?);
    script.wait()?;
    drop(automatic);
    actor.expect(Close);
    Ok(())
}

pub(super) fn reuse_port(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let sockets = [stream(local)?, stream(local)?];
    let mut actors = Vec::new();
    for socket in &sockets {
        socket.set_reuse_port(true)?;
        actors.push(listener(script, socket, local)?);
    }
    // The kernel spreads clients over the sockets: each accept must name the one that it reached.
    for _ in 0..8 {
        let client = TcpStream::connect(local)?;
        let mut ready = sockets
            .each_ref()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        // connect(2) can return before the listener has the connection.
        poll(&mut ready, PollTimeout::from(PATIENCE))?;
        let Some(reached) = ready.iter().position(|one| one.any() == Some(true)) else {
            return Err(Stop::Failed("no socket accepted".into()));
        };
        drop(sockets[reached].accept()?);
        actors[reached].expect_accept(local.ip(), client.local_addr()?);
    }
    for (socket, actor) in sockets.into_iter().zip(actors) {
        drop(socket);
        actor.expect(Close);
    }
    Ok(())
}

/// The first listener leaves a connection in TIME_WAIT behind.
pub(super) fn reuse_address(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "127.0.0.1", "127.0.0.1")?;
    tcp(script, "127.0.0.1", "127.0.0.1")
}

pub(super) fn rebind(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    for _ in 0..20 {
        let socket = stream(local)?;
        let actor = listener(script, &socket, local)?;
        drop(socket);
        actor.expect(Close);
    }
    Ok(())
}

pub(super) fn bound_and_unused(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let actor = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    actor.expect(Bind);
    drop(socket);
    actor.expect(Close);
    Ok(())
}

pub(super) fn bound_and_connected(script: &mut Script) -> Result<(), Stop> {
    let server = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let actor = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    actor.expect(Bind);
    socket.connect(&server.local_addr()?.into())?;
    actor.expect_connect(server.local_addr()?);
    drop(socket);
    actor.expect(Close);
    Ok(())
}

/// shutdown(2) ends the listening and keeps the port.
pub(super) fn shut_down_and_again(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let actor = listener(script, &socket, local)?;
    socket.shutdown(std::net::Shutdown::Read)?;
    actor.expect(Close);
    socket.listen(8)?;
    actor.expect(Listen);
    drop(socket);
    actor.expect(Close);
    Ok(())
}
