//! Compiles rules to the deny rules that the BPF programs evaluate.

use std::path::Path;

use portwatch_common::MAX_DENY_RULES;

use super::{Condition, Decision, NamePattern, Policy, Rule, RuleError, coverage::Coverage};
use crate::{
    model::{DenyRule, DenyRules, Transport},
    registry::{Registry, system_ports},
};

/// The transports whose bind can be denied.
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpLite];

impl Policy {
    /// Whether any rule denies.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.rules.iter().any(denies)
    }

    /// The deny rules of the BPF programs.
    #[must_use]
    pub fn deny_rules(&self, registry: &Registry) -> DenyRules {
        let binds = || {
            let ports = system_ports().skip(1);
            ports.flat_map(|port| TRANSPORTS.map(|transport| (port, transport, 0_u64)))
        };
        let mut compiled = DenyRules {
            rules: Vec::new(),
            ports: binds().collect(),
        };
        let rules = up_to_last_deny(&self.rules).iter();
        for rule in rules.filter(|rule| rule.is_about_binds()) {
            // `check` made sure that no later rule denies on the ports of such a rule.
            if rule.unchecked_by_kernel().is_some() {
                continue;
            }
            let first = compiled.rules.len();
            compiled.rules.extend(by_user_and_cgroup(rule));
            let bits = (first..compiled.rules.len()).fold(0, |bits, index| bits | 1 << index);
            let coverage = Coverage::of(rule);
            for (port, transport, applicable) in &mut compiled.ports {
                let entry = registry.entry(*port, *transport);
                if entry.is_some_and(|entry| coverage.covers(*port, *transport, entry.status)) {
                    *applicable |= bits;
                }
            }
        }
        compiled.ports.retain(|(_, _, bits)| *bits != 0);
        compiled
    }
}

fn denies(rule: &Rule) -> bool {
    rule.decision == Decision::Deny
}

/// One deny rule for each pair of user and cgroup in the rule.
fn by_user_and_cgroup(rule: &Rule) -> Vec<DenyRule> {
    let mut uids = vec![None];
    let mut cgroups = vec![None];
    for condition in &rule.conditions {
        match condition {
            Condition::User(users) => uids = users.iter().map(|user| Some(user.uid)).collect(),
            Condition::Cgroup(paths) => {
                cgroups = paths.iter().map(|path| Some(path.text.clone())).collect();
            }
            _ => {}
        }
    }
    let deny = denies(rule);
    let pairs = uids
        .iter()
        .flat_map(|uid| cgroups.iter().map(move |cgroup| (*uid, cgroup.clone())));
    let unverified = rule.unverified;
    pairs
        .map(|(uid, cgroup)| DenyRule {
            deny,
            uid,
            cgroup,
            unverified,
        })
        .collect()
}

/// How many deny rules [`by_user_and_cgroup`] gives.
fn pairs(rule: &Rule) -> usize {
    let counts = rule.conditions.iter().map(|condition| match condition {
        Condition::User(users) => users.len(),
        Condition::Cgroup(paths) => paths.len(),
        _ => 1,
    });
    counts.fold(1, usize::saturating_mul)
}

/// The rules that can affect whether a bind is denied.
fn up_to_last_deny(rules: &[Rule]) -> &[Rule] {
    let last = rules.iter().rposition(denies);
    last.map_or(&[], |last| &rules[..=last])
}

/// Fails when the BPF programs cannot deny as the rules say.
pub(super) fn check(rules: &[Rule]) -> Result<(), RuleError> {
    let named = |index: usize, key: Option<&'static str>, problem: String| {
        Err(RuleError {
            rule: index,
            key,
            problem: format!("rule {:?} {problem}", rules[index].name),
        })
    };
    for (index, rule) in rules.iter().enumerate().filter(|(_, rule)| denies(rule)) {
        if let Some(condition) = rule.unchecked_by_kernel() {
            let key = condition.key();
            return named(
                index,
                Some(key),
                format!(
                    "denies by {key}, which is unknown at a bind: deny can depend on port, \
                     transport, status, user and cgroup"
                ),
            );
        }
        if rule.events().is_some() {
            return named(
                index,
                Some("event"),
                "denies, which applies to binds only: leave out event".into(),
            );
        }
    }
    let rules_to_compile = up_to_last_deny(rules);
    let too_many = |count: usize| {
        named(
            rules_to_compile.len() - 1,
            None,
            format!(
                "is the last of {count} pairs of user and cgroup: the BPF programs hold {MAX_DENY_RULES}"
            ),
        )
    };
    // First, since each of them is compared with all rules before it.
    let denying: Vec<(usize, Coverage)> = (0..)
        .zip(rules_to_compile)
        .filter(|(_, rule)| denies(rule))
        .map(|(index, rule)| (index, Coverage::of(rule)))
        .collect();
    if denying.len() > MAX_DENY_RULES as usize {
        return too_many(denying.len());
    }
    let mut count = 0_usize;
    for (index, rule) in rules_to_compile.iter().enumerate() {
        if !rule.is_about_binds() {
            continue;
        }
        let coverage = Coverage::of(rule);
        let mut later = denying.iter().filter(|(later, _)| *later > index);
        if let Some(condition) = rule.unchecked_by_kernel()
            && let Some((later, _)) = later.find(|(_, later)| coverage.overlaps(later))
        {
            let later = &rules_to_compile[*later];
            let key = condition.key();
            return named(
                index,
                Some(key),
                format!(
                    "stands before {:?}, which denies the same ports, but depends on {key}, which \
                     is unknown at a bind: the bind would be denied anyway. Use user or cgroup, \
                     or put it after {:?}",
                    later.name, later.name
                ),
            );
        }
        for condition in &rule.conditions {
            let Condition::Cgroup(paths) = condition else {
                continue;
            };
            let is_one_path =
                |path: &&NamePattern| path.is_plain() && Path::new(&path.text).is_absolute();
            if let Some(path) = paths.iter().find(|path| !is_one_path(path)) {
                return named(
                    index,
                    Some(condition.key()),
                    format!(
                        "has the cgroup {:?}: up to the last deny rule a cgroup is one path from \
                         the root of the hierarchy, which includes all cgroups below it",
                        path.text
                    ),
                );
            }
        }
        count = count.saturating_add(pairs(rule));
    }
    if count > MAX_DENY_RULES as usize {
        return too_many(count);
    }
    Ok(())
}
