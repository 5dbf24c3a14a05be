use std::{
    fs,
    net::UdpSocket,
    os::unix::fs::MetadataExt as _,
};

use super::*;
use crate::{
    linux::cgroup,
    model::{DenyRules, Event, EventKind, Transport},
    sensor::Options,
};

const PORT: u16 = 871;

/// A sensor that watches UDP port 871.
fn sensor() -> Sensor {
    let options = Options {
        ring_size: 1 << 16,
        cgroup: None,
        fail_closed: false,
    };
    let watched = [(PORT, Transport::Udp)].into_iter();
    Sensor::arm(&options, watched, &DenyRules::default()).unwrap()
}

fn events(sensor: &mut Sensor, kind: EventKind) -> Vec<Event> {
    let mut events = Vec::new();
    while sensor.take(64, &mut events) > 0 {}
    events.retain(|event| event.kind == kind);
    events
}

/// Runs `test` in a network namespace of its own, with `lo` up.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _guard = runtime.enter();
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let status = std::process::Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status();
            assert!(status.unwrap().success());
            test();
        });
        thread.join().unwrap();
    });
}

/// The id of this process's cgroup: its sockets are in it.
fn own_cgroup() -> u64 {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
    fs::metadata(cgroup::root().unwrap().join(path)).unwrap().ino()
}

#[test]
fn the_first_datagram_from_each_address_is_reported_and_all_are_counted() {
    in_namespace(|| {
        let mut sensor = sensor();
        assert_eq!(sensor.receive_error(), None);
        let server = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        let cookie = events(&mut sensor, EventKind::Bind)[0].cookie().unwrap();
        sensor.start_receiving(cookie, own_cgroup());
        for (source, datagrams) in [("127.0.0.2:5000", 3), ("127.0.0.3:5001", 2)] {
            let client = UdpSocket::bind(source).unwrap();
            for _ in 0..datagrams {
                client.send_to(b"hello", ("127.0.0.1", PORT)).unwrap();
            }
        }
        let received = events(&mut sensor, EventKind::Receive);
        let peers: Vec<String> = received
            .iter()
            .map(|event| event.peer.unwrap().to_string())
            .collect();
        assert_eq!(peers, ["127.0.0.2:5000", "127.0.0.3:5001"]);
        for event in &received {
            assert_eq!((event.cookie(), event.port), (Some(cookie), PORT));
            assert_eq!(event.address.unwrap().to_string(), "127.0.0.1");
            assert!(event.is_from_host);
            sensor.note_receive(event);
        }
        let sums = sensor.received(cookie).unwrap();
        assert_eq!((sums.datagrams, sums.bytes, sums.peers, sums.others), (5, 25, 2, 0));
        drop(server);
        sensor.stop_receiving(cookie);
        assert_eq!(sensor.received(cookie), None);
    });
}
