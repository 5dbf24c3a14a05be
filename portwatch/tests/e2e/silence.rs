//! What must not alert, and what `--all` and a second agent change.

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
    support::{Agent, Namespace, in_namespace},
};

/// Binds 1023/udp, which is reserved: after its alert, whatever was to come has come.
fn assert_silent_until_now(agent: &Agent, namespace: &Namespace) {
    drop(UdpSocket::bind("127.0.0.1:1023").unwrap());
    let alert = agent.alert(namespace.inode);
    assert_alert!(alert, { "port" => 1023, "event" => "bind", "registry/status" => "reserved" });
    assert_alert!(agent.alert(namespace.inode), { "port" => 1023, "event" => "close" });
}

#[test]
fn assigned_and_high_ports_are_silent() {
    in_namespace(|namespace| {
        let agent = Agent::start(&[]);
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
        assert_silent_until_now(&agent, namespace);
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn a_failed_bind_is_none() {
    in_namespace(|namespace| {
        let taken = TcpListener::bind("127.0.0.1:976").unwrap();
        let agent = Agent::start(&[]);

        let error = TcpListener::bind("127.0.0.1:976").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));

        // Of this thread only.
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

        assert_silent_until_now(&agent, namespace);
        drop(taken);
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn a_raw_sockets_protocol_number_is_no_port() {
    in_namespace(|namespace| {
        let agent = Agent::start(&[]);
        let raw = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )
        .unwrap();
        bind(raw.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        drop(raw);
        assert_silent_until_now(&agent, namespace);
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn all_adds_assigned_ports_with_their_service() {
    in_namespace(|namespace| {
        let agent = Agent::start(&["--all"]);
        drop(TcpListener::bind("127.0.0.1:22").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(agent.alert(namespace.inode), {
                "event" => event,
                "port" => 22,
                "registry/status" => "assigned",
                "registry/service" => "ssh",
            });
        }
        drop(TcpListener::bind("127.0.0.1:1024").unwrap());
        assert_silent_until_now(&agent, namespace);
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn the_registry_that_is_given_decides() {
    in_namespace(|namespace| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.csv");
        let titles = "Service Name,Port Number,Transport Protocol,Description,Assignee,Contact,\
            Registration Date,Modification Date,Reference,Service Code,\
            Unauthorized Use Reported,Assignment Notes";
        let rows = "ours,976,tcp,Our own,,,2031-05-06,,,,,\n,0-975,,Reserved,,,,,,,,\n\
            ,977-1023,,Reserved,,,,,,,,";
        std::fs::write(&path, format!("{titles}\n{rows}\n")).unwrap();
        let agent = Agent::start(&["--registry", path.to_str().unwrap()]);
        assert!(
            agent.armed.contains("registry 2031-05-06"),
            "{}",
            agent.armed
        );
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        drop(UdpSocket::bind("127.0.0.1:976").unwrap());
        assert_alert!(agent.alert(namespace.inode), {
            "transport" => "udp",
            "registry/status" => "reserved",
            "registry/basis" => "rfc6335-7.2",
            "registry/as_of" => "2031-05-06",
        });
        assert_alert!(agent.alert(namespace.inode), { "event" => "close" });
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}

#[test]
fn two_agents_see_the_same() {
    in_namespace(|namespace| {
        let agents = [Agent::start(&[]), Agent::start(&[])];
        drop(TcpListener::bind("127.0.0.1:976").unwrap());
        let [first, second] = agents
            .each_ref()
            .map(|agent| agent.alerts(namespace.inode, 3));
        for (first, second) in first.iter().zip(&second) {
            for key in ["event", "severity", "port", "socket", "process"] {
                assert_eq!(first[key], second[key]);
            }
        }
        // One that leaves does not take the other's hooks along.
        let [first, second] = agents;
        assert!(first.stop(namespace.inode).is_empty());
        drop(TcpListener::bind("127.0.0.1:977").unwrap());
        for event in ["bind", "listen", "close"] {
            assert_alert!(second.alert(namespace.inode), { "event" => event, "port" => 977 });
        }
        assert!(second.stop(namespace.inode).is_empty());
    });
}

#[test]
fn a_socket_that_cannot_bind_twice_is_told_once() {
    in_namespace(|namespace| {
        let agent = Agent::start(&[]);
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
            assert_alert!(agent.alert(namespace.inode), { "event" => event, "port" => 976 });
        }
        assert_silent_until_now(&agent, namespace);
        let rest = agent.stop(namespace.inode);
        assert!(rest.is_empty(), "{rest:?}");
    });
}
