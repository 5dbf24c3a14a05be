//! What lines look like.

mod forgery;
mod length;

use std::{net::IpAddr, rc::Rc};

use jiff::Timestamp;

use super::*;
use crate::{
    alert::{Family, Peer, SCHEMA, SessionInfo, Socket},
    decide::RuleInfo,
    model::{
        ConnectOutcome, Direction, EndedBy, EventKind, Origin, PortKey, Printable, Sessions,
        Severity, Transport,
    },
    policy::Decision,
    process::{Ancestor, ExeFlag, Process},
    registry::Registry,
    tracker::Holder,
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
fn colour_is_for_terminals_only() {
    let alert = alert(b"nc", &[]);
    assert!(written(FormatName::Text, true, &alert).contains("\x1b[1;31mcritical\x1b[0m"));
    assert!(!written(FormatName::Text, false, &alert).contains('\x1b'));
    assert!(!written(FormatName::Json, true, &alert).contains('\x1b'));
}
