//! How long a line can be.
#![forbid(unsafe_code)]

use std::{collections::BTreeSet, net::IpAddr, rc::Rc};

use jiff::Timestamp;

use super::written;
use crate::{
    aggregate::{Accepts, Group, Summary},
    alert::Alert,
    decide::Decider,
    model::{
        ConnectOutcome, Direction, EndedBy, EventKind, Origin, PortKey, Printable, Received,
        Session, Severity, SocketKey, Transport,
    },
    output::{FormatName, MAX_LINE},
    policy::{Decision, Policy, Rule},
    process::tests::longest,
    registry::{Basis, Registry, RegistryInfo, Status},
    tracker::{Holder, Holders, TrackedEvent, TrackedSocket},
};

#[test]
fn no_alert_makes_a_longer_line_than_the_limit() {
    let texts: [&[u8]; 12] = [
        b"a", b"\x1b", b"\xff", b"\"", b"\\", b"'", b"^", b"'!", b"\\!", b"^'\"$", b" ", b"",
    ];
    for text in texts
        .into_iter()
        .chain(["\u{ad}".as_bytes(), "日".as_bytes()])
    {
        for line in longest_lines(text) {
            assert!(line.len() <= MAX_LINE, "{text:?}: {}", line.len());
            let shown = line.matches("...(+").count();
            assert!(shown > 0 || text.is_empty(), "{line}");
        }
    }
}

/// The longest lines, by what can be in one at once, in both formats.
fn longest_lines(text: &[u8]) -> Vec<String> {
    let long = text.repeat(5000);
    let process = Rc::new(longest(text));
    let port_key = |transport, port| PortKey { transport, port };
    let holders = std::iter::repeat_n(Holder::from(&*process), 32);
    let registry = Rc::new(RegistryInfo {
        status: Status::Deregistered,
        range: Some("1000-1000".into()),
        service: Some(Printable::from_bytes(&long).shortened(128)),
        basis: Basis::OtherTransport,
        as_of: "2026-08-17".parse().ok(),
    });
    let v6 = IpAddr::from([0xffff_u16; 8]);
    let event = TrackedEvent {
        kind: EventKind::Connect,
        time: Timestamp::MAX,
        origin: Origin::Snapshot,
        key: Some(SocketKey::Cookie(u64::MAX)),
        port_key: port_key(Transport::UdpLite, 1000),
        address: Some(v6),
        peer: Some((v6, 65_535).into()),
        netns: Some(u64::MAX),
        is_host_netns: Some(true),
        is_kernel_socket: Some(false),
        since: Some(Timestamp::MAX),
        process: Some(Rc::clone(&process)),
        holders: Holders::new(holders, 1000),
        is_first_remote: false,
        outcome: Some(ConnectOutcome::Established),
        lasted: false,
        received: Some(Received {
            datagrams: u64::MAX,
            bytes: u64::MAX,
            peers: 2048,
            others: u64::MAX,
        }),
        direction: None,
        session: Some(Session {
            direction: Direction::Out,
            opened: Some(Timestamp::MAX),
            ended: 1,
            is_sum: false,
            bytes_in: u64::MAX,
            bytes_out: u64::MAX,
            ended_by: Some(EndedBy::Timeout),
        }),
        device: Some(Printable::from("fifteen_bytes_x")),
        v6only: Some(false),
        is_crowded: false,
    };
    let rule = Rule {
        name: String::from_utf8_lossy(&long).into_owned(),
        reason: Some(String::from_utf8_lossy(&long).into_owned()),
        decision: Decision::Critical,
        conditions: Vec::new(),
        unverified: false,
        sessions: false,
    };
    let policy = Policy::new(vec![rule]).unwrap();
    let mut decider = Decider::new(Registry::embedded().unwrap(), policy, true);
    let mut decided = decider.decide(event).unwrap();
    decided.registry = Some(Rc::clone(&registry));
    decided.detail = Some("not denied: bound before the monitor started");
    let host = Printable::limited(&long, 256);
    let accepts = Accepts {
        count: u64::MAX,
        peers: u64::MAX,
    };
    let ports: BTreeSet<PortKey> = Transport::ALL
        .into_iter()
        .flat_map(|transport| {
            (1..1023)
                .step_by(2)
                .map(move |port| port_key(transport, port))
        })
        .collect();
    let open: Vec<TrackedSocket> = ports
        .iter()
        .map(|port_key| {
            let mut socket = TrackedSocket::new(*port_key);
            socket.process = Some(Rc::clone(&process));
            socket
        })
        .collect();
    let kinds = EventKind::OF_SOCKETS.into_iter();
    let summary = Summary {
        group: Group::Program {
            netns: None,
            uid: process.uid,
            exe: process.exe.clone().unwrap(),
            script: process.script.clone(),
            cgroup: process.cgroup.clone(),
        },
        since: Timestamp::MAX,
        severity: Severity::Critical,
        counts: kinds.map(|kind| (kind.name(), u64::MAX)).collect(),
        ports,
        registry: Some(registry),
        bytes: (0, 0),
        processes: vec![(Rc::clone(&process), u64::MAX); 3],
    };
    let detail = String::from_utf8_lossy(&long);
    let alerts = [
        Alert::of_event(decided, Some(accepts), host.clone()),
        Alert::of_summary(summary, open.iter(), host.clone()),
        Alert::health(Severity::Critical, &detail, host),
    ];
    let formats = [FormatName::Text, FormatName::Json];
    formats
        .into_iter()
        .flat_map(|format| alerts.each_ref().map(|alert| written(format, true, alert)))
        .collect()
}
