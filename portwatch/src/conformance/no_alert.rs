//! Scenarios that bind no port, or no watched port: they must cause no alert.

#![forbid(unsafe_code)]

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as UnixAddr, UnixListener},
    },
};

use caps::{CapSet, Capability};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, VsockAddr, bind, socket};
use socket2::Type;

use super::{
    plain::{at, open, stream},
    script::{PORT, Script, Stop},
};
use crate::model::{
    EventKind::{Bind, Close, Listen},
    Transport,
};

fn must_fail<T>(result: std::io::Result<T>, errno: i32) -> Result<(), Stop> {
    match result {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) => Err(Stop::Failed("the call succeeded, but must fail".into())),
    }
}

/// The listener that has the address is reported; the bind that fails is not.
pub(super) fn address_in_use(script: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    let first = stream(local)?;
    let alerts = script.socket(Transport::Tcp, local);
    first.bind(&local.into())?;
    alerts.expect(Bind);
    first.listen(8)?;
    alerts.expect(Listen);
    must_fail(TcpListener::bind(local), libc::EADDRINUSE)?;
    drop(first);
    alerts.expect(Close);
    Ok(())
}

pub(super) fn permission_denied(_: &mut Script) -> Result<(), Stop> {
    let local = at("127.0.0.1")?;
    caps::drop(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE)?;
    let results = [
        TcpListener::bind(local).map(drop),
        UdpSocket::bind(local).map(drop),
    ];
    caps::raise(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE)?;
    results
        .into_iter()
        .try_for_each(|result| must_fail(result, libc::EACCES))
}

/// A raw socket's "port" is its protocol number; 136 is also an unassigned port.
pub(super) fn raw(_: &mut Script) -> Result<(), Stop> {
    let local = SocketAddr::from(([127, 0, 0, 1], PORT));
    for protocol in [libc::IPPROTO_ICMP, libc::IPPROTO_UDPLITE, 255] {
        let socket = open(local, Type::RAW, Some(protocol))?;
        socket.bind(&local.into())?;
    }
    Ok(())
}

/// A ping socket's "port" is its ICMP id.
pub(super) fn ping(_: &mut Script) -> Result<(), Stop> {
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    for local in [at("127.0.0.1")?, at("::1")?] {
        let protocol = if local.is_ipv4() {
            libc::IPPROTO_ICMP
        } else {
            libc::IPPROTO_ICMPV6
        };
        let socket = open(local, Type::DGRAM, Some(protocol))?;
        socket.bind(&local.into())?;
    }
    Ok(())
}

pub(super) fn unix(_: &mut Script) -> Result<(), Stop> {
    let name = UnixAddr::from_abstract_name(format!("portwatch:{PORT}"))?;
    drop(UnixListener::bind_addr(&name)?);
    Ok(())
}

pub(super) fn vsock(_: &mut Script) -> Result<(), Stop> {
    let vsock = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(|error| Stop::unavailable(format!("this kernel has no vsock: {error}")))?;
    bind(
        vsock.as_raw_fd(),
        &VsockAddr::new(libc::VMADDR_CID_ANY, u32::from(PORT)),
    )
    .map_err(|error| Stop::unavailable(format!("vsock has no transport: {error}")))
}

fn serve(local: &str) -> Result<(), Stop> {
    let listener = TcpListener::bind(local)?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    drop(listener.accept()?);
    drop(client);
    drop(listener);
    drop(UdpSocket::bind(local)?);
    Ok(())
}

pub(super) fn assigned(_: &mut Script) -> Result<(), Stop> {
    ["127.0.0.1:22", "127.0.0.1:53", "[::1]:443"]
        .into_iter()
        .try_for_each(serve)
}

pub(super) fn high(_: &mut Script) -> Result<(), Stop> {
    ["127.0.0.1:0", "127.0.0.1:1024", "[::1]:0", "[::1]:65535"]
        .into_iter()
        .try_for_each(serve)
}
