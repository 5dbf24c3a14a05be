//! Scans beside events.

use std::sync::Arc;

use super::*;
use crate::{inventory::Scope, model::Origin};

/// The socket with that cookie, as a scan finds it.
pub(super) fn found_socket(kind: EventKind, cookie: u64, holders: &[u32]) -> FoundSocket {
    FoundSocket {
        event: Event {
            netns_cookie: None,
            ..event(kind, cookie, 0)
        },
        netns: NETNS,
        holders: holders.iter().map(|pid| Rc::new(process(*pid))).collect(),
        holders_omitted: 0,
        is_known: false,
        marked: true,
        is_outgoing: false,
    }
}

impl<H: Host> Tracker<H> {
    /// Joins a complete scan that shows these; returns whether another is needed.
    pub(super) fn scan(&mut self, found: Vec<FoundSocket>, out: &mut Vec<TrackedEvent>) -> bool {
        self.begin_scan();
        self.reconcile(found, &all(), out)
    }
}

/// Kind, origin and cookie of each.
pub(super) fn outline(events: &[TrackedEvent]) -> Vec<(EventKind, Origin, u64)> {
    let cookie = |event: &TrackedEvent| event.key.and_then(SocketKey::cookie).unwrap_or(0);
    let line = |event: &TrackedEvent| (event.kind, event.origin, cookie(event));
    events.iter().map(line).collect()
}

/// The scan of a host on which all namespaces, transports and test ports are covered.
pub(super) fn all() -> Coverage {
    let ports = [976, 977].into_iter();
    let watched = ports.flat_map(|port| Transport::ALL.map(|transport| (port, transport)));
    Coverage {
        scope: Arc::new(Scope {
            watched: watched.collect(),
            ..Scope::default()
        }),
        read: HashSet::from([NETNS, NETNS + 1, THREAD_NETNS]),
        unread: Vec::new(),
        unshown: Vec::new(),
        bound: true,
        absent: Vec::new(),
    }
}

#[test]
fn nothing_is_missed_and_nothing_reported_twice_while_a_scan_runs() {
    use EventKind::{Accept, Bind, Close, Connect, Listen};
    use Origin::{Live, Snapshot};

    struct Case {
        what: &'static str,
        before: Vec<Event>,
        during: Vec<Event>,
        found: Vec<FoundSocket>,
        reported: Vec<(EventKind, Origin, u64)>,
    }
    let case = |what, before, during, found, reported| Case {
        what,
        before,
        during,
        found,
        reported,
    };
    let cases = [
        case(
            "existed before",
            vec![],
            vec![],
            vec![found_socket(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5)],
        ),
        case(
            "reported live and found",
            vec![event(Bind, 5, 7)],
            vec![event(Listen, 5, 7)],
            vec![found_socket(Listen, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Live, 5)],
        ),
        case(
            "bound meanwhile, too late to be found",
            vec![],
            vec![event(Bind, 5, 7)],
            vec![],
            vec![(Bind, Live, 5)],
        ),
        case(
            "found, and its bind reported after that",
            vec![],
            vec![],
            vec![found_socket(Bind, 5, &[7])],
            vec![(Bind, Snapshot, 5)],
        ),
        case(
            "bound and closed meanwhile, and found in between",
            vec![],
            vec![event(Bind, 5, 7), event(Close, 5, 0)],
            vec![found_socket(Bind, 5, &[7])],
            vec![(Bind, Live, 5), (Close, Live, 5)],
        ),
        case(
            "existed before, marked, and closed meanwhile",
            vec![],
            vec![event(Close, 5, 0)],
            vec![found_socket(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5), (Close, Live, 5)],
        ),
        case(
            "existed before, connected to meanwhile",
            vec![],
            vec![accept(0, [10, 0, 0, 9])],
            vec![found_socket(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5), (Accept, Live, 5)],
        ),
        case(
            "its close was lost",
            vec![event(Bind, 5, 7), event(Bind, 6, 7)],
            vec![],
            vec![found_socket(Bind, 6, &[7])],
            vec![(Bind, Live, 5), (Bind, Live, 6), (Close, Snapshot, 5)],
        ),
        case(
            "its listen was lost",
            vec![event(Bind, 5, 7)],
            vec![],
            vec![found_socket(Listen, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Snapshot, 5)],
        ),
        case(
            "its listen comes while it runs",
            vec![event(Bind, 5, 7)],
            vec![event(Listen, 5, 7)],
            vec![found_socket(Bind, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Live, 5)],
        ),
        case(
            "an accepted connection that outlives its listener",
            vec![event(Listen, 4, 7), event(Close, 4, 0)],
            vec![],
            vec![found_socket(Connect, 5, &[7])],
            vec![(Listen, Live, 4), (Close, Live, 4)],
        ),
        case(
            "an outgoing connection from a port that was listened on",
            vec![event(Listen, 4, 7), event(Close, 4, 0)],
            vec![],
            vec![FoundSocket {
                is_outgoing: true,
                ..found_socket(Connect, 5, &[7])
            }],
            vec![(Listen, Live, 4), (Close, Live, 4), (Connect, Snapshot, 5)],
        ),
        case(
            "an outgoing connection from before",
            vec![],
            vec![],
            vec![found_socket(Connect, 5, &[7])],
            vec![(Connect, Snapshot, 5)],
        ),
    ];
    for Case {
        what,
        before,
        during,
        found,
        reported,
    } in cases
    {
        let mut tracker = tracker();
        let mut events = Vec::new();
        for event in before {
            tracker.observe(event, &mut events);
        }
        tracker.begin_scan();
        for event in during {
            tracker.observe(event, &mut events);
        }
        // What is absent must be so twice.
        if tracker.reconcile(found.clone(), &all(), &mut events) {
            assert!(!tracker.scan(found.clone(), &mut events));
        }
        assert_eq!(outline(&events), reported, "{what}");
        // And a second scan finds no news.
        let is_closed = |cookie| {
            let close = |line: &&(EventKind, Origin, u64)| line.0 == Close && line.2 == cookie;
            reported.iter().any(|line| close(&line))
        };
        let mut still = found;
        still.retain(|socket| !is_closed(socket.event.cookie().unwrap_or(0)));
        let before = events.len();
        if what.contains("too late") {
            still.push(found_socket(Bind, 5, &[7]));
        }
        if what.contains("comes while") {
            still = vec![found_socket(Listen, 5, &[7])];
        }
        tracker.scan(still, &mut events);
        assert_eq!(events.len(), before, "{what}: {:?}", outline(&events));
    }

    // The bind of a found socket is reported once.
    let mut tracker = tracker();
    let mut events = Vec::new();
    tracker.scan(vec![found_socket(Bind, 5, &[7])], &mut events);
    assert!(tracker.all(&event(Bind, 5, 7)).is_empty());
}

#[test]
fn a_close_that_a_scan_reported_is_not_reported_again() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 812));
    let mut events = Vec::new();
    for _ in 0..2 {
        tracker.scan(Vec::new(), &mut events);
    }
    assert_eq!(outline(&events), [(EventKind::Close, Origin::Snapshot, 5)]);
    assert!(tracker.all(&event(EventKind::Close, 5, 0)).is_empty());
}

#[test]
fn a_socket_that_one_scan_misses_and_the_next_shows_is_open() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 812));
    let mut events = Vec::new();
    let there = || vec![found_socket(EventKind::Bind, 5, &[812])];
    for (found, again) in [
        (Vec::new(), true),
        (there(), false),
        (Vec::new(), true),
        (there(), false),
    ] {
        assert_eq!(tracker.scan(found, &mut events), again);
    }
    assert!(events.is_empty(), "{events:?}");
}

#[test]
fn an_unowned_socket_is_reported_when_two_scans_show_it() {
    let mut tracker = tracker();
    // Without sock_diag it has no cookie.
    let without_cookie = FoundSocket {
        event: Event {
            key: Some(SocketKey::Inode(9)),
            ..event(EventKind::Bind, 9, 0)
        },
        ..found_socket(EventKind::Bind, 9, &[])
    };
    let passing = found_socket(EventKind::Listen, 5, &[]);
    let mut events = Vec::new();
    for (found, again) in [
        (vec![passing, without_cookie.clone()], true),
        (vec![without_cookie], false),
        (Vec::new(), true),
        (Vec::new(), false),
    ] {
        assert_eq!(tracker.scan(found, &mut events), again);
    }
    let kinds: Vec<EventKind> = events.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [EventKind::Bind, EventKind::Close]);
    assert!(
        events
            .iter()
            .all(|event| event.key == Some(SocketKey::Inode(9)))
    );
}

#[test]
fn what_a_scan_does_not_cover_is_not_closed() {
    let udplite = Event {
        transport: Transport::UdpLite,
        ..event(EventKind::Bind, 6, 7)
    };
    let cases = [
        (
            event(EventKind::Bind, 5, 7),
            Coverage {
                read: HashSet::from([NETNS + 1]),
                ..all()
            },
        ),
        (
            event(EventKind::Bind, 5, 7),
            Coverage {
                scope: Arc::default(),
                ..all()
            },
        ),
        (
            event(EventKind::Bind, 5, 7),
            Coverage {
                bound: false,
                ..all()
            },
        ),
        (
            udplite,
            Coverage {
                unshown: vec![Transport::UdpLite],
                ..all()
            },
        ),
    ];
    for (event, coverage) in cases {
        let mut tracker = tracker();
        tracker.one(&event);
        let mut events = Vec::new();
        for (coverage, closed) in [(&coverage, 0), (&coverage, 0), (&all(), 0), (&all(), 1)] {
            tracker.begin_scan();
            tracker.reconcile(Vec::new(), coverage, &mut events);
            assert_eq!(events.len(), closed, "{events:?}");
        }
    }
}

#[test]
fn holders_are_looked_for_once_and_carried_by_the_next_event() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 1));
    let listen = tracker.one(&event(EventKind::Listen, 5, 1));
    let pids = |event: &TrackedEvent| event.holders.iter().map(|one| one.pid).collect::<Vec<_>>();
    assert_eq!(pids(&listen), [1]);
    assert!(tracker.wants_scan());
    let found = vec![found_socket(EventKind::Listen, 5, &[1, 812])];
    tracker.scan(found, &mut Vec::new());
    assert!(!tracker.wants_scan());
    let accept = tracker.one(&accept(5, [127, 0, 0, 1]));
    assert_eq!((pids(&accept), pid(&accept)), (vec![1, 812], Some(1)));
}

#[test]
fn a_kernel_socket_has_no_process() {
    let mut tracker = tracker();
    let bind = Event {
        is_kernel_socket: Some(true),
        ..event(EventKind::Bind, 5, 812)
    };
    let tracked = tracker.one(&bind);
    assert_eq!(
        (pid(&tracked), tracked.is_kernel_socket),
        (None, Some(true))
    );
    assert_eq!((tracked.holders.len(), tracked.netns), (0, Some(NETNS)));
    assert!(tracker.has_unmarked() && !tracker.wants_scan());
}

#[test]
fn an_existing_socket_is_marked_once_and_by_the_second_scan() {
    let mut tracker = tracker();
    let unmarked = |marked| FoundSocket {
        marked,
        event: Event {
            is_kernel_socket: Some(false),
            ..event(EventKind::Listen, 5, 0)
        },
        ..found_socket(EventKind::Listen, 5, &[7])
    };
    let event = unmarked(false).event;
    assert!(!tracker.is_to_mark(&event, NETNS));
    tracker.scan(vec![unmarked(false)], &mut Vec::new());
    assert!(tracker.has_unmarked());
    assert!(tracker.is_to_mark(&event, NETNS));
    assert!(!tracker.is_to_mark(&event, NETNS));
    tracker.scan(vec![unmarked(true)], &mut Vec::new());
    assert!(!tracker.has_unmarked());
}

#[test]
fn a_listen_by_nobody_known_waits_for_the_scan_that_shows_its_holders() {
    use EventKind::{Accept, Close, Listen};

    let begin = || {
        let mut tracker = tracker();
        assert!(tracker.all(&event(Listen, 5, 0)).is_empty());
        assert!(tracker.all(&accept(5, [127, 0, 0, 1])).is_empty());
        assert!(tracker.waits_for_scan());
        tracker
    };
    let kinds = |events: &[TrackedEvent]| {
        let line = |event: &TrackedEvent| (event.kind, pid(event));
        events.iter().map(line).collect::<Vec<_>>()
    };
    let mut events = Vec::new();
    let mut shown = begin();
    shown.scan(vec![found_socket(Listen, 5, &[99, 7])], &mut events);
    assert_eq!(kinds(&events), [(Listen, Some(99)), (Accept, Some(99))]);
    assert!(!shown.waits_for_scan());

    // Not shown: reported without a process, in order.
    let mut not_shown = begin();
    events.clear();
    not_shown.scan(Vec::new(), &mut events);
    assert_eq!(kinds(&events[..2]), [(Listen, None), (Accept, None)]);

    // Closed before a scan, or the scan failed.
    let mut closed = begin();
    let events = closed.all(&event(Close, 5, 0));
    assert_eq!(
        kinds(&events),
        [(Listen, None), (Accept, None), (Close, None)]
    );
    let mut failed = begin();
    let mut events = Vec::new();
    failed.abandon_scan(&mut events);
    assert_eq!(kinds(&events), [(Listen, None), (Accept, None)]);
}

#[test]
fn a_listener_elsewhere_does_not_hide_an_outgoing_connection() {
    let mut tracker = tracker();
    let elsewhere = Event {
        netns: Some(NETNS + 1),
        netns_cookie: None,
        ..event(EventKind::Listen, 4, 7)
    };
    tracker.one(&elsewhere);
    let mut events = Vec::new();
    tracker.scan(
        vec![
            FoundSocket {
                netns: NETNS + 1,
                ..found_socket(EventKind::Listen, 4, &[7])
            },
            found_socket(EventKind::Connect, 5, &[7]),
        ],
        &mut events,
    );
    assert_eq!(
        outline(&events),
        [(EventKind::Connect, Origin::Snapshot, 5)]
    );
}
