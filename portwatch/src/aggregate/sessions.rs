//! The connections of each listener that ended, in sums.

use crate::{
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
