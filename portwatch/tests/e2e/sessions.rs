//! TCP connections from beginning to end: their bytes, who ended them, and the sums of a listener.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
};

use nix::sys::{
    signal::Signal,
    socket::{setsockopt, sockopt},
};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};

use crate::{
    assert_alert,
    support::{Cgroup, Monitor, Namespace, REBIND, in_namespace, listed},
};

/// A connection on port 976: the client's end and the server's.
type Ends = (TcpStream, TcpStream);

fn connection(listener: &TcpListener) -> Ends {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Waits for the other side to have closed.
fn wait_for_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
}

/// Skips everything but the next `session`.
fn session(monitor: &Monitor, namespace: &Namespace) -> Value {
    loop {
        let alert = monitor.alert(namespace.inode);
        if alert["event"] == "session" {
            return alert;
        }
    }
}

const LARGE: u64 = 200_000_000;

/// What is done with a connection, and the bytes in, the bytes out and the end that are reported.
type Case = (fn(Ends), u64, u64, &'static str);

const CASES: &[(&str, Case)] = &[
    (
        "the client closes",
        (
            |(client, mut server)| {
                drop(client);
                wait_for_end(&mut server);
            },
            0,
            0,
            "peer",
        ),
    ),
    (
        "the server closes",
        (
            |(mut client, server)| {
                drop(server);
                wait_for_end(&mut client);
            },
            0,
            0,
            "us",
        ),
    ),
    (
        "one byte each way, the client closes",
        (
            |(mut client, mut server)| {
                client.write_all(b"x").unwrap();
                server.read_exact(&mut [0]).unwrap();
                server.write_all(b"y").unwrap();
                client.read_exact(&mut [0]).unwrap();
                drop(client);
                wait_for_end(&mut server);
            },
            1,
            1,
            "peer",
        ),
    ),
    (
        "the server closes its half, the client goes on",
        (
            |(mut client, mut server)| {
                server.write_all(b"abc").unwrap();
                server.shutdown(Shutdown::Write).unwrap();
                wait_for_end(&mut client);
                client.write_all(b"12345").unwrap();
                drop(client);
                wait_for_end(&mut server);
            },
            5,
            3,
            "us",
        ),
    ),
    (
        "the server closes its half, then the rest before the client does",
        (
            |(mut client, mut server)| {
                server.shutdown(Shutdown::Write).unwrap();
                wait_for_end(&mut client);
                client.write_all(b"12345").unwrap();
                server.read_exact(&mut [0; 5]).unwrap();
                drop(server);
            },
            5,
            0,
            "us",
        ),
    ),
    (
        "the client closes its half, the server goes on",
        (
            |(mut client, mut server)| {
                client.write_all(b"12345").unwrap();
                client.shutdown(Shutdown::Write).unwrap();
                wait_for_end(&mut server);
                server.write_all(b"abc").unwrap();
                drop(server);
                wait_for_end(&mut client);
            },
            5,
            3,
            "peer",
        ),
    ),
    (
        "the client resets",
        (
            |(mut client, mut server)| {
                client.write_all(b"12").unwrap();
                server.read_exact(&mut [0; 2]).unwrap();
                reset_on_close(&client);
                drop(client);
                wait_for_end(&mut server);
            },
            2,
            0,
            "reset",
        ),
    ),
    (
        "the server resets",
        (
            |(mut client, mut server)| {
                server.write_all(b"12").unwrap();
                client.read_exact(&mut [0; 2]).unwrap();
                reset_on_close(&server);
                drop(server);
                wait_for_end(&mut client);
            },
            0,
            2,
            "reset",
        ),
    ),
    (
        "the server closes with unread data",
        (
            |(mut client, server)| {
                client.write_all(b"12").unwrap();
                let mut byte = [0];
                server.peek(&mut byte).unwrap();
                drop(server);
                wait_for_end(&mut client);
            },
            2,
            0,
            "reset",
        ),
    ),
    (
        "200 MB to the client",
        (
            |(mut client, mut server)| {
                let sender = thread::spawn(move || {
                    let block = vec![7; 1_000_000];
                    for _ in 0..LARGE / 1_000_000 {
                        server.write_all(&block).unwrap();
                    }
                });
                let copied = std::io::copy(&mut client, &mut std::io::sink()).unwrap();
                assert_eq!(copied, LARGE);
                sender.join().unwrap();
            },
            0,
            LARGE,
            "us",
        ),
    ),
];

#[test]
fn the_end_of_each_connection_has_its_bytes_and_who_ended_it() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--sessions"]);
        for address in ["127.0.0.1:976", "[::1]:976"] {
            let listener = TcpListener::bind(address).unwrap();
            let (mut all_in, mut all_out) = (0, 0);
            for (name, (act, bytes_in, bytes_out, ended_by)) in CASES {
                let ends = connection(&listener);
                let peer = ends.0.local_addr().unwrap();
                act(ends);
                (all_in, all_out) = (all_in + bytes_in, all_out + bytes_out);
                let alert = session(&monitor, namespace);
                let is = &alert["session"];
                assert_eq!(
                    (&is["bytes_in"], &is["bytes_out"], &is["ended_by"]),
                    (
                        &Value::from(*bytes_in),
                        &Value::from(*bytes_out),
                        &Value::from(*ended_by)
                    ),
                    "{address}: {name}"
                );
                assert!(is["duration_ms"].is_u64() && is["opened"].is_string());
                assert_alert!(alert, {
                    "severity" => "notice",
                    "direction" => "in",
                    "session/direction" => "in",
                    "process/pid" => std::process::id(),
                    "peer/port" => peer.port(),
                    "peer/address" => peer.ip().to_string(),
                });
            }
            let open = connection(&listener);
            drop(listener);
            let close = loop {
                let alert = monitor.alert(namespace.inode);
                if alert["event"] == "close" {
                    break alert;
                }
            };
            assert_alert!(close, {
                "sessions/ended" => CASES.len(),
                "sessions/open" => 1,
                "sessions/bytes_in" => all_in,
                "sessions/bytes_out" => all_out,
            });
            // Its listener goes first.
            let peer = open.0.local_addr().unwrap();
            drop(open);
            assert_alert!(session(&monitor, namespace), {
                "socket/cookie" => close["socket"]["cookie"],
                "process/pid" => std::process::id(),
                "peer/port" => peer.port(),
            });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn without_the_option_connections_are_only_summed() {
    in_namespace(|namespace| {
        for start in [Monitor::start, Monitor::start_default] {
            let monitor = start(&[]);
            let listener = TcpListener::bind("127.0.0.1:976").unwrap();
            for _ in 0..3 {
                let (mut client, mut server) = connection(&listener);
                client.write_all(b"12345").unwrap();
                server.read_exact(&mut [0; 5]).unwrap();
                drop(client);
                wait_for_end(&mut server);
            }
            drop(listener);
            let close = loop {
                let alert = monitor.alert(namespace.inode);
                assert_ne!(alert["event"], "session");
                if alert["event"] == "close" {
                    break alert;
                }
            };
            assert_alert!(close, {
                "sessions/ended" => 3,
                "sessions/open" => 0,
                "sessions/bytes_in" => 15,
                "sessions/bytes_out" => 0,
            });
            monitor.stop_without_more(namespace.inode);
        }
    });
}

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

/// How many paths have joined a connection of this network namespace (`MPJoinAckRx` in
/// net/mptcp/mib.c, Linux 6.18).
fn joined_paths() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("MPTcpExt:"));
    let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
    let mut counters = names.split(' ').zip(values.split(' '));
    let (_, joined) = counters.find(|(name, _)| *name == "MPJoinAckRx").unwrap();
    joined.parse().unwrap()
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
        while joined_paths() == 0 {
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
