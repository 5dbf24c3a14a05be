//! What a snapshot shows beside the events.

use super::*;
use crate::model::SocketKey;

/// The socket with that cookie, as a snapshot finds it.
fn finding(kind: EventKind, cookie: u64, holders: &[u32]) -> FoundSocket {
    FoundSocket {
        event: Event {
            netns_cookie: None,
            ..event(kind, cookie, 0)
        },
        netns: NETNS,
        holders: holders.iter().map(|pid| Rc::new(process(*pid))).collect(),
        marked: true,
    }
}

impl<H: Host> Tracker<H> {
    /// Joins a whole snapshot that shows these; whether it must be taken again.
    fn look(&mut self, found: Vec<FoundSocket>, alerts: &mut Vec<Alert>) -> bool {
        self.begin_snapshot();
        self.reconcile(found, &ALL, alerts)
    }
}

/// What was told, as event, origin and cookie.
fn outline(alerts: &[Alert]) -> Vec<(EventKind, Origin, u64)> {
    let line = |alert: &Alert| (alert.event, alert.origin, alert.socket.cookie.unwrap_or(0));
    alerts.iter().map(line).collect()
}

const ALL: Coverage = Coverage {
    unread: Vec::new(),
    unshown: Vec::new(),
    bound: true,
};

#[test]
fn nothing_is_missed_and_nothing_told_twice_while_a_snapshot_is_taken() {
    use EventKind::{Accept, Bind, Close, Connect, Listen};
    use Origin::{Live, Snapshot};

    struct Case {
        what: &'static str,
        before: Vec<Event>,
        during: Vec<Event>,
        found: Vec<FoundSocket>,
        told: Vec<(EventKind, Origin, u64)>,
    }
    let case = |what, before, during, found, told| Case {
        what,
        before,
        during,
        found,
        told,
    };
    let cases = [
        case(
            "was there before",
            vec![],
            vec![],
            vec![finding(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5)],
        ),
        case(
            "told live and found",
            vec![event(Bind, 5, 7)],
            vec![event(Listen, 5, 7)],
            vec![finding(Listen, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Live, 5)],
        ),
        case(
            "taken meanwhile, too late to be found",
            vec![],
            vec![event(Bind, 5, 7)],
            vec![],
            vec![(Bind, Live, 5)],
        ),
        case(
            "found, and its bind reported after that",
            vec![],
            vec![],
            vec![finding(Bind, 5, &[7])],
            vec![(Bind, Snapshot, 5)],
        ),
        case(
            "taken and closed meanwhile, and found in between",
            vec![],
            vec![event(Bind, 5, 7), event(Close, 5, 0)],
            vec![finding(Bind, 5, &[7])],
            vec![(Bind, Live, 5), (Close, Live, 5)],
        ),
        case(
            "was there before, marked, and closed meanwhile",
            vec![],
            vec![event(Close, 5, 0)],
            vec![finding(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5), (Close, Live, 5)],
        ),
        case(
            "was there before, connected to meanwhile",
            vec![],
            vec![accept(0, [10, 0, 0, 9])],
            vec![finding(Listen, 5, &[7])],
            vec![(Listen, Snapshot, 5), (Accept, Live, 5)],
        ),
        case(
            "its close was lost",
            vec![event(Bind, 5, 7), event(Bind, 6, 7)],
            vec![],
            vec![finding(Bind, 6, &[7])],
            vec![(Bind, Live, 5), (Bind, Live, 6), (Close, Snapshot, 5)],
        ),
        case(
            "its listen was lost",
            vec![event(Bind, 5, 7)],
            vec![],
            vec![finding(Listen, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Snapshot, 5)],
        ),
        case(
            "its listen comes while it is taken",
            vec![event(Bind, 5, 7)],
            vec![event(Listen, 5, 7)],
            vec![finding(Bind, 5, &[7])],
            vec![(Bind, Live, 5), (Listen, Live, 5)],
        ),
        case(
            "an accepted connection that outlives its listener",
            vec![event(Listen, 4, 7), event(Close, 4, 0)],
            vec![],
            vec![finding(Connect, 5, &[7])],
            vec![(Listen, Live, 4), (Close, Live, 4)],
        ),
        case(
            "an outgoing connection from before",
            vec![],
            vec![],
            vec![finding(Connect, 5, &[7])],
            vec![(Connect, Snapshot, 5)],
        ),
    ];
    for Case {
        what,
        before,
        during,
        found,
        told,
    } in cases
    {
        let mut tracker = tracker();
        let mut alerts = Vec::new();
        for event in before {
            tracker.observe(event, &mut alerts);
        }
        tracker.begin_snapshot();
        for event in during {
            tracker.observe(event, &mut alerts);
        }
        // What is missing must be so twice.
        if tracker.reconcile(found.clone(), &ALL, &mut alerts) {
            assert!(!tracker.look(found.clone(), &mut alerts));
        }
        assert_eq!(outline(&alerts), told, "{what}");
        // And a second look finds no news.
        let closed = |cookie| {
            let close = |line: &&(EventKind, Origin, u64)| line.0 == Close && line.2 == cookie;
            told.iter().any(|line| close(&line))
        };
        let mut still = found;
        still.retain(|finding| !closed(finding.event.cookie().unwrap_or(0)));
        let before = alerts.len();
        if what.contains("too late") {
            still.push(finding(Bind, 5, &[7]));
        }
        if what.contains("comes while") {
            still = vec![finding(Listen, 5, &[7])];
        }
        tracker.look(still, &mut alerts);
        assert_eq!(alerts.len(), before, "{what}: {:?}", outline(&alerts));
    }

    // The bind of what was found is told once.
    let mut tracker = tracker();
    let mut alerts = Vec::new();
    tracker.look(vec![finding(Bind, 5, &[7])], &mut alerts);
    assert!(tracker.told(&event(Bind, 5, 7)).is_empty());
}

#[test]
fn an_end_that_a_snapshot_told_is_not_told_again() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 812));
    let mut alerts = Vec::new();
    for _ in 0..2 {
        tracker.look(Vec::new(), &mut alerts);
    }
    assert_eq!(outline(&alerts), [(EventKind::Close, Origin::Snapshot, 5)]);
    assert!(tracker.told(&event(EventKind::Close, 5, 0)).is_empty());
}

#[test]
fn what_one_snapshot_misses_and_the_next_shows_is_still_there() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 812));
    let mut alerts = Vec::new();
    let there = || vec![finding(EventKind::Bind, 5, &[812])];
    for (found, again) in [
        (Vec::new(), true),
        (there(), false),
        (Vec::new(), true),
        (there(), false),
    ] {
        assert_eq!(tracker.look(found, &mut alerts), again);
    }
    assert!(alerts.is_empty(), "{alerts:?}");
}

#[test]
fn what_nobody_holds_is_told_when_two_snapshots_show_it() {
    let mut tracker = tracker();
    // Without sock_diag it has no cookie.
    let without_cookie = FoundSocket {
        event: Event {
            key: Some(SocketKey::Inode(9)),
            ..event(EventKind::Bind, 9, 0)
        },
        ..finding(EventKind::Bind, 9, &[])
    };
    let passing = finding(EventKind::Listen, 5, &[]);
    let mut alerts = Vec::new();
    for (found, again) in [
        (vec![passing, without_cookie.clone()], true),
        (vec![without_cookie], false),
        (Vec::new(), true),
        (Vec::new(), false),
    ] {
        assert_eq!(tracker.look(found, &mut alerts), again);
    }
    let told: Vec<_> = alerts
        .iter()
        .map(|alert| (alert.event, alert.socket.cookie))
        .collect();
    assert_eq!(told, [(EventKind::Bind, None), (EventKind::Close, None)]);
}

#[test]
fn what_a_snapshot_does_not_cover_is_not_closed() {
    let udplite = Event {
        transport: Transport::UdpLite,
        ..event(EventKind::Bind, 6, 7)
    };
    let cases = [
        (
            event(EventKind::Bind, 5, 7),
            Coverage {
                unread: vec![NETNS],
                ..ALL
            },
        ),
        (
            event(EventKind::Bind, 5, 7),
            Coverage {
                bound: false,
                ..ALL
            },
        ),
        (
            udplite,
            Coverage {
                unshown: vec![Transport::UdpLite],
                ..ALL
            },
        ),
    ];
    for (event, coverage) in cases {
        let mut tracker = tracker();
        tracker.one(&event);
        let mut alerts = Vec::new();
        for (coverage, told) in [(&coverage, 0), (&coverage, 0), (&ALL, 0), (&ALL, 1)] {
            tracker.begin_snapshot();
            tracker.reconcile(Vec::new(), coverage, &mut alerts);
            assert_eq!(alerts.len(), told, "{alerts:?}");
        }
    }
}

#[test]
fn holders_are_looked_for_once_and_shown_by_the_next_event() {
    let mut tracker = tracker();
    tracker.one(&event(EventKind::Bind, 5, 1));
    let listen = tracker.one(&event(EventKind::Listen, 5, 1));
    let pids = |alert: &Alert| alert.holders.iter().map(|one| one.pid).collect::<Vec<_>>();
    assert_eq!(pids(&listen), [1]);
    assert!(tracker.wants_snapshot());
    let found = vec![finding(EventKind::Listen, 5, &[1, 812])];
    tracker.look(found, &mut Vec::new());
    assert!(!tracker.wants_snapshot());
    let accept = tracker.one(&accept(5, [127, 0, 0, 1]));
    assert_eq!((pids(&accept), pid(&accept)), (vec![1, 812], Some(1)));
}

#[test]
fn a_socket_of_the_kernels_is_nobodys() {
    let mut tracker = tracker();
    let bind = Event {
        is_kernel_socket: Some(true),
        ..event(EventKind::Bind, 5, 812)
    };
    let alert = tracker.one(&bind);
    assert_eq!((pid(&alert), alert.socket.kernel), (None, Some(true)));
    assert_eq!((alert.holders.len(), alert.socket.netns), (0, Some(NETNS)));
    assert!(tracker.has_unmarked() && !tracker.wants_snapshot());
}

#[test]
fn what_was_there_before_is_marked_once_and_not_at_first_sight() {
    let mut tracker = tracker();
    let unmarked = |marked| FoundSocket {
        marked,
        event: Event {
            is_kernel_socket: Some(false),
            ..event(EventKind::Listen, 5, 0)
        },
        ..finding(EventKind::Listen, 5, &[7])
    };
    let event = unmarked(false).event;
    assert!(!tracker.is_to_mark(&event, NETNS));
    tracker.look(vec![unmarked(false)], &mut Vec::new());
    assert!(tracker.has_unmarked());
    assert!(tracker.is_to_mark(&event, NETNS));
    assert!(!tracker.is_to_mark(&event, NETNS));
    tracker.look(vec![unmarked(true)], &mut Vec::new());
    assert!(!tracker.has_unmarked());
}
