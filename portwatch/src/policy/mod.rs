//! What is worth an alert, how much it matters, and what is refused: the rules of the operator, and
//! what holds without any.

mod config;
mod refusal;
mod rule;
mod severity;
mod values;

pub use self::{
    config::{ConfigError, DEFAULT_PATH},
    rule::{Decision, Facts, Rule},
    severity::severity,
};
use crate::{
    aggregate::Settings,
    model::{Severity, Transport},
    registry::{Registry, Status, system_ports},
};

/// What alerts.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Assigned ports too.
    pub all: bool,
    /// The first that matches decides.
    pub rules: Vec<Rule>,
    /// How much is told of what happens often.
    pub quiet: Settings,
    /// Refuse nothing, and say what would be refused.
    pub dry_run: bool,
}

/// What the rules say of an alert.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// How much it matters; None when nobody is to hear of it.
    pub severity: Option<Severity>,
    /// The rule that says so; None without one.
    pub rule: Option<&'a Rule>,
}

impl Policy {
    /// What is to become of an alert that matters `by_default` without any rule.
    #[must_use]
    pub fn decide(&self, facts: &Facts<'_>, by_default: Severity) -> Verdict<'_> {
        let rule = self.rules.iter().find(|rule| rule.matches(facts));
        let severity = match rule.map(|rule| rule.decision) {
            Some(Decision::Ignore) => None,
            Some(Decision::Notice) => Some(Severity::Notice),
            Some(Decision::Warning) => Some(Severity::Warning),
            Some(Decision::Critical) => Some(Severity::Critical),
            Some(Decision::Deny) | None => Some(by_default),
        };
        Verdict { severity, rule }
    }

    /// The (port, transport) pairs that the kernel side reports: those on which an event can end in
    /// an alert. Port 0 is never one that a socket has.
    pub fn watched<'a>(
        &'a self,
        registry: &'a Registry,
        transports: &'a [Transport],
    ) -> impl Iterator<Item = (u16, Transport)> + 'a {
        system_ports()
            .skip(1)
            .flat_map(|port| transports.iter().map(move |transport| (port, *transport)))
            .filter(move |(port, transport)| {
                registry
                    .verdict(*port, *transport)
                    .is_some_and(|verdict| self.is_watched(*port, *transport, verdict.status))
            })
    }

    fn is_watched(&self, port: u16, transport: Transport, status: Status) -> bool {
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
        self.all || status != Status::Assigned
    }
}

#[cfg(test)]
mod tests;
