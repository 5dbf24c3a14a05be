//! Why rules cannot be used.

/// Why rules cannot be used, and the key of the rule that is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleError {
    /// Index of the rule.
    pub rule: usize,
    /// Key of the condition; None for the rule as a whole.
    pub key: Option<&'static str>,
    /// What is wrong, and often what would be right.
    pub problem: String,
}
