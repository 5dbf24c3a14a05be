//! What in the rules is allowed and dangerous.

use super::{Condition, Decision, Policy, Rule};

impl Policy {
    /// For the operator: rules that a hostile process can make match by choosing a name, and that spare
    /// it an alert, a severity or a denied bind.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let warnings = self.rules.iter().enumerate();
        warnings
            .filter_map(|(index, rule)| {
                let later = self.rules.get(index + 1..).unwrap_or_default();
                warning(rule, later)
            })
            .collect()
    }
}

fn warning(rule: &Rule, later: &[Rule]) -> Option<String> {
    let (name, decision) = (&rule.name, rule.decision.name());
    let is_claim = |condition: &&Condition| condition.can_be_claimed();
    if rule.unverified && !rule.conditions.iter().any(|one| is_claim(&one)) {
        return Some(format!(
            "rule {name:?}: unverified has no effect without exe, unit, container or cgroup"
        ));
    }
    let condition = rule.rests_on_claim()?;
    let denies = |later: &Rule| later.decision == Decision::Deny && rule.overlaps(later);
    let effect = match rule.decision {
        Decision::Deny => return None,
        _ if later.iter().any(denies) => "allows a bind that a later rule denies".to_owned(),
        Decision::Critical => return None,
        Decision::Ignore | Decision::Notice | Decision::Warning => format!("decides {decision}"),
    };
    Some(format!(
        "rule {name:?} {effect} on an unverified claim alone ({}): a hostile process can claim it too. \
         Leave out unverified, or add user",
        condition.key()
    ))
}
