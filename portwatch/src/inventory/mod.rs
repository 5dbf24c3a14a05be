//! The sockets that are there already, read from the kernel: by sock_diag(7) in every network
//! namespace, or from /proc/PID/net where that is refused; and the processes that have them open.

mod diag;
mod holders;
mod namespaces;
mod scan;
mod tables;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::SocketAddr,
    ops::RangeInclusive,
    thread,
};

pub use self::holders::{Holder, duplicate, is_held_by};
use self::namespaces::Namespace;
pub use self::scan::{Coverage, FoundSocket, Scan, Scope};
use crate::{model::Transport, util::parallel};

/// What a socket does with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// A TCP listener.
    Listening,
    /// Bound, and no more; for a datagram socket that is all there is.
    Bound,
    /// A connection from or to that port.
    Connected(SocketAddr),
}

/// A socket on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketEntry {
    /// Its transport.
    pub transport: Transport,
    /// Its own address. An IPv4-mapped one is given as IPv4.
    pub local: SocketAddr,
    /// What it does there.
    pub state: State,
    /// Its cookie; None where only /proc/PID/net could be read.
    pub cookie: Option<u64>,
    /// Its number in the socket file system.
    pub inode: u64,
    /// Inode of its network namespace.
    pub netns: u64,
    /// Number of the v2 cgroup that it was made in, where the kernel tells it.
    pub cgroup: Option<u64>,
    /// The processes that have it open, as far as this user may see; none for the kernel's own.
    pub holders: Vec<Holder>,
}

/// What was there.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The sockets, by namespace, transport and address.
    pub sockets: Vec<SocketEntry>,
    /// Inode and cookie of each network namespace that was entered; no cookie before Linux 5.14.
    pub namespaces: Vec<(u64, Option<u64>)>,
    /// Namespaces that could not be read, by inode.
    pub unread: Vec<u64>,
    /// Transports that this kernel has and does not show.
    pub unshown: Vec<Transport>,
    /// Whether this kernel shows TCP sockets that are bound and do nothing else (from Linux 6.8 on).
    pub shows_bound: bool,
}

/// Reads the sockets on `ports` in every network namespace that a process, a mount or a descriptor
/// keeps, and their holders, on that many threads. Works without privilege for what this user may
/// see.
///
/// # Errors
///
/// When /proc as a whole cannot be read, or no thread be started; what goes away meanwhile is no
/// error.
pub fn read(ports: RangeInclusive<u16>, threads: usize) -> io::Result<Snapshot> {
    // A thread of its own: what it enters it cannot be trusted to leave.
    thread::Builder::new()
        .name("snapshot".into())
        .spawn(move || read_all(&ports, threads))?
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the snapshot's thread ended early")))
}

fn read_all(ports: &RangeInclusive<u16>, threads: usize) -> io::Result<Snapshot> {
    let mut snapshot = Snapshot {
        shows_bound: diag::shows_bound(),
        ..Snapshot::default()
    };
    let transports = diag::present();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut unseen = namespaces::find()?.without(&seen);
    // The second time only for namespaces that nothing but a descriptor keeps.
    while !unseen.is_empty() {
        let read = parallel::map(threads, unseen.iter().collect(), |namespace| {
            read_namespace(ports, &transports, namespace)
        });
        for (inode, what) in unseen.iter().map(|one| one.inode).zip(read) {
            seen.insert(inode);
            match what {
                Read::Shown(dump) => {
                    snapshot.namespaces.push((inode, dump.cookie));
                    snapshot.unshown.extend(dump.unshown);
                    let held = dump.rows.into_iter().map(|row| row.held(inode));
                    snapshot.sockets.extend(held);
                }
                Read::Tables(sockets) => {
                    snapshot.shows_bound = false;
                    snapshot.sockets.extend(sockets);
                }
                Read::Refused => snapshot.unread.push(inode),
                Read::Gone => {}
            }
        }
        drop_accepted(&mut snapshot.sockets);
        unseen = holders::find(&mut snapshot.sockets, threads)?.without(&seen);
    }
    snapshot.sockets.sort_by_key(|held| {
        (
            held.netns,
            held.transport,
            held.local,
            held.state,
            held.inode,
        )
    });
    Ok(snapshot)
}

/// What was seen of one namespace.
enum Read {
    Shown(diag::Dump),
    /// Without the privilege to enter, or on a kernel without sock_diag.
    Tables(Vec<SocketEntry>),
    Refused,
    /// Nothing led there any more.
    Gone,
}

fn read_namespace(
    ports: &RangeInclusive<u16>,
    transports: &[Transport],
    namespace: &Namespace,
) -> Read {
    let shown = match namespace.enter() {
        Ok(false) => return Read::Gone,
        Ok(true) => diag::dump(ports, transports),
        Err(error) => Err(error),
    };
    match shown {
        Ok(dump) => Read::Shown(dump),
        Err(_) => namespace
            .by_process(|pid| tables::read(pid, namespace.inode, ports))
            .map_or(Read::Refused, Read::Tables),
    }
}

/// Drops connections to a listener that is there: they are part of its stay.
fn drop_accepted(sockets: &mut Vec<SocketEntry>) {
    let mut listeners: HashMap<(u64, Transport, u16), Vec<SocketAddr>> = HashMap::new();
    for held in sockets.iter().filter(|held| held.state == State::Listening) {
        let place = (held.netns, held.transport, held.local.port());
        listeners.entry(place).or_default().push(held.local);
    }
    sockets.retain(|held| {
        let is_connection = matches!(held.state, State::Connected(_))
            && matches!(
                held.transport,
                Transport::Tcp | Transport::Sctp | Transport::Dccp
            );
        let place = (held.netns, held.transport, held.local.port());
        !is_connection
            || !listeners.get(&place).is_some_and(|locals| {
                locals
                    .iter()
                    .any(|local| local.ip().is_unspecified() || local.ip() == held.local.ip())
            })
    });
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::fd::AsFd as _,
    };

    use super::*;

    #[test]
    fn own_sockets_are_found_with_cookie_and_holder() {
        // From 1024 up, so that this needs no privilege and meets nobody.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_accepted, _) = listener.accept().unwrap();
        let me = std::process::id();
        let find = |local: SocketAddr| {
            let snapshot = read(local.port()..=local.port(), 2).unwrap();
            let mut sockets = snapshot.sockets;
            sockets.retain(|held| held.local == local);
            assert_eq!(sockets.len(), 1, "{sockets:?}");
            sockets.remove(0)
        };
        let held = find(listener.local_addr().unwrap());
        assert_eq!(
            (held.transport, held.state),
            (Transport::Tcp, State::Listening)
        );
        assert!(held.cookie.is_some());
        assert_eq!(
            held.holders
                .iter()
                .map(|holder| holder.pid)
                .collect::<Vec<_>>(),
            [me]
        );
        let held = find(udp.local_addr().unwrap());
        assert_eq!((held.transport, held.state), (Transport::Udp, State::Bound));
        let held = find(client.local_addr().unwrap());
        assert_eq!(held.state, State::Connected(listener.local_addr().unwrap()));
        drop(listener);
    }

    #[test]
    fn the_tables_say_what_sock_diag_says() {
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
            sockets.retain(|held| mine.contains(&held.inode));
            sockets.sort_by_key(|held| held.inode);
            sockets
        };
        let dump = diag::dump(&ports, &[Transport::Tcp, Transport::Udp]).unwrap();
        let shown = dump.rows.into_iter().map(|row| SocketEntry {
            cookie: None,
            cgroup: None,
            ..row.held(7)
        });
        let read = sorted(tables::read(std::process::id(), 7, &ports));
        assert_eq!(read.len(), mine.len());
        assert_eq!(read, sorted(shown.collect()));
    }

    #[test]
    fn connections_to_a_listener_are_part_of_its_stay() {
        let held = |local: &str, state, netns| SocketEntry {
            transport: Transport::Tcp,
            local: local.parse().unwrap(),
            state,
            cookie: None,
            inode: 1,
            netns,
            cgroup: None,
            holders: Vec::new(),
        };
        let peer = State::Connected("10.0.0.9:40000".parse().unwrap());
        let mut sockets = vec![
            held("0.0.0.0:976", State::Listening, 1),
            held("10.0.0.1:976", peer, 1),
            held("10.0.0.1:976", peer, 2),
            held("10.0.0.1:977", peer, 1),
            held("10.0.0.2:978", State::Listening, 1),
            held("10.0.0.1:978", peer, 1),
        ];
        let stays = [0, 2, 3, 4, 5].map(|index: usize| sockets[index].clone());
        drop_accepted(&mut sockets);
        assert_eq!(sockets, stays);
    }
}
