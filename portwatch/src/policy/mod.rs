//! The operator's rules: which ports are watched, which severity an alert has, and which binds are
//! denied.
#![forbid(unsafe_code)]

mod condition;
mod coverage;
mod deny;
mod error;
mod facts;
mod rule;
mod severity;
mod values;
mod warnings;

use self::coverage::{Coverage, PortSet};
pub use self::{
    condition::Condition,
    error::RuleError,
    facts::{Claims, Facts},
    rule::{Decision, Rule},
    severity::default_severity,
    values::{Address, NamePattern, Netns, Network, PortRange, User},
};
use crate::{
    model::{Severity, Transport},
    registry::{Registry, Status, system_ports},
};

/// The rules. The first that matches decides.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
}

/// The ports that are watched where no rule decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultScope {
    /// Those that IANA has not assigned.
    #[default]
    NotAssigned,
    /// All system ports.
    All,
}

/// The outcome of the rules for one alert.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// The severity; None to drop the alert.
    pub severity: Option<Severity>,
    /// The rule that decided; None when none matched.
    pub rule: Option<&'a Rule>,
}

impl Policy {
    /// The policy with these rules, in that order.
    ///
    /// # Errors
    ///
    /// [`RuleError`] for a rule that can never match, and for rules that the BPF programs cannot
    /// enforce as written.
    pub fn new(rules: Vec<Rule>) -> Result<Self, RuleError> {
        for (index, rule) in rules.iter().enumerate() {
            rule.check(index)?;
        }
        deny::check(&rules)?;
        Ok(Self { rules })
    }

    /// The rules in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Decides on an alert that has the severity `default` when no rule matches.
    #[must_use]
    pub fn decide(&self, facts: &Facts<'_>, default: Severity) -> Verdict<'_> {
        let rule = self.rules.iter().find(|rule| rule.matches(facts));
        let severity = match rule.map(|rule| rule.decision) {
            Some(Decision::Ignore) => None,
            Some(Decision::Notice) => Some(Severity::Notice),
            Some(Decision::Warning) => Some(Severity::Warning),
            Some(Decision::Critical) => Some(Severity::Critical),
            Some(Decision::Deny) | None => Some(default),
        };
        Verdict { severity, rule }
    }

    /// The (port, transport) pairs on which an event can end in an alert: those that the BPF
    /// programs report. Without port 0, which no socket has.
    pub fn watched<'a>(
        &'a self,
        registry: &'a Registry,
        default_scope: DefaultScope,
        transports: &'a [Transport],
    ) -> impl Iterator<Item = (u16, Transport)> + 'a {
        let watched = self.watched_ports(registry, default_scope, transports);
        system_ports().skip(1).flat_map(move |port| {
            let here = watched.iter().filter(|(_, ports)| ports.contains(port));
            let here: Vec<_> = here.map(|(transport, _)| (port, *transport)).collect();
            here
        })
    }

    /// Each rule decides on the ports that no earlier one decided on.
    fn watched_ports(
        &self,
        registry: &Registry,
        default_scope: DefaultScope,
        transports: &[Transport],
    ) -> Vec<(Transport, PortSet)> {
        let of_status = |transport, status| {
            let mut ports = PortSet::NONE;
            for port in system_ports() {
                let entry = registry.entry(port, transport);
                if entry.is_some_and(|entry| entry.status == status) {
                    ports.insert(port, port);
                }
            }
            (status, ports)
        };
        let mut all: Vec<_> = transports
            .iter()
            .map(|transport| {
                let undecided = Status::ALL.map(|status| of_status(*transport, status));
                (*transport, PortSet::NONE, undecided)
            })
            .collect();
        for rule in &self.rules {
            let is_ignored = rule.decision == Decision::Ignore;
            // It ignores some of what happens on its ports.
            if is_ignored && !rule.is_about_ports_only() {
                continue;
            }
            let coverage = Coverage::of(rule);
            for (transport, watched, undecided) in &mut all {
                for (status, undecided) in undecided {
                    let Some(ports) = coverage.ports(*transport, *status) else {
                        continue;
                    };
                    let decided = undecided.and(ports);
                    undecided.remove(&decided);
                    if !is_ignored {
                        watched.add(&decided);
                    }
                }
            }
        }
        all.into_iter()
            .map(|(transport, mut watched, undecided)| {
                for (status, undecided) in undecided {
                    if default_scope == DefaultScope::All || status != Status::Assigned {
                        watched.add(&undecided);
                    }
                }
                (transport, watched)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
