//! The existing sockets, read from the kernel: by sock_diag(7) in every network namespace, or from
//! `/proc/PID/net` where sock_diag is not available; and the processes that have them open.
#![forbid(unsafe_code)]

pub mod connections;
mod diag;
mod holders;
mod namespaces;
pub mod peers;
pub mod redirects;
mod scan;
mod tables;
mod targets;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

pub use self::holders::{Holder, duplicate, is_held_by};
use self::namespaces::Namespace;
#[cfg(feature = "testing")]
pub use self::{diag::parse_packet, tables::parse_lines};
pub use self::{
    scan::{Coverage, FoundSocket, MAX_HOLDERS, Scan, Scope},
    targets::{LeftOut, Reach, Targets},
};
use crate::{
    linux::protocols,
    model::{PortKey, Printable, Transport},
    util::parallel,
};

/// The state of a socket on its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A TCP listener.
    Listening,
    /// Bound, neither listening nor connected; a datagram socket receives in this state.
    Bound,
    /// Connected with this remote address, or connecting to it.
    Connected(SocketAddr),
}

/// An existing socket on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEntry {
    /// The transport.
    pub transport: Transport,
    /// The local address; an IPv4-mapped one is given as IPv4.
    pub local: SocketAddr,
    /// The state.
    pub state: State,
    /// The socket cookie; None where only `/proc/PID/net` could be read.
    pub cookie: Option<u64>,
    /// The inode in the socket file system.
    pub inode: u64,
    /// Inode of the network namespace.
    pub netns: u64,
    /// Id of the v2 cgroup in which it was created, where sock_diag reports it (Linux 5.8).
    pub cgroup: Option<u64>,
    /// The processes that have it open and that this user may see; empty for a kernel socket.
    pub holders: Vec<Holder>,
    /// Whether it is a connection that is known not to be accepted from a listener. An outgoing one
    /// without a bind (a lowered `ip_local_port_range`) is not known.
    pub is_outgoing: bool,
    /// How many more were found.
    pub holders_omitted: u32,
    /// Whether its holders were known, and not looked for.
    pub is_known: bool,
    /// The device that it is bound to, by its name in the socket's network namespace; `if7` where that
    /// device is gone. None without one, and where sock_diag cannot be asked.
    pub device: Option<Printable>,
    /// Of an IPv6 wildcard: whether it takes no IPv4. None for others, and where it is unknown.
    pub v6only: Option<bool>,
}

/// The existing sockets of this host and what limits the list.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// Sorted by namespace, transport and address.
    pub sockets: Vec<SocketEntry>,
    /// Inode and cookie of each network namespace that was entered; no cookie before Linux 5.14.
    pub namespaces: Vec<(u64, Option<u64>)>,
    /// Inodes of the network namespaces whose sockets were read.
    pub read: HashSet<u64>,
    /// Namespaces that could not be read, by inode.
    pub unread: Vec<u64>,
    /// Registered transports for which this kernel has no sock_diag handler.
    pub unshown: Vec<Transport>,
    /// Whether TCP sockets that are bound, neither listening nor connected, are included (sock_diag
    /// from Linux 6.8 on).
    pub shows_bound: bool,
    /// The cookies of the sockets that were left out.
    left_out: HashSet<u64>,
}

impl Inventory {
    /// Drops what the scan is not to show, before anybody looks for its holders.
    fn leave_out(&mut self, left_out: &LeftOut) {
        if left_out.is_empty() {
            return;
        }
        let found = &mut self.left_out;
        self.sockets.retain(|entry| {
            let counted = entry
                .cookie
                .filter(|one| left_out.cookies.contains_key(one));
            found.extend(counted);
            let port_key = PortKey {
                transport: entry.transport,
                port: entry.local.port(),
            };
            counted.is_none() && !left_out.is_surplus(entry.cookie, entry.netns, port_key)
        });
    }
}

/// Reads the sockets on `ports` in every network namespace that a process, a mount or a descriptor
/// references, and their holders, with `threads` threads. Without privileges the result is limited
/// to what this user may see. Blocks for a walk through /proc.
///
/// # Errors
///
/// When /proc cannot be read. Processes and namespaces that end
/// meanwhile are skipped.
///
/// The direction of connections is found out on all ports.
pub fn read(ports: RangeInclusive<u16>, threads: usize) -> io::Result<Inventory> {
    read_within(ports, &Reach::All, None, threads)
}

/// As [`read`], as far as `reach` says; the direction of connections on the ports of `scope`.
fn read_within(
    ports: RangeInclusive<u16>,
    reach: &Reach,
    scope: Option<&Scope>,
    threads: usize,
) -> io::Result<Inventory> {
    let mut inventory = Inventory {
        shows_bound: diag::shows_bound(),
        ..Inventory::default()
    };
    let transports = protocols::registered();
    let mut seen: HashSet<u64> = HashSet::new();
    let places = match reach {
        Reach::Holders(targets) => targets.places.as_ref().map(|places| (places, targets)),
        _ => None,
    };
    let (ports, found) = match places {
        Some(((inodes, ports), targets)) => {
            (ports, namespaces::find_only(inodes, &targets.processes)?)
        }
        None => (&ports, namespaces::find()?),
    };
    let mut unseen = found.without(&seen);
    // The second pass is for namespaces that only descriptors reference.
    while !unseen.is_empty() {
        let read = parallel::map(threads, unseen.iter().collect(), |namespace| {
            read_namespace(ports, scope, &transports, namespace)
        });
        for (inode, outcome) in unseen.iter().map(|one| one.inode).zip(read) {
            seen.insert(inode);
            match outcome {
                Read::Diag(dump, outgoing) => {
                    inventory.read.insert(inode);
                    inventory.namespaces.push((inode, dump.cookie));
                    inventory.unshown.extend(dump.unshown);
                    let entries = dump.rows.into_iter();
                    let entries = entries.map(|row| row.entry(inode, &dump.devices));
                    inventory.sockets.extend(entries.map(|mut entry| {
                        let cookie = entry.cookie;
                        entry.is_outgoing = cookie.is_some_and(|one| outgoing.contains(&one));
                        entry
                    }));
                }
                Read::Tables(sockets) => {
                    inventory.read.insert(inode);
                    inventory.shows_bound = false;
                    inventory.sockets.extend(sockets);
                }
                Read::Denied => inventory.unread.push(inode),
                Read::Gone => {}
            }
        }
        drop_accepted(&mut inventory.sockets, scope.map(|scope| &scope.accepted));
        if let Some(scope) = scope {
            inventory.leave_out(&scope.left_out);
        }
        if let Reach::Holders(targets) = reach {
            let pending = |cookie: u64| targets.pending.contains(&cookie);
            let sockets = &mut inventory.sockets;
            sockets.retain(|entry| entry.cookie.is_some_and(pending));
        }
        let of_descriptors = holders::find(&mut inventory.sockets, reach, &seen, threads)?;
        unseen = match places {
            Some(_) => Vec::new(),
            None => of_descriptors.without(&seen),
        };
    }
    if matches!(reach, Reach::Holders(_)) {
        // Of other sockets it shows nothing.
        inventory.read.clear();
    }
    inventory.sockets.sort_by_key(|entry| {
        (
            entry.netns,
            entry.transport,
            entry.local,
            entry.state,
            entry.inode,
        )
    });
    Ok(inventory)
}

/// The outcome of reading one namespace.
enum Read {
    /// And the cookies of the connections that are known to be outgoing.
    Diag(diag::Dump, HashSet<u64>),
    /// Without the privilege to enter, or on a kernel without sock_diag.
    Tables(Vec<SocketEntry>),
    Denied,
    /// No path refers to the namespace any more.
    Gone,
}

fn read_namespace(
    ports: &RangeInclusive<u16>,
    scope: Option<&Scope>,
    transports: &[Transport],
    namespace: &Namespace,
) -> Read {
    let dump = match namespace.sock_diag() {
        Ok(None) => return Read::Gone,
        Ok(Some(netlink)) => diag::dump(&netlink, ports, transports).map(|dump| (netlink, dump)),
        Err(error) => Err(error),
    };
    match dump {
        Ok((netlink, dump)) => {
            // One more pass over TCP's tables, for few.
            let is_in_scope = |port_key| scope.is_none_or(|scope| scope.watches(port_key));
            let is_connected = dump
                .rows
                .iter()
                .any(|row| row.connection().is_some_and(is_in_scope));
            let outgoing =
                is_connected.then(|| diag::outgoing(&netlink, ports).unwrap_or_default());
            Read::Diag(dump, outgoing.unwrap_or_default())
        }
        Err(_) => namespace
            .by_process(|pid| tables::read(pid, namespace.inode, ports))
            .map_or(Read::Denied, Read::Tables),
    }
}

/// Drops the connections that a listener in the list has accepted: they are reported as its
/// accepts, not as sockets on the port. Keeps those with one of these cookies.
fn drop_accepted(sockets: &mut Vec<SocketEntry>, kept: Option<&HashSet<u64>>) {
    type Listener = (IpAddr, Option<bool>);
    let mut listeners: HashMap<(u64, Transport, u16), Vec<Listener>> = HashMap::new();
    let key = |entry: &SocketEntry| (entry.netns, entry.transport, entry.local.port());
    for entry in sockets.iter() {
        if entry.state == State::Listening {
            let listener = (entry.local.ip(), entry.v6only);
            listeners.entry(key(entry)).or_default().push(listener);
        }
    }
    sockets.retain(|entry| {
        let is_connection =
            matches!(entry.state, State::Connected(_)) && !entry.transport.is_datagram();
        !is_connection
            || entry.is_outgoing
            || (entry.cookie.zip(kept)).is_some_and(|(cookie, kept)| kept.contains(&cookie))
            || !listeners.get(&key(entry)).is_some_and(|listeners| {
                listeners
                    .iter()
                    .any(|(local, v6only)| can_accept(*local, *v6only, entry.local.ip()))
            })
    });
}

/// Whether a listener at `listener` can accept a connection to `local`; an IPv6 wildcard also one
/// to an IPv4 address, unless it is known to take none.
fn can_accept(listener: IpAddr, v6only: Option<bool>, local: IpAddr) -> bool {
    let takes_both = listener.is_ipv6() && v6only != Some(true);
    let is_family = takes_both || listener.is_ipv4() == local.is_ipv4();
    listener.is_unspecified() && is_family || listener == local
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::{AsFd as _, AsRawFd as _},
    };

    use super::*;
    use crate::linux::netns;

    #[test]
    fn own_sockets_are_found_with_cookie_and_holder() {
        // From 1024 up: needs no privilege and conflicts with no service.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let me = std::process::id();
        let find = |local: SocketAddr| {
            let mut sockets = read(local.port()..=local.port(), 2).unwrap().sockets;
            sockets.retain(|entry| entry.local == local);
            assert_eq!(sockets.len(), 1, "{sockets:?}");
            sockets.remove(0)
        };
        let entry = find(listener.local_addr().unwrap());
        assert_eq!(
            (entry.transport, entry.state),
            (Transport::Tcp, State::Listening)
        );
        assert!(entry.cookie.is_some());
        let holders: Vec<u32> = entry.holders.iter().map(|holder| holder.pid).collect();
        assert_eq!(holders, [me]);
        let entry = find(udp.local_addr().unwrap());
        assert_eq!(
            (entry.transport, entry.state),
            (Transport::Udp, State::Bound)
        );
        let entry = find(client.local_addr().unwrap());
        assert_eq!(
            entry.state,
            State::Connected(listener.local_addr().unwrap())
        );
        drop(listener);
    }

    #[test]
    fn an_outgoing_connection_from_a_listeners_port_is_shown() {
        use nix::sys::socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
            sockopt,
        };
        let shared = |port| {
            let tcp = socket(
                AddressFamily::Inet,
                SockType::Stream,
                SockFlag::SOCK_CLOEXEC,
                None,
            )
            .unwrap();
            setsockopt(&tcp, sockopt::ReusePort, &true).unwrap();
            bind(tcp.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
            tcp
        };
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let listener = TcpListener::from(shared(0));
        let local = listener.local_addr().unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(5).unwrap()).unwrap();
        let outgoing = shared(local.port());
        let to = SockaddrIn::new(127, 0, 0, 1, server.local_addr().unwrap().port());
        connect(outgoing.as_raw_fd(), &to).unwrap();
        let _client = TcpStream::connect(local).unwrap();
        let _accepted = listener.accept().unwrap();
        let mut sockets = read(local.port()..=local.port(), 1).unwrap().sockets;
        sockets.retain(|entry| entry.local == local);
        let states: Vec<State> = sockets.iter().map(|entry| entry.state).collect();
        let peer = State::Connected(server.local_addr().unwrap());
        assert_eq!(states, [State::Listening, peer]);
    }

    #[test]
    fn proc_net_and_sock_diag_agree() {
        let listener = TcpListener::bind("[::]:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let mine = [
            listener.as_fd(),
            udp.as_fd(),
            client.as_fd(),
            accepted.as_fd(),
        ]
        .map(|socket| rustix::fs::fstat(socket).unwrap().st_ino);
        let ports = 1024..=u16::MAX;
        let sorted = |mut sockets: Vec<SocketEntry>| {
            sockets.retain(|entry| mine.contains(&entry.inode));
            sockets.sort_by_key(|entry| entry.inode);
            sockets
        };
        let netlink = netns::sock_diag().unwrap();
        let dump = diag::dump(&netlink, &ports, &[Transport::Tcp, Transport::Udp]).unwrap();
        let by_diag = dump.rows.into_iter().map(|row| SocketEntry {
            cookie: None,
            cgroup: None,
            // /proc/net does not show it.
            v6only: None,
            ..row.entry(7, &HashMap::new())
        });
        let read = sorted(tables::read(std::process::id(), 7, &ports));
        assert_eq!(read.len(), mine.len());
        assert_eq!(read, sorted(by_diag.collect()));
    }

    #[test]
    fn accepted_connections_are_not_listed_beside_their_listener() {
        let entry = |local: &str, state, netns| SocketEntry {
            transport: Transport::Tcp,
            local: local.parse().unwrap(),
            state,
            cookie: None,
            inode: 1,
            netns,
            cgroup: None,
            holders: Vec::new(),
            is_outgoing: false,
            holders_omitted: 0,
            is_known: false,
            device: None,
            v6only: None,
        };
        let peer = State::Connected("10.0.0.9:40000".parse().unwrap());
        let mut sockets = vec![
            entry("0.0.0.0:976", State::Listening, 1),
            entry("10.0.0.1:976", peer, 1),
            entry("10.0.0.1:976", peer, 2),
            entry("10.0.0.1:977", peer, 1),
            entry("10.0.0.2:978", State::Listening, 1),
            entry("10.0.0.1:978", peer, 1),
            // An IPv4 wildcard accepts no IPv6.
            entry("[2001:db8::1]:976", peer, 1),
            SocketEntry {
                is_outgoing: true,
                ..entry("10.0.0.1:976", peer, 1)
            },
            SocketEntry {
                v6only: Some(true),
                ..entry("[::]:975", State::Listening, 1)
            },
            entry("10.0.0.1:975", peer, 1),
            entry("[::]:979", State::Listening, 1),
            entry("10.0.0.1:979", peer, 1),
        ];
        sockets[1].cookie = Some(7);
        let mut waiting = sockets.clone();
        drop_accepted(&mut waiting, Some(&HashSet::from([7])));
        assert_eq!(waiting, sockets[..11]);
        let expected = [0, 2, 3, 4, 5, 6, 7, 8, 9, 10].map(|index: usize| sockets[index].clone());
        drop_accepted(&mut sockets, None);
        assert_eq!(sockets, expected);
    }
}
