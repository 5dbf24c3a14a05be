//! sock_diag(7) in the network namespace of the calling thread. The crates for it cannot ask for
//! ports: without that the kernel hands over every connection of the host.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::OnceLock,
};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, SockaddrIn, bind,
    getsockopt, recv, sendto, socket,
};

use super::{
    SocketEntry, State,
    wire::{Answer, HEADER, Header, of_both_families, of_one},
};
use crate::{linux::netns::NetnsCookie, model::Transport};

/// One socket, as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    transport: Transport,
    local: SocketAddr,
    state: State,
    cookie: u64,
    inode: u32,
    cgroup: Option<u64>,
}

impl Row {
    pub(super) fn held(self, netns: u64) -> SocketEntry {
        SocketEntry {
            transport: self.transport,
            local: self.local,
            state: self.state,
            cookie: Some(self.cookie),
            inode: self.inode.into(),
            netns,
            cgroup: self.cgroup,
            holders: Vec::new(),
        }
    }
}

/// `TCP_LISTEN` in include/net/tcp_states.h.
const LISTEN: u8 = 10;

/// What is in a network namespace.
#[derive(Default)]
pub(super) struct Dump {
    /// The namespace's cookie.
    pub(super) cookie: Option<u64>,
    pub(super) rows: Vec<Row>,
    /// Transports that this kernel has and does not show.
    pub(super) unshown: Vec<Transport>,
}

/// The sockets of `transports` on `ports` in the calling thread's network namespace.
pub(super) fn dump(ports: &RangeInclusive<u16>, transports: &[Transport]) -> io::Result<Dump> {
    let netlink = open()?;
    let mut dump = Dump {
        cookie: getsockopt(&netlink, NetnsCookie).ok(),
        ..Dump::default()
    };
    let rows = &mut dump.rows;
    for transport in transports.iter().copied() {
        // TCP's tables are the whole host's, and long: both families in one walk.
        if transport == Transport::Tcp {
            let before = rows.len();
            if read(&netlink, transport, &of_both_families(ports), rows).is_ok() {
                continue;
            }
            rows.truncate(before);
        }
        for family in [libc::AF_INET, libc::AF_INET6] {
            match read(&netlink, transport, &of_one(transport, family, ports), rows) {
                Ok(()) => {}
                Err(error) if transport == Transport::Tcp => return Err(error),
                Err(_) => dump.unshown.push(transport),
            }
        }
    }
    Ok(dump)
}

/// Adds the rows.
fn read(
    netlink: &OwnedFd,
    transport: Transport,
    request: &[u8],
    rows: &mut Vec<Row>,
) -> io::Result<()> {
    let before = rows.len();
    // In more than one piece, sockets can slip through between two of them.
    if ask(netlink, transport, request, rows)? > 2 {
        ask(netlink, transport, request, rows)?;
        let mut seen = HashSet::new();
        let mut index = 0;
        rows.retain(|row| {
            index += 1;
            index <= before || seen.insert(row.cookie)
        });
    }
    Ok(())
}

/// The transports of this kernel: asking for another would make it load a module.
pub(super) fn present() -> Vec<Transport> {
    let protocols = std::fs::read_to_string("/proc/thread-self/net/protocols").unwrap_or_default();
    let has = |name: &str| {
        protocols
            .lines()
            .any(|line| line.split_ascii_whitespace().next() == Some(name))
    };
    let mut transports = vec![Transport::Tcp, Transport::Udp];
    transports.extend(has("UDP-Lite").then_some(Transport::UdpLite));
    transports.extend(has("SCTP").then_some(Transport::Sctp));
    transports.extend(has("DCCP").then_some(Transport::Dccp));
    transports
}

fn open() -> io::Result<OwnedFd> {
    Ok(socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?)
}

/// Adds the rows; in how many pieces they came, the last of which is the end.
fn ask(
    netlink: &OwnedFd,
    transport: Transport,
    request: &[u8],
    rows: &mut Vec<Row>,
) -> io::Result<usize> {
    sendto(
        netlink.as_raw_fd(),
        request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut buffer = vec![0; 1 << 16];
    let mut pieces = 0;
    loop {
        let received = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..received).unwrap_or(&[]);
        pieces += 1;
        while let Some((header, behind)) = rest.split_at_checked(HEADER) {
            let Header { length, kind, .. } = bytemuck::pod_read_unaligned(header);
            let kind = i32::from(kind);
            if matches!(kind, libc::NLMSG_DONE | libc::NLMSG_ERROR) {
                let number = behind
                    .get(..4)
                    .map_or(0, bytemuck::pod_read_unaligned::<i32>);
                // The end says so too when it came early.
                if kind == libc::NLMSG_DONE && number >= 0 {
                    return Ok(pieces);
                }
                return Err(io::Error::from_raw_os_error(-number));
            }
            let length = (length as usize).max(HEADER);
            let message = behind.get(..length - HEADER).unwrap_or(behind);
            if let Some((answer, attributes)) = message.split_at_checked(size_of::<Answer>()) {
                let answer = bytemuck::pod_read_unaligned(answer);
                rows.extend(row(transport, &answer, cgroup(attributes)));
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
    }
}

/// The number of the socket's cgroup among a message's attributes (`struct nlattr`), from Linux 5.8.
fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    /// `INET_DIAG_CGROUP_ID` in include/uapi/linux/inet_diag.h.
    const CGROUP_ID: u16 = 21;
    loop {
        let length: u16 = bytemuck::pod_read_unaligned(attributes.get(..2)?);
        let kind: u16 = bytemuck::pod_read_unaligned(attributes.get(2..4)?);
        if kind == CGROUP_ID {
            return attributes.get(4..12).map(bytemuck::pod_read_unaligned);
        }
        attributes = attributes.get(usize::from(length.max(4)).next_multiple_of(4)..)?;
    }
}

/// None for what no process holds: a connection that waits to be accepted, or that was closed.
fn row(transport: Transport, answer: &Answer, cgroup: Option<u64>) -> Option<Row> {
    if answer.inode == 0 {
        return None;
    }
    let address = |bytes: [u8; 16], port: [u8; 2]| {
        let ip = if i32::from(answer.family) == libc::AF_INET {
            let [a, b, c, d, ..] = bytes;
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()
        };
        SocketAddr::new(ip, u16::from_be_bytes(port))
    };
    let remote = address(answer.id.remote, answer.id.remote_port);
    let [low, high] = answer.id.cookie;
    Some(Row {
        transport,
        local: address(answer.id.local, answer.id.local_port),
        state: match (answer.state, remote.port()) {
            (LISTEN, _) => State::Listening,
            (_, 0) => State::Bound,
            // Also one that is on its way out: `TCP_CLOSE`, and not unhashed yet.
            _ => State::Connected(remote),
        },
        cookie: u64::from(high) << 32 | u64::from(low),
        inode: answer.inode,
        cgroup,
    })
}

/// Whether the kernel shows TCP sockets that are bound and no more: asked once, with one of our own
/// on a port that nobody watches.
pub(super) fn shows_bound() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    /// The last of the dynamic ports (RFC 6335 section 6); one of them is free.
    const PORTS: RangeInclusive<u16> = 65_400..=65_535;
    let ask = || -> io::Result<bool> {
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
        let request = of_one(Transport::Tcp, libc::AF_INET, &(port..=port));
        ask(&open()?, Transport::Tcp, &request, &mut rows)?;
        Ok(rows.iter().any(|row| row.state == State::Bound))
    };
    *ANSWER.get_or_init(|| ask().unwrap_or(false))
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    #[test]
    fn a_state_says_what_a_socket_does_with_its_port() {
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
            let mut answer = Answer {
                family: libc::AF_INET as u8,
                state,
                inode: 1,
                ..Answer::zeroed()
            };
            if is_connected {
                answer.id.remote_port = 40_000_u16.to_be_bytes();
                answer.id.remote[..4].copy_from_slice(&[10, 0, 0, 9]);
            }
            let row = row(Transport::Tcp, &answer, None).unwrap();
            assert_eq!(row.state, expected, "{state}");
        }
    }

    #[test]
    fn both_families_at_once_are_the_two_after_each_other() {
        let listeners = ["127.0.0.1:0", "[::1]:0", "[::]:0"]
            .map(|address| std::net::TcpListener::bind(address).unwrap());
        let locals = listeners.each_ref().map(|one| one.local_addr().unwrap());
        let netlink = open().unwrap();
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
        let one = |family| of_one(Transport::Tcp, family, &ports);
        let both = found(&[of_both_families(&ports)]);
        assert_eq!(both.len(), locals.len());
        assert_eq!(both, found(&[one(libc::AF_INET), one(libc::AF_INET6)]));
    }
}
