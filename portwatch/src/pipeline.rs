//! From what happened to what the operator reads: track, decide, aggregate, write. Every alert takes
//! this way.
//!
//! ```text
//! Event, counted events, scan  --tracker-->    TrackedEvent
//! TrackedEvent                 --decide-->     Decided
//! Decided                      --aggregate-->  Output
//! Output, loss, health         --alert-->      Alert --> sinks
//! ```
#![forbid(unsafe_code)]

use std::time::Instant;

use jiff::Timestamp;

use crate::{
    aggregate::{Aggregator, Capped, Output, Pending, Settings},
    alert::Alert,
    decide::Decider,
    inventory::{Coverage, FoundSocket},
    model::{Event, EventKind, Origin, Printable, Severity},
    output::Sinks,
    policy::Policy,
    tracker::{Host, TrackedEvent, Tracker},
};

/// What happened.
#[derive(Debug)]
pub enum Input {
    /// The BPF programs reported an event.
    Event(Event),
    /// The BPF programs counted so many events like this one.
    Counted(Event, u64),
    /// A scan that began with [`Pipeline::begin_scan`] is complete.
    Scan(Vec<FoundSocket>, Coverage),
    /// A scan failed: what waits for it is reported as it is.
    ScanFailed,
    /// So many reports found the ring buffer full.
    Loss(u64),
    /// A part of the monitor was lost or restored.
    Health(Severity, String),
}

/// The stages, and what is on its way between them.
pub struct Pipeline<H> {
    tracker: Tracker<H>,
    decider: Decider,
    aggregator: Aggregator,
    sinks: Sinks,
    /// The host's name.
    host: Printable,
    tracked: Vec<TrackedEvent>,
    outputs: Vec<Output>,
    /// Whether the last scan asks for another.
    needs_scan: bool,
}

impl<H: Host> Pipeline<H> {
    /// Nothing has happened yet on `machine`, called `host`.
    pub fn new(
        machine: H,
        host: Printable,
        decider: Decider,
        settings: Settings,
        sinks: Sinks,
    ) -> Self {
        Self {
            tracker: Tracker::new(machine),
            decider,
            aggregator: Aggregator::new(settings),
            sinks,
            host,
            tracked: Vec::new(),
            outputs: Vec::new(),
            needs_scan: false,
        }
    }

    /// Takes what happened, and queues the alerts for it in the sinks.
    pub fn push(&mut self, input: Input, now: Instant) {
        match input {
            Input::Event(event) => self.tracker.observe(event, &mut self.tracked),
            Input::Counted(event, times) => {
                let event = self.tracker.counted(&event);
                let is_summed = self.aggregator.sum_counted_sessions(&event, times);
                match self.decider.decide(event) {
                    Some(decided) if decided.event.session.is_none() => {
                        self.aggregator.add_counted(decided, times, now);
                    }
                    Some(decided) if !is_summed || self.aggregator.wants_sessions(&decided) => {
                        self.aggregator.count_session(&decided, now);
                    }
                    _ => {}
                }
                self.count_dropped_sessions(now);
            }
            Input::Scan(found, coverage) => {
                self.needs_scan = self.tracker.reconcile(found, &coverage, &mut self.tracked);
            }
            Input::ScanFailed => self.tracker.abandon_scan(&mut self.tracked),
            Input::Loss(count) => self.sinks.write(&Alert::loss(count, self.host.clone())),
            Input::Health(severity, detail) => {
                self.sinks
                    .write(&Alert::health(severity, &detail, self.host.clone()));
            }
        }
        self.advance(now);
    }

    /// Queues the alerts that are due by now.
    pub fn flush(&mut self, now: Instant) {
        while let Some(pending) = self.aggregator.lasting(now, &mut self.outputs) {
            self.report_lasting(&pending, now);
        }
        self.aggregator.flush(now, &mut self.outputs);
        self.write();
    }

    /// When [`flush`](Self::flush) has something to do; None when nothing waits.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.aggregator.due()
    }

    /// Queues everything that waits: the end.
    pub fn finish(&mut self, now: Instant) {
        self.tracker.abandon_scan(&mut self.tracked);
        self.advance(now);
        self.report_waiting(now);
    }

    /// Reports and sums up all that waits in the aggregation.
    fn report_waiting(&mut self, now: Instant) {
        self.aggregator.release_delayed(now, &mut self.outputs);
        // What is open at the end lasts, as far as anyone will ever know.
        while let Some(pending) = self.aggregator.take_pending() {
            self.report_lasting(&pending, now);
        }
        self.aggregator.finish(now, &mut self.outputs);
        self.write();
    }

    /// The existing sockets alone, as a monitor that starts now would report them.
    pub fn list(&mut self, found: Vec<FoundSocket>) -> Vec<Alert> {
        self.tracked = self.tracker.list(found);
        self.advance(Instant::now());
        self.sinks.take_kept()
    }

    fn advance(&mut self, now: Instant) {
        for event in self.tracked.drain(..) {
            let is_summed = self.aggregator.sum_sessions(&event);
            let sessions = self.aggregator.take_sessions(&event);
            let pending = event.key.filter(|_| event.kind == EventKind::Close);
            let pending = pending.and_then(|key| self.aggregator.pending(key));
            let before = pending.map(|pending| TrackedEvent {
                kind: pending.kind,
                time: pending.time,
                outcome: None,
                lasted: false,
                ..event.clone()
            });
            let closed = event.time;
            let decided = self.decider.decide(event);
            // It lasted, although its close is read as soon as its first events; or a rule ignores
            // the close.
            if let Some((pending, before)) = pending.zip(before)
                && (pending.lasted(closed) || decided.is_none())
            {
                self.aggregator.forget_pending(pending.key);
                let is_reported =
                    pending.lasted(closed) && self.aggregator.admits(now, &mut self.outputs);
                match self.decider.decide(before) {
                    Some(before) if is_reported => {
                        let outputs = &mut self.outputs;
                        self.aggregator
                            .report_lasting(&pending, before, now, outputs);
                    }
                    Some(before) => self.aggregator.count(&pending, &before, now),
                    None => {}
                }
            }
            if let Some(mut decided) = decided {
                decided.sessions = sessions;
                if is_summed || self.aggregator.wants_sessions(&decided) {
                    self.aggregator.push(decided, now, &mut self.outputs);
                } else {
                    self.aggregator.count_session(&decided, now);
                }
            }
        }
        self.count_dropped_sessions(now);
        self.write();
    }

    /// Counts the connections of a listener that there was no more room for.
    fn count_dropped_sessions(&mut self, now: Instant) {
        while let Some(dropped) = self.aggregator.take_dropped_sessions() {
            let known = (Timestamp::now(), Origin::Live);
            let (key, port_key) = (dropped.key, dropped.port_key);
            let (event, _) = self
                .tracker
                .current(key, port_key, EventKind::Session, known);
            let event = TrackedEvent {
                session: Some(dropped.session),
                ..event
            };
            if let Some(decided) = self.decider.decide(event) {
                self.aggregator.count_session(&decided, now);
            }
        }
    }

    /// Reports a socket whose events were not, and that lasts.
    fn report_lasting(&mut self, pending: &Pending, now: Instant) {
        let (kind, known) = (pending.kind, (pending.time, pending.origin));
        let (event, has_closed) = self
            .tracker
            .current(pending.key, pending.port_key, kind, known);
        match self.decider.decide(event) {
            Some(decided) if !has_closed => {
                let outputs = &mut self.outputs;
                self.aggregator
                    .report_lasting(pending, decided, now, outputs);
            }
            Some(decided) => self.aggregator.count(pending, &decided, now),
            None => {}
        }
    }

    fn write(&mut self) {
        for output in self.outputs.drain(..) {
            let host = self.host.clone();
            self.sinks.write(&match output {
                Output::Event(decided, accepts) => Alert::of_event(*decided, accepts, host),
                Output::Summary(summary) => Alert::of_summary(summary, self.tracker.open(), host),
                Output::Capped(capped) => {
                    let detail = match capped {
                        Capped::Began(rate) => format!(
                            "more than {rate} alerts a second: the others are reported later, or \
                             counted if their socket is closed by then (see max_rate)"
                        ),
                        Capped::Ended(held) => {
                            format!("alerts are no longer held back; {held} were")
                        }
                    };
                    Alert::health(Severity::Warning, &detail, host)
                }
            });
        }
    }

    /// Notes that a scan begins; everything that happened before must have been pushed.
    pub fn begin_scan(&mut self) {
        self.tracker.begin_scan();
    }

    /// Whether the last scan asks for another; false from then on.
    pub const fn take_needs_scan(&mut self) -> bool {
        std::mem::replace(&mut self.needs_scan, false)
    }

    /// The tracked sockets.
    pub const fn tracker(&mut self) -> &mut Tracker<H> {
        &mut self.tracker
    }

    /// The rules and the registry.
    #[must_use]
    pub const fn decider(&self) -> &Decider {
        &self.decider
    }

    /// Other rules and limits from now on.
    pub fn set_policy(&mut self, policy: Policy, dry_run: bool, settings: Settings, now: Instant) {
        // Without aggregation nothing waits.
        if !settings.enabled {
            self.report_waiting(now);
        }
        self.decider.set_policy(policy, dry_run);
        self.aggregator.set_settings(settings);
    }

    /// Where the alerts go.
    #[must_use]
    pub const fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Where the alerts go, to be flushed.
    pub const fn sinks_mut(&mut self) -> &mut Sinks {
        &mut self.sinks
    }
}

#[cfg(test)]
mod tests;
