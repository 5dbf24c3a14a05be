//! What changes between scans: the watched ports, listeners that are shut down, holders.

use std::sync::Arc;

use super::{
    scans::{all, found_socket, outline},
    *,
};
use crate::{inventory::Scope, model::Origin};

#[test]
fn a_socket_on_a_port_that_is_no_longer_watched_leaves_without_a_close() {
    let mut tracker = tracker();
    let elsewhere = Event {
        port: 977,
        ..event(EventKind::Listen, 6, 812)
    };
    tracker.one(&event(EventKind::Listen, 5, 812));
    tracker.one(&elsewhere);
    // The scan began before the reload.
    tracker.begin_scan();
    let only = |port| Scope {
        watched: HashSet::from([(port, Transport::Tcp)]),
        ..Scope::default()
    };
    tracker.forget_unwatched(&only(977));
    let open: Vec<u16> = tracker.open().map(|one| one.port_key.port).collect();
    assert_eq!(open, [977]);
    let narrow = Coverage {
        scope: Arc::new(only(976)),
        ..all()
    };
    let mut events = Vec::new();
    for _ in 0..3 {
        tracker.reconcile(Vec::new(), &narrow, &mut events);
        tracker.begin_scan();
    }
    assert!(events.is_empty(), "{:?}", outline(&events));
    for _ in 0..2 {
        tracker.scan(Vec::new(), &mut events);
    }
    assert_eq!(outline(&events), [(EventKind::Close, Origin::Snapshot, 6)]);
}

#[test]
fn what_a_later_scan_finds_is_marked_like_what_the_first_found() {
    let mut tracker = tracker();
    let found = |marked| FoundSocket {
        marked,
        event: Event {
            is_kernel_socket: Some(false),
            ..event(EventKind::Bind, 5, 0)
        },
        ..found_socket(EventKind::Bind, 5, &[7])
    };
    let mut events = Vec::new();
    tracker.scan(Vec::new(), &mut events);
    tracker.scan(vec![found(false)], &mut events);
    assert!(tracker.has_to_mark());
    assert!(tracker.is_to_mark(&found(false).event, NETNS));
    assert!(!tracker.has_to_mark());
    // It could not be marked: scans go on until it is gone.
    assert!(tracker.has_unmarked());
    // The BPF programs mark what they report.
    tracker.one(&event(EventKind::Listen, 5, 7));
    assert!(!tracker.has_unmarked());
}

#[test]
fn scans_report_no_listener_anew_that_was_shut_down() {
    use EventKind::{Bind, Close, Listen};

    let mut tracker = tracker();
    tracker.one(&event(Listen, 5, 812));
    let mut events = Vec::new();
    tracker.begin_scan();
    // While a scan is running, which may show it before or after.
    let close = Event {
        close: CloseKind::ShutDown,
        ..event(Close, 5, 0)
    };
    tracker.one(&close);
    tracker.reconcile(vec![found_socket(Listen, 5, &[812])], &all(), &mut events);
    tracker.scan(vec![found_socket(Bind, 5, &[812])], &mut events);
    assert!(events.is_empty(), "{:?}", outline(&events));
    // It listens again, and the report of that was lost.
    tracker.scan(vec![found_socket(Listen, 5, &[812])], &mut events);
    assert_eq!(outline(&events), [(Listen, Origin::Snapshot, 5)]);
    // MPTCP's are never released.
    tracker.one(&close);
    events.clear();
    assert!(tracker.has_unmarked() && !tracker.has_to_mark());
    for _ in 0..2 {
        tracker.scan(Vec::new(), &mut events);
    }
    assert!(events.is_empty(), "{:?}", outline(&events));
    assert_eq!(tracker.open().count(), 0);
}

#[test]
fn another_program_that_holds_a_socket_is_reported_once_and_named_from_then_on() {
    use EventKind::{Accept, Bind, Handover, Listen};

    let runs = |pid, exe: &str, start_ns| {
        Rc::new(Process {
            exe: Some(Printable::from(exe)),
            start_ns,
            ..process(pid)
        })
    };
    let nc = "/usr/bin/nc";
    // (what, the holders that a scan shows, who is reported, who is named by the next accept);
    // 812 runs nc and has bound it.
    let cases = [
        ("the owner", vec![runs(812, nc, 5)], None, 812),
        ("exec", vec![runs(812, "/bin/x", 5)], Some(812), 812),
        (
            "workers",
            vec![runs(812, nc, 5), runs(813, nc, 6)],
            None,
            812,
        ),
        (
            "a daemon's parent has exited",
            vec![runs(813, nc, 6)],
            None,
            813,
        ),
        ("handed over", vec![runs(900, "/bin/x", 6)], Some(900), 900),
        (
            "passed on",
            vec![runs(812, nc, 5), runs(900, "/bin/x", 6)],
            Some(900),
            812,
        ),
        (
            "its pid is reused",
            vec![runs(812, "/bin/x", 9)],
            Some(812),
            812,
        ),
        ("in transit", vec![], None, 812),
    ];
    for (what, holders, reported, named) in cases {
        let mut tracker = tracker();
        tracker.one(&event(Bind, 5, 812));
        tracker.one(&event(Listen, 5, 812));
        if let Some(socket) = tracker.table.get_mut(SocketKey::Cookie(5)) {
            socket.process = Some(runs(812, nc, 5));
        }
        let found = || FoundSocket {
            holders: holders.clone(),
            ..found_socket(Listen, 5, &[])
        };
        let mut events = Vec::new();
        // Between its beginning and its end, the socket listens again: what it shows is of no moment.
        tracker.begin_scan();
        tracker.one(&event(Listen, 5, 812));
        if let Some(socket) = tracker.table.get_mut(SocketKey::Cookie(5)) {
            socket.process = Some(runs(812, nc, 5));
        }
        tracker.reconcile(vec![found()], &all(), &mut events);
        assert!(events.is_empty(), "{what}");
        for _ in 0..3 {
            tracker.scan(vec![found()], &mut events);
        }
        let outline: Vec<_> = events.iter().map(|one| (one.kind, pid(one))).collect();
        let expected: Vec<_> = reported.iter().map(|pid| (Handover, Some(*pid))).collect();
        assert_eq!(outline, expected, "{what}");
        for event in &events {
            assert_eq!(event.origin, Origin::Snapshot);
            assert_eq!(event.holders.len(), holders.len());
        }
        let accept = tracker.one(&accept(5, [127, 0, 0, 1]));
        assert_eq!((accept.kind, pid(&accept)), (Accept, Some(named)), "{what}");
    }
}

#[test]
fn a_scan_that_is_joined_before_the_ring_is_empty_reports_only_what_lasts() {
    use EventKind::{Bind, Close, Listen};

    let mut tracker = tracker();
    for cookie in [5, 6] {
        tracker.one(&event(Bind, cookie, 812));
    }
    let mut events = Vec::new();
    // 5 listens, 6 is closed, and both reports are in the ring still; 7 was counted.
    for _ in 0..2 {
        tracker.begin_scan();
        tracker.fall_behind();
        let found = vec![
            found_socket(Listen, 5, &[812]),
            found_socket(Bind, 7, &[812]),
        ];
        assert!(tracker.reconcile(found, &all(), &mut events));
    }
    assert_eq!(outline(&events), [(Bind, Origin::Snapshot, 7)]);
    assert_eq!(tracker.one(&event(Listen, 5, 812)).kind, Listen);
    assert_eq!(tracker.one(&event(Close, 6, 0)).kind, Close);
}
