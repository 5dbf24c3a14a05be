mod claims;

use std::{net::IpAddr, str::FromStr};

use super::*;
use crate::model::EventKind;

/// The condition with that key and those values, which are separated by commas.
fn condition(key: &str, values: &str) -> Condition {
    fn list<T: FromStr<Err = String>>(values: &str) -> Vec<T> {
        let values = values.split(", ").map(str::parse);
        values.collect::<Result<_, _>>().unwrap()
    }
    match key {
        "port" => Condition::Port(list(values)),
        "transport" => Condition::Transport(list(values)),
        "status" => Condition::Status(list(values)),
        "event" => Condition::Event(list(values)),
        "address" => Condition::Address(list(values)),
        "peer" => Condition::Peer(list(values)),
        "exe" => Condition::Exe(list(values)),
        "user" => Condition::User(list(values)),
        "unit" => Condition::Unit(list(values)),
        "container" => Condition::Container(values.parse().unwrap()),
        "cgroup" => Condition::Cgroup(list(values)),
        "netns" => Condition::Netns(list(values)),
        "device" => Condition::Device(list(values)),
        _ => panic!("{key}"),
    }
}

type Conditions<'a> = &'a [(&'a str, &'a str)];

/// The rules with these decisions and conditions; each one's name is its index.
fn policy(rules: &[(Decision, Conditions<'_>)]) -> Policy {
    let rules = (0..)
        .zip(rules)
        .map(|(index, (decision, conditions))| Rule {
            name: i32::to_string(&index),
            reason: None,
            decision: *decision,
            unverified: false,
            sessions: false,
            conditions: conditions
                .iter()
                .map(|(key, values)| condition(key, values))
                .collect(),
        });
    Policy::new(rules.collect()).unwrap()
}

fn watched(policy: &Policy, scope: DefaultScope) -> Vec<(u16, Transport)> {
    let registry = Registry::embedded().unwrap();
    policy
        .watched(&registry, scope, &Transport::ALL[..3])
        .collect()
}

/// A listen on 976/tcp by root's nc on the host.
const FACTS: Facts<'_> = Facts {
    event: Some(EventKind::Listen),
    port: Some(976),
    transport: Some(Transport::Tcp),
    status: Some(Status::Unassigned),
    address: Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
    peer: None,
    exe: Some("/usr/bin/nc.openbsd"),
    uid: Some(0),
    unit: Some("x.service"),
    container: Some(false),
    cgroup: Some("/system.slice/x.service"),
    netns: Some(4_026_531_840),
    host_netns: Some(true),
    device: Some("eth0"),
    claims: Claims {
        exe: Some("/usr/bin/nc.openbsd"),
        unit: Some("x.service"),
        container: Some(false),
        cgroup: Some("/system.slice/x.service"),
    },
};

#[test]
fn ports_that_are_not_assigned_are_watched_and_all_adds_the_rest() {
    let not_assigned = watched(&Policy::default(), DefaultScope::NotAssigned);
    for (pair, expected) in [
        ((976, Transport::Tcp), true),
        ((976, Transport::UdpLite), true),
        ((22, Transport::Tcp), false),
        ((143, Transport::Tcp), false),
        ((143, Transport::Udp), true),
        ((716, Transport::Tcp), true),
        ((585, Transport::Tcp), true),
        ((0, Transport::Tcp), false),
    ] {
        assert_eq!(not_assigned.contains(&pair), expected, "{pair:?}");
    }
    let all = watched(&Policy::default(), DefaultScope::All);
    assert_eq!(all.len(), 3 * 1023);
}

#[test]
fn severity_follows_transport_and_event() {
    use EventKind::{Accept, Bind, Close, Connect, Deny, Listen};
    use Severity::{Critical, Notice, Warning};

    for (event, transport, first, expected) in [
        (Bind, Transport::Tcp, false, Notice),
        (Bind, Transport::Udp, false, Warning),
        (Listen, Transport::Tcp, false, Warning),
        (Accept, Transport::Tcp, true, Critical),
        (Accept, Transport::Tcp, false, Warning),
        (Connect, Transport::Tcp, false, Notice),
        (Close, Transport::Udp, false, Notice),
        (Deny, Transport::Tcp, false, Warning),
    ] {
        assert_eq!(
            default_severity(event, transport, first),
            expected,
            "{event:?}"
        );
    }
}

#[test]
fn each_condition_matches_its_values_only() {
    let other = Facts {
        port: Some(900),
        transport: Some(Transport::Udp),
        status: Some(Status::Reserved),
        event: Some(EventKind::Accept),
        address: Some(IpAddr::from([0, 0, 0, 0])),
        peer: Some(IpAddr::from([10, 1, 2, 3])),
        exe: Some("/opt/app/bin/server"),
        uid: Some(1000),
        unit: Some("y.service"),
        container: Some(true),
        cgroup: Some("/docker/1234"),
        netns: Some(5),
        host_netns: Some(false),
        device: Some("vrf-red"),
        claims: Claims::default(),
    };
    // (condition, whether it matches FACTS, whether it matches the other)
    let cases: &[(Conditions<'_>, bool, bool)] = &[
        (&[], true, true),
        (&[("port", "976")], true, false),
        (&[("port", "900, 970-980")], true, true),
        (&[("transport", "udp")], false, true),
        (&[("status", "unassigned")], true, false),
        (&[("event", "listen, bind")], true, false),
        (&[("device", "eth*, lo")], true, false),
        (&[("address", "loopback")], true, false),
        (&[("address", "any")], false, true),
        (&[("address", "127.0.0.0/8")], true, false),
        (&[("address", "private")], false, false),
        (&[("peer", "10.0.0.0/8")], false, true),
        (&[("exe", "/usr/bin/nc.openbsd")], true, false),
        (&[("exe", "/usr/bin/*")], true, false),
        (&[("exe", "/opt/*")], false, false),
        (&[("exe", "/opt/**")], false, true),
        (&[("user", "root")], true, false),
        (&[("user", "1, 1000")], false, true),
        (&[("unit", "[xy].service")], true, true),
        (&[("container", "true")], false, true),
        (&[("container", "false")], true, false),
        (&[("cgroup", "/system.slice")], true, false),
        (&[("cgroup", "/docker/*")], false, true),
        (&[("netns", "host")], true, false),
        (&[("netns", "other")], false, true),
        (&[("netns", "5")], false, true),
        (&[("port", "976"), ("user", "1000")], false, false),
    ];
    for (conditions, first, second) in cases {
        let policy = policy(&[(Decision::Critical, conditions)]);
        for (facts, expected) in [(&FACTS, *first), (&other, *second)] {
            let verdict = policy.decide(facts, Severity::Notice);
            assert_eq!(verdict.rule.is_some(), expected, "{conditions:?}");
            let severity = if expected {
                Severity::Critical
            } else {
                Severity::Notice
            };
            assert_eq!(verdict.severity, Some(severity));
        }
    }
    for (key, values) in cases.iter().flat_map(|(conditions, ..)| *conditions) {
        assert_eq!(condition(key, values).key(), *key);
    }
    // An unknown fact matches no condition on it.
    let unknown = Facts {
        exe: None,
        container: None,
        ..FACTS
    };
    for condition in [("exe", "**"), ("container", "false")] {
        let policy = policy(&[(Decision::Ignore, &[condition])]);
        assert!(policy.decide(&unknown, Severity::Notice).rule.is_none());
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(&[
        (
            Decision::Ignore,
            &[("port", "22"), ("exe", "/usr/sbin/sshd")],
        ),
        (Decision::Critical, &[("port", "22"), ("transport", "tcp")]),
        (Decision::Notice, &[]),
    ]);
    let ssh = |exe| Facts {
        port: Some(22),
        status: Some(Status::Assigned),
        exe: Some(exe),
        ..FACTS
    };
    let decided = |facts: &Facts<'_>| {
        let verdict = policy.decide(facts, Severity::Warning);
        (verdict.severity, verdict.rule.map(|rule| rule.name.clone()))
    };
    assert_eq!(decided(&ssh("/usr/sbin/sshd")), (None, Some("0".into())));
    assert_eq!(
        decided(&ssh("/tmp/x")),
        (Some(Severity::Critical), Some("1".into()))
    );
    assert_eq!(decided(&FACTS), (Some(Severity::Notice), Some("2".into())));
    // A rule without port and status does not cover assigned ports.
    let http = Facts {
        port: Some(80),
        status: Some(Status::Assigned),
        ..FACTS
    };
    assert_eq!(decided(&http), (Some(Severity::Warning), None));
}

#[test]
fn a_port_is_watched_when_a_rule_can_alert_on_it() {
    use Decision::{Critical, Ignore, Notice, Warning};

    type Case<'a> = (&'a [(Decision, Conditions<'a>)], u16, bool);
    let cases: &[Case<'_>] = &[
        (&[(Ignore, &[("port", "976")])], 976, false),
        (
            &[(Ignore, &[("port", "976"), ("transport", "udp")])],
            976,
            true,
        ),
        (&[(Ignore, &[("port", "976"), ("user", "0")])], 976, true),
        (&[(Notice, &[("port", "22")])], 22, true),
        (
            &[
                (Ignore, &[("port", "22"), ("user", "0")]),
                (Warning, &[("port", "22"), ("transport", "tcp")]),
            ],
            22,
            true,
        ),
        (
            &[
                (Ignore, &[("port", "22")]),
                (Warning, &[("port", "22"), ("transport", "tcp")]),
            ],
            22,
            false,
        ),
        (&[(Critical, &[("container", "true")])], 22, false),
        (
            &[(Critical, &[("container", "true"), ("status", "assigned")])],
            22,
            true,
        ),
    ];
    for (rules, port, expected) in cases {
        let watched = watched(&policy(rules), DefaultScope::NotAssigned);
        let is_watched = watched.contains(&(*port, Transport::Tcp));
        assert_eq!(is_watched, *expected, "{rules:?}");
    }
}

#[test]
fn deny_rules_are_the_rules_up_to_the_last_that_denies() {
    let registry = Registry::embedded().unwrap();
    let policy = policy(&[
        (Decision::Notice, &[("port", "900-999"), ("user", "0, 33")]),
        (
            Decision::Ignore,
            &[("port", "950"), ("cgroup", "/system.slice/x.service")],
        ),
        (Decision::Ignore, &[("port", "5"), ("exe", "/x")]),
        (
            Decision::Deny,
            &[("port", "900-1023"), ("transport", "tcp")],
        ),
        (Decision::Critical, &[("exe", "/x")]),
    ]);
    let deny = policy.deny_rules(&registry);
    let outline: Vec<_> = deny
        .rules
        .iter()
        .map(|rule| (rule.deny, rule.uid, rule.cgroup.as_deref()))
        .collect();
    assert_eq!(
        outline,
        [
            (false, Some(0), None),
            (false, Some(33), None),
            (false, None, Some("/system.slice/x.service")),
            (true, None, None)
        ]
    );
    let bits = |port, transport| {
        let found = deny
            .ports
            .iter()
            .find(|(one, its, _)| (*one, *its) == (port, transport));
        found.map_or(0, |(_, _, bits)| *bits)
    };
    assert_eq!(bits(950, Transport::Tcp), 0b1111);
    assert_eq!(bits(950, Transport::Udp), 0b0111);
    assert_eq!(bits(1000, Transport::Tcp), 0b1000);
    assert_eq!(bits(5, Transport::Tcp), 0);
    assert_eq!(
        Policy::default().deny_rules(&registry),
        crate::model::DenyRules::default()
    );
}

#[test]
fn only_rules_about_binds_keep_the_kernel_from_denying() {
    let registry = Registry::embedded().unwrap();
    for (event, is_about_binds) in [
        ("bind", true),
        ("bind, deny", true),
        ("deny", false),
        ("deny, close", false),
        ("listen", false),
    ] {
        for decision in [Decision::Ignore, Decision::Notice, Decision::Critical] {
            let policy = policy(&[
                (decision, &[("port", "976"), ("event", event)]),
                (Decision::Deny, &[("port", "976")]),
            ]);
            let rules = policy.deny_rules(&registry).rules;
            let deny: Vec<bool> = rules.iter().map(|rule| rule.deny).collect();
            let expected: &[bool] = if is_about_binds {
                &[false, true]
            } else {
                &[true]
            };
            assert_eq!(deny, expected, "{decision:?} {event}");
        }
    }
    // Whatever it depends on: the kernel need not know it.
    policy(&[
        (
            Decision::Ignore,
            &[("event", "deny"), ("exe", "/usr/bin/x")],
        ),
        (Decision::Deny, &[("port", "976")]),
    ]);
}

#[test]
fn more_pairs_of_user_and_cgroup_than_the_kernel_holds_are_rejected() {
    for (users, is_accepted) in [(64, true), (65, false)] {
        let uids: Vec<String> = (0..users).map(|uid: u32| uid.to_string()).collect();
        let rule = Rule {
            name: "x".into(),
            reason: None,
            decision: Decision::Deny,
            unverified: false,
            sessions: false,
            conditions: vec![condition("user", &uids.join(", "))],
        };
        let result = Policy::new(vec![rule]);
        assert_eq!(result.is_ok(), is_accepted, "{users}: {result:?}");
    }
}

/// The rules read one by one for one port.
fn is_watched(policy: &Policy, port: u16, transport: Transport, status: Status) -> bool {
    for rule in &policy.rules {
        let is_ignored = rule.decision == Decision::Ignore;
        if rule.covers(port, transport, status) && (!is_ignored || rule.is_about_ports_only()) {
            return !is_ignored;
        }
    }
    status != Status::Assigned
}

#[test]
fn the_watched_ports_are_those_of_a_plain_reading_of_the_rules() {
    const PORTS: [Conditions<'_>; 4] = [
        &[],
        &[("port", "1-63, 64, 900-1023")],
        &[("port", "80, 300-700")],
        &[("port", "976")],
    ];
    const STATUSES: [Conditions<'_>; 3] = [
        &[],
        &[("status", "assigned, reserved")],
        &[("status", "unassigned")],
    ];
    const OTHERS: [Conditions<'_>; 4] = [
        &[],
        &[("transport", "udp, sctp")],
        &[("user", "0")],
        &[("transport", "tcp"), ("container", "true")],
    ];
    let registry = Registry::embedded().unwrap();
    let mut random = 1_u32;
    let mut pick = |count: usize| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 16) as usize % count
    };
    for _ in 0..200 {
        let rules: Vec<_> = (0..pick(6))
            .map(|_| {
                let conditions = [PORTS[pick(4)], STATUSES[pick(3)], OTHERS[pick(4)]].concat();
                ([Decision::Ignore, Decision::Notice][pick(2)], conditions)
            })
            .collect();
        let rules: Vec<_> = rules.iter().map(|(one, all)| (*one, &**all)).collect();
        let policy = policy(&rules);
        let expected: Vec<_> = system_ports()
            .skip(1)
            .flat_map(|port| Transport::ALL.map(|transport| (port, transport)))
            .filter(|(port, transport)| {
                let status = registry.entry(*port, *transport).unwrap().status;
                is_watched(&policy, *port, *transport, status)
            })
            .collect();
        let found = policy.watched(&registry, DefaultScope::NotAssigned, &Transport::ALL);
        assert_eq!(found.collect::<Vec<_>>(), expected, "{rules:?}");
    }
}
