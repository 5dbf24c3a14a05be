//! Events in, alerts out, on a host that exists only here.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;

use super::{
    table::{CLOSED, OPEN},
    *,
};
use crate::{
    inventory::{Coverage, FoundSocket},
    model::{Task, Transport},
    registry::Status,
};

mod snapshots;

/// A host on which every process but number 404 is still there.
#[derive(Default)]
struct PaperHost {
    identified: Vec<u32>,
}

const GONE: u32 = 404;
/// Who holds the socket with the cookie `HELD`.
const HOLDER: u32 = 99;
const HELD: u64 = 9;
const NETNS_COOKIE: u64 = 77;
const NETNS: u64 = 4_026_531_840;
const THREAD_NETNS: u64 = 4_026_532_000;

impl Host for PaperHost {
    fn identify(&mut self, task: &Task, _: Timestamp) -> Rc<Process> {
        self.identified.push(task.pid);
        Rc::new(process(task.pid))
    }

    fn recall(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.identified
            .contains(&pid)
            .then(|| Rc::new(process(pid)))
    }

    fn holder(&mut self, event: &Event) -> Option<Rc<Process>> {
        (event.cookie() == Some(HELD)).then(|| Rc::new(process(HOLDER)))
    }

    fn host_netns(&mut self) -> Option<u64> {
        Some(NETNS)
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        (cookie == NETNS_COOKIE && tid.is_some()).then_some(NETNS)
    }

    fn learn(&mut self, _: u64, _: u64) {}

    fn thread_netns(&mut self, _: u32) -> Option<u64> {
        Some(THREAD_NETNS)
    }

    fn is_own_address(&mut self, address: IpAddr) -> bool {
        address.is_loopback() || address == IpAddr::from([10, 0, 0, 1])
    }
}

fn process(pid: u32) -> Process {
    let alive = pid != GONE;
    Process {
        ppid: alive.then_some(1),
        exe: alive.then(|| Printable::from("/usr/bin/nc")),
        ..Process::minimal(pid, Printable::from("nc"), 0, 0)
    }
}

impl<H: Host> Tracker<H> {
    /// The alerts of one event.
    fn told(&mut self, event: &Event) -> Vec<Alert> {
        let mut alerts = Vec::new();
        self.observe(event.clone(), &mut alerts);
        alerts
    }

    /// The only alert of one event.
    fn one(&mut self, event: &Event) -> Alert {
        let mut alerts = self.told(event);
        assert_eq!(alerts.len(), 1, "{alerts:?}");
        alerts.remove(0)
    }
}

fn tracker() -> Tracker<PaperHost> {
    let registry = Registry::embedded().unwrap();
    let policy = Rc::new(Policy::default());
    Tracker::new(
        PaperHost::default(),
        registry,
        Printable::from("db1"),
        policy,
    )
}

/// An event on 976 of the socket with that cookie; `pid` 0 is a kernel that does not tell.
fn event(kind: EventKind, cookie: u64, pid: u32) -> Event {
    Event {
        kind,
        time: Timestamp::UNIX_EPOCH,
        key: (cookie != 0).then_some(SocketKey::Cookie(cookie)),
        netns_cookie: Some(NETNS_COOKIE),
        netns: None,
        transport: Transport::Tcp,
        address: Some(IpAddr::from([10, 0, 0, 1])),
        port: 976,
        peer: None,
        task: (pid != 0).then(|| Task {
            pid,
            tid: pid,
            uid: 0,
            gid: 0,
            comm: b"nc".to_vec(),
            cgroup_id: None,
            start_ns: None,
            exec_info: None,
        }),
        is_kernel_socket: None,
        binder: None,
    }
}

fn accept(cookie: u64, peer: [u8; 4]) -> Event {
    Event {
        peer: Some(SocketAddr::from((peer, 40_000))),
        ..event(EventKind::Accept, cookie, 0)
    }
}

fn pid(alert: &Alert) -> Option<u32> {
    alert.process.as_ref().map(|process| process.pid)
}

#[test]
fn a_listeners_life_is_told_in_five_lines_with_one_cookie() {
    use EventKind::{Accept, Bind, Close, Listen};
    use Severity::{Critical, Notice, Warning};

    let mut tracker = tracker();
    let life = [
        (event(Bind, 5, 812), Notice),
        (event(Listen, 5, 812), Warning),
        (accept(5, [127, 0, 0, 1]), Warning),
        (accept(5, [10, 0, 0, 9]), Critical),
        (accept(5, [10, 0, 0, 9]), Warning),
        (event(Close, 5, 0), Notice),
    ];
    for (event, severity) in life {
        let alert = tracker.one(&event);
        assert_eq!((alert.event, alert.severity), (event.kind, severity));
        assert_eq!(pid(&alert), Some(812), "{:?}", event.kind);
        assert_eq!(
            alert.socket,
            Socket {
                cookie: Some(5),
                netns: Some(NETNS),
                host_netns: Some(true),
                kernel: None,
            }
        );
        assert_eq!(alert.peer.is_some(), event.kind == Accept);
        assert_eq!(alert.registry.unwrap().status, Status::Unassigned);
    }
    assert!(tracker.table.len().0 == 0);
}

#[test]
fn severity_follows_transport_and_event() {
    use EventKind::{Bind, Close, Connect};
    use Severity::{Notice, Warning};

    let cases = [
        (Transport::Udp, Bind, Warning),
        (Transport::UdpLite, Bind, Warning),
        (Transport::Tcp, Bind, Notice),
        (Transport::Tcp, Connect, Notice),
        (Transport::Udp, Close, Notice),
    ];
    for (transport, kind, severity) in cases {
        let event = Event {
            transport,
            ..event(kind, 6, 1)
        };
        let alert = tracker().one(&event);
        assert_eq!(alert.severity, severity, "{transport:?} {kind:?}");
        assert_eq!(alert.transport, Some(transport));
    }
}

#[test]
fn events_without_their_bind_say_what_they_know() {
    use EventKind::{Accept, Close, Connect, Listen};

    let cases = [
        // (events, the pid on the last alert)
        (vec![event(Listen, 5, 812)], Some(812)),
        (vec![event(Connect, 5, 812), event(Close, 5, 0)], Some(812)),
        (vec![event(Listen, 5, 0)], None),
        (vec![event(Listen, HELD, 0)], Some(HOLDER)),
        (vec![event(Listen, HELD, 812)], Some(812)),
        (vec![event(Close, 5, 0)], None),
        (vec![accept(5, [10, 0, 0, 9])], None),
        (vec![accept(0, [10, 0, 0, 9])], None),
        // It can only be that one.
        (
            vec![event(Listen, 5, 812), accept(0, [10, 0, 0, 9])],
            Some(812),
        ),
    ];
    for (events, expected) in cases {
        let mut tracker = tracker();
        let alerts: Vec<Alert> = events.iter().map(|event| tracker.one(event)).collect();
        let last = alerts.last().unwrap();
        assert_eq!(pid(last), expected, "{events:?}");
        let cookie = events.iter().find_map(Event::cookie);
        assert_eq!(last.socket.cookie, cookie);
        if last.event == Accept {
            assert_eq!(last.severity, Severity::Critical);
        }
    }
}

#[test]
fn events_out_of_order_keep_their_process_and_leave_nothing_behind() {
    use EventKind::{Bind, Close, Listen};

    // The handshake completes on another CPU before listen() returns, or during close().
    let mut tracker = tracker();
    tracker.one(&event(Bind, 5, 812));
    assert_eq!(pid(&tracker.one(&accept(5, [10, 0, 0, 9]))), Some(812));
    let listen = tracker.one(&event(Listen, 5, 0));
    assert_eq!(pid(&listen), Some(812));
    tracker.one(&event(Close, 5, 0));
    assert_eq!(pid(&tracker.one(&accept(5, [10, 0, 0, 9]))), Some(812));
    assert!(tracker.table.len().0 == 0);

    // A listener that was shut down can listen again.
    assert_eq!(pid(&tracker.one(&event(Listen, 5, 0))), Some(812));
    assert_eq!(tracker.table.len().0, 1);
}

#[test]
fn the_one_who_listens_is_the_owner_unless_he_is_gone() {
    use EventKind::{Bind, Listen};

    let mut tracker = tracker();
    tracker.one(&event(Bind, 5, 1));
    assert_eq!(pid(&tracker.one(&event(Listen, 5, 812))), Some(812));
    assert_eq!(pid(&tracker.one(&accept(5, [127, 0, 0, 1]))), Some(812));

    let gone = tracker.one(&event(Bind, 6, GONE)).process.unwrap();
    assert_eq!((gone.pid, &*gone.comm, &gone.exe), (GONE, "nc", &None));

    // Seen alive at bind, gone at listen: what was seen stays.
    let alive = Process {
        exe: Some(Printable::from("/x")),
        ..(*gone).clone()
    };
    assert_eq!(
        fuller(gone.clone(), Some(Rc::new(alive))).exe.as_deref(),
        Some("/x")
    );
}

#[test]
fn the_first_reach_counts_per_listener_and_not_from_this_host() {
    let mut tracker = tracker();
    for cookie in [5, 6] {
        tracker.one(&event(EventKind::Listen, cookie, 812));
    }
    let stranger = |peer| Event {
        port: 977,
        ..accept(0, peer)
    };
    let cases = [
        (accept(5, [127, 0, 0, 1]), Severity::Warning),
        (accept(5, [10, 0, 0, 1]), Severity::Warning),
        (accept(5, [10, 0, 0, 9]), Severity::Critical),
        (accept(5, [10, 0, 0, 8]), Severity::Warning),
        (accept(6, [10, 0, 0, 8]), Severity::Critical),
        // A listener that nothing is known of, once.
        (stranger([10, 0, 0, 8]), Severity::Critical),
        (stranger([10, 0, 0, 9]), Severity::Warning),
    ];
    for (event, severity) in cases {
        let alert = tracker.one(&event);
        assert_eq!(alert.severity, severity, "{:?} {:?}", event.key, event.peer);
    }
}

#[test]
fn a_socket_without_a_cookie_has_a_life_too() {
    use EventKind::{Close, Listen};

    let mut tracker = tracker();
    for (kind, pid_told) in [(Listen, 812), (Close, 0)] {
        let event = Event {
            key: Some(SocketKey::Address(5)),
            netns_cookie: None,
            transport: Transport::Sctp,
            ..event(kind, 5, pid_told)
        };
        let alert = tracker.one(&event);
        assert_eq!(pid(&alert), Some(812));
        assert_eq!(
            alert.socket,
            Socket {
                cookie: None,
                netns: Some(THREAD_NETNS),
                host_netns: Some(false),
                kernel: None,
            }
        );
    }
    assert!(tracker.table.len().0 == 0);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut tracker = tracker();
    for cookie in 1..=OPEN as u64 + 10 {
        tracker.one(&event(EventKind::Bind, cookie, 812));
    }
    assert_eq!(tracker.table.len().0, OPEN);
    assert_eq!(
        (tracker.take_forgotten(), tracker.take_forgotten()),
        (10, 0)
    );
    let named = |tracker: &mut Tracker<PaperHost>, cookie| {
        pid(&tracker.one(&event(EventKind::Close, cookie, 0))).is_some()
    };
    assert!(!named(&mut tracker, 1));
    for cookie in 11..=OPEN as u64 + 10 {
        assert!(named(&mut tracker, cookie));
    }
    assert_eq!(tracker.table.len(), (0, CLOSED));
}

#[test]
fn what_was_counted_is_of_the_process_that_was_told() {
    let mut tracker = tracker();
    let counted = Event {
        binder: Some(812),
        ..event(EventKind::Bind, 0, 0)
    };
    let mut alerts = Vec::new();
    tracker.repeat(&counted, &mut alerts);
    tracker.one(&event(EventKind::Bind, 5, 812));
    tracker.repeat(&counted, &mut alerts);
    let pids: Vec<Option<u32>> = alerts.iter().map(pid).collect();
    assert_eq!(pids, [None, Some(812)]);
    // Nothing is held by that: which sockets they were is not known.
    let closed = Event {
        binder: Some(812),
        ..event(EventKind::Close, 6, 0)
    };
    assert_eq!(pid(&tracker.one(&closed)), Some(812));
}
