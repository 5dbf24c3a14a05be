use std::{net::IpAddr, rc::Rc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    alert::{Origin, Peer},
    model::{
        EventKind::{Accept, Bind, Close, Connect, Listen},
        Severity,
    },
    process::{Process, Processes},
};

/// An alert on that port of the socket with that cookie, by this process.
fn alert(event: EventKind, port: u16, cookie: u64) -> Alert {
    let mut alert = Alert::loss(1, Printable::from("db1"));
    alert.lost = None;
    alert.event = event;
    alert.severity = if event == Listen {
        Severity::Warning
    } else {
        Severity::Notice
    };
    alert.port = Some(port);
    alert.transport = Some(Transport::Tcp);
    alert.socket.cookie = Some(cookie);
    thread_local! {
        static PROCESS: Option<Rc<Process>> =
            Processes::default().look_up(std::process::id()).map(Rc::new);
    }
    alert.process = PROCESS.with(Option::clone);
    if matches!(event, Bind | Connect) {
        alert.since = Some(alert.time);
    }
    alert
}

fn accept(cookie: u64, peer: [u8; 4]) -> Alert {
    Alert {
        peer: Some(Peer {
            address: IpAddr::from(peer),
            port: 40_000,
        }),
        ..alert(Accept, 976, cookie)
    }
}

/// The collapse and its clock.
struct Quietly {
    collapse: Aggregator,
    now: Instant,
    told: Vec<Alert>,
}

impl Quietly {
    fn new(quiet: Settings) -> Self {
        Self {
            collapse: Aggregator::new(quiet, Printable::from("db1")),
            now: Instant::now(),
            told: Vec::new(),
        }
    }

    fn pass(&mut self, alert: Alert) -> &mut Self {
        self.collapse.pass(alert, self.now, &mut self.told);
        self
    }

    /// Lets time go by, as the monitor does: it looks when something is due.
    fn wait(&mut self, time: Duration) -> &mut Self {
        let end = self.now + time;
        while let Some(due) = self.collapse.due().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.collapse.flush(self.now, &mut self.told);
        }
        self.now = end;
        self
    }

    fn told(&mut self) -> Vec<EventKind> {
        self.told.drain(..).map(|alert| alert.event).collect()
    }
}

#[test]
fn what_a_socket_turns_out_to_be_is_told_in_one_line() {
    let ms = Duration::from_millis;
    /// An event and how long after the one before, in milliseconds.
    type Steps = &'static [(EventKind, u64)];
    let cases: [(&str, Steps, &[EventKind]); 6] = [
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
            "a client that takes its time",
            &[(Bind, 0), (Connect, 50), (Close, 0)],
            &[Bind, Connect, Close],
        ),
        (
            "a server",
            &[(Bind, 0), (Listen, 0), (Close, 50)],
            &[Bind, Listen, Close],
        ),
        ("neither", &[(Bind, 0), (Close, 0)], &[Bind, Close]),
        ("neither, and it stays", &[(Bind, 0)], &[Bind]),
    ];
    for (what, events, expected) in cases {
        let mut quietly = Quietly::new(Settings::default());
        let bound = alert(Bind, 986, 5);
        for (event, after) in events {
            let mut next = alert(*event, 986, 5);
            // Only a connect that took the port itself is as old as the stay.
            if *event == Connect && events[0].0 == Bind {
                next.since = bound.since;
            }
            quietly.wait(ms(*after)).pass(next);
        }
        quietly.wait(ms(2));
        assert_eq!(quietly.told(), expected, "{what}");
    }
    // The end does not wait.
    let mut quietly = Quietly::new(Settings::default());
    quietly.pass(alert(Bind, 986, 5));
    assert_eq!(quietly.told(), []);
    quietly.collapse.finish(quietly.now, &mut quietly.told);
    assert_eq!(quietly.told(), [Bind]);
}

#[test]
fn connections_are_told_by_peer_and_counted_on_close() {
    let mut quietly = Quietly::new(Settings::default());
    for peer in [[10, 0, 0, 1], [10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 1]] {
        quietly.pass(accept(5, peer));
    }
    quietly.pass(accept(6, [10, 0, 0, 1]));
    assert_eq!(quietly.told.len(), 3);
    quietly.told.clear();
    quietly
        .pass(alert(Close, 976, 5))
        .pass(alert(Close, 977, 7));
    let totals: Vec<_> = quietly.told.iter().map(|alert| alert.accepts).collect();
    let five = crate::alert::Accepts { count: 4, peers: 2 };
    assert_eq!(totals, [Some(five), None]);
}

#[test]
fn a_burst_is_a_beginning_sums_and_what_is_held() {
    let quiet = Settings::default();
    let mut quietly = Quietly::new(quiet);
    // One program on many ports, for two minutes and a half; it keeps the last three.
    for port in 1..=1000 {
        quietly.pass(alert(Listen, port, port.into()));
        if port <= 997 {
            quietly.pass(alert(Close, port, port.into()));
        }
        quietly.wait(Duration::from_millis(150));
    }
    quietly.wait(quiet.idle_timeout);
    let (first, sums) = quietly.told.split_at(quiet.burst as usize);
    assert!(
        first
            .iter()
            .all(|alert| matches!(alert.event, Listen | Close))
    );
    assert_eq!(sums.len(), 3);
    let count: u64 = sums
        .iter()
        .flat_map(|alert| alert.summary.as_ref().unwrap().counts.values())
        .sum();
    assert_eq!(count, 1000 + 997 - u64::from(quiet.burst));
    let last = sums[2].summary.as_ref().unwrap();
    assert_eq!(last.ports["tcp"].split('-').next_back(), Some("1000"));
    assert!(sums[2].process.is_some() && sums[2].port.is_none());
    assert_eq!(sums[2].severity, Severity::Warning);
    quietly.told.clear();
    // After that all is as before.
    quietly
        .wait(quiet.idle_timeout * 2)
        .pass(alert(Listen, 976, 9));
    assert_eq!(quietly.told(), [Listen]);
}

#[test]
fn many_programs_on_one_port_are_a_burst_too() {
    let mut quietly = Quietly::new(Settings::default());
    for cookie in 0..10_000 {
        let mut bind = alert(Bind, 976, cookie);
        bind.transport = Some(Transport::Udp);
        let mut process = bind.process.as_deref().unwrap().clone();
        process.exe = Some(Printable::from(format!("/tmp/{cookie}").as_str()));
        bind.process = Some(Rc::new(process));
        quietly.pass(bind);
    }
    quietly.wait(Duration::from_secs(60));
    let sum = quietly.told.pop().unwrap();
    assert_eq!(quietly.told.len(), Settings::default().burst as usize);
    assert_eq!(
        (sum.event, sum.port, sum.process.is_none()),
        (EventKind::Summary, Some(976), true)
    );
    let summary = sum.summary.unwrap();
    assert_eq!(summary.counts["bind"], 10_000 - 8);
    assert_eq!(summary.held["udp"], "976");
}

#[test]
fn what_matters_more_is_told_at_once_also_in_a_burst() {
    let mut quietly = Quietly::new(Settings::default());
    for cookie in 0..20 {
        quietly.pass(alert(Close, 976, cookie));
    }
    quietly.told.clear();
    for severity in [
        Severity::Warning,
        Severity::Warning,
        Severity::Critical,
        Severity::Critical,
    ] {
        let mut listen = alert(Listen, 976, 99);
        listen.severity = severity;
        quietly.pass(listen);
    }
    assert_eq!(quietly.told.len(), 2);
}

#[test]
fn what_was_there_before_is_told_in_full_and_nothing_is_collapsed_where_nobody_wants_it() {
    let mut quietly = Quietly::new(Settings::default());
    for port in 1..100 {
        let mut found = alert(Listen, port, port.into());
        found.origin = Origin::Snapshot;
        quietly.pass(found);
    }
    assert_eq!(quietly.told.len(), 99);

    let off = Settings {
        enabled: false,
        ..Settings::default()
    };
    let mut loudly = Quietly::new(off);
    for _ in 0..50 {
        loudly
            .pass(alert(Bind, 976, 5))
            .pass(alert(Connect, 976, 5))
            .pass(alert(Close, 976, 5));
    }
    assert_eq!(loudly.told.len(), 150);
    assert_eq!(loudly.collapse.due(), None);
}

#[test]
fn the_tables_are_bounded() {
    let mut quietly = Quietly::new(Settings::default());
    for cookie in 0..20_000 {
        quietly.pass(alert(Bind, 1 + (cookie % 1000) as u16, cookie));
        quietly.pass(accept(100_000 + cookie, [10, 0, 0, 1]));
    }
    assert!(quietly.collapse.held.len() <= HELD);
    assert!(quietly.collapse.peers.len() <= 4096);
    let long_ago = Timestamp::now() - SignedDuration::from_secs(1);
    assert!(
        quietly
            .told
            .iter()
            .all(|alert| alert.time > long_ago || alert.summary.is_none())
    );
}

#[test]
fn what_the_kernel_side_counted_is_in_the_sums() {
    let quiet = Settings::default();
    let mut quietly = Quietly::new(quiet);
    let counted = |alert, times, quietly: &mut Quietly| {
        quietly.collapse.repeat(alert, times, quietly.now);
    };
    quietly
        .pass(alert(Listen, 976, 5))
        .pass(accept(5, [10, 0, 0, 1]));
    // To a listener that is there, to one that is gone, and by nobody who is known.
    counted(accept(5, [10, 0, 0, 1]), 1000, &mut quietly);
    counted(accept(6, [10, 0, 0, 1]), 20, &mut quietly);
    let nobodys = Alert {
        process: None,
        ..alert(Bind, 976, 0)
    };
    counted(nobodys, 300, &mut quietly);
    quietly.pass(alert(Close, 976, 5));
    quietly.wait(quiet.interval);
    let close = quietly.told.iter().find(|alert| alert.event == Close);
    assert_eq!(close.unwrap().accepts.unwrap().count, 1001);
    let sums = quietly
        .told
        .iter()
        .filter_map(|alert| alert.summary.as_ref());
    let mut counts: Vec<(&str, u64)> = Vec::new();
    for sum in sums {
        assert!(sum.held.is_empty());
        counts.extend(sum.counts.iter().map(|(&event, &count)| (event, count)));
    }
    counts.sort_unstable();
    assert_eq!(counts, [("accept", 20), ("bind", 300)]);
}
