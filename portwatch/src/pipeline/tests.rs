//! Events in, alerts out: what is reported, what is counted, and that nothing is neither.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    model::{
        ConnectOutcome,
        EventKind::{self, Accept, Bind, Close, Connect, Listen, Summary},
        SocketKey, Transport,
    },
    output::Sink,
    registry::Registry,
    tracker::tests::{FakeHost, accept, event},
};

mod attacks;
mod cap;
mod guarantee;
mod sessions;

/// A pipeline and its clock.
struct Run {
    pipeline: Pipeline<FakeHost>,
    start: Instant,
    now: Instant,
    alerts: Vec<Alert>,
}

impl Run {
    fn new(settings: Settings) -> Self {
        let registry = Registry::embedded().unwrap();
        let decider = Decider::new(registry, Policy::default(), false);
        let sinks = Sinks::new(vec![Sink::Memory(Vec::new())]);
        let now = Instant::now();
        let machine = FakeHost::default();
        Self {
            pipeline: Pipeline::new(machine, Printable::from("db1"), decider, settings, sinks),
            start: now,
            now,
            alerts: Vec::new(),
        }
    }

    /// An event that happens now.
    fn push(&mut self, event: Event) -> &mut Self {
        let since_start = self.now.duration_since(self.start);
        let time = Timestamp::UNIX_EPOCH + SignedDuration::try_from(since_start).unwrap();
        self.pipeline
            .push(Input::Event(Event { time, ..event }), self.now);
        self.take();
        self
    }

    /// Lets time pass, as the monitor does: it flushes when something is due.
    fn wait(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(due) = self.pipeline.due().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.pipeline.flush(self.now);
            self.take();
        }
        self.now = end;
        self
    }

    fn finish(&mut self) -> &mut Self {
        self.pipeline.finish(self.now);
        self.take();
        self
    }

    fn take(&mut self) {
        self.alerts.extend(self.pipeline.sinks_mut().take_kept());
    }

    /// The kinds of the alerts so far.
    fn kinds(&mut self) -> Vec<EventKind> {
        self.alerts.drain(..).map(|alert| alert.event).collect()
    }

    /// How many events of each kind were reported or counted.
    fn totals(&self) -> BTreeMap<&'static str, u64> {
        let mut totals = BTreeMap::new();
        for alert in &self.alerts {
            match &alert.summary {
                Some(summary) => {
                    for (kind, count) in &summary.counts {
                        *totals.entry(*kind).or_default() += count;
                    }
                }
                None => *totals.entry(alert.event.name()).or_default() += 1,
            }
        }
        totals
    }
}

/// An event of process 812 on that port.
fn on(kind: EventKind, port: u16, cookie: u64) -> Event {
    let actor = if kind == Close { 0 } else { 812 };
    Event {
        port,
        ..event(kind, cookie, actor)
    }
}

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn what_a_socket_turns_out_to_be_is_reported_in_one_line() {
    /// An event and how long after the one before, in milliseconds.
    type Steps = &'static [(EventKind, u64)];
    let cases: [(&str, Steps, &[EventKind]); 7] = [
        (
            "a client",
            &[(Bind, 0), (Connect, 0), (Close, 50)],
            &[Connect],
        ),
        (
            "a client without bind",
            &[(Connect, 0), (Close, 0)],
            &[Connect],
        ),
        (
            "a slow client",
            &[(Bind, 0), (Connect, 50), (Close, 0)],
            &[Bind, Connect, Close],
        ),
        (
            "a server",
            &[(Bind, 0), (Listen, 0), (Close, 50)],
            &[Bind, Listen, Close],
        ),
        (
            "a client whose connect failed and that then listens",
            &[(Bind, 0), (Connect, 0), (Listen, 5), (Close, 50)],
            &[Connect, Listen, Close],
        ),
        ("neither", &[(Bind, 0), (Close, 0)], &[Bind, Close]),
        ("neither, and it stays", &[(Bind, 0)], &[Bind]),
    ];
    for (what, events, expected) in cases {
        let mut run = Run::new(Settings::default());
        for (kind, after) in events {
            run.wait(MS(*after)).push(on(*kind, 986, 5));
        }
        run.wait(MS(2));
        assert_eq!(run.kinds(), expected, "{what}");
    }
    // A connect stands for the close of a connection that was made, or of which no more is known.
    for (outcome, expected) in [
        (Some(ConnectOutcome::Failed), &[Connect, Close][..]),
        (Some(ConnectOutcome::Established), &[Connect]),
        (None, &[Connect]),
    ] {
        let mut run = Run::new(Settings::default());
        run.push(on(Bind, 986, 5)).push(on(Connect, 986, 5));
        run.wait(MS(50)).push(Event {
            outcome,
            ..on(Close, 986, 5)
        });
        let close = run.alerts.iter().find(|alert| alert.event == Close);
        assert_eq!(
            close.and_then(|alert| alert.outcome),
            outcome.filter(|_| close.is_some())
        );
        assert_eq!(run.kinds(), expected, "{outcome:?}");
    }
    // The end does not wait.
    let mut run = Run::new(Settings::default());
    run.push(on(Bind, 986, 5));
    assert_eq!(run.kinds(), []);
    assert_eq!(run.finish().kinds(), [Bind]);
}

#[test]
fn connections_are_reported_by_peer_and_counted_on_close() {
    let mut run = Run::new(Settings::default());
    run.push(on(Listen, 976, 5)).push(on(Listen, 977, 7));
    run.alerts.clear();
    for peer in [[10, 0, 0, 1], [10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 1]] {
        run.push(accept(5, peer));
    }
    assert_eq!(run.kinds(), [Accept, Accept]);
    run.push(on(Close, 976, 5)).push(on(Close, 977, 7));
    let totals: Vec<_> = run.alerts.iter().map(|alert| alert.accepts).collect();
    let five = crate::aggregate::Accepts { count: 4, peers: 2 };
    assert_eq!(totals, [Some(five), None]);
}

#[test]
fn connections_to_a_listener_whose_close_is_counted_are_counted_too() {
    let mut run = Run::new(Settings::default());
    for cookie in 1..=20 {
        run.push(on(Listen, 976, cookie));
        for _ in 0..3 {
            run.push(accept(cookie, [127, 0, 0, 1]));
        }
        run.push(on(Close, 976, cookie));
    }
    run.finish();
    // The closes that are reported carry the connections that are not.
    let on_closes: u64 = run
        .alerts
        .iter()
        .filter_map(|alert| alert.accepts)
        .map(|accepts| accepts.count - 1)
        .sum();
    let totals = run.totals();
    assert_eq!(totals["accept"] + on_closes, 60, "{totals:?}");
    assert_eq!((totals["listen"], totals["close"]), (20, 20));
}

#[test]
fn a_burst_is_its_first_events_and_summaries_ever_more_rarely() {
    let settings = Settings::default();
    let mut run = Run::new(settings);
    // One program on many ports, for a minute; it keeps nothing.
    for port in 1..=1000 {
        run.push(on(Listen, port, port.into()));
        run.wait(MS(30)).push(on(Close, port, port.into()));
        run.wait(MS(30));
    }
    run.wait(settings.idle_timeout * 2);
    let burst = settings.burst as usize;
    assert!(
        run.alerts[..burst]
            .iter()
            .all(|alert| alert.event != Summary)
    );
    let summaries: Vec<&Alert> = run.alerts[burst..].iter().collect();
    assert!(summaries.iter().all(|alert| alert.event == Summary));
    // 1.9 s, twice that, and so on, and the end.
    assert_eq!(summaries.len(), 6, "{:?}", summaries.len());
    let first = summaries[0].summary.as_ref().unwrap();
    let took = summaries[0].time;
    assert!(first.since < took);
    assert_eq!(run.totals(), [("close", 1000), ("listen", 1000)].into());
    let last = summaries[5].summary.as_ref().unwrap();
    assert_eq!(last.ports["tcp"].split('-').next_back(), Some("1000"));
    assert!(last.held.is_empty());
    assert!(summaries[5].process.is_some() && summaries[5].port.is_none());
    assert_eq!(summaries[0].severity, Severity::Warning);
    run.alerts.clear();
    // After that all is as before.
    run.push(on(Listen, 976, 5000));
    assert_eq!(run.kinds(), [Listen]);
}

#[test]
fn what_the_bpf_programs_counted_is_in_the_summaries() {
    let settings = Settings::default();
    let mut run = Run::new(settings);
    run.push(on(Listen, 976, 5)).push(accept(5, [127, 0, 0, 1]));
    let counted = |event, times, run: &mut Run| {
        run.pipeline.push(Input::Counted(event, times), run.now);
    };
    // To a tracked listener, to one that is gone, and a bind by nobody known.
    counted(accept(5, [127, 0, 0, 1]), 1000, &mut run);
    counted(accept(6, [127, 0, 0, 1]), 20, &mut run);
    counted(event(Bind, 0, 0), 300, &mut run);
    run.push(on(Close, 976, 5)).wait(settings.interval);
    let close = run.alerts.iter().find(|alert| alert.event == Close);
    assert_eq!(close.unwrap().accepts.unwrap().count, 1001);
    let mut counts: Vec<(&str, u64)> = Vec::new();
    for summary in run.alerts.iter().filter_map(|alert| alert.summary.as_ref()) {
        assert!(summary.held.is_empty());
        counts.extend(summary.counts.iter().map(|(event, count)| (*event, *count)));
    }
    counts.sort_unstable();
    assert_eq!(counts, [("accept", 20), ("bind", 300)]);
}

#[test]
fn without_aggregation_every_event_is_reported() {
    let off = Settings {
        enabled: false,
        ..Settings::default()
    };
    let mut run = Run::new(off);
    for _ in 0..50 {
        run.push(on(Bind, 976, 5))
            .push(on(Connect, 976, 5))
            .push(on(Close, 976, 5));
    }
    assert_eq!(run.alerts.len(), 150);
    assert_eq!(run.pipeline.due(), None);
}

#[test]
fn severity_follows_transport_and_event() {
    use Severity::{Notice, Warning};

    let cases = [
        (Transport::Udp, Bind, Warning),
        (Transport::UdpLite, Bind, Warning),
        (Transport::Tcp, Bind, Notice),
        (Transport::Tcp, Connect, Notice),
        (Transport::Tcp, Listen, Warning),
        (Transport::Udp, Close, Notice),
    ];
    for (transport, kind, severity) in cases {
        let mut run = Run::new(Settings::default());
        run.push(Event {
            transport,
            ..event(kind, 6, 1)
        })
        .wait(MS(2));
        let alert = run.alerts.pop().unwrap();
        assert_eq!(alert.severity, severity, "{transport:?} {kind:?}");
        assert_eq!(alert.transport, Some(transport));
    }
}
