//! Who sends datagrams to sockets on watched ports.

use std::net::UdpSocket;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Cgroup, Helper, Monitor, Namespace, in_namespace},
};

/// Sends again and again until the monitor reports something: it looks at datagrams only some time
/// after the bind. None where sending fails.
fn until(
    monitor: &Monitor,
    namespace: &Namespace,
    send: impl Fn() -> bool + Send,
) -> Option<Value> {
    if !send() {
        return None;
    }
    Some(std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let sending = scope.spawn(move || {
            // Also ends when the test fails.
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                assert!(send());
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let alert = monitor.alert(namespace.inode);
        stop.send(()).unwrap();
        sending.join().unwrap();
        alert
    }))
}

/// Sends from a new socket until its address is reported.
fn until_reported(monitor: &Monitor, namespace: &Namespace, from: &str, to: &str) -> Value {
    let client = UdpSocket::bind(from).unwrap();
    let alert = until(monitor, namespace, || client.send_to(b"hello", to).is_ok()).unwrap();
    let peer = client.local_addr().unwrap();
    assert_alert!(alert, {
        "event" => "receive",
        "peer/address" => peer.ip().to_canonical().to_string(),
        "peer/port" => peer.port(),
    });
    alert
}

/// The alert of a bind.
fn bound(monitor: &Monitor, namespace: &Namespace) -> Value {
    let bind = monitor.alert(namespace.inode);
    assert_alert!(bind, { "event" => "bind", "received" => Value::Null });
    bind
}

#[test]
fn the_first_datagram_from_each_address_is_reported_and_the_close_has_the_sums() {
    struct Case {
        socket: &'static str,
        to: &'static str,
        from: [&'static str; 2],
        /// The address that the datagrams are sent to.
        address: &'static str,
        family: &'static str,
    }
    let cases = [
        Case {
            socket: "127.0.0.1:976",
            to: "127.0.0.1:976",
            from: ["127.0.0.2:0", "127.0.0.3:0"],
            address: "127.0.0.1",
            family: "ipv4",
        },
        Case {
            socket: "0.0.0.0:976",
            to: "127.0.0.9:976",
            from: ["127.0.0.2:0", "127.0.0.3:0"],
            address: "127.0.0.9",
            family: "ipv4",
        },
        Case {
            socket: "[::]:976",
            to: "[::1]:976",
            from: ["[::1]:0", "[fd00::1]:0"],
            address: "::1",
            family: "ipv6",
        },
        // IPv4 over an IPv6 socket.
        Case {
            socket: "[::]:976",
            to: "127.0.0.1:976",
            from: ["127.0.0.2:0", "127.0.0.3:0"],
            address: "127.0.0.1",
            family: "ipv4",
        },
    ];
    in_namespace(|namespace| {
        namespace.ip("addr add fd00::1/64 dev lo nodad");
        let monitor = Monitor::start(&[]);
        for case in cases {
            let server = UdpSocket::bind(case.socket).unwrap();
            let bind = bound(&monitor, namespace);
            for from in case.from {
                let receive = until_reported(&monitor, namespace, from, case.to);
                assert_alert!(receive, {
                    "severity" => "warning",
                    "origin" => "live",
                    "port" => 976,
                    "transport" => "udp",
                    "address" => case.address,
                    "family" => case.family,
                    "socket" => bind["socket"],
                    "since" => bind["time"],
                    "process/pid" => std::process::id(),
                });
            }
            drop(server);
            let close = monitor.alert(namespace.inode);
            assert_alert!(close, { "event" => "close", "received/peers" => 2, "received/others" => 0 });
            let datagrams = close["received"]["datagrams"].as_u64().unwrap();
            assert!(datagrams >= 2, "{close}");
            assert_alert!(close, { "received/bytes" => datagrams * 5 });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

/// Perl that sends one datagram to `to` from each of these addresses, and waits for a line before each.
fn sender(to: &str, from: &[&str]) -> String {
    let from: Vec<String> = from.iter().map(|from| format!("'{from}'")).collect();
    format!(
        "use IO::Socket::IP; $| = 1; print \"up\\n\"; for my $from ({}) {{ <STDIN>; \
         my $s = IO::Socket::IP->new(Proto => 'udp', LocalAddr => $from, PeerAddr => '{to}', \
         PeerPort => 976) or die $@; send($s, 'hello', 0) or die $!; print \"sent\\n\" }} <STDIN>",
        from.join(", ")
    )
}

/// Starts a Perl script in another network namespace, which is connected with this one: `inner` here
/// has `own`, `outer` there has `others`.
fn outside(namespace: &Namespace, own: &[&str], others: &[&str], script: &str) -> Helper {
    let mut command = std::process::Command::new("unshare");
    let add = others.iter();
    let add = add.map(|address| format!("ip addr add {address} dev outer nodad; "));
    let setup = format!(
        "echo up; read line; ip link set lo up; ip link set outer up; {} exec perl -e \"$0\"",
        add.collect::<String>()
    );
    command.args(["-n", "sh", "-c", &setup, script]);
    let mut helper = Helper::start(&mut command);
    helper.wait_for("up");
    namespace.ip(&format!(
        "link add inner type veth peer name outer netns {}",
        helper.pid()
    ));
    for address in own {
        namespace.ip(&format!("addr add {address} dev inner nodad"));
    }
    namespace.ip("link set inner up");
    helper.resume();
    helper.wait_for("up");
    helper
}

#[test]
fn the_first_from_another_host_is_critical_even_with_an_address_of_this_one() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let server = UdpSocket::bind("[::]:976").unwrap();
        bound(&monitor, namespace);
        until_reported(&monitor, namespace, "[::1]:0", "[::1]:976");
        // The second is an address of this host as well: forged, as far as the kernel here can see.
        let script = sender("fd00::1", &["fd00::3", "fd00::2"]);
        let mut outside = outside(
            namespace,
            &["fd00::1/64", "fd00:1::3/64"],
            &["fd00::2/64", "fd00::3/64"],
            &script,
        );
        namespace.ip("addr add fd00::3/128 dev lo nodad");
        let expected = [("fd00::3", "critical"), ("fd00::2", "warning")];
        for (address, severity) in expected {
            outside.resume();
            outside.wait_for("sent");
            let receive = monitor.alert(namespace.inode);
            assert_alert!(receive, {
                "event" => "receive",
                "severity" => severity,
                "peer/address" => address,
                "address" => "fd00::1",
            });
        }
        drop(server);
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received/peers" => 3 });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_socket_that_was_there_before_the_monitor_is_looked_at_too() {
    in_namespace(|namespace| {
        let server = UdpSocket::bind("127.0.0.1:976").unwrap();
        let monitor = Monitor::start(&[]);
        let bind = bound(&monitor, namespace);
        assert_alert!(bind, { "origin" => "snapshot" });
        let receive = until_reported(&monitor, namespace, "127.0.0.2:0", "127.0.0.1:976");
        assert_alert!(receive, { "socket" => bind["socket"], "process/pid" => std::process::id() });
        drop(server);
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received/peers" => 1 });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_socket_that_was_created_in_another_cgroup_is_looked_at_there() {
    let (first, second) = (Cgroup::new("created"), Cgroup::new("bound"));
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let script = format!(
            "use Socket; $| = 1; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
             open my $f, '>', '{}/cgroup.procs' or die; print $f $$; close $f or die; \
             bind($s, sockaddr_in(976, INADDR_LOOPBACK)) or die; print \"bound\\n\"; <STDIN>",
            second.path().display()
        );
        let mut server = first.start_perl(&script);
        server.wait_for("bound");
        bound(&monitor, namespace);
        let receive = until_reported(&monitor, namespace, "127.0.0.2:0", "127.0.0.1:976");
        assert_alert!(receive, { "process/pid" => server.pid() });
        server.resume();
        server.wait();
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received/peers" => 1 });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn without_receive_no_datagram_is_looked_at() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--no-receive"]);
        let server = UdpSocket::bind("127.0.0.1:976").unwrap();
        bound(&monitor, namespace);
        // The next scan shows the socket's cgroup, and a reload asks for one.
        monitor.signal(Signal::SIGHUP);
        server.send_to(b"x", "127.0.0.1:976").unwrap();
        drop(server);
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received" => Value::Null });
        drop(monitor);
    });
}

#[test]
fn other_kinds_of_sockets_and_of_datagrams_are_looked_at_too() {
    use socket2::{Domain, Protocol, Socket, Type};
    let udplite = Protocol::from(libc::IPPROTO_UDPLITE);
    in_namespace(|namespace| {
        namespace.ip("route add 224.0.0.0/4 dev lo");
        let monitor = Monitor::start(&[]);
        // Transport, protocol, whether it is connected, and where the sender sends to.
        for (transport, protocol, is_connected, to) in [
            ("udp", Protocol::UDP, true, "127.0.0.1:976"),
            ("udp", Protocol::UDP, false, "224.0.0.251:976"),
            ("udp", Protocol::UDP, false, "255.255.255.255:976"),
            ("udplite", udplite, false, "127.0.0.1:976"),
        ] {
            let open = || Socket::new(Domain::IPV4, Type::DGRAM, Some(protocol));
            let (Ok(server), Ok(client)) = (open(), open()) else {
                // This kernel has no UDP-Lite (from Linux 7.1 on).
                continue;
            };
            let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
            server.set_reuse_address(true).unwrap();
            server.bind(&address("0.0.0.0:976")).unwrap();
            let group = std::net::Ipv4Addr::new(224, 0, 0, 251);
            server
                .join_multicast_v4(&group, &std::net::Ipv4Addr::LOCALHOST)
                .unwrap();
            client.bind(&address("127.0.0.1:0")).unwrap();
            client.set_broadcast(true).unwrap();
            let from = client.local_addr().unwrap();
            if is_connected {
                server.connect(&from).unwrap();
            }
            bound(&monitor, namespace);
            let receive = until(&monitor, namespace, || {
                // The kernel can have no route for a broadcast.
                client.send_to(b"hello", &address(to)).is_ok()
            });
            let Some(receive) = receive else { continue };
            assert_alert!(receive, {
                "event" => "receive",
                "severity" => "warning",
                "transport" => transport,
                "peer/port" => from.as_socket().unwrap().port(),
            });
            drop(server);
            let close = monitor.alert(namespace.inode);
            assert_alert!(close, { "event" => "close", "transport" => transport, "received/peers" => 1 });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

/// A datagram is seen whole, whatever its form is, and with the sender's port.
#[test]
fn fragments_and_extension_headers_hide_no_sender() {
    in_namespace(|namespace| {
        namespace.ip("link set lo mtu 1400");
        let monitor = Monitor::start(&[]);
        let server = UdpSocket::bind("[::]:976").unwrap();
        bound(&monitor, namespace);
        until_reported(&monitor, namespace, "127.0.0.9:0", "127.0.0.1:976");
        // Four fragments, or eight bytes of destination options before the header of UDP.
        for (from, to, bytes, has_options) in [
            ("127.0.0.2:0", "127.0.0.1:976", 5000, false),
            ("[::1]:0", "[::1]:976", 5000, false),
            ("[fd00::1]:0", "[::1]:976", 40, true),
        ] {
            if has_options {
                namespace.ip("addr add fd00::1/64 dev lo nodad");
            }
            let client = UdpSocket::bind(from).unwrap();
            if has_options {
                let options = [0_u8, 0, 1, 4, 0, 0, 0, 0];
                // SAFETY: the option's value is the eight bytes.
                let set = unsafe {
                    libc::setsockopt(
                        std::os::fd::AsRawFd::as_raw_fd(&client),
                        libc::IPPROTO_IPV6,
                        libc::IPV6_DSTOPTS,
                        options.as_ptr().cast(),
                        8,
                    )
                };
                assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
            }
            client.send_to(&vec![7; bytes], to).unwrap();
            let receive = monitor.alert(namespace.inode);
            assert_alert!(receive, {
                "event" => "receive",
                "peer/address" => client.local_addr().unwrap().ip().to_string(),
                "peer/port" => client.local_addr().unwrap().port(),
            });
        }
        drop(server);
        let close = monitor.alert(namespace.inode);
        let received = |key: &str| close["received"][key].as_u64().unwrap();
        // The first sender's, of five bytes each, and these three.
        let others = (received("datagrams") - 3) * 5;
        assert_eq!(
            (received("bytes"), received("peers")),
            (5000 + 5000 + 40 + others, 4)
        );
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn forged_addresses_do_not_hide_the_first_from_another_host() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let server = UdpSocket::bind("[::]:976").unwrap();
        bound(&monitor, namespace);
        until_reported(&monitor, namespace, "127.0.0.9:0", "127.0.0.1:976");
        // More than any table has room for.
        for index in 0_u32..2500 {
            let address = std::net::Ipv4Addr::from(0x7f01_0001 + (index << 8));
            let client = UdpSocket::bind((address, 0)).unwrap();
            client.send_to(b"hello", "127.0.0.1:976").unwrap();
        }
        for _ in 1..2048 {
            assert_alert!(monitor.alert(namespace.inode), { "event" => "receive", "severity" => "warning" });
        }
        let mut outside = outside(
            namespace,
            &["fd00::1/64"],
            &["fd00::2/64"],
            &sender("fd00::1", &["fd00::2"]),
        );
        outside.resume();
        outside.wait_for("sent");
        let receive = monitor.alert(namespace.inode);
        assert_alert!(receive, { "event" => "receive", "severity" => "critical", "peer/address" => "fd00::2" });
        drop(server);
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received/peers" => 2048, "received/others" => 2501 - 2048 + 1 });
        monitor.stop_without_more(namespace.inode);
    });
}
