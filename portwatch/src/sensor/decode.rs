//! Turns the kernel side's records into events.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use portwatch_common::{
    FAMILY_IPV4, FAMILY_IPV6, PROTOCOL_DCCP, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP,
    PROTOCOL_UDPLITE, Report, kind, known,
};

use crate::event::{Event, EventKind, Task, Transport};

/// Relates the kernel side's clock to the host's: `CLOCK_REALTIME` minus `CLOCK_MONOTONIC`, in
/// nanoseconds. Taken anew for every batch, since the host's clock can be set.
#[derive(Clone, Copy)]
pub(super) struct Clock(i128);

impl Clock {
    pub(super) fn now() -> Self {
        let nanoseconds = |id| {
            clock_gettime(id).map_or(0, |time| {
                i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec())
            })
        };
        Self(nanoseconds(ClockId::CLOCK_REALTIME) - nanoseconds(ClockId::CLOCK_MONOTONIC))
    }

    fn time(self, monotonic_ns: u64) -> Timestamp {
        Timestamp::from_nanosecond(self.0 + i128::from(monotonic_ns)).unwrap_or_default()
    }
}

/// The event that a record stands for; None for bytes that are no record of this version.
pub(super) fn decode(bytes: &[u8], clock: Clock) -> Option<Event> {
    let report: Report = bytemuck::try_pod_read_unaligned(bytes).ok()?;
    let kind = match report.kind {
        kind::BIND => EventKind::Bind,
        kind::LISTEN => EventKind::Listen,
        kind::ACCEPT => EventKind::Accept,
        kind::CONNECT => EventKind::Connect,
        kind::CLOSE => EventKind::Close,
        _ => return None,
    };
    let transport = match report.protocol {
        PROTOCOL_TCP => Transport::Tcp,
        PROTOCOL_UDP => Transport::Udp,
        PROTOCOL_UDPLITE => Transport::UdpLite,
        PROTOCOL_SCTP => Transport::Sctp,
        PROTOCOL_DCCP => Transport::Dccp,
        _ => return None,
    };
    let address = |bytes: [u8; 16]| match report.family {
        FAMILY_IPV4 => {
            let [a, b, c, d, ..] = bytes;
            Some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)))
        }
        FAMILY_IPV6 => Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical()),
        _ => None,
    };
    let local = address(report.local_address)?;
    let peer = if report.known & known::REMOTE != 0 {
        Some(SocketAddr::new(
            address(report.remote_address)?,
            report.remote_port,
        ))
    } else {
        None
    };
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
    });
    Some(Event {
        kind,
        time: clock.time(report.time_ns),
        key: (report.cookie != 0).then_some(report.cookie),
        cookie: (report.cookie != 0 && report.known & known::ADDRESS == 0).then_some(report.cookie),
        netns_cookie: (report.known & known::NETNS != 0).then_some(report.netns_cookie),
        transport,
        // The tracepoint shows one that an SCTP socket does not keep up to date.
        address: (transport != Transport::Sctp).then_some(local),
        port: report.local_port,
        peer,
        task,
    })
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;

    fn report() -> Report {
        Report {
            time_ns: 5,
            cookie: 8193,
            netns_cookie: 1,
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
        let event = decode(bytemuck::bytes_of(&report()), Clock(1_000_000_000)).unwrap();
        assert_eq!(
            event,
            Event {
                kind: EventKind::Bind,
                time: Timestamp::from_nanosecond(1_000_000_005).unwrap(),
                key: Some(8193),
                cookie: Some(8193),
                netns_cookie: Some(1),
                transport: Transport::UdpLite,
                address: Some("127.0.0.1".parse().unwrap()),
                port: 976,
                peer: None,
                task: Some(Task {
                    pid: 812,
                    tid: 813,
                    uid: 1000,
                    gid: 100,
                    comm: b"n\xffc".to_vec()
                }),
            }
        );
    }

    #[test]
    fn what_the_kernel_side_does_not_know_is_none() {
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
        let event = decode(bytemuck::bytes_of(&accept), Clock(0)).unwrap();
        assert_eq!(
            (event.cookie, event.netns_cookie, event.task),
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
        let event = decode(bytemuck::bytes_of(&sctp), Clock(0)).unwrap();
        assert_eq!((event.key, event.cookie), (Some(8193), None));
        assert_eq!((event.transport, event.address), (Transport::Sctp, None));
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let clock = Clock(0);
        let whole = report();
        let bytes = bytemuck::bytes_of(&whole);
        assert!(decode(&bytes[1..], clock).is_none());
        for broken in [
            Report { kind: 0, ..whole },
            Report { kind: 99, ..whole },
            Report {
                protocol: 1,
                ..whole
            },
            Report { family: 1, ..whole },
        ] {
            assert!(decode(bytemuck::bytes_of(&broken), clock).is_none());
        }
    }
}
