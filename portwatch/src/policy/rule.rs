//! One rule: its conditions and its decision.

use serde::{Deserialize, Serialize};

use super::{condition::Condition, error::RuleError, facts::Facts};
use crate::{
    model::{EventKind, Transport},
    registry::Status,
};

/// What a rule decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// No alert.
    Ignore,
    /// An alert of severity notice.
    Notice,
    /// An alert of severity warning.
    Warning,
    /// An alert of severity critical.
    Critical,
    /// The kernel denies the bind.
    Deny,
}

impl Decision {
    /// The name in the configuration and in the output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Notice => "notice",
            Self::Warning => "warning",
            Self::Critical => "critical",
            Self::Deny => "deny",
        }
    }
}

/// A rule. It matches when all its conditions do.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Printed on the alerts that it decides; unique.
    pub name: String,
    /// Why the rule exists; printed too.
    pub reason: Option<String>,
    /// What it decides.
    pub decision: Decision,
    /// Whether claims satisfy its conditions as well as verified facts do.
    pub unverified: bool,
    /// Whether the end of each connection that it matches is reported.
    pub sessions: bool,
    /// At most one of each key.
    pub conditions: Vec<Condition>,
}

impl Rule {
    /// Whether it matches. Facts without a port (a loss, the sensor's health) match no rule.
    #[must_use]
    pub fn matches(&self, facts: &Facts<'_>) -> bool {
        let (Some(port), Some(transport), Some(status)) =
            (facts.port, facts.transport, facts.status)
        else {
            return false;
        };
        self.covers(port, transport, status)
            && self.conditions.iter().all(|condition| {
                condition.matches(facts)
                    || self.unverified && condition.matches_claim(&facts.claims)
            })
    }

    /// The first condition that a process can satisfy by choosing a name, where nothing else in the rule
    /// says whose process it is. A network namespace does not: any user can create one.
    pub(super) fn rests_on_claim(&self) -> Option<&Condition> {
        let names_user = |condition: &Condition| matches!(condition, Condition::User(_));
        let mut conditions = self.conditions.iter();
        let claim = conditions.find(|condition| condition.can_be_claimed());
        claim.filter(|_| self.unverified && !self.conditions.iter().any(names_user))
    }

    /// Whether it can match on that port. Without a condition on port or status it covers the
    /// ports that are not assigned.
    #[must_use]
    pub fn covers(&self, port: u16, transport: Transport, status: Status) -> bool {
        let facts = Facts {
            port: Some(port),
            transport: Some(transport),
            status: Some(status),
            ..Facts::default()
        };
        let names_ports = self
            .conditions
            .iter()
            .any(|condition| matches!(condition, Condition::Port(_) | Condition::Status(_)));
        (names_ports || status != Status::Assigned)
            && self
                .conditions
                .iter()
                .filter(|condition| condition.is_about_port())
                .all(|condition| condition.matches(&facts))
    }

    /// Whether it matches every event on the ports that it covers.
    #[must_use]
    pub fn is_about_ports_only(&self) -> bool {
        self.conditions.iter().all(Condition::is_about_port)
    }

    /// Whether it can match at a bind. One about `deny` alone is about the alert: at the bind that the
    /// kernel is to decide, there is no such event yet.
    pub(super) fn is_about_binds(&self) -> bool {
        self.events()
            .is_none_or(|events| events.contains(&EventKind::Bind))
    }

    /// Whether it asks for the end of each connection that it matches.
    #[must_use]
    pub fn reports_sessions(&self) -> bool {
        let names_them = |events: &[EventKind]| events.contains(&EventKind::Session);
        self.decision != Decision::Ignore
            && (self.sessions || self.events().is_some_and(names_them))
    }

    /// How many of its values are patterns.
    #[must_use]
    pub fn patterns(&self) -> usize {
        let patterns = self.conditions.iter().map(|condition| match condition {
            Condition::Exe(names)
            | Condition::Unit(names)
            | Condition::Cgroup(names)
            | Condition::Device(names) => names.iter().filter(|name| !name.is_plain()).count(),
            _ => 0,
        });
        patterns.sum()
    }

    /// The first condition that the BPF programs cannot evaluate at a bind.
    pub(super) fn unchecked_by_kernel(&self) -> Option<&Condition> {
        self.conditions
            .iter()
            .find(|condition| !condition.kernel_can_check())
    }

    /// The events that it is about; None for all.
    pub(super) fn events(&self) -> Option<&[EventKind]> {
        self.conditions
            .iter()
            .find_map(|condition| match condition {
                Condition::Event(events) => Some(events.as_slice()),
                _ => None,
            })
    }

    /// Fails when the rule, number `index`, can never match.
    pub(super) fn check(&self, index: usize) -> Result<(), RuleError> {
        let has_peer = |event: &EventKind| {
            matches!(
                event,
                EventKind::Accept | EventKind::Connect | EventKind::Receive | EventKind::Session
            )
        };
        let without_peer = |events: &[EventKind]| !events.iter().any(has_peer);
        for condition in &self.conditions {
            let never = |problem| {
                Err(RuleError {
                    rule: index,
                    key: Some(condition.key()),
                    problem,
                })
            };
            let (paths, prefix) = match condition {
                Condition::Peer(_) if self.events().is_some_and(without_peer) => {
                    return never(
                        "only accept, connect, session and receive have a peer: with that event this never matches"
                            .into(),
                    );
                }
                Condition::Exe(paths) => (paths, "**/"),
                Condition::Cgroup(paths) => (paths, "/"),
                _ => continue,
            };
            let can_be_full = |path: &&str| path.starts_with(['/', '*', '{', '[', '?']);
            let mut texts = paths.iter().map(|path| path.text.as_str());
            if let Some(path) = texts.find(|path| !can_be_full(path)) {
                return never(format!(
                    "{} is a full path, so {path:?} never matches; did you mean \"{prefix}{path}\"?",
                    condition.key()
                ));
            }
        }
        Ok(())
    }
}
