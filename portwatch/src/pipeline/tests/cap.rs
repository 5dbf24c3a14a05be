//! The most alerts a second: what it holds back is reported later, or counted.

use super::*;

const RATE: u32 = 10;

fn capped() -> Run {
    Run::new(Settings {
        max_rate: RATE,
        ..Settings::default()
    })
}

/// The health alerts' texts.
fn details(run: &Run) -> Vec<String> {
    let details = run.alerts.iter().filter_map(|alert| alert.detail.as_ref());
    details.map(ToString::to_string).collect()
}

/// The cookies of the reported listeners.
fn listeners(run: &Run) -> Vec<u64> {
    let listens = run.alerts.iter().filter(|alert| alert.event == Listen);
    listens.filter_map(|alert| alert.socket.cookie).collect()
}

/// Makes that many listeners in as many namespaces, so that no two are one burst.
fn listen(run: &mut Run, cookies: std::ops::RangeInclusive<u64>) {
    for cookie in cookies {
        run.push(Event {
            netns: Some(cookie),
            ..on(Listen, 900, cookie)
        });
    }
}

#[test]
fn what_the_cap_holds_back_is_reported_by_itself_in_order_and_said() {
    let mut run = capped();
    listen(&mut run, 1..=1000);
    let at_once = listeners(&run).len();
    assert_eq!(at_once, 51, "five seconds' worth, and one");
    let mut before = at_once;
    for _ in 0..200 {
        run.wait(MS(500));
        let now = listeners(&run).len();
        assert!(now - before <= 6, "{}", now - before);
        before = now;
    }
    assert_eq!(listeners(&run), (1..=1000).collect::<Vec<_>>());
    let said = details(&run);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("more than 10 alerts a second"));
    assert!(said[1].contains("949 were"), "{}", said[1]);
    // With its own process, and what happens then is reported at once.
    assert!(
        run.alerts
            .iter()
            .all(|alert| alert.detail.is_some() || alert.process.is_some())
    );
    run.alerts.clear();
    run.push(on(Close, 900, 7));
    assert_eq!(run.kinds(), [Close]);
}

#[test]
fn critical_alerts_are_never_held_back_and_what_closes_meanwhile_is_counted() {
    let mut run = capped();
    listen(&mut run, 1..=500);
    run.wait(MS(200));
    let before = run.alerts.len();
    run.push(accept(450, [192, 0, 2, 7]));
    assert_eq!(run.alerts.len(), before + 1);
    assert_eq!(run.alerts[before].severity, Severity::Critical);
    for cookie in 401..=500 {
        run.push(on(Close, 900, cookie));
    }
    run.wait(Duration::from_secs(120)).finish();
    assert_eq!(listeners(&run), (1..=400).collect::<Vec<_>>());
    let totals = run.totals();
    assert_eq!((totals["listen"], totals["close"]), (500, 100));
    assert_eq!(totals["accept"], 1);
}

#[test]
fn the_end_and_a_missing_cap_hold_nothing_back() {
    let mut run = capped();
    listen(&mut run, 1..=500);
    run.finish();
    assert_eq!(listeners(&run).len(), 500);
    for settings in [
        Settings {
            max_rate: 0,
            ..Settings::default()
        },
        Settings {
            enabled: false,
            max_rate: RATE,
            ..Settings::default()
        },
    ] {
        let mut run = Run::new(settings);
        listen(&mut run, 1..=5000);
        assert_eq!(listeners(&run).len(), 5000);
    }
}
