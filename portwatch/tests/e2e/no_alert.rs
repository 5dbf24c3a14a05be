//! Events that must cause no alert, and the effect of `--all`, `--registry` and a second monitor.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
};

use caps::{CapSet, Capability};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, bind, socket},
};

use crate::{
    assert_alert,
    support::{Monitor, Namespace, in_namespace},
};

/// Binds 1023/udp, a reserved port: its alert must be the next, so none came before it.
fn assert_no_alert_so_far(monitor: &Monitor, namespace: &Namespace) {
    drop(UdpSocket::bind("127.0.0.1:1023").unwrap());
    let alert = monitor.alert(namespace.inode);
    assert_alert!(alert, { "port" => 1023, "event" => "bind", "registry/status" => "reserved" });
    assert_alert!(monitor.alert(namespace.inode), { "port" => 1023, "event" => "close" });
}

#[test]
fn assigned_and_unprivileged_ports_cause_no_alert() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        for local in ["127.0.0.1:22", "127.0.0.1:1024", "[::]:443", "127.0.0.1:0"] {
            let listener = TcpListener::bind(local).unwrap();
            let mut address = listener.local_addr().unwrap();
            if address.ip().is_unspecified() {
                address.set_ip("::1".parse().unwrap());
            }
            drop(TcpStream::connect(address).unwrap());
            drop(listener);
        }
        for local in ["127.0.0.1:53", "[::1]:1024", "127.0.0.1:0"] {
            drop(UdpSocket::bind(local).unwrap());
        }
        // Assigned on tcp only: 143/udp is reserved.
        drop(TcpListener::bind("127.0.0.1:143").unwrap());
        assert_no_alert_so_far(&monitor, namespace);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn failed_binds_cause_no_alert() {
    in_namespace(|namespace| {
        let first = TcpListener::bind("127.0.0.1:976").unwrap();
        let monitor = Monitor::start(&[]);

        let error = TcpListener::bind("127.0.0.1:976").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));

        // Affects this thread only.
        caps::drop(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE).unwrap();
        for result in [
            TcpListener::bind("127.0.0.1:977").map(drop),
            UdpSocket::bind("127.0.0.1:977").map(drop),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EACCES));
        }
        caps::raise(None, CapSet::Effective, Capability::CAP_NET_BIND_SERVICE).unwrap();

        let error = TcpListener::bind("192.0.2.1:978").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));

        assert_no_alert_so_far(&monitor, namespace);
        drop(first);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn raw_sockets_cause_no_alert() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )
        .unwrap();
        bind(raw.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        drop(raw);
        assert_no_alert_so_far(&monitor, namespace);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn all_reports_assigned_ports_with_their_service() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&["--all"]);
        drop(TcpListener::bind("127.0.0.1:22").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(monitor.alert(namespace.inode), {
                "event" => event,
                "port" => 22,
                "registry/status" => "assigned",
                "registry/service" => "ssh",
            });
        }
        drop(TcpListener::bind("127.0.0.1:1024").unwrap());
        assert_no_alert_so_far(&monitor, namespace);
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_given_registry_replaces_the_built_in_one() {
    in_namespace(|namespace| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ports.csv");
        let titles = "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,\
            Registration Date,Modification Date,Reference,Service Code,\
            Unauthorized Use Reported,Assignment Notes";
        let rows = "ours,976,tcp,Our own,,,2031-05-06,,,,,\n,0-975,,Reserved,,,,,,,,\n\
            ,977-1023,,Reserved,,,,,,,,";
        std::fs::write(&path, format!("{titles}\n{rows}\n")).unwrap();
        let monitor = Monitor::start(&["--registry", path.to_str().unwrap()]);
        assert!(
            monitor.start_line.contains("registry 2031-05-06"),
            "{}",
            monitor.start_line
        );
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        assert_alert!(monitor.alert(namespace.inode), {
            "transport" => "udp",
            "registry/status" => "reserved",
            "registry/basis" => "rfc6335-7.2",
            "registry/as_of" => "2031-05-06",
        });
        assert_alert!(monitor.alert(namespace.inode), { "event" => "close" });
        monitor.stop_without_more(namespace.inode);
    });
}

#[test]
fn two_monitors_report_the_same() {
    in_namespace(|namespace| {
        let monitors = [Monitor::start(&[]), Monitor::start(&[])];
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        let [first, second] = monitors
            .each_ref()
            .map(|monitor| monitor.alerts(namespace.inode, 3));
        for (first, second) in first.iter().zip(&second) {
            for key in ["event", "severity", "port", "socket", "process"] {
                assert_eq!(first[key], second[key]);
            }
        }
        // The hooks of the other monitor stay attached.
        let [first, second] = monitors;
        first.stop_without_more(namespace.inode);
        drop(TcpListener::bind("127.0.0.1:977").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(second.alert(namespace.inode), { "event" => event, "port" => 977 });
        }
        second.stop_without_more(namespace.inode);
    });
}

#[test]
fn a_failed_second_bind_is_not_reported() {
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        let twice = socket(
            AddressFamily::Inet,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        let address = |port| SockaddrIn::new(127, 0, 0, 1, port);
        bind(twice.as_raw_fd(), &address(976)).unwrap();
        assert_eq!(bind(twice.as_raw_fd(), &address(977)), Err(Errno::EINVAL));
        drop(twice);
        for event in ["bind", "close"] {
            assert_alert!(monitor.alert(namespace.inode), { "event" => event, "port" => 976 });
        }
        assert_no_alert_so_far(&monitor, namespace);
        monitor.stop_without_more(namespace.inode);
    });
}
