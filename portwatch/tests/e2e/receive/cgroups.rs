//! Where the program is attached that sees datagrams.

use std::net::UdpSocket;

use super::{bound, until_reported};
use crate::{
    assert_alert,
    health::{detach, links},
    support::{Cgroup, Monitor, REBIND, in_namespace},
};

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

/// A Perl script with a UDP socket on port 976 of `address`, until a line comes.
fn server(address: &str) -> String {
    format!(
        "{REBIND} $| = 1; socket(my $s, PF_INET, SOCK_DGRAM, 0) or die; \
         rebind($s, sockaddr_in(976, inet_aton('{address}'))); print \"bound\\n\"; <STDIN>"
    )
}

#[test]
fn a_datagram_to_a_cgroup_within_another_is_counted_once() {
    in_namespace(|namespace| {
        let around = Cgroup::new("outer");
        let within = around.below("inner");
        let monitor = Monitor::start(&["--cgroup", around.path().to_str().unwrap()]);
        let servers = [(&within, "127.0.0.1"), (&around, "127.0.0.2")].map(|(cgroup, address)| {
            let mut server = cgroup.start_perl(&server(address));
            server.wait_for("bound");
            bound(&monitor, namespace);
            until_reported(
                &monitor,
                namespace,
                "127.0.0.9:0",
                &format!("{address}:976"),
            );
            server
        });
        let client = UdpSocket::bind("127.0.0.8:0").unwrap();
        for _ in 0..100 {
            client.send_to(b"x", "127.0.0.1:976").unwrap();
        }
        assert_alert!(monitor.alert(namespace.inode), { "event" => "receive" });
        let [mut inner, mut outer] = servers;
        inner.resume();
        inner.wait();
        let close = monitor.alert(namespace.inode);
        assert_alert!(close, { "event" => "close", "received/peers" => 2 });
        let received = |key: &str| close["received"][key].as_u64().unwrap();
        // Those before were of five bytes.
        assert_eq!(
            received("bytes"),
            100 + (received("datagrams") - 100) * 5,
            "{close}"
        );
        outer.resume();
        outer.wait();
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_detached_hook_is_attached_again() {
    in_namespace(|namespace| {
        let cgroup = Cgroup::new("detached");
        let path = cgroup.path().to_str().unwrap();
        let monitor = Monitor::start(&["--health-interval", "1", "--cgroup", path]);
        let before = links(monitor.pid());
        let mut server = cgroup.start_perl(&server("127.0.0.1"));
        server.wait_for("bound");
        bound(&monitor, namespace);
        until_reported(&monitor, namespace, "127.0.0.2:0", "127.0.0.1:976");
        let new = links(monitor.pid());
        let new: Vec<u32> = new.into_iter().filter(|id| !before.contains(id)).collect();
        let [link] = *new else { panic!("{new:?}") };
        detach(link);
        let health = monitor.health();
        let detail = health["detail"].as_str().unwrap();
        assert!(
            detail.starts_with("the program receive was detached"),
            "{detail}"
        );
        assert!(detail.ends_with("is attached again"), "{detail}");
        until_reported(&monitor, namespace, "127.0.0.3:0", "127.0.0.1:976");
        server.resume();
        server.wait();
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close", "received/peers" => 2 });
        monitor.stop_without_more(namespace.inode);
    });
}
