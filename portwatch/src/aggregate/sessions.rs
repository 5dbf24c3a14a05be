//! The connections of each listener that ended, in sums.

use crate::{
    model::{EventKind, Sessions, SocketKey},
    tracker::TrackedEvent,
    util::Bounded,
};

/// Sockets whose connections are summed, some 100 bytes each; past that the sums of the one that was
/// used longest ago are dropped.
const SOCKETS: usize = 4096;

#[derive(Default)]
struct Sums {
    accepted: u64,
    /// What has ended; `open` is not used.
    ended: Sessions,
}

pub(super) struct SessionSums(Bounded<SocketKey, Sums>);

impl Default for SessionSums {
    fn default() -> Self {
        Self(Bounded::new(SOCKETS))
    }
}

impl SessionSums {
    /// Adds an event.
    pub(super) fn add(&mut self, event: &TrackedEvent) {
        if let Some(key) = event.key {
            self.add_to(key, event, 1);
        }
    }

    /// Adds what stands for `times` such events, if its socket has connections; a listener that closed
    /// has none.
    pub(super) fn add_counted(&mut self, event: &TrackedEvent, times: u64) -> bool {
        let known = event.key.filter(|key| self.0.get(key).is_some());
        if let Some(key) = known {
            self.add_to(key, event, times);
        }
        known.is_some()
    }

    fn add_to(&mut self, key: SocketKey, event: &TrackedEvent, times: u64) {
        if event.kind == EventKind::Accept {
            self.0.get_or_insert_mut(key, Sums::default).accepted += times;
        }
        if let Some(session) = &event.session {
            let sums = &mut self.0.get_or_insert_mut(key, Sums::default).ended;
            sums.ended += session.ended;
            sums.bytes_in = sums.bytes_in.saturating_add(session.bytes_in);
            sums.bytes_out = sums.bytes_out.saturating_add(session.bytes_out);
        }
    }

    /// Takes the sums of a socket that closes; None without any connection.
    pub(super) fn close(&mut self, key: SocketKey) -> Option<Sessions> {
        self.0.pop(&key).map(|sums| Sessions {
            // An accept can be lost.
            open: sums.accepted.saturating_sub(sums.ended.ended),
            ..sums.ended
        })
    }
}
