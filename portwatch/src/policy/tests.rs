use std::net::IpAddr;

use super::*;
use crate::model::EventKind;

fn policy(text: &str) -> Policy {
    Policy::parse(text).unwrap_or_else(|(_, problem)| panic!("{problem}: {text}"))
}

fn watched(policy: &Policy) -> Vec<(u16, Transport)> {
    let registry = Registry::embedded().unwrap();
    policy.watched(&registry, &Transport::ALL[..3]).collect()
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
};

#[test]
fn what_is_not_assigned_is_watched_and_all_adds_the_rest() {
    let quiet = watched(&Policy::default());
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
        assert_eq!(quiet.contains(&pair), expected, "{pair:?}");
    }
    let all = Policy {
        all: true,
        ..Policy::default()
    };
    assert_eq!(watched(&all).len(), 3 * 1023);
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
        assert_eq!(severity(event, transport, first), expected, "{event:?}");
    }
}

#[test]
fn each_condition_matches_what_it_says() {
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
    };
    // (condition, whether it matches FACTS, whether it matches the other)
    let cases = [
        ("", true, true),
        ("port = 976", true, false),
        ("port = [900, \"970-980\"]", true, true),
        ("transport = \"udp\"", false, true),
        ("status = \"unassigned\"", true, false),
        ("event = [\"listen\", \"bind\"]", true, false),
        ("address = \"loopback\"", true, false),
        ("address = \"any\"", false, true),
        ("address = \"127.0.0.0/8\"", true, false),
        ("address = \"private\"", false, false),
        ("peer = \"10.0.0.0/8\"", false, true),
        ("exe = \"/usr/bin/nc.openbsd\"", true, false),
        ("exe = \"/usr/bin/*\"", true, false),
        ("exe = \"/opt/*\"", false, false),
        ("exe = \"/opt/**\"", false, true),
        ("user = \"root\"", true, false),
        ("user = [1, 1000]", false, true),
        ("unit = \"[xy].service\"", true, true),
        ("container = true", false, true),
        ("cgroup = \"/system.slice\"", true, false),
        ("cgroup = \"/docker/*\"", false, true),
        ("netns = \"host\"", true, false),
        ("netns = \"other\"", false, true),
        ("netns = 5", false, true),
        ("port = 976\nuser = 1000", false, false),
    ];
    for (condition, first, second) in cases {
        let text = format!("[[rule]]\nname = \"x\"\ndecide = \"critical\"\n{condition}\n");
        let policy = policy(&text);
        for (facts, expected) in [(&FACTS, first), (&other, second)] {
            let verdict = policy.decide(facts, Severity::Notice);
            assert_eq!(verdict.rule.is_some(), expected, "{condition}");
            let severity = if expected {
                Severity::Critical
            } else {
                Severity::Notice
            };
            assert_eq!(verdict.severity, Some(severity));
        }
    }
    // What is not known matches no condition on it.
    let unknown = Facts {
        exe: None,
        container: None,
        ..FACTS
    };
    for condition in ["exe = \"**\"", "container = false"] {
        let text = format!("[[rule]]\nname = \"x\"\ndecide = \"ignore\"\n{condition}\n");
        assert!(
            policy(&text)
                .decide(&unknown, Severity::Notice)
                .rule
                .is_none()
        );
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let policy = policy(
        "[[rule]]\nname = \"sshd\"\ndecide = \"ignore\"\nport = 22\nexe = \"/usr/sbin/sshd\"\n\
         [[rule]]\nname = \"not sshd\"\ndecide = \"critical\"\nport = 22\ntransport = \"tcp\"\nreason = \"who else?\"\n\
         [[rule]]\nname = \"quiet\"\ndecide = \"notice\"\n",
    );
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
    assert_eq!(decided(&ssh("/usr/sbin/sshd")), (None, Some("sshd".into())));
    assert_eq!(
        decided(&ssh("/tmp/x")),
        (Some(Severity::Critical), Some("not sshd".into()))
    );
    assert_eq!(
        decided(&FACTS),
        (Some(Severity::Notice), Some("quiet".into()))
    );
    // A rule that names neither ports nor statuses is not about what is assigned.
    let http = Facts {
        port: Some(80),
        status: Some(Status::Assigned),
        ..FACTS
    };
    assert_eq!(decided(&http), (Some(Severity::Warning), None));
}

#[test]
fn the_kernel_side_reports_what_a_rule_can_tell() {
    let rule = |decide: &str, conditions: &str| (decide.to_owned(), conditions.to_owned());
    let cases = [
        (vec![rule("ignore", "port = 976")], 976, false),
        (
            vec![rule("ignore", "port = 976\ntransport = \"udp\"")],
            976,
            true,
        ),
        (vec![rule("ignore", "port = 976\nuser = 0")], 976, true),
        (vec![rule("notice", "port = 22")], 22, true),
        (
            vec![
                rule("ignore", "port = 22\nuser = 0"),
                rule("warning", "port = 22\ntransport = \"tcp\""),
            ],
            22,
            true,
        ),
        (
            vec![
                rule("ignore", "port = 22"),
                rule("warning", "port = 22\ntransport = \"tcp\""),
            ],
            22,
            false,
        ),
        (vec![rule("critical", "container = true")], 22, false),
        (
            vec![rule("critical", "container = true\nstatus = \"assigned\"")],
            22,
            true,
        ),
    ];
    for (rules, port, expected) in cases {
        let rules = rules
            .iter()
            .enumerate()
            .map(|(index, (decide, conditions))| {
                format!("[[rule]]\nname = \"{index}\"\ndecide = \"{decide}\"\n{conditions}\n")
            });
        let text: String = rules.collect();
        let is_watched = watched(&policy(&text)).contains(&(port, Transport::Tcp));
        assert_eq!(is_watched, expected, "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place_and_a_suggestion() {
    let head = "[[rule]]\nname = \"a\"\ndecide = \"ignore\"\n";
    let cases = [
        ("[[rule]]\nname = \"a\"\n", "missing field"),
        ("[[rule]]\ndecide = \"ignore\"\n", "missing field"),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"ignored\"\n",
            "did you mean \"ignore\"?",
        ),
        ("prot = 3\n", "unknown key \"prot\""),
        ("HEADprot = 3\n", "did you mean \"port\"?"),
        ("HEADport = \"abc\"\n", "\"abc\" is not a port"),
        ("HEADport = 8080\n", "8080 is no system port"),
        ("HEADport = \"988-954\"\n", "did you mean \"954-988\"?"),
        ("HEADport = []\n", "an empty list never matches"),
        ("HEADport = true\n", "invalid type"),
        ("HEADtransport = \"upd\"\n", "did you mean \"udp\"?"),
        ("HEADstatus = \"free\"\n", "unknown status \"free\""),
        ("HEADevent = \"listne\"\n", "did you mean \"listen\"?"),
        (
            "HEADevent = \"bind\"\npeer = \"10.0.0.0/8\"\n",
            "only accept and connect have a peer",
        ),
        (
            "HEADpeer = \"10.0.0.1/8\"\n",
            "did you mean \"10.0.0.0/8\"?",
        ),
        ("HEADaddress = \"lo\"\n", "is not loopback, private, any"),
        ("HEADexe = \"nc\"\n", "did you mean \"**/nc\"?"),
        ("HEADexe = \"/[\"\n", "unclosed character class"),
        ("HEADuser = \"no such user\"\n", "this host has no user"),
        (
            "HEADcgroup = \"system.slice\"\n",
            "did you mean \"/system.slice\"?",
        ),
        ("HEADnetns = \"mine\"\n", "is not host, other or an inode"),
        ("HEADHEAD", "the first is in line 2"),
        ("[collapse]\ninterval = \"soon\"\n", "is no length of time"),
        ("[collapse]\nburst = 0\n", "burst must be 1 at least"),
        ("[[rule]\n", "]"),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\nexe = \"/x\"\n",
            "denies by exe",
        ),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\nevent = \"bind\"\n",
            "leave out event",
        ),
        (
            "HEADexe = \"/x\"\n[[rule]]\nname = \"b\"\ndecide = \"deny\"\n",
            "stands before \"b\"",
        ),
        (
            "[[rule]]\nname = \"a\"\ndecide = \"deny\"\ncgroup = \"/a/*\"\n",
            "one path from the root",
        ),
    ];
    for (text, expected) in cases {
        let text = text.replace("HEAD", head);
        let (span, problem) = Policy::parse(&text).expect_err(&text);
        assert!(problem.contains(expected), "{text}: {problem}");
        assert!(span.start <= text.len(), "{text}: {span:?}");
    }
    let (span, _) = Policy::parse(&format!("{head}prot = 3\n")).unwrap_err();
    assert_eq!(span.start, head.len());
}

#[test]
fn refusals_are_the_rules_up_to_the_last_that_denies() {
    let registry = Registry::embedded().unwrap();
    let policy = policy(
        "[[rule]]\nname = \"nfs\"\ndecide = \"notice\"\nport = \"900-999\"\nuser = [0, 33]\n\
         [[rule]]\nname = \"in-house\"\ndecide = \"ignore\"\nport = 950\ncgroup = \"/system.slice/x.service\"\n\
         [[rule]]\nname = \"elsewhere\"\ndecide = \"ignore\"\nport = 5\nexe = \"/x\"\n\
         [[rule]]\nname = \"no\"\ndecide = \"deny\"\nport = \"900-1023\"\ntransport = \"tcp\"\n\
         [[rule]]\nname = \"later\"\ndecide = \"critical\"\nexe = \"/x\"\n",
    );
    let refusals = policy.refusals(&registry);
    let outline: Vec<_> = refusals
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
        let found = refusals
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
        Policy::default().refusals(&registry),
        crate::model::DenyRules::default()
    );
}
