//! What in the rules is allowed and dangerous.

use super::{Condition, Decision, Policy, Rule, coverage::Coverage};

impl Policy {
    /// For the operator: rules that a hostile process can make match by choosing a name, and that spare
    /// it an alert, a severity or a denied bind.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let rules = || self.rules.iter().enumerate();
        let denying: Vec<(usize, Coverage)> = rules()
            .filter(|(_, rule)| rule.decision == Decision::Deny)
            .map(|(index, rule)| (index, Coverage::of(rule)))
            .collect();
        rules()
            .filter_map(|(index, rule)| {
                let later = denying.iter().filter(|(later, _)| *later > index);
                warning(rule, later.map(|(_, coverage)| coverage))
            })
            .collect()
    }
}

/// `denying`: of the later rules that deny.
fn warning<'a>(rule: &Rule, mut denying: impl Iterator<Item = &'a Coverage>) -> Option<String> {
    let (name, decision) = (&rule.name, rule.decision.name());
    let is_claim = |condition: &&Condition| condition.can_be_claimed();
    if rule.unverified && !rule.conditions.iter().any(|one| is_claim(&one)) {
        return Some(format!(
            "rule {name:?}: unverified has no effect without exe, unit, container or cgroup"
        ));
    }
    let condition = rule.rests_on_claim()?;
    let coverage = Coverage::of(rule);
    let effect = match rule.decision {
        Decision::Deny => return None,
        _ if denying.any(|later| coverage.overlaps(later)) => {
            "allows a bind that a later rule denies".to_owned()
        }
        Decision::Critical => return None,
        Decision::Ignore | Decision::Notice | Decision::Warning => format!("decides {decision}"),
    };
    Some(format!(
        "rule {name:?} {effect} on an unverified claim alone ({}): a hostile process can claim it too. \
         Leave out unverified, or add user",
        condition.key()
    ))
}
