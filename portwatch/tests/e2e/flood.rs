//! More than the ring holds: what repeats itself is counted where it happens, and nothing else.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Agent, Cgroup, TAKE, binds, in_namespace},
};

/// An agent as it comes, with a small ring, for one cgroup.
fn agent(cgroup: &Cgroup) -> Agent {
    let path = cgroup.path().to_str().unwrap();
    let ring = ["--ring-size", "16384"];
    let others = ["--config", "/dev/null", "--cgroup", path];
    Agent::start_quiet(&[&ring[..], &others[..]].concat())
}

/// All that it tells until it is stopped.
fn told(mut agent: Agent) -> Vec<Value> {
    agent.signal(Signal::SIGTERM);
    let finished = agent.finish();
    assert!(finished.status.success(), "{}", finished.stderr);
    let lines = finished.stdout.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// How many of each event of that command the alerts tell or sum up.
fn counts(alerts: &[Value], comm: &str) -> BTreeMap<String, u64> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for alert in alerts
        .iter()
        .filter(|alert| alert["process"]["comm"] == comm)
    {
        match alert["summary"]["counts"].as_object() {
            Some(summed) => {
                for (event, count) in summed {
                    *counts.entry(event.clone()).or_default() += count.as_u64().unwrap();
                }
            }
            None => {
                let event = alert["event"].as_str().unwrap().to_owned();
                *counts.entry(event).or_default() += 1;
            }
        }
    }
    counts
}

#[test]
fn every_bind_of_a_flood_is_counted_and_no_other_hides_in_it() {
    const TIMES: usize = 3000;
    in_namespace(|_| {
        let cgroup = Cgroup::new("flood");
        let agent = agent(&cgroup);
        agent.signal(Signal::SIGSTOP);
        cgroup.perl(&binds(TIMES));
        cgroup.perl("system('timeout', '0.1', 'nc', '-u', '-l', '127.0.0.1', '977')");
        cgroup.perl(&binds(TIMES));
        agent.signal(Signal::SIGCONT);
        let alerts = told(agent);
        assert!(alerts.len() < 40, "{} lines", alerts.len());
        assert!(alerts.iter().all(|alert| alert["event"] != "loss"));
        let all = |times: usize| {
            let times = times as u64;
            BTreeMap::from([("bind".to_owned(), times), ("close".to_owned(), times)])
        };
        assert_eq!(counts(&alerts, "perl"), all(2 * TIMES));
        assert_eq!(counts(&alerts, "nc"), all(1));
        let sums = alerts.iter().filter(|alert| alert["event"] == "summary");
        for sum in sums {
            assert_alert!(sum, { "summary/held" => serde_json::json!({}), "port" => 976 });
        }
        let others = alerts.iter().filter(|alert| alert["port"] == 977);
        assert_eq!(others.count(), 2);
    });
}

#[test]
fn what_stays_after_a_flood_is_known_and_so_is_its_end() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("stays");
        let agent = agent(&cgroup);
        agent.signal(Signal::SIGSTOP);
        let mut taker = cgroup.start_perl(&format!(
            "{TAKE} my @held; for my $turn (1..200) {{ @held = (); \
             for my $port (971..975) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             take($s, sockaddr_in($port, INADDR_LOOPBACK)); push @held, $s }} }} \
             $| = 1; print \"ready\\n\"; <STDIN>; @held = (); print \"closed\\n\"; <STDIN>"
        ));
        taker.wait_for("ready");
        agent.signal(Signal::SIGCONT);
        let held = loop {
            let alert: Value = serde_json::from_str(&agent.line()).unwrap();
            assert_ne!(alert["event"], "loss", "{alert}");
            if alert["event"] == "summary" {
                break alert["summary"]["held"].clone();
            }
        };
        assert_eq!(held, serde_json::json!({ "udp": "971-975" }));
        taker.go_on();
        taker.wait_for("closed");
        let alerts = told(agent);
        assert_eq!(
            counts(&alerts, "perl"),
            BTreeMap::from([("close".to_owned(), 5)])
        );
        taker.go_on();
        taker.end();
    });
}

#[test]
fn every_connection_of_a_flood_is_counted_for_its_listener() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("accepts");
        let agent = agent(&cgroup);
        let mut server = cgroup.start_perl(
            "use Socket; socket(my $l, PF_INET, SOCK_STREAM, 0) or die; \
             bind($l, sockaddr_in(976, INADDR_ANY)) or die; listen($l, 5) or die; \
             $| = 1; print \"ready\\n\"; <STDIN>; for my $turn (1..500) { for my $last (1, 2) { \
             socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             bind($c, sockaddr_in(0, inet_aton(\"127.0.0.$last\"))) or die; \
             connect($c, sockaddr_in(976, inet_aton('127.0.0.9'))) or die; \
             accept(my $a, $l) or die } } print \"done\\n\"; <STDIN>",
        );
        server.wait_for("ready");
        agent.line();
        agent.signal(Signal::SIGSTOP);
        server.go_on();
        server.wait_for("done");
        server.go_on();
        server.end();
        agent.signal(Signal::SIGCONT);
        let alerts = told(agent);
        assert!(alerts.iter().all(|alert| alert["event"] != "loss"));
        // What was counted before the close is told with it, the rest on its own.
        let close = alerts.iter().find(|alert| alert["event"] == "close");
        let with_close = close.unwrap()["accepts"]["count"].as_u64().unwrap();
        let sums = alerts
            .iter()
            .map(|alert| &alert["summary"]["counts"]["accept"]);
        let summed: u64 = sums.filter_map(Value::as_u64).sum();
        assert_eq!(with_close + summed, 1000);
    });
}
