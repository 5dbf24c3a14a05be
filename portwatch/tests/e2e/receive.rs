//! Who sends datagrams to sockets on watched ports.

mod cgroups;
mod packets;

use std::net::UdpSocket;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    assert_alert,
    support::{Helper, Monitor, Namespace, in_namespace},
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
