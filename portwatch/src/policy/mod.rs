//! The operator's rules: which ports are watched, which severity an alert has, and which binds are
//! denied.
#![forbid(unsafe_code)]

mod condition;
mod deny;
mod error;
mod facts;
mod rule;
mod severity;
mod values;
mod warnings;

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
        system_ports()
            .skip(1)
            .flat_map(|port| transports.iter().map(move |transport| (port, *transport)))
            .filter(move |(port, transport)| {
                registry.entry(*port, *transport).is_some_and(|entry| {
                    self.is_watched(*port, *transport, entry.status, default_scope)
                })
            })
    }

    fn is_watched(
        &self,
        port: u16,
        transport: Transport,
        status: Status,
        default_scope: DefaultScope,
    ) -> bool {
        for rule in &self.rules {
            if !rule.covers(port, transport, status) {
                continue;
            }
            let is_ignored = rule.decision == Decision::Ignore;
            if rule.is_about_ports_only() {
                return !is_ignored;
            }
            if !is_ignored {
                return true;
            }
        }
        default_scope == DefaultScope::All || status != Status::Assigned
    }
}

#[cfg(test)]
mod tests;
