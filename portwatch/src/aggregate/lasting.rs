//! Sockets that last: their events are reported by themselves, whatever else happens.
#![forbid(unsafe_code)]

use std::time::Instant;

use super::{Aggregator, Output, Pending, pending::PendingSockets};
use crate::{
    decide::Decided,
    model::{EventKind, Origin, SocketKey},
    tracker::{LASTING, TrackedEvent},
};

impl Aggregator {
    /// Whether the event is reported by itself whatever else happens: its socket lasts.
    pub(super) fn is_always_reported(&mut self, decided: &Decided) -> bool {
        let event = &decided.event;
        match event.kind {
            EventKind::Bind | EventKind::Listen | EventKind::Connect => {
                event.origin == Origin::Snapshot || self.is_first_of_lasting(event)
            }
            EventKind::Close => event.lasted,
            _ => false,
        }
    }

    /// Whether it is to be reported should its socket last.
    pub(super) fn may_be_news(&mut self, event: &TrackedEvent) -> bool {
        let is_again = event.kind == EventKind::Connect
            && event
                .key
                .is_some_and(|key| self.connected.get(&key).is_some());
        PendingSockets::may_last(event) && !is_again
    }

    /// Notes the socket of a connect that is reported; any other event ends that.
    pub(super) fn note_connect(&mut self, event: &TrackedEvent) {
        match (event.key, event.kind) {
            (Some(key), EventKind::Connect) => self.connected.put(key, ()),
            (Some(key), EventKind::Listen) => {
                self.connected.pop(&key);
            }
            _ => {}
        }
    }

    /// Whether its socket has kept the port for long, and this is the first event since: one that
    /// stops listening again and again before it would last is reported once.
    fn is_first_of_lasting(&mut self, event: &TrackedEvent) -> bool {
        let Some((key, since)) = event.key.zip(event.since) else {
            return false;
        };
        let is_first = event.time.duration_since(since) >= LASTING && self.kept.get(&key).is_none();
        if is_first {
            self.kept.put(key, ());
        }
        is_first
    }

    /// Counts the events of a socket that came and went; `decided` is about the same socket.
    pub fn count(&mut self, pending: &Pending, decided: &Decided, now: Instant) {
        let sum = self.bursts.sum(None, decided, &self.settings, now);
        sum.raise(pending.severity);
        for (kind, times) in pending.counts() {
            sum.add_kind(decided, kind, times);
        }
    }

    /// The events of a socket that wait until it lasts.
    #[must_use]
    pub fn pending(&self, key: SocketKey) -> Option<Pending> {
        self.pending.get(key).copied()
    }

    /// Notes that these are reported or counted.
    pub fn forget_pending(&mut self, key: SocketKey) {
        self.pending.remove(key);
    }

    /// A socket whose events were not reported and that has lasted; None when there is no more, or no
    /// room for an alert.
    pub fn lasting(&mut self, now: Instant, out: &mut Vec<Output>) -> Option<Pending> {
        let rate = self.settings.max_rate;
        if !self.cap.allows(rate, now) {
            if self.pending.is_due(now) {
                self.hold_back(out);
            }
            return None;
        }
        let lasting = self.pending.lasting(now)?;
        self.cap.spend(rate, now);
        self.cap.count();
        Some(lasting)
    }

    /// A socket whose events were not reported: at the end, all of them last.
    pub fn take_pending(&mut self) -> Option<Pending> {
        self.pending.take()
    }

    /// Reports the last event of a socket that lasts, and counts those before it.
    pub fn report_lasting(
        &mut self,
        pending: &Pending,
        decided: Decided,
        now: Instant,
        out: &mut Vec<Output>,
    ) {
        let mut counts: Vec<_> = pending.counts().collect();
        if let Some((_, times)) = counts
            .iter_mut()
            .find(|(kind, _)| *kind == decided.event.kind.name())
        {
            *times -= 1;
        }
        if counts.iter().any(|(_, times)| *times > 0) {
            let sum = self.bursts.sum(None, &decided, &self.settings, now);
            for (kind, times) in counts.into_iter().filter(|(_, times)| *times > 0) {
                sum.add_kind(&decided, kind, times);
            }
        }
        self.note_connect(&decided.event);
        self.kept.put(pending.key, ());
        out.push(Output::event(decided));
    }
}
