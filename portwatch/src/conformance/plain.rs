//! Scenarios with ordinary socket calls.

#![forbid(unsafe_code)]

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

use super::script::{ExpectedSocket, PORT, Script, Stop};
use crate::model::{
    ConnectOutcome,
    EventKind::{Bind, Close, Listen},
    Transport,
};

/// How long a step may take that an idle machine does at once, in milliseconds.
const TIMEOUT_MS: u16 = 5000;

/// `IPPROTO_MPTCP` (include/uapi/linux/in.h, Linux 5.6).
pub(super) const MPTCP: i32 = 262;

pub(super) fn at(ip: &str) -> Result<SocketAddr, Stop> {
    Ok(SocketAddr::new(ip.parse()?, PORT))
}

/// Opens a socket; [`Stop::Unavailable`] if the kernel does not know its type or protocol.
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

/// Connects to the listener and accepts the connection.
pub(super) fn connect_and_accept(
    alerts: ExpectedSocket,
    listener: &Socket,
    to: SocketAddr,
) -> Result<(), Stop> {
    let client = TcpStream::connect(to)?;
    alerts.expect_accept(to.ip(), client.local_addr()?);
    drop(listener.accept()?);
    Ok(())
}

pub(super) fn listener(
    script: &mut Script,
    socket: &Socket,
    local: SocketAddr,
) -> Result<ExpectedSocket, Stop> {
    let alerts = script.socket(Transport::Tcp, local);
    bind_again(socket, local)?;
    alerts.expect(Bind);
    socket.listen(8)?;
    alerts.expect(Listen);
    Ok(alerts)
}

/// Binds a port that was closed a moment ago. Repeats on EADDRINUSE: a process that is reading
/// /proc/PID/fd holds a reference to the closed socket for a moment.
fn bind_again(socket: &Socket, local: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + Duration::from_millis(TIMEOUT_MS.into());
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
    let alerts = listener(script, &socket, local)?;
    connect_and_accept(alerts, &socket, at(to)?)?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// The device is in the socket's own network namespace.
pub(super) fn bound_to_device(script: &mut Script) -> Result<(), Stop> {
    const DEVICE: &str = "lo";
    needs_type_information()?;
    let local = at("0.0.0.0")?;
    let socket = stream(local)?;
    setsockopt(&socket, sockopt::BindToDevice, &DEVICE.into())?;
    let alerts = script.socket(Transport::Tcp, local).on_device(DEVICE);
    bind_again(&socket, local)?;
    alerts.expect(Bind);
    socket.listen(8)?;
    alerts.expect(Listen);
    connect_and_accept(alerts, &socket, at("127.0.0.1")?)?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// The BPF programs read some members of sockets where the kernel shows its types.
pub(super) fn needs_type_information() -> Result<(), Stop> {
    let file = "/sys/kernel/btf/vmlinux";
    fs::metadata(file)
        .map(drop)
        .map_err(|error| Stop::unavailable(format!("{file}: {error}")))
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
    let alerts = script.socket(transport, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    drop(socket);
    alerts.expect(Close);
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

/// SCTP has no bind hook: the tracepoint reports it from listen on, without a cookie.
pub(super) fn sctp(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = open(local, Type::STREAM, Some(libc::IPPROTO_SCTP))?;
    let alerts = script.socket(Transport::Sctp, local).without_address();
    socket.bind(&local.into())?;
    socket.listen(8)?;
    alerts.expect(Listen);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn local_address(socket: &Socket) -> Result<SocketAddr, Stop> {
    socket
        .local_addr()?
        .as_socket()
        .ok_or_else(|| Stop::Failed("no IP address".into()))
}

/// listen(2) on an unbound socket, with 976 as the only ephemeral port.
pub(super) fn listen_without_bind(script: &mut Script) -> Result<(), Stop> {
    ephemeral_port(PORT)?;
    let local = at("0.0.0.0")?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.listen(8)?;
    alerts.expect(Listen);
    // On kernels that do not report the listening process, the monitor finds the holder in /proc.
    script.wait()?;
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// Makes that one the only ephemeral port of this namespace.
pub(super) fn ephemeral_port(port: u16) -> io::Result<()> {
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    fs::write(
        "/proc/sys/net/ipv4/ip_local_port_range",
        format!("{port} {port}"),
    )
}

/// The option delays the choice of an ephemeral port to connect(2); an explicit port is bound by
/// bind(2) all the same.
pub(super) fn bind_address_no_port(script: &mut Script) -> Result<(), Stop> {
    let server = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let local = at("127.0.0.1")?;
    let open = || -> Result<Socket, Stop> {
        let socket = stream(local)?;
        setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
        Ok(socket)
    };

    let explicit = open()?;
    let alerts = script.socket(Transport::Tcp, local);
    explicit.bind(&local.into())?;
    alerts.expect(Bind);
    drop(explicit);
    alerts.expect(Close);

    ephemeral_port(PORT)?;
    let ephemeral = open()?;
    let alerts = script.socket(Transport::Tcp, local);
    ephemeral.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0))))?;
    ephemeral.connect(&server.local_addr()?.into())?;
    alerts.expect_connect(server.local_addr()?);
    script.wait()?;
    drop(ephemeral);
    alerts.expect_close_of_connection(ConnectOutcome::Established);
    Ok(())
}

pub(super) fn reuse_port(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let sockets = [stream(local)?, stream(local)?];
    let mut expected = Vec::new();
    for socket in &sockets {
        socket.set_reuse_port(true)?;
        expected.push(listener(script, socket, local)?);
    }
    // The kernel distributes clients over the sockets: each accept must name the right listener.
    for _ in 0..8 {
        let client = TcpStream::connect(local)?;
        let mut ready = sockets
            .each_ref()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        // connect(2) can return before the listener has the connection.
        poll(&mut ready, PollTimeout::from(TIMEOUT_MS))?;
        let Some(reached) = ready.iter().position(|one| one.any() == Some(true)) else {
            return Err(Stop::Failed("no socket accepted".into()));
        };
        drop(sockets[reached].accept()?);
        expected[reached].expect_accept(local.ip(), client.local_addr()?);
    }
    for (socket, alerts) in sockets.into_iter().zip(expected) {
        drop(socket);
        alerts.expect(Close);
    }
    Ok(())
}

/// The first listener leaves a connection in TIME_WAIT.
pub(super) fn reuse_address(script: &mut Script) -> Result<(), Stop> {
    tcp(script, "127.0.0.1", "127.0.0.1")?;
    tcp(script, "127.0.0.1", "127.0.0.1")
}

pub(super) fn rebind(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    for _ in 0..20 {
        let socket = stream(local)?;
        let alerts = listener(script, &socket, local)?;
        drop(socket);
        alerts.expect(Close);
    }
    Ok(())
}

pub(super) fn bound_and_unused(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    socket.bind(&local.into())?;
    alerts.expect(Bind);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}

/// shutdown(2) ends the listening; the socket keeps the port.
pub(super) fn shut_down_and_again(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let socket = stream(local)?;
    let alerts = listener(script, &socket, local)?;
    socket.shutdown(std::net::Shutdown::Read)?;
    alerts.expect(Close);
    socket.listen(8)?;
    alerts.expect(Listen);
    drop(socket);
    alerts.expect(Close);
    Ok(())
}
