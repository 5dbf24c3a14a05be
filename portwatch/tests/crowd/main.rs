//! What one program piles up costs the others nothing: neither their names nor their alerts. A program of
//! its own, since cargo runs these one after the other: every scan of the host has to read so many sockets.

// clippy.toml exempts test functions only, and all of this is test code.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

#[expect(
    dead_code,
    unused_imports,
    reason = "shared with the end-to-end tests, which use all of it"
)]
#[path = "../e2e/support/mod.rs"]
mod support;

use std::{fs, io::Write as _, time::Duration};

use nix::unistd::{SysconfVar, sysconf};

use serde_json::Value;

use self::support::{Cgroup, Helper, Monitor, in_namespace, totals};

/// Processes of the flood, each with an address of its own: a group of SO_REUSEPORT sockets has room
/// for 65,535.
const PROCESSES: u64 = 10;

/// Sockets of each.
const SOCKETS: u64 = 7200;

/// Perl that forks the processes. Each binds its sockets to one port, and closes them at the end.
fn flood() -> String {
    format!(
        r#"use Socket qw(:all); pipe(my $r, my $w); pipe(my $from, my $to); $| = 1;
        for my $i (1..{PROCESSES}) {{
            defined(my $pid = fork) or die; next if $pid; close $to; my @all;
            for (1..{SOCKETS}) {{
                socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
                setsockopt($s, SOL_SOCKET, SO_REUSEPORT, 1) or die;
                bind($s, sockaddr_in(976, pack("C4", 127, 1, 0, $i))) or die "bind: $!";
                push @all, $s
            }}
            syswrite($w, "x"); sysread($from, my $x, 1); exit
        }}
        for (1..{PROCESSES}) {{ sysread($r, my $x, 1) }}
        print "bound\n"; <STDIN>; close $to; 1 while wait > 0; print "closed\n"; <STDIN>"#
    )
}

/// A listener, one connection to it, and its end.
const LISTENER: &str = r#"use Socket qw(:all); $| = 1;
    socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
    bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die "bind: $!"; listen($s, 5) or die;
    print "listening\n"; <STDIN>;
    socket(my $c, PF_INET, SOCK_STREAM, 0) or die;
    connect($c, sockaddr_in(976, INADDR_LOOPBACK)) or die "connect: $!";
    print "connected\n"; <STDIN>; close $s; print "closed\n"; <STDIN>"#;

/// The processor time that the monitor has taken.
fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|one| one.parse::<u64>().unwrap())
        .sum();
    let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
    Duration::from_secs_f64(ticks as f64 / per_second as f64)
}

#[test]
fn a_listener_is_known_beside_more_sockets_than_are_tracked() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("attack");
        let mut config = tempfile::NamedTempFile::new().unwrap();
        writeln!(config, "[aggregate]\nmax_rate = 0").unwrap();
        let monitor = Monitor::start_default(&[
            "--config",
            config.path().to_str().unwrap(),
            "--cgroup",
            cgroup.path().to_str().unwrap(),
            // Nothing is counted in the kernel.
            "--ring-size",
            "67108864",
            "--health-interval",
            "1",
        ]);
        // Another unit: its events are no part of the flood's burst.
        let unit = cgroup.below("listener");
        let mut listener = unit.start_perl(LISTENER);
        listener.wait_for("listening");
        // The one that was there first.
        let pid = listener.pid();
        let mut alerts: Vec<Value> = Vec::new();
        let mut next = || {
            let alert: Value = serde_json::from_str(&monitor.line()).unwrap();
            alerts.push(alert.clone());
            alert
        };
        assert_eq!(next()["process"]["pid"], pid);

        let script = flood();
        let limit = format!("ulimit -n {}; exec perl -e \"$0\"", SOCKETS + 100);
        let mut flood: Helper = cgroup.start("bash", &["-c", &limit, &script]);
        flood.wait_for("bound");
        let health = loop {
            let alert = next();
            if alert["event"] == "health" {
                break alert;
            }
        };
        assert_eq!(health["severity"], "warning");
        let detail = health["detail"].as_str().unwrap();
        for part in ["perl (user 0) on 976/udp", "counted only"] {
            assert!(detail.contains(part), "{detail}");
        }

        listener.resume();
        listener.wait_for("connected");
        listener.resume();
        listener.wait_for("closed");
        let mut seen = Vec::new();
        while seen.last() != Some(&"close") {
            let alert = next();
            if alert["transport"] == "tcp" && alert["event"] != "summary" {
                let kinds = ["bind", "listen", "accept", "close"];
                let event = kinds.into_iter().find(|one| alert["event"] == *one);
                assert_eq!(alert["process"]["pid"], pid, "{alert}");
                seen.extend(event);
            }
        }
        assert!(seen.ends_with(&["accept", "close"]), "{seen:?}");

        const WINDOW: Duration = Duration::from_secs(3);
        let before = processor_time(monitor.pid());
        std::thread::sleep(WINDOW);
        let taken = processor_time(monitor.pid()).saturating_sub(before);
        println!(
            "while they are held: {:.1} %",
            100.0 * taken.as_secs_f64() / 3.0
        );

        flood.resume();
        flood.wait_for("closed");
        alerts.extend(monitor.stop_all());
        let snapshots = alerts.iter().filter(|one| one["origin"] == "snapshot");
        assert_eq!(snapshots.count(), 0);
        alerts.retain(|alert| alert["transport"] != "tcp" || alert["event"] == "summary");
        let totals = totals(&alerts);
        let all = PROCESSES * SOCKETS;
        for event in ["bind", "close"] {
            assert_eq!(totals[event], all, "{totals:?}");
        }
        listener.resume();
        flood.resume();
    });
}
