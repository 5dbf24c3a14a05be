//! TCP connections from beginning to end: their bytes, who ended them, and the sums of a listener.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use serde_json::Value;
use socket2::SockRef;

use crate::{
    assert_alert,
    support::{Monitor, Namespace, in_namespace},
};

/// A connection on port 976: the client's end and the server's.
pub(crate) type Ends = (TcpStream, TcpStream);

pub(crate) fn connection(listener: &TcpListener) -> Ends {
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (client, listener.accept().unwrap().0)
}

/// Waits for the other side to have closed.
pub(crate) fn wait_for_end(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}

fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream)
        .set_linger(Some(std::time::Duration::ZERO))
        .unwrap();
}

/// Skips everything but the next `session`.
pub(crate) fn session(monitor: &Monitor, namespace: &Namespace) -> Value {
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
