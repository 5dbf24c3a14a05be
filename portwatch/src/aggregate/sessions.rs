//! The connections of each listener that ended, in sums.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::Aggregator;
use crate::{
    decide::Decided,
    model::{Direction, EventKind, PortKey, Session, Sessions, SocketKey},
    tracker::TrackedEvent,
    util::Bounded,
};

/// Listeners whose connections are summed, some 150 bytes each.
const LISTENERS: usize = 4096;

struct Sums {
    key: SocketKey,
    port_key: PortKey,
    accepted: u64,
    /// What has ended; `open` is not used.
    ended: Sessions,
}

/// The sums of a listener that there was no more room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The listener.
    pub key: SocketKey,
    /// Its port.
    pub port_key: PortKey,
    /// What had ended.
    pub session: Session,
}

pub(super) struct SessionSums {
    listeners: Bounded<SocketKey, Sums>,
    dropped: Vec<Sums>,
}

impl Default for SessionSums {
    fn default() -> Self {
        Self {
            listeners: Bounded::new(LISTENERS),
            dropped: Vec::new(),
        }
    }
}

impl SessionSums {
    /// Adds an event. False for a connection that outlives its listener, or whose listener there was no
    /// more room for.
    pub(super) fn add(&mut self, event: &TrackedEvent) -> bool {
        if let (EventKind::Accept, Some(key)) = (event.kind, event.key) {
            let dropped = self.listeners.make_room(&key);
            let has_ended = |sums: &Sums| sums.ended != Sessions::default();
            self.dropped.extend(dropped.filter(has_ended));
            let port_key = event.port_key;
            let make = || Sums {
                key,
                port_key,
                accepted: 0,
                ended: Sessions::default(),
            };
            self.listeners.get_or_insert_mut(key, make).accepted += 1;
        }
        self.add_session(event)
    }

    /// As [`add`](Self::add), for what the BPF programs counted as `times` such events: the listener can
    /// have closed since.
    pub(super) fn add_counted(&mut self, event: &TrackedEvent, times: u64) -> bool {
        let accepted = event.key.filter(|_| event.kind == EventKind::Accept);
        if let Some(sums) = accepted.and_then(|key| self.listeners.get_mut(&key)) {
            sums.accepted += times;
        }
        self.add_session(event)
    }

    fn add_session(&mut self, event: &TrackedEvent) -> bool {
        let Some(session) = &event.session else {
            return true;
        };
        if session.direction == Direction::Out {
            return !session.is_sum;
        }
        let Some(sums) = event.key.and_then(|key| self.listeners.get_mut(&key)) else {
            return false;
        };
        sums.ended.ended += session.ended;
        sums.ended.bytes_in = sums.ended.bytes_in.saturating_add(session.bytes_in);
        sums.ended.bytes_out = sums.ended.bytes_out.saturating_add(session.bytes_out);
        true
    }

    /// Takes the sums of a listener that there was no more room for.
    pub(super) fn take_dropped(&mut self) -> Option<Dropped> {
        self.dropped.pop().map(|sums| Dropped {
            key: sums.key,
            port_key: sums.port_key,
            session: Session {
                direction: Direction::In,
                opened: None,
                ended: sums.ended.ended,
                is_sum: true,
                bytes_in: sums.ended.bytes_in,
                bytes_out: sums.ended.bytes_out,
                ended_by: None,
            },
        })
    }

    /// Takes the sums of a listener that closes; None without any connection.
    pub(super) fn close(&mut self, key: SocketKey) -> Option<Sessions> {
        self.listeners.pop(&key).map(|sums| Sessions {
            // An accept can be lost.
            open: sums.accepted.saturating_sub(sums.ended.ended),
            ..sums.ended
        })
    }
}

impl Aggregator {
    /// Sums up the connections of each listener, whatever becomes of their events. False where a
    /// connection has outlived its listener: it is for a summary.
    pub fn sum_sessions(&mut self, event: &TrackedEvent) -> bool {
        self.sessions.add(event)
    }

    /// As [`sum_sessions`](Self::sum_sessions), for what the BPF programs counted as `times` such events.
    pub fn sum_counted_sessions(&mut self, event: &TrackedEvent, times: u64) -> bool {
        self.sessions.add_counted(event, times)
    }

    /// The sums of a listener that there was no more room for: they are for a summary.
    pub fn take_dropped_sessions(&mut self) -> Option<Dropped> {
        self.sessions.take_dropped()
    }

    /// Counts a connection, or the sums of several, in a summary. One without any bytes is no news: the
    /// close of its listener has counted it as open.
    pub fn count_session(&mut self, decided: &Decided, now: Instant) {
        let session = decided.event.session.filter(|_| self.settings.enabled);
        let is_news = |session: &Session| session.is_sum || session.is_one() && session.has_bytes();
        if let Some(session) = session.filter(is_news) {
            self.bursts
                .add_counted(decided, session.ended, &self.settings, now);
        }
    }

    /// The connections of a socket that closes; None without any.
    pub fn take_sessions(&mut self, event: &TrackedEvent) -> Option<Sessions> {
        let key = event.key.filter(|_| event.kind == EventKind::Close)?;
        self.sessions.close(key)
    }

    /// Whether the end of a connection is an alert, or else in a summary.
    #[must_use]
    pub const fn wants_sessions(&self, decided: &Decided) -> bool {
        self.settings.sessions || decided.reports_sessions
    }
}
