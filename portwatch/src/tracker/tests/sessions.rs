//! Connections that end.

use super::*;
use crate::model::{Direction, Session};

fn session(cookie: u64) -> Event {
    Event {
        session: Some(Session {
            direction: Direction::In,
            opened: None,
            ended: 1,
            is_sum: false,
            bytes_in: 1,
            bytes_out: 2,
            ended_by: None,
        }),
        ..event(EventKind::Session, cookie, 0)
    }
}

#[test]
fn the_end_of_a_connection_names_the_process_of_a_listener_that_closed_long_ago() {
    let mut tracker = tracker();
    let has_process = |tracker: &mut Tracker<FakeHost>, cookie| {
        let event = tracker.one(&session(cookie));
        assert_eq!(event.direction, Some(Direction::In));
        event.process.map(|process| process.pid)
    };
    for cookie in [1, 2] {
        tracker.one(&event(EventKind::Listen, cookie, 812));
    }
    tracker.one(&event(EventKind::Accept, 1, 0));
    assert_eq!(has_process(&mut tracker, 1), Some(812));
    for cookie in [1, 2] {
        tracker.one(&event(EventKind::Close, cookie, 0));
    }
    // More closes than are kept of sockets without connections.
    for cookie in 10..10 + 2 * CLOSED as u64 {
        tracker.one(&event(EventKind::Listen, cookie, 813));
        tracker.one(&event(EventKind::Close, cookie, 0));
    }
    assert_eq!(has_process(&mut tracker, 1), Some(812));
    // It had accepted nothing.
    assert_eq!(has_process(&mut tracker, 2), None);
    // A session opens no socket.
    assert_eq!(tracker.open().count(), 0);
}

#[test]
fn a_socket_that_is_bound_to_a_device_keeps_its_name() {
    let mut tracker = tracker();
    let bound = Event {
        interface: Some(3),
        v6only: Some(true),
        ..event(EventKind::Bind, 1, 812)
    };
    // Before Linux 6.18 without a task.
    let listening = Event {
        kind: EventKind::Listen,
        task: None,
        ..bound.clone()
    };
    for event in [
        bound,
        listening,
        event(EventKind::Accept, 1, 0),
        event(EventKind::Close, 1, 0),
    ] {
        let tracked = tracker.one(&event);
        assert_eq!(tracked.device.as_deref(), Some("if3"));
        assert_eq!(tracked.v6only, Some(true));
    }
    let moved = Event {
        interface: Some(4),
        ..event(EventKind::Listen, 3, 0)
    };
    tracker.one(&event(EventKind::Bind, 3, 812));
    assert_eq!(tracker.one(&moved).device.as_deref(), Some("if4"));
    let free = Event {
        interface: Some(0),
        ..event(EventKind::Bind, 2, 812)
    };
    assert_eq!(tracker.one(&free).device, None);
}
