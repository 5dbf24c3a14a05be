//! Sums up what comes and goes: what a socket turns out to be in one line, connections by peer, and
//! bursts as their first events and summaries. What lasts is always reported by itself, and what is
//! not reported is counted.
#![forbid(unsafe_code)]

mod bursts;
mod cap;
mod group;
mod peers;
mod pending;
mod sessions;
mod settings;
mod summary;

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use self::{
    bursts::Bursts, cap::Cap, peers::Peers, pending::PendingSockets, sessions::SessionSums,
};
pub use self::{
    cap::Capped, group::Group, peers::Accepts, pending::Pending, sessions::Dropped,
    settings::Settings, summary::Summary,
};
use crate::{
    decide::Decided,
    model::{ConnectOutcome, EventKind, Origin, Session, Sessions, Severity, SocketKey, Transport},
    tracker::{LASTING, TrackedEvent},
    util::Bounded,
};

/// Outgoing sockets whose close is not reported, because nothing but their connect was.
const CLIENTS: usize = 4096;

/// Binds that wait for what comes next; past that the oldest is reported.
const DELAYED: usize = 1024;

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
    delayed: HashMap<SocketKey, Decided>,
    /// In which order, and until when.
    deadlines: VecDeque<(Instant, SocketKey)>,
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
            delayed: HashMap::new(),
            deadlines: VecDeque::new(),
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

    /// Whether there is room for one more alert, which is counted otherwise.
    pub fn admits(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let is_room = self.take_room(now, out);
        if !is_room {
            self.cap.count();
        }
        is_room
    }

    /// Whether the cap leaves room for one more alert that is not `critical`; if so, it is taken. What
    /// waits comes first.
    fn take_room(&mut self, now: Instant, out: &mut Vec<Output>) -> bool {
        let rate = self.settings.max_rate;
        let waits = self.cap.is_on() && self.pending.due().is_some_and(|due| due <= now);
        if self.cap.allows(rate, now) && !waits {
            self.cap.spend(rate, now);
            return true;
        }
        if self.cap.begin() {
            out.push(Output::Capped(Capped::Began(rate)));
        }
        false
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
            let bind = self.delayed.remove(&key);
            match decided.event.kind {
                EventKind::Bind if self.is_to_wait(&decided) => {
                    // The kernel had given it a port, which it lost by disconnecting.
                    if let Some(before) = bind {
                        self.report(before, now, out);
                    }
                    self.delay(key, decided, now, out);
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

    /// Whether the event is reported by itself whatever else happens: its socket lasts.
    fn is_always_reported(&mut self, decided: &Decided) -> bool {
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
    fn may_be_news(&mut self, event: &TrackedEvent) -> bool {
        let is_again = event.kind == EventKind::Connect
            && event
                .key
                .is_some_and(|key| self.connected.get(&key).is_some());
        PendingSockets::may_last(event) && !is_again
    }

    /// Notes the socket of a connect that is reported; any other event ends that.
    fn note_connect(&mut self, event: &TrackedEvent) {
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

    fn count_accepts(&mut self, decided: &Decided, times: u64, now: Instant) {
        let sum = self.bursts.sum(None, decided, &self.settings, now);
        sum.add_kind(decided, EventKind::Accept.name(), times);
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

    /// A TCP bind can be a server's or a client's: the next event shows which.
    fn is_to_wait(&self, decided: &Decided) -> bool {
        decided.event.port_key.transport == Transport::Tcp
            && decided.event.origin == Origin::Live
            && !self.settings.bind_delay.is_zero()
    }

    fn delay(&mut self, key: SocketKey, bind: Decided, now: Instant, out: &mut Vec<Output>) {
        self.delayed.insert(key, bind);
        self.deadlines
            .push_back((now + self.settings.bind_delay, key));
        while self.delayed.len() > DELAYED
            && let Some((_, oldest)) = self.deadlines.pop_front()
        {
            self.release(oldest, now, out);
        }
    }

    fn release(&mut self, key: SocketKey, now: Instant, out: &mut Vec<Output>) {
        if let Some(bind) = self.delayed.remove(&key) {
            self.report(bind, now, out);
        }
    }

    /// When [`flush`](Self::flush) or [`lasting`](Self::lasting) has something to do; None when
    /// nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        let delayed = self.deadlines.front().map(|(deadline, _)| *deadline);
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
        while let Some((deadline, key)) = self.deadlines.front().copied()
            && deadline <= now
        {
            self.deadlines.pop_front();
            self.release(key, now, out);
        }
        let was_on = self.cap.is_on();
        let (cap, rate) = (&mut self.cap, self.settings.max_rate);
        self.bursts.flush(&self.settings, now, out, || {
            let is_room = cap.allows(rate, now);
            if is_room {
                cap.spend(rate, now);
            } else {
                cap.begin();
            }
            is_room
        });
        if !was_on && self.cap.is_on() {
            out.push(Output::Capped(Capped::Began(rate)));
        }
        let waits = self.pending.due().is_some_and(|due| due <= now);
        if !waits
            && self.cap.allows(rate, now)
            && let Some(held) = self.cap.end()
        {
            out.push(Output::Capped(Capped::Ended(held)));
        }
    }

    /// A socket whose events were not reported and that has lasted; None when there is no more, or no
    /// room for an alert.
    pub fn lasting(&mut self, now: Instant, out: &mut Vec<Output>) -> Option<Pending> {
        let rate = self.settings.max_rate;
        if !self.cap.allows(rate, now) {
            if self.pending.due().is_some_and(|due| due <= now) && self.cap.begin() {
                out.push(Output::Capped(Capped::Began(rate)));
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

    /// Adds the binds that wait for what comes next.
    pub fn release_delayed(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((_, key)) = self.deadlines.pop_front() {
            self.release(key, now, out);
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
