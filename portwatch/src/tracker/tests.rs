//! Events in, tracked events out, on a host that exists only here.

use std::net::{IpAddr, SocketAddr};

use super::{
    table::{CLOSED, OPEN},
    *,
};
use crate::{
    inventory::{Coverage, FoundSocket},
    model::{CloseKind, Printable, Task, Transport},
};

mod changes;
mod crowds;
mod scans;
mod sessions;
mod steered;

/// A host on which every process but number 404 is still there.
#[derive(Default)]
pub(crate) struct FakeHost {
    identified: Vec<u32>,
    /// Cookies of network namespaces that a scan has shown.
    cached: Vec<u64>,
}

const GONE: u32 = 404;
const NETNS_COOKIE: u64 = 77;
pub(crate) const NETNS: u64 = 4_026_531_840;
const THREAD_NETNS: u64 = 4_026_532_000;

impl Host for FakeHost {
    fn identify(&mut self, task: &Task, _: Timestamp) -> Rc<Process> {
        self.identified.push(task.pid);
        Rc::new(process(task.pid))
    }

    fn last_identified(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.identified
            .contains(&pid)
            .then(|| Rc::new(process(pid)))
    }

    fn device(&mut self, _: Option<u64>, index: u32, tid: Option<u32>) -> Option<Printable> {
        tid.map(|_| Printable::from(format!("if{index}").as_str()))
    }

    fn complete(&mut self, slim: &Rc<Process>) -> Rc<Process> {
        match slim.is_slim {
            true => Rc::new(process(slim.pid)),
            false => Rc::clone(slim),
        }
    }

    fn host_netns(&mut self) -> Option<u64> {
        Some(NETNS)
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        let is_known = tid.is_some() || self.cached.contains(&cookie);
        (cookie == NETNS_COOKIE && is_known).then_some(NETNS)
    }

    fn cache_netns(&mut self, _: u64, _: u64) {}

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
    /// The tracked events of one event.
    fn all(&mut self, event: &Event) -> Vec<TrackedEvent> {
        let mut out = Vec::new();
        self.observe(event.clone(), &mut out);
        out
    }

    /// The only tracked event of one event.
    fn one(&mut self, event: &Event) -> TrackedEvent {
        let mut out = self.all(event);
        assert_eq!(out.len(), 1, "{out:?}");
        out.remove(0)
    }
}

fn tracker() -> Tracker<FakeHost> {
    Tracker::new(FakeHost::default())
}

/// An event on 976 of the socket with that cookie; `pid` 0: the kernel does not say who acted.
pub(crate) fn event(kind: EventKind, cookie: u64, pid: u32) -> Event {
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
        outcome: None,
        accepted: None,
        close: CloseKind::Released,
        is_from_host: false,
        direction: None,
        session: None,
        interface: None,
        device: None,
        v6only: None,
    }
}

pub(crate) fn accept(cookie: u64, peer: [u8; 4]) -> Event {
    Event {
        peer: Some(SocketAddr::from((peer, 40_000))),
        ..event(EventKind::Accept, cookie, 0)
    }
}

fn pid(event: &TrackedEvent) -> Option<u32> {
    event.process.as_ref().map(|process| process.pid)
}

#[test]
fn a_listeners_life_is_five_events_with_one_cookie() {
    use EventKind::{Accept, Bind, Close, Listen};

    let mut tracker = tracker();
    let life = [
        (event(Bind, 5, 812), false),
        (event(Listen, 5, 812), false),
        (accept(5, [127, 0, 0, 1]), false),
        (accept(5, [10, 0, 0, 9]), true),
        (accept(5, [10, 0, 0, 9]), false),
        (event(Close, 5, 0), false),
    ];
    for (event, is_first_remote) in life {
        let tracked = tracker.one(&event);
        assert_eq!(
            (tracked.kind, tracked.is_first_remote),
            (event.kind, is_first_remote)
        );
        assert_eq!(pid(&tracked), Some(812), "{:?}", event.kind);
        assert_eq!(tracked.key, Some(SocketKey::Cookie(5)));
        assert_eq!(
            (tracked.netns, tracked.is_host_netns),
            (Some(NETNS), Some(true))
        );
        assert_eq!(tracked.is_kernel_socket, None);
        assert_eq!(tracked.peer.is_some(), event.kind == Accept);
    }
    assert!(tracker.table.len().0 == 0);
}

#[test]
fn events_without_their_bind_carry_what_is_known() {
    use EventKind::{Accept, Close, Connect, Listen};

    let cases = [
        // (events, the pid of the last tracked event)
        (vec![event(Listen, 5, 812)], Some(812)),
        (vec![event(Connect, 5, 812), event(Close, 5, 0)], Some(812)),
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
        let tracked: Vec<TrackedEvent> = events.iter().map(|event| tracker.one(event)).collect();
        let last = tracked.last().unwrap();
        assert_eq!(pid(last), expected, "{events:?}");
        let key = events.iter().find_map(|event| event.key);
        assert_eq!(last.key, key);
        assert_eq!(last.is_first_remote, last.kind == Accept);
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
fn the_listening_process_is_the_owner_unless_it_is_gone() {
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
        more_complete(gone.clone(), Some(Rc::new(alive)))
            .exe
            .as_deref(),
        Some("/x")
    );
}

#[test]
fn the_first_remote_connection_counts_per_listener() {
    let mut tracker = tracker();
    for cookie in [5, 6] {
        tracker.one(&event(EventKind::Listen, cookie, 812));
    }
    let untracked = |peer| Event {
        port: 977,
        ..accept(0, peer)
    };
    let cases = [
        (accept(5, [127, 0, 0, 1]), false),
        (accept(5, [10, 0, 0, 1]), false),
        (accept(5, [10, 0, 0, 9]), true),
        (accept(5, [10, 0, 0, 8]), false),
        (accept(6, [10, 0, 0, 8]), true),
        // A listener that is not tracked, once.
        (untracked([10, 0, 0, 8]), true),
        (untracked([10, 0, 0, 9]), false),
    ];
    for (event, is_first_remote) in cases {
        let tracked = tracker.one(&event);
        assert_eq!(
            tracked.is_first_remote, is_first_remote,
            "{:?} {:?}",
            event.key, event.peer
        );
    }
}

#[test]
fn a_socket_without_a_cookie_is_tracked_too() {
    use EventKind::{Close, Listen};

    let mut tracker = tracker();
    for (kind, actor) in [(Listen, 812), (Close, 0)] {
        let event = Event {
            key: Some(SocketKey::Address(5)),
            netns_cookie: None,
            transport: Transport::Sctp,
            ..event(kind, 5, actor)
        };
        let tracked = tracker.one(&event);
        assert_eq!(pid(&tracked), Some(812));
        assert_eq!(tracked.key.and_then(SocketKey::cookie), None);
        assert_eq!(
            (tracked.netns, tracked.is_host_netns),
            (Some(THREAD_NETNS), Some(false))
        );
    }
    assert!(tracker.table.len().0 == 0);
}

#[test]
fn a_socket_lasts_from_a_tenth_of_a_second_on() {
    let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
    for (open, lasted) in [(0, false), (99, false), (100, true), (60_000, true)] {
        let mut tracker = tracker();
        tracker.one(&event(EventKind::Bind, 5, 812));
        let close = Event {
            time: at(open),
            ..event(EventKind::Close, 5, 0)
        };
        assert_eq!(tracker.one(&close).lasted, lasted, "{open} ms");
    }
    // Its bind was counted.
    assert!(!tracker().one(&event(EventKind::Close, 5, 0)).lasted);
}

#[test]
fn the_tables_are_bounded() {
    let mut tracker = tracker();
    let on = |cookie, kind, pid| Event {
        port: (cookie % 700) as u16 + 1,
        ..event(kind, cookie, pid)
    };
    let all = (OPEN + 3000) as u64;
    tracker.table.crowds().set_room(1000);
    for cookie in 1..=all {
        tracker.one(&on(cookie, EventKind::Bind, 812));
    }
    assert!(tracker.table.len().0 <= OPEN);
    assert_eq!(tracker.table.crowds().len(), 1000);
    assert!(tracker.take_evicted() >= 2000);
    assert_eq!(tracker.take_evicted(), 0);
    for cookie in 1..=all {
        tracker.one(&on(cookie, EventKind::Close, 0));
    }
    assert_eq!(tracker.table.len(), (0, CLOSED));
    assert_eq!(tracker.table.crowds().len(), 0);
}

#[test]
fn counted_events_belong_to_the_process_that_was_identified() {
    let mut tracker = tracker();
    let counted = Event {
        binder: Some(812),
        ..event(EventKind::Bind, 0, 0)
    };
    let before = tracker.counted(&counted);
    tracker.one(&event(EventKind::Bind, 5, 812));
    let after = tracker.counted(&counted);
    assert_eq!([pid(&before), pid(&after)], [None, Some(812)]);
    let closed = Event {
        binder: Some(812),
        ..event(EventKind::Close, 6, 0)
    };
    assert_eq!(pid(&tracker.one(&closed)), Some(812));
}

#[test]
fn a_listener_that_is_shut_down_stays_until_it_is_released() {
    use EventKind::{Bind, Close, Listen};

    let close = |cookie, close| Event {
        close,
        ..event(Close, cookie, 0)
    };
    let begin = || {
        let mut tracker = tracker();
        tracker.one(&event(Bind, 5, 812));
        tracker.one(&event(Listen, 5, 812));
        let shut_down = tracker.one(&close(5, CloseKind::ShutDown));
        assert_eq!((shut_down.kind, pid(&shut_down)), (Close, Some(812)));
        // Others come and go.
        for cookie in 1000..1000 + 2 * CLOSED as u64 {
            tracker.one(&event(Bind, cookie, 813));
            tracker.one(&event(Close, cookie, 0));
        }
        let stages: Vec<Stage> = tracker.open().map(|one| one.stage).collect();
        assert_eq!(stages, [Stage::Bound]);
        tracker
    };
    // It listens again; the kernel hides who.
    let mut again = begin();
    assert_eq!(pid(&again.one(&event(Listen, 5, 0))), Some(812));
    assert_eq!(again.all(&close(5, CloseKind::Released)).len(), 1);
    assert_eq!(again.table.len().0, 0);

    // It is released, which its close has reported already.
    let mut released = begin();
    assert!(released.all(&close(5, CloseKind::ReleasedLater)).is_empty());
    assert_eq!(released.table.len().0, 0);
    assert!(released.all(&close(5, CloseKind::ReleasedLater)).is_empty());

    // The report that it was shut down was lost.
    let mut lost = tracker();
    lost.one(&event(Listen, 5, 812));
    assert_eq!(lost.all(&close(5, CloseKind::ReleasedLater)).len(), 1);

    // Its bind was counted: a scan shows it should it last.
    let mut counted = tracker();
    assert_eq!(counted.all(&close(5, CloseKind::ShutDown)).len(), 1);
    assert_eq!(counted.table.len(), (0, 0));
    assert!(counted.all(&close(5, CloseKind::ReleasedLater)).is_empty());
}
