//! What the BPF programs counted of datagrams: by socket, and by peer.

use std::{
    collections::{HashMap as Map, HashSet},
    net::IpAddr,
};

use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, PeerKey, Receiver, names};

use crate::{
    model::{Event, Received},
    sensor::{
        Sensor, SensorError,
        maps::{Plain, map},
    },
};

pub(super) struct Peers {
    receivers: HashMap<MapData, u64, Plain<Receiver>>,
    peers: HashMap<MapData, Plain<PeerKey>, Plain<portwatch_common::Peer>>,
    /// The addresses that were reported of each socket, by cookie; bounded by the limits of the BPF
    /// programs.
    reported: Map<u64, HashSet<PeerKey>>,
    /// Cookies that nobody knew at the last look.
    unknown: HashSet<u64>,
}

/// Entries of each map that are looked at in one turn.
const SWEPT: usize = 1024;

impl Peers {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let receivers = ebpf.take_map(names::RECEIVERS);
        let peers = ebpf.take_map(names::PEERS);
        Ok(Self {
            receivers: map(receivers, names::RECEIVERS, HashMap::try_from)?,
            peers: map(peers, names::PEERS, HashMap::try_from)?,
            reported: Map::new(),
            unknown: HashSet::new(),
        })
    }

    /// Removes what was counted for a socket that is gone.
    pub(super) fn forget(&mut self, cookie: u64) {
        let _ = self.receivers.remove(&cookie);
        for key in self.reported.remove(&cookie).into_iter().flatten() {
            // It has one of the two, unless it was the first from another host.
            let is_removed = self.peers.remove(&Plain(key)).is_ok();
            if !is_removed {
                let _ = self.peers.remove(&Plain(key.prefix()));
            }
        }
    }

    /// Removes what is counted for sockets that nobody knew at the last look either: their close was
    /// counted and not reported, or a datagram came while they closed. One that was just bound is known
    /// at the next look.
    pub(super) fn sweep(&mut self, is_known: impl Fn(u64) -> bool) {
        let receivers = self.receivers.keys().take(SWEPT).filter_map(Result::ok);
        let receivers: Vec<u64> = receivers.filter(|cookie| !is_known(*cookie)).collect();
        let peers = self.peers.keys().take(SWEPT).filter_map(Result::ok);
        let peers: Vec<PeerKey> = peers
            .map(|Plain(key)| key)
            .filter(|key| !is_known(key.cookie))
            .collect();
        let before = std::mem::take(&mut self.unknown);
        for cookie in &receivers {
            if before.contains(cookie) {
                self.forget(*cookie);
            }
        }
        for key in &peers {
            if before.contains(&key.cookie) {
                let _ = self.peers.remove(&Plain(*key));
            }
        }
        let reported: Vec<u64> = self.reported.keys().copied().take(SWEPT).collect();
        let reported: Vec<u64> = reported.into_iter().filter(|one| !is_known(*one)).collect();
        for cookie in &reported {
            if before.contains(cookie) {
                self.forget(*cookie);
            }
        }
        self.unknown.extend(receivers);
        self.unknown.extend(peers.iter().map(|key| key.cookie));
        self.unknown.extend(reported);
    }

    /// How many peers of all sockets are counted.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.peers.keys().count()
    }

    fn received(&self, cookie: u64) -> Option<Received> {
        let Plain(receiver) = self.receivers.get(&cookie, 0).ok()?;
        Some(Received {
            datagrams: receiver.datagrams,
            bytes: receiver.bytes,
            peers: receiver.addresses + receiver.prefixes,
            others: receiver.others,
        })
    }
}

fn key(cookie: u64, address: IpAddr) -> PeerKey {
    let (family, bytes) = match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            (FAMILY_IPV4, bytes)
        }
        IpAddr::V6(address) => (FAMILY_IPV6, address.octets()),
    };
    PeerKey {
        cookie,
        address: bytemuck::cast(bytes),
        family: family.into(),
        prefix: 0,
    }
}

impl Sensor {
    /// What a socket has received so far; None where no datagram was seen.
    #[must_use]
    pub fn received(&self, cookie: u64) -> Option<Received> {
        self.receive.peers.received(cookie)
    }

    /// Notes a receive, which is to be done for each: what is counted for its peer is removed with the
    /// socket.
    pub fn note_receive(&mut self, event: &Event) {
        if let (Some(cookie), Some(peer)) = (event.cookie(), event.peer) {
            let peers = self.receive.peers.reported.entry(cookie).or_default();
            peers.insert(key(cookie, peer.ip()));
        }
    }
}
