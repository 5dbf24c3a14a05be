//! More events than the ring holds: the BPF programs count repeated events, and only these.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Cgroup, Monitor, REBIND, bind_and_close, in_namespace},
};

/// A monitor with aggregation and a small ring that watches one cgroup.
fn monitor(cgroup: &Cgroup) -> Monitor {
    let path = cgroup.path().to_str().unwrap();
    let ring = ["--ring-size", "16384"];
    let others = ["--config", "/dev/null", "--cgroup", path];
    Monitor::start_default(&[&ring[..], &others[..]].concat())
}

/// How many of each event of that command the alerts report or count.
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
fn all_binds_under_load_are_counted_and_other_sockets_are_reported() {
    const TIMES: usize = 3000;
    in_namespace(|_| {
        let cgroup = Cgroup::new("load");
        let monitor = monitor(&cgroup);
        monitor.signal(Signal::SIGSTOP);
        cgroup.perl(&bind_and_close(TIMES));
        cgroup.perl("system('timeout', '0.1', 'nc', '-u', '-l', '127.0.0.1', '977')");
        cgroup.perl(&bind_and_close(TIMES));
        monitor.signal(Signal::SIGCONT);
        let alerts = monitor.stop_all();
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
fn sockets_left_open_under_load_are_reported_by_themselves() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("left-open");
        let monitor = monitor(&cgroup);
        monitor.signal(Signal::SIGSTOP);
        let mut binder = cgroup.start_perl(&format!(
            "{REBIND} my @held; for my $turn (1..200) {{ @held = (); \
             for my $port (971..975) {{ socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             rebind($s, sockaddr_in($port, INADDR_LOOPBACK)); push @held, $s }} }} \
             $| = 1;              print unpack('Q', getsockopt($_, SOL_SOCKET, 57)), \"\\n\" for @held; <STDIN>; @held = (); print \"closed\\n\"; <STDIN>"
        ));
        let cookies: [u64; 5] = std::array::from_fn(|_| binder.line().parse().unwrap());
        monitor.signal(Signal::SIGCONT);
        // Those that stay are reported by themselves, although the kernel counted their binds.
        let mut alerts: Vec<Value> = Vec::new();
        let mut lasting = BTreeMap::new();
        while lasting.len() < 5 {
            let alert: Value = serde_json::from_str(&monitor.line()).unwrap();
            assert_ne!(alert["event"], "loss", "{alert}");
            assert_ne!(alert["origin"], "snapshot", "{alert}");
            let cookie = alert["socket"]["cookie"].as_u64();
            if alert["event"] == "bind" && cookie.is_some_and(|cookie| cookies.contains(&cookie)) {
                let port = alert["port"].as_u64().unwrap();
                lasting.insert(port, alert["socket"]["cookie"].clone());
            }
            alerts.push(alert);
        }
        assert!(lasting.keys().copied().eq(971..=975), "{lasting:?}");
        binder.resume();
        binder.wait_for("closed");
        alerts.extend(monitor.stop_all());
        for (port, cookie) in lasting {
            let is_close =
                |alert: &&Value| alert["event"] == "close" && alert["socket"]["cookie"] == cookie;
            assert_eq!(alerts.iter().filter(is_close).count(), 1, "{port}");
        }
        let all = [("bind".to_owned(), 1000), ("close".to_owned(), 1000)];
        assert_eq!(counts(&alerts, "perl"), BTreeMap::from(all));
        binder.resume();
        binder.wait();
    });
}

#[test]
fn all_connections_under_load_are_counted_on_their_listener() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("accepts");
        let monitor = monitor(&cgroup);
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
        monitor.line();
        monitor.signal(Signal::SIGSTOP);
        server.resume();
        server.wait_for("done");
        server.resume();
        server.wait();
        monitor.signal(Signal::SIGCONT);
        let alerts = monitor.stop_all();
        assert!(alerts.iter().all(|alert| alert["event"] != "loss"));
        // Accepts counted before the close are in its alert, the rest in a summary.
        let close = alerts.iter().find(|alert| alert["event"] == "close");
        let with_close = close.unwrap()["accepts"]["count"].as_u64().unwrap();
        let sums = alerts
            .iter()
            .map(|alert| &alert["summary"]["counts"]["accept"]);
        let summed: u64 = sums.filter_map(Value::as_u64).sum();
        assert_eq!(with_close + summed, 1000);
    });
}
