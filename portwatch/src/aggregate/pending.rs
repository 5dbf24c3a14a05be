//! Sockets whose events were not reported because their group's burst is on. Those that close soon
//! come and go, and are counted; those that last are reported by themselves.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::{
    decide::Decided,
    model::{EventKind, Severity, SocketKey},
};

/// [`crate::tracker::LASTING`].
const LASTING: Duration = crate::tracker::LASTING.unsigned_abs();

/// Sockets that wait, some 100 bytes each; past that every event is reported.
const LIMIT: usize = 65_536;

/// The kinds of events by which a socket takes a port.
const KINDS: [EventKind; 3] = [EventKind::Bind, EventKind::Listen, EventKind::Connect];

/// A socket whose events were not reported.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    /// The socket.
    pub key: SocketKey,
    /// Its last event.
    pub kind: EventKind,
    /// When that happened.
    pub time: Timestamp,
    /// The highest severity of its events.
    pub(super) severity: Severity,
    /// How many of each of [`KINDS`].
    counts: [u16; KINDS.len()],
}

impl Pending {
    /// How many events of which kind were not reported.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts = KINDS.into_iter().zip(self.counts);
        counts
            .filter(|(_, times)| *times > 0)
            .map(|(kind, times)| (kind.name(), times.into()))
    }
}

#[derive(Default)]
pub(super) struct PendingSockets {
    sockets: HashMap<SocketKey, Pending>,
    /// In which order, and until when.
    deadlines: VecDeque<(Instant, SocketKey)>,
}

impl PendingSockets {
    /// Keeps the event until it shows whether its socket lasts; false for an event that takes no
    /// port, and where there is no room.
    pub(super) fn add(&mut self, decided: &Decided, now: Instant) -> bool {
        let event = &decided.event;
        let Some(key) = event.key else {
            return false;
        };
        let Some(index) = KINDS.iter().position(|kind| *kind == event.kind) else {
            return false;
        };
        if !self.sockets.contains_key(&key) {
            if self.deadlines.len() >= LIMIT {
                return false;
            }
            self.deadlines.push_back((now + LASTING, key));
        }
        let pending = self.sockets.entry(key).or_insert(Pending {
            key,
            kind: event.kind,
            time: event.time,
            severity: decided.severity,
            counts: [0; KINDS.len()],
        });
        pending.kind = event.kind;
        pending.time = event.time;
        pending.severity = pending.severity.max(decided.severity);
        pending.counts[index] = pending.counts[index].saturating_add(1);
        true
    }

    /// Takes out a socket that closed.
    pub(super) fn remove(&mut self, key: SocketKey) -> Option<Pending> {
        self.sockets.remove(&key)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Takes out a socket whose deadline was not after `until` and that is still there.
    pub(super) fn lasting(&mut self, until: Instant) -> Option<Pending> {
        while let Some((deadline, key)) = self.deadlines.front().copied()
            && deadline <= until
        {
            self.deadlines.pop_front();
            if let Some(pending) = self.sockets.remove(&key) {
                return Some(pending);
            }
        }
        None
    }
}
