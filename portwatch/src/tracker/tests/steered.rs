//! Accepts without a listener on their port.

use jiff::SignedDuration;

use super::{scans::all, *};

/// An accept of the socket with that cookie, by a listener that has no mark, `age` ago.
fn accept(accepted: u64, age: SignedDuration) -> Event {
    Event {
        time: Timestamp::now() - age,
        accepted: Some(accepted),
        peer: Some("10.0.0.9:40000".parse().unwrap()),
        ..event(EventKind::Accept, 0, 0)
    }
}

fn found(kind: EventKind, cookie: u64, holders: &[u32]) -> FoundSocket {
    FoundSocket {
        event: Event {
            netns_cookie: None,
            ..event(kind, cookie, 0)
        },
        netns: NETNS,
        holders: holders.iter().map(|pid| Rc::new(process(*pid))).collect(),
        marked: true,
        is_outgoing: false,
        holders_omitted: 0,
        is_known: false,
    }
}

/// Kind and process of each.
fn outline(events: &[TrackedEvent]) -> Vec<(EventKind, Option<u32>)> {
    let pid = |event: &TrackedEvent| event.process.as_ref().map(|process| process.pid);
    events
        .iter()
        .map(|event| (event.kind, pid(event)))
        .collect()
}

const NEW: SignedDuration = SignedDuration::ZERO;
const OLD: SignedDuration = SignedDuration::from_secs(1);

#[test]
fn an_accept_without_a_listener_has_the_process_that_has_its_socket() {
    use EventKind::{Accept, Bind, Connect, Listen};

    struct Case {
        what: &'static str,
        before: Vec<Event>,
        age: SignedDuration,
        found: Vec<FoundSocket>,
        reported: Vec<(EventKind, Option<u32>)>,
        waits: bool,
    }
    let cases = [
        Case {
            what: "the scan shows who has it",
            before: vec![],
            age: NEW,
            found: vec![found(Connect, 50, &[7])],
            reported: vec![(Accept, Some(7))],
            waits: false,
        },
        Case {
            what: "another socket on the port does not listen",
            before: vec![event(Bind, 3, 812)],
            age: NEW,
            found: vec![found(Bind, 3, &[812]), found(Connect, 50, &[7])],
            reported: vec![(Bind, Some(812)), (Accept, Some(7))],
            waits: false,
        },
        Case {
            what: "nobody has called accept(2) yet",
            before: vec![],
            age: NEW,
            found: vec![],
            reported: vec![],
            waits: true,
        },
        Case {
            what: "nobody has called accept(2) for long",
            before: vec![],
            age: OLD,
            found: vec![],
            reported: vec![(Accept, None)],
            waits: false,
        },
        Case {
            what: "the scan shows a listener that is older than the monitor",
            before: vec![],
            age: NEW,
            found: vec![FoundSocket {
                marked: false,
                ..found(Listen, 4, &[9])
            }],
            reported: vec![(Listen, Some(9)), (Accept, Some(9))],
            waits: false,
        },
        Case {
            what: "another process listens on the port",
            before: vec![event(Listen, 3, 812)],
            age: NEW,
            found: vec![found(Listen, 3, &[812]), found(Connect, 50, &[7])],
            reported: vec![(Listen, Some(812)), (Accept, Some(7))],
            waits: false,
        },
        Case {
            what: "another process listens on the port, and nobody has called accept(2) for long",
            before: vec![event(Listen, 3, 812)],
            age: OLD,
            found: vec![found(Listen, 3, &[812])],
            reported: vec![(Listen, Some(812)), (Accept, None)],
            waits: false,
        },
        Case {
            what: "an outgoing connection of another socket",
            before: vec![],
            age: NEW,
            found: vec![found(Connect, 50, &[7]), found(Connect, 51, &[8])],
            reported: vec![(Connect, Some(8)), (Accept, Some(7))],
            waits: false,
        },
    ];
    for case in cases {
        let mut tracker = tracker();
        let mut out = Vec::new();
        tracker.host.cached.push(NETNS_COOKIE);
        for event in case.before {
            tracker.observe(event, &mut out);
        }
        tracker.observe(accept(50, case.age), &mut out);
        assert!(tracker.waits_for_scan(), "{}", case.what);
        tracker.begin_scan();
        tracker.reconcile(case.found, &all(), &mut out);
        assert_eq!(outline(&out), case.reported, "{}", case.what);
        assert_eq!(tracker.waits_for_scan(), case.waits, "{}", case.what);
        if case.waits {
            tracker.abandon_scan(&mut out);
            assert_eq!(outline(&out), [(Accept, None)], "{}", case.what);
        }
    }
}

#[test]
fn a_scan_that_began_before_the_accept_does_not_end_its_wait() {
    let mut tracker = tracker();
    let mut out = Vec::new();
    tracker.begin_scan();
    tracker.observe(accept(50, OLD), &mut out);
    tracker.reconcile(Vec::new(), &all(), &mut out);
    assert!(out.is_empty());
    tracker.begin_scan();
    tracker.reconcile(vec![found(EventKind::Connect, 50, &[7])], &all(), &mut out);
    assert_eq!(outline(&out), [(EventKind::Accept, Some(7))]);
    assert_eq!(out[0].netns, Some(NETNS));
    assert!(out[0].is_first_remote);
    // The server is known for a while, then looked for again.
    out.clear();
    tracker.observe(accept(51, NEW), &mut out);
    assert_eq!(outline(&out), [(EventKind::Accept, Some(7))]);
    assert!(!out[0].is_first_remote && !tracker.waits_for_scan());
    out.clear();
    let later = Event {
        time: Timestamp::now() + SignedDuration::from_secs(2),
        ..accept(52, NEW)
    };
    tracker.observe(later, &mut out);
    assert!(out.is_empty() && tracker.waits_for_scan());
}

#[test]
fn without_its_namespace_an_accept_is_no_other_servers() {
    let mut tracker = tracker();
    let mut out = Vec::new();
    // Linux 5.10 shows sock_ops programs no cookie of the namespace.
    let accept = |cookie| Event {
        netns_cookie: None,
        ..accept(cookie, NEW)
    };
    tracker.observe(accept(50), &mut out);
    tracker.begin_scan();
    tracker.reconcile(vec![found(EventKind::Connect, 50, &[7])], &all(), &mut out);
    assert_eq!(outline(&out), [(EventKind::Accept, Some(7))]);
    out.clear();
    tracker.observe(accept(51), &mut out);
    assert!(out.is_empty() && tracker.waits_for_scan());
}

#[test]
fn an_accept_from_before_its_listener_was_marked_is_that_listeners() {
    let older = |marked| FoundSocket {
        event: Event {
            is_kernel_socket: Some(false),
            ..found(EventKind::Listen, 4, &[9]).event
        },
        marked,
        ..found(EventKind::Listen, 4, &[9])
    };
    let mut tracker = tracker();
    let mut out = Vec::new();
    tracker.host.cached.push(NETNS_COOKIE);
    for marked in [false, true] {
        tracker.begin_scan();
        tracker.reconcile(vec![older(marked)], &all(), &mut out);
    }
    out.clear();
    tracker.observe(accept(50, OLD), &mut out);
    assert_eq!(outline(&out), [(EventKind::Accept, Some(9))]);
    out.clear();
    let after = Event {
        time: Timestamp::now() + OLD,
        ..accept(51, NEW)
    };
    tracker.observe(after, &mut out);
    assert!(out.is_empty() && tracker.waits_for_scan());
}

#[test]
fn accepts_that_wait_are_bounded() {
    let mut tracker = tracker();
    let mut out = Vec::new();
    for cookie in 1..=2000 {
        tracker.observe(accept(cookie, NEW), &mut out);
    }
    assert_eq!(out.len(), 2000 - 1024);
    tracker.abandon_scan(&mut out);
    assert_eq!(out.len(), 2000);
}
