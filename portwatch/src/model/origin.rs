//! How an event became known.

use serde::Serialize;

/// How an event became known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The BPF programs reported it as it happened.
    Live,
    /// A scan found the state that it led to: before the monitor started, or after reports were
    /// lost.
    Snapshot,
}
