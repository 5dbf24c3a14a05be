//! Turns the BPF programs' records into events.
#![forbid(unsafe_code)]

use std::{net::SocketAddr, rc::Rc};

use bytemuck::Zeroable as _;
use jiff::Timestamp;
use portwatch_common::{
    FAMILY_IPV6, RepeatKey, Report, SessionEnd, connection, kind, known, place,
};

use super::{
    exec_info::exec_info,
    sessions::{session_end, session_sum},
};
use crate::{
    linux::{address, clock},
    model::{CloseKind, ConnectOutcome, Event, EventKind, ExecInfo, SocketKey, Task, Transport},
    util::Bounded,
};

/// Relates the BPF programs' clock to the host's: `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`, in
/// nanoseconds. Taken anew for every batch, since the host's clock can be set.
#[derive(Clone, Copy)]
pub(in crate::sensor) struct Clock(pub(super) i128);

impl Clock {
    pub(in crate::sensor) fn now() -> Self {
        Self(i128::from(clock::realtime_ns()) - i128::from(clock::monotonic_ns()))
    }

    pub(super) fn time(self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(self.0 + i128::from(monotonic_ns)).unwrap_or_default()
    }
}

/// Exec infos that are kept: twice as many as `REPORTED_EXECS` of the BPF programs.
const EXEC_INFOS: usize = 2048;

/// Joins the exec infos of processes with the reports that come after them.
pub(in crate::sensor) struct Decoder {
    /// By process id, with the time at which it started.
    exec_infos: Bounded<u32, (u64, Rc<ExecInfo>)>,
}

impl Decoder {
    pub(in crate::sensor) fn new() -> Self {
        Self {
            exec_infos: Bounded::new(EXEC_INFOS),
        }
    }

    /// The event that a record stands for; None for an exec info, which the next one carries, and for
    /// bytes that are no record of this version.
    pub(in crate::sensor) fn decode(&mut self, bytes: &[u8], clock: Clock) -> Option<Event> {
        if bytes.len() == size_of::<portwatch_common::ExecInfo>() {
            let wire = bytemuck::try_pod_read_unaligned(bytes).ok()?;
            self.keep(&wire);
            return None;
        }
        if bytes.len() == size_of::<SessionEnd>() {
            return session_end(&bytemuck::try_pod_read_unaligned(bytes).ok()?, clock);
        }
        let report: Report = bytemuck::try_pod_read_unaligned(bytes).ok()?;
        let exec_info = (report.known & known::START != 0)
            .then(|| self.exec_infos.get(&report.tgid))
            .flatten()
            .filter(|(start_ns, _)| *start_ns == report.start_ns)
            .map(|(_, exec_info)| Rc::clone(exec_info));
        event(&report, exec_info, clock)
    }

    fn keep(&mut self, wire: &portwatch_common::ExecInfo) {
        let exec_info = Rc::new(exec_info(wire));
        self.exec_infos.put(wire.tgid, (wire.start_ns, exec_info));
    }
}

/// The event that stands for each of what was counted, `count` times, and how often it is to be taken.
pub(in crate::sensor) fn repeat(
    key: &RepeatKey,
    count: u64,
    time: Timestamp,
) -> Option<(Event, u64)> {
    if let Some(sum) = session_sum(key, count, time) {
        return Some((sum, 1));
    }
    let report = Report {
        cookie: key.cookie,
        netns_cookie: key.netns_cookie,
        local_address: bytemuck::cast(key.local_address),
        remote_address: bytemuck::cast(key.remote_address),
        local_port: key.local_port,
        kind: key.kind,
        family: key.family,
        protocol: key.protocol,
        known: key.known,
        ..Report::zeroed()
    };
    let binder = (key.binder != 0).then_some(key.binder);
    let event = event(&report, None, Clock(0))?;
    let event = Event {
        time,
        binder,
        ..event
    };
    Some((event, count))
}

fn event(report: &Report, exec_info: Option<Rc<ExecInfo>>, clock: Clock) -> Option<Event> {
    let kind = match report.kind {
        kind::BIND => EventKind::Bind,
        kind::LISTEN => EventKind::Listen,
        kind::ACCEPT => EventKind::Accept,
        kind::CONNECT => EventKind::Connect,
        kind::CLOSE | kind::RELEASE => EventKind::Close,
        kind::DENY => EventKind::Deny,
        kind::RECEIVE => EventKind::Receive,
        _ => return None,
    };
    let transport = Transport::from_protocol(report.protocol)?;
    let address = |bytes| address::ip(report.family, bytes);
    let local = address(report.local_address)?;
    let peer = if report.known & known::REMOTE != 0 {
        Some(SocketAddr::new(
            address(report.remote_address)?,
            report.remote_port,
        ))
    } else {
        None
    };
    let place = place(report);
    let is_kernel_socket = report.known & known::KERNEL != 0;
    let task = (report.known & known::TASK != 0).then(|| Task {
        pid: report.tgid,
        tid: report.tid,
        uid: report.uid,
        gid: report.gid,
        comm: report
            .comm
            .iter()
            .copied()
            .take_while(|byte| *byte != 0)
            .collect(),
        cgroup_id: Some(report.cgroup_id),
        start_ns: (report.known & known::START != 0).then(|| clock::boottime_here(report.start_ns)),
        exec_info,
    });
    Some(Event {
        kind,
        time: clock.time(report.time_ns),
        key: key(report),
        netns_cookie: (report.known & known::NETNS != 0).then_some(report.netns_cookie),
        netns: (report.netns_inode != 0).then_some(report.netns_inode.into()),
        transport,
        // The tracepoint shows one that an SCTP socket does not keep up to date.
        address: (transport != Transport::Sctp).then_some(local),
        port: report.local_port,
        peer,
        task,
        // The BPF programs know where they have the offsets, and only at a bind.
        is_kernel_socket: if is_kernel_socket {
            Some(true)
        } else {
            (report.known & known::START != 0).then_some(false)
        },
        outcome: match report.connection {
            connection::STARTED => Some(ConnectOutcome::Failed),
            connection::ESTABLISHED => Some(ConnectOutcome::Established),
            _ => None,
        },
        accepted: is_accepted(report).then_some(report.cookie),
        binder: (report.known & known::COUNTED != 0 && report.tgid != 0).then_some(report.tgid),
        close: match report.kind {
            kind::RELEASE => CloseKind::ReleasedLater,
            kind::CLOSE if report.known & known::SHUT_DOWN != 0 => CloseKind::ShutDown,
            _ => CloseKind::Released,
        },
        is_from_host: report.kind == kind::RECEIVE && report.known & known::FROM_HOST != 0,
        direction: None,
        session: None,
        interface: place.map(|(interface, _)| interface),
        device: None,
        v6only: place
            .filter(|_| report.family == FAMILY_IPV6 && report.local_address == [0; 16])
            .map(|(_, bits)| bits & place::V6ONLY != 0),
    })
}

/// The index of the device that a socket is bound to, and its bits, where they are set.
fn place(report: &Report) -> Option<(u32, u32)> {
    let [interface, bits, ..]: [u32; 4] = bytemuck::cast(report.remote_address);
    let takes_port = matches!(report.kind, kind::BIND | kind::LISTEN | kind::DENY);
    let is_set = takes_port && report.known & known::REMOTE == 0 && bits & place::KNOWN != 0;
    is_set.then_some((interface, bits))
}

/// Whether the cookie is an accepted socket's. On a close, the bit stands for something else.
const fn is_accepted(report: &Report) -> bool {
    report.kind == kind::ACCEPT && report.known & known::ACCEPTED != 0
}

fn key(report: &Report) -> Option<SocketKey> {
    if is_accepted(report) {
        return None;
    }
    match (report.cookie, report.known) {
        (0, _) => None,
        (address, known) if known & known::ADDRESS != 0 => Some(SocketKey::Address(address)),
        (cookie, _) => Some(SocketKey::Cookie(cookie)),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::Ipv6Addr;

    use portwatch_common::{
        FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDPLITE,
    };

    use super::*;

    fn decode(report: &Report, clock: Clock) -> Option<Event> {
        Decoder::new().decode(bytemuck::bytes_of(report), clock)
    }

    /// A bind, by process 812.
    pub(in crate::sensor::ring) fn report() -> Report {
        Report {
            time_ns: 5,
            cookie: 8193,
            netns_cookie: 1,
            netns_inode: 5,
            cgroup_id: 7,
            tgid: 812,
            tid: 813,
            uid: 1000,
            gid: 100,
            local_address: [127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            local_port: 976,
            kind: kind::BIND,
            family: FAMILY_IPV4,
            protocol: PROTOCOL_UDPLITE,
            known: known::TASK | known::NETNS,
            comm: *b"n\xffc\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ..Report::zeroed()
        }
    }

    #[test]
    fn a_record_becomes_an_event() {
        let event = decode(&report(), Clock(1_000_000_000)).unwrap();
        assert_eq!(
            event,
            Event {
                kind: EventKind::Bind,
                time: Timestamp::from_nanosecond(1_000_000_005).unwrap(),
                key: Some(SocketKey::Cookie(8193)),
                netns_cookie: Some(1),
                netns: Some(5),
                transport: Transport::UdpLite,
                address: Some("127.0.0.1".parse().unwrap()),
                port: 976,
                peer: None,
                task: Some(Task {
                    pid: 812,
                    tid: 813,
                    uid: 1000,
                    gid: 100,
                    comm: b"n\xffc".to_vec(),
                    cgroup_id: Some(7),
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
        );
    }

    #[test]
    fn what_the_programs_do_not_know_is_none() {
        let accept = Report {
            kind: kind::ACCEPT,
            cookie: 0,
            protocol: PROTOCOL_TCP,
            family: FAMILY_IPV6,
            local_address: "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets(),
            remote_address: "fe80::1".parse::<Ipv6Addr>().unwrap().octets(),
            remote_port: 40_000,
            known: known::REMOTE,
            ..report()
        };
        let event = decode(&accept, Clock(0)).unwrap();
        assert_eq!(
            (event.key, event.netns_cookie, event.task),
            (None, None, None)
        );
        assert_eq!(event.address.unwrap().to_string(), "10.0.0.1");
        assert_eq!(event.peer.unwrap().to_string(), "[fe80::1]:40000");
    }

    #[test]
    fn an_address_is_a_key_and_no_cookie() {
        let sctp = Report {
            protocol: PROTOCOL_SCTP,
            known: known::ADDRESS,
            ..report()
        };
        let event = decode(&sctp, Clock(0)).unwrap();
        assert_eq!(event.key, Some(SocketKey::Address(8193)));
        assert_eq!((event.transport, event.address), (Transport::Sctp, None));
    }

    #[test]
    fn what_is_no_record_is_rejected() {
        let clock = Clock(0);
        let whole = report();
        let bytes = bytemuck::bytes_of(&whole);
        assert!(Decoder::new().decode(&bytes[1..], clock).is_none());
        for broken in [
            Report { kind: 0, ..whole },
            Report { kind: 99, ..whole },
            Report {
                protocol: 1,
                ..whole
            },
            Report { family: 1, ..whole },
        ] {
            assert!(decode(&broken, clock).is_none());
        }
    }

    #[test]
    fn where_a_socket_can_be_reached_is_in_its_bind_and_listen() {
        let place = |words: [u32; 2]| bytemuck::cast([words[0], words[1], 0, 0]);
        let wildcard = Report {
            family: FAMILY_IPV6,
            local_address: [0; 16],
            ..report()
        };
        for (words, wire, expected) in [
            ([3, place::KNOWN], report(), (Some(3), None)),
            ([0, place::KNOWN], wildcard, (Some(0), Some(false))),
            (
                [0, place::KNOWN | place::V6ONLY],
                wildcard,
                (Some(0), Some(true)),
            ),
            ([0, 0], wildcard, (None, None)),
        ] {
            let report = Report {
                remote_address: place(words),
                ..wire
            };
            let event = decode(&report, Clock(0)).unwrap();
            assert_eq!((event.interface, event.v6only), expected);
        }
    }
}
