//! The connections of listeners: whatever becomes of them, closes and summaries have them all.

use super::*;
use crate::model::{Direction, Session};

/// A connection that the listener with that cookie accepted, and that has ended; or the sum of `ended`.
fn session(cookie: u64, ended: u64, is_sum: bool) -> Event {
    Event {
        session: Some(Session {
            direction: Direction::In,
            opened: None,
            ended,
            is_sum,
            bytes_in: 10 * ended,
            bytes_out: 3 * ended,
            ended_by: None,
        }),
        ..on(EventKind::Session, 976, cookie)
    }
}

/// Connections that ended, bytes in and bytes out, of all closes and summaries; and how many are open by
/// the closes.
fn sums(run: &Run) -> ((u64, u64, u64), u64) {
    let (mut sums, mut open) = ((0, 0, 0), 0);
    for alert in &run.alerts {
        let of_alert = match (&alert.sessions, &alert.summary) {
            (Some(sessions), _) => {
                open += sessions.open;
                (sessions.ended, sessions.bytes_in, sessions.bytes_out)
            }
            (None, Some(summary)) => (
                summary.counts.get("session").copied().unwrap_or(0),
                summary.bytes_in.unwrap_or(0),
                summary.bytes_out.unwrap_or(0),
            ),
            _ => continue,
        };
        sums.0 += of_alert.0;
        sums.1 += of_alert.1;
        sums.2 += of_alert.2;
    }
    (sums, open)
}

fn run() -> Run {
    Run::new(Settings {
        max_rate: 0,
        ..Settings::default()
    })
}

#[test]
fn connections_that_outlive_their_listener_are_in_a_summary() {
    let mut run = run();
    run.push(on(Listen, 976, 1));
    for _ in 0..3 {
        run.push(accept(1, [10, 0, 0, 9]));
    }
    run.push(session(1, 1, false)).wait(MS(200));
    run.push(on(Close, 976, 1));
    assert_eq!(sums(&run), ((1, 10, 3), 2));
    run.push(session(1, 1, false));
    let counted = Input::Counted(session(1, 1, true), 1);
    run.pipeline.push(counted, run.now);
    run.wait(MS(20_000)).finish();
    assert_eq!(sums(&run), ((3, 30, 9), 2));
}

#[test]
fn of_more_listeners_than_are_summed_no_connection_is_missing() {
    const LISTENERS: u64 = 5000;
    let mut run = run();
    for cookie in 1..=LISTENERS {
        run.push(on(Listen, 976, cookie));
        run.push(accept(cookie, [10, 0, 0, 9]));
        run.push(session(cookie, 1, false));
    }
    run.wait(MS(200));
    for cookie in 1..=LISTENERS {
        run.push(on(Close, 976, cookie));
    }
    run.wait(MS(100_000)).finish();
    let all = (LISTENERS, 10 * LISTENERS, 3 * LISTENERS);
    assert_eq!(sums(&run), (all, 0));
}

#[test]
fn of_a_connection_that_was_made_only_a_session_has_the_bytes() {
    for is_closed_first in [true, false] {
        let mut run = run();
        let mut end = session(1, 1, false);
        if let Some(session) = &mut end.session {
            session.direction = Direction::Out;
        }
        let mut last = [end, on(Close, 976, 1)];
        if is_closed_first {
            last.reverse();
        }
        run.push(on(Bind, 976, 1)).push(on(Connect, 976, 1));
        for event in last {
            run.push(event);
        }
        run.wait(MS(20_000)).finish();
        assert_eq!(sums(&run), ((0, 0, 0), 0));
    }
}
