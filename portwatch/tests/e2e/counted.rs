//! What lasts while the BPF programs count is reported as the live event that it was.

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Cgroup, Helper, Monitor, REBIND, in_namespace, totals},
};

/// A monitor with aggregation and a small ring that watches one cgroup.
fn monitor(cgroup: &Cgroup) -> Monitor {
    let path = cgroup.path().to_str().unwrap();
    let ring = ["--ring-size", "16384"];
    Monitor::start_default(&[&ring[..], &["--config", "/dev/null", "--cgroup", path]].concat())
}

/// Perl's `cookie($socket)`, and `listener()`: a new socket that listens on 976.
const LISTENER: &str = "sub cookie($) { unpack('Q', getsockopt($_[0], SOL_SOCKET, 57)) } \
    sub listener() { socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
    setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1); rebind($s, sockaddr_in(976, INADDR_ANY)); \
    listen($s, 5) or die; $s } $| = 1; ";

/// The cookie that the program prints.
fn cookie(helper: &mut Helper) -> u64 {
    helper.line().parse().unwrap()
}

/// The alerts of that event of that socket.
fn of<'a>(alerts: &'a [Value], event: &str, cookie: u64) -> Vec<&'a Value> {
    let is_it = |alert: &&Value| alert["event"] == event && alert["socket"]["cookie"] == cookie;
    alerts.iter().filter(is_it).collect()
}

#[test]
fn a_lasting_listener_whose_events_were_counted_is_reported_live_with_its_process() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("counted-listener");
        let monitor = monitor(&cgroup);
        monitor.signal(Signal::SIGSTOP);
        // Nobody is in the namespace of the listener once cat is in another, and who made it is gone.
        let script = format!(
            "{REBIND} {LISTENER} for (1..500) {{ close listener() }} $^F = 255; \
             my $s = listener(); print cookie($s), \"\\n\"; \
             fork or exec('unshare', '--net', 'cat')"
        );
        let mut server = cgroup.start("unshare", &["--net", "perl", "-e", &script]);
        let pid = server.pid();
        let cookie = cookie(&mut server);
        monitor.signal(Signal::SIGCONT);
        let mut alerts: Vec<Value> = Vec::new();
        while of(&alerts, "listen", cookie).is_empty() {
            alerts.push(serde_json::from_str(&monitor.line()).unwrap());
        }
        assert_alert!(of(&alerts, "listen", cookie)[0], {
            "origin" => "live",
            "process/pid" => pid,
            "process/comm" => "perl",
            "process/cmdline/1" => "-e",
            "severity" => "warning",
        });
        assert!(of(&alerts, "listen", cookie)[0]["since"].is_string());
        // cat closes it at the end of its input.
        drop(server);
        while of(&alerts, "close", cookie).is_empty() {
            alerts.push(serde_json::from_str(&monitor.line()).unwrap());
        }
        assert_alert!(of(&alerts, "close", cookie)[0], { "origin" => "live", "process/pid" => pid });
        alerts.extend(monitor.stop_all());
        let happened = ["bind", "close", "listen"].map(|event| (event.to_owned(), 501));
        assert_eq!(totals(&alerts), happened.into());
    });
}

#[test]
fn a_socket_that_lasted_and_closed_while_events_were_counted_is_reported() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("counted-closed");
        let monitor = monitor(&cgroup);
        monitor.signal(Signal::SIGSTOP);
        let mut server = cgroup.start_perl(&format!(
            "{REBIND} {LISTENER} for (1..500) {{ close listener() }} my $s = listener(); \
             print cookie($s), \"\\n\"; select(undef, undef, undef, 0.15); close $s; \
             for (1..500) {{ close listener() }} print \"done\\n\"; <STDIN>"
        ));
        let cookie = cookie(&mut server);
        server.wait_for("done");
        monitor.signal(Signal::SIGCONT);
        let pid = server.pid();
        server.resume();
        server.wait();
        let alerts = monitor.stop_all();
        for event in ["listen", "close"] {
            let alerts = of(&alerts, event, cookie);
            assert_eq!(alerts.len(), 1, "{event}: {alerts:?}");
            assert_alert!(alerts[0], { "origin" => "live", "process/pid" => pid });
        }
        let happened = ["bind", "close", "listen"].map(|event| (event.to_owned(), 1001));
        assert_eq!(totals(&alerts), happened.into());
    });
}
