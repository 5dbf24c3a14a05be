//! The open TCP connections, with the kernel's own counters.

mod decode;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::RangeInclusive,
    os::fd::OwnedFd,
    sync::Mutex,
};

pub(super) use self::decode::Listeners;
#[cfg(test)]
pub(super) use self::decode::Traffic;
pub use self::decode::{Connection, TcpState};
use super::{
    diag,
    holders::{self, FirstHolder},
    namespaces::{self, Namespace},
    tables,
    wire::{Message, listeners, open_connections},
};
use crate::{model::Printable, util::parallel};

/// Where the connections go.
pub(super) trait Collect: Send {
    fn add(&mut self, connection: Connection);

    /// The sockets whose holders are wanted, by inode.
    fn wanted(&mut self) -> &mut HashMap<u64, FirstHolder>;
}

/// What limits the connections that were found, and the names of devices.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The names of the devices that connections are bound to, by namespace and index.
    pub devices: HashMap<(u64, u32), Printable>,
    /// Namespaces that could not be read, by inode.
    pub unread: Vec<u64>,
    /// Namespaces of which only `/proc/PID/net` could be read, by inode: no counters, no direction.
    pub without_counters: Vec<u64>,
}

/// Collects the open connections on those of `ports` that `is_wanted`, in every network namespace that
/// a process, a mount, a descriptor or a socket references.
pub(super) fn collect(
    ports: &RangeInclusive<u16>,
    is_wanted: impl Fn(u16) -> bool + Sync,
    collector: &mut dyn Collect,
    threads: usize,
) -> io::Result<Found> {
    let mut found = Found::default();
    let mut seen: HashSet<u64> = HashSet::new();
    let mut unseen = namespaces::find()?.without(&seen);
    while !unseen.is_empty() {
        let collector = Mutex::new(&mut *collector);
        let add = |connection: Connection| {
            if is_wanted(connection.local.port())
                && let Ok(mut collector) = collector.lock()
            {
                collector.add(connection);
            }
        };
        let read = parallel::map(threads, unseen.iter().collect(), |namespace| {
            read_namespace(ports, namespace, &add)
        });
        for (inode, outcome) in unseen.iter().map(|one| one.inode).zip(read) {
            seen.insert(inode);
            match outcome {
                Read::Diag(devices) => {
                    let named = devices.into_iter();
                    (found.devices).extend(named.map(|(index, name)| ((inode, index), name)));
                }
                Read::Tables => found.without_counters.push(inode),
                Read::Denied => found.unread.push(inode),
                Read::Gone => {}
            }
        }
        let Ok(collector) = collector.into_inner() else {
            return Err(io::Error::other("a thread has panicked"));
        };
        unseen = holders::find_first(collector.wanted(), &seen, threads)?.without(&seen);
    }
    Ok(found)
}

/// The outcome of reading one namespace.
enum Read {
    /// With the names of devices by index.
    Diag(Vec<(u32, Printable)>),
    Tables,
    Denied,
    Gone,
}

fn read_namespace(
    ports: &RangeInclusive<u16>,
    namespace: &Namespace,
    add: &(impl Fn(Connection) + Sync),
) -> Read {
    let netns = namespace.inode;
    let dump = match namespace.sock_diag() {
        Ok(None) => return Read::Gone,
        Ok(Some(netlink)) => dump(&netlink, ports, netns, add),
        Err(error) => Err(error),
    };
    if let Ok(devices) = dump {
        return Read::Diag(devices);
    }
    let rows = namespace.by_process(|pid| tables::read_tcp(pid, ports));
    let Some(rows) = rows else {
        return Read::Denied;
    };
    for row in rows {
        let Some(state) = TcpState::new(row.state) else {
            continue;
        };
        add(Connection {
            local: row.local,
            peer: row.remote,
            // Not known to be accepted: the tables do not show who was bound.
            direction: None,
            state,
            traffic: None,
            cookie: None,
            inode: row.inode,
            netns,
            uid: None,
            interface: 0,
            holder: None,
            holders: 0,
        });
    }
    Read::Tables
}

/// Gives the connections in the namespace of `netlink` to `add`, each once.
fn dump(
    netlink: &OwnedFd,
    ports: &RangeInclusive<u16>,
    netns: u64,
    add: &impl Fn(Connection),
) -> io::Result<Vec<(u32, Printable)>> {
    let mut accepting = Listeners::default();
    // First, so that a listener that ends meanwhile is there.
    diag::query(netlink, &listeners(ports), &mut |message, attributes| {
        if let Some((local, v6only)) = diag::listener(message, attributes) {
            accepting.add(local.port(), local.ip(), v6only, message.id.interface);
        }
    })?;
    let mut interfaces = HashSet::new();
    for is_bound in [true, false] {
        let request = open_connections(ports, is_bound);
        let mut seen = HashSet::new();
        let mut take = |message: &Message, attributes: &[u8]| {
            let decoded = Connection::decode(message, attributes, netns, is_bound, &accepting);
            if let Some(connection) = decoded
                && seen.insert(connection.cookie)
            {
                interfaces.insert(connection.interface);
                add(connection);
            }
        };
        // As in `diag::read`: a long dump can have skipped some.
        if diag::query(netlink, &request, &mut take)? > 2 {
            diag::query(netlink, &request, &mut take)?;
        }
    }
    interfaces.remove(&0);
    let named = interfaces.into_iter();
    Ok(named
        .map(|index| (index, diag::device_name(netlink, index)))
        .collect())
}

/// The open connections, each with its first holder.
#[derive(Debug, Default)]
pub struct Connections {
    /// Sorted by port, namespace, local address and peer.
    pub rows: Vec<Connection>,
    /// How many there are beyond [`MAX_ROWS`].
    pub omitted: u64,
    /// What limits them.
    pub found: Found,
}

/// Connections that are listed: some 200 MB.
pub const MAX_ROWS: usize = 1_000_000;

#[derive(Default)]
struct Rows {
    rows: Vec<Connection>,
    omitted: u64,
    wanted: HashMap<u64, FirstHolder>,
}

impl Collect for Rows {
    fn add(&mut self, connection: Connection) {
        if self.rows.len() >= MAX_ROWS {
            self.omitted += 1;
            return;
        }
        if connection.inode != 0 {
            self.wanted.insert(connection.inode, FirstHolder::default());
        }
        self.rows.push(connection);
    }

    fn wanted(&mut self) -> &mut HashMap<u64, FirstHolder> {
        &mut self.wanted
    }
}

/// The open connections on those of `ports` that `is_wanted`, with `threads` threads. Blocks for a walk
/// through /proc.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn read(
    ports: RangeInclusive<u16>,
    is_wanted: impl Fn(u16) -> bool + Sync,
    threads: usize,
) -> io::Result<Connections> {
    let mut rows = Rows::default();
    let found = collect(&ports, is_wanted, &mut rows, threads)?;
    let Rows {
        mut rows,
        omitted,
        wanted,
    } = rows;
    for row in &mut rows {
        if let Some(holder) = wanted.get(&row.inode) {
            (row.holder, row.holders) = (holder.first, holder.count);
        }
    }
    rows.sort_unstable_by_key(|row| (row.local.port(), row.netns, row.local, row.peer, row.cookie));
    Ok(Connections {
        rows,
        omitted,
        found,
    })
}
