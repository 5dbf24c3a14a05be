//! What lines look like, and what cannot be done to them from outside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
};

use jiff::Timestamp;

use super::*;
use crate::{
    aggregate::{Accepts, Group, Summary},
    alert::{Family, Peer, SCHEMA, SessionInfo, Socket, SummaryInfo, SummaryProcess},
    decide::{Decider, RuleInfo},
    model::{
        ConnectOutcome, Direction, EndedBy, EventKind, Origin, PortKey, Printable, Received,
        Session, Sessions, Severity, SocketKey, Transport,
    },
    policy::{Decision, Policy, Rule},
    process::{Ancestor, ExeFlag, Process, tests::longest},
    registry::{Basis, Registry, RegistryInfo, Status},
    tracker::{Holder, Holders, TrackedEvent, TrackedSocket},
};

fn alert(comm: &[u8], cmdline: &[&[u8]]) -> Alert {
    let registry = Registry::embedded().unwrap();
    let entry = registry.info(PortKey {
        transport: Transport::Tcp,
        port: 976,
    });
    Alert {
        schema: SCHEMA,
        time: Timestamp::from_nanosecond(1_795_383_480_123_456_789).unwrap(),
        host: Printable::from("db1"),
        event: EventKind::Accept,
        severity: Severity::Critical,
        origin: Origin::Live,
        port: Some(976),
        transport: Some(Transport::Tcp),
        family: Some(Family::Ipv4),
        address: Some(IpAddr::from([10, 0, 0, 1])),
        peer: Some(Peer {
            address: IpAddr::from([10, 0, 0, 9]),
            port: 40_112,
        }),
        registry: entry.map(Rc::new),
        socket: Socket {
            cookie: Some(8193),
            netns: Some(4_026_531_840),
            host_netns: Some(true),
            kernel: Some(false),
        },
        since: None,
        process: Some(Rc::new(Process {
            ppid: Some(1),
            started: Some(Timestamp::from_second(1_795_383_470).unwrap()),
            exe: Some(Printable::from("/usr/bin/nc")),
            exe_flags: vec![ExeFlag::Deleted],
            cmdline: Some(
                cmdline
                    .iter()
                    .map(|word| Printable::from_bytes(word))
                    .collect(),
            ),
            user: Some(Printable::from("root")),
            cgroup: Some(Printable::from("/system.slice/x.service")),
            unit: Some(Printable::from("x.service")),
            ancestors: vec![Ancestor {
                pid: 1,
                comm: Printable::from("systemd"),
                exe: None,
            }]
            .into(),
            ..Process::minimal(812, Printable::from_bytes(comm), 0, 0)
        })),
        holders: Rc::new([Holder {
            pid: 813,
            comm: Printable::from_bytes(comm),
            exe: None,
            user: Printable::from("root"),
            unit: None,
            container: None,
            unverified: Vec::new(),
            script: None,
        }]),
        holders_omitted: 0,
        rule: Some(RuleInfo {
            name: Printable::from("legacy"),
            reason: Some(Printable::from("known since 1999")),
            decision: Decision::Notice,
            dry_run: false,
        }),
        accepts: None,
        outcome: None,
        summary: None,
        lost: None,
        detail: None,
        received: None,
        direction: Some(Direction::In),
        sessions: None,
        session: None,
        device: None,
        v6only: None,
    }
}

fn written(name: FormatName, colour: bool, alert: &Alert) -> String {
    let mut line = Vec::new();
    name.format(colour).write(alert, &mut line);
    String::from_utf8(line).unwrap()
}

#[test]
fn a_json_line_has_the_contracts_keys_in_order() {
    let line = written(
        FormatName::Json,
        false,
        &alert(b"nc", &[b"nc", b"-l", b"976"]),
    );
    assert_eq!(
        line,
        concat!(
            r#"{"schema":1,"time":"2026-11-22T21:38:00.123456789Z","host":"db1","#,
            r#""event":"accept","severity":"critical","origin":"live","#,
            r#""port":976,"transport":"tcp","family":"ipv4","address":"10.0.0.1","#,
            r#""peer":{"address":"10.0.0.9","port":40112},"#,
            r#""registry":{"status":"unassigned","range":"954-988","service":null,"#,
            r#""basis":"row","as_of":"2026-08-17"},"#,
            r#""socket":{"cookie":8193,"netns":4026531840,"host_netns":true,"kernel":false},"#,
            r#""since":null,"#,
            r#""process":{"pid":812,"tid":null,"ppid":1,"comm":"nc","#,
            r#""started":"2026-11-22T21:37:50.000Z","exe":"/usr/bin/nc","#,
            r#""exe_flags":["deleted"],"exe_device":null,"exe_inode":null,"#,
            r#""script":null,"cmdline":["nc","-l","976"],"cwd":null,"#,
            r#""uid":0,"user":"root","gid":0,"loginuid":null,"capabilities":null,"#,
            r#""cgroup":"/system.slice/x.service","unit":"x.service","container":null,"#,
            r#""ancestors":[{"pid":1,"comm":"systemd","exe":null}],"ancestors_omitted":0,"#,
            r#""verified":{"exe":null,"unit":null,"container":null,"cgroup":null},"#,
            r#""unverified":["exe","cgroup","unit"]},"#,
            r#""holders":[{"pid":813,"comm":"nc","exe":null,"user":"root","unit":null,"container":null,"#,
            r#""unverified":[]}],"holders_omitted":0,"#,
            r#""rule":{"name":"legacy","reason":"known since 1999","decision":"notice","#,
            r#""dry_run":false},"accepts":null,"outcome":null,"summary":null,"#,
            r#""lost":null,"detail":null,"received":null,"direction":"in","sessions":null,"session":null,"device":null,"v6only":null}"#,
            "\n"
        )
    );
}

#[test]
fn a_text_line_reads_from_left_to_right() {
    let line = written(
        FormatName::Text,
        false,
        &alert(b"nc", &[b"nc", b"-l", b"976"]),
    );
    assert_eq!(
        line,
        "2026-11-22T21:38:00.123456Z critical accept  tcp 10.0.0.1:976 <- 10.0.0.9:40112 \
         unassigned (954-988, IANA 2026-08-17) nc[812] user=root exe=/usr/bin/nc \
         exe_flags=deleted cmdline='nc -l 976' unit=x.service unverified=exe,unit \
         ancestors='systemd[1]' holders='nc[813]' \
         rule=legacy reason='known since 1999' \
         netns=4026531840,host socket=8193\n"
    );
    let close = Alert {
        outcome: Some(ConnectOutcome::Failed),
        ..alert(b"nc", &[])
    };
    let close = written(FormatName::Text, false, &close);
    assert!(close.contains(" outcome=failed netns="), "{close}");
    let connections = Alert {
        event: EventKind::Close,
        sessions: Some(Sessions {
            ended: 3,
            open: 1,
            bytes_in: 200,
            bytes_out: 9000,
        }),
        ..alert(b"nc", &[])
    };
    let connections = written(FormatName::Text, false, &connections);
    let sums = " sessions=3 open=1 bytes_in=200 bytes_out=9000 netns=";
    assert!(connections.contains(sums), "{connections}");
    let time = Timestamp::UNIX_EPOCH;
    let ended = Alert {
        event: EventKind::Session,
        session: Some(SessionInfo {
            direction: Direction::In,
            opened: Some(time),
            duration_ms: Some(12),
            bytes_in: 1,
            bytes_out: 2,
            ended_by: Some(EndedBy::Peer),
        }),
        ..alert(b"nc", &[])
    };
    let ended = written(FormatName::Text, false, &ended);
    let session = " direction=in opened=1970-01-01T00:00:00.000000Z duration_ms=12 bytes_in=1 \
                   bytes_out=2 ended_by=peer netns=";
    assert!(ended.contains(session), "{ended}");
    // A scan does not show which way.
    let unknown = Alert {
        event: EventKind::Connect,
        origin: Origin::Snapshot,
        direction: None,
        ..alert(b"nc", &[])
    };
    let unknown = written(FormatName::Text, false, &unknown);
    let connection = "critical connection tcp 10.0.0.1:976 <-> 10.0.0.9:40112 ";
    assert!(unknown.contains(connection), "{unknown}");
    let loss = written(
        FormatName::Text,
        false,
        &Alert::loss(7, Printable::from("db1")),
    );
    assert!(loss.ends_with(" 7 events lost: ring buffer full (see --ring-size)\n"));
}

#[test]
fn a_text_line_marks_the_claims_that_it_shows() {
    let claims = [
        (false, Some("x.service"), " unverified=exe,unit "),
        (true, Some("x.service"), " unverified=unit "),
        (false, None, " unverified=exe,cgroup "),
        (true, None, " unverified=cgroup "),
    ];
    for (exe_verified, unit, expected) in claims {
        let mut alert = alert(b"nc", &[]);
        let process = Rc::make_mut(alert.process.as_mut().unwrap());
        process.exe_verified = exe_verified;
        process.unit = unit.map(Printable::from);
        let line = written(FormatName::Text, false, &alert);
        assert!(line.contains(expected), "{line}");
    }
    let mut alert = alert(b"nc", &[]);
    let process = Rc::make_mut(alert.process.as_mut().unwrap());
    (process.exe_verified, process.unit, process.cgroup) = (true, None, None);
    let line = written(FormatName::Text, false, &alert);
    assert!(!line.contains("unverified"), "{line}");
}

#[test]
fn a_name_can_forge_nothing() {
    let evil: [&[u8]; 5] = [
        b"a\n2026-11-22T21:38:00Z critical",
        b"\x1b[2J\x1b]0;title\x07",
        b"x user=nobody exe=/bin/true",
        b"\xff\xfe{\"\\",
        "\u{202e}cod.exe\u{9b}31m".as_bytes(),
    ];
    for name in evil {
        let alert = alert(name, &[name, b"-x"]);
        let text = written(FormatName::Text, false, &alert);
        assert_eq!(text.matches('\n').count(), 1, "{text:?}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        assert!(!text.contains('\u{202e}'));
        // Fields are separated by blanks that no quote encloses.
        let fields = shlex::split(text.trim_end()).unwrap();
        assert_eq!(
            fields
                .iter()
                .filter(|field| field.starts_with("user="))
                .count(),
            1,
            "{text}"
        );
        assert_eq!(
            fields
                .iter()
                .filter(|field| field.starts_with("exe="))
                .count(),
            1,
            "{text}"
        );

        let json = written(FormatName::Json, false, &alert);
        assert_eq!(json.matches('\n').count(), 1, "{json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        for text in [&value["process"]["comm"], &value["process"]["cmdline"][0]] {
            let text = text.as_str().unwrap();
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}

#[test]
fn colour_is_for_terminals_only() {
    let alert = alert(b"nc", &[]);
    assert!(written(FormatName::Text, true, &alert).contains("\x1b[1;31mcritical\x1b[0m"));
    assert!(!written(FormatName::Text, false, &alert).contains('\x1b'));
    assert!(!written(FormatName::Json, true, &alert).contains('\x1b'));
}

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

#[test]
fn each_name_of_a_list_is_quoted_on_its_own() {
    let mut alert = alert(b"x[1] < sshd", &[b"a b", b"c'd"]);
    alert.holders = Rc::new([7, 8].map(|pid| Holder {
        pid,
        comm: Printable::from("y[1] nc"),
        exe: None,
        user: Printable::from("root"),
        unit: None,
        container: None,
        unverified: Vec::new(),
        script: None,
    }));
    let process = Process {
        cmdline: alert.process.as_ref().unwrap().cmdline.clone(),
        ancestors: [("x[1] < sshd", 5), ("systemd", 1)]
            .map(|(name, pid)| Ancestor {
                pid,
                comm: Printable::from(name),
                exe: None,
            })
            .into(),
        ..Process::minimal(812, Printable::from("x"), 0, 0)
    };
    alert.process = Some(Rc::new(process));
    let line = written(FormatName::Text, false, &alert);
    let fields = shlex::split(&line).unwrap();
    for (key, names) in [
        ("ancestors=", &["x[1] < sshd[5]", "<", "systemd[1]"][..]),
        ("holders=", &["y[1] nc[7]", "y[1] nc[8]"]),
        ("cmdline=", &["a b", "c'd"]),
    ] {
        let value = fields.iter().find_map(|field| field.strip_prefix(key));
        assert_eq!(shlex::split(value.unwrap()).unwrap(), names, "{line}");
    }
}

#[test]
fn a_name_without_a_key_looks_like_no_field() {
    let name = "user=root";
    let mut alert = alert(name.as_bytes(), &[]);
    let process = |pid| SummaryProcess {
        pid,
        comm: Printable::from(name),
        exe: None,
        events: 9,
    };
    alert.summary = Some(SummaryInfo {
        since: alert.time,
        counts: BTreeMap::new(),
        ports: BTreeMap::new(),
        held: BTreeMap::new(),
        processes: vec![process(7), process(8)],
        bytes_in: None,
        bytes_out: None,
    });
    let line = written(FormatName::Text, false, &alert);
    let fields = shlex::split(&line).unwrap();
    let named: Vec<&str> = fields
        .iter()
        .filter_map(|field| field.strip_prefix("user"))
        .collect();
    let shown = [
        "\\u{3d}root[7]=9",
        "\\u{3d}root[8]=9;",
        "\\u{3d}root[812]",
        "=root",
    ];
    assert_eq!(named, shown, "{line}");
}

#[test]
fn a_message_looks_like_no_field() {
    let host = || Printable::from("db1");
    let detail = "cgroup /a user=root exe=/bin/true is missing";
    let line = written(
        FormatName::Text,
        false,
        &Alert::health(Severity::Warning, detail, host()),
    );
    let fields = shlex::split(&line).unwrap();
    assert!(fields.contains(&detail.to_owned()), "{fields:?}");
}
