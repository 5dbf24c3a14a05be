//! Aggregation of frequent events: few alerts, and every event counted.

use std::net::TcpListener;

use serde_json::Value;

use crate::{
    assert_alert,
    support::{Cgroup, Monitor, REBIND, in_namespace},
};

/// A monitor with aggregation that watches one cgroup, so that it counts no other test's events.
fn monitor(cgroup: &Cgroup) -> Monitor {
    let path = cgroup.path().to_str().unwrap();
    Monitor::start_default(&["--config", "/dev/null", "--cgroup", path])
}

#[test]
fn binding_every_port_prints_ten_lines_at_most() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("scan");
        let monitor = monitor(&cgroup);
        // As rootcheck does it, below 1024.
        cgroup.perl(&format!(
            "{REBIND} for my $port (1..1023) {{ for my $type (SOCK_STREAM, SOCK_DGRAM) {{ \
             for my $family (PF_INET, PF_INET6) {{ socket(my $s, $family, $type, 0) or die; \
             rebind($s, $family == PF_INET ? sockaddr_in($port, INADDR_ANY) \
             : pack_sockaddr_in6($port, IN6ADDR_ANY)); close $s }} }} }}"
        ));
        let alerts = monitor.stop_all();
        assert!((2..=10).contains(&alerts.len()), "{} lines", alerts.len());
        let mut counted = 0;
        for alert in &alerts {
            counted += match &alert["summary"] {
                Value::Null => 1,
                summary => {
                    assert_alert!(alert, { "summary/held" => serde_json::json!({}), "process/comm" => "perl" });
                    let counts = summary["counts"].as_object().unwrap();
                    counts.values().filter_map(Value::as_u64).sum()
                }
            };
        }
        // 334 tcp and 337 udp ports are not assigned; each is bound and closed over IPv4 and IPv6.
        assert_eq!(counted, (334 + 337) * 2 * 2);
    });
}

#[test]
fn a_reserved_source_port_prints_one_line() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("client");
        let monitor = monitor(&cgroup);
        let server = TcpListener::bind("127.0.0.1:2049").unwrap();
        cgroup.perl(
            "use Socket; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(986, INADDR_LOOPBACK)) or die; \
             connect($s, sockaddr_in(2049, INADDR_LOOPBACK)) or die",
        );
        drop(server);
        let alerts = monitor.stop_all();
        // On a busy machine `bind_delay` can pass before the connect, which reports the bind too.
        let last = alerts.last().unwrap();
        assert_alert!(alerts[alerts.len() - 1 - usize::from(last["event"] == "close")], {
            "event" => "connect",
            "severity" => "notice",
            "port" => 986,
            "peer/port" => 2049,
            "process/comm" => "perl",
        });
        assert!(
            alerts.len() == 1 || alerts[0]["event"] == "bind",
            "{alerts:?}"
        );
    });
}

#[test]
fn connections_are_reported_once_per_peer_and_counted_on_close() {
    in_namespace(|namespace| {
        namespace.ip("addr add 10.9.9.1/32 dev lo");
        let cgroup = Cgroup::new("peers");
        let monitor = monitor(&cgroup);
        cgroup.perl(
            "use Socket; socket(my $l, PF_INET, SOCK_STREAM, 0) or die; \
             bind($l, sockaddr_in(976, INADDR_ANY)) or die; listen($l, 99) or die; \
             for my $from (('127.0.0.1') x 20, ('10.9.9.1') x 5) { \
             socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             bind($s, sockaddr_in(0, inet_aton($from))) or die $!; \
             connect($s, sockaddr_in(976, INADDR_LOOPBACK)) or die $! }",
        );
        let alerts = monitor.stop_all();
        let events: Vec<&str> = alerts
            .iter()
            .filter_map(|alert| alert["event"].as_str())
            .collect();
        assert_eq!(events, ["bind", "listen", "accept", "accept", "close"]);
        assert_alert!(alerts[4], { "accepts/count" => 25, "accepts/peers" => 2 });
    });
}
