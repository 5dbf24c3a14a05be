//! What lasts is reported by itself, whatever else happens, and nothing is lost from the sums.

mod flood;

use std::{net::TcpStream, path::Path, process::Command, sync::mpsc, thread};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    assert_alert,
    support::{Cgroup, Monitor, REBIND, copy_program, in_namespace, listed, totals},
};

/// A monitor with aggregation that watches one cgroup.
fn monitor(cgroup: &Cgroup) -> Monitor {
    let path = cgroup.path().to_str().unwrap();
    Monitor::start_default(&["--config", "/dev/null", "--cgroup", path])
}

/// Perl that listens on a TCP port and stops, that many times.
fn decoys(port: u16, times: usize) -> String {
    format!(
        "{REBIND} for (1..{times}) {{ socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
         setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1); \
         rebind($s, sockaddr_in({port}, INADDR_LOOPBACK)); listen($s, 5) or die; close $s }}"
    )
}

/// Perl that listens on a TCP port until it is resumed.
fn lasting(port: u16) -> String {
    format!(
        "{REBIND} socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
         setsockopt($s, SOL_SOCKET, SO_REUSEADDR, 1); \
         rebind($s, sockaddr_in({port}, INADDR_ANY)); listen($s, 5) or die; \
         $| = 1; print \"ready\\n\"; <STDIN>"
    )
}

/// Perl that repeats `step` until it is killed, and prints a line once it has begun.
fn flood(step: &str) -> String {
    format!(
        "{REBIND} $| = 1; my $turn = 0; for (;;) {{ {step} $turn++ == 50 and print \"ready\\n\" }}"
    )
}

/// The next line that `is_it` picks.
fn next(monitor: &Monitor, is_it: impl Fn(&Value) -> bool) -> Value {
    loop {
        let alert = serde_json::from_str(&monitor.line()).unwrap();
        if is_it(&alert) {
            return alert;
        }
    }
}

/// Whether the alert is of that event on that port, by itself.
fn is(event: &'static str, port: u16) -> impl Fn(&Value) -> bool {
    move |alert| alert["event"] == event && alert["port"] == port
}

#[test]
fn a_lasting_listener_after_decoys_is_reported_with_its_own_process() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("decoys");
        let monitor = monitor(&cgroup);
        cgroup.perl(&decoys(900, 20));
        let mut listener = cgroup.start_perl(&lasting(976));
        listener.wait_for("ready");
        let listen = next(&monitor, is("listen", 976));
        assert_alert!(listen, {
            "process/pid" => listener.pid(),
            "process/cmdline" => ["perl", "-e", &lasting(976)],
            "severity" => "warning",
            "origin" => "live",
        });
        // Its end too, with the noise on.
        cgroup.perl(&decoys(900, 20));
        let pid = listener.pid();
        listener.resume();
        listener.wait();
        let close = next(&monitor, is("close", 976));
        assert_alert!(close, {
            "process/pid" => pid,
            "socket/cookie" => listen["socket"]["cookie"],
        });
        monitor.stop_all();
    });
}

#[test]
fn a_flood_in_a_namespace_of_another_user_mutes_nobody() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("foreign");
        let monitor = monitor(&cgroup);
        let step = "socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
                    rebind($s, sockaddr_in(976, INADDR_ANY)); close $s;";
        let unprivileged = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
        let own = ["unshare", "--user", "--map-root-user", "--net"];
        let script = flood(step);
        let arguments = [&unprivileged[..], &own, &["perl", "-e", &script]].concat();
        let mut noise = cgroup.start("setpriv", &arguments);
        noise.wait_for("ready");
        let mut listener = cgroup.start_perl(&lasting(976));
        listener.wait_for("ready");
        let listen = next(&monitor, is("listen", 976));
        assert_alert!(listen, {
            "process/pid" => listener.pid(),
            "process/uid" => 0,
            "socket/netns" => namespace.inode,
        });
        drop(noise);
        listener.resume();
        listener.wait();
        monitor.stop_all();
    });
}

#[test]
fn the_first_remote_connection_during_a_flood_is_critical() {
    let (sender, client) = mpsc::channel();
    let (connected, go) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            in_namespace(move |namespace| {
                sender.send(*namespace).unwrap();
                // The server's end is there.
                go.recv().unwrap();
                namespace.ip("addr add 10.84.0.2/24 dev outer");
                namespace.ip("link set outer up");
                drop(TcpStream::connect("10.84.0.1:976").unwrap());
            });
        });
        in_namespace(move |server| {
            server.connect(client.recv().unwrap());
            server.ip("addr add 10.84.0.1/24 dev inner");
            server.ip("link set inner up");
            let cgroup = Cgroup::new("remote");
            let monitor = monitor(&cgroup);
            let mut listener = cgroup.start_perl(&format!(
                "{REBIND} socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                 rebind($s, sockaddr_in(976, INADDR_ANY)); listen($s, 4096) or die; \
                 $| = 1; print \"ready\\n\"; while (accept(my $c, $s)) {{ close $c }}"
            ));
            listener.wait_for("ready");
            // Connections from as many addresses as there are, all of this host.
            let mut noise = cgroup.start_perl(&flood(
                "socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
                 bind($c, sockaddr_in(0, pack('C4', 127, 1, $turn / 256 % 256, $turn % 256))); \
                 connect($c, sockaddr_in(976, INADDR_LOOPBACK)) or die; \
                 setsockopt($c, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)); close $c;",
            ));
            noise.wait_for("ready");
            connected.send(()).unwrap();
            let critical = next(&monitor, |alert| alert["severity"] == "critical");
            assert_alert!(critical, {
                "event" => "accept",
                "port" => 976,
                "peer/address" => "10.84.0.2",
                "process/pid" => listener.pid(),
            });
            drop((noise, listener));
            monitor.stop_all();
        });
    });
}

#[test]
fn a_summary_names_the_busiest_process_and_what_is_held() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("summary");
        let monitor = monitor(&cgroup);
        // Holds the port throughout, and stops listening and begins again.
        let mut holder = cgroup.start_perl(&format!(
            "{REBIND} socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); listen($s, 5) or die; \
             shutdown($s, SHUT_RD) or die; listen($s, 5) or die; \
             $| = 1; print \"ready\\n\"; <STDIN>"
        ));
        holder.wait_for("ready");
        let step = "socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                    rebind($s, sockaddr_in(976, inet_aton('127.0.0.2'))); \
                    listen($s, 5) or die; close $s;";
        let mut noise = cgroup.start_perl(&flood(step));
        noise.wait_for("ready");
        let summary = next(&monitor, |alert| {
            let processes = &alert["summary"]["processes"];
            processes[0]["pid"] == noise.pid()
        });
        assert_alert!(summary, { "event" => "summary", "summary/held" => json!({ "tcp": "976" }) });
        drop((noise, holder));
        monitor.stop_all();
    });
}

#[test]
fn what_is_reported_and_counted_is_what_happened() {
    const TIMES: u64 = 500;
    in_namespace(|_| {
        let cgroup = Cgroup::new("sums");
        let monitor = monitor(&cgroup);
        let times = |family: &str, address: &str| {
            format!(
                "{REBIND} for (1..{TIMES}) {{ socket(my $s, {family}, SOCK_DGRAM, 0) or die; \
                 rebind($s, {address}); close $s }} $| = 1; print \"done\\n\"; <STDIN>"
            )
        };
        // Two programs at once, on one port.
        let scripts = [
            times("PF_INET", "sockaddr_in(976, INADDR_LOOPBACK)"),
            times("PF_INET6", "pack_sockaddr_in6(976, IN6ADDR_LOOPBACK)"),
        ];
        let renamed = cgroup
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let renamed = std::env::temp_dir().join(renamed);
        let perl = String::from_utf8(Command::new("which").arg("perl").output().unwrap().stdout);
        copy_program(Path::new(perl.unwrap().trim()), &renamed);
        let mut first = cgroup.start_perl(&scripts[0]);
        let mut second = cgroup.start(renamed.to_str().unwrap(), &["-e", &scripts[1]]);
        for program in [&mut first, &mut second] {
            program.wait_for("done");
            program.resume();
        }
        first.wait();
        second.wait();
        std::fs::remove_file(&renamed).unwrap();
        let alerts = monitor.stop_all();
        let happened = [
            ("bind".to_owned(), 2 * TIMES),
            ("close".to_owned(), 2 * TIMES),
        ];
        assert_eq!(totals(&alerts), happened.into());
    });
}

#[test]
fn short_lived_clients_are_counted_to_the_last() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("clients");
        let monitor = monitor(&cgroup);
        cgroup.perl(&format!(
            "{REBIND} socket(my $l, PF_INET, SOCK_STREAM, 0) or die; \
             bind($l, sockaddr_in(2049, INADDR_LOOPBACK)) or die; listen($l, 5) or die; \
             for my $turn (1..200) {{ socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             setsockopt($c, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)); \
             rebind($c, sockaddr_in(986, pack('C4', 127, 0, 1, $turn))); \
             connect($c, sockaddr_in(2049, INADDR_LOOPBACK)) or die; accept(my $a, $l) or die; \
             close $c }}"
        ));
        let alerts = monitor.stop_all();
        assert_eq!(totals(&alerts)["connect"], 200);
    });
}

#[test]
fn a_holder_whose_name_is_cut_inside_a_character_is_listed() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("cut");
        // 15 bytes are kept: the last is the first half of U+00E9.
        let mut listener = cgroup.start_perl(&format!(
            "$0 = 'fourteen-bytes' . \"\\xc3\\xa9\"; {}",
            lasting(976)
        ));
        listener.wait_for("ready");
        let comm = std::fs::read(format!("/proc/{}/comm", listener.pid())).unwrap();
        assert!(String::from_utf8(comm).is_err());
        let listed = listed(namespace.inode, &[]);
        assert_eq!(listed.len(), 1, "{listed:?}");
        assert_alert!(listed[0], {
            "port" => 976,
            "process/pid" => listener.pid(),
            "process/comm" => "fourteen-bytes\\xc3",
        });
        listener.resume();
        listener.wait();
    });
}

#[test]
fn a_listener_whose_events_are_lost_in_a_flood_is_found_during_it() {
    in_namespace(|_| {
        let cgroup = Cgroup::new("lost");
        let path = cgroup.path().to_str().unwrap();
        let ring = [
            "--config",
            "/dev/null",
            "--ring-size",
            "4096",
            "--cgroup",
            path,
        ];
        let monitor = Monitor::start_default(&ring);
        // Connections from ever other addresses are no repeats: the ring is never empty.
        let mut server = cgroup.start_perl(&format!(
            "{REBIND} socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_ANY)); listen($s, 4096) or die; \
             $| = 1; print \"ready\\n\"; while (accept(my $c, $s)) {{ close $c }}"
        ));
        server.wait_for("ready");
        let mut noise = cgroup.start_perl(&flood(
            "socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             bind($c, sockaddr_in(0, pack('C4', 127, 1 + $turn / 65536, $turn / 256 % 256, $turn % 256))); \
             connect($c, sockaddr_in(976, INADDR_LOOPBACK)) or die; \
             setsockopt($c, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0)); close $c;",
        ));
        noise.wait_for("ready");
        monitor.signal(Signal::SIGSTOP);
        // Fills the ring, so that the listener's events are lost.
        cgroup.perl(
            "use Socket; for my $turn (1..100) { socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             bind($c, sockaddr_in(0, pack('C4', 127, 0, 9, $turn))) or die; \
             connect($c, sockaddr_in(976, INADDR_LOOPBACK)) or die }",
        );
        let mut listener = cgroup.start_perl(&lasting(977));
        listener.wait_for("ready");
        monitor.signal(Signal::SIGCONT);
        let listen = next(&monitor, is("listen", 977));
        assert_alert!(listen, { "process/pid" => listener.pid(), "origin" => "snapshot" });
        drop((noise, server, listener));
        monitor.stop_all();
    });
}
