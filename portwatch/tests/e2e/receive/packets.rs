//! Kinds of sockets and of packets.

use std::net::UdpSocket;

use super::{bound, until, until_reported};
use crate::{
    assert_alert,
    support::{Monitor, in_namespace},
};

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
fn each_receiver_of_a_multicast_datagram_is_reported() {
    use socket2::{Domain, Socket, Type};
    in_namespace(|namespace| {
        namespace.ip("route add 224.0.0.0/4 dev lo");
        let monitor = Monitor::start(&[]);
        let group = std::net::Ipv4Addr::new(224, 0, 0, 251);
        let mut servers = Vec::new();
        for _ in 0..2 {
            let server = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            server.set_reuse_address(true).unwrap();
            let any: std::net::SocketAddr = "0.0.0.0:976".parse().unwrap();
            server.bind(&any.into()).unwrap();
            let lo = std::net::Ipv4Addr::LOCALHOST;
            server.join_multicast_v4(&group, &lo).unwrap();
            let bind = bound(&monitor, namespace);
            servers.push((server, bind["socket"]["cookie"].as_u64().unwrap()));
        }
        let first = until_reported(&monitor, namespace, "127.0.0.1:0", "224.0.0.251:976");
        let second = monitor.alert(namespace.inode);
        let mut cookies = [first, second].map(|receive| {
            assert_alert!(receive, { "event" => "receive", "address" => "224.0.0.251" });
            receive["socket"]["cookie"].as_u64().unwrap()
        });
        cookies.sort_unstable();
        let mut expected = [servers[0].1, servers[1].1];
        expected.sort_unstable();
        assert_eq!(cookies, expected);
        drop(servers);
        for _ in 0..2 {
            assert_alert!(monitor.alert(namespace.inode), { "event" => "close", "received/peers" => 1 });
        }
        monitor.stop_without_more(namespace.inode);
    });
}

/// What the kernel joins and splits is counted as what was sent: datagrams.
#[test]
fn segments_of_one_packet_are_counted_as_datagrams() {
    fn set(socket: &UdpSocket, option: i32, value: i32) {
        // SAFETY: the option's value is an int, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(socket),
                libc::SOL_UDP,
                option,
                (&raw const value).cast(),
                size_of::<i32>() as libc::socklen_t,
            )
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    in_namespace(|namespace| {
        let monitor = Monitor::start(&[]);
        for joins in [false, true] {
            let server = UdpSocket::bind("127.0.0.1:976").unwrap();
            if joins {
                set(&server, libc::UDP_GRO, 1);
            }
            bound(&monitor, namespace);
            until_reported(&monitor, namespace, "127.0.0.9:0", "127.0.0.1:976");
            let client = UdpSocket::bind("127.0.0.8:0").unwrap();
            set(&client, libc::UDP_SEGMENT, 100);
            client.send_to(&[7; 1000], "127.0.0.1:976").unwrap();
            assert_alert!(monitor.alert(namespace.inode), { "event" => "receive" });
            drop(server);
            let close = monitor.alert(namespace.inode);
            assert_alert!(close, { "event" => "close", "received/peers" => 2 });
            let received = |key: &str| close["received"][key].as_u64().unwrap();
            // Ten of a hundred bytes, and those before, of five.
            assert_eq!(
                received("bytes"),
                1000 + (received("datagrams") - 10) * 5,
                "{joins} {close}"
            );
        }
        monitor.stop_without_more(namespace.inode);
    });
}
