//! What one program piles up takes nothing from others.

use std::sync::Arc;

use super::{
    scans::{all, found_socket, outline},
    *,
};
use crate::{
    inventory::Scope,
    tracker::{crowd::TRACKED, table::OPEN},
};

const FLOOD: u32 = 700;
const LISTENER: u32 = 812;

/// A host on which each process runs a program of its own, and [`FLOOD`] is another user's.
#[derive(Default)]
struct Programs(FakeHost);

impl Host for Programs {
    fn identify(&mut self, task: &Task, _: Timestamp) -> Rc<Process> {
        Rc::new(Process {
            uid: task.uid,
            ..program(task.pid)
        })
    }

    fn last_identified(&mut self, pid: u32) -> Option<Rc<Process>> {
        self.0.last_identified(pid)
    }

    fn complete(&mut self, process: &Rc<Process>) -> Rc<Process> {
        Rc::clone(process)
    }

    fn host_netns(&mut self) -> Option<u64> {
        self.0.host_netns()
    }

    fn netns(&mut self, cookie: u64, tid: Option<u32>) -> Option<u64> {
        self.0.netns(cookie, tid)
    }

    fn cache_netns(&mut self, cookie: u64, inode: u64) {
        self.0.cache_netns(cookie, inode);
    }

    fn thread_netns(&mut self, tid: u32) -> Option<u64> {
        self.0.thread_netns(tid)
    }

    fn device(&mut self, netns: Option<u64>, index: u32, tid: Option<u32>) -> Option<Printable> {
        self.0.device(netns, index, tid)
    }

    fn is_own_address(&mut self, address: IpAddr) -> bool {
        self.0.is_own_address(address)
    }
}

fn program(pid: u32) -> Process {
    Process {
        exe: Some(Printable::from(format!("/bin/{pid}").as_str())),
        ..process(pid)
    }
}

fn by(kind: EventKind, cookie: u64, pid: u32) -> Event {
    let mut event = event(kind, cookie, pid);
    if let Some(task) = &mut event.task {
        task.uid = if pid == LISTENER { 0 } else { 1000 };
    }
    event
}

/// A tracker that knows a listener, the oldest, and `others` sockets that `pid_of` says who bound.
fn with(others: usize, pid_of: impl Fn(u64) -> u32) -> Tracker<Programs> {
    let mut tracker = Tracker::new(Programs::default());
    tracker.one(&by(EventKind::Bind, 1, LISTENER));
    tracker.one(&by(EventKind::Listen, 1, LISTENER));
    for cookie in 2..2 + others as u64 {
        tracker.one(&by(EventKind::Bind, cookie, pid_of(cookie)));
    }
    tracker
}

/// The listener's accept and close name it.
fn assert_listener_is_known(tracker: &mut Tracker<Programs>) {
    for kind in [EventKind::Accept, EventKind::Close] {
        let event = tracker.one(&by(kind, 1, 0));
        let process = event.process.map(|process| process.pid);
        assert_eq!(
            (process, event.is_crowded),
            (Some(LISTENER), false),
            "{kind:?}"
        );
    }
}

#[test]
fn one_program_on_one_port_evicts_nobody() {
    let mut tracker = with(72_000, |_| FLOOD);
    assert_eq!(tracker.table.len().0, TRACKED + 1);
    let crowded = tracker.take_crowded();
    let [one] = crowded.as_slice() else {
        panic!("{crowded:?}");
    };
    assert_eq!(
        (one.counted, one.uid, &*one.exe),
        (72_000 - TRACKED, 1000, "/bin/700")
    );
    assert!(tracker.take_crowded().is_empty(), "reported again");
    assert_listener_is_known(&mut tracker);
    // The last one is known, too.
    let close = tracker.one(&by(EventKind::Close, 72_001, 0));
    let process = close.process.map(|process| process.pid);
    assert_eq!((process, close.is_crowded), (Some(FLOOD), true));
    // Whoever comes later is none of them.
    let newcomer = tracker.one(&by(EventKind::Bind, 80_000, 900));
    assert!(!newcomer.is_crowded);
}

#[test]
fn many_programs_of_one_user_evict_their_own() {
    // As many as there is room for, with one socket each, and more than that.
    for each in [1, 1000] {
        let others = OPEN + 5000;
        let mut tracker = with(others, |cookie| 10_000 + (cookie / each) as u32);
        assert!(tracker.table.len().0 <= OPEN, "{each}");
        assert_eq!(tracker.take_evicted(), 0, "{each}: they are counted");
        assert_listener_is_known(&mut tracker);
    }
}

#[test]
fn a_scan_that_finds_them_again_reports_nothing() {
    let mut tracker = with(TRACKED + 20, |_| FLOOD);
    let found = |cookies: std::ops::RangeInclusive<u64>| {
        let sockets = cookies.map(|cookie| match cookie {
            1 => (found_socket(EventKind::Listen, 1, &[]), LISTENER),
            _ => (found_socket(EventKind::Bind, cookie, &[]), FLOOD),
        });
        let sockets = sockets.map(|(found, pid)| FoundSocket {
            holders: vec![Rc::new(program(pid))],
            ..found
        });
        sockets.collect::<Vec<_>>()
    };
    let last = TRACKED as u64 + 21;
    let left_out = tracker.targets().left_out;
    assert_eq!(left_out.cookies.len(), 20);
    let mut out = Vec::new();
    for shown in [last, last - 20] {
        tracker.begin_scan();
        tracker.reconcile(found(1..=shown), &all(), &mut out);
        assert!(out.is_empty(), "{:?}", outline(&out[..1]));
    }
    assert!(!tracker.wants_scan(), "nothing is left to look for");
    // Two scans in a row show that one of them has gone; the port is watched.
    let absent = |absent: &[u64]| Coverage {
        absent: absent.to_vec(),
        ..all()
    };
    for (gone, closed) in [
        (&[last][..], 0),
        (&[], 0),
        (&[last], 0),
        (&[last], 1),
        (&[last], 0),
    ] {
        tracker.begin_scan();
        tracker.reconcile(found(1..=last - 20), &absent(gone), &mut out);
        assert_eq!(out.len(), closed, "{:?}", outline(&out));
        out.clear();
    }
    let elsewhere = Coverage {
        scope: Arc::new(Scope::default()),
        ..absent(&[last - 1])
    };
    for _ in 0..3 {
        tracker.begin_scan();
        tracker.reconcile(Vec::new(), &elsewhere, &mut out);
    }
    assert!(out.is_empty(), "{:?}", outline(&out));
    assert!(tracker.one(&by(EventKind::Close, last - 1, 0)).is_crowded);
}

#[test]
fn where_there_are_more_than_are_kept_a_scan_shows_the_tracked_ones_alone() {
    let mut host = Programs::default();
    host.0.cached.push(NETNS_COOKIE);
    let mut tracker = Tracker::new(host);
    tracker.table.crowds().set_room(100);
    let last = TRACKED as u64 + 150;
    for cookie in 1..=last {
        tracker.one(&by(EventKind::Bind, cookie, FLOOD));
    }
    assert_eq!(tracker.take_evicted(), 50);
    let left_out = tracker.targets().left_out;
    assert_eq!(
        (left_out.cookies.len(), left_out.tracked.len()),
        (100, TRACKED)
    );
    let mut out = Vec::new();
    for _ in 0..2 {
        tracker.scan(
            vec![found_socket(EventKind::Bind, last, &[FLOOD])],
            &mut out,
        );
    }
    let reported = out
        .iter()
        .filter(|event| event.key == Some(SocketKey::Cookie(last)));
    assert_eq!(reported.count(), 0);
    assert!(tracker.one(&by(EventKind::Close, last, 0)).is_crowded);
    // Of others on the port nothing is hidden.
    let newcomer = tracker.one(&by(EventKind::Bind, last + 1, LISTENER));
    assert!(!newcomer.is_crowded);
    // There is room again.
    for cookie in 1..last {
        tracker.one(&by(EventKind::Close, cookie, 0));
    }
    assert!(tracker.targets().left_out.is_empty());
}
