//! TCP connections of every kind: made, cut, of several paths, of a full ring; and their direction.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::{
    assert_alert,
    sessions::{connection, session, wait_for_end},
    support::{Cgroup, Monitor, REBIND, in_namespace, listed},
};

#[test]
fn outgoing_connections_end_too() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--sessions"]);
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = |address: &str| address.parse::<SocketAddr>().unwrap().into();
        let bound = || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&at("127.0.0.1:976")).unwrap();
            socket
        };
        let socket = bound();
        socket
            .connect(&server.local_addr().unwrap().into())
            .unwrap();
        let mut client = TcpStream::from(socket);
        let mut accepted = server.accept().unwrap().0;
        client.write_all(b"123").unwrap();
        accepted.read_exact(&mut [0; 3]).unwrap();
        accepted.write_all(b"4567").unwrap();
        client.read_exact(&mut [0; 4]).unwrap();
        drop(accepted);
        wait_for_end(&mut client);
        drop(client);
        assert_alert!(session(&monitor, namespace), {
            "direction" => "out",
            "session/bytes_in" => 4,
            "session/bytes_out" => 3,
            "session/ended_by" => "peer",
            "peer/port" => server.local_addr().unwrap().port(),
            "process/pid" => std::process::id(),
        });

        // To itself: one socket, both ends.
        let socket = bound();
        socket.connect(&at("127.0.0.1:976")).unwrap();
        let mut itself = TcpStream::from(socket);
        itself.write_all(b"123456").unwrap();
        itself.read_exact(&mut [0; 6]).unwrap();
        drop(itself);
        assert_alert!(session(&monitor, namespace), {
            "direction" => "out",
            "session/bytes_in" => 6,
            "session/bytes_out" => 6,
            "session/ended_by" => "us",
        });
    });
}

#[test]
fn a_peer_that_is_gone_is_a_timeout() {
    in_namespace(|server| {
        let monitor = Monitor::start(&["--sessions"]);
        let (here, client) = mpsc::channel();
        let (serving, wait) = mpsc::channel();
        let (cut, is_cut) = mpsc::channel();
        let (seen, end) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(move || {
                in_namespace(move |client| {
                    here.send(*client).unwrap();
                    wait.recv().unwrap();
                    client.ip("addr add 10.84.0.2/24 dev outer");
                    client.ip("link set outer up");
                    let mut stream = TcpStream::connect("10.84.0.1:976").unwrap();
                    stream.write_all(b"123").unwrap();
                    stream.read_exact(&mut [0; 2]).unwrap();
                    client.ip("link set outer down");
                    cut.send(()).unwrap();
                    end.recv().unwrap();
                });
            });
            server.connect(client.recv().unwrap());
            server.ip("addr add 10.84.0.1/24 dev inner");
            server.ip("link set inner up");
            let listener = TcpListener::bind("10.84.0.1:976").unwrap();
            serving.send(()).unwrap();
            let mut accepted = listener.accept().unwrap().0;
            accepted.read_exact(&mut [0; 3]).unwrap();
            setsockopt(&accepted, sockopt::TcpUserTimeout, &100).unwrap();
            accepted.write_all(b"45").unwrap();
            is_cut.recv().unwrap();
            accepted.write_all(b"never acknowledged").unwrap();
            assert_alert!(session(&monitor, server), {
                "session/bytes_in" => 3,
                "session/bytes_out" => 2,
                "session/ended_by" => "timeout",
                "peer/address" => "10.84.0.2",
            });
            seen.send(()).unwrap();
        });
    });
}

#[test]
fn a_rule_asks_for_the_sessions_that_it_matches() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("portwatch.toml");
    for (keys, severity) in [
        ("decide = \"notice\"\nsessions = true", "notice"),
        ("decide = \"warning\"\nevent = \"session\"", "warning"),
    ] {
        let text = format!("[[rule]]\nname = \"here\"\nport = 976\n{keys}\n");
        std::fs::write(&config, text).unwrap();
        in_namespace(|namespace| {
            let monitor = Monitor::start_default(&["--config", config.to_str().unwrap()]);
            for port in [977, 976] {
                let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
                let (client, mut server) = connection(&listener);
                drop(client);
                wait_for_end(&mut server);
            }
            assert_alert!(session(&monitor, namespace), {
                "port" => 976,
                "severity" => severity,
                "rule/name" => "here",
            });
            monitor.stop_without_more(namespace.inode);
        });
    }
}

/// From outside, an accepted connection whose listener is gone looks like one that was made.
#[test]
fn the_direction_of_a_connection_is_a_fact_or_unknown() {
    in_namespace(|namespace| {
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        let ends = connection(&listener);
        drop(listener);
        let monitor = Monitor::start(&[]);
        let list = in_namespace(|_| listed(namespace.inode, &[]));
        for alert in [monitor.alert(namespace.inode), list[0].clone()] {
            assert_alert!(alert, {
                "event" => "connect",
                "origin" => "snapshot",
                "direction" => Value::Null,
                "peer/port" => ends.0.local_addr().unwrap().port(),
            });
        }
        let text = crate::support::run(&["list"]).stdout;
        let peer = ends.0.local_addr().unwrap();
        assert!(text.contains(&format!("connection with {peer}")), "{text}");
        drop(ends);
    });
}

/// While the ring is filling, the BPF programs add up what ends: nothing is lost of it.
#[test]
fn connections_that_end_while_the_ring_is_full_are_in_the_sums() {
    const CONNECTIONS: u64 = 700;
    in_namespace(|_| {
        let cgroup = Cgroup::new("sessions-counted");
        let path = cgroup.path().to_str().unwrap();
        let ring = ["--ring-size", "16384", "--config", "/dev/null"];
        let monitor = Monitor::start_default(&[&ring[..], &["--cgroup", path]].concat());
        monitor.signal(Signal::SIGSTOP);
        let script = format!(
            "{REBIND} $| = 1; socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); listen($s, 5) or die; \
             for (1..{CONNECTIONS}) {{ socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             connect($c, sockaddr_in(976, INADDR_LOOPBACK)) or die; accept(my $a, $s) or die; \
             syswrite($c, 'x' x 10); sysread($a, my $in, 10) == 10 or die; \
             syswrite($a, 'y' x 3); sysread($c, $in, 3) == 3 or die; \
             close $c; sysread($a, $in, 1); close $a }} print \"done\\n\"; <STDIN>"
        );
        let mut server = cgroup.start_perl(&script);
        server.wait_for("done");
        monitor.signal(Signal::SIGCONT);
        drop(server);
        let (mut sums, mut is_closed) = ((0, 0, 0), false);
        let alerts = monitor.stop_all();
        for alert in &alerts {
            let of = |value: &Value| {
                let word = |key: &str| value[key].as_u64().unwrap_or(0);
                (word("bytes_in"), word("bytes_out"))
            };
            let (ended, (bytes_in, bytes_out)) = match alert["event"].as_str().unwrap() {
                "close" => {
                    is_closed = true;
                    let ended = alert["sessions"]["ended"].as_u64().unwrap();
                    (ended, of(&alert["sessions"]))
                }
                "summary" => {
                    let ended = alert["summary"]["counts"]["session"].as_u64();
                    (ended.unwrap_or(0), of(&alert["summary"]))
                }
                event => {
                    assert_ne!(event, "loss", "{alert}");
                    continue;
                }
            };
            sums = (sums.0 + ended, sums.1 + bytes_in, sums.2 + bytes_out);
        }
        assert!(is_closed, "{alerts:?}");
        let all = (CONNECTIONS, CONNECTIONS * 10, CONNECTIONS * 3);
        assert_eq!(sums, all, "{alerts:?}");
    });
}

/// A counter of this network namespace, in net/ipv4/proc.c or net/mptcp/mib.c, Linux 6.18.
fn netstat(group: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, value) = counters.find(|(found, _)| *found == name).unwrap();
    value.parse().unwrap()
}

/// The bytes of a further path count, the path itself does not.
#[test]
fn an_mptcp_connection_of_two_paths_is_one_session() {
    in_namespace(|namespace| {
        namespace.ip("mptcp limits set subflow 2 add_addr_accepted 2");
        namespace.ip("mptcp endpoint add 127.0.0.2 subflow");
        let monitor = Monitor::start(&["--sessions"]);
        let mptcp = || {
            let protocol = socket2::Protocol::from(262);
            Socket::new(Domain::IPV4, Type::STREAM, Some(protocol)).unwrap()
        };
        let listener = mptcp();
        let at: SocketAddr = "127.0.0.1:976".parse().unwrap();
        listener.bind(&at.into()).unwrap();
        listener.listen(8).unwrap();
        let listener = TcpListener::from(listener);
        let client = mptcp();
        client.connect(&at.into()).unwrap();
        let mut client = TcpStream::from(client);
        let mut server = listener.accept().unwrap().0;
        client.write_all(b"x").unwrap();
        server.read_exact(&mut [0]).unwrap();
        server.write_all(b"y").unwrap();
        client.read_exact(&mut [0]).unwrap();
        while netstat("MPTcpExt:", "MPJoinAckRx") == 0 {
            thread::yield_now();
        }
        server.write_all(&vec![0; 100_000]).unwrap();
        drop(server);
        let mut received = Vec::new();
        client.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), 100_000);
        drop(client);
        assert_alert!(session(&monitor, namespace), {
            "direction" => "in",
            "process/pid" => std::process::id(),
        });
        drop(listener);
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "sessions/ended" => 1, "sessions/open" => 0 });
        // What is sent again on the other path counts twice.
        assert!(
            close["sessions"]["bytes_out"].as_u64().unwrap() >= 100_001,
            "{close}"
        );
        monitor.stop_without_more(namespace.inode);
    });
}

/// With Fast Open, the first bytes are in the SYN (RFC 7413). The cookie is in the first connection.
#[test]
fn bytes_in_the_syn_count() {
    in_namespace(|namespace| {
        std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        let cgroup = Cgroup::new("fast-open");
        let monitor = Monitor::start(&["--sessions"]);
        cgroup.perl(&format!(
            "{REBIND} socket(my $s, PF_INET, SOCK_STREAM, 0) or die; \
             rebind($s, sockaddr_in(976, INADDR_LOOPBACK)); \
             setsockopt($s, 6, 23, pack('i', 9)) or die $!; listen($s, 9) or die; \
             for (1..2) {{ socket(my $c, PF_INET, SOCK_STREAM, 0) or die; \
             send($c, 'x' x 100, 0x20000000, sockaddr_in(976, INADDR_LOOPBACK)) == 100 or die $!; \
             accept(my $a, $s) or die; my $all = 0; \
             while ($all < 100) {{ $all += sysread($a, my $in, 100) }} \
             syswrite($a, 'y' x 7); sysread($c, my $in, 7) == 7 or die; \
             close $c; sysread($a, $in, 1); close $a }}"
        ));
        for _ in 0..2 {
            assert_alert!(session(&monitor, namespace), {
                "session/bytes_in" => 100,
                "session/bytes_out" => 7,
                "session/ended_by" => "peer",
            });
        }
        let used = netstat("TcpExt:", "TCPFastOpenPassive");
        assert!(used > 0, "no byte was in a SYN");
    });
}
