//! The peers of the open connections on a port: sums by address.

use std::{cmp::Reverse, collections::HashMap, io, net::IpAddr, ops::RangeInclusive};

use super::{
    connections::{Collect, Connection, Found, collect},
    holders::FirstHolder,
};
use crate::model::Direction;

/// Whose sums one row has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Peer {
    /// The address.
    pub address: IpAddr,
    /// Inode of the network namespace that it is connected to.
    pub netns: u64,
    /// Of a link-local IPv6 address: the index of the device that it is valid on; else 0.
    pub interface: u32,
    /// The name of the connections' direction; None where the kernel does not show who connected.
    pub direction: Option<&'static str>,
}

/// The sums of connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Connections that are open.
    pub open: u64,
    /// Those of which the bytes are not known.
    pub uncounted: u64,
    /// Bytes that came.
    pub bytes_in: u64,
    /// Bytes that the peers have acknowledged.
    pub bytes_out: u64,
}

impl Sums {
    /// Adds others.
    pub const fn add(&mut self, other: Self) {
        self.open += other.open;
        self.uncounted += other.uncounted;
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    /// Bytes in both directions.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes_in.saturating_add(self.bytes_out)
    }
}

/// The peers of a port.
#[derive(Debug, Default)]
pub struct Peers {
    /// Sorted by bytes, then by connections, the most first.
    pub rows: Vec<(Peer, Sums)>,
    /// Of peers that there was no room for: those with the least bytes by then.
    pub others: Sums,
    /// What limits them.
    pub found: Found,
}

/// Peers that are in memory at once, some 6 MB.
pub const MAX_PEERS: usize = 1 << 16;

/// Peers of which there are at most `limit`.
struct Table {
    limit: usize,
    rows: HashMap<Peer, Sums>,
    others: Sums,
    /// No holders are wanted.
    wanted: HashMap<u64, FirstHolder>,
}

impl Table {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            rows: HashMap::new(),
            others: Sums::default(),
            wanted: HashMap::new(),
        }
    }

    /// Makes room: adds the half with the least bytes to the others.
    fn shrink(&mut self) {
        let mut rows: Vec<(Peer, Sums)> = self.rows.drain().collect();
        let kept = self.limit / 2;
        if kept < rows.len() {
            rows.select_nth_unstable_by_key(kept, |(_, sums)| Reverse((sums.bytes(), sums.open)));
        }
        for (_, sums) in rows.drain(kept.min(rows.len())..) {
            self.others.add(sums);
        }
        self.rows.extend(rows);
    }

    fn into_peers(self, found: Found) -> Peers {
        let mut rows: Vec<(Peer, Sums)> = self.rows.into_iter().collect();
        rows.sort_unstable_by_key(|(peer, sums)| (Reverse((sums.bytes(), sums.open)), *peer));
        Peers {
            rows,
            others: self.others,
            found,
        }
    }
}

impl Collect for Table {
    fn add(&mut self, connection: Connection) {
        let address = connection.peer.ip();
        let is_scoped = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let peer = Peer {
            address,
            netns: connection.netns,
            interface: if is_scoped { connection.interface } else { 0 },
            direction: connection.direction.map(Direction::name),
        };
        if self.rows.len() >= self.limit && !self.rows.contains_key(&peer) {
            self.shrink();
        }
        let traffic = connection.traffic;
        self.rows.entry(peer).or_default().add(Sums {
            open: 1,
            uncounted: traffic.is_none().into(),
            bytes_in: traffic.map_or(0, |traffic| traffic.bytes_in),
            bytes_out: traffic.map_or(0, |traffic| traffic.bytes_out),
        });
    }

    fn wanted(&mut self) -> &mut HashMap<u64, FirstHolder> {
        &mut self.wanted
    }
}

/// The peers with open connections on `ports`, with `threads` threads. Blocks for a walk through /proc.
///
/// # Errors
///
/// When /proc cannot be read.
pub fn read(ports: RangeInclusive<u16>, threads: usize) -> io::Result<Peers> {
    let mut table = Table::new(MAX_PEERS);
    let found = collect(&ports, |_| true, &mut table, threads)?;
    Ok(table.into_peers(found))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::{
        super::connections::{TcpState, Traffic},
        *,
    };

    #[test]
    fn however_many_peers_there_are_those_with_the_most_bytes_stay() {
        let mut table = Table::new(100);
        for number in 0..10_000_u32 {
            let is_large = number % 1000 == 7;
            table.add(Connection {
                local: "10.0.0.1:976".parse().unwrap(),
                peer: (Ipv4Addr::from(number + 1), 40_000).into(),
                direction: Some(Direction::In),
                state: TcpState::Established,
                traffic: Some(Traffic {
                    bytes_in: if is_large { 1_000_000 } else { 1 },
                    bytes_out: 0,
                    idle_ms: 0,
                }),
                cookie: Some(number.into()),
                inode: 1,
                netns: 1,
                uid: None,
                interface: 0,
                holder: None,
                holders: 0,
            });
            assert!(table.rows.len() <= 100);
        }
        let peers = table.into_peers(Found::default());
        let large = peers.rows.iter().filter(|(_, sums)| sums.bytes() > 1);
        assert_eq!(large.count(), 10);
        assert!(peers.rows[..10].iter().all(|(_, sums)| sums.bytes() > 1));
        let mut all = peers.others;
        for (_, sums) in &peers.rows {
            all.add(*sums);
        }
        assert_eq!((all.open, all.bytes_in), (10_000, 10_000_000 + 9_990));
    }
}
