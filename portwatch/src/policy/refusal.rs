//! The rules as the kernel side can decide by them.

use std::path::Path;

use portwatch_common::MAX_DENY_RULES;

use super::{Decision, Policy, Rule, config::Complaint};
use crate::{
    model::{DenyRule, DenyRules, Transport},
    registry::{Registry, system_ports},
};

/// The transports whose bind can be refused.
const TRANSPORTS: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::UdpLite];

impl Policy {
    /// Whether any rule refuses.
    #[must_use]
    pub fn denies(&self) -> bool {
        self.rules
            .iter()
            .any(|rule| rule.decision == Decision::Deny)
    }

    /// The refusals that the rules come to.
    #[must_use]
    pub fn refusals(&self, registry: &Registry) -> DenyRules {
        let mut refusals = DenyRules::default();
        let mut masks = vec![0_u64; system_ports().count() * TRANSPORTS.len()];
        let places = || {
            let ports = system_ports().skip(1);
            ports.flat_map(|port| TRANSPORTS.map(|transport| (port, transport)))
        };
        let slot = |port: u16, transport: Transport| {
            usize::from(port) * TRANSPORTS.len()
                + TRANSPORTS
                    .iter()
                    .position(|one| *one == transport)
                    .unwrap_or(0)
        };
        let rules = up_to_last_denier(&self.rules).iter();
        for rule in rules.filter(|rule| rule.is_about_binds()) {
            // One that the kernel cannot judge is about no port that is refused: `check` saw to it.
            if rule.kernel_cannot_tell().is_some() {
                continue;
            }
            let first = refusals.rules.len();
            refusals.rules.extend(by_user_and_cgroup(rule));
            let bits = (first..refusals.rules.len()).fold(0, |bits, index| bits | 1 << index);
            for (port, transport) in places() {
                let verdict = registry.verdict(port, transport);
                if verdict.is_some_and(|verdict| rule.covers(port, transport, verdict.status)) {
                    masks[slot(port, transport)] |= bits;
                }
            }
        }
        refusals.ports = places()
            .map(|(port, transport)| (port, transport, masks[slot(port, transport)]))
            .filter(|(_, _, bits)| *bits != 0)
            .collect();
        refusals
    }
}

/// One refusal for each user and cgroup that the rule names.
fn by_user_and_cgroup(rule: &Rule) -> Vec<DenyRule> {
    let users: Vec<Option<u32>> = match &rule.users {
        Some(users) => users.iter().map(|user| Some(user.uid)).collect(),
        None => vec![None],
    };
    let cgroups: Vec<Option<String>> = match &rule.cgroups {
        Some(cgroups) => cgroups.iter().map(|name| Some(name.text.clone())).collect(),
        None => vec![None],
    };
    let deny = rule.decision == Decision::Deny;
    let pairs = users
        .iter()
        .flat_map(|uid| cgroups.iter().map(move |cgroup| (*uid, cgroup.clone())));
    pairs
        .map(|(uid, cgroup)| DenyRule { deny, uid, cgroup })
        .collect()
}

/// The rules without those that nothing is refused behind.
fn up_to_last_denier(rules: &[Rule]) -> &[Rule] {
    let last = rules
        .iter()
        .rposition(|rule| rule.decision == Decision::Deny);
    last.map_or(&[], |last| &rules[..=last])
}

/// What the kernel could not do as the rules say.
pub(super) fn check(rules: &[Rule]) -> Result<(), Complaint> {
    let mut count = 0;
    let denies = |rule: &&Rule| rule.decision == Decision::Deny;
    for rule in rules.iter().filter(denies) {
        if let Some(key) = rule.kernel_cannot_tell() {
            return Err(Complaint::of(
                rule,
                format!(
                    "denies by {key}, which the kernel does not know at a bind: deny can depend on port, transport, status, user and cgroup"
                ),
            ));
        }
        if rule.events.is_some() {
            return Err(Complaint::of(
                rule,
                "denies, and so is about binds: leave out event".into(),
            ));
        }
    }
    let rules = up_to_last_denier(rules);
    let Some(last) = rules.last() else {
        return Ok(());
    };
    for (index, rule) in rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.is_about_binds())
    {
        let mut later = rules.iter().skip(index + 1).filter(denies);
        let denier = later.find(|denier| overlap(rule, denier));
        if let (Some(key), Some(denier)) = (rule.kernel_cannot_tell(), denier) {
            return Err(Complaint::of(
                rule,
                format!(
                    "stands before {:?}, which denies the same ports, but goes by {key}, which the kernel does not know at a bind: it would be refused all the same. Use user or cgroup, or put it behind",
                    denier.name
                ),
            ));
        }
        for cgroup in rule.cgroups.iter().flatten() {
            if !cgroup.is_plain() || !Path::new(&cgroup.text).is_absolute() {
                return Err(Complaint::of(
                    rule,
                    format!(
                        "{:?}: with deny a cgroup is one path from the root of the hierarchy, and stands for all below it",
                        cgroup.text
                    ),
                ));
            }
        }
        count += by_user_and_cgroup(rule).len();
    }
    if count > MAX_DENY_RULES as usize {
        return Err(Complaint::of(
            last,
            format!(
                "{count} pairs of user and cgroup up to here: the kernel side holds {MAX_DENY_RULES}"
            ),
        ));
    }
    Ok(())
}

/// Whether both can be about one bind.
fn overlap(one: &Rule, other: &Rule) -> bool {
    let share = |one: &Option<Vec<Transport>>, other: &Option<Vec<Transport>>| match (one, other) {
        (Some(one), Some(other)) => one.iter().any(|transport| other.contains(transport)),
        _ => true,
    };
    let ports = match (&one.ports, &other.ports) {
        (Some(one), Some(other)) => one.iter().any(|one| {
            other
                .iter()
                .any(|other| one.first <= other.last && other.first <= one.last)
        }),
        _ => true,
    };
    let statuses = match (&one.statuses, &other.statuses) {
        (Some(one), Some(other)) => one.iter().any(|status| other.contains(status)),
        _ => true,
    };
    ports && statuses && share(&one.transports, &other.transports)
}
