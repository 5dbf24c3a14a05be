//! Deny rules in the form in which the BPF programs evaluate them.

use super::Transport;

/// Which binds are denied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DenyRules {
    /// In the order in which they are evaluated; the first that matches decides.
    pub rules: Vec<DenyRule>,
    /// The rules that apply to a port, as bits of their indices.
    pub ports: Vec<(u16, Transport, u64)>,
}

/// A verdict for one user and one cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenyRule {
    /// Deny the bind; otherwise allow it and evaluate no further rule.
    pub deny: bool,
    /// Only for this real user id.
    pub uid: Option<u32>,
    /// Only within the cgroup at this path below the root of the v2 hierarchy.
    pub cgroup: Option<String>,
    /// Whether that holds also where a directory on the path is delegated, so that the name is anybody's.
    pub unverified: bool,
}
