//! Connections to a listener: the first from each address is reported, the others are counted.

use std::{collections::HashSet, net::IpAddr};

use serde::Serialize;

use crate::{
    decide::Decided,
    model::{EventKind, Severity, SocketKey},
    util::Bounded,
};

/// Listeners that are counted for.
const LISTENERS: usize = 4096;

/// Addresses of one listener that are remembered; the connections of others are counted all the same.
const ADDRESSES: usize = 4096;

/// The connections to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accepts {
    /// All of them.
    pub count: u64,
    /// From how many addresses, 4,096 at most.
    pub peers: u64,
}

/// The connections to a listener that closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connections {
    pub(super) accepts: Accepts,
    /// How many of them were not given on as events.
    pub(super) unreported: u64,
}

#[derive(Default)]
struct Seen {
    addresses: HashSet<IpAddr>,
    count: u64,
    /// How many were only counted, and the last of them.
    unreported: u64,
    last: Option<Box<Decided>>,
}

pub(super) struct Peers {
    listeners: Bounded<SocketKey, Seen>,
    /// A listener that there was no more room for.
    evicted: Option<Seen>,
}

impl Default for Peers {
    fn default() -> Self {
        Self {
            listeners: Bounded::new(LISTENERS),
            evicted: None,
        }
    }
}

impl Peers {
    /// Whether the event is more than another connection from a known address.
    pub(super) fn is_new(&mut self, decided: &Decided) -> bool {
        let event = &decided.event;
        let (EventKind::Accept, Some(key), Some(peer)) = (event.kind, event.key, event.peer) else {
            return true;
        };
        self.evicted = self.listeners.make_room(&key);
        let seen = self.listeners.get_or_insert_mut(key, Seen::default);
        seen.count += 1;
        let is_new = seen.addresses.len() < ADDRESSES && seen.addresses.insert(peer.ip());
        if is_new || decided.severity == Severity::Critical {
            return true;
        }
        seen.add_unreported(decided, 1);
        false
    }

    /// Counts what stands for that many connections; false for other events, and for a listener that
    /// is gone by now.
    pub(super) fn add_counted(&mut self, decided: &Decided, times: u64) -> bool {
        let key = decided.event.key;
        let key = key.filter(|_| decided.event.kind == EventKind::Accept);
        let Some(seen) = key.and_then(|key| self.listeners.get_mut(&key)) else {
            return false;
        };
        seen.count += times;
        seen.add_unreported(decided, times);
        true
    }

    /// The same for a listener that is counted for no more.
    pub(super) fn take_evicted(&mut self) -> Option<(Decided, u64)> {
        self.evicted.take()?.into_unreported()
    }

    /// The connections to a listener that closes.
    pub(super) fn close(&mut self, key: SocketKey) -> Option<Connections> {
        self.listeners.pop(&key).map(|seen| Connections {
            accepts: Accepts {
                count: seen.count,
                peers: seen.addresses.len() as u64,
            },
            unreported: seen.unreported,
        })
    }

    /// For each listener that is still open, one of the connections that were only counted, and how
    /// many those are.
    pub(super) fn take_unreported(&mut self) -> Vec<(Decided, u64)> {
        let all = std::mem::take(self);
        all.listeners
            .into_values()
            .filter_map(Seen::into_unreported)
            .collect()
    }
}

impl Seen {
    /// One of the connections that were only counted, and how many those are.
    fn into_unreported(self) -> Option<(Decided, u64)> {
        Some((*self.last?, self.unreported))
    }

    fn add_unreported(&mut self, decided: &Decided, times: u64) {
        self.unreported += times;
        if self.last.is_none() {
            self.last = Some(Box::new(decided.clone()));
        }
    }
}
