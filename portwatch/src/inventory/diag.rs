//! sock_diag(7) in one network namespace. The crates for it cannot filter by port: without a filter
//! the kernel sends every connection of the host.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::OnceLock,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockType, SockaddrIn, bind, getsockopt, recv,
    sendto, socket,
};

use rustix::net::netdevice::index_to_name;

#[cfg(feature = "testing")]
use super::connections::{Connection, Listeners};
use super::{
    SocketEntry, State,
    wire::{HEADER, Header, LISTEN, Message, both_families, bound_connections, one_family},
};
use crate::{
    linux::{
        address,
        netns::{NetnsCookie, sock_diag},
    },
    model::{PortKey, Printable, Transport},
};

/// One socket in a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    transport: Transport,
    local: SocketAddr,
    state: State,
    cookie: u64,
    inode: u32,
    cgroup: Option<u64>,
    /// The index of the device that it is bound to; 0 for none.
    interface: u32,
    /// Whether an IPv6 wildcard takes no IPv4.
    v6only: Option<bool>,
}

impl Row {
    /// The port of a TCP connection; None for any other socket.
    pub(super) fn connection(&self) -> Option<PortKey> {
        let is_connection =
            self.transport == Transport::Tcp && matches!(self.state, State::Connected(_));
        is_connection.then_some(PortKey {
            transport: self.transport,
            port: self.local.port(),
        })
    }

    /// `devices`: names by index.
    pub(super) fn entry(self, netns: u64, devices: &HashMap<u32, Printable>) -> SocketEntry {
        SocketEntry {
            transport: self.transport,
            local: self.local,
            state: self.state,
            cookie: Some(self.cookie),
            inode: self.inode.into(),
            netns,
            cgroup: self.cgroup,
            holders: Vec::new(),
            is_outgoing: false,
            holders_omitted: 0,
            is_known: false,
            device: devices.get(&self.interface).cloned(),
            v6only: self.v6only,
        }
    }
}

/// The sockets of one network namespace.
#[derive(Default)]
pub(super) struct Dump {
    /// The namespace's cookie, from Linux 5.14 on.
    pub(super) cookie: Option<u64>,
    pub(super) rows: Vec<Row>,
    /// Registered transports without a sock_diag handler.
    pub(super) unshown: Vec<Transport>,
    /// The names of the devices that sockets are bound to, by index.
    pub(super) devices: HashMap<u32, Printable>,
}

/// The sockets of `transports` on `ports` in the network namespace of `netlink`, a sock_diag socket.
pub(super) fn dump(
    netlink: &OwnedFd,
    ports: &RangeInclusive<u16>,
    transports: &[Transport],
) -> io::Result<Dump> {
    let mut dump = Dump {
        cookie: getsockopt(netlink, NetnsCookie).ok(),
        ..Dump::default()
    };
    let rows = &mut dump.rows;
    for transport in transports.iter().copied() {
        // TCP's hash tables span all namespaces and are long: read both families in one pass.
        if transport == Transport::Tcp {
            let before = rows.len();
            if read(netlink, transport, &both_families(ports), rows).is_ok() {
                continue;
            }
            rows.truncate(before);
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            match read(
                netlink,
                transport,
                &one_family(transport, family, ports),
                rows,
            ) {
                Ok(()) => {}
                Err(error) if transport == Transport::Tcp => return Err(error),
                Err(_) => dump.unshown.push(transport),
            }
        }
    }
    for row in &dump.rows {
        if row.interface != 0 && !dump.devices.contains_key(&row.interface) {
            let name = device_name(netlink, row.interface);
            dump.devices.insert(row.interface, name);
        }
    }
    Ok(dump)
}

/// The name of the device with that index in the namespace of `netlink`.
pub(super) fn device_name(netlink: &OwnedFd, index: u32) -> Printable {
    // A device can be gone, its socket bound to it all the same.
    let name = index_to_name(netlink, index).unwrap_or_else(|_| format!("if{index}"));
    Printable::from(name.as_str())
}

/// Adds the sockets that `request` selects to `rows`, each once.
fn read(
    netlink: &OwnedFd,
    transport: Transport,
    request: &[u8],
    rows: &mut Vec<Row>,
) -> io::Result<()> {
    let before = rows.len();
    // Between two packets of one dump a socket can move within the table and be skipped, so that a
    // long dump is repeated.
    let mut add = |message: &Message, attributes: &[u8]| {
        rows.extend(row(transport, message, attributes));
    };
    if query(netlink, request, &mut add)? > 2 {
        query(netlink, request, &mut add)?;
        let mut seen = HashSet::new();
        let mut index = 0;
        rows.retain(|row| {
            index += 1;
            index <= before || seen.insert(row.cookie)
        });
    }
    Ok(())
}

/// The cookies of the TCP connections on `ports` that are known to be outgoing, in the namespace of
/// `netlink`.
pub(super) fn outgoing(netlink: &OwnedFd, ports: &RangeInclusive<u16>) -> io::Result<HashSet<u64>> {
    let mut rows = Vec::new();
    read(
        netlink,
        Transport::Tcp,
        &bound_connections(ports),
        &mut rows,
    )?;
    Ok(rows.into_iter().map(|row| row.cookie).collect())
}

/// Takes the sockets of one dump, each with its attributes.
type Take<'a> = &'a mut dyn FnMut(&Message, &[u8]);

/// Gives the sockets of one dump to `take` and returns the number of packets, `NLMSG_DONE` included.
pub(super) fn query(netlink: &OwnedFd, request: &[u8], take: Take<'_>) -> io::Result<usize> {
    sendto(
        netlink.as_raw_fd(),
        request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; 1 << 16];
    let mut packets = 0;
    loop {
        let received = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        packets += 1;
        if parse(buffer.get(..received).unwrap_or(&[]), take)? {
            return Ok(packets);
        }
    }
}

/// Gives the sockets of one packet to `take`; whether it was the dump's last one.
fn parse(packet: &[u8], take: Take<'_>) -> io::Result<bool> {
    let mut rest = packet;
    while let Some((header, payload)) = rest.split_at_checked(HEADER) {
        let Header { length, kind, .. } = bytemuck::pod_read_unaligned(header);
        let kind = i32::from(kind);
        if matches!(kind, libc::NLMSG_DONE | libc::NLMSG_ERROR) {
            let number = payload
                .get(..4)
                .map_or(0, bytemuck::pod_read_unaligned::<i32>);
            // `NLMSG_DONE` carries an error when the dump was cut short.
            if kind == libc::NLMSG_DONE && number >= 0 {
                return Ok(true);
            }
            return Err(io::Error::from_raw_os_error(number.saturating_neg()));
        }
        let length = (length as usize).max(HEADER);
        let message = payload.get(..length - HEADER).unwrap_or(payload);
        if let Some((message, attributes)) = message.split_at_checked(size_of::<Message>()) {
            take(&bytemuck::pod_read_unaligned(message), attributes);
        }
        // `NLMSG_ALIGN` in include/uapi/linux/netlink.h.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Ok(false)
}

/// What a packet of sock_diag holds: for the fuzz targets.
#[cfg(feature = "testing")]
pub fn parse_packet(packet: &[u8]) -> io::Result<Vec<SocketEntry>> {
    let mut rows = Vec::new();
    parse(packet, &mut |message, attributes| {
        rows.extend(row(Transport::Tcp, message, attributes));
        // With whatever attributes: no packet may end the program.
        let _ = Connection::decode(message, attributes, 0, false, &Listeners::default());
        let _ = listener(message, attributes);
    })?;
    Ok(rows
        .into_iter()
        .map(|row| row.entry(0, &HashMap::new()))
        .collect())
}

/// The value of one of the attributes (`struct nlattr`) of a message.
pub(super) fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length: u16 = bytemuck::pod_read_unaligned(attributes.get(..2)?);
        let kind: u16 = bytemuck::pod_read_unaligned(attributes.get(2..4)?);
        if kind == wanted {
            return attributes.get(4..);
        }
        attributes = attributes.get(usize::from(length.max(4)).next_multiple_of(4)..)?;
    }
}

/// The address of a TCP listener, and whether an IPv6 one takes no IPv4.
pub(super) fn listener(message: &Message, attributes: &[u8]) -> Option<(SocketAddr, bool)> {
    let ip = address::ip(message.family, message.id.local)?;
    let local = SocketAddr::new(ip, u16::from_be_bytes(message.id.local_port));
    let v6only = attribute(attributes, V6ONLY).and_then(|value| value.first());
    Some((local, v6only.is_some_and(|value| *value != 0)))
}

/// `INET_DIAG_SKV6ONLY` in include/uapi/linux/inet_diag.h, of sockets that listen or are only bound.
const V6ONLY: u16 = 11;

/// None for a socket without inode, which no process has open: a connection that waits for
/// accept(2), or that was closed.
fn row(transport: Transport, message: &Message, attributes: &[u8]) -> Option<Row> {
    /// `INET_DIAG_CGROUP_ID` in include/uapi/linux/inet_diag.h, from Linux 5.8.
    const CGROUP_ID: u16 = 21;
    if message.inode == 0 {
        return None;
    }
    let address = |bytes: [u8; 16], port: [u8; 2]| {
        let ip = address::ip(message.family, bytes)?;
        Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
    };
    let remote = address(message.id.remote, message.id.remote_port)?;
    let [low, high] = message.id.cookie;
    let local = address(message.id.local, message.id.local_port)?;
    let is_v6_wildcard = message.family == libc::AF_INET6 as u8 && message.id.local == [0; 16];
    let v6only = attribute(attributes, V6ONLY).and_then(|value| value.first());
    let cgroup = attribute(attributes, CGROUP_ID).and_then(|value| value.get(..8));
    Some(Row {
        transport,
        local,
        state: match (message.state, remote.port()) {
            (LISTEN, _) => State::Listening,
            (_, 0) => State::Bound,
            // Also a connection in `TCP_CLOSE` that is not unhashed yet.
            _ => State::Connected(remote),
        },
        cookie: u64::from(high) << 32 | u64::from(low),
        inode: message.inode,
        cgroup: cgroup.map(bytemuck::pod_read_unaligned),
        interface: message.id.interface,
        v6only: v6only.filter(|_| is_v6_wildcard).map(|value| *value != 0),
    })
}

/// Whether sock_diag reports TCP sockets that are bound, neither listening nor connected (Linux 6.8).
/// Tested once per process, with a socket on a dynamic port.
pub(super) fn shows_bound() -> bool {
    static RESULT: OnceLock<bool> = OnceLock::new();
    /// The end of the dynamic ports (RFC 6335 section 6); any free one will do.
    const PORTS: RangeInclusive<u16> = 65_400..=65_535;
    let probe = || -> io::Result<bool> {
        let bound = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let is_bound =
            |port: &u16| bind(bound.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, *port)).is_ok();
        let Some(port) = PORTS.into_iter().find(is_bound) else {
            return Ok(false);
        };
        let mut rows = Vec::new();
        let request = one_family(Transport::Tcp, libc::AF_INET, &(port..=port));
        query(&sock_diag()?, &request, &mut |message, attributes| {
            rows.extend(row(Transport::Tcp, message, attributes));
        })?;
        Ok(rows.iter().any(|row| row.state == State::Bound))
    };
    *RESULT.get_or_init(|| probe().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn states_of_the_kernel_are_decoded() {
        const ESTABLISHED: u8 = 1;
        const CLOSE: u8 = 7;
        const BOUND_INACTIVE: u8 = 13;
        let peer = State::Connected("10.0.0.9:40000".parse().unwrap());
        for (state, is_connected, expected) in [
            (LISTEN, false, State::Listening),
            (BOUND_INACTIVE, false, State::Bound),
            (CLOSE, false, State::Bound),
            (ESTABLISHED, true, peer),
            (CLOSE, true, peer),
        ] {
            let mut message = Message {
                family: libc::AF_INET as u8,
                state,
                inode: 1,
                ..Message::zeroed()
            };
            if is_connected {
                message.id.remote_port = 40_000_u16.to_be_bytes();
                message.id.remote[..4].copy_from_slice(&[10, 0, 0, 9]);
            }
            let row = row(Transport::Tcp, &message, &[]).unwrap();
            assert_eq!(row.state, expected, "{state}");
        }
    }

    #[test]
    fn one_request_for_both_families_equals_one_for_each() {
        let listeners = ["127.0.0.1:0", "[::1]:0", "[::]:0"]
            .map(|address| std::net::TcpListener::bind(address).unwrap());
        let locals = listeners.each_ref().map(|one| one.local_addr().unwrap());
        let netlink = sock_diag().unwrap();
        let found = |requests: &[Vec<u8>]| {
            let mut rows = Vec::new();
            for request in requests {
                read(&netlink, Transport::Tcp, request, &mut rows).unwrap();
            }
            rows.retain(|row| locals.contains(&row.local));
            rows.sort_by_key(|row| row.cookie);
            rows
        };
        let ports = 1024..=u16::MAX;
        let one = |family| one_family(Transport::Tcp, family, &ports);
        let both = found(&[both_families(&ports)]);
        assert_eq!(both.len(), locals.len());
        assert_eq!(both, found(&[one(libc::AF_INET), one(libc::AF_INET6)]));
    }
}
