//! What the BPF programs counted of datagrams: by socket, and by peer.
#![forbid(unsafe_code)]

use std::{
    collections::{HashMap as Map, HashSet},
    net::IpAddr,
};

use aya::{Ebpf, maps::HashMap};
use portwatch_common::{FAMILY_IPV4, FAMILY_IPV6, MAX_RECEIVERS, PeerKey, Receiver, names};

use crate::{
    model::{Event, Received},
    sensor::{
        Sensor, SensorError,
        maps::{
            Plain,
            batch::{Batch, PlainMap},
            map,
        },
    },
};

pub(super) struct Peers {
    receivers: PlainMap<u64, Receiver>,
    peers: PlainMap<PeerKey, portwatch_common::Peer>,
    /// The addresses that were reported of each socket, by cookie: all that have a key in the map. Bounded
    /// by the limits of the BPF programs.
    reported: Map<u64, HashSet<PeerKey>>,
    /// Cookies that nobody knew at the last look.
    unknown: HashSet<u64>,
    batch: Batch<u64, Receiver>,
    /// The bucket of `receivers` that is looked at next.
    bucket: Option<u32>,
}

/// Sockets of the map that are looked at in one turn.
const BATCH: usize = 1024;

impl Peers {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, SensorError> {
        let receivers = ebpf.take_map(names::RECEIVERS);
        let peers = ebpf.take_map(names::PEERS);
        Ok(Self {
            receivers: map(receivers, names::RECEIVERS, HashMap::try_from)?,
            peers: map(peers, names::PEERS, HashMap::try_from)?,
            reported: Map::new(),
            unknown: HashSet::new(),
            batch: Batch::new(BATCH),
            bucket: None,
        })
    }

    /// Removes what was counted for a socket that is gone.
    pub(super) fn forget(&mut self, cookie: u64) {
        let _ = self.receivers.remove(&Plain(cookie));
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
        for cookie in std::mem::take(&mut self.unknown) {
            if !is_known(cookie) {
                self.forget(cookie);
            }
        }
        let is_unknown = |cookie: &u64| !is_known(*cookie);
        let reported = self.reported.keys().copied();
        self.unknown.extend(reported.filter(is_unknown));
        let limit = MAX_RECEIVERS as usize;
        let Ok((read, next)) = self.batch.read(&self.receivers, self.bucket, limit) else {
            return;
        };
        self.bucket = next;
        let receivers = self.batch.entries(read).map(|(cookie, _)| *cookie);
        self.unknown.extend(receivers.filter(is_unknown));
    }

    /// How many peers of all sockets are counted.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.peers.keys().count()
    }

    fn received(&self, cookie: u64) -> Option<Received> {
        let Plain(receiver) = self.receivers.get(&Plain(cookie), 0).ok()?;
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
