use std::{fs, net::UdpSocket, os::unix::fs::MetadataExt as _};

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
    cgroup::own().unwrap().metadata().unwrap().ino()
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
        assert_eq!(
            (sums.datagrams, sums.bytes, sums.peers, sums.others),
            (5, 25, 2, 0)
        );
        drop(server);
        sensor.stop_receiving(cookie);
        assert_eq!(sensor.received(cookie), None);
    });
}

/// Whether the sensor's program is attached to a cgroup.
fn is_attached(sensor: &mut Sensor, id: u64) -> bool {
    let root = File::open(cgroup::root().unwrap()).unwrap();
    let directory = open_by_id(&root, id).unwrap();
    let ebpf = sensor.ebpf.as_mut().unwrap();
    let program = program(ebpf).unwrap().info().unwrap().id();
    attached(directory.as_fd(), INGRESS)
        .unwrap()
        .contains(&program)
}

#[test]
fn the_program_is_attached_only_while_a_socket_of_the_cgroup_is_looked_at() {
    in_namespace(|| {
        let (mut sensor, own) = (sensor(), own_cgroup());
        assert!(!is_attached(&mut sensor, own));
        for cookie in [1, 2] {
            sensor.start_receiving(cookie, own);
        }
        assert!(is_attached(&mut sensor, own));
        sensor.stop_receiving(1);
        sensor.receive.cgroups.get_mut(&own).unwrap().idle_since = None;
        sensor.tend_receive(|_| false);
        assert!(is_attached(&mut sensor, own));
        sensor.stop_receiving(2);
        while sensor.is_receiving() {
            assert_eq!(sensor.tend_receive(|_| false), []);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_attached(&mut sensor, own));
        // Not without being asked to.
        sensor.set_receive(ReceiveSettings {
            enabled: false,
            ..ReceiveSettings::default()
        });
        sensor.start_receiving(3, own);
        assert!(!is_attached(&mut sensor, own));
    });
}

/// A new cgroup below this process's; removed when dropped.
struct Below {
    path: PathBuf,
    id: u64,
}

impl Below {
    fn new(name: &str) -> Self {
        let name = format!("portwatch-test-{}-{name}", std::process::id());
        let path = cgroup::own().unwrap().join(name);
        fs::create_dir(&path).unwrap();
        let id = path.metadata().unwrap().ino();
        Self { path, id }
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

#[test]
fn the_program_is_attached_once_for_cgroups_within_each_other() {
    in_namespace(|| {
        let (mut sensor, own, inner) = (sensor(), own_cgroup(), Below::new("inner"));
        sensor.start_receiving(1, inner.id);
        assert!(is_attached(&mut sensor, inner.id));
        sensor.start_receiving(2, own);
        assert!(is_attached(&mut sensor, own) && !is_attached(&mut sensor, inner.id));
        // That it is not attached there is no fault.
        assert_eq!(sensor.check_receive(), []);
        // While it is off the outer one, and when that has no socket any more.
        let until = Instant::now() + Duration::from_hours(1);
        sensor.receive.cgroups.get_mut(&own).unwrap().off_until = Some(until);
        sensor.tend_receive(|_| true);
        assert!(!is_attached(&mut sensor, own) && is_attached(&mut sensor, inner.id));
        sensor.receive.cgroups.get_mut(&own).unwrap().off_until = None;
        sensor.tend_receive(|_| true);
        assert!(is_attached(&mut sensor, own) && !is_attached(&mut sensor, inner.id));
        sensor.stop_receiving(2);
        while is_attached(&mut sensor, own) {
            sensor.tend_receive(|_| true);
        }
        assert!(is_attached(&mut sensor, inner.id));
        sensor.disarm();
        assert_eq!(sensor.receive.cgroups.len(), 0);
    });
}

#[test]
fn the_number_of_cgroups_is_bounded_and_one_that_is_not_used_makes_room() {
    in_namespace(|| {
        let mut sensor = sensor();
        let cgroups: Vec<Below> = (0..=MAX_CGROUPS)
            .map(|index| Below::new(&format!("many-{index}")))
            .collect();
        for (cookie, cgroup) in (1..).zip(&cgroups) {
            sensor.start_receiving(cookie, cgroup.id);
        }
        assert_eq!(sensor.receive.cgroups.len(), MAX_CGROUPS);
        let problems = sensor.tend_receive(|_| true);
        assert!(
            matches!(&*problems, [one] if one.detail.contains("more than 64 cgroups")),
            "{problems:?}"
        );
        sensor.stop_receiving(1);
        let last = cgroups.last().unwrap().id;
        sensor.start_receiving(MAX_CGROUPS as u64 + 1, last);
        assert!(is_attached(&mut sensor, last) && !is_attached(&mut sensor, cgroups[0].id));
        assert_eq!(sensor.tend_receive(|_| true), []);
    });
}

#[test]
fn a_cgroup_that_is_removed_after_its_last_socket_is_no_fault() {
    in_namespace(|| {
        let (mut sensor, cgroup) = (sensor(), Below::new("removed"));
        sensor.start_receiving(1, cgroup.id);
        sensor.stop_receiving(1);
        drop(cgroup);
        assert_eq!(sensor.check_receive(), []);
        while sensor.is_receiving() {
            assert_eq!(sensor.tend_receive(|_| true), []);
        }
    });
}

#[test]
fn a_cgroup_that_is_gone_is_reported_once() {
    in_namespace(|| {
        let mut sensor = sensor();
        for cookie in [1, 2] {
            sensor.start_receiving(cookie, u64::MAX);
            let problems = sensor.tend_receive(|_| false);
            assert_eq!(problems.len(), usize::from(cookie == 1), "{problems:?}");
            assert!(
                problems
                    .iter()
                    .all(|one| !one.regained && one.detail.contains("has been removed"))
            );
        }
        assert_eq!(sensor.receiving().count(), 0);
    });
}

#[test]
fn a_program_that_somebody_detached_is_attached_again() {
    in_namespace(|| {
        let (mut sensor, own) = (sensor(), own_cgroup());
        sensor.start_receiving(1, own);
        assert_eq!(sensor.check_receive(), []);
        sensor.receive.cgroups.get_mut(&own).unwrap().link = None;
        assert!(!is_attached(&mut sensor, own));
        let changes = sensor.check_receive();
        assert!(
            matches!(&*changes, [Health { regained: true, .. }]),
            "{changes:?}"
        );
        assert!(is_attached(&mut sensor, own));
    });
}

#[test]
fn the_program_is_taken_off_a_busy_cgroup_for_a_time() {
    in_namespace(|| {
        let (mut sensor, own) = (sensor(), own_cgroup());
        sensor.set_receive(ReceiveSettings {
            enabled: true,
            max_rate: 0,
        });
        sensor.start_receiving(1, own);
        let other = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = other.local_addr().unwrap();
        let changes = loop {
            other.send_to(b"x", to).unwrap();
            let changes = sensor.tend_receive(|_| false);
            if !changes.is_empty() {
                break changes;
            }
        };
        assert!(
            matches!(
                &*changes,
                [Health {
                    regained: false,
                    ..
                }]
            ),
            "{changes:?}"
        );
        assert!(changes[0].detail.contains("max_rate"), "{changes:?}");
        assert!(!is_attached(&mut sensor, own));
        // That it is off is no fault, and is reported once.
        assert_eq!(sensor.check_receive(), []);
        assert_eq!(sensor.tend_receive(|_| false), []);
        // It is put back, to look again.
        let cgroup = sensor.receive.cgroups.get_mut(&own).unwrap();
        cgroup.off_until = Some(Instant::now());
        assert_eq!(sensor.tend_receive(|_| false), []);
        assert!(is_attached(&mut sensor, own));
        sensor.receive.settings.max_rate = u64::MAX;
        let changes = loop {
            let changes = sensor.tend_receive(|_| false);
            if !changes.is_empty() {
                break changes;
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(
            matches!(&*changes, [Health { regained: true, .. }]),
            "{changes:?}"
        );
    });
}

#[test]
fn any_number_of_addresses_is_bounded_and_counted() {
    use portwatch_common::{MAX_ADDRESSES, MAX_PREFIXES};
    in_namespace(|| {
        let mut sensor = sensor();
        let server = UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        let cookie = events(&mut sensor, EventKind::Bind)[0].cookie().unwrap();
        sensor.start_receiving(cookie, own_cgroup());
        let mut reported = 0;
        let further = 100;
        // Each in a /24 of its own, but for the last, which share one that is known.
        for index in 0..(MAX_ADDRESSES + MAX_PREFIXES) as u32 + further + 2 {
            let address = if index < (MAX_ADDRESSES + MAX_PREFIXES) as u32 + further {
                std::net::Ipv4Addr::from(0x7f01_0001 + (index << 8))
            } else {
                std::net::Ipv4Addr::from(0x7f01_0004 + ((MAX_ADDRESSES as u32 + 5) << 8) + index)
            };
            let client = UdpSocket::bind((address, 0)).unwrap();
            client.send_to(b"xyz", ("127.0.0.1", PORT)).unwrap();
            // On a busy host the kernel delivers it later, and two CPUs that each see the last free place
            // take it both.
            let is_delivered = |sensor: &Sensor| {
                let sums = sensor.received(cookie);
                sums.is_some_and(|sums| sums.datagrams > u64::from(index))
            };
            while !is_delivered(&sensor) {
                std::thread::yield_now();
            }
            for event in events(&mut sensor, EventKind::Receive) {
                sensor.note_receive(&event);
                reported += 1;
            }
        }
        let sums = sensor.received(cookie).unwrap();
        let peers = MAX_ADDRESSES + MAX_PREFIXES;
        assert_eq!(reported, peers);
        assert_eq!(sums.datagrams, peers + u64::from(further) + 2);
        assert_eq!(sums.bytes, sums.datagrams * 3);
        // The last two are in a prefix that is counted.
        assert_eq!((sums.peers, sums.others), (peers, further.into()));
        assert_eq!(sensor.receive.peers.len(), peers as usize);
        drop(server);
        sensor.stop_receiving(cookie);
        assert_eq!(sensor.receive.peers.len(), 0);
    });
}

#[test]
fn what_is_counted_for_a_socket_that_nobody_knows_is_forgotten() {
    in_namespace(|| {
        let mut sensor = sensor();
        let open = || UdpSocket::bind(("127.0.0.1", PORT)).unwrap();
        let server = open();
        let cookie = events(&mut sensor, EventKind::Bind)[0].cookie().unwrap();
        sensor.start_receiving(u64::MAX, own_cgroup());
        let client = UdpSocket::bind("127.0.0.2:0").unwrap();
        client.send_to(b"x", ("127.0.0.1", PORT)).unwrap();
        for event in events(&mut sensor, EventKind::Receive) {
            sensor.note_receive(&event);
        }
        for is_open in [true, true, false] {
            sensor.tend_receive(|_| is_open);
            assert!(sensor.received(cookie).is_some(), "{is_open}");
        }
        assert_eq!(sensor.receive.peers.len(), 1);
        sensor.tend_receive(|_| false);
        assert_eq!(sensor.received(cookie), None);
        assert_eq!(sensor.receive.peers.len(), 0);
        drop(server);
    });
}
