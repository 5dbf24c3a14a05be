//! Ways to hide a lasting socket behind noise, or to lose its counts.

use super::*;
use crate::policy::{Condition, Decision, Rule};

/// A burst of process 812 on 900; nothing of it stays.
fn burst(run: &mut Run) {
    for cookie in 1..=20 {
        run.push(on(Bind, 900, cookie));
        run.push(on(Listen, 900, cookie));
        run.push(on(Close, 900, cookie));
    }
    run.wait(MS(5));
}

/// How many lines there are of that kind about the socket.
fn lines(run: &Run, kind: EventKind, cookie: u64) -> usize {
    let is_it = |alert: &&Alert| alert.event == kind && alert.socket.cookie == Some(cookie);
    run.alerts.iter().filter(is_it).count()
}

fn udp(kind: EventKind, port: u16, cookie: u64) -> Event {
    Event {
        transport: Transport::Udp,
        ..on(kind, port, cookie)
    }
}

#[test]
fn a_socket_that_lasts_is_reported_even_if_all_of_it_is_read_at_once() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    let at = |milliseconds| Timestamp::UNIX_EPOCH + SignedDuration::from_millis(milliseconds);
    for (event, time) in [(udp(Bind, 976, 99), 100), (udp(Close, 976, 99), 300)] {
        let event = Event {
            time: at(time),
            ..event
        };
        run.pipeline.push(Input::Event(event), run.now);
    }
    run.take();
    assert_eq!((lines(&run, Bind, 99), lines(&run, Close, 99)), (1, 1));
    assert_eq!(run.finish().totals()["bind"], 21);
}

#[test]
fn a_bind_that_waits_when_the_monitor_ends_is_reported() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    run.push(on(Bind, 976, 99)).finish();
    assert_eq!(lines(&run, Bind, 99), 1);
}

#[test]
fn short_lived_clients_of_a_burst_are_counted() {
    let mut run = Run::new(Settings::default());
    for cookie in 1..=100 {
        run.push(on(Connect, 900, cookie))
            .push(on(Close, 900, cookie));
    }
    run.wait(MS(500)).finish();
    assert_eq!(run.totals()["connect"], 100);
}

#[test]
fn a_listener_that_stops_before_it_lasts_again_and_again_is_reported_once() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    run.push(on(Bind, 976, 99));
    for _ in 0..100 {
        run.push(on(Listen, 976, 99)).wait(MS(90));
        run.push(on(Close, 976, 99)).wait(MS(1));
    }
    assert_eq!(lines(&run, Listen, 99), 1);
    assert!(lines(&run, Close, 99) <= 1);
    // And when it stays at last.
    run.push(on(Listen, 976, 99)).wait(MS(150));
    assert_eq!(lines(&run, Listen, 99), 2);
    run.finish();
    assert_eq!(run.totals()["listen"], 121);
    assert_eq!(run.totals()["close"], 120);
}

#[test]
fn a_socket_that_tries_to_connect_again_and_again_is_reported_once() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    run.push(on(Bind, 976, 99));
    for _ in 0..1000 {
        run.push(on(Connect, 976, 99)).wait(MS(10));
    }
    assert_eq!(lines(&run, Connect, 99), 1);
    run.push(on(Listen, 976, 99)).wait(MS(150));
    assert_eq!(lines(&run, Listen, 99), 1);
    assert_eq!(run.finish().totals()["connect"], 1000);
}

#[test]
fn a_flood_that_is_read_at_once_leaves_room_for_what_lasts() {
    let mut run = Run::new(Settings::default());
    for cookie in 1..=140_000 {
        let push = |run: &mut Run, kind| {
            run.pipeline
                .push(Input::Event(udp(kind, 900, cookie)), run.now)
        };
        push(&mut run, Bind);
        push(&mut run, Close);
    }
    run.push(udp(Bind, 976, 1_000_000)).wait(MS(150));
    assert_eq!(lines(&run, Bind, 1_000_000), 1);
    run.finish();
    assert_eq!(
        (run.totals()["bind"], run.totals()["close"]),
        (140_001, 140_000)
    );
}

#[test]
fn more_listeners_than_are_counted_for_lose_no_connection() {
    let mut run = Run::new(Settings::default());
    for cookie in 1..=5000 {
        run.push(on(Listen, 900, cookie));
        for _ in 0..3 {
            run.push(accept(cookie, [127, 0, 0, 1]));
        }
    }
    run.finish();
    assert_eq!(run.totals()["accept"], 15_000);
}

#[test]
fn a_socket_that_is_bound_twice_within_the_delay_is_counted_twice() {
    let mut run = Run::new(Settings::default());
    run.push(on(Bind, 900, 99)).push(on(Bind, 976, 99));
    run.wait(MS(5));
    assert_eq!(lines(&run, Bind, 99), 2);
}

#[test]
fn a_socket_that_changes_its_port_is_reported_on_the_port_that_it_has() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    run.push(udp(Bind, 900, 99)).wait(MS(150));
    run.push(udp(Bind, 976, 99)).wait(MS(150));
    let binds = run
        .alerts
        .iter()
        .filter(|alert| alert.socket.cookie == Some(99));
    let ports: Vec<_> = binds.map(|alert| alert.port).collect();
    assert_eq!(ports, [Some(900), Some(976)]);
    let open: Vec<u16> = run
        .pipeline
        .tracker()
        .open()
        .map(|socket| socket.port_key.port)
        .collect();
    assert_eq!(open, [976]);
    run.push(udp(Close, 976, 99));
    assert_eq!(lines(&run, Close, 99), 1);
}

/// A run with a rule about closes.
fn run_with_rule(decision: Decision) -> Run {
    let mut run = Run::new(Settings::default());
    let rule = Rule {
        unverified: false,
        sessions: false,
        name: "closes".into(),
        reason: None,
        decision,
        conditions: vec![
            Condition::Event(vec![Close]),
            Condition::Port(vec!["900".parse().unwrap()]),
        ],
    };
    let policy = Policy::new(vec![rule]).unwrap();
    let settings = Settings::default();
    run.pipeline.set_policy(policy, false, settings, run.now);
    run
}

#[test]
fn a_critical_close_comes_through_although_its_bind_was_counted() {
    let mut run = run_with_rule(Decision::Critical);
    burst(&mut run);
    assert_eq!(
        run.alerts
            .iter()
            .filter(|alert| alert.event == Close)
            .count(),
        20
    );
    run.finish();
    assert_eq!(
        run.totals(),
        [("bind", 20), ("close", 20), ("listen", 20)].into()
    );
}

#[test]
fn binds_are_counted_although_a_rule_ignores_closes() {
    let mut run = run_with_rule(Decision::Ignore);
    burst(&mut run);
    run.wait(MS(200)).finish();
    assert_eq!(run.totals(), [("bind", 20), ("listen", 20)].into());
}

#[test]
fn further_sockets_of_one_program_on_one_port_are_counted() {
    let mut run = Run::new(Settings {
        max_rate: 1_000_000,
        ..Settings::default()
    });
    burst(&mut run);
    for cookie in 100..10_000 {
        let bind = udp(Bind, 976, cookie);
        run.pipeline.push(Input::Event(bind), run.now);
    }
    // Of another port it has few.
    let other = udp(Bind, 977, 10_000);
    run.pipeline.push(Input::Event(other), run.now);
    run.wait(MS(150));
    let lines = [100, 4000, 5000, 9999, 10_000].map(|cookie| lines(&run, Bind, cookie));
    assert_eq!(lines, [1, 1, 0, 0, 1]);
    for cookie in 100..10_000 {
        let close = udp(Close, 976, cookie);
        run.pipeline.push(Input::Event(close), run.now);
    }
    let totals = run.finish().totals();
    assert_eq!((totals["bind"], totals["close"]), (9921, 9920));
}

#[test]
fn many_processes_do_not_displace_the_busiest() {
    let mut run = Run::new(Settings::default());
    let mut cookie = 0;
    let mut turn = |run: &mut Run, pid| {
        cookie += 1;
        for kind in [Bind, Close] {
            let pid = if kind == Close { 0 } else { pid };
            let event = event(kind, cookie, pid);
            run.push(Event {
                port: 900,
                transport: Transport::Udp,
                ..event
            });
        }
    };
    for pid in 1000..1200 {
        turn(&mut run, pid);
        turn(&mut run, pid);
    }
    for pid in 2000..2400 {
        turn(&mut run, 812);
        turn(&mut run, pid);
    }
    run.finish();
    let summary = run.alerts.iter().find_map(|alert| alert.summary.as_ref());
    let busiest = &summary.unwrap().processes[0];
    assert_eq!(busiest.pid, 812);
    // A number is never too high.
    assert!(busiest.events <= 800, "{}", busiest.events);
}

#[test]
fn what_waits_is_reported_when_a_reload_ends_the_aggregation() {
    let mut run = Run::new(Settings::default());
    burst(&mut run);
    run.push(on(Bind, 976, 98)).push(on(Listen, 976, 98));
    run.push(on(Bind, 977, 99));
    let off = Settings {
        enabled: false,
        ..Settings::default()
    };
    run.pipeline
        .set_policy(Policy::default(), false, off, run.now);
    run.push(on(Close, 976, 98)).push(on(Close, 977, 99));
    let kinds = |cookie| -> Vec<EventKind> {
        let alerts = run.alerts.iter();
        let its = alerts.filter(|alert| alert.socket.cookie == Some(cookie));
        its.map(|alert| alert.event).collect()
    };
    assert_eq!(kinds(98), [Listen, Close]);
    assert_eq!(kinds(99), [Bind, Close]);
    assert_eq!(
        run.totals(),
        [("bind", 22), ("close", 22), ("listen", 21)].into()
    );
}
