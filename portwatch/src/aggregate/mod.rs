//! Sums up what comes and goes: what a socket turns out to be in one line, connections by peer, and
//! bursts as their first events and summaries. What lasts is always reported by itself, and what is
//! not reported is counted.
#![forbid(unsafe_code)]

mod bursts;
mod cap;
mod delayed;
mod group;
mod lasting;
mod peers;
mod pending;
mod sessions;
mod settings;
mod summary;

use std::time::Instant;

use self::{
    bursts::Bursts, cap::Cap, delayed::DelayedBinds, peers::Peers, pending::PendingSockets,
    sessions::SessionSums,
};
pub use self::{
    cap::Capped, group::Group, peers::Accepts, pending::Pending, settings::Settings,
    summary::Summary,
};
use crate::{
    decide::Decided,
    model::{ConnectOutcome, EventKind, Origin, Severity, SocketKey, Transport},
    util::Bounded,
};

/// Outgoing sockets whose close is not reported, because nothing but their connect was.
const CLIENTS: usize = 4096;

/// Sockets that are known to be reported; past that, the oldest can be reported anew.
const KEPT: usize = 4096;

/// What the operator is to read.
#[derive(Debug)]
pub enum Output {
    /// An event; a listener's close with its connections.
    Event(Box<Decided>, Option<Accepts>),
    /// Events that were counted.
    Summary(Summary),
    /// Alerts are held back, or no longer.
    Capped(Capped),
}

impl Output {
    fn event(decided: Decided) -> Self {
        Self::Event(Box::new(decided), None)
    }
}

/// Stands between the decision and the output.
pub struct Aggregator {
    settings: Settings,
    /// TCP binds that wait for what the socket turns out to be.
    delayed: DelayedBinds,
    clients: Bounded<SocketKey, ()>,
    peers: Peers,
    sessions: SessionSums,
    bursts: Bursts,
    pending: PendingSockets,
    /// Sockets that were reported because they had kept their port for long.
    kept: Bounded<SocketKey, ()>,
    /// Sockets of which a connect was reported: that it connects again is not news.
    connected: Bounded<SocketKey, ()>,
    cap: Cap,
}

impl Aggregator {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            delayed: DelayedBinds::default(),
            clients: Bounded::new(CLIENTS),
            peers: Peers::default(),
            sessions: SessionSums::default(),
            bursts: Bursts::default(),
            pending: PendingSockets::default(),
            kept: Bounded::new(KEPT),
            connected: Bounded::new(KEPT),
            cap: Cap::default(),
        }
    }

    /// Other limits from now on.
    pub const fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Takes an event, and adds what is to be reported now.
    pub fn push(&mut self, decided: Decided, now: Instant, out: &mut Vec<Output>) {
        if decided.event.kind == EventKind::Session {
            let session = decided.event.session;
            let is_one = session.is_some_and(|session| session.is_one());
            if is_one && self.wants_sessions(&decided) {
                match self.settings.enabled {
                    true => self.report(decided, now, out),
                    false => out.push(Output::event(decided)),
                }
            }
            return;
        }
        if !self.settings.enabled {
            out.push(Output::event(decided));
            return;
        }
        if let Some(key) = decided.event.key {
            let bind = self.delayed.remove(key);
            match decided.event.kind {
                EventKind::Bind if self.is_to_wait(&decided) => {
                    // The kernel had given it a port, which it lost by disconnecting.
                    if let Some(before) = bind {
                        self.report(before, now, out);
                    }
                    let deadline = now + self.settings.bind_delay;
                    if let Some(oldest) = self.delayed.add(key, decided, deadline) {
                        self.report(oldest, now, out);
                    }
                    return;
                }
                EventKind::Connect if bind.is_some() || decided.event.is_first() => {
                    self.clients.put(key, ());
                    // The connect stands for the bind, unless that matters more.
                    if let Some(bind) = bind.filter(|bind| bind.severity > decided.severity) {
                        self.report(bind, now, out);
                    }
                }
                // The connect stands for the close, unless that matters more or shows that it failed.
                EventKind::Close
                    if self.clients.pop(&key).is_some()
                        && decided.severity == Severity::Notice
                        && decided.event.outcome != Some(ConnectOutcome::Failed) =>
                {
                    if let Some(pending) = self.pending.remove(key) {
                        self.count(&pending, &decided, now);
                    }
                    return;
                }
                kind => {
                    if kind == EventKind::Listen {
                        self.clients.pop(&key);
                    }
                    if let Some(bind) = bind {
                        self.report(bind, now, out);
                    }
                }
            }
        }
        if self.peers.is_new(&decided) {
            self.report(decided, now, out);
        }
        if let Some((decided, times)) = self.peers.take_evicted() {
            self.count_accepts(&decided, times, now);
        }
    }

    /// Takes what the BPF programs counted as `times` such events.
    pub fn add_counted(&mut self, decided: Decided, times: u64, now: Instant) {
        if !self.peers.add_counted(&decided, times) {
            self.bursts
                .add_counted(&decided, times, &self.settings, now);
        }
    }

    /// Reports an event, or counts it.
    fn report(&mut self, decided: Decided, now: Instant, out: &mut Vec<Output>) {
        let key = decided.event.key;
        let is_close = decided.event.kind == EventKind::Close;
        let connections = key
            .filter(|_| is_close)
            .and_then(|key| self.peers.close(key));
        let pending = key
            .filter(|_| is_close)
            .and_then(|key| self.pending.remove(key));
        let over = self.bursts.over(&decided, &self.settings, now);
        let is_reported = match &pending {
            _ if decided.severity == Severity::Critical => true,
            // What came and went is counted as a whole, unless its end is louder.
            Some(pending) => over.is_none() && decided.severity > pending.severity,
            None if decided.event.is_crowded => over.is_none(),
            None => over.is_none() || self.is_always_reported(&decided),
        };
        let mut is_held = false;
        let is_reported = is_reported
            && match decided.severity {
                Severity::Critical => {
                    self.cap.spend(self.settings.max_rate, now);
                    true
                }
                _ => {
                    let is_room = self.take_room(now, out);
                    is_held = !is_room;
                    is_room
                }
            };
        if !is_reported && !decided.event.is_crowded && self.may_be_news(&decided.event) {
            if self.pending.add(&decided, now) {
                return;
            }
        } else if !is_reported {
            if is_held {
                self.cap.count();
            }
            let sum = self.bursts.sum(over, &decided, &self.settings, now);
            sum.add(&decided, 1);
            if let Some(pending) = pending {
                self.count(&pending, &decided, now);
            }
            if let Some(connections) = connections.filter(|one| one.unreported > 0) {
                self.count_accepts(&decided, connections.unreported, now);
            }
            return;
        }
        // What of it was not reported before this is counted.
        let before = key.filter(|_| PendingSockets::may_last(&decided.event));
        if let Some(pending) = pending.or_else(|| self.pending.remove(before?)) {
            self.count(&pending, &decided, now);
        }
        self.note_connect(&decided.event);
        self.bursts.reported(&decided, &self.settings, now);
        let accepts = connections.map(|connections| connections.accepts);
        out.push(Output::Event(Box::new(decided), accepts));
    }

    fn count_accepts(&mut self, decided: &Decided, times: u64, now: Instant) {
        let sum = self.bursts.sum(None, decided, &self.settings, now);
        sum.add_kind(decided, EventKind::Accept.name(), times);
    }

    /// A TCP bind can be a server's or a client's: the next event shows which.
    fn is_to_wait(&self, decided: &Decided) -> bool {
        decided.event.port_key.transport == Transport::Tcp
            && decided.event.origin == Origin::Live
            && !self.settings.bind_delay.is_zero()
    }

    /// When [`flush`](Self::flush) or [`lasting`](Self::lasting) has something to do; None when
    /// nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let delayed = self.delayed.due();
        // While alerts are held back, there is something to do when there is room for one.
        let room = self.cap.next(self.settings.max_rate);
        match room.filter(|_| self.cap.is_on()) {
            Some(room) => Some(delayed.map_or(room, |due| due.min(room))),
            None => [delayed, self.pending.due(), self.bursts.due()]
                .into_iter()
                .flatten()
                .min(),
        }
    }

    /// Adds what has waited long enough.
    pub fn flush(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(bind) = self.delayed.take_due(now) {
            self.report(bind, now, out);
        }
        let (cap, rate) = (&mut self.cap, self.settings.max_rate);
        let mut is_held = false;
        self.bursts.flush(&self.settings, now, out, || {
            let is_room = cap.take(rate, now);
            is_held |= !is_room;
            is_room
        });
        if is_held {
            self.hold_back(out);
        }
        if !self.pending.is_due(now)
            && self.cap.allows(rate, now)
            && let Some(held) = self.cap.end()
        {
            out.push(Output::Capped(Capped::Ended(held)));
        }
    }

    /// Adds the binds that wait for what comes next.
    pub fn release_delayed(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some(bind) = self.delayed.take_oldest() {
            self.report(bind, now, out);
        }
    }

    /// Adds every sum: the end. Nothing must be pending.
    pub fn finish(&mut self, now: Instant, out: &mut Vec<Output>) {
        for (decided, times) in self.peers.take_unreported() {
            self.count_accepts(&decided, times, now);
        }
        self.bursts.finish(out);
    }
}
