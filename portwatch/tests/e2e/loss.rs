//! A ring that is too small, and a reader that stalls: every lost event is reported.

use std::{collections::BTreeSet, io::BufRead as _, net::UdpSocket, process::Command};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::sandbox::children;
use crate::support::{
    Cgroup, Monitor, REBIND, Unread, binary, bind_and_close, in_namespace, listed, perl,
};

#[test]
fn lost_events_are_counted_exactly() {
    const SOCKETS: usize = 300;
    in_namespace(|namespace| {
        // Watches one cgroup, so that no other test's events are in the ring.
        let cgroup = Cgroup::new("loss");
        let path = cgroup.path().to_str().unwrap();
        // Reports of the canary would take room as well.
        let interval = ["--health-interval", "3600"];
        let options = ["--ring-size", "4096", "--cgroup", path];
        let mut monitor = Monitor::start(&[&interval[..], &options].concat());
        assert!(monitor.start_line.contains(path), "{}", monitor.start_line);
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        let [canary, _] = children(monitor.pid());
        kill(Pid::from_raw(canary as i32), Signal::SIGSTOP).unwrap();
        // What it has done until then is taken before this.
        cgroup.perl(&bind_and_close(1));
        monitor.alerts(namespace.inode, 2);
        monitor.signal(Signal::SIGSTOP);
        cgroup.perl(&bind_and_close(SOCKETS));
        monitor.signal(Signal::SIGTERM);
        monitor.signal(Signal::SIGCONT);
        let finished = monitor.finish();
        assert!(finished.status.success(), "{}", finished.stderr);
        let alerts: Vec<Value> = finished
            .stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        // That the canary does not answer is reported too.
        let (losses, reported): (Vec<&Value>, Vec<&Value>) = alerts
            .iter()
            .filter(|alert| alert["event"] != "health")
            .partition(|alert| alert["event"] == "loss");
        let lost: u64 = losses
            .iter()
            .filter_map(|alert| alert["lost"].as_u64())
            .sum();
        // Each record has a header of 8 bytes: one exec info of 1,576 bytes, events of 120 bytes.
        let fit = (4096 - 1584) / 128;
        assert_eq!((reported.len(), losses.len()), (fit, 1));
        assert_eq!(lost, (2 * SOCKETS - fit) as u64);
    });
}

/// Perl that binds UDP sockets on `ports` and keeps `kept` open; then closes those below 960.
fn bind_and_keep(ports: &str, kept: &str) -> String {
    format!(
        "{REBIND} my %kept; my %keep = map {{ $_ => 1 }} ({kept}); for my $port ({ports}) {{ \
         socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         rebind($s, sockaddr_in($port, INADDR_LOOPBACK)); \
         if ($keep{{$port}}) {{ $kept{{$port}} = $s }} else {{ close $s }} }} \
         $| = 1; print \"ready\\n\"; <STDIN>; \
         close $kept{{$_}} for grep {{ $_ < 960 }} keys %kept; print \"closed\\n\"; <STDIN>"
    )
}

#[test]
fn a_scan_after_a_loss_corrects_the_reported_state() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("repaired");
        let path = cgroup.path().to_str().unwrap();
        let monitor = Monitor::start(&["--ring-size", "4096", "--cgroup", path]);
        let held = || -> BTreeSet<u64> {
            let alerts = listed(namespace.inode, &[]);
            let ports = alerts.iter().filter_map(|alert| alert["port"].as_u64());
            ports.collect()
        };
        // The open sockets according to the alerts.
        let mut reported: BTreeSet<u64> = BTreeSet::new();
        let read_until =
            |reported: &mut BTreeSet<u64>, truth: &BTreeSet<u64>, mut is_loss_due: bool| {
                while reported != truth || is_loss_due {
                    let alert: Value = serde_json::from_str(&monitor.line()).unwrap();
                    let port = alert["port"].as_u64();
                    match alert["event"].as_str().unwrap() {
                        "loss" => is_loss_due = false,
                        "close" => assert!(reported.remove(&port.unwrap()), "not open: {alert}"),
                        _ => assert!(reported.insert(port.unwrap()), "reported twice: {alert}"),
                    }
                }
            };
        monitor.signal(Signal::SIGSTOP);
        let ports = "(971..988) x 20, 954..970, 1001";
        let mut binder = cgroup.start_perl(&bind_and_keep(ports, "955..958, 966..970, 1001"));
        binder.wait_for("ready");
        monitor.signal(Signal::SIGCONT);
        let truth = BTreeSet::from([955, 956, 957, 958, 966, 967, 968, 969, 970, 1001]);
        assert_eq!(held(), truth);
        read_until(&mut reported, &truth, true);

        // Sockets that are closed while the ring is full.
        monitor.signal(Signal::SIGSTOP);
        binder.resume();
        binder.wait_for("closed");
        cgroup.perl(&bind_and_close(300));
        monitor.signal(Signal::SIGCONT);
        let truth = BTreeSet::from([966, 967, 968, 969, 970, 1001]);
        assert_eq!(held(), truth);
        read_until(&mut reported, &truth, true);
        binder.resume();
        binder.wait();
        read_until(&mut reported, &BTreeSet::new(), false);
    });
}

#[test]
fn a_stalled_reader_does_not_delay_the_stop() {
    in_namespace(|_| {
        let mut command = Command::new(binary());
        command.args(["--format", "json", "--no-aggregate"]);
        let mut monitor = Unread::spawn(&mut command);
        // About 700 bytes each, into an unread pipe of 64 KiB.
        perl(&bind_and_close(300));
        kill(Pid::from_raw(monitor.child.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(monitor.child.wait().unwrap().code(), Some(6));
        let mut line = String::new();
        monitor.stderr.read_line(&mut line).unwrap();
        assert!(line.contains("its reader stalled"), "{line}");
        assert!(line.contains("alerts are not printed"), "{line}");
    });
}
