//! Existing sockets: all are reported once, also when sockets come and go during the start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::{TcpListener, TcpStream, UdpSocket},
    process::Command,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{
        signal::{Signal, kill},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, connect, socket,
        },
    },
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{
    assert_alert,
    support::{Helper, Monitor, REBIND, in_namespace, listed, run},
};

#[test]
fn existing_sockets_are_reported_and_then_tracked() {
    in_namespace(|namespace| {
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        let early = TcpStream::connect("127.0.0.1:976").unwrap();
        let _accepted = listener.accept().unwrap();
        let udp = UdpSocket::bind("[::1]:977").unwrap();
        let tcp = || {
            let stream = SockType::Stream;
            socket(AddressFamily::Inet, stream, SockFlag::SOCK_CLOEXEC, None).unwrap()
        };
        let bound = tcp();
        let at = |port| SockaddrIn::new(127, 0, 0, 1, port);
        bind(std::os::fd::AsRawFd::as_raw_fd(&bound), &at(978)).unwrap();
        let outgoing = tcp();
        bind(std::os::fd::AsRawFd::as_raw_fd(&outgoing), &at(979)).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let server_at = server.local_addr().unwrap();
        let to: SockaddrStorage = server_at.into();
        connect(std::os::fd::AsRawFd::as_raw_fd(&outgoing), &to).unwrap();
        let _assigned = UdpSocket::bind("127.0.0.1:123").unwrap();

        // `list` runs in another network namespace, without BPF.
        let expected = [
            ("listen", "tcp", 976, Value::Null),
            ("bind", "udp", 977, Value::Null),
            ("bind", "tcp", 978, Value::Null),
            (
                "connect",
                "tcp",
                979,
                json!({"address": "127.0.0.1", "port": server_at.port()}),
            ),
        ];
        let list = in_namespace(|_| listed(namespace.inode, &[]));
        let monitor = Monitor::start(&["--health-interval", "1"]);
        let mut reported = monitor.alerts(namespace.inode, expected.len());
        reported.sort_by_key(|alert| alert["port"].as_u64());
        for alerts in [&list, &reported] {
            assert_eq!(alerts.len(), expected.len());
            for (alert, (event, transport, port, peer)) in alerts.iter().zip(&expected) {
                assert_alert!(alert, {
                    "event" => event,
                    "origin" => "snapshot",
                    "transport" => transport,
                    "port" => port,
                    "peer" => peer,
                    "since" => Value::Null,
                    "process/pid" => std::process::id(),
                    "holders/0/pid" => std::process::id(),
                    "socket/host_netns" => false,
                });
            }
        }
        let all: Vec<Value> = listed(namespace.inode, &["--all"]);
        assert!(all.iter().any(|alert| alert["port"] == 123), "{all:?}");

        // From here on these sockets are tracked like any other.
        drop(early);
        drop(TcpStream::connect("127.0.0.1:976").unwrap());
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "accept",
            "origin" => "live",
            "socket/cookie" => reported[0]["socket"]["cookie"],
            "process/pid" => std::process::id(),
        });
        let close = |index: usize| {
            // By the BPF programs once the socket is marked, before that by a scan.
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => "close",
                "socket/cookie" => reported[index]["socket"]["cookie"],
                "port" => reported[index]["port"],
            });
        };
        drop(listener);
        close(0);
        drop(udp);
        close(1);
        drop(bound);
        close(2);
        drop(outgoing);
        close(3);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn threads_that_change_namespaces_hide_no_socket() {
    let here = || File::open("/proc/thread-self/ns/net").unwrap();
    struct SetOnDrop<'a>(&'a AtomicBool);
    impl Drop for SetOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let between: OnceLock<[File; 2]> = OnceLock::new();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        // The first threads in /proc: older than the one that stays in the namespace.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    for namespace in between.get().into_iter().flatten() {
                        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                    }
                }
            });
        }
        let _end = SetOnDrop(&is_done);
        in_namespace(|namespace| {
            let first = here();
            let _udp = UdpSocket::bind("127.0.0.1:977").unwrap();
            in_namespace(|_| {
                between.set([first, here()]).unwrap();
                for number in 0..40 {
                    let list = listed(namespace.inode, &[]);
                    let ports: Vec<_> = list.iter().map(|alert| &alert["port"]).collect();
                    assert_eq!(ports, [977], "{number}");
                }
            });
        });
    });
}

/// Perl that binds and closes UDP and TCP ports from `first` on, two a millisecond, until killed.
fn churn(first: u16) -> String {
    format!(
        "{REBIND} $| = 1; my %held; print \"ready\\n\"; while (1) {{ \
         select(undef, undef, undef, 0.0005); my $port = {first} + int rand 9; \
         if (delete $held{{$port}}) {{ next }} \
         socket(my $s, PF_INET, ($port % 2 ? SOCK_DGRAM : SOCK_STREAM), 0) or die; \
         setsockopt($s, SOL_SOCKET, SO_REUSEADDR, pack('l', 1)); \
         rebind($s, sockaddr_in($port, INADDR_LOOPBACK)); \
         listen($s, 9) if $port % 4 == 0; $held{{$port}} = $s }}"
    )
}

/// The open sockets according to the alerts; each must be reported once.
#[derive(Default)]
struct Reader {
    held: BTreeMap<u64, String>,
    gone: BTreeSet<u64>,
}

impl Reader {
    fn read(&mut self, alert: &Value) {
        let Some(cookie) = alert["socket"]["cookie"].as_u64() else {
            panic!("{alert}");
        };
        assert!(
            !self.gone.contains(&cookie),
            "reported after its close: {alert}"
        );
        let event = alert["event"].as_str().unwrap().to_owned();
        let before = self.held.get(&cookie).map(String::as_str);
        match (before, event.as_str()) {
            (Some(_), "close") => {
                self.held.remove(&cookie);
                self.gone.insert(cookie);
            }
            (None, "bind" | "listen") | (Some("bind"), "listen") => {
                self.held.insert(cookie, event);
            }
            _ => panic!("{before:?} and then {alert}"),
        }
    }
}

#[test]
fn sockets_that_come_and_go_during_the_start_are_reported_once() {
    for _ in 0..4 {
        in_namespace(|namespace| {
            let churns: Vec<_> = [955, 966, 977]
                .into_iter()
                .map(|first| {
                    let mut churn = Helper::start(Command::new("perl").args(["-e", &churn(first)]));
                    churn.wait_for("ready");
                    churn
                })
                .collect();
            // Room for all events during the first scan.
            let monitor = Monitor::start(&["--ring-size", "67108864", "--health-interval", "1"]);
            let mut reader = Reader::default();
            for _ in 0..2000 {
                reader.read(&monitor.alert(namespace.inode));
            }
            for churn in &churns {
                kill(Pid::from_raw(churn.pid() as i32), Signal::SIGSTOP).unwrap();
            }
            let truth: BTreeSet<u64> = listed(namespace.inode, &[])
                .iter()
                .filter_map(|alert| alert["socket"]["cookie"].as_u64())
                .collect();
            let is_true = |reader: &Reader| reader.held.keys().copied().eq(truth.iter().copied());
            while !is_true(&reader) {
                reader.read(&monitor.alert(namespace.inode));
            }
            drop(churns);
            while !reader.held.is_empty() {
                reader.read(&monitor.alert(namespace.inode));
            }
            monitor.stop_without_more(namespace.inode);
        });
    }
}

#[test]
fn sockets_in_a_namespace_that_only_they_keep_alive_are_found() {
    let (netns, listener, udp) = in_namespace(|namespace| {
        let listener = TcpListener::bind("127.0.0.1:976").unwrap();
        let udp = UdpSocket::bind("[::1]:977").unwrap();
        (namespace.inode, listener, udp)
    });
    // No thread is in it any more.
    let listed = listed(netns, &[]);
    let monitor = Monitor::start(&["--health-interval", "1"]);
    let mut reported = monitor.alerts(netns, 2);
    reported.sort_by_key(|alert| alert["port"].as_u64());
    for alerts in [&listed, &reported] {
        assert_eq!(alerts.len(), 2, "{alerts:?}");
        for (alert, (event, port)) in alerts.iter().zip([("listen", 976), ("bind", 977)]) {
            assert_alert!(alert, {
                "event" => event,
                "port" => port,
                "origin" => "snapshot",
                "process/pid" => std::process::id(),
            });
        }
    }
    drop(udp);
    assert_alert!(monitor.alert(netns), { "event" => "close", "port" => 977 });
    drop(listener);
    assert_alert!(monitor.alert(netns), { "event" => "close", "port" => 976 });
    monitor.stop_without_more(netns);
}

#[test]
fn list_check_exits_with_8_when_a_watched_port_is_in_use() {
    // Other tests' sockets are listed too, so only this outcome can be tested.
    in_namespace(|_| {
        let _udp = UdpSocket::bind("127.0.0.1:976").unwrap();
        let finished = run(&["list", "--check"]);
        assert_eq!(finished.status.code(), Some(8), "{}", finished.stderr);
        assert!(finished.stdout.contains("976/udp"), "{}", finished.stdout);
        assert!(
            finished.stderr.contains("on watched ports"),
            "{}",
            finished.stderr
        );
    });
}

#[test]
fn a_reload_begins_and_stops_to_watch_open_sockets_without_a_false_or_missing_close() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let rules = directory.path().join("rules.toml");
        let ignore = |port: u16| {
            let text = format!("[[rule]]\nname = \"known\"\nport = {port}\ndecide = \"ignore\"\n");
            std::fs::write(&rules, text).unwrap();
        };
        ignore(977);
        let stops = UdpSocket::bind("127.0.0.1:976").unwrap();
        let begins = UdpSocket::bind("127.0.0.1:977").unwrap();
        let begins_tcp = TcpListener::bind("127.0.0.1:977").unwrap();
        let mut monitor =
            Monitor::start_default(&["--no-aggregate", "--config", rules.to_str().unwrap()]);
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "bind", "port" => 976, "origin" => "snapshot",
        });
        ignore(976);
        monitor.signal(Signal::SIGHUP);
        assert!(monitor.log_line().contains("reloaded"));
        let mut found = monitor.alerts(namespace.inode, 2);
        found.sort_by_key(|alert| alert["transport"].to_string());
        for (alert, (event, transport)) in found.iter().zip([("listen", "tcp"), ("bind", "udp")]) {
            assert_alert!(alert, {
                "event" => event,
                "transport" => transport,
                "port" => 977,
                "origin" => "snapshot",
                "process/pid" => std::process::id(),
            });
        }
        drop(begins);
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "close",
            "transport" => "udp",
            "socket/cookie" => found[1]["socket"]["cookie"],
        });
        drop(begins_tcp);
        assert_alert!(monitor.alert(namespace.inode), {
            "event" => "close",
            "transport" => "tcp",
            "socket/cookie" => found[0]["socket"]["cookie"],
        });
        drop(stops);
        monitor.stop_without_more(namespace.inode);
    });
}
