//! Sockets whose events were not reported because their group's burst is on. Those that close soon
//! come and go, and are counted; those that last are reported by themselves.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use jiff::Timestamp;

use crate::{
    decide::Decided,
    model::{EventKind, Origin, PortKey, Severity, SocketKey},
    tracker::TrackedEvent,
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
    /// Its port.
    pub port_key: PortKey,
    /// Its last event.
    pub kind: EventKind,
    /// When that happened.
    pub time: Timestamp,
    /// How it became known.
    pub origin: Origin,
    /// When it will have lasted.
    deadline: Instant,
    /// When the first of its events happened.
    since: Timestamp,
    /// The highest severity of its events.
    pub(super) severity: Severity,
    /// How many of each of [`KINDS`].
    counts: [u32; KINDS.len()],
}

impl Pending {
    /// Whether the socket lasted, if it closed at that time.
    #[must_use]
    pub fn lasted(&self, closed: Timestamp) -> bool {
        closed.duration_since(self.since) >= crate::tracker::LASTING
    }

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
    /// Whether it is about a socket that takes a port, and so may last.
    pub(super) fn may_last(event: &TrackedEvent) -> bool {
        event.key.is_some() && KINDS.contains(&event.kind)
    }

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
        let deadline = now + LASTING;
        if !self.sockets.contains_key(&key) {
            if self.sockets.len() >= LIMIT {
                return false;
            }
            // Most are of sockets that closed.
            if self.deadlines.len() >= 2 * LIMIT {
                let sockets = &self.sockets;
                self.deadlines.retain(|(deadline, key)| {
                    let pending = sockets.get(key);
                    pending.is_some_and(|one| one.deadline == *deadline)
                });
            }
            self.deadlines.push_back((deadline, key));
        }
        let pending = self.sockets.entry(key).or_insert(Pending {
            key,
            port_key: event.port_key,
            kind: event.kind,
            time: event.time,
            origin: event.origin,
            deadline,
            since: event.time,
            severity: decided.severity,
            counts: [0; KINDS.len()],
        });
        pending.kind = event.kind;
        pending.time = event.time;
        pending.origin = event.origin;
        pending.severity = pending.severity.max(decided.severity);
        pending.counts[index] = pending.counts[index].saturating_add(1);
        true
    }

    /// Its socket, if it waits.
    pub(super) fn get(&self, key: SocketKey) -> Option<&Pending> {
        self.sockets.get(&key)
    }

    /// Takes out a socket that closed.
    pub(super) fn remove(&mut self, key: SocketKey) -> Option<Pending> {
        // Most close before another is added: their deadlines take no room.
        if self.deadlines.back().is_some_and(|(_, last)| *last == key) {
            self.deadlines.pop_back();
        }
        self.sockets.remove(&key)
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.deadlines.front().map(|(deadline, _)| *deadline)
    }

    /// Whether the deadline of one is over.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due().is_some_and(|due| due <= now)
    }

    /// Takes out the socket that has waited longest.
    pub(super) fn take(&mut self) -> Option<Pending> {
        while let Some((_, key)) = self.deadlines.pop_front() {
            if let Some(pending) = self.sockets.remove(&key) {
                return Some(pending);
            }
        }
        None
    }

    /// Takes out a socket whose deadline was not after `until` and that is still there.
    pub(super) fn lasting(&mut self, until: Instant) -> Option<Pending> {
        while let Some((deadline, key)) = self.deadlines.front().copied()
            && deadline <= until
        {
            self.deadlines.pop_front();
            // It can have closed, and listen again.
            let is_its = |pending: &Pending| pending.deadline == deadline;
            if self.sockets.get(&key).is_some_and(is_its) {
                return self.sockets.remove(&key);
            }
        }
        None
    }
}
