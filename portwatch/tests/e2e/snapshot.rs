//! What was there before the agent: all of it, once, also when sockets come and go meanwhile.

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
    support::{Agent, Dialogue, TAKE, in_namespace, run},
};

/// What `list` says of that namespace.
fn listed(netns: u64, arguments: &[&str]) -> Vec<Value> {
    let list = run(&[&["list", "--format", "json"], arguments].concat());
    assert!(list.status.success(), "{}", list.stderr);
    assert_eq!(list.stderr, "");
    let alerts = list
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    alerts
        .filter(|alert: &Value| alert["socket"]["netns"] == netns)
        .collect()
}

#[test]
fn what_was_there_is_told_and_then_followed() {
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

        // `list` runs in a namespace beside this one, without BPF.
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
        let agent = Agent::start(&["--health-interval", "1"]);
        let mut told = agent.alerts(namespace.inode, expected.len());
        told.sort_by_key(|alert| alert["port"].as_u64());
        for alerts in [&list, &told] {
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

        // From here on they are like any other.
        drop(early);
        drop(TcpStream::connect("127.0.0.1:976").unwrap());
        assert_alert!(agent.alert(namespace.inode), {
            "event" => "accept",
            "origin" => "live",
            "socket/cookie" => told[0]["socket"]["cookie"],
            "process/pid" => std::process::id(),
        });
        let close = |index: usize| {
            // By the kernel side as soon as that has been told of it, else by the next snapshot.
            assert_alert!(agent.alert(namespace.inode), {
                "event" => "close",
                "socket/cookie" => told[index]["socket"]["cookie"],
                "port" => told[index]["port"],
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
        assert!(agent.stop(namespace.inode).is_empty());
    });
}

#[test]
fn threads_that_change_namespaces_hide_nothing() {
    let here = || File::open("/proc/thread-self/ns/net").unwrap();
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Relaxed);
        }
    }
    let between: OnceLock<[File; 2]> = OnceLock::new();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        // The first ways in that /proc shows: older than who stays there.
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Relaxed) {
                    for namespace in between.get().into_iter().flatten() {
                        setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                    }
                }
            });
        }
        let _ends = Ends(&is_done);
        in_namespace(|namespace| {
            let taken = here();
            let _udp = UdpSocket::bind("127.0.0.1:977").unwrap();
            in_namespace(|_| {
                between.set([taken, here()]).unwrap();
                for number in 0..40 {
                    let list = listed(namespace.inode, &[]);
                    let ports: Vec<_> = list.iter().map(|alert| &alert["port"]).collect();
                    assert_eq!(ports, [977], "{number}");
                }
            });
        });
    });
}

/// Perl that takes and leaves UDP and TCP ports from `first` on, several a millisecond, for ever.
fn hammer(first: u16) -> String {
    format!(
        "{TAKE} $| = 1; my %held; print \"ready\\n\"; while (1) {{ \
         select(undef, undef, undef, 0.0005); my $port = {first} + int rand 9; \
         if (delete $held{{$port}}) {{ next }} \
         socket(my $s, PF_INET, ($port % 2 ? SOCK_DGRAM : SOCK_STREAM), 0) or die; \
         setsockopt($s, SOL_SOCKET, SO_REUSEADDR, pack('l', 1)); \
         take($s, sockaddr_in($port, INADDR_LOOPBACK)); \
         listen($s, 9) if $port % 4 == 0; $held{{$port}} = $s }}"
    )
}

/// The sockets that are held by what the alerts say; each must be told once.
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
            "told after its close: {alert}"
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
fn sockets_that_come_and_go_during_the_start_are_told_once_and_none_is_missed() {
    for _ in 0..4 {
        in_namespace(|namespace| {
            let hammers: Vec<_> = [955, 966, 977]
                .into_iter()
                .map(|first| {
                    let mut hammer =
                        Dialogue::start(Command::new("perl").args(["-e", &hammer(first)]));
                    hammer.wait_for("ready");
                    hammer
                })
                .collect();
            // With room for all that comes while the agent reads what was there.
            let agent = Agent::start(&["--ring-size", "67108864", "--health-interval", "1"]);
            let mut reader = Reader::default();
            for _ in 0..2000 {
                reader.read(&agent.alert(namespace.inode));
            }
            for hammer in &hammers {
                kill(Pid::from_raw(hammer.pid() as i32), Signal::SIGSTOP).unwrap();
            }
            let truth: BTreeSet<u64> = listed(namespace.inode, &[])
                .iter()
                .filter_map(|alert| alert["socket"]["cookie"].as_u64())
                .collect();
            let is_true = |reader: &Reader| reader.held.keys().copied().eq(truth.iter().copied());
            while !is_true(&reader) {
                reader.read(&agent.alert(namespace.inode));
            }
            drop(hammers);
            while !reader.held.is_empty() {
                reader.read(&agent.alert(namespace.inode));
            }
            assert!(agent.stop(namespace.inode).is_empty());
        });
    }
}

#[test]
fn check_says_by_its_exit_code_whether_something_is_there() {
    // From a namespace of its own on: other tests' sockets are there too, so only one way is sure.
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
