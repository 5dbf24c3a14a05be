//! Connections to a listener: the first from each address is told, the others are counted.

use std::{collections::HashSet, net::IpAddr};

use crate::{
    alert::{Accepts, Alert},
    model::EventKind,
    util::Bounded,
};

/// Listeners that are counted for.
const LISTENERS: usize = 4096;

/// Addresses of one listener that are remembered; the connections of others are counted all the same.
const ADDRESSES: usize = 4096;

#[derive(Default)]
struct Seen {
    addresses: HashSet<IpAddr>,
    count: u64,
}

pub(super) struct Peers(Bounded<u64, Seen>);

impl Default for Peers {
    fn default() -> Self {
        Self(Bounded::new(LISTENERS))
    }
}

impl Peers {
    /// Listeners that are counted for.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the alert is to be told. A close gets the totals.
    pub(super) fn count(&mut self, alert: &mut Alert) -> bool {
        let Some(cookie) = alert.socket.cookie else {
            return true;
        };
        match (alert.event, alert.peer) {
            (EventKind::Accept, Some(peer)) => {
                let seen = self.0.get_or_insert_mut(cookie, Seen::default);
                seen.count += 1;
                let is_full = seen.addresses.len() >= ADDRESSES;
                !is_full && seen.addresses.insert(peer.address)
            }
            (EventKind::Close, _) => {
                alert.accepts = self.0.pop(&cookie).map(|seen| Accepts {
                    count: seen.count,
                    peers: seen.addresses.len() as u64,
                });
                true
            }
            _ => true,
        }
    }

    /// Counts what stands for that many connections; not those to a listener that is gone by now.
    pub(super) fn repeat(&mut self, alert: &Alert, times: u64) -> bool {
        let cookie = alert.socket.cookie;
        let cookie = cookie.filter(|_| alert.event == EventKind::Accept);
        let seen = cookie.and_then(|cookie| self.0.get_mut(&cookie));
        seen.map(|seen| seen.count += times).is_some()
    }
}
