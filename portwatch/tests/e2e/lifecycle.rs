//! The alerts about a socket from bind to close.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
            socket,
        },
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    assert_alert,
    support::{Helper, Monitor, REBIND, in_namespace},
};

#[test]
fn a_tcp_listener_is_reported_from_bind_to_close() {
    struct Case {
        listen: &'static str,
        connect: &'static str,
        /// Family and address of the listener, and of the connection.
        own: (&'static str, &'static str),
        accepted: (&'static str, &'static str),
    }
    let cases = [
        Case {
            listen: "127.0.0.1:976",
            connect: "127.0.0.1:976",
            own: ("ipv4", "127.0.0.1"),
            accepted: ("ipv4", "127.0.0.1"),
        },
        Case {
            listen: "0.0.0.0:1",
            connect: "127.0.0.1:1",
            own: ("ipv4", "0.0.0.0"),
            accepted: ("ipv4", "127.0.0.1"),
        },
        Case {
            listen: "[::1]:976",
            connect: "[::1]:976",
            own: ("ipv6", "::1"),
            accepted: ("ipv6", "::1"),
        },
        // Dual-stack, reached over each.
        Case {
            listen: "[::]:1023",
            connect: "[::1]:1023",
            own: ("ipv6", "::"),
            accepted: ("ipv6", "::1"),
        },
        Case {
            listen: "[::]:976",
            connect: "127.0.0.1:976",
            own: ("ipv6", "::"),
            accepted: ("ipv4", "127.0.0.1"),
        },
    ];
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--all"]);
        for case in cases {
            let listener = TcpListener::bind(case.listen).unwrap();
            let client = TcpStream::connect(case.connect).unwrap();
            let client_port = client.local_addr().unwrap().port();
            drop(listener.accept().unwrap());
            drop(client);
            drop(listener);

            let port = case.listen.parse::<SocketAddr>().unwrap().port();
            let alerts = monitor.alerts(namespace.inode, 4);
            let events: Vec<_> = alerts
                .iter()
                .map(|alert| {
                    let text = |key: &str| alert[key].as_str().unwrap();
                    (
                        text("event"),
                        text("severity"),
                        (text("family"), text("address")),
                    )
                })
                .collect();
            assert_eq!(
                events,
                [
                    ("bind", "notice", case.own),
                    ("listen", "warning", case.own),
                    ("accept", "warning", case.accepted),
                    ("close", "notice", case.own),
                ],
                "{}",
                case.listen
            );
            for alert in &alerts {
                let peer = match alert["event"].as_str() {
                    Some("accept") => json!({"address": case.accepted.1, "port": client_port}),
                    _ => json!(null),
                };
                assert_alert!(alert, {
                    "port" => port,
                    "transport" => "tcp",
                    "peer" => peer,
                    "origin" => "live",
                    "socket/cookie" => alerts[0]["socket"]["cookie"],
                    "process/pid" => std::process::id(),
                    "process/ppid" => std::os::unix::process::parent_id(),
                    "process/exe" => std::env::current_exe().unwrap().to_str().unwrap(),
                    "process/uid" => 0,
                    "process/user" => "root",
                });
            }
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_udp_bind_is_a_warning() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let cases = [
            ("127.0.0.1:976", "ipv4", "127.0.0.1"),
            ("0.0.0.0:976", "ipv4", "0.0.0.0"),
            ("[::1]:977", "ipv6", "::1"),
            ("[::]:977", "ipv6", "::"),
        ];
        for (local, family, address) in cases {
            drop(UdpSocket::bind(local).unwrap());
            let alerts = monitor.alerts(namespace.inode, 2);
            for (alert, event, severity) in [
                (&alerts[0], "bind", "warning"),
                (&alerts[1], "close", "notice"),
            ] {
                assert_alert!(alert, {
                    "event" => event,
                    "severity" => severity,
                    "transport" => "udp",
                    "family" => family,
                    "address" => address,
                    "registry/status" => "unassigned",
                    "registry/range" => "954-988",
                    "registry/basis" => "row",
                    "registry/as_of" => "2026-08-17",
                    "socket/cookie" => alerts[0]["socket"]["cookie"],
                    "process/pid" => std::process::id(),
                });
            }
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_bound_socket_that_connects_is_reported_as_a_client() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_port = server.local_addr().unwrap().port();
        let client = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let address = |port| SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], port)));
        bind(client.as_raw_fd(), &address(986)).unwrap();
        connect(client.as_raw_fd(), &address(server_port)).unwrap();
        drop(client);

        let alerts = monitor.alerts(namespace.inode, 3);
        for (alert, event) in alerts.iter().zip(["bind", "connect", "close"]) {
            assert_alert!(alert, {
                "event" => event,
                "severity" => "notice",
                "port" => 986,
                "socket/cookie" => alerts[0]["socket"]["cookie"],
                "process/pid" => std::process::id(),
            });
        }
        assert_alert!(alerts[1], {
            "address" => "127.0.0.1",
            "peer" => json!({"address": "127.0.0.1", "port": server_port}),
        });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_connect_that_failed_is_reported_as_such() {
    in_namespace(|namespace| {
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let closed = SockaddrStorage::from(closed.unwrap());
        let monitor = Monitor::start_default(&[]);
        let client = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let local = SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], 986)));
        bind(client.as_raw_fd(), &local).unwrap();
        connect(client.as_raw_fd(), &closed).unwrap_err();
        drop(client);
        // Its bind is reported too if it took longer than the delay.
        let mut alert = monitor.alert(namespace.inode);
        if alert["event"] == "bind" {
            alert = monitor.alert(namespace.inode);
        }
        assert_alert!(alert, { "event" => "connect", "outcome" => json!(null) });
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "close",
            "outcome" => "failed",
            "socket/cookie" => alert["socket"]["cookie"],
            "process/pid" => std::process::id(),
        });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn listen_without_bind_is_reported() {
    in_namespace(|namespace| {
        // Lets the kernel choose 976 as an ephemeral port.
        std::fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "976 977").unwrap();
        let monitor = Monitor::start(&[]);
        let listener = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        listen(&listener, Backlog::new(1).unwrap()).unwrap();
        drop(listener);
        let alerts = monitor.alerts(namespace.inode, 2);
        for (alert, event) in alerts.iter().zip(["listen", "close"]) {
            assert_alert!(alert, {
                "event" => event,
                "transport" => "tcp",
                "process/pid" => std::process::id(),
                "socket/cookie" => alerts[0]["socket"]["cookie"],
            });
            assert!(
                [976, 977].contains(&alert["port"].as_u64().unwrap()),
                "{alert}"
            );
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_separate_program_is_described_in_full() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let mut nc = Command::new("nc")
            .args(["-l", "127.0.0.1", "976"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let alerts = monitor.alerts(namespace.inode, 2);
        for (alert, event) in alerts.iter().zip(["bind", "listen"]) {
            assert_alert!(alert, {
                "event" => event,
                "process/pid" => nc.id(),
                "process/ppid" => std::process::id(),
                "process/comm" => "nc",
                "process/cmdline" => ["nc", "-l", "127.0.0.1", "976"],
                "process/user" => "root",
            });
            let exe = alert["process"]["exe"].as_str().unwrap();
            assert!(
                exe.starts_with("/usr/bin/nc") || exe.starts_with("/bin/nc"),
                "{exe}"
            );
            assert!(
                alert["process"]["cgroup"]
                    .as_str()
                    .unwrap()
                    .starts_with('/')
            );
        }
        // The kernel closes the socket of the killed process; the alert still names the process.
        kill(Pid::from_raw(nc.id() as i32), Signal::SIGKILL).unwrap();
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "process/pid" => nc.id() });
        nc.wait().unwrap();
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn the_first_connection_from_another_host_is_critical() {
    in_namespace(|server| {
        let monitor = Monitor::start(&[]);
        let (here, client) = mpsc::channel();
        let (serving, wait) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                in_namespace(move |client| {
                    here.send(*client).unwrap();
                    wait.recv().unwrap();
                    client.ip("addr add 10.83.0.2/24 dev outer");
                    client.ip("link set outer up");
                    for _ in 0..2 {
                        drop(TcpStream::connect("10.83.0.1:976").unwrap());
                    }
                });
            });
            server.connect(client.recv().unwrap());
            server.ip("addr add 10.83.0.1/24 dev inner");
            server.ip("link set inner up");
            let listener = TcpListener::bind("10.83.0.1:976").unwrap();
            serving.send(()).unwrap();
            for _ in 0..2 {
                drop(listener.accept().unwrap());
            }
        });
        let alerts = monitor.alerts(server.inode, 5);
        let events: Vec<_> = alerts
            .iter()
            .map(|alert| {
                (
                    alert["event"].as_str().unwrap(),
                    alert["severity"].as_str().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            events,
            [
                ("bind", "notice"),
                ("listen", "warning"),
                ("accept", "critical"),
                ("accept", "warning"),
                ("close", "notice"),
            ]
        );
        assert_eq!(alerts[2]["peer"]["address"], "10.83.0.2");
        monitor.stop_without_more(server.inode);
    });
}

#[test]
fn a_listener_that_is_shut_down_is_known_after_any_number_of_other_closes() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let mut program = Helper::start(Command::new("perl").args([
            "-e",
            &format!(
                "{REBIND} $| = 1; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                 rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); listen($s, 5) or die; \
                 shutdown($s, SHUT_RD) or die; \
                 for (1..300) {{ socket(my $u, PF_INET, SOCK_DGRAM, 0) or die; \
                 rebind($u, sockaddr_in(977, INADDR_LOOPBACK)); close $u }} \
                 print \"done\\n\"; <STDIN>; listen($s, 5) or die; \
                 shutdown($s, SHUT_RD) or die"
            ),
        ]));
        program.wait_for("done");
        let alerts = monitor.alerts(namespace.inode, 603);
        let first = &alerts[0]["socket"]["cookie"];
        for (alert, event) in alerts.iter().zip(["bind", "listen", "close"]) {
            assert_alert!(alert, { "event" => event, "socket/cookie" => first });
        }
        // A scan that runs meanwhile has nothing to add.
        monitor.signal(Signal::SIGCONT);
        thread::sleep(std::time::Duration::from_secs(1));
        program.resume();
        let pid = program.pid();
        program.wait();
        for event in ["listen", "close"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "origin" => "live",
                "socket/cookie" => first,
                "since" => alerts[0]["since"],
                "process/pid" => pid,
            });
        }
        // Its release was reported as its close.
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_program_that_takes_over_a_listener_is_reported_and_named_by_accepts() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        // Binds, and then executes another program that keeps the descriptor.
        let mut program = Helper::start(Command::new("perl").args([
            "-e",
            &format!(
                "{REBIND} $^F = 99; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
                 rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); listen($s, 5) or die; \
                 exec 'sh', '-c', 'read line; exit 0'"
            ),
        ]));
        let alerts = monitor.alerts(namespace.inode, 3);
        let pid = program.pid();
        for (alert, event) in alerts.iter().zip(["bind", "listen", "handover"]) {
            assert_alert!(alert, {
                "event" => event,
                "process/pid" => pid,
                "socket/cookie" => alerts[0]["socket"]["cookie"],
            });
        }
        let exe = |alert: &Value| alert["process"]["exe"].as_str().unwrap().to_owned();
        assert!(exe(&alerts[1]).contains("perl"), "{}", alerts[1]);
        assert!(exe(&alerts[2]).contains("sh"), "{}", alerts[2]);
        assert_alert!(alerts[2], { "severity" => "notice", "origin" => "snapshot" });
        drop(TcpStream::connect("127.0.0.1:976").unwrap());
        let accept = monitor.alert(namespace.inode);
        assert_eq!(accept["event"], "accept");
        assert_eq!(exe(&accept), exe(&alerts[2]));
        program.resume();
        program.wait();
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}
