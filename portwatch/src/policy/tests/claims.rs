//! What processes claim, in rules.

use super::*;

#[test]
fn a_rule_matches_verified_facts_and_claims_only_where_it_says_so() {
    let claims = Facts {
        exe: None,
        unit: Some("user@1000.service"),
        container: None,
        cgroup: Some("/user.slice/user-1000.slice/user@1000.service"),
        claims: Claims {
            exe: Some("/usr/bin/perl"),
            unit: Some("nginx.service"),
            container: Some(true),
            cgroup: Some("/user.slice/user-1000.slice/user@1000.service/nginx.service"),
        },
        ..FACTS
    };
    let below = "/user.slice/user-1000.slice/user@1000.service/nginx.service";
    // Matches as written, and with `unverified`.
    let cases = [
        ("exe", "/usr/bin/perl", false, true),
        ("exe", "/usr/bin/nc", false, false),
        ("unit", "nginx.service", false, true),
        ("unit", "user@1000.service", true, true),
        ("container", "true", false, true),
        ("container", "false", false, false),
        ("cgroup", below, false, true),
        ("cgroup", "**/nginx.service", false, true),
        ("cgroup", "/user.slice", true, true),
        ("user", "0", true, true),
        ("user", "1", false, false),
    ];
    for (key, value, verified, claimed) in cases {
        let [as_written, with_claims] = [false, true].map(|unverified| {
            let rule = Rule {
                name: "x".into(),
                reason: None,
                decision: Decision::Ignore,
                unverified,
                sessions: false,
                conditions: vec![condition(key, value)],
            };
            rule.matches(&claims)
        });
        assert_eq!(
            (as_written, with_claims),
            (verified, claimed),
            "{key} = {value}"
        );
    }
}

#[test]
fn a_rule_that_spares_a_process_by_its_claim_alone_is_warned_of() {
    use Decision::{Critical, Deny, Ignore, Notice, Warning};
    let deny = (Deny, false, &[("port", "955")][..]);
    let exe = ("exe", "/usr/bin/perl");
    let (unit, cgroup) = (("unit", "x.service"), ("cgroup", "/a/b"));
    let (container, user, netns) = (("container", "true"), ("user", "0"), ("netns", "host"));
    type Raw<'a> = (Decision, bool, Conditions<'a>);
    let cases: [(&[Raw<'_>], &str); 14] = [
        (&[(Ignore, true, &[exe])], "(exe)"),
        (&[(Notice, true, &[unit, netns])], "(unit)"),
        (&[(Warning, true, &[container])], "(container)"),
        (&[(Ignore, true, &[cgroup])], "(cgroup)"),
        (&[(Ignore, true, &[netns])], "no effect"),
        (&[(Ignore, false, &[exe])], ""),
        (&[(Ignore, true, &[exe, user])], ""),
        (&[(Critical, true, &[container, netns])], ""),
        (&[(Deny, true, &[cgroup])], ""),
        (&[(Critical, true, &[cgroup]), deny], "allows a bind"),
        (&[(Ignore, true, &[cgroup]), deny], "allows a bind"),
        (&[(Critical, false, &[cgroup]), deny], ""),
        (&[(Critical, true, &[cgroup, user]), deny], ""),
        (&[(Critical, true, &[cgroup, ("port", "956")]), deny], ""),
    ];
    for (raw, expected) in cases {
        let rules = (0..)
            .zip(raw)
            .map(|(index, (decision, unverified, conditions))| Rule {
                name: i32::to_string(&index),
                reason: None,
                decision: *decision,
                unverified: *unverified,
                sessions: false,
                conditions: conditions
                    .iter()
                    .map(|(key, values)| condition(key, values))
                    .collect(),
            });
        let warnings = Policy::new(rules.collect()).unwrap().warnings().join("; ");
        match expected {
            "" => assert_eq!(warnings, "", "{raw:?}"),
            _ => assert!(warnings.contains(expected), "{raw:?}: {warnings:?}"),
        }
    }
}
